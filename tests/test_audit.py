"""The audit: collectives that ran, beside those that a plan asks for, by hand and on a CPU."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from dialect.arrays.evaluate import evaluate
from dialect.arrays.source_lines import line_of, tag
from dialect.compiled.compiling import Compilable, compiled
from dialect.machine.mesh import MeshSpec, Topology, jax_mesh
from dialect.ops import lax  # noqa: F401  (defines sin)
from dialect.planning.plan import Exchange, Plan, Prediction
from dialect.reports.audit import (
    Audit,
    CompiledCollective,
    compared,
    compiled_collectives,
    planned_bytes,
)
from dialect.reports.collective_text import user_lines
from passes.audit import Audit as AuditPass
from rewrite import Pipeline, Program, Target
from rewrite.errors import PlanError
from rewrite.ir import Graph, Origin, Type, new_input
from rewrite.opdef import build
from tests.tiny import Case, traced

MESH = (("x", 2), ("y", 4), ("z", 8))
SIZES = dict(MESH)
PREDICTED = Prediction(1.0, 1.0, 1.0, 1.0, 1.0, 1, 1, memory_bytes=1000)
KIB = 1024


def asks(kind: str, axes: str, kib: float, times: int = 10) -> Exchange:
    return Exchange(kind, tuple(axes), round(kib * KIB), times, "ffn")


def did(kind: str, axes: str, kib: float, times: int = 10, source: str = "") -> CompiledCollective:
    exchange = asks(kind, axes, kib, times)
    received = round(planned_bytes(exchange, SIZES))
    return CompiledCollective(kind, exchange.axes, exchange.bytes, received, times, source)


def beside(
    planned: list[Exchange], collectives: list[CompiledCollective], memory_bytes: int = 1000
) -> Audit:
    plan = Plan("own", MESH, (), predicted=PREDICTED, exchanges=tuple(planned))
    return compared(plan, collectives, memory_bytes)


def surprises(found: Audit) -> list[tuple[str, str, float]]:
    """(kind, axes, KiB that nothing pays for)."""
    return [
        (each.collective.kind, "".join(each.collective.axes), round(each.bytes / KIB, 3))
        for each in found.unplanned
    ]


# One unit: bytes received.


@pytest.mark.parametrize(
    ("kind", "axes", "kib"),
    [
        ("all-gather", "x", 32 * 1 / 2),
        ("all-gather", "yz", 32 * 31 / 32),
        ("reduce-scatter", "y", 32 * 3 / 4),
        ("all-reduce", "y", 2 * 32 * 3 / 4),
        ("all-to-all", "z", 32 * 7 / 8),
        ("collective-permute", "z", 32),
    ],
)
def test_bytes_that_a_chip_receives(kind: str, axes: str, kib: float) -> None:
    assert planned_bytes(asks(kind, axes, 32, times=3), SIZES) == 3 * kib * KIB


def test_axis_by_axis_is_as_much_as_at_once() -> None:
    at_once = planned_bytes(asks("all-gather", "xy", 32), SIZES)
    in_turn = [asks("all-gather", "x", 8), asks("all-gather", "y", 32)]
    assert sum(planned_bytes(each, SIZES) for each in in_turn) == at_once


# What may stand for what.


def test_what_is_done_as_planned_is_no_surprise() -> None:
    plan = [asks("all-gather", "yz", 32), asks("all-to-all", "x", 64)]
    found = beside(plan, [did("all-gather", "yz", 32), did("all-to-all", "x", 64)], 1500)
    assert (found.unplanned, found.missing) == ((), ())
    assert found.compiled_bytes == found.planned_bytes == (10 * 31 + 10 * 32) * KIB
    assert (found.compiled_memory_bytes, found.planned_memory_bytes) == (1500, 1000)


@pytest.mark.parametrize(
    "collectives",
    [
        [did("all-reduce", "y", 32)],  # in place of both
        [did("reduce-scatter", "y", 64, times=5), did("all-gather", "y", 64, times=5)],  # merged
        [did("collective-permute", "y", 8, times=60)],  # windowed, beside products
        [did("all-gather", "y", 64)],  # as many bytes
    ],
)
def test_another_way_over_the_same_axes_is_no_surprise(
    collectives: list[CompiledCollective],
) -> None:
    found = beside([asks("reduce-scatter", "y", 32), asks("all-gather", "y", 32)], collectives)
    assert (found.unplanned, found.missing) == ((), ())


def test_an_all_reduce_may_be_done_in_its_two_halves() -> None:
    halves = [did("reduce-scatter", "z", 32), did("all-gather", "z", 32)]
    assert beside([asks("all-reduce", "z", 32)], halves).unplanned == ()


def test_several_axes_may_be_taken_at_once_or_in_turn() -> None:
    in_turn = [did("all-gather", "x", 8), did("all-gather", "y", 32)]
    assert beside([asks("all-gather", "xy", 32)], in_turn).unplanned == ()
    planned = [asks("all-gather", "x", 8), asks("all-gather", "y", 32)]
    assert beside(planned, [did("all-gather", "xy", 32)]).unplanned == ()


def test_permutes_may_also_stand_for_an_all_to_all() -> None:
    assert (
        beside([asks("all-to-all", "y", 32)], [did("collective-permute", "y", 8, 30)]).missing == ()
    )


# Surprises.


def test_an_all_reduce_costs_twice_a_reduce_scatter() -> None:
    found = beside([asks("reduce-scatter", "y", 32)], [did("all-reduce", "y", 32)])
    assert surprises(found) == [("all-reduce", "y", 240)]
    assert found.compiled_bytes == 2 * found.planned_bytes


def test_other_axes_pay_for_nothing() -> None:
    found = beside([asks("all-gather", "y", 32)], [did("all-gather", "x", 48)])
    assert surprises(found) == [("all-gather", "x", 240)]
    ((exchange, left),) = found.missing
    assert (exchange.axes, left) == (("y",), 240 * KIB)
    crossing = beside([asks("all-gather", "xy", 32)], [did("all-gather", "yz", 32)])
    assert surprises(crossing) == [("all-gather", "yz", 310)]


def test_a_gather_is_no_all_to_all() -> None:
    found = beside([asks("all-to-all", "y", 32)], [did("all-gather", "y", 32)])
    assert surprises(found) == [("all-gather", "y", 240)]


def test_no_byte_is_paid_for_twice() -> None:
    twice = [did("all-gather", "y", 32), did("all-gather", "y", 32, source="again")]
    found = beside([asks("all-gather", "y", 32)], twice)
    assert surprises(found) == [("all-gather", "y", 240)]
    assert found.unplanned[0].collective.source == "again"


def test_who_is_most_alike_draws_first() -> None:
    """The gather of 40 KiB comes first by its size, yet the one of 32 KiB is the planned one."""
    found = beside(
        [asks("all-gather", "y", 32)], [did("all-gather", "y", 40), did("all-gather", "y", 32)]
    )
    assert surprises(found) == [("all-gather", "y", 300)]
    summed = beside(
        [asks("all-gather", "y", 32)], [did("all-reduce", "y", 32), did("all-gather", "y", 32)]
    )
    assert surprises(summed) == [("all-reduce", "y", 480)]
    nested = beside(
        [asks("all-gather", "y", 32)], [did("all-gather", "yz", 32), did("all-gather", "y", 24)]
    )
    assert surprises(nested) == [("all-gather", "yz", 310 - 60)]


def test_what_is_large_enough_to_be_named() -> None:
    plan = [asks("all-gather", "y", 1000)]
    small, large = did("all-to-all", "y", 9), did("all-to-all", "x", 60)
    found = beside(plan, [did("all-gather", "y", 1000), small, large])
    assert surprises(found) == [("all-to-all", "x", 300), ("all-to-all", "y", 67.5)]
    assert [each.collective for each in found.unplanned_above(0.01)] == [large]
    assert found.unplanned_above(0.05) == ()


def test_a_plan_without_exchanges_is_surprised_by_any() -> None:
    found = beside([], [did("all-gather", "y", 32)])
    assert len(found.unplanned_above(0.01)) == 1


# What ran, read from a text.

MODULE = """HloModule test, is_scheduled=true, entry_computation_layout={()->()}, num_partitions=8

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %total = f32[] add(%a, %b)
}

%body (in: (s32[], f32[256])) -> (s32[], f32[256]) {
  %in = (s32[], f32[256]) parameter(0)
  %i = s32[] get-tuple-element(%in), index=0
  %x = f32[256] get-tuple-element(%in), index=1
  %y = f32[256] all-reduce(%x), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%sum, NAMED
  ROOT %out = (s32[], f32[256]) tuple(%i, %y)
}

%test (in: (s32[], f32[256])) -> pred[] {
  %in = (s32[], f32[256]) parameter(0)
  ROOT %more = pred[] custom-call(%in)
}

ENTRY %main () -> f32[256] {
  %start = (s32[], f32[256]) parameter(0)
  %alone = f32[256] all-gather(%start), replica_groups=[8,1]<=[8], dimensions={0}
  %loop = (s32[], f32[256]) while(%start), condition=%test, body=%body TRIPS
  ROOT %end = f32[256] get-tuple-element(%loop), index=1
}
"""
NAMED = 'metadata={op_name="jit(step)/llama.py:95/while/body/llama.py:75/dot_general"}'


@pytest.mark.parametrize(("known", "times"), [(True, 7), (False, 1)])
def test_collectives_of_a_text(known: bool, times: int) -> None:
    trips = ', backend_config={"known_trip_count":{"n":"7"}}' if known else ""
    text = MODULE.replace("NAMED", NAMED).replace(" TRIPS", trips)
    executable = SimpleNamespace(as_text=lambda: text)
    mesh = SimpleNamespace(shape={"x": 2, "y": 4})
    (found,) = compiled_collectives(executable, Topology.parse("v5e:2x4"), mesh)
    assert (found.kind, found.axes, found.bytes) == ("all-reduce", ("y",), KIB)
    assert (found.times, found.trips_known) == (times, known)
    assert found.received_bytes == times * 2 * KIB * 3 // 4
    assert (found.operation, found.line) == ("dot_general", "llama.py:75")


# The user's line, through the compiler.


def test_tags() -> None:
    assert tag("/home/me/llama.py:75 (prefill.<locals>.block)") == "llama.py:75"
    assert tag("C:\\code (old)\\llama.py:7 (step)") == "llama.py:7"
    assert tag("llama.py:75") == "llama.py:75"
    assert line_of("jit(f)/main.py:3/while/body/llama.py:75/dot_general") == "llama.py:75"
    assert line_of("jit(f)/while/body/dot_general") == line_of("") == ""


def test_operations_carry_their_line() -> None:
    x = new_input(Type("f32", (4,)))
    graph = Graph((x,), build("sin", x, origin=Origin("/my/own.py:12 (step)")).results)
    lowered = jax.jit(lambda array: evaluate(graph, [array])).lower(jnp.zeros(4))
    names = re.findall(r'op_name="([^"]*)"', lowered.compile().as_text())
    assert "own.py:12" in {line_of(name) for name in names}


def test_lines_in_full_where_they_are_not_mistaken() -> None:
    x = new_input(Type("f32", (4,)))
    one = build("sin", x, origin=Origin("/a/own.py:12 (step)")).results[0]
    two = build("sin", one, origin=Origin("/b/own.py:12 (other)")).results[0]
    three = build("sin", two, origin=Origin("/b/own.py:13 (other)"))
    assert user_lines(Graph((x,), three.results)) == {"own.py:13": "/b/own.py:13 (other)"}


# The pass.

TARGET = Target("cpu:4", (("x", 2), ("y", 2)))


@cache
def lowered() -> Program:
    pipeline = "normalize, recognize, carry_cache, plan{ffn=ws1d}"
    program = Pipeline.parse(pipeline).run(traced(Case("llama")), TARGET)
    return Pipeline.parse("shard, stage, lower").run(program, TARGET)


@cache
def executable() -> tuple[object, tuple[str, ...]]:
    mesh = jax_mesh(Topology.parse(TARGET.topology), MeshSpec(TARGET.mesh))
    return compiled(Compilable(lowered(), mesh))


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What differs in these programs is their plan, so one compilation does for all."""
    monkeypatch.setattr("dialect.reports.audit.compiled", lambda compilable: executable())


def audited(program: Program, **options: object) -> tuple[str, ...]:
    made = AuditPass(**options).run(program, TARGET)
    assert made.graph is program.graph
    return made.history[-1].notes


def planning(*exchanges: Exchange) -> Program:
    predicted = replace(PREDICTED, memory_bytes=1)
    plan = Plan("own", TARGET.mesh, (), predicted=predicted, exchanges=exchanges)
    return replace(lowered(), plan=plan)


def test_a_generous_plan_is_not_surprised(once: None) -> None:
    large = [Exchange(kind, ("x", "y"), 1 << 20, 1, "ffn") for kind in ("all-reduce", "all-to-all")]
    notes = audited(planning(*large), strict=True)
    assert notes[0].startswith("received per chip and step: ")
    assert notes[0].endswith(" times)") and "planned 2.25 MiB" in notes[0]
    assert "planned 1 B" in notes[1]
    assert any(
        note.startswith("planned, not compiled: all-reduce over x y for ffn") for note in notes
    )


def test_surprises_name_their_line(once: None) -> None:
    notes = audited(planning())
    named = [note for note in notes if note.startswith("not planned: ")]
    assert any(
        re.search(r"over y, 2 times .* for dot_general at /.*llama.py:\d+ \(", n) for n in named
    ), named
    with pytest.raises(
        PlanError, match="the compiled program exchanges what own does not"
    ) as caught:
        audited(planning(), strict=True)
    assert str(caught.value).count("not planned: ") == len(named)


def test_tolerance(once: None) -> None:
    small = planning(Exchange("all-gather", ("y",), 1 << 20, 1, "ffn"))
    with pytest.raises(PlanError):
        audited(small, strict=True, tolerance=0.0)
    notes = audited(small, strict=True, tolerance=1.0)
    assert any(note.startswith("not planned, too small to be named: ") for note in notes)
    with pytest.raises(PlanError, match="tolerance=-1.0 is no fraction"):
        audited(small, tolerance=-1.0)


def test_without_a_plan() -> None:
    program = replace(lowered(), plan=None)
    assert audited(program) == ("no plan says what is exchanged, so nothing is compared",)
    with pytest.raises(PlanError, match="there is no plan"):
        audited(program, strict=True)


def test_in_a_pipeline() -> None:
    program = planning(Exchange("all-reduce", ("x", "y"), 1 << 20, 1, "ffn"))
    made = Pipeline.parse("audit{strict=true, tolerance=0.5}").run(program, TARGET)
    assert made.history[-1].text == "audit{strict=true, tolerance=0.5}"
    assert made.keeps == program.keeps
