"""PaLM as "Efficiently Scaling Transformer Inference" (arXiv:2211.05102) serves it, and Llama 3."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dialect.compiled.compilers import Compiler, fitted_compiler
from dialect.machine.mesh import MeshSpec, Topology
from dialect.planning.decoder_shape import Attention, Block, DecoderShape, Network
from dialect.planning.partitionings import partition
from dialect.planning.workload import Workload


def uniform(
    layers: int,
    heads: int,
    kv_heads: int,
    d_head: int,
    d_ff: int,
    ffn_matrices: int = 3,
    experts: int = 1,
    experts_per_token: int = 1,
    routing: str = "",
    parallel: bool = False,
    **sizes: Any,
) -> DecoderShape:
    """A decoder with layers of one kind."""
    attention = Attention(heads, kv_heads, d_head)
    network = Network(d_ff, ffn_matrices - 1, 1, experts, experts_per_token, routing)
    parts = ((attention, (network,)),) if parallel else ((attention, ()), (None, (network,)))
    return DecoderShape(blocks=tuple(Block(*part, layers, layers) for part in parts), **sizes)


def varied(shape: DecoderShape, **changes: Any) -> DecoderShape:
    """A uniform decoder with other sizes; arguments as in `uniform`."""
    (attention, block), (network, _) = next(shape.attentions), next(shape.networks)
    sizes = {name: value for name, value in vars(shape).items() if name != "blocks"}
    sizes |= {"layers": block.times, "parallel": len(shape.blocks) == 1}
    sizes |= {name: getattr(attention, name) for name in ("heads", "kv_heads", "d_head")}
    sizes |= {"ffn_matrices": network.matrices, "d_ff": network.d_ff, "experts": network.experts}
    sizes |= {"experts_per_token": network.experts_per_token, "routing": network.routing}
    return uniform(**(sizes | changes))


PALM_540B = uniform(
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
PALM_62B = varied(PALM_540B, layers=64, d_model=8192, d_ff=32768, heads=32)
LLAMA_8B = uniform(
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
LLAMA_70B = varied(LLAMA_8B, layers=80, d_model=8192, d_ff=28672, heads=64)


def ffn_communication_bytes(name: str, shape: DecoderShape, mesh: MeshSpec) -> float:
    """Bytes per chip that one serial feed-forward layer exchanges, as appendix A.2 counts them.

    Without the factor (K - 1) / K, and without attention: with two matrices and bf16 exactly
    Figure 3 of the paper.
    """
    work = Workload(varied(shape, parallel=False), mesh, partition(name, "batch", shape, mesh))
    return sum(each.volume for each in work.collectives() if each.part == "ffn") / shape.layers


# The meshes of the paper's public code, by the number of chips.
MESHES = {
    8: "x=2 y=2 z=2",
    16: "x=2 y=4 z=2",
    32: "x=4 y=2 z=4",
    64: "x=4 y=4 z=4",
    128: "x=8 y=4 z=4",
    256: "x=4 y=8 z=8",
}


def v4(chips: int) -> tuple[Topology, MeshSpec]:
    mesh = MeshSpec.parse(MESHES[chips])
    return Topology.parse("v4:" + "x".join(map(str, mesh.sizes))), mesh


def by_hand(topology: Topology) -> Compiler:
    """What the paper's programs are compiled by: their collectives are written by hand, and scatter
    to any number of rows."""
    return replace(fitted_compiler(topology.chip), rows=1)


CUBE = v4(64)[1]
# Section 3.2 and Figure 3: a feed-forward unit of two matrices.
FIGURE_3 = varied(
    PALM_540B,
    context=1,
    layers=1,
    d_model=16384,
    d_ff=65536,
    ffn_matrices=2,
    kv_heads=64,
    vocab=65536,
    parallel=False,
)


def ffn_bytes(name: str, tokens: int) -> float:
    shape = varied(FIGURE_3, batch=tokens)
    return ffn_communication_bytes(name, shape, CUBE)
