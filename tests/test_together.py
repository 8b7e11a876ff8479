"""Rows that share their keys: attention reads these once for a group, and gives what it gave."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.arrays.dtypes import struct_of
from dialect.compiled.compiling import Compilable
from dialect.compiled.resolved import resolve
from dialect.engine.executables import packed_params
from dialect.ops.attend import attend
from dialect.serving.shapes import rows_alone
from dialect.token_rows.decoder import PASSES, Decoder
from dialect.token_rows.states import States
from examples import llama, palm
from rewrite import Pipeline
from tests.kit import assert_close

ROWS, CONTEXT, ALONE, SIZE, PAGE = 11, 16, 3, 4, 4
FIRST = np.array([0, 1, 2, 3, 3, 3, 3, 7, 7, 7, 7])  # the row whose keys a row reads


def drawn(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), "float32")


@pytest.mark.parametrize("blocks", [None, (ROWS, 8)])
@pytest.mark.parametrize("single", [ALONE, 0, ROWS])
def test_a_group_reads_the_keys_of_its_first_row(single: int, blocks: Any) -> None:
    rows = {ALONE: ROWS, 0: 8, ROWS: ROWS}[single]
    first = {ALONE: FIRST, 0: FIRST[3:] - 3, ROWS: np.arange(ROWS)}[single]
    query, keys, values = (
        drawn(rows, 2, 3, 8),
        drawn(rows, 2, CONTEXT, 8),
        drawn(rows, 2, CONTEXT, 5),
    )
    last, bias = jnp.arange(rows) % CONTEXT, drawn(2, CONTEXT)
    how = {
        "axes": "b g j k, b g s k, b g s v, b, g s -> g b j v",
        "given": "last bias",
        "blocks": blocks,
    }
    wanted = attend(query, keys[first], values[first], last, bias, **how)
    given = (query, keys, values, last, bias)
    assert_close(
        attend(*given, together=((single, 1), ((rows - single) // SIZE, SIZE)), **how),
        wanted,
        atol=1e-6,
    )


def test_rows_that_are_no_groups_are_refused() -> None:
    query, keys = drawn(ROWS, 8), drawn(ROWS, CONTEXT, 8)
    axes = "b k, b s k, b s v -> b v"
    with pytest.raises(ValueError, match="11 rows are not 2 groups of 1 and 2 groups of 4"):
        attend(query, keys, keys, axes=axes, together=((2, 1), (2, SIZE)))


@pytest.mark.parametrize("model", [llama, palm])
@pytest.mark.parametrize("mesh", ["cpu:1", "cpu:8"])
@pytest.mark.parametrize("quantize", ["", "quantize{weights=none, cache=int8}, "])
def test_tokens_of_a_prompt_are_together(model: Any, mesh: str, quantize: str) -> None:
    """A step with rows alone and in groups gives the logits and the pools of one that has every
    token by itself; rows without pages are padding."""
    config = model.CONFIGS["toy"]
    step, init = partial(model.decode_step, config), partial(model.init_cache, config)
    params = model.init_params(config, jax.random.key(0))
    states = States.of(step, params, partial(init, 1, CONTEXT), CONTEXT)
    decoder = Decoder(step, partial(init, context=CONTEXT), params, states)
    jax_mesh, target = resolve(mesh, None, Pipeline(()))
    passes = Pipeline.parse(PASSES.format(page=PAGE).replace("pad", f"{quantize}pad")).passes()
    make = partial(decoder.program, pages=20, passes=passes, target=target)
    table = np.arange(20).reshape(5, 4)[[0, 1, 2, 3, 3, 3, 3, 4, 4, 4, 4]]
    table[-1] = -1
    positions = np.array([5, 0, 12, 8, 9, 10, 11, 0, 1, 2, 0])
    tokens = np.arange(ROWS)

    def results(program: Any) -> Any:
        compilable = Compilable(program, jax_mesh)
        types = [struct_of(input_.type) for input_ in compilable.inputs("state")]
        pools = [(4 * drawn(*pool.shape)).astype(pool.dtype) for pool in types]
        args = [*states.tables, positions, tokens, table]
        packed = packed_params(program, jax_mesh, params)
        return jax.jit(compilable.function())(packed, pools, [], args)

    logits, *pools = results(make(((ALONE, 1), (2, SIZE))))
    wanted, *others = results(make(rows_alone(ROWS)))
    assert_close(logits[:-1], wanted[:-1], atol=1e-4)
    if not quantize:  # a bit of a sum can be a step of an integer
        assert_close(pools, others, atol=1e-4)
