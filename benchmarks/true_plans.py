"""Is what the planner promises what the compiler makes? Memory, received bytes and HBM traffic.

    pip install "shardwright[tpu]"
    python benchmarks/true_plans.py [--only TEXT]

Each row is a decoder of examples/, its step and a TPU slice: planned by the default pipeline,
compiled ahead of time, and both compared per chip (`dialect.reports.beside_plan`). A ratio is
compiled / planned. Nothing is allocated.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp

from dialect.compiled.compiling import Compilable, compiled
from dialect.display.tables import Table, as_text
from dialect.front.api import DEFAULT_PIPELINE
from dialect.machine.mesh import MeshSpec, Topology, jax_mesh
from dialect.reports.beside_plan import Beside, beside_plan
from examples import gpt, llama, palm
from rewrite import Pipeline, Target, trace

STEPS = 64
LLAMA_1B = replace(
    llama.CONFIGS["8b"], layers=16, d_model=2048, heads=32, kv_heads=8, d_head=64, d_ff=8192
)
LLAMA_8 = replace(llama.CONFIGS["8b"], layers=8)
PALM_8, PALM_62_8 = (replace(palm.CONFIGS[name], layers=8) for name in ("8b", "62b"))


@dataclass(frozen=True)
class Row:
    """A decoder, one of its steps (`decode`, `prefill`, `generate`, `sample`), what it is compiled
    for, and the plan that is asked for, if any."""

    name: str
    model: ModuleType
    config: Any
    step: str
    batch: int
    context: int
    slice: str = "v5e:2x4"
    plan: str = "plan"

    def __str__(self) -> str:
        sizes = f"batch {self.batch}, context {self.context}"
        asked = f", {self.plan}" if self.plan != "plan" else ""
        return f"{self.name}, {self.step}, {self.slice}, {sizes}{asked}"


ROWS = (
    Row("Llama-3-8B", llama, llama.CONFIGS["8b"], "decode", 16, 2048),
    Row("Llama-3-8B", llama, llama.CONFIGS["8b"], "prefill", 16, 512),
    Row("Llama-3-8B", llama, llama.CONFIGS["8b"], "generate", 16, 512),
    Row("Llama-3-8B", llama, llama.CONFIGS["8b"], "decode", 64, 2048, "v6e:2x2"),
    Row("Llama-3.2-1B", llama, LLAMA_1B, "decode", 64, 2048, "v5e:2x2"),
    Row("Llama-3.2-1B", llama, LLAMA_1B, "generate", 64, 512, "v5e:2x2"),
    Row("PaLM-8B", palm, palm.CONFIGS["8b"], "decode", 32, 2048),
    Row("PaLM-8B", palm, palm.CONFIGS["8b"], "prefill", 16, 1024),
    Row("GPT-2 XL", gpt, gpt.CONFIGS["xl"], "decode", 8, 512),
    Row("GPT-2 XL", gpt, gpt.CONFIGS["xl"], "prefill", 16, 1024),
    Row("Llama-3-8B", llama, llama.CONFIGS["8b"], "sample", 16, 512),
    Row("Llama-3-8B", llama, llama.CONFIGS["8b"], "prefill", 1, 2048),
    Row("Llama-3-8B, 8 layers", llama, LLAMA_8, "prefill", 16, 2048),
    Row("Llama-3-8B, 8 layers", llama, LLAMA_8, "prefill", 16, 1024, "v6e:2x4"),
    Row("Llama-3-8B, 8 layers", llama, LLAMA_8, "prefill", 16, 2048, plan="plan{ffn=ws1d}"),
    Row("Llama-3-8B, 8 layers", llama, LLAMA_8, "prefill", 16, 1024, plan="plan{ffn=wg_xyz}"),
    Row("PaLM-8B, 8 layers", palm, PALM_8, "prefill", 16, 1024, plan="plan{ffn=ws2d}"),
    Row("PaLM-8B, 8 layers", palm, PALM_8, "prefill", 64, 1024),
    Row("PaLM-62B, 8 layers", palm, PALM_62_8, "prefill", 16, 2048, "v4:2x2x4"),
)


def generate(row: Row, params: Any, cache: Any, prompt: jax.Array) -> Any:
    """Prefill, and a loop of decode steps that picks the most likely token."""

    def step(carry: Any, _: None) -> Any:
        cache, token = carry
        logits, cache = row.model.decode_step(row.config, params, cache, token)
        token = jnp.argmax(logits, -1).astype(jnp.int32)
        return (cache, token), token

    logits, cache = row.model.prefill(row.config, params, cache, prompt)
    first = cache, jnp.argmax(logits, -1).astype(jnp.int32)
    (cache, _), tokens = jax.lax.scan(step, first, None, length=STEPS)
    return tokens, cache


def sample(row: Row, params: Any, cache: Any, prompt: jax.Array, key: jax.Array) -> Any:
    """Prefill, and a loop of decode steps that samples until every sequence has ended."""

    def goes_on(carry: Any) -> jax.Array:
        count, ended, *_ = carry
        return (count < STEPS) & ~jnp.all(ended)

    def step(carry: Any) -> Any:
        count, ended, cache, token, tokens, key = carry
        logits, cache = row.model.decode_step(row.config, params, cache, token)
        key, drawn = jax.random.split(key)
        token = jnp.where(ended, 0, jax.random.categorical(drawn, logits)).astype(jnp.int32)
        tokens = jax.lax.dynamic_update_slice(tokens, token[:, None], (0, count))
        return count + 1, ended | (token == 1), cache, token, tokens, key

    logits, cache = row.model.prefill(row.config, params, cache, prompt)
    token = jnp.argmax(logits, -1).astype(jnp.int32)
    tokens = jnp.zeros((row.batch, STEPS), jnp.int32)
    first = jnp.int32(0), jnp.zeros(row.batch, bool), cache, token, tokens, key
    _, _, cache, _, tokens, _ = jax.lax.while_loop(goes_on, step, first)
    return tokens, cache


def compared(row: Row) -> tuple[str, list[Beside]]:
    """(the plan's label, planned and compiled figures) of a row."""
    params = jax.eval_shape(partial(row.model.init_params, row.config), jax.random.key(0))
    cache = jax.eval_shape(partial(row.model.init_cache, row.config, row.batch, row.context))
    steps: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
        "decode": (partial(row.model.decode_step, row.config), ()),
        "prefill": (partial(row.model.prefill, row.config), (row.context,)),
        "generate": (partial(generate, row), (row.context - STEPS,)),
        "sample": (partial(sample, row), (row.context - STEPS,)),
    }
    function, times = steps[row.step]
    tokens = jax.ShapeDtypeStruct((row.batch, *times), "int32")
    topology = Topology.parse(row.slice)
    target = Target(row.slice, topology.mesh_axes().axes)
    keys = [jax.eval_shape(lambda: jax.random.key(0))] if row.step == "sample" else []
    program = trace(function, params, cache, tokens, *keys)
    passes = DEFAULT_PIPELINE.replace("plan", row.plan, 1)
    program = Pipeline.parse(passes).run(program, target)
    mesh = jax_mesh(topology, MeshSpec(target.mesh))
    executable, _ = compiled(Compilable(program, mesh))
    return program.plan.label, beside_plan(program, executable, mesh)


def lines(only: str) -> Iterator[tuple[str, ...]]:
    """The rows of the table whose name has this text, each printed when it is there."""
    for row in ROWS:
        if only.lower() in str(row).lower():
            label, figures = compared(row)
            ratios = [f"{each.compiled / each.planned:.3f}" for each in figures]
            print(f"{row}: {label}, {', '.join(ratios)}", flush=True)
            yield str(row), label, *ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="rows with this in their name")
    columns = ("decoder", "plan", ">memory", ">received", ">HBM traffic")
    rows = tuple(lines(parser.parse_args().only))
    print(as_text([Table("compiled / planned, per chip", columns, rows)]))


if __name__ == "__main__":
    main()
