"""The time read off compiled schedules, against the latencies published for PaLM on TPU v4.

    pip install "shardwright[tpu]"
    python benchmarks/schedule.py ["Table 2" "Figure 8" ...] [--instructions 10]

Compiles examples/palm.py for each point of "Efficiently Scaling Transformer Inference"
(arXiv:2211.05102) with the layout that the paper names, walks the schedule of what the compiler
made of it (`dialect.compiled.schedule`), and prints both times, of one token in decode and of all
in prefill. The step gives the next token: logits, as in the paper, stay where they are. Nothing is
allocated; a point takes some ten seconds.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp

from dialect.compiled.compiling import Compilable, compiled
from dialect.compiled.schedule import Schedule, schedule
from dialect.front.api import DEFAULT_PIPELINE
from dialect.machine.mesh import Topology
from examples import palm
from rewrite import auto_shard
from rewrite.errors import ShardwrightError

SLICES = {8: "v4:2x2x2", 16: "v4:2x2x4", 32: "v4:2x4x4", 64: "v4:4x4x4", 128: "v4:4x4x8"}
PADDED_540B = palm.CONFIGS["540b_padded"]
CONFIGS = {
    "540b": PADDED_540B,
    "540b, 128 heads": replace(PADDED_540B, heads=128),  # as the paper's code pads for 128 chips
    "540b, 8 layers": replace(PADDED_540B, layers=8),
    "62b": palm.CONFIGS["62b"],
}


@dataclass(frozen=True)
class Point:
    """A published time: `time` new tokens of each sequence (1 in decode), of `context` in all."""

    source: str
    model: str
    chips: int
    batch: int
    layout: str
    weights: str
    published_s: float
    time: int = 1
    context: int = 2048

    def __str__(self) -> str:
        phase = "decode" if self.time == 1 else f"prefill of {self.time}"
        return (
            f"{self.source:9} {self.model:15} {self.chips:3} chips {phase:15} batch {self.batch:4} "
            f"context {self.context:4} {self.layout:12} {self.weights}"
        )


def _several(
    source: str, model: str, batches: dict[int, float], layout: str, weights: str, **more: Any
) -> list[Point]:
    """Points that differ in their batch, on 64 chips; milliseconds by batch."""
    return [
        Point(source, model, 64, batch, layout, weights, ms / 1e3, **more)
        for batch, ms in batches.items()
    ]


def _contexts(contexts: dict[int, float], layout: str) -> list[Point]:
    """Figure 8: milliseconds by context."""
    return [
        Point("Figure 8", "540b, 8 layers", 64, 256, layout, "bf16", ms / 1e3, context=context)
        for context, ms in contexts.items()
    ]


DECODE, HEADS, GATHERED = "ws2d/batch", "ws2d/heads", "wg_xyz/batch"
WHOLE, SHORT = {"time": 2048}, {"time": 20, "context": 28}
# Figure 7 gives MFU, of 2 * 540e9 operations a token. Its weight-stationary prefill of 64 sequences
# and more is missing: the whole batch at once does not fit into our chips' memory.
POINTS = [
    Point("Table 2", "540b", 64, 1, HEADS, "int8", 0.29, **WHOLE),
    Point("Table 2", "540b", 64, 64, DECODE, "int8", 1.82 / 64),
    Point("Table 2", "540b", 64, 512, GATHERED, "bf16", 85.2, **WHOLE),
    Point("Table 2", "540b", 64, 512, DECODE, "bf16", 6.0 / 64),
    Point("Table 3", "62b", 16, 1, HEADS, "int8", 0.16, **WHOLE),
    Point("Table 3", "62b", 16, 32, DECODE, "int8", 0.73 / 64),
    Point("Table 3", "62b", 32, 512, GATHERED, "bf16", 20.2, **WHOLE),
    Point("Table 3", "62b", 8, 512, DECODE, "bf16", 5.1 / 64),
    *_several(
        "Figure 1",
        "540b",
        {64: 36.226, 128: 44.486, 256: 56.876, 512: 92.158, 1024: 182.903},
        DECODE,
        "bf16",
    ),
    *_several(
        "Figure 1", "540b", {64: 27.849, 128: 35.99, 256: 54.988, 512: 94.521}, DECODE, "int8"
    ),
    *_several("Figure 1", "540b", {1: 287.56, 2: 538.9, 4: 1072.99}, HEADS, "bf16", **WHOLE),
    *_several("Figure 1", "540b", {1: 282.74, 2: 550.98, 4: 1092.32}, HEADS, "int8", **WHOLE),
    *_several(
        "Figure 1", "540b", {128: 29485.2, 256: 43501.55, 512: 83623.98}, GATHERED, "bf16", **WHOLE
    ),
    Point("Figure 6", "540b", 64, 512, DECODE, "bf16", 92.04e-3),
    Point("Figure 6", "540b", 64, 512, "ws1d/batch", "bf16", 96.05e-3),
    Point("Figure 6", "540b, 128 heads", 128, 512, DECODE, "bf16", 73.04e-3),
    Point("Figure 6", "540b, 128 heads", 128, 512, "ws1d/batch", "bf16", 93.93e-3),
    Point("Figure 7", "540b", 64, 64, GATHERED, "bf16", 28.28, **WHOLE),
    *_contexts({128: 3.848, 512: 3.856, 2048: 3.864, 8192: 4.152}, DECODE),
    *_contexts({128: 3.552, 512: 4.392, 2048: 7.72, 8192: 20.401}, HEADS),
    *_several("Table D.2", "540b", {4: 34, 16: 58}, HEADS, "bf16", **SHORT),
    *_several("Table D.2", "540b", {64: 186, 256: 668, 1024: 2785}, DECODE, "bf16", **SHORT),
    *_several("Table D.2", "540b", {4: 255 / 8, 16: 234 / 8}, HEADS, "bf16", context=28),
    *_several(
        "Table D.2", "540b", {64: 265 / 8, 256: 415 / 8, 1024: 1257 / 8}, DECODE, "bf16", context=28
    ),
]


def greedy(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step with the most likely next token in place of its logits."""

    def next_token(params: Any, cache: Any, tokens: jax.Array) -> tuple[jax.Array, Any]:
        logits, cache = step(params, cache, tokens)
        return jnp.argmax(logits, axis=-1), cache

    return next_token


def pipeline(point: Point) -> str:
    """The default one, with the paper's layout asked for, and its weights in int8."""
    ffn, _, attention = point.layout.partition("/")
    plan = f"plan{{ffn={ffn}, attention={attention}}}"
    if point.weights == "int8":
        plan = f"quantize{{weights=int8}}, {plan}"
    return ", ".join(plan if each == "plan" else each for each in DEFAULT_PIPELINE.split(", "))


def read(point: Point) -> Schedule:
    config, topology = CONFIGS[point.model], SLICES[point.chips]
    model = palm.decode_step if point.time == 1 else palm.prefill
    step = auto_shard(greedy(partial(model, config)), topology, pipeline=pipeline(point))
    params = jax.eval_shape(partial(palm.init_params, config), jax.random.key(0))
    cache = jax.eval_shape(partial(palm.init_cache, config, point.batch, point.context))
    tokens = (point.batch,) if point.time == 1 else (point.batch, point.time)
    program = step.program(params, cache, jax.ShapeDtypeStruct(tokens, jnp.int32))
    executable, _ = compiled(Compilable(program, step.mesh))
    return schedule(executable, Topology.parse(topology), step.mesh)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sources", nargs="*", metavar="figure", help='"Table 2", "Figure 8" ...')
    parser.add_argument("--instructions", type=int, default=0, help="list so many of each")
    options = parser.parse_args()
    errors = []
    for point in POINTS:
        if options.sources and point.source not in options.sources:
            continue
        try:
            found = read(point)
        except ShardwrightError as error:
            print(f"{point}: {error}", flush=True)
            continue
        errors.append(found.time_s / point.published_s - 1)
        print(
            f"{point} {found.time_s * 1e3:9.2f} ms, published {point.published_s * 1e3:9.2f} "
            f"({errors[-1]:+6.1%}); compute {found.compute_s * 1e3:.2f}, HBM "
            f"{found.hbm_s * 1e3:.2f}, links {found.link_s * 1e3:.2f} ms",
            flush=True,
        )
        for row in found.table(options.instructions):
            print("    " + "  ".join(row))
    sizes = sorted(map(abs, errors))
    if sizes:
        print(f"{len(sizes)} points: median error {median(sizes):.1%}, largest {sizes[-1]:.1%}")


if __name__ == "__main__":
    main()
