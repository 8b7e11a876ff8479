"""PaLM as it is served in "Efficiently Scaling Transformer Inference" (arXiv:2211.05102)."""

from __future__ import annotations

from dataclasses import replace

from dialect.planning.decoder_shape import DecoderShape

PALM_540B = DecoderShape(
    batch=64,
    time=1,
    context=2048,
    layers=118,
    d_model=18432,
    d_ff=73728,
    heads=64,
    kv_heads=1,
    d_head=256,
    vocab=256128,
    parallel=True,
    tied_embedding=True,
)
PALM_62B = replace(PALM_540B, layers=64, d_model=8192, d_ff=32768, heads=32)
