"""The time of a compiled program, from its schedule: texts with times computed by hand."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dialect.compiled.clock import Clock, Work
from dialect.compiled.executable import compile_quietly
from dialect.compiled.hlo import Module
from dialect.compiled.products import Product, products
from dialect.compiled.schedule import Delivered, Schedule, schedule
from dialect.compiled.traffic import Traffic, hbm_bytes, traffic
from dialect.machine.mesh import MeshSpec, Topology, jax_mesh
from dialect.pages.lanes import of_layer

V5E = Topology.parse("v5e:2x4")  # its axes do not wrap: a chip at an end has one link
FULL = Delivered(compute=1.0, hbm=1.0, link=1.0, torus=0.5, hop_s=1e-6)
FLOPS_PER_S, HBM_BYTES_PER_S, LINK_BYTES_PER_S = 197e12, 819e9, 45e9

# A product of 2 * 4096 ** 3 operations whose arrays all lie on the chip.
PRODUCT = "bf16[4096,4096]{1,0:T(8,128)(2,1)S(1)}"
PRODUCT_S = 2 * 4096**3 / FLOPS_PER_S
ON_CHIP = f"%near = {PRODUCT} parameter(0)"
MULTIPLY = f"%product = {PRODUCT} convolution(%near, %near), dim_labels=bf_io->bf"
# An array of 64 MiB in HBM.
FAR = "bf16[8192,4096]{1,0:T(8,128)(2,1)}"
FAR_S = 8192 * 4096 * 2 / HBM_BYTES_PER_S
SUM = """
%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %total = f32[] add(%a, %b)
}
"""
ALONG_X = "replica_groups={{0,4},{1,5},{2,6},{3,7}}"
ALONG_Y = "replica_groups=[2,4]<=[8]"


def text(*entry: str, others: str = "") -> str:
    header = "HloModule test, is_scheduled=true, entry_computation_layout={()->()}, "
    lines = "\n".join(f"  {line}" for line in entry)
    return f"{header}num_partitions=8\n{SUM}{others}\nENTRY %main () -> f32[] {{\n{lines}\n}}\n"


def executable(*entry: str, others: str = "") -> SimpleNamespace:
    memory = SimpleNamespace(
        argument_size_in_bytes=5,
        output_size_in_bytes=4,
        temp_size_in_bytes=3,
        alias_size_in_bytes=2,
        generated_code_size_in_bytes=1,
    )
    found = text(*entry, others=others)
    return SimpleNamespace(as_text=lambda: found, memory_analysis=lambda: memory)


def walked(*entry: str, others: str = "", topology: Topology = V5E) -> Schedule:
    return schedule(executable(*entry, others=others), topology, delivered=FULL)


def parts(found: Schedule) -> tuple[float, float, float]:
    return found.compute_s, found.hbm_s, found.link_s


def close(*seconds: float) -> object:
    return pytest.approx(seconds, rel=1e-9, abs=1e-15)


# One instruction.


def test_a_product_takes_its_operations_over_the_peak() -> None:
    found = walked(ON_CHIP, MULTIPLY)
    assert parts(found) == close(PRODUCT_S, 0.0, 0.0)
    assert (found.flops, found.hbm_bytes) == (2 * 4096**3, 0)
    (event,) = found.events
    assert (event.name, event.opcode, event.trips, event.dtype) == (
        "product",
        "convolution",
        1,
        "bf16",
    )


def test_an_instruction_takes_as_long_as_the_slower_of_hbm_and_arithmetic() -> None:
    thin = (
        "%weights = bf16[4096,4096]{1,0:T(8,128)(2,1)} parameter(1)",
        "%row = bf16[8,4096]{1,0:T(8,128)(2,1)S(1)} parameter(0)",
        "%out = bf16[8,4096]{1,0:T(8,128)(2,1)S(1)} convolution(%row, %weights), "
        "dim_labels=bf_io->bf",
    )
    found = walked(*thin)
    assert parts(found) == close(0.0, 4096 * 4096 * 2 / HBM_BYTES_PER_S, 0.0)
    assert found.flops == 2 * 8 * 4096 * 4096


def test_int8_products_run_at_their_own_peak() -> None:
    found = walked(
        "%near = s8[4096,4096]{1,0:T(8,128)(4,1)S(1)} parameter(0)",
        "%out = s32[4096,4096]{1,0:T(8,128)S(1)} convolution(%near, %near), dim_labels=bf_io->bf",
    )
    assert parts(found) == close(PRODUCT_S / 2, 0.0, 0.0)
    assert found.events[0].dtype == "int8"


def test_a_collective_takes_its_bytes_over_the_links_and_its_steps() -> None:
    """All-gather of 4 MiB to 16 MiB along y: four chips in an open line, three steps."""
    found = walked(
        "%part = bf16[2048,1024]{1,0:T(8,128)(2,1)S(1)} parameter(0)",
        "%whole = bf16[8192,1024]{1,0:T(8,128)(2,1)S(1)} all-gather(%part), channel_id=1, "
        f'{ALONG_Y}, dimensions={{0}}, metadata={{op_name="jit(step)/dot_general"}}',
    )
    received = 3 * 2048 * 1024 * 2
    assert parts(found) == close(0.0, 0.0, received / LINK_BYTES_PER_S + 3e-6)
    assert found.collective_bytes == received
    (event,) = found.events
    (sent,) = event.exchanges
    assert (sent.kind, sent.axes, sent.dtype, sent.group_size) == ("all-gather", ("y",), "bf16", 4)
    assert (sent.bytes, sent.received_bytes) == (8192 * 1024 * 2, received)
    assert event.source == "jit(step)/dot_general"


@pytest.mark.parametrize(
    ("line", "received", "link_s"),
    [
        # Of 1 MiB each: sent once to be summed, once to be told.
        ("all-reduce(%x), to_apply=%sum", 2 * 3 * 2**18, 2 * 3 * 2**18 / 45e9 + 3e-6),
        # Each quarter goes a chip or more far: as much as the whole passes the middle of the line.
        ("all-to-all(%x), dimensions={0}", 3 * 2**18, 2**20 / 45e9 + 3e-6),
    ],
)
def test_other_kinds_of_collectives(line: str, received: int, link_s: float) -> None:
    operation, _, rest = line.partition("(%x), ")
    found = walked(
        "%x = f32[256,1024]{1,0:T(8,128)S(1)} parameter(0)",
        f"%y = f32[256,1024]{{1,0:T(8,128)S(1)}} {operation}(%x), channel_id=1, {ALONG_Y}, {rest}",
    )
    assert found.collective_bytes == received
    assert found.link_s == pytest.approx(link_s)


def test_a_reduce_scatter_as_the_compiler_writes_it() -> None:
    scattered = f"""
%all-reduce-scatter.1 (input: f32[256,1024]) -> f32[64,1024] {{
  %input = f32[256,1024]{{1,0:T(8,128)S(1)}} parameter(0)
  %summed = f32[256,1024]{{1,0:T(8,128)}} all-reduce(%input), channel_id=1, {ALONG_Y}, \
to_apply=%sum
  %at = u32[] constant(0)
  ROOT %mine = f32[64,1024]{{1,0:T(8,128)S(1)}} dynamic-slice(%summed, %at, %at), \
dynamic_slice_sizes={{64,1024}}
}}
"""
    found = walked(
        "%x = f32[256,1024]{1,0:T(8,128)S(1)} parameter(0)",
        "%fusion = f32[64,1024]{1,0:T(8,128)S(1)} fusion(%x), kind=kCustom, "
        "calls=%all-reduce-scatter.1",
        others=scattered,
    )
    (sent,) = found.events[0].exchanges
    assert (sent.kind, sent.bytes, sent.received_bytes) == ("reduce-scatter", 2**20, 3 * 2**18)
    assert found.link_s == pytest.approx(3 * 2**18 / LINK_BYTES_PER_S + 3e-6)


def permuted(pairs: str, topology: Topology = V5E) -> Schedule:
    """By one step round an axis or the other."""
    return walked(
        "%x = f32[256,1024]{1,0:T(8,128)S(1)} parameter(0)",
        "%y = f32[256,1024]{1,0:T(8,128)S(1)} collective-permute(%x), channel_id=1, "
        f"source_target_pairs={pairs}",
        topology=topology,
    )


def test_a_permutation_takes_as_long_as_its_busiest_link() -> None:
    """Along y, which does not wrap: what chip 3 sends to chip 0 goes back over three links, each
    of which carries that alone. Two rows apart, every message crosses the middle."""
    around = permuted("{{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}")
    assert around.collective_bytes == 2**20
    assert around.link_s == pytest.approx(2**20 / LINK_BYTES_PER_S + 3e-6)
    across = permuted("{{0,2},{1,3},{2,0},{3,1}}")
    assert across.link_s == pytest.approx(2 * 2**20 / LINK_BYTES_PER_S + 2e-6)
    nowhere = permuted("{{0,0},{1,1}}")
    assert (nowhere.collective_bytes, nowhere.link_s) == (0, 0.0)


def test_opposite_directions_of_a_ring_do_not_wait_for_each_other() -> None:
    moved = "(f32[256,1024]{1,0:T(8,128)S(1)}, f32[256,1024]{1,0:T(8,128)S(1)})"

    def both(first: str, second: str) -> float:
        lines = ["%x = f32[256,1024]{1,0:T(8,128)S(1)} parameter(0)"]
        for name, pairs in (("a", first), ("b", second)):
            lines.append(
                f"%{name} = {moved} collective-permute-start(%x), channel_id=1, "
                f"source_target_pairs={pairs}"
            )
        for name in "ab":
            lines.append(
                f"%{name}.done = f32[256,1024]{{1,0:T(8,128)S(1)}} collective-permute-done(%{name})"
            )
        return walked(*lines, topology=Topology.parse("v4:4x4x4")).link_s

    once = 2**20 / LINK_BYTES_PER_S + 1e-6
    up, down = "{{0,1},{1,2},{2,3},{3,0}}", "{{1,0},{2,1},{3,2},{0,3}}"
    assert both(up, down) == pytest.approx(once)
    assert both(up, up) == pytest.approx(2 * once)


def test_axes_that_wrap_bring_from_both_sides_and_work_together() -> None:
    """Over the four by four of a cube: twice a line's bandwidth, and the root of two as much."""
    groups = "replica_groups=[4,16]<=[64]"
    found = walked(
        "%part = f32[16,1024]{1,0:T(8,128)S(1)} parameter(0)",
        "%whole = f32[256,1024]{1,0:T(8,128)S(1)} all-gather(%part), channel_id=1, "
        f"{groups}, dimensions={{0}}",
        topology=Topology.parse("v4:4x4x4"),
    )
    received = 15 * 2**16
    assert found.events[0].exchanges[0].axes == ("y", "z")
    assert found.link_s == pytest.approx(received / (2 * 45e9 * 2**0.5) + 6e-6)


# Halves of an instruction, and what lies between them.


def test_a_copy_from_hbm_runs_beside_a_product() -> None:
    copied = (
        ON_CHIP,
        f"%far = {FAR} parameter(1)",
        f"%start = ({FAR[:-1]}S(1)}}, {FAR}, u32[]{{:S(2)}}) copy-start(%far)",
        MULTIPLY,
        f"%done = {FAR[:-1]}S(1)}} copy-done(%start)",
    )
    found = walked(*copied)
    assert FAR_S < PRODUCT_S
    assert parts(found) == close(PRODUCT_S, 0.0, 0.0)
    (start,) = [each for each in found.events if each.opcode == "copy-start"]
    assert (start.time_s, start.exposed_s) == close(FAR_S, 0.0)
    without = walked(*copied[:3], copied[4])
    assert parts(without) == close(0.0, FAR_S, 0.0)


def test_hbm_is_shared_by_a_copy_and_what_runs_beside_it() -> None:
    found = walked(
        f"%far = {FAR} parameter(1)",
        f"%other = {FAR} parameter(2)",
        f"%start = ({FAR[:-1]}S(1)}}, {FAR}, u32[]{{:S(2)}}) copy-start(%far)",
        f"%read = {FAR[:-1]}S(1)}} copy(%other)",
        f"%done = {FAR[:-1]}S(1)}} copy-done(%start)",
    )
    assert parts(found) == close(0.0, 2 * FAR_S, 0.0)
    assert found.hbm_bytes == 2 * 8192 * 4096 * 2


GATHER_S = 3 * 2**22 / LINK_BYTES_PER_S + 3e-6


def gather_start(name: str, groups: str = ALONG_Y) -> str:
    part, whole = "bf16[2048,1024]{1,0:T(8,128)(2,1)S(1)}", "bf16[8192,1024]{1,0:T(8,128)(2,1)S(1)}"
    return (
        f"%{name} = ({part}, {whole}) all-gather-start(%part), channel_id=1, {groups}, "
        "dimensions={0}"
    )


def gather_done(name: str, rows: int = 8192) -> str:
    whole = f"bf16[{rows},1024]{{1,0:T(8,128)(2,1)S(1)}}"
    return f"%{name}.done = {whole} all-gather-done(%{name})"


PART = "%part = bf16[2048,1024]{1,0:T(8,128)(2,1)S(1)} parameter(1)"


def test_an_asynchronous_collective_shows_only_what_nothing_hides() -> None:
    alone = walked(PART, gather_start("first"), gather_done("first"))
    assert parts(alone) == close(0.0, 0.0, GATHER_S)
    found = walked(ON_CHIP, PART, gather_start("first"), MULTIPLY, gather_done("first"))
    assert GATHER_S < PRODUCT_S
    assert parts(found) == close(PRODUCT_S, 0.0, 0.0)
    event = next(each for each in found.events if each.exchanges)
    assert (event.opcode, event.time_s, event.exposed_s) == ("all-gather-start", GATHER_S, 0.0)


def units(found: Schedule) -> list[tuple[str, str, float, float]]:
    return [
        (getattr(busy.of, "name", busy.of), busy.unit, busy.start_s, busy.seconds)
        for busy in found.layer
    ]


def test_lanes_are_those_of_the_schedule() -> None:
    """What overlaps in it overlaps in them, and the second collective waits for its links."""
    pair = (gather_start("first"), gather_start("second").replace("channel_id=1", "channel_id=2"))
    waits = (gather_done("first"), gather_done("second"))
    found = walked(ON_CHIP, PART, *pair, MULTIPLY, *waits)
    assert units(found) == [
        ("first", "links", 0.0, pytest.approx(GATHER_S)),
        ("second", "links", pytest.approx(GATHER_S), pytest.approx(GATHER_S)),
        ("product", "compute", 0.0, pytest.approx(PRODUCT_S)),
    ]
    assert [(slot.lane, slot.start_s) for slot in of_layer(found)] == [
        ("link y", 0.0),
        ("link y", pytest.approx(GATHER_S)),
        ("compute", 0.0),
    ]


def test_the_lanes_of_a_loop_are_one_trip() -> None:
    found = walked(*looped(""), others=LOOP)
    assert units(found) == [
        ("product", "compute", 0.0, pytest.approx(PRODUCT_S)),
        ("start", "HBM", 0.0, pytest.approx(min(FAR_S, PRODUCT_S))),
    ]


def test_what_nobody_waits_for_ends_with_its_computation() -> None:
    start = f"%start = ({FAR[:-1]}S(1)}}, {FAR}, u32[]{{:S(2)}}) copy-start(%far)"
    found = walked(f"%far = {FAR} parameter(1)", start)
    assert parts(found) == close(0.0, FAR_S, 0.0)


def test_collectives_over_the_same_links_queue_and_over_others_do_not() -> None:
    same = walked(
        PART,
        gather_start("first"),
        gather_start("second"),
        gather_done("first"),
        gather_done("second"),
    )
    assert same.link_s == pytest.approx(2 * GATHER_S)
    others = walked(
        PART,
        gather_start("first"),
        gather_start("second", ALONG_X),
        gather_done("first"),
        gather_done("second", 4096),
    )
    assert others.link_s == pytest.approx(GATHER_S)


BESIDE = f"""
%begin (sent: bf16[2048,1024]) -> (bf16[2048,1024], bf16[8192,1024], u32[]) {{
  %sent = bf16[2048,1024]{{1,0:T(8,128)(2,1)}} parameter(0)
  %gathered = bf16[8192,1024]{{1,0:T(8,128)(2,1)}} all-gather(%sent), channel_id=7, {ALONG_Y}
  ROOT %call = (bf16[2048,1024]{{1,0:T(8,128)(2,1)}}, bf16[8192,1024]{{1,0:T(8,128)(2,1)}}, \
u32[]{{:S(2)}}) custom-call(%gathered), custom_call_target="AsyncCollectiveStart"
}}
%async_collective_fusion (sent: bf16[2048,1024], room: bf16[8192,1024], x: bf16[4096,4096]) -> \
(bf16[4096,4096], bf16[2048,1024], bf16[8192,1024]) {{
  %sent = bf16[2048,1024]{{1,0:T(8,128)(2,1)}} parameter(0)
  %room = bf16[8192,1024]{{1,0:T(8,128)(2,1)}} parameter(1)
  %x = {PRODUCT} parameter(2)
  %inside = {PRODUCT} convolution(%x, %x), dim_labels=bf_io->bf
  %gathered = bf16[8192,1024]{{1,0:T(8,128)(2,1)}} all-gather(%sent), channel_id=7, {ALONG_Y}
  ROOT %all = ({PRODUCT}, bf16[2048,1024]{{1,0:T(8,128)(2,1)}}, \
bf16[8192,1024]{{1,0:T(8,128)(2,1)}}) tuple(%inside, %sent, %gathered)
}}
%end (sent: bf16[2048,1024], room: bf16[8192,1024]) -> bf16[8192,1024] {{
  %sent = bf16[2048,1024]{{1,0:T(8,128)(2,1)}} parameter(0)
  %room = bf16[8192,1024]{{1,0:T(8,128)(2,1)}} parameter(1)
  %gathered = bf16[8192,1024]{{1,0:T(8,128)(2,1)}} all-gather(%sent), channel_id=7, {ALONG_Y}
  ROOT %call = bf16[8192,1024]{{1,0:T(8,128)(2,1)}} custom-call(%sent, %room, %gathered), \
custom_call_target="AsyncCollectiveDone"
}}
"""
BESIDE_ENTRY = (
    ON_CHIP,
    "%part = bf16[2048,1024]{1,0:T(8,128)(2,1)} parameter(1)",
    "%start = (bf16[2048,1024]{1,0:T(8,128)(2,1)}, bf16[8192,1024]{1,0:T(8,128)(2,1)}, "
    "u32[]{:S(2)}) fusion(%part), kind=kCustom, output_to_operand_aliasing={{0}: (0, {})}, "
    "calls=%begin",
    "%sent = bf16[2048,1024]{1,0:T(8,128)(2,1)} get-tuple-element(%start), index=0",
    "%room = bf16[8192,1024]{1,0:T(8,128)(2,1)} get-tuple-element(%start), index=1",
    f"%fusion = ({PRODUCT}, bf16[2048,1024]{{1,0:T(8,128)(2,1)}}, "
    "bf16[8192,1024]{1,0:T(8,128)(2,1)}) fusion(%sent, %room, %near), kind=kOutput, "
    "output_to_operand_aliasing={{1}: (0, {}), {2}: (1, {})}, calls=%async_collective_fusion",
    "%done = bf16[8192,1024]{1,0:T(8,128)(2,1)} fusion(%sent, %room), kind=kCustom, "
    "output_to_operand_aliasing={{}: (1, {})}, calls=%end",
)


def test_a_collective_beside_a_fusion_is_one_and_runs_along() -> None:
    found = walked(*BESIDE_ENTRY, others=BESIDE)
    assert parts(found) == close(PRODUCT_S, 0.0, 0.0)
    assert found.collective_bytes == 3 * 2**22
    assert [len(each.exchanges) for each in found.events] == [1, 0]
    assert found.hbm_bytes == 5 * 2**22  # what is sent and what comes, once
    without = walked(*BESIDE_ENTRY[:5], BESIDE_ENTRY[6], others=BESIDE)
    assert parts(without) == close(0.0, 0.0, GATHER_S)


# Loops and branches.

LOOP = f"""
%body (state: (s32[], f32[])) -> (s32[], f32[]) {{
  %state = (s32[], f32[]) parameter(0)
  %count = s32[]{{:S(6)}} get-tuple-element(%state), index=0
  %one = s32[]{{:S(6)}} constant(1)
  %far = {FAR} constant(0)
  %start = ({FAR[:-1]}S(1)}}, {FAR}, u32[]{{:S(2)}}) copy-start(%far)
  %near = {PRODUCT} constant(0)
  {MULTIPLY}
  %done = {FAR[:-1]}S(1)}} copy-done(%start)
  %next = s32[]{{:S(6)}} add(%count, %one)
  ROOT %out = (s32[], f32[]) tuple(%next, %count)
}}
%condition (state: (s32[], f32[])) -> pred[] {{
  %state = (s32[], f32[]) parameter(0)
  %count = s32[] get-tuple-element(%state), index=0
  %limit = s32[] constant(118)
  ROOT %less = pred[] compare(%count, %limit), direction=LT
}}
"""


def looped(trips: str) -> tuple[str, ...]:
    return (
        "%zero = s32[] constant(0)",
        "%unknown = s32[] parameter(2)",
        "%state = (s32[], f32[]) tuple(%zero, %unknown)",
        f"%while = (s32[], f32[]) while(%state), condition=%condition, body=%body{trips}",
    )


@pytest.mark.parametrize(
    ("said", "trips"),
    [("", 118), (', backend_config={"known_trip_count":{"n":"5"}}', 5)],
)
def test_a_loop_runs_its_trips(said: str, trips: int) -> None:
    found = walked(*looped(said), others=LOOP)
    assert parts(found) == close(trips * PRODUCT_S, 0.0, 0.0)
    assert found.flops == trips * 2 * 4096**3
    assert found.hbm_bytes == trips * 8192 * 4096 * 2
    assert {each.trips for each in found.events if each.flops} == {trips}


def test_a_loop_that_runs_no_one_knows_how_often_is_an_error() -> None:
    endless = LOOP.replace("constant(118)", "get-tuple-element(%state), index=1")
    with pytest.raises(ValueError, match="how often while runs is not known"):
        walked(*looped(""), others=endless)


def test_a_transfer_under_way_when_a_loop_begins_is_waited_for_once() -> None:
    """The copy takes eight products' time; two of its three fit into the loop."""
    huge = "bf16[65536,16384]{1,0:T(8,128)(2,1)}"
    huge_s = 65536 * 16384 * 2 / HBM_BYTES_PER_S
    body = LOOP.replace("copy-start(%far)", "bitcast(%far)").replace("copy-done", "bitcast")
    found = walked(
        f"%huge = {huge} parameter(0)",
        f"%begun = ({huge[:-1]}S(1)}}, {huge}, u32[]{{:S(2)}}) copy-start(%huge)",
        *looped(', backend_config={"known_trip_count":{"n":"2"}}'),
        f"%ended = {huge[:-1]}S(1)}} copy-done(%begun)",
        others=body,
    )
    assert huge_s > 2 * PRODUCT_S
    assert found.time_s == pytest.approx(huge_s)
    assert found.compute_s == pytest.approx(2 * PRODUCT_S)


def test_of_a_conditional_the_dearest_branch_counts() -> None:
    branches = f"""
%cheap (x: {FAR[:15]}) -> f32[] {{
  %x = {FAR} parameter(0)
  ROOT %read = {FAR[:-1]}S(1)}} copy(%x)
}}
%dear (x: {FAR[:15]}) -> f32[] {{
  %x = {FAR} parameter(0)
  %near = {PRODUCT} constant(0)
  ROOT {MULTIPLY}
}}
"""
    found = walked(
        "%which = s32[] parameter(0)",
        f"%far = {FAR} parameter(1)",
        "%chosen = f32[] conditional(%which, %far, %far), branch_computations={%cheap, %dear}",
        others=branches,
    )
    assert parts(found) == close(PRODUCT_S, 0.0, 0.0)
    assert [each.name for each in found.events] == ["product"]
    assert found.hbm_bytes == 0


# Bytes of one instruction.


def moved(*entry: str, others: str = "") -> Traffic:
    """By the last instruction."""
    module = Module(text(*entry, others=others))
    body = module.computation(module.entry)
    return traffic(module, body, list(body.values())[-1])


SLICED = """
%relaid (whole: s8[118,4608,256]) -> s8[118,4608,256] {
  %whole = s8[118,4608,256]{2,1,0:T(32,128)(4,1)} parameter(0)
  ROOT %copied = s8[118,4608,256]{2,1,0:T(8,128)(4,1)} copy(%whole)
}
%layer (stacked: s8[118,4608,256], at: s32[]) -> s8[1,4608,256] {
  %stacked = s8[118,4608,256]{2,1,0:T(32,128)(4,1)} parameter(0)
  %nested = s8[118,4608,256]{2,1,0:T(8,128)(4,1)} fusion(%stacked), kind=kLoop, calls=%relaid
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %mine = s8[1,4608,256]{2,1,0:T(8,128)(4,1)S(1)} dynamic-slice(%nested, %at, %zero, %zero), \
dynamic_slice_sizes={1,4608,256}
}
"""


def test_a_fusion_that_slices_reads_the_slice_also_of_what_it_relays() -> None:
    found = moved(
        "%stacked = s8[118,4608,256]{2,1,0:T(32,128)(4,1)} parameter(0)",
        "%at = s32[]{:S(6)} parameter(1)",
        "%layer = s8[1,4608,256]{2,1,0:T(8,128)(4,1)S(1)} fusion(%stacked, %at), kind=kLoop, "
        "calls=%layer",
        others=SLICED,
    )
    assert found == Traffic(read=4608 * 256, written=0)


NARROWED = """
%layer (stacked: f32[28,4096,256], at: s32[]) -> bf16[1,4096,256] {
  %stacked = f32[28,4096,256]{2,1,0:T(8,128)} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %mine = bf16[1,4096,256]{2,1,0:T(8,128)(2,1)S(1)} dynamic-slice(%stacked, %at, %zero, \
%zero), dynamic_slice_sizes={1,4096,256}
}
"""


def test_a_slice_that_converts_reads_what_is_stored() -> None:
    found = moved(
        "%stacked = f32[28,4096,256]{2,1,0:T(8,128)} parameter(0)",
        "%at = s32[]{:S(6)} parameter(1)",
        "%layer = bf16[1,4096,256]{2,1,0:T(8,128)(2,1)S(1)} fusion(%stacked, %at), kind=kLoop, "
        "calls=%layer",
        others=NARROWED,
    )
    assert found == Traffic(read=4 * 4096 * 256, written=0)


def test_an_array_takes_whole_tiles() -> None:
    """Rows of two numbers are stored as rows of 128."""
    found = moved(
        "%narrow = bf16[64,2]{1,0:T(8,128)(2,1)} parameter(0)",
        "%copy = bf16[64,2]{0,1:T(2,128)(2,1)} copy(%narrow)",
    )
    assert found == Traffic(read=64 * 128 * 2, written=2 * 128 * 2)


def test_a_scatter_writes_its_updates_in_place() -> None:
    lines = (
        "%cache = bf16[64,2048,128]{2,1,0:T(8,128)(2,1)} parameter(0)",
        "%places = s32[64,2]{1,0:T(8,128)S(1)} parameter(1)",
        "%new = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(2)",
    )
    put = "bf16[64,2048,128]{2,1,0:T(8,128)(2,1)} scatter(%cache, %places, %new)"
    moves = Traffic(read=64 * 128 * 2, written=64 * 128 * 2)
    assert moved(*lines, f"%put = {put}, to_apply=%second") == moves


def test_what_only_hands_on_moves_nothing() -> None:
    room = 'custom-call(), custom_call_target="AllocateBuffer"'
    assert moved(f"%room = {FAR} {room}") == Traffic()


def test_the_schedule_and_hbm_bytes_agree() -> None:
    compiled = executable(*looped(""), others=LOOP)
    assert hbm_bytes(compiled) == schedule(compiled, V5E).hbm_bytes


# Arithmetic of one instruction.


def multiplied(*entry: str) -> list[Product]:
    module = Module(text(*entry))
    body = module.computation(module.entry)
    return list(products(module, body, list(body.values())[-1]))


@pytest.mark.parametrize(
    ("left", "right", "out", "window", "pairs"),
    [
        # [64,4608] x [4608,4,256]: the window of four heads goes over one element and its padding.
        (
            "bf16[64,4608,1]",
            "bf16[4608,4,256]",
            "bf16[64,4,256]",
            "window={size=4 pad=3_3 rhs_reversal=1}, dim_labels=bf0_i0o->b0f",
            64 * 4608 * 4 * 256,
        ),
        # [64,4,256] x [64,4,256,2048]: a batch of 64 as a window, with gaps between the elements.
        (
            "bf16[64,4,128]",
            "bf16[64,2048,128]",
            "f32[64,4,2048]",
            "window={size=64 stride=63 lhs_dilate=64}, dim_labels=0bf_0oi->0bf",
            64 * 4 * 128 * 2048,
        ),
        # Heads that are summed over.
        (
            "bf16[64,4,256]",
            "bf16[4,256,4608]",
            "bf16[64,4608,1]",
            "window={size=4}, dim_labels=b0f_0io->bf0",
            64 * 4 * 256 * 4608,
        ),
        # A convolution as such, 3 wide over 10 with one of padding: the two ends see two of three.
        (
            "bf16[2,10,8]",
            "bf16[3,8,16]",
            "bf16[2,10,16]",
            "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
            2 * 8 * 16 * (8 * 3 + 2 * 2),
        ),
    ],
)
def test_a_convolution_multiplies_what_lies_in_its_arrays(
    left: str, right: str, out: str, window: str, pairs: int
) -> None:
    found = multiplied(
        f"%left = {left} parameter(0)",
        f"%right = {right} parameter(1)",
        f"%out = {out} convolution(%left, %right), {window}",
    )
    assert found == [Product(2 * pairs, "bf16")]


def test_a_dot_multiplies_along_what_it_sums() -> None:
    found = multiplied(
        "%left = bf16[8,64,512] parameter(0)",
        "%right = bf16[8,512,128] parameter(1)",
        "%out = f32[8,64,128] dot(%left, %right), lhs_batch_dims={0}, lhs_contracting_dims={2}, "
        "rhs_batch_dims={0}, rhs_contracting_dims={1}",
    )
    assert found == [Product(2 * 8 * 64 * 512 * 128, "bf16")]


def test_precise_products_of_float32_go_over_their_operands_several_times() -> None:
    found = multiplied(
        "%x = f32[64,64] parameter(0)",
        "%out = f32[64,64] convolution(%x, %x), dim_labels=bf_io->bf, "
        "operand_precision={highest,highest}",
    )
    assert found == [Product(2 * 64**3, "bf16", passes=6)]


def test_a_kernel_counts_what_its_author_says() -> None:
    found = multiplied(
        "%x = bf16[64,64] parameter(0)",
        '%out = bf16[64,64] custom-call(%x), custom_call_target="tpu_custom_call", '
        'backend_config={"custom_call_config":{"cost_estimate":{"flops":"123","x":"4"}}}',
    )
    assert found == [Product(123, "bf16")]


# The clock.


def test_hbm_moves_what_was_started_in_the_time_that_instructions_leave() -> None:
    clock = Clock()
    clock.start("transfer", Work(hbm_s=3.0))
    assert clock.run(Work(compute_s=4.0, hbm_s=2.0)).compute_s == 4.0
    assert clock.wait("transfer").hbm_s == 1.0
    assert clock.now_s == 5.0
    assert clock.wait("transfer").time_s == 0.0


def test_an_instruction_waits_for_links_that_are_taken() -> None:
    clock = Clock()
    clock.start("first", Work(link_s=2.0, links=(0, 1)))
    spent = clock.run(Work(compute_s=1.0, link_s=1.5, links=(1,)))
    assert (spent.compute_s, spent.link_s) == (1.0, 2.5)
    assert clock.wait("first").time_s == 0.0


# Whole programs.


def test_a_schedule_says_what_it_is_made_of() -> None:
    found = walked(
        *looped(""),
        "%last = f32[] constant(0)",
        PART,
        gather_start("g"),
        gather_done("g"),
        others=LOOP,
    )
    assert found.time_s == pytest.approx(sum(each.exposed_s for each in found.events))
    assert found.time_s == pytest.approx(118 * PRODUCT_S + GATHER_S)
    assert found.memory.total_bytes == 5 + 4 - 2 + 3 + 1
    rows = found.table(2)
    assert [row[3] for row in rows] == [
        "convolution product",
        "all-gather-start g, all-gather over y",
    ]
    assert rows[0][:3] == (f"{118 * PRODUCT_S * 1e3:.3f} ms", "99.7%", "118")
    assert rows[1][4] == "12.58 MB of links, 0.00 MB of HBM"


def test_a_mesh_names_the_axes_and_must_have_as_many_chips() -> None:
    mesh = SimpleNamespace(shape={"data": 4, "model": 2})
    entry = (PART, gather_start("g", "replica_groups=[4,2]<=[8]"), gather_done("g", 4096))
    found = schedule(executable(*entry), V5E, mesh, FULL)
    assert found.events[0].exchanges[0].axes == ("model",)
    with pytest.raises(ValueError, match="data=3 has 3 chips, v5e:2x4 8"):
        schedule(executable(*entry), V5E, SimpleNamespace(shape={"data": 3}))


def test_a_compiled_program_to_the_number() -> None:
    """Three layers of two products each, split over eight chips, and their sums."""
    batch, model, hidden, layers = 256, 512, 4096, 3
    mesh = jax_mesh(V5E, MeshSpec.parse("x=2 y=4"))

    def layer(x: jax.Array, weights: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        into, out = weights
        return jnp.tanh(x @ into) @ out, None

    def placed(shape: tuple[int, ...], *spec: object) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)

    def step(x: jax.Array, into: jax.Array, out: jax.Array) -> jax.Array:
        return jax.lax.scan(layer, x, (into, out))[0]

    x = placed((batch, model))
    into = placed((layers, model, hidden), None, None, ("x", "y"))
    out = placed((layers, hidden, model), None, ("x", "y"), None)
    result = NamedSharding(mesh, PartitionSpec())
    lowered = jax.jit(step, out_shardings=result).trace(x, into, out)
    compiled, _ = compile_quietly(lowered.lower(lowering_platforms=("tpu",)))
    found = schedule(compiled, V5E, mesh)

    assert found.flops == layers * 2 * 2 * batch * model * hidden // 8
    sums = [(each, sent) for each in found.events for sent in each.exchanges]
    assert {(sent.kind, sent.axes) for _, sent in sums} == {("all-reduce", ("x", "y"))}
    assert sum(each.trips for each, _ in sums) == layers
    width = {"bf16": 2, "f32": 4}[sums[0][1].dtype]
    assert found.collective_bytes == layers * 2 * batch * model * width * 7 // 8
    weights = layers * 2 * model * hidden * 2 // 8
    assert weights <= found.hbm_bytes <= 1.5 * weights + 4 * batch * model * 2
    assert found.memory.argument_bytes >= weights
    assert found.time_s == pytest.approx(found.compute_s + found.hbm_s + found.link_s)
    assert np.isclose(found.time_s, sum(each.exposed_s for each in found.events))
