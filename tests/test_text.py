"""Programs as text: the exact form, what goes out comes back, and what an error shows."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jax import lax

from dialect.jaxprs import framework  # noqa: F401  (define the ops)
from dialect.jaxprs.jaxpr import constant, trace_graph
from dialect.ops import control, tensor  # noqa: F401  (define the ops)
from dialect.planning.plan import Alternative, Plan, Prediction
from dialect.user.tracing import trace
from rewrite import opdef
from rewrite.errors import InvalidProgram, TextError
from rewrite.ir import Graph, Op, Opaque, Origin, Record, Symbol, Type, Value, attrs_of, new_input
from rewrite.opdef import OpDef, build, make
from rewrite.pipeline import Pipeline
from rewrite.program import (
    LEFT_ALONE,
    NOT_DONE,
    Input,
    Output,
    Program,
    Remark,
    Stages,
    Step,
    remarks,
)
from rewrite.signature import Signature
from rewrite.text import parse_graph, parse_program, show_graph, show_program, show_value
from tests.kit import flat

F32 = Type("f32", ())
F4 = Type("f32", (4,))
HOLDS, LED, ODD = "holder", "leader", "an odd name"

for name, lead in ((HOLDS, None), (LED, "lead"), (ODD, None)):
    opdef.define(
        OpDef(
            name=name,
            signature=lambda op: Signature.parse("a -> a"),
            infer=lambda types, attrs, regions: types,
            reference=lambda x, **attrs: x,
            lead=lead,
        )
    )


def op_with(name: str = HOLDS, **attrs: Any) -> Graph:
    """A graph of one op that has these attributes."""
    x = new_input(F4)
    return Graph((x,), Op(name, (x,), attrs_of(attrs), (F4,)).results)


def op_line(graph: Graph) -> str:
    return show_graph(graph).split("\n")[1].strip()


def assert_reads_back(graph: Graph) -> None:
    """Python's equality takes 1 for True and for 1.0; their texts differ."""
    text = show_graph(graph)
    again = parse_graph(text)
    assert again == graph
    assert show_graph(again) == text


def step_program() -> Program:
    """A layer and a loop, as small as they get."""
    embed, weights, cache = (new_input(Type("f32", shape)) for shape in ((8, 4), (2, 4), (4,)))
    tokens = new_input(Type("bf16", (2, 8)))
    half = constant(np.float32(0.5))
    hidden = make("contract", tokens, embed, spec="b v, v d -> b d", dtype=Symbol("f32"))
    state, row = new_input(F4), new_input(F4)
    body = Graph((state, row), (make("mul", state, make("add", row, half)), state))
    options = {"consts": 0, "carry": 1, "length": 2, "reverse": False, "unroll": 1}
    loop = build(
        "scan",
        cache,
        make("mul", hidden, weights, origin=Origin("/home/a/models/llama.py:41 (ffn)", ("fuse",))),
        regions=(body,),
        **options,
    )
    minus = constant(np.float32([1, -0.0, np.nan]))
    return Program(
        name="decode_step",
        graph=Graph((embed, weights, cache, tokens), (Value(loop, 1), Value(loop, 0), minus, half)),
        inputs=(
            Input("params/embed", embed.type, "param", (("x", "y"), ())),
            Input("params/w 1", weights.type, "param"),
            Input("cache", cache.type, "state", ((),)),
            Input("0", tokens.type, "arg"),
        ),
        outputs=(Output("logits"), Output("cache", updates=2), Output("1/k"), Output("")),
        tree=(({"embed": 0, "w 1": 1}, [2, None], (3,)), (0, 1, 2, {7: 3})),
        history=(
            Step("normalize"),
            Step("quantize{weights=int8}", "approx", remarks(('skipped "norm"', "2\nlines"))),
        ),
    )


STEP = r"""
program decode_step
history {
  "normalize" bits
  "quantize{weights=int8}" approx
    - "skipped \"norm\""
    - "2\nlines"
}
inputs {
  %params/embed : f32[8,4] param @ (x y, _)
  %params/w_1 "params/w 1" : f32[2,4] param
  %cache : f32[4] state @ (_)
  %_0 "0" : bf16[2,8] arg
}
outputs {
  "logits"
  "cache" updates %cache
  "1/k"
  ""
}
tree ({"embed": 0, "w 1": 1}, [2, none], (3,)) -> (0, 1, 2, {7: 3})
step {
  %0 = contract "b v, v d -> b d" (%_0, %params/embed) {dtype=f32} : f32[2,4]
  %1 = mul(%0, %params/w_1) : f32[2,4]
  %2:2 = scan(%cache, %1) {carry=1, consts=0, length=2, reverse=false, unroll=1} : f32[4], f32[2,4]
    (%3 : f32[4], %4 : f32[4]) {
      %5 = add(%4, 0.5:f32) : f32[4]
      %6 = mul(%3, %5) : f32[4]
      return %6, %3
    }
  return %2.1, %2.0, (1.0, -0.0, nan):f32[3], 0.5:f32
}
""".strip()


def staged_program() -> Program:
    weights, cache, packed, layer, token, new = (new_input(F4) for _ in range(6))
    step = Graph((packed, layer, token), (make("add", packed, token), make("mul", layer, token)))
    stages = Stages(
        prepare=Graph((weights,), (make("neg", weights),)),
        adapt=Graph((cache,), (cache,)),
        restore=Graph((new,), (make("neg", new),)),
        inputs=(
            Input("w.neg", F4, "param", (("x",),)),
            Input("cache", F4, "state"),
            Input("token", F4, "arg"),
        ),
        outputs=(Output("0"), Output("1", updates=1)),
    )
    return Program(
        name="staged",
        graph=step,
        inputs=(Input("w", F4, "param"), Input("cache", F4, "state"), Input("token", F4, "arg")),
        outputs=(Output("0"), Output("1", updates=1)),
        tree=((0, 1, 2), (0, 1)),
        stages=stages,
        plan=Plan(
            label="ws2d/batch",
            mesh=(("x", 4),),
            groups=(("weights", (("d_ff", ("x",)),)), ("residual", ())),
            predicted=Prediction(0.1, 1e-05, 0.1, 0.0, 0.0, 1, 2, 3),
            alternatives=(Alternative("1d", None, "batch {2} does not divide"),),
        ),
    )


STAGED = """
program staged
inputs {
  %w : f32[4] param
  %cache : f32[4] state
  %token : f32[4] arg
}
outputs {
  "0"
  "1" updates %cache
}
tree (0, 1, 2) -> (0, 1)
plan {
  plan ws2d/batch
  mesh x=4
  weights    d_ff@x
  residual   whole
  predicted  time_s=0.1 compute_s=1e-05 hbm_s=0.1 communication_s=0.0 latency_s=0.0 hbm_bytes=1 \
communication_bytes=2 memory_bytes=3
  unavailable 1d "batch {2} does not divide"
}
prepare {
  %0 = neg(%w) : f32[4]
  return %0
}
adapt {
  return %cache
}
packed inputs {
  %w.neg : f32[4] param @ (x)
  %cache : f32[4] state
  %token : f32[4] arg
}
packed outputs {
  "0"
  "1" updates %cache
}
step {
  %0 = add(%w.neg, %token) : f32[4]
  %1 = mul(%cache, %token) : f32[4]
  return %0, %1
}
restore {
  %0 = neg(%cache) : f32[4]
  return %0
}
""".strip()


@pytest.mark.parametrize("program, text", [(step_program(), STEP), (staged_program(), STAGED)])
def test_the_text_of_a_program(program: Program, text: str) -> None:
    assert str(program) == text
    again = Program.parse(text)
    assert again == program
    assert str(again) == text


def test_every_field_counts() -> None:
    program = parse_program(STAGED)
    for change in (
        {"name": "other"},
        {"outputs": program.outputs[::-1]},
        {"history": (Step("normalize"),)},
        {"plan": None},
        {"stages": replace(program.stages, adapt=program.stages.prepare)},
        {"tree": ((0, [1], 2), (0, 1))},
    ):
        changed = replace(program, **change)
        assert changed != program
        assert parse_program(show_program(changed)) == changed


def test_remarks_about_inputs_and_requests_read_back() -> None:
    left, undone = Remark("a table", "params/head", LEFT_ALONE), Remark("declined", kind=NOT_DONE)
    told = Step("quantize", "approx", (left, undone))
    asked = Step("cache_layout{owner=batch}", "bits", (), (("owner", "batch"),))
    text = str(replace(step_program(), history=(told, asked)))
    assert '  - "a table" of "params/head" as "left alone"\n' in text
    assert '  - "declined" of "" as "not done"\n' in text
    assert '"cache_layout{owner=batch}" bits asks owner=batch\n' in text
    assert Program.parse(text).history == (told, asked)


def test_comments_and_blank_lines_are_skipped() -> None:
    noted = show_program(step_program(), origins=True, notes=lambda value: f"{value.type.rank}D")
    assert "  %cache : f32[4] state @ (_)  // 1D\n" in noted
    assert " = mul(%0, %params/w_1) : f32[2,4]  // 2D; models/llama.py:41 (ffn) by fuse\n" in noted
    assert "      %3 : f32[4],  // 1D\n" in noted
    loose = noted.replace("\n", "   // } return %9\r\n\r\n").replace("plan {   //", "plan {\r\n//")
    assert parse_program(noted) == parse_program(loose) == parse_program(STEP)


def test_a_section_may_list_inputs_of_its_own() -> None:
    """A program that is not valid still shows what it is, and is refused when it is read."""
    program = parse_program(STAGED)
    other = replace(program, graph=op_with())
    text = show_program(other)
    assert f"step (%0 : f32[4]) {{\n  %1 = {HOLDS}(%0) : f32[4]\n  return %1\n}}" in text
    with pytest.raises(InvalidProgram, match="inputs and .* outputs are declared"):
        parse_program(text)


names = st.text(max_size=8) | st.sampled_from(["0", "0/1", "a//b", "/a", "_0", "a b", "a_b", "%1"])
notes = st.lists(st.text(), max_size=3).map(tuple)
layouts = st.none() | st.lists(st.text(max_size=3), max_size=2).map(lambda axes: (tuple(axes),))
trees = st.recursive(
    st.none() | st.just(0),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(), inner, max_size=3)
        | st.dictionaries(st.integers(), inner, max_size=3)
    ),
)


@given(st.text(), st.lists(st.tuples(names, layouts), max_size=6), notes, trees)
def test_any_name_note_and_tree_reads_back(
    name: str, declared: list[Any], said: tuple[str, ...], shape: Any
) -> None:
    structure = jax.tree.structure(shape)
    counted = structure.num_leaves  # and so many inputs and outputs
    declared = [*declared, *[("more", None)] * counted][:counted]
    values = tuple(new_input(F4) for _ in declared)
    tree = (jax.tree.unflatten(structure, range(counted)),) * 2
    updates = range(len(declared))
    program = Program(
        name=name,
        graph=Graph(values, values[::-1]),
        inputs=tuple(Input(each, F4, "state", layout) for each, layout in declared),
        outputs=tuple(Output(each, i) for (each, _), i in zip(declared, updates)),
        tree=tree,
        history=(Step(name, "reals", remarks(said)),),
    )
    again = parse_program(show_program(program))
    assert again == program
    assert again.tree == tree and repr(again.tree) == repr(tree)


# Attributes.


def fields(mapping: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(mapping.items())


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False).filter(lambda x: str(x) != "-0.0")
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.builds(Symbol, st.text() | st.from_regex(r"\A[A-Za-z_0-9.+-]+\Z"))
    | st.builds(Type, st.sampled_from(["f32", "key<fry>"]), st.just((2, 0)), st.booleans()),
    lambda inner: (
        st.lists(inner, max_size=4).map(tuple)
        | st.builds(Record, st.text(), st.dictionaries(st.text(), inner, max_size=3).map(fields))
    ),
)


@given(values, values)
@example(Symbol("nan"), Symbol("-0.0"))
@example(Symbol("nan-1.0j"), Record("inf", (("none", Symbol("inf.x")),)))
@example(float("inf"), (float("-inf"), 5e-324, 1e16, (1,), ((),)))
@example("//", ("}", "\\", "\u2028", "é"))
def test_any_attribute_reads_back(first: Any, second: Any) -> None:
    graph = op_with(first=first, second=second)
    text = show_graph(graph)
    again = parse_graph(text)
    assert again == graph
    assert repr(again.outputs[0].op.attrs) == repr(graph.outputs[0].op.attrs)


def test_how_attributes_look() -> None:
    record = Record("Numbers", (("dims", (1,)), ("mode", Symbol("Mode.CLIP"))))
    line = op_line(op_with(a=None, b=True, c=(1, 2.0), d="x y", e=record, f=F4, g=Symbol("a b")))
    assert line == (
        f'%1 = {HOLDS}(%0) {{a=none, b=true, c=(1, 2.0), d="x y", '
        "e=Numbers(dims=(1,), mode=Mode.CLIP), f=f32[4], g='a b'} : f32[4]"
    )


@pytest.mark.parametrize(
    "lead, line",
    [
        ("a b -> b", '%1 = leader "a b -> b" (%0) {z=1} : f32[4]'),
        ((((1,), (0,)), ()), "%1 = leader (((1,), (0,)), ()) (%0) {z=1} : f32[4]"),
        ((), "%1 = leader () (%0) {z=1} : f32[4]"),
        (-1, "%1 = leader(%0) {lead=-1, z=1} : f32[4]"),
        ((-1,), "%1 = leader(%0) {lead=(-1,), z=1} : f32[4]"),
    ],
)
def test_the_leading_attribute_stands_behind_the_name(lead: Any, line: str) -> None:
    graph = op_with(LED, lead=lead, z=1)
    assert op_line(graph) == line
    assert_reads_back(graph)


def test_odd_names_are_quoted() -> None:
    graph = op_with(ODD, **{"an attribute": 1})
    assert op_line(graph) == '%1 = "an odd name"(%0) {"an attribute"=1} : f32[4]'
    assert_reads_back(graph)


# Constants.


@pytest.mark.parametrize(
    "value, shown",
    [
        (np.float32(0.5), "0.5:f32"),
        (0.1, "0.1:f32~"),
        (True, "true:bool"),
        (np.int8(-3), "-3:i8"),
        (np.float32(-0.0), "-0.0:f32"),
        (np.float32("nan"), "nan:f32"),
        (np.float32("-inf"), "-inf:f32"),
        (np.arange(3, dtype="int32"), "(0, 1, 2):i32[3]"),
        (np.float32([[1], [2]]), "(1.0, 2.0):f32[2,1]"),
        (np.bool_([True]), "(true,):bool[1]"),
        (np.zeros((2, 0), np.float32), "():f32[2,0]"),
        (jnp.array([1, -2], "int4"), "(1, -2):i4[2]"),
        (jnp.array([1.5, 2], "float8_e4m3fn"), "(1.5, 2.0):f8_e4m3fn[2]"),
        (np.float32(0.1), "0.1:f32"),
    ],
)
def test_constants_stand_where_they_are_used(value: Any, shown: str) -> None:
    x = constant(value)
    graph = Graph((), (x, *Op(HOLDS, (x,), (), (x.type,)).results))
    assert show_graph(graph) == (
        f"graph () {{\n  %0 = {HOLDS}({shown}) : {x.type}\n  return {shown}, %0\n}}"
    )
    assert_reads_back(graph)


def test_sharing_of_constants_never_counts() -> None:
    x = new_input(F32)
    one, other = constant(np.float32(2)), constant(np.float32(2))
    shared = Graph((x,), (make("mul", make("add", x, one), one), one))
    apart = Graph((x,), (make("mul", make("add", x, one), other), other))
    assert shared == apart and hash(shared) == hash(apart)
    assert shared != Graph((x,), (make("mul", make("add", x, one), one), constant(np.float32(3))))
    again = parse_graph(show_graph(apart))
    assert again == apart
    assert again.outputs[1] is not other and again.outputs[1] == again.outputs[0].op.args[1]


def test_a_constant_that_is_none_shows_and_is_refused() -> None:
    attrs = attrs_of({"type": F32, "value": Record("Later", ())})
    graph = Graph((), Op("const", (), attrs, (F32,)).results)
    assert op_line(graph) == "%0 = const() {type=f32[], value=Later()} : f32[]"
    with pytest.raises(InvalidProgram, match="is no f32"):
        parse_graph(show_graph(graph))


# Whole functions.

X = jnp.ones((3, 4))
IDS = jnp.array([2, 0, 1], jnp.int32)
FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "scan": (lambda x, s: lax.scan(lambda c, a: (c + a, c * 2), x, s), (X[0], X)),
    "nested scan": (
        lambda x: lax.scan(lambda c, a: lax.scan(lambda d, b: (d * b, a), c, x[0]), 1.0, x[:, 0]),
        (X,),
    ),
    "while": (
        lambda x: lax.while_loop(lambda c: c[0] < 5, lambda c: (c[0] + 1, c[1] * 2), (0, x)),
        (X,),
    ),
    "cond": (lambda p, x: lax.cond(p, jnp.sin, lambda v: v * 2, x), (True, X)),
    "switch": (lambda i, x: lax.switch(i, [jnp.sin, jnp.cos, jnp.tan], x), (1, X)),
    "gather": (lambda x, i: (x[i], x.at[i + 2].get(mode="fill", fill_value=-3.0)), (X, IDS)),
    "scatter": (lambda x, i: (x.at[i].add(2.0), x.at[:, i].min(0.0), x.at[0].set(1)), (X, IDS)),
    "sort": (lambda x: (jnp.argsort(x, axis=0), lax.top_k(x, 2)), (X,)),
    "weak types": (lambda x: (x + 1, x * jnp.float16(2)), (3.0,)),
    "minus zero and nan": (lambda x: (x * -0.0, jnp.where(x > 0, jnp.nan, x), x * jnp.inf), (X,)),
    "no elements": (lambda x: (x[:0] + 1, jnp.concatenate([x, np.zeros((0, 4), "f4")])), (X,)),
    "int4": (lambda i: i.astype("int4").astype("int8") + 1, (IDS,)),
    "float8": (lambda x: x.astype("float8_e4m3fn").astype("float32"), (X,)),
    "booleans": (lambda x: ((x > 0) ^ True).any(0), (X,)),
    "keys": (lambda k: jax.random.split(jax.random.fold_in(k, 3)), (jax.random.key(7),)),
    "small constants": (lambda x: (x + np.float32([1, 2, 3, 4]), 3, np.float32(2)), (X,)),
    "several results": (lambda x: jnp.split(jnp.concatenate([x, x]), 2), (X,)),
    "convolution": (lambda x: lax.conv(x[None, None], x[None, None], (1, 1), "SAME"), (X,)),
    "products": (lambda x: (x @ x.T, jnp.einsum("ij,kj->ki", x, x, precision="highest")), (X,)),
    "input twice": (lambda x, y: (x, y, x), (X, IDS)),
    "no inputs": (lambda: jnp.arange(4) * 2, ()),
    "no outputs": (lambda x: (), (X,)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_traced_functions_read_back(name: str) -> None:
    function, args = FUNCTIONS[name]
    assert_reads_back(trace_graph(flat(function), *args))


def test_a_staged_decoder_reads_back() -> None:
    def step(params: Any, cache: Any, x: Any) -> Any:
        def layer(x: Any, w: Any) -> Any:
            return jnp.tanh(x @ (w * 2)), x

        x, rows = lax.scan(layer, x + cache["k"], params["layers"])
        return x @ params["head"].T, {"k": cache["k"] + rows.sum(0)}

    params = {"layers": jnp.ones((3, 4, 4)), "head": jnp.ones((5, 4))}
    program = trace(step, params, {"k": jnp.ones((2, 4))}, jnp.ones((2, 4)))
    staged = Pipeline.parse("normalize, stage").run(program)
    for each in (program, staged):
        assert parse_program(str(each)) == each
    assert staged.stages is not None and len(staged.history) == 2


def test_ten_thousand_lines() -> None:
    x = value = new_input(F4)
    for number in range(5_000):
        value = make("mul", make("add", value, constant(np.float32(number % 7))), x)
    graph = Graph((x,), (value,))
    text = show_graph(graph)
    assert len(text.split("\n")) == 10_003
    again = parse_graph(text)
    assert again == graph
    assert (graph.op_count, again.op_count) == (15_000, 10_007)  # equal constants are shared


# What text cannot carry.

LARGE = np.arange(100, dtype=np.float32)
KEY = jax.random.key(7)


@pytest.mark.parametrize(
    "function, args, expected",
    [
        (
            lambda x: x + LARGE,
            (jnp.ones(100),),
            "a constant of type f32[100] holds an opaque array `<array ",
        ),
        (
            lambda x: x + jax.random.uniform(KEY),
            (X,),
            "a constant of type key<fry>[] holds an opaque key `<key ",
        ),
        (
            lambda k: jax.random.bits(k),
            (jax.random.PRNGKey(7),),
            "attribute `impl` holds an opaque PRNGImpl `<PRNGImpl ",
        ),
    ],
)
def test_handles_print_and_are_refused_by_name(
    function: Callable[..., Any], args: tuple[Any, ...], expected: str
) -> None:
    text = show_graph(trace_graph(flat(function), *args))
    with pytest.raises(TextError) as caught:
        parse_graph(text)
    assert expected in str(caught.value)
    assert "which text cannot carry" in str(caught.value)


def test_a_handle_shows_its_kind_and_the_digest_of_its_content() -> None:
    assert show_value(Opaque("array", None, "0123456789abcdef")) == "<array 01234567>"
    assert show_value(Opaque("a <b>", None, 7)) == show_value(Opaque("a {b}", None, 7))
    assert show_value(Opaque("mesh", None, 7)) != show_value(Opaque("mesh", None, 8))
    assert show_value([1]).startswith("<list ")  # no attribute value, which the verifier says


def test_a_pytree_of_a_users_own_class_is_refused() -> None:
    class Params(list):
        pass

    jax.tree_util.register_pytree_node(Params, lambda x: (tuple(x), None), lambda _, x: Params(x))
    program = trace(lambda params, x: params[0] + x, Params([X]), X)
    with pytest.raises(TextError, match=r"line \d+: the pytree is an opaque <PyTreeDef \w{8}>"):
        parse_program(str(program))


# Errors.


def error_of(line: str) -> str:
    with pytest.raises(TextError) as caught:
        parse_graph(f"graph (%x : f32[4], %cache : f32[4]) {{\n  {line}\n  return %x\n}}")
    return str(caught.value)


@pytest.mark.parametrize(
    "line, expected",
    [
        (
            "%1 = ad(%x, %x) : f32[4]",
            """
            line 2: there is no op 'ad'
                  %1 = ad(%x, %x) : f32[4]
                       ^^
              try: did you mean
            """,
        ),
        (
            "%1 = add(%x, %cach) : f32[4]",
            """
            line 2: there is no value %cach here
                  %1 = add(%x, %cach) : f32[4]
                               ^^^^^
              try: did you mean %cache?
            """,
        ),
        (
            "%1 = add(%x, %7) : f32[4]",
            """
            line 2: there is no value %7 here
                  %1 = add(%x, %7) : f32[4]
                               ^^
              try: define it above the line that reads it
            """,
        ),
        (
            "%1 = add(%x  %x) : f32[4]",
            """
            line 2: expected values with commas between them
                  %1 = add(%x  %x) : f32[4]
                           ^
            """,
        ),
        (
            "%1 = add(%x, (1, 2):i32[3]) : f32[4]",
            """
            line 2: 2 values cannot be i32[3]
                  %1 = add(%x, (1, 2):i32[3]) : f32[4]
                               ^^^^^^^^^^^^^
            """,
        ),
        (
            "%1 = neg(%x) {axis=} : f32[4]",
            """
            line 2: expected '(' or 'false' or 'none' or 'true' or a name or a number or a quoted
            text or a value, found '}'
                  %1 = neg(%x) {axis=} : f32[4]
                                     ^
            """,
        ),
        (
            "%1 = neg(%x) : f32[4",
            """
            line 2: expected a type such as `: f32[8,64]` or attributes such as {axis=0}, found ':'
                  %1 = neg(%x) : f32[4
                               ^
            """,
        ),
        (
            "%1:2 = neg(%x) : f32[4]",
            """
            line 2: 1 types for 2 results
                  %1:2 = neg(%x) : f32[4]
                  ^^^^^^
            """,
        ),
        (
            "%x = neg(%x) : f32[4]",
            """
            line 2: %x is defined twice
                  %x = neg(%x) : f32[4]
                  ^^
            """,
        ),
        (
            "%1 = neg(%x) {a=1, a=2} : f32[4]",
            """
            line 2: an attribute of neg is given twice
                  %1 = neg(%x) {a=1, a=2} : f32[4]
                               ^^^^^^^^^^
            """,
        ),
        (
            '%1 = neg "a" (%x) : f32[4]',
            """
            line 2: neg takes nothing between its name and its arguments
                  %1 = neg "a" (%x) : f32[4]
                           ^^^
            """,
        ),
        (
            "%1 = cond(%x) : f32[4] () { %2 = neg(%x) : f32[4] return %2 }",
            """
            line 2: there is no value %x here
                  %1 = cond(%x) : f32[4] () { %2 = neg(%x) : f32[4] return %2 }
                                                       ^^
              try: a region sees only its inputs: hand it over as an argument
            """,
        ),
        (
            "%1 = holder(%x) {body=(1, <jit 1a2b3c4d>)} : f32[4]",
            """
            line 2: attribute `body` holds an opaque jit `<jit 1a2b3c4d>`, which text cannot carry
                  %1 = holder(%x) {body=(1, <jit 1a2b3c4d>)} : f32[4]
                                            ^^^^^^^^^^^^^^
            """,
        ),
    ],
)
def test_errors_point_into_the_text(line: str, expected: str) -> None:
    expected = inspect.cleandoc(expected).replace("quoted\ntext", "quoted text")
    said = error_of(line)
    assert said == expected or expected.endswith("did you mean") and said.startswith(expected)


@pytest.mark.parametrize(
    "old, new, expected",
    [
        ('ze" bits', 'ze" bit', "line 3: expected bits, reals or approx, found 'bit'"),
        ("state @", "stat @", "line 11: expected param, state or arg, found 'stat'"),
        ("updates %cache", "updates %cash", "line 16: there is no input %cash"),
        ("%_0 ", "%cache ", "line 12: %cache is declared twice"),
        ("{7: 3}", "{7: x}", "line 20: expected '(' or '[' or 'none' or '{' or a number"),
        ("%2.0, (1", "%2.2, (1", "line 30: there is no value %2.2 here"),
        ("  return %2.1", "  retrun %2.1", "line 30: expected '(' or an op such as"),
        ("0.5:f32\n}", "0.5:f32\n", "line 30: expected '}', found the end"),
        ("(x y, _)", "(x _, _)", "line 9: expected ')' or ',' or a name or"),
        ("program decode_step", "", "line 2: expected 'program', found 'history'"),
    ],
)
def test_errors_name_the_line(old: str, new: str, expected: str) -> None:
    assert STEP.count(old) == 1
    with pytest.raises(TextError) as caught:
        parse_program(STEP.replace(old, new))
    assert str(caught.value).startswith(expected)


def test_an_error_in_the_plan_names_the_line_of_the_program() -> None:
    with pytest.raises(TextError, match="line:15") as caught:
        parse_program(STAGED.replace("d_ff@x", "d_fff@x"))
    assert "d_fff" in str(caught.value)


def test_a_long_line_is_shown_around_the_error() -> None:
    shown = error_of(f"%1 = concatenate({'%x, ' * 100}%y{', %x' * 100}) : f32[804]").split("\n")
    assert len(shown[1].strip()) == 100
    column = shown[2].index("^")
    assert shown[1][column : column + 2] == "%y"


def test_types_are_checked_after_reading() -> None:
    with pytest.raises(InvalidProgram, match=r"says its results are f32\[5\]") as caught:
        parse_graph("graph (%x : f32[4]) {\n  %1 = neg(%x) : f32[5]\n  return %1\n}")
    assert str(caught.value).startswith("line 2: ") and "      %1 = neg(" in str(caught.value)


def test_a_name_may_hold_any_character_that_a_text_may() -> None:
    text = str(trace(lambda x: (x,), jnp.ones(3))).replace('"0"', '"0\t"')
    program = parse_program(text)
    assert [each.name for each in program.outputs] == ["0\t"]
    assert parse_program(str(program)) == program
