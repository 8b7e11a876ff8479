"""Hugging Face's PyTorch decoders, traced by torchax: from shapes to an executable for a TPU slice.

    pip install "shardwright[tpu,pytorch]"
    python benchmarks/pytorch.py [llama qwen2 ..]

bfloat16, a decode step of 64 sequences at a context of 2,048, layers written out one by one, as the
classes have them: the plan, and memory, received bytes and HBM traffic, compiled / planned. The
sizes are the defaults of the configurations, but for a Llama, which is Llama-3-8B. Nothing is
allocated.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import torch
import torchax
from torchax.interop import JittableModule
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, StaticCache

from dialect.compiled.compiling import Compilable, compiled
from dialect.front.api import DEFAULT_PIPELINE, resolve
from dialect.reports.beside_plan import beside_plan, differences
from rewrite import Pipeline, trace

ROWS, CONTEXT = 64, 2048
LLAMA = dict(vocab_size=128256, intermediate_size=14336, num_key_value_heads=8)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("v5e:2x4", LLAMA),
    "qwen2": ("v5e:4x4", {}),
    "phi3": ("v5e:4x4", {}),
    "gpt_neox": ("v5e:4x8", {}),
}
DTYPES = {torch.bfloat16: jnp.bfloat16, torch.float32: jnp.float32}


def shapes(arrays: Any) -> dict[str, Any]:
    return {k: jax.ShapeDtypeStruct(tuple(x.shape), DTYPES[x.dtype]) for k, x in arrays.items()}


def decoder(name: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The decode step of an architecture, and the shapes of its arguments."""
    config = CONFIG_MAPPING[name](**CASES[name][1], attn_implementation="sdpa")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    module, env = JittableModule(model), torchax.default_env()

    def step(params: Any, cache: Any, tokens: Any) -> Any:
        given = params, cache["layers"], tokens[:, None], cache["at"][None]
        params, layers, ids, at = env.j2t_iso(given)
        held = StaticCache(config, max_cache_len=CONTEXT)
        how = dict(cache_position=at, past_key_values=held, return_dict=False)
        with env:
            for layer, (layer.keys, layer.values) in zip(held.layers, layers):
                layer.is_initialized = True
            weights, buffers = params["weights"], params["buffers"]
            logits, *_ = module.functional_call("forward", weights, buffers, ids, **how)
            layers = [(layer.keys, layer.values) for layer in held.layers]
        logits, layers = env.t2j_iso((logits, layers))
        return logits[:, 0], {"layers": layers, "at": cache["at"] + 1}

    heads = config.num_attention_heads
    kept = getattr(config, "num_key_value_heads", heads), CONTEXT, config.hidden_size // heads
    one = jax.ShapeDtypeStruct((ROWS, *kept), jnp.bfloat16)
    layers = [(one, one)] * config.num_hidden_layers
    params = {"weights": shapes(module.params), "buffers": shapes(module.buffers)}
    at, tokens = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((ROWS,), jnp.int32)
    return step, (params, {"layers": layers, "at": at}, tokens)


def measure(name: str) -> str:
    step, given = decoder(name)
    chips = CASES[name][0]
    mesh, target = resolve(chips, None, Pipeline(()))
    start = time.perf_counter()
    program = trace(step, *given, state=1)
    traced = time.perf_counter()
    rewritten = Pipeline.parse(DEFAULT_PIPELINE).run(program, target)
    executable, _ = compiled(Compilable(rewritten, mesh))
    done = time.perf_counter()
    rows = beside_plan(rewritten, executable, mesh)
    ratios = ", ".join(f"{row.what} {row.compiled / row.planned:.3f}" for row in rows)
    took = f"traced in {traced - start:.1f} s, rewritten and compiled in {done - traced:.1f}"
    how = f"{name}: {program.graph.op_count} ops, {took}; {rewritten.plan.label} on {chips}"
    return "\n    ".join((how, f"compiled / planned: {ratios}", *differences(rows)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=list(CASES), metavar="architecture")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in CASES]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(CASES)}")
    for name in options.names:
        print(measure(name), flush=True)


if __name__ == "__main__":
    main()
