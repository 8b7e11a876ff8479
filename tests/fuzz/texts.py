"""Bad texts at every door: each gives a value or a short error with its place, in linear time.

    python -m tests.fuzz.texts --seed 0 --count 10000

Random characters, and valid texts in which tokens, lines and numbers are changed. A value must
show and read back as itself; of a graph every op must be evaluable at the types that it says.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dialect.arrays.dtypes import struct_of, type_of
from dialect.arrays.evaluate import evaluate
from dialect.jaxprs import framework  # noqa: F401  (define the ops)
from dialect.jaxprs.jaxpr import trace_graph
from dialect.machine import machine_file
from dialect.machine.mesh_spec import MeshSpec
from dialect.machine.topology import Topology
from dialect.naming.axis_hints import hints_for
from dialect.ops import nn, quant, sharding, tensor  # noqa: F401  (define the ops)
from dialect.prepared.packed_schema import Schema
from dialect.user.rule_file import read_rules
from examples import llama
from rewrite import Pipeline, Plan, Program, opdef, trace
from rewrite.errors import ShardwrightError
from rewrite.ir import Graph, Op, Type, new_input
from rewrite.signature import Signature
from rewrite.text import parse_graph, show_graph

EXAMPLES = Path(__file__).parents[2] / "examples"
MOST_LINES, MOST_CHARACTERS = 20, 4000  # of an error
LEAST_S, PER_CHARACTER_S = 1.0, 1e-6  # what a text may take

Report = Counter  # (parser, "value" or "error") -> how many


class Fault(AssertionError):
    """A text that was neither read nor refused as it should be."""


@dataclass(frozen=True)
class Door:
    """A reader of texts, valid texts for it, and how what was read is tried.

    placed: whether its errors show a line with a caret.
    """

    name: str
    read: Callable[[str], Any]
    texts: Callable[[], Sequence[str]]
    show: Callable[[Any], str] | None = str
    tried: Callable[[Any], None] = lambda value: None
    placed: bool = True


def run(seed: int, count: int, names: Sequence[str] = ()) -> Report:
    """Counts by parser and outcome. Raises Fault with the text of the first that goes wrong."""
    report: Report = Counter()
    doors = [door for door in DOORS if not names or door.name in names]
    for number in range(count):
        door = doors[number % len(doors)]
        text = bad_text(random.Random(f"{seed} {number}"), door.texts())
        report[door.name, outcome(door, text)] += 1
    return report


def outcome(door: Door, text: str) -> str:
    """`value` or `error`. Raises Fault."""
    began = time.process_time()
    try:
        value = door.read(text)
    except ShardwrightError as error:
        _must_be_good(door, error, text)
        value = None
    except BaseException as error:
        raise _fault(door, text, f"{type(error).__name__}: {error}") from error
    took_s = time.process_time() - began
    if took_s > LEAST_S + PER_CHARACTER_S * len(text):
        raise _fault(door, text, f"took {took_s:.1f} s for {len(text)} characters")
    if value is None:
        return "error"
    try:
        if door.show is not None and door.read(door.show(value)) != value:
            raise ValueError("it does not read back as itself")
        door.tried(value)
    except Exception as error:
        raise _fault(door, text, f"was read, and then {type(error).__name__}: {error}") from error
    return "value"


def _must_be_good(door: Door, error: ShardwrightError, text: str) -> None:
    told = str(error)
    if len(told) > MOST_CHARACTERS or told.count("\n") >= MOST_LINES:
        raise _fault(door, text, f"an error of {len(told)} characters: {told[:500]}")
    if door.placed and not (
        re.search(r"line \d+:|:\d+$", f"{told}\n{error.where}", re.M) and "^" in told
    ):
        raise _fault(door, text, f"an error without a place: {told}")
    told.encode()


def _fault(door: Door, text: str, what: str) -> Fault:
    shown = repr(text) if len(text) < 3000 else f"{text[:1500]!r} ... {text[-500:]!r}"
    return Fault(f"{door.name}: {what}\n{shown}")


# Bad texts.

_TOKEN = re.compile(r"[A-Za-z_]\w*|\d+|\s+|.", re.DOTALL)
NUMBERS = (
    *("0", "1", "-1", "2", "3", "7", "64", "127", "300", "65536", "2147483648", "1e5", "1e999"),
    *("9223372036854775807", "18446744073709551616", "1" * 40, "9" * 5000, "0x10", "1_0", "٣", "²"),
    *("1.5", "-0.0", "nan", "inf", "-inf", "1e-400", "007", "+1", "1.2.3", "1j", "99999999999"),
)
ODD = (
    *(
        "\0",
        "\ud800",
        "\ufeff",
        "\t",
        "\r",
        "\r\n",
        "\x0b",
        "\x0c",
        "\x1b",
        "\x85",
        "\u2028",
        "\x7f",
    ),
    *('"', "'", "\\", "(", ")", "[", "]", "{", "}", "<", ">", "%", "/", "//", "#", "->", "@", "="),
    *(",", ":", "~", "*", "...", "_", "\\u0000", "\\ud800", '"\\ud800"', "∞", "ｆ３２", "İ", "🙂"),
    *("import os", "__import__('os')", "{0.__class__}", "%s", "$(ls)", "../../etc/passwd"),
)


def bad_text(chance: random.Random, texts: Sequence[str]) -> str:
    """A valid text with one to four changes, or characters without any sense."""
    if chance.random() < 0.03:
        return "".join(
            chr(chance.choice((9, 10, 32, 256, 0x10FFFF)) and chance.randrange(300))
            for _ in range(chance.randrange(200))
        )
    text = chance.choice(texts)
    for _ in range(chance.choice((1, 1, 1, 2, 2, 4))):
        text = chance.choice(_CHANGES)(chance, text, texts)
    return text


def _tokens(change: Callable[[random.Random, list[str]], None]) -> Callable[..., str]:
    def changed(chance: random.Random, text: str, texts: Sequence[str]) -> str:
        parts = _TOKEN.findall(text) or [""]
        change(chance, parts)
        return "".join(parts)

    return changed


def _place(chance: random.Random, parts: list[str], like: str = "") -> int:
    fitting = [i for i, part in enumerate(parts) if re.match(like, part)]
    return chance.choice(fitting or range(len(parts)))


@_tokens
def _delete(chance: random.Random, parts: list[str]) -> None:
    del parts[_place(chance, parts)]


@_tokens
def _repeat(chance: random.Random, parts: list[str]) -> None:
    i = _place(chance, parts)
    parts[i] *= chance.choice((2, 2, 3, 50, 1000))


@_tokens
def _swap(chance: random.Random, parts: list[str]) -> None:
    i, j = _place(chance, parts), _place(chance, parts)
    parts[i], parts[j] = parts[j], parts[i]


@_tokens
def _swap_words(chance: random.Random, parts: list[str]) -> None:
    i, j = _place(chance, parts, r"\w"), _place(chance, parts, r"\w")
    parts[i] = parts[j]


@_tokens
def _number(chance: random.Random, parts: list[str]) -> None:
    parts[_place(chance, parts, r"\d")] = chance.choice(NUMBERS)


@_tokens
def _odd(chance: random.Random, parts: list[str]) -> None:
    parts.insert(_place(chance, parts), chance.choice(ODD))


@_tokens
def _nest(chance: random.Random, parts: list[str]) -> None:
    depth = chance.choice((1, 2, 60, 3000))
    left, right = chance.choice(("()", "[]", "{}", "((", "{(", "<>"))
    i = _place(chance, parts)
    parts[i] = left * depth + parts[i] + right * chance.choice((depth, 0))


def _lines(chance: random.Random, text: str, texts: Sequence[str]) -> str:
    lines = text.split("\n")
    i, j = chance.randrange(len(lines)), chance.randrange(len(lines))
    what = chance.randrange(4)
    if what == 0:
        del lines[i]
    elif what == 1:
        lines.insert(j, lines[i])
    elif what == 2:
        lines[i], lines[j] = lines[j], lines[i]
    else:
        lines[i] += lines[j]
    return "\n".join(lines)


def _cut(chance: random.Random, text: str, texts: Sequence[str]) -> str:
    return text[: chance.randrange(len(text) + 1)]


def _spliced(chance: random.Random, text: str, texts: Sequence[str]) -> str:
    """A word of another text in place of one of this."""
    parts, others = _TOKEN.findall(text) or [""], _TOKEN.findall(chance.choice(texts)) or [""]
    parts[_place(chance, parts, r"\w")] = others[_place(chance, others, r"\w")]
    return "".join(parts)


def _line_ends(chance: random.Random, text: str, texts: Sequence[str]) -> str:
    return text.replace("\n", chance.choice(("\r\n", "\r", " ", "\n\n", "\u2028\n")))


_CHANGES = (
    *(_delete, _repeat, _swap, _swap_words, _number, _number, _odd, _nest),
    *(_lines, _lines, _cut, _spliced, _spliced, _line_ends),
)


# The doors.


def _flat(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: jax.tree.leaves(function(*args))


@lru_cache(maxsize=1)
def _decoder() -> tuple[Program, ...]:
    """A small decoder as it is traced, as it is recognised, and as it is served."""
    config = llama.CONFIGS["toy"]
    cache = jax.eval_shape(lambda: llama.init_cache(config, 8, 32))
    params = jax.eval_shape(lambda: llama.init_params(config, jax.random.key(0)))
    step = lambda *args: llama.decode_step(config, *args)  # noqa: E731
    traced = trace(step, params, cache, jax.ShapeDtypeStruct((8,), jnp.int32))
    named = Pipeline.parse("normalize, recognize").run(traced)
    served = Pipeline.parse("carry_cache, quantize{weights=int8}, stage, lower").run(named)
    return traced, named, served


@lru_cache(maxsize=1)
def graphs() -> tuple[str, ...]:
    """Every op of a decoder alone, and some functions with loops, keys and odd types."""
    x, i = jnp.ones((3, 4)), jnp.array([2, 0, 1], jnp.int32)
    found = [
        trace_graph(_flat(function), *args)
        for function, *args in (
            (lambda x, s: jax.lax.scan(lambda c, a: (c + a, c * 2), x, s), x[0], x),
            (
                lambda x: jax.lax.while_loop(
                    lambda c: c[0] < 5, lambda c: (c[0] + 1, c[1]), (0, x)
                ),
                x,
            ),
            (lambda p, x: jax.lax.cond(p, jnp.sin, lambda v: v * 2, x), True, x),
            (lambda x, i: (x[i], x.at[i].add(2.0), x.at[:, i].min(0.0)), x, i),
            (lambda x: (jnp.argsort(x, axis=0), jax.lax.top_k(x, 2), jnp.cumsum(x, 1)), x),
            (lambda x: jax.lax.conv(x[None, None], x[None, None], (1, 1), "SAME"), x),
            (lambda k: jax.random.split(jax.random.fold_in(k, 3)), jax.random.key(7)),
            (lambda i: (i.astype("int4").astype("float8_e4m3fn"), i > 1, i * 1.5), i),
            (lambda x: jnp.split(jnp.concatenate([x, x]), 2), x),
        )
    ]
    texts = [show_graph(graph) for graph in found]
    for program in _decoder():
        texts += [show_graph(graph) for graph in map(_alone, program.graph.ops) if graph]
    return tuple(dict.fromkeys(text for text in texts if len(text) < 1500))


def _alone(op: Op) -> Graph | None:
    """A graph of one op."""
    if op.name == "const":
        return None
    args = tuple(a if a.op.name == "const" else new_input(a.type) for a in op.args)
    inputs = tuple(arg for arg in args if arg.op.name == "input")
    return Graph(inputs, Op(op.name, args, op.attrs, op.types, op.regions).results)


@lru_cache(maxsize=1)
def programs() -> tuple[str, ...]:
    def step(params: Any, cache: Any, x: Any) -> Any:
        y = x @ (params["w"] @ (params["w"] * 2.0))
        return y + params["b"], {"k": cache["k"] + y}

    args = ({"w": jnp.eye(8), "b": jnp.ones(8)}, {"k": jnp.zeros((2, 8))}, jnp.ones((2, 8)))
    program = trace(step, *args)
    staged = Pipeline.parse("normalize, stage").run(program)
    axes = str(program).replace("param\n", 'param axes "d_model d_model" @ (x, _)\n', 1)
    plan = "\n".join(f"  {line}" for line in PLAN.split("\n"))
    planned = str(staged).replace("\nprepare", f"\nplan {{\n{plan}\n}}\nprepare", 1)
    return str(program), str(staged), axes, planned


PLAN = """plan ws2d/batch
target v4:4x4x4
mesh x=4 y=4 z=4
weights    d_model@x d_ff@y,z
residual   d_model@x,y,z
logits     whole
predicted  time_s=0.0362 compute_s=0.0179 hbm_s=0.0159 communication_s=0.0182 latency_s=0.0026 \
hbm_bytes=19103000000 communication_bytes=1638000000 memory_bytes=21000000000
exchange all-gather y,z bytes=589824 times=118 block
runner-up  ws2d/heads time_s=0.0441 "0.0079 s more, mostly HBM"
unavailable wg_x/batch "batch (2) does not divide over x=4"  # a comment"""
PIPELINES = (
    (EXAMPLES / "serve.pipeline").read_text(encoding="utf-8"),
    "normalize, recognize, roll",
    'target "my/edge.machine:4x4" mesh x=4\nquantize{weights=int8, skip="embed|lm_head"}, lower',
    "decode { pad, first_layer{budget=30%} } prefill { cache_layout{kv_heads=(1, 2)}, shard }",
)


@lru_cache(maxsize=1)
def _schemas() -> tuple[str, ...]:
    array = '{"name": "w", "type": "f32[8,8]", "layout": "x _", "made": "0123456789abcdef"}'
    text = '{"format": 2, "program": "step", "target": "cpu x=2", "pipeline": ["stage"], '
    return (f'{text}"plan": "plan p\\nmesh x=2", "model": [{array}], "packed": [{array}]}}',)


def _usable(graph: Graph) -> None:
    """Every op can be evaluated, to the types that it says, and tells its axes."""
    for op, _ in graph.walk():
        if op.name == "input":
            continue
        opdef.signature(op)
        structs = [struct_of(arg.type) for arg in op.args]
        args = tuple(new_input(arg.type) for arg in op.args)
        alone = Graph(args, Op(op.name, args, op.attrs, op.types, op.regions).results)
        made = jax.eval_shape(partial(evaluate, alone), structs)
        for value, found in zip(alone.outputs, map(type_of, made), strict=True):
            if (found.dtype, found.shape) != (value.type.dtype, value.type.shape):
                raise ValueError(f"{op.name} is {found}, and says {value.type}")


def _usable_program(program: Program) -> None:
    for graph in program.graphs.values():
        _usable(graph)
    if program.plan is not None:
        program.plan.explain()


def _machine(text: str) -> Any:
    chip = machine_file.parse(text, "a.machine")
    Topology(chip, chip.largest).mesh_axes()
    return chip


def _hints(text: str) -> Any:
    path, _, said = text.partition(": ")
    return hints_for({path: said}, ["params/layers/wq"], [Type("f32", (4, 4))])


DOORS = (
    Door("graph", parse_graph, graphs, show_graph, _usable),
    Door("program", Program.parse, programs, str, _usable_program),
    Door("rules", read_rules, lambda: [(EXAMPLES / "own.rules").read_text("utf-8")], None),
    Door("pipeline", Pipeline.parse, lambda: PIPELINES),
    Door("plan", Plan.parse, lambda: [PLAN], str, Plan.explain),
    Door("machine", _machine, lambda: [(EXAMPLES / "edge.machine").read_text("utf-8")], None),
    Door(
        "topology",
        lambda text: Topology.parse(text),
        lambda: ["v5e:4x4", "v5e-16", "2*v4:4x4x4", "cpu:8", "a.machine:4x4"],
        tried=lambda topology: topology.mesh_axes(),
        placed=False,
    ),
    Door("mesh", MeshSpec.parse, lambda: ["x=2 y=4", "data=8"], placed=False),
    Door("axes", _hints, lambda: ["params/.../wq: d (h k)", "*/*/w*: _ heads"], None, placed=False),
    Door(
        "signature",
        Signature.parse,
        lambda: ["b t d, d (h k) -> b t h k; need d", "a -> a", "-> 1 b"],
        placed=False,
    ),
    Door("schema", lambda text: Schema.parse(text, Path("a")), _schemas, placed=False),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--doors", default="", help="only these, such as graph,plan")
    args = parser.parse_args()
    began = time.perf_counter()
    report = run(args.seed, args.count, tuple(filter(None, args.doors.split(","))))
    for name in sorted({name for name, _ in report}):
        counts = [report[name, what] for what in ("value", "error")]
        print(f"{name:10} {sum(counts):>9,} texts, {counts[0]:>9,} read, {counts[1]:>9,} refused")
    print(f"seed {args.seed}: {args.count:,} texts in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
