"""A step under the settings of its caller, and where all that it is given is closed over."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from rewrite import ShardwrightError, auto_shard

PASSES = "normalize, plan{ffn=ws1d}, shard, stage, lower"
X = np.ones((8, 4), np.float32)


def step(params: Any, cache: Any, tokens: Any) -> Any:
    seen = jnp.where(jnp.arange(6) < 5, cache["sum"] + tokens @ params["w"], -jnp.inf)
    return jax.nn.softmax(seen), {"sum": cache["sum"] + 1}


def given() -> Any:
    return {"w": jnp.arange(24.0).reshape(4, 6)}, {"sum": jnp.ones((8, 6))}, X


_EXPECTED = np.asarray(jax.nn.softmax(np.where(np.arange(6) < 5, 1 + X @ given()[0]["w"], -np.inf)))


def is_expected(found: Any) -> None:
    np.testing.assert_allclose(found, np.broadcast_to(_EXPECTED, np.shape(found)), rtol=1e-6)


def sharded(function: Any = step, **options: Any) -> Any:
    return auto_shard(function, "cpu:8", pipeline=PASSES, **options)


def test_all_that_a_step_is_given_may_be_closed_over() -> None:
    """Once a step ran while it was traced then: parameters could not be packed, and the state was
    donated to that run."""
    served = sharded()
    params, cache, tokens = given()
    is_expected(jax.jit(lambda: served(params, cache, tokens)[0])())
    checked, (out, _) = checkify.checkify(served)(params, cache, tokens)
    assert checked.get() is None
    is_expected(out)
    packed, state = served.prepare(params, cache, tokens), served.adapt(cache)
    for _ in range(2):
        _, outs = jax.lax.scan(lambda n, _: (n, served(packed, state, X)[0]), 0, None, length=2)
        is_expected(outs)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_what_puts_arrays_on_devices_is_called_outside() -> None:
    served, (params, cache, tokens) = sharded(), given()
    served.prepare(params, cache, tokens)
    for called, inside in (
        ("prepare", lambda: jax.jit(served.prepare)(params, cache, tokens)),
        ("adapt", lambda: jax.jit(served.adapt)(cache)),
        ("restore", lambda: jax.jit(lambda: served.restore(cache))()),
    ):
        with pytest.raises(ShardwrightError, match=rf"step\.{called} is called inside") as error:
            inside()
        assert "call it outside" in error.value.hint


@pytest.mark.parametrize("group", [0, 1, 2], ids=["params", "state", "tokens"])
def test_arrays_on_a_device_that_the_mesh_has_not(group: int) -> None:
    arrays = list(given())
    arrays[group] = jax.device_put(arrays[group], jax.devices()[7])
    served = auto_shard(step, "cpu:2", pipeline=PASSES)
    is_expected(served(*arrays)[0])


def test_nan_and_transfers_are_looked_for_in_steps_alone() -> None:
    """A rewrite computes constants, -inf among them, and puts them on a device."""
    served, arrays = sharded(), given()
    with jax.debug_infs(True), jax.debug_nans(True):
        with jax.transfer_guard("disallow"):
            served.program(*arrays)
        is_expected(served(*arrays)[0])
    with (
        jax.debug_nans(True),
        pytest.raises(FloatingPointError, match=r"nan\) in output 0 of step"),
    ):
        served({"w": np.full((4, 6), np.nan, np.float32)}, *given()[1:])


def test_stricter_settings_are_asked_again() -> None:
    served, arrays = sharded(lambda params, cache, tokens: (tokens * jnp.arange(4), cache)), given()
    served.program(*arrays)
    with jax.numpy_dtype_promotion("strict"):
        with pytest.raises(ShardwrightError, match="TypePromotionError"):
            served.program(*arrays)


@pytest.mark.parametrize(
    "setting",
    [
        partial(jax.default_matmul_precision, "highest"),
        partial(jax.enable_x64, True),
    ],
    ids=["matmul_precision", "x64"],
)
def test_another_setting_of_jax_is_another_program(setting: Any) -> None:
    def counted(params: Any, cache: Any, tokens: Any) -> Any:
        return tokens @ params["w"], {"sum": cache["sum"] + jnp.arange(6)}

    served, arrays = sharded(counted), given()
    before = str(served.program(*arrays))
    with ExitStack() as stack:
        stack.enter_context(setting())
        expected = jax.jit(counted).lower(*arrays)
        found = served.lower(*arrays)
    assert [str(leaf.dtype) for leaf in jax.tree.leaves(found.out_info)] == [
        str(leaf.dtype) for leaf in jax.tree.leaves(expected.out_info)
    ]
    assert found.as_text().count("HIGHEST") == expected.as_text().count("HIGHEST")
    assert str(served.program(*arrays)) == before


def test_what_a_jit_inside_has_as_static_is_named() -> None:
    inside = jax.jit(
        lambda params, cache, tokens, n: step(params, cache, n * tokens), static_argnums=3
    )
    with pytest.raises(ShardwrightError, match="Non-hashable static arguments") as error:
        sharded(inside)(*given(), 1)
    assert "static_argnums=" in error.value.hint
    is_expected(sharded(inside, static_argnums=3)(*given(), 1)[0])
