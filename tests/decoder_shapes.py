"""PaLM as "Efficiently Scaling Transformer Inference" (arXiv:2211.05102) serves it, and Llama 3."""

from __future__ import annotations

from dataclasses import replace

from dialect.machine.mesh import MeshSpec
from dialect.planning.decoder_shape import DecoderShape
from dialect.planning.partitionings import partition
from dialect.planning.workload import Workload

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
LLAMA_8B = DecoderShape(
    batch=64,
    time=1,
    context=2048,
    layers=32,
    d_model=4096,
    d_ff=14336,
    heads=32,
    kv_heads=8,
    d_head=128,
    vocab=128256,
)
LLAMA_70B = replace(LLAMA_8B, layers=80, d_model=8192, d_ff=28672, heads=64)


def ffn_communication_bytes(name: str, shape: DecoderShape, mesh: MeshSpec) -> float:
    """Bytes per chip that one serial feed-forward layer exchanges, as appendix A.2 counts them.

    Without the factor (K - 1) / K, and without attention: with two matrices and bf16 exactly
    Figure 3 of the paper.
    """
    work = Workload(replace(shape, parallel=False), mesh, partition(name, "batch", shape, mesh))
    return sum(each.volume for each in work.collectives() if each.part == "ffn") / shape.layers
