"""Which activations of a block find room on a chip, and what the others move to and from HBM."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dialect.machine.mesh import MeshSpec
from dialect.planning.activations import Activation, Step, activations, spilled
from dialect.planning.partitionings import partition
from dialect.planning.workload import Workload
from tests.decoder_shapes import LLAMA_8B, PALM_540B, varied

MESH = MeshSpec.parse("x=2 y=4")
MIB = 1 << 20


def array(size: float, first: Step, last: Step) -> Activation:
    return Activation("hidden", size, 2, first, last)


def test_arrays_share_the_room_while_they_are_needed() -> None:
    early, late = array(60, Step.HEADS, Step.LOGITS), array(60, Step.VALUES, Step.OUT)
    through = array(30, Step.HEADS, Step.OUT)
    assert list(spilled([early, late, through], 100)) == []
    assert list(spilled([early, late, through], 80)) == [early, late]
    assert list(spilled([early, late, through], 20)) == [through, early, late]


def test_activations_of_a_layer_of_llama() -> None:
    """Prefill of 16 sequences of 1,024 tokens over 8 chips that own two each: 2,048 tokens."""
    shape = replace(LLAMA_8B, batch=16, time=1024, context=1024)
    work = Workload(shape, MESH, partition("wg_xyz", "batch", shape, MESH))
    attention, network = shape.blocks
    assert [
        (each.name, each.bytes / MIB, each.passes) for each in activations(work, attention)
    ] == [
        ("weights", 32, 2),
        ("queries", 32, 2),
        ("rotated", 16, 4),
        ("logits", 256, 2),
        ("mixed", 16, 2),
        ("stream", 16, 6),
    ]
    assert [(each.name, each.bytes / MIB, each.passes) for each in activations(work, network)] == [
        ("stream", 16, 4),
        ("hidden", 56, 2),
        ("hidden", 56, 2),
    ]


def test_a_chip_with_one_sequence_adds_its_logits_up_in_a_pass_of_its_own() -> None:
    shape = replace(LLAMA_8B, batch=8, time=1024, context=1024)
    work = Workload(shape, MESH, partition("wg_xyz", "batch", shape, MESH))
    logits = 4 * 32 * 1024 * 1024
    assert work.spilled_bytes(100 * MIB) == (32 * 3 * logits, 0)


def test_a_chip_with_one_kv_head_does_too() -> None:
    shape = replace(LLAMA_8B, batch=16, time=1024, context=1024)
    work = Workload(shape, MESH, partition("ws1d", "heads", shape, MESH))
    attention, _ = shape.blocks
    (logits,) = (each for each in activations(work, attention) if each.name == "logits")
    assert logits.passes == 3


def test_partial_sums_of_the_stream_are_written_reduced_and_added() -> None:
    """As compiled: a product writes them, the all-reduce reads them and writes their sum, which is
    read to be added."""
    shape = replace(LLAMA_8B, batch=16, time=1024, context=1024)
    work = Workload(shape, MESH, partition("ws1d", "heads", shape, MESH))
    stream = 16 * 1024 * 4096 * 2
    for block in shape.blocks:
        assert [(x.bytes, x.passes) for x in work.exchanged(block)] == [(stream, 4)]


def test_weights_that_are_gathered_are_written_and_put_together() -> None:
    """Along d_model over x and along d_ff over y: gathered, then moved twice."""
    shape = replace(LLAMA_8B, batch=16, time=1024, context=1024)
    gathered, kept = (
        Workload(shape, MESH, partition(ffn, "batch", shape, MESH)) for ffn in ("wg_xyz", "wg_x")
    )
    layers = 32 * (3 * 4096 * 14336 + 4096 * (2 * 32 + 2 * 8) * 128) * 2
    assert gathered.gathered_bytes() == 5 * layers
    assert kept.gathered_bytes() == pytest.approx(layers / 4)


def test_a_parallel_block_reads_its_stream_for_both_of_its_parts() -> None:
    shape = varied(PALM_540B, batch=16, time=1024)
    work = Workload(shape, MESH, partition("wg_xyz", "batch", shape, MESH))
    (block,) = shape.blocks
    (stream,) = (each for each in activations(work, block) if each.name == "stream")
    assert stream.passes == 1 + 4 + 2 + 1


@pytest.mark.parametrize("room", [1e6, 1e9])
def test_what_a_step_moves_falls_with_the_room(room: float) -> None:
    shape = replace(LLAMA_8B, batch=16, time=512, context=512)
    work = Workload(shape, MESH, partition("ws1d", "heads", shape, MESH))
    assert sum(work.spilled_bytes(room)) >= sum(work.spilled_bytes(2 * room))
    assert work.spilled_bytes(1e12) == (0, 0)
