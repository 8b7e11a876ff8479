"""The example decoders at sizes that collide on purpose, traced and with numbers to run them on.

Every axis is 2, 4 or 16 long, so that nothing can tell one from another by its size.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rewrite
from rewrite.program import Program
from tests.kit import run

MODELS = ("llama", "palm", "gpt")
LAYERS, BATCH, HEADS, KV_HEADS, D_HEAD, LENGTH = 2, 2, 4, 2, 4, 4
D_MODEL = D_FF = VOCAB = CONTEXT = 16
_OWN = {"llama": {"kv_heads": KV_HEADS}, "palm": {}, "gpt": {"longest": CONTEXT}}


@dataclass(frozen=True)
class Case:
    """One example's step: decode (one token a sequence) or prefill, its layers scanned or not."""

    model: str
    prefill: bool = False
    unrolled: bool = False

    def __str__(self) -> str:
        step = "prefill" if self.prefill else "decode"
        return f"{self.model} {step} {'unrolled' if self.unrolled else 'scanned'}"

    @property
    def config(self) -> Any:
        sizes = {"layers": LAYERS, "d_model": D_MODEL, "heads": HEADS, "d_head": D_HEAD}
        sizes |= {"d_ff": D_FF, "vocab": VOCAB, "dtype": "float32", **_OWN[self.model]}
        return self.module.Config(**sizes)

    @property
    def module(self) -> Any:
        return importlib.import_module(f"examples.{self.model}")

    @property
    def function(self) -> Any:
        step = self.module.prefill if self.prefill else self.module.decode_step
        return partial(step, self.config)


CASES = tuple(
    Case(model, prefill, unrolled)
    for model in MODELS
    for prefill in (False, True)
    for unrolled in (False, True)
)


@cache
def arguments(case: Case) -> tuple[Any, Any, jax.Array]:
    """(params, a cache that holds three tokens, tokens)."""
    params = jax.eval_shape(
        partial(case.module.init_params, case.config, unrolled=case.unrolled), jax.random.key(0)
    )
    state = case.module.init_cache(case.config, BATCH, CONTEXT, unrolled=case.unrolled)
    random = np.random.default_rng(5)

    def draw(path: Any, struct: Any) -> jax.Array:
        numbers = random.standard_normal(struct.shape) * D_MODEL**-0.5
        return jnp.asarray(numbers + path[-1].key.endswith("norm"), struct.dtype)

    tokens = random.integers(0, VOCAB, (BATCH, LENGTH) if case.prefill else (BATCH,))
    state = jax.tree.map(lambda x: jnp.asarray(random.standard_normal(x.shape), x.dtype), state)
    state["position"] = jnp.int32(3)
    return jax.tree.map_with_path(draw, params), state, jnp.asarray(tokens, jnp.int32)


@cache
def traced(case: Case) -> Program:
    return rewrite.trace(case.function, *arguments(case))


@cache
def expected(case: Case) -> Any:
    """What the function itself returns."""
    return run(case.function, *arguments(case))
