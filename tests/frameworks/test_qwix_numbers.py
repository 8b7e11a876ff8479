"""Our errors beside Qwix's: two implementations of the same quantisation of the same weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

import rewrite
from dialect.reports.quant_report import errors
from rewrite.pipeline import Pipeline

D, F = 256, 96
RANDOM = np.random.default_rng(7)
# Columns of very different size, some numbers far out: what scales per channel and group are for.
WEIGHTS = jnp.asarray(
    RANDOM.standard_t(4, (D, F)) * np.exp(RANDOM.standard_normal(F)) * D**-0.5, jnp.float32
)
X = jnp.asarray(RANDOM.standard_t(4, (16, D)), jnp.float32)


def rms(error: jax.Array) -> float:
    return float(np.sqrt(np.mean(np.square(error, dtype=np.float64))))


def quantised(options: str) -> rewrite.Program:
    program = rewrite.trace(lambda p, x: x @ p, WEIGHTS, X)
    return Pipeline.parse(f"normalize, quantize{{{options}, vocab=true}}").run(program)


@pytest.mark.parametrize("group", [None, 64, 128])
@pytest.mark.parametrize(
    "form, dtype",
    [("int8", jnp.int8), ("int4", jnp.int4), ("fp8", jnp.float8_e4m3fn)],
)
def test_weights_have_the_same_error(form: str, dtype: object, group: int | None) -> None:
    theirs = qwix.quantize(
        WEIGHTS, dtype, channelwise_axes=[1], tiled_axes={0: group} if group else None
    )
    wanted = rms(qwix.dequantize(theirs) - WEIGHTS)
    options = f"weights={form}" + (f", group={group}" if group else "")
    (found,) = errors(quantised(options), WEIGHTS)
    assert found.rms == pytest.approx(wanted, rel=0.05)
    assert found.form == f"{form}/{group or D}"


@pytest.mark.parametrize("group", [None, 64])
def test_products_of_integers_have_the_same_error(group: int | None) -> None:
    exact = np.asarray(X, np.float64) @ np.asarray(WEIGHTS, np.float64)
    tiled = {"tiled_axes": {0: group}} if group else {}
    weights = qwix.quantize(WEIGHTS, jnp.int8, channelwise_axes=[1], **tiled)
    wanted = rms(qwix.dot(qwix.quantize(X, jnp.int8, channelwise_axes=[0]), weights) - exact)
    options = "activations=int8" + (f", group={group}" if group else "")
    program = Pipeline.parse("stage, lower").run(quantised(options))
    assert rms(program(WEIGHTS, X) - exact) == pytest.approx(wanted, rel=0.05)
