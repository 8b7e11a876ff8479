"""Trains the decoder of model.py, in ten to twenty minutes on two cores.

    python examples/tiny/train.py

First with as many key-value heads as query heads; then these are merged to one, and the model is
uptrained for 5 % of the steps on the same schedule, as in "GQA: Training Generalized Multi-Query
Transformer Models from Multi-Head Checkpoints" (arXiv:2305.13245).

    python examples/tiny/train.py "normalize, recognize, prune{d_ff=192}"

Uptrains the trained model, as these passes rewrite it, to predict what it predicted before, for as
many steps. The configuration "distilled" has its parameters, which the same passes rewrite.
"""

import math
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import model
import numpy as np
from jax import Array
from model import CONFIGS, Config
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from rewrite import distill

Loss = Callable[[Any, Array], Array]  # of parameters and windows i32[B,T+1]
STEPS, UPTRAINING_STEPS, SEED, PEAK = 2000, 100, 0, 3e-3
CONTEXT, BYTES_PER_STEP = 256, 1024
SHORT = 0.8  # of the steps see half the context, since attention takes most of the time
EVALUATED = 64  # sequences of the held-out text


def rate(step: Array, steps: int) -> Array:
    """A linear warm-up over a twentieth of the steps, then half a cosine down to a tenth."""
    warm_up = steps // 20
    done = jnp.clip((step - warm_up) / (steps - warm_up), 0, 1)
    return PEAK * jnp.minimum(0.55 + 0.45 * jnp.cos(math.pi * done), (step + 1) / warm_up)


def loss(config: Config, params: Any, windows: Array) -> Array:
    """Mean nats per byte of windows i32[B,T+1]."""
    tokens, targets = windows[:, :-1], windows[:, 1:]
    logits, _ = model.prefill(config, params, model.init_cache(config, *tokens.shape), tokens)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1).mean()


def distillation(config: Config, originals: Any, passes: str) -> Loss:
    """Mean nats per byte that the model is from what it was with its original parameters, once
    some passes have rewritten it."""
    difference = distill(partial(model.prefill, config), passes)

    def loss(params: Any, windows: Array) -> Array:
        tokens = windows[:, :-1]
        return difference(params, originals, model.init_cache(config, *tokens.shape), tokens)

    return loss


def train_step(
    loss: Loss, steps: int, params: Any, moments: Any, step: Array, windows: Array
) -> tuple[Any, Any, Array]:
    """One step of Adam (arXiv:1412.6980), gradients clipped to a norm of one."""
    nats, grads = jax.value_and_grad(loss)(params, windows)
    norm = jnp.sqrt(sum(jnp.sum(each**2) for each in jax.tree.leaves(grads)))
    grads = jax.tree.map(lambda g: g / jnp.maximum(norm, 1.0), grads)
    mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, moments[0], grads)
    square = jax.tree.map(lambda v, g: 0.98 * v + 0.02 * g**2, moments[1], grads)
    size = rate(step, steps) * jnp.sqrt(1 - 0.98 ** (step + 1)) / (1 - 0.9 ** (step + 1))
    params = jax.tree.map(lambda p, m, v: p - size * m / (jnp.sqrt(v) + 1e-8), params, mean, square)
    return params, (mean, square), nats


def trained(loss: Loss, params: Any, steps: int, text: np.ndarray, doing: str) -> Any:
    """The parameters after so many steps over random pieces of the text."""
    step_of = jax.jit(partial(train_step, loss, steps), donate_argnums=(0, 1))
    moments = tuple(jax.tree.map(jnp.zeros_like, params) for _ in range(2))
    random = np.random.default_rng(SEED)
    shown = (doing, BarColumn(), "{task.completed} of {task.total}", TimeRemainingColumn())
    with Progress(*shown, TextColumn("{task.fields[bits]:.3f} bits per byte")) as progress:
        task = progress.add_task(doing, total=steps, bits=8.0)
        for number in range(steps):
            context = CONTEXT // 2 if number < SHORT * steps else CONTEXT
            starts = random.integers(len(text) - context, size=BYTES_PER_STEP // context)
            windows = text[starts[:, None] + np.arange(context + 1)]
            params, moments, nats = step_of(params, moments, jnp.int32(number), windows)
            if number % 10 == 0:
                progress.update(task, completed=number, bits=float(nats) / math.log(2))
        progress.update(task, completed=steps)
    return params


def bits_per_byte(loss: Loss, params: Any, text: np.ndarray) -> float:
    """By a loss, of sequences evenly spread over the text."""
    starts = np.linspace(0, len(text) - CONTEXT - 1, EVALUATED, dtype=int)
    windows = text[starts[:, None] + np.arange(CONTEXT + 1)]
    return float(jax.jit(loss)(params, windows)) / math.log(2)


def save(params: Any, path: Path) -> None:
    """In half precision, 2 bytes a parameter; whole or not at all."""
    leaves = jax.tree.leaves_with_path(params)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("wb") as file:
            np.savez(file, **{at[-1].key: np.asarray(leaf, np.float16) for at, leaf in leaves})
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def main(passes: str = "") -> None:
    read = partial(np.frombuffer, dtype=np.uint8)
    train, held_out = (read(model.text(each)).astype(np.int32) for each in (False, True))
    print(f"{len(train):,} bytes to train on, {len(held_out):,} held out")
    plans = (
        [("distilled", UPTRAINING_STEPS, "distilling")] if passes
        else [("mha", STEPS, "training"), ("mqa", UPTRAINING_STEPS, "uptraining")]
    )
    for name, steps, doing in plans:
        config, started = CONFIGS[name], time.perf_counter()
        params = (
            model.init_params(config, jax.random.key(SEED)) if name == "mha"
            else model.merged(model.trained_params(CONFIGS["mha"]), config.kv_heads)
        )
        nats = distillation(config, params, passes) if passes else partial(loss, config)
        before = bits_per_byte(nats, params, held_out)
        started_from = jax.tree.map(jnp.copy, params)  # steps give their parameters away
        save(trained(nats, started_from, steps, train, doing), model.FOLDER / config.checkpoint)
        after = bits_per_byte(nats, model.trained_params(config), held_out)
        print(
            f"{name}: {before:.3f} -> {after:.3f} bits per byte, held out, "
            f"in {time.perf_counter() - started:.0f} s"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
