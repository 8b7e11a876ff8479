"""Texts that nobody should write: each is read, or refused with its place, and nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from dialect.arrays import dtypes
from dialect.jaxprs import framework  # noqa: F401
from dialect.jaxprs.jaxpr import trace_graph
from dialect.machine import machine_file
from dialect.machine.mesh import jax_mesh
from dialect.machine.mesh_spec import MeshSpec
from dialect.machine.topology import Topology, cubic
from dialect.naming.axis_hints import hints_for
from dialect.ops import nn, quant, sharding, tensor  # noqa: F401
from dialect.prepared.packed_schema import PackedError, Schema
from dialect.user.rule_file import read_rules
from rewrite import Pipeline, Plan, Program
from rewrite.errors import InvalidProgram, ShardwrightError, TextError
from rewrite.ir import Type
from rewrite.text import parse_graph, show_graph
from tests.fuzz import texts


@pytest.mark.parametrize("door", texts.DOORS, ids=lambda door: door.name)
def test_changed_texts_are_read_or_refused_with_their_place(door: texts.Door) -> None:
    report = texts.run(seed=14, count=60, names=(door.name,))
    assert sum(report.values()) == 60 and report[door.name, "error"] > 10


READERS: dict[str, Callable[[str], Any]] = {
    "graph": parse_graph,
    "program": Program.parse,
    "rules": read_rules,
    "pipeline": Pipeline.parse,
    "plan": Plan.parse,
    "machine": lambda text: machine_file.parse(text, "a.machine"),
}


def refused(read: Callable[[str], Any], text: str, most_s: float = 2.0) -> str:
    """What the error says, which must be short, with a place, and soon."""
    began = time.process_time()
    with pytest.raises(ShardwrightError) as caught:
        read(text)
    assert time.process_time() - began < most_s
    told = str(caught.value)
    assert len(told) < 4000 and told.count("\n") < 20 and "^" in told
    return told


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_too_much_text_is_refused_at_the_door(read: Callable[[str], Any]) -> None:
    assert "characters, at most" in refused(read, "x" * 20_000_000)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("odd", ["\0", "\x1b[2J", "\ud800", "\x7f"], ids=ascii)
def test_characters_that_no_text_has_are_refused(read: Callable[[str], Any], odd: str) -> None:
    assert "line" in refused(read, f"\n  {odd}") or "a text cannot hold" in refused(read, odd)


def graph(line: str) -> str:
    return f"graph (%x : f32[4]) {{\n  {line}\n  return %x\n}}"


MANY = 100_000


@pytest.mark.parametrize(
    ("reader", "text"),
    [
        ("graph", graph(f"%1 = neg(%x) {{a={'(' * MANY}}} : f32[4]")),
        ("graph", graph(f"%1 = neg(%x) {{a={'X(b=' * MANY}}} : f32[4]")),
        ("graph", graph(f"%1 = dot_general {'(' * MANY}{')' * MANY} (%x) : f32[4]")),
        ("graph", "graph () {" + "%1 = cond() : f32[4] () {" * MANY),
        ("program", f"program x inputs {{}} outputs {{}} tree {'(' * MANY}"),
        ("program", f"program x inputs {{}} outputs {{}} tree {'{1: ' * MANY}"),
        ("pipeline", "stage{x=" + "(" * MANY),
        ("rules", "rule a (x: f32[4]): " + "neg(" * 10_000),
    ],
    ids=range(8),
)
def test_brackets_nest_only_so_deep(reader: str, text: str) -> None:
    assert "more than 64 brackets inside one another" in refused(READERS[reader], text)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"%1 = neg(%x) {{a={'9' * 5000}}} : f32[4]", "a number of 5,000 digits is too long"),
        (f"%1 = neg({'9' * 5000}:f32) : f32[]", "a number of 5,000 digits is too long"),
        (f"%1 = neg(%x) : f32[{'9' * 5000}]", "an axis of 5,000 digits is too long"),
        ("%1 = neg(%x) : f32[999999999999,999999999999]", "more elements than can be counted"),
        (f"%1 = neg(%x) : f32[{'1,' * 64}1]", "an array has at most 64 axes, not 65"),
        ("%1 = neg(1e999:f32) : f32[]", "1e999 is too large for a float"),
        ("%1 = neg(%x) {a=1.2.3+1j} : f32[4]", "expected"),
        ("%1 = neg(%x) : float32[4]", "there is no dtype float32: write f32"),
        ("%1 = neg(%x) : key<fly>[4]", "there is no dtype key<fly>"),
        ("%1 = neg(300:i8) : i8[]", "300 is no i8"),
        ("%1 = neg((1, -9):i4[2]) : i4[2]", "-9 is no i4"),
        ("%1 = neg(1.5:i32) : i32[]", "1.5 is no i32"),
        ("%1 = neg(true:f32) : f32[]", "True is no f32"),
        ("%1 = not(1:bool) : bool[]", "1 is no bool"),
        ("%1 = neg(1e5:f16) : f16[]", "100000.0 is no f16"),
        ("%1 = neg(foo:f32) : f32[]", "is no f32"),
        ("%1 = const() {type=i8[], value=300} : i8[]", "300 is no i8"),
    ],
)
def test_numbers_and_types_are_what_arrays_can_hold(line: str, said: str) -> None:
    assert said in refused(parse_graph, graph(line))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("%1 = cumsum(%x) {axis=0.0, reverse=false} : f32[4]", "`axis` is a whole number, and"),
        ("%1 = cumsum(%x) {axis=0, reverse=1} : f32[4]", "`reverse` is true or false, not 1"),
        ("%1 = cumsum(%x) {axis=3, reverse=false} : f32[4]", "does not accept its arguments"),
        ("%1 = cumsum(%x) : f32[4]", "does not accept its arguments"),
        ("%1 = reshape(%x) {new_sizes=(3,)} : f32[3]", "has not as many elements as (3,)"),
        (
            "%1 = reshape(%x) {dimensions=(0, 0), new_sizes=(4,)} : f32[4]",
            "(0, 0) does not name every axis of f32[4] once",
        ),
        ("%1 = cache_write(%x, %x) {axes=(0,)} : f32[4]", "does not accept its arguments"),
        ("%1 = stack(%x) {axis=3} : f32[4,1]", "f32[4] has no axis 3"),
        ("%1 = rms_norm(%x) {epsilon=\"a\"} : f32[4]", "`epsilon` is a number"),
        ("%1 = rms_norm(%x, %x) {epsilon=1e-6} : f32[4]", "does not accept its arguments"),
        ("%1 = gate(%x, %x) {kind=\"none\"} : f32[4]", "does not accept its arguments"),
        ("%1 = take(%x, 0:i32) {mode=GatherScatterMode.NO} : f32[]", "there is no Gather"),
        ("%1 = take(%x, 0:i32) {mode=Precision.HIGHEST} : f32[]", "`mode` is a mode"),
        ("%1 = convert_element_type(%x) {new_dtype=foo} : f32[4]", "`new_dtype` is a dtype"),
        ("%1 = neg(%x) : f32[4] () { return }", "has 1 regions, and takes 0"),
        ("%1 = while(%x) {body_consts=0, cond_consts=0} : f32[4]", "has 0 regions, and takes 2"),
        ("%1 = cond(%x) : f32[4]", "has 0 regions, and takes one or more"),
    ],
)  # fmt: skip
def test_ops_take_what_they_mean_something_for(line: str, said: str) -> None:
    told = refused(parse_graph, graph(line))
    assert said in told and told.startswith("line 2: ")


CARRIED = """graph (%x : f32[4]) {{
  %1:2 = scan(%x, %x) {{carry={carry}, consts=0, length={length}, reverse=false, unroll=1}} : \
f32[4], {ys}
    (%2 : f32[4], %3 : {row}) {{
      return {out}, %3
    }}
  return %1.0
}}"""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"carry": "-1"}, "`carry` is a number from 0"),
        ({"carry": "true"}, "`carry` is a number from 0"),
        ({"length": "5"}, "a scanned argument is f32[4], but the length is 5"),
        ({"row": "i32[]"}, "what its body takes is f32[4], i32[], and should be f32[4], f32[]"),
        ({"out": "%3"}, "what its body carries is f32[], and should be f32[4]"),
    ],
)
def test_a_loop_carries_what_its_body_gives(change: dict[str, str], said: str) -> None:
    good = {"carry": "1", "length": "4", "ys": "f32[4]", "row": "f32[]", "out": "%2"}
    assert parse_graph(CARRIED.format(**good)).op_count == 1
    assert said in refused(parse_graph, CARRIED.format(**good | change))


def test_branches_and_conditions_fit() -> None:
    def text(index: str, taken: str, given: str) -> str:
        branches = f"(%2 : f32[4]) {{ return %2 }} ({taken}) {{ return {given} }}"
        return graph(f"%1 = cond({index}, %x) : f32[4] {branches}")

    parse_graph(text("true:bool", "%3 : f32[4]", "%3"))
    for parts, said in (
        (("1.5:f32", "%3 : f32[4]", "%3"), "its index is f32[], and should be bool[] or i32[]"),
        (("0:i32", "%3 : i32[4]", "%3"), "what a branch takes is i32[4]"),
        (("0:i32", "%3 : f32[4]", "0:i32"), "what a branch gives is i32[]"),
    ):
        assert said in refused(parse_graph, text(*parts))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"w": 1', '"b": 1', "is given twice"),
        ('"w": 1', '"w": 7', "numbered in order, from 0"),
        ('"w": 1', "1: 1", "the keys of a dict are texts or numbers, not both"),
        ("%params/w :", "%params/b :", "is declared twice"),
        ("param\n", 'param axes "d d d"\n', "3 axes are named"),
        ("param\n", 'param axes "(d"\n', "unclosed parenthesis"),
        ("updates %cache/k", "updates %params/w", "which is no state"),
    ],
)
def test_a_program_fits_together(old: str, new: str, said: str) -> None:
    text = texts.programs()[0]
    assert old in text
    assert said in refused(Program.parse, text.replace(old, new, 1))


def test_every_stage_takes_what_another_gives() -> None:
    text = texts.programs()[1]
    start = text.index("prepare {")
    lines = text[start:].split("\n")
    cut = next(i for i, line in enumerate(lines) if line.startswith("  return"))
    lines[cut] = "  return " + lines[cut].removeprefix("  return ").split(", ")[0]
    with pytest.raises(InvalidProgram, match="prepare gives"):
        Program.parse(text[:start] + "\n".join(lines))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_of_every_generator_read_back(impl: str) -> None:
    traced = trace_graph(
        lambda key: [jax.random.split(key, 2), jax.random.bits(key)], jax.random.key(0, impl=impl)
    )
    assert parse_graph(show_graph(traced)) == traced


@pytest.mark.parametrize("name", sorted(dtypes._LONG))
def test_every_dtype_reads_back(name: str) -> None:
    text = f"graph (%0 : {name}[2]) {{\n  return %0\n}}"
    assert show_graph(parse_graph(text)) == text


# Time is linear: none of these may take more than a moment.


@pytest.mark.parametrize(
    "text",
    [
        "program x " + "plan {\n" + "  \n" * 50_000,
        texts.programs()[1].replace("\nprepare", "\nplan {\n" + "  \n" * 50_000 + "x\n}\nprepare"),
        graph('%1 = contract "' + "b " * 500_000 + '" (%x, %x) : f32[4]'),
        graph("%1 = " + "a" * 500_000 + "(%x) : f32[4]"),
        graph("%1 = neg(%" + "a" * 500_000 + ") : f32[4]"),
        graph("return " + "/" * 500_000),
        graph("%1 = neg(" + "(a" * 200_000 + ") : f32[4]"),
    ],
    ids=range(7),
)
def test_no_text_takes_long(text: str) -> None:
    refused(Program.parse if text.startswith("program") else parse_graph, text)


def test_hints_are_matched_in_linear_time() -> None:
    path = "a" * 60
    began = time.process_time()
    with pytest.raises(ShardwrightError, match="names no argument"):
        hints_for({"...a" * 25 + "b": "d"}, [path], [Type("f32", (4,))])
    assert hints_for({"x...y*/w": "d"}, ["x/y/yy/w"], [Type("f32", (4,))]) == {
        "x/y/yy/w": "d_model"
    }
    assert time.process_time() - began < 1


def test_a_mesh_and_a_machine_are_counted() -> None:
    began = time.process_time()
    for text in (
        "cpu:99999999999",
        "v5e:" + "9" * 5000,
        "1" * 100_000,
        "cpu:" + "1x" * 50_000,
        "\ufeff" * 190,
    ):
        with pytest.raises(ShardwrightError) as caught:
            Topology.parse(text)
        assert len(str(caught.value)) < 4000
    with pytest.raises(ShardwrightError) as caught:
        jax_mesh(Topology.parse("cpu:4"), MeshSpec.parse("data" * 2000 + "=8"))
    assert len(str(caught.value)) < 4000
    with pytest.raises(ShardwrightError, match="1 to 10 axes, not 50"):
        MeshSpec.parse(" ".join(f"a{i}=1" for i in range(50)))
    with pytest.raises(ShardwrightError, match="cannot read the mesh"):
        MeshSpec.parse("x=" + "9" * 5000)
    assert cubic(999_999_937, 2) == (999_999_937, 1)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("mesh x=4 x=2", "mesh: one of x, x is given twice"),
        ("mesh x=0", "the mesh axis x has 0 devices"),
        ("mesh x=-4", "'-4' is not a whole number"),
        ("mesh x=٤", "'٤' is not a whole number"),
        ("mesh x=1_0", "'1_0' is not a whole number"),
        ('mesh x=4\nrunner-up q time_s=nan ""', "'nan' is not a number"),
    ],
)
def test_the_figures_of_a_plan_are_plain_numbers(line: str, said: str) -> None:
    assert said in refused(Plan.parse, f"plan p\n{line}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rule a (x: f32[4], x: f32[4]):\n  neg(x) -> x", "x is given twice"),
        ("rule a (x: f32[4]):\n  neg(x, x) -> x", "a cannot be tried"),
        ("rule a (x: f32[4]):\n  neg(x) -> reduce_max(x)", "a cannot be tried"),
        ("rule a (x: f32[4]):\n  neg(x) -> activate{kind=\"hm\"}(x)", "a cannot be tried"),
        ("rule a (x: f32[4]):\n  neg(x) -> while_loop(x, x, x)", "a cannot be tried"),
        ("rule a (x: f32[4]):\n  neg(x) -> Precision(x)", "there is no op 'Precision'"),
        ("rule a (x: f32[4]):\n  neg(x) -> _convert(x)", "there is no op '_convert'"),
        ("rule a (x: f99[4]):\n  neg(x) -> x", "there is no dtype f99"),
        ("rule a (x: f32[2,4]):\n  neg(x) -> transpose(x)", "a cannot be tried"),
        ("rule a (x: f32[4]):\n  eq(x, x) -> x", "a would turn bool[4] into f32[4]"),
    ],
)  # fmt: skip
def test_a_rule_is_tried_when_it_is_read(text: str, said: str) -> None:
    told = refused(read_rules, text)
    assert said in told and "at: rules:" in told


LISTS = ("pipeline", "model", "packed")


@pytest.mark.parametrize(
    "text",
    [
        "[" * MANY,
        '{"format": 2}',
        '{"format": 2, "model": 3, "packed": []}',
        '{"format": [[]]}',
        "7",
        json.dumps(
            {"format": 2, "program": 1, "target": "", "plan": ""} | dict.fromkeys(LISTS, [])
        ),
    ],
    ids=range(6),
)
def test_a_schema_is_text_throughout(text: str) -> None:
    with pytest.raises(PackedError) as caught:
        Schema.parse(text, Path("a.safetensors"))
    assert len(str(caught.value)) < 1000


def test_a_byte_order_mark_and_line_ends_do_not_matter() -> None:
    text = texts.PLAN.replace("\n", "\r\n")
    assert Plan.parse("\ufeff" + text) == Plan.parse(texts.PLAN)
    with pytest.raises(TextError, match="unknown escape"):
        Pipeline.parse(r'target "\q" stage')


def test_an_error_can_be_printed_whatever_it_quotes() -> None:
    """JSON may hold half of a character, which no terminal takes."""
    fields = {"format": 2, "program": "", "target": "", "plan": ""} | dict.fromkeys(LISTS, [])
    with pytest.raises(PackedError) as error:
        Schema.parse(json.dumps({**fields, "packed": [{chr(0xD800): 1}]}), Path("a"))
    assert "ud800" in str(error.value).encode().decode()
