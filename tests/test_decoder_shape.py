"""What the cost model reads of a program's decoder, on decoders of every block."""

from __future__ import annotations

import pytest

from dialect.naming.axes import infer_axes
from dialect.planning.decoder import decoder_shape
from rewrite import Pipeline, trace
from tests.fuzz.decoders import Decoder

PASSES = ("", ", merge_dots, first_layer{budget=10.0}")


@pytest.mark.parametrize("passes", PASSES, ids=["", "merged, first layer"])
@pytest.mark.parametrize("loop", ["written", "scanned"])
@pytest.mark.parametrize("qk_norm", [False, True], ids=["", "qk norm"])
@pytest.mark.parametrize("block", ["serial", "parallel", "sandwich", "after"])
def test_a_block_is_parallel_whose_network_does_not_read_its_attention(
    block: str, qk_norm: bool, loop: str, passes: str
) -> None:
    """However many norms it has: counting them took one with query-key norms for serial."""
    decoder = Decoder(block=block, qk_norm=qk_norm, loop=loop, layers=3, gate="gated")
    args = (decoder.params(), decoder.cache(), decoder.given())
    program = trace(decoder.step, *args, params=0, state=1)
    program = Pipeline.parse(f"normalize, recognize{passes}").run(program)
    assert decoder_shape(program, infer_axes(program)).parallel == (block == "parallel")
