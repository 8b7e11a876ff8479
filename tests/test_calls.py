"""How a step is called: by position and name, as a method, with configurations, without a TPU."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dialect.user.calls import frozen
from examples import llama
from rewrite import ShardwrightError, auto_shard, trace
from tests.kit import arrays_of

W, CACHE, X = jnp.arange(24.0).reshape(4, 6), {"sum": jnp.ones((8, 6))}, jnp.ones((8, 4))
PASSES = "normalize, plan, shard, stage, lower"
sharded = functools.partial(auto_shard, mesh="cpu:8", pipeline=PASSES)


def step(params: Any, cache: Any, tokens: Any) -> Any:
    total = cache["sum"] + tokens @ params["w"]
    return total * 2, {"sum": total}


PARAMS = {"w": W}
EXPECTED = np.asarray(step(PARAMS, CACHE, X)[0])


def fresh() -> Any:
    return jax.tree.map(jnp.copy, CACHE)


def is_expected(results: Any, times: float = 1.0) -> None:
    np.testing.assert_allclose(results[0], times * EXPECTED)


def test_arguments_by_name_only() -> None:
    def by_name(*, params: Any, cache: Any, tokens: Any) -> Any:
        return step(params, cache, tokens)

    def tokens_by_name(params: Any, cache: Any, *, tokens: Any) -> Any:
        return step(params, cache, tokens)

    def collected(params: Any, cache: Any, **others: Any) -> Any:
        return step(params, cache, others["tokens"])

    is_expected(sharded(by_name)(tokens=X, params=PARAMS, cache=fresh()))
    for function in (tokens_by_name, collected):
        served = sharded(function)
        is_expected(served(PARAMS, fresh(), tokens=X))
        assert [input_.name for input_ in served.program(PARAMS, CACHE, tokens=X).inputs] == [
            "params/w",
            "cache/sum",
            "tokens",
        ]
        packed = served.prepare(PARAMS, CACHE, tokens=X)
        is_expected(served(packed, served.adapt(CACHE), tokens=X))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_arrays_on_a_mesh_of_one_device_are_moved_to_the_steps(kind: AxisType) -> None:
    one = jax.make_mesh((1,), ("a",), axis_types=(kind,), devices=jax.devices()[:1])
    with jax.set_mesh(one):
        arrays = jax.device_put((PARAMS, CACHE, X), NamedSharding(one, PartitionSpec("a")))
        is_expected(sharded(step, donate_state=False)(*arrays))


def test_an_argument_behind_one_that_is_left_out_is_not_lost() -> None:
    """It was: the call was cut at the first argument that was left out."""

    def scaled(params: Any, cache: Any, tokens: Any, bias: Any = 0.0, scale: Any = 1.0) -> Any:
        out, cache = step(params, cache, tokens)
        return out * scale + bias, cache

    served = sharded(scaled)
    is_expected(served(PARAMS, fresh(), X, scale=3.0), times=3.0)
    is_expected(served(PARAMS, fresh(), X))
    is_expected(served(tokens=X, cache=fresh(), params=PARAMS, scale=2.0), times=2.0)


def test_parameters_that_are_not_first() -> None:
    def late(tokens: Any, cache: Any, params: Any) -> Any:
        return step(params, cache, tokens)

    for params in ("params", 2, -1):
        served = sharded(late, params=params)
        for packed in (
            served.prepare(PARAMS, X, CACHE),
            served.prepare(PARAMS, X, cache=CACHE),
            served.prepare(tokens=X, cache=CACHE, params=PARAMS),
        ):
            assert packed.names == ("params/w",)
            is_expected(served(X, fresh(), packed))
    with pytest.raises(ShardwrightError, match="cannot be traced") as error:
        sharded(late, params="params").prepare(X, CACHE, PARAMS)
    assert "parameters come first here" in error.value.hint


def test_tokens_in_the_place_of_parameters_are_refused() -> None:
    def late(tokens: Any, cache: Any, params: Any) -> Any:
        return step(params, cache, params["embedding"][tokens])

    with pytest.raises(ShardwrightError, match="tokens, i32.8., would be the parameters") as error:
        sharded(late)(jnp.arange(8) % 4, fresh(), PARAMS | {"embedding": jnp.ones((9, 4))})
    assert error.value.hint.endswith("params= one of tokens, cache, params")


class Decoder:
    """A decoder whose step is a method, decorated in the ways that people do it."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    @auto_shard(mesh="cpu:8", pipeline=PASSES)
    def bare(self, params: Any, cache: Any, tokens: Any) -> Any:
        out, cache = step(params, cache, tokens)
        return out * self.scale, cache

    @functools.partial(
        auto_shard, mesh="cpu:8", pipeline=PASSES, static_argnums=0, params=1, state=2
    )
    def as_for_jit(self, params: Any, cache: Any, tokens: Any) -> Any:
        out, cache = step(params, cache, tokens)
        return out * self.scale, cache

    @staticmethod
    @auto_shard(mesh="cpu:8", pipeline=PASSES)
    def static(params: Any, cache: Any, tokens: Any) -> Any:
        return step(params, cache, tokens)


@pytest.mark.parametrize("name", ["bare", "as_for_jit"])
def test_methods(name: str) -> None:
    decoders = [Decoder(2.0), Decoder(3.0)]
    for decoder in decoders:
        served = getattr(decoder, name)
        assert served is getattr(decoder, name)
        is_expected(served(PARAMS, fresh(), X), times=decoder.scale)
        packed = served.prepare(PARAMS, CACHE, X)
        is_expected(served(packed, fresh(), tokens=X), times=decoder.scale)
    assert isinstance(getattr(Decoder, name), type(served))
    is_expected(decoders[0].static(PARAMS, fresh(), X))


@dataclasses.dataclass(frozen=True)
class Frozen:
    scale: int = 2


@dataclasses.dataclass
class Mutable:
    scale: int = 2


CONFIGURATIONS = {
    "frozen": Frozen(),
    "decoder": dataclasses.replace(llama.CONFIGS["toy"], layers=2),  # has a dtype, and no shape
    "mutable": Mutable(),
    "namespace": SimpleNamespace(scale=2, name="toy"),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configurations_are_static(name: str) -> None:
    config: Any = CONFIGURATIONS[name]

    def configured(config: Any, params: Any, cache: Any, tokens: Any) -> Any:
        out, cache = step(params, cache, tokens)
        return out * getattr(config, "scale", 2), cache

    served = sharded(configured)
    is_expected(served(config, PARAMS, fresh(), X), times=2)
    packed = served.prepare(config, PARAMS, CACHE, X)
    is_expected(served(config, packed, fresh(), X), times=2)
    if name in ("mutable", "namespace"):
        config.scale = 5  # seen, though it is the same object
        is_expected(served(config, packed, fresh(), X), times=5)
        config.scale = 2


def test_names_functions_and_dtypes_are_static_and_flags_where_named() -> None:
    def flagged(params: Any, cache: Any, tokens: Any, dtype: Any, kind: str, double: bool) -> Any:
        out, cache = step(params, cache, tokens)
        out = getattr(jnp, kind)(out).astype(dtype)
        return (out * 2 if double else out), cache

    served = sharded(flagged, static_argnames="double")
    results = served(PARAMS, fresh(), X, jnp.bfloat16, "negative", double=True)
    assert results[0].dtype == jnp.bfloat16
    is_expected(results, times=-2)
    is_expected(served(PARAMS, fresh(), X, jnp.float32, "negative", False), times=-1)


def test_keys_of_static_values_are_their_contents() -> None:
    one, other = {"a": [1, np.ones(2)]}, {"a": [1, np.zeros(2)]}
    assert frozen(one) == frozen({"a": [1, np.ones(2)]}) != frozen(other)
    assert frozen(1) != frozen(True) and frozen(1) != frozen(1.0)
    assert frozen(Mutable(3)) == frozen(Mutable(3)) != frozen(Mutable(4))


def test_a_text_among_arrays_is_named() -> None:
    with pytest.raises(ShardwrightError, match="params/kind is 'gelu', among arrays"):
        trace(step, {"w": W, "kind": "gelu"}, CACHE, X)


def test_the_line_of_an_error_is_none_of_the_standard_library() -> None:
    def step(params: Any, tokens: Any) -> Any:
        return tokens @ params["w"], json.dumps(tokens)

    with pytest.raises(ShardwrightError, match="is not JSON serializable") as error:
        trace(step, PARAMS, X)
    line = inspect.getsourcelines(step)[1] + 1
    assert error.value.where == f"{__file__}:{line} (step)"


def test_what_is_asked_without_arguments_is_of_the_last_call() -> None:
    served = sharded(step)
    with pytest.raises(ShardwrightError, match="not known before a call") as error:
        served.explain()
    assert error.value.where.endswith("(step)")
    is_expected(served(PARAMS, fresh(), X))
    assert served.program() == served.program(PARAMS, CACHE, X)
    assert served.explain() == served.explain(PARAMS, CACHE, X)
    assert served.ir(tokens=X, params=PARAMS, cache=CACHE) == served.ir()
    half = jax.tree.map(lambda leaf: leaf[:4], (CACHE, X))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), half)
    served.program(PARAMS, *shapes)
    assert served.program().step_inputs[-1].type.shape == (4, 4)


def test_other_arguments_than_the_function_takes() -> None:
    served = sharded(step)
    for args, named, message in (
        ((PARAMS, CACHE), {}, "step: missing a required argument: 'tokens'"),
        ((PARAMS, CACHE, X, X), {}, "step: too many positional arguments"),
        ((), {}, "step: missing a required argument: 'params'"),
        ((PARAMS, CACHE), {"token": X}, "step: no argument is called token"),
    ):
        with pytest.raises(ShardwrightError, match=message) as error:
            served(*args, **named)
        assert "step(params:" in error.value.hint


def test_other_parameters_than_the_first_call_had() -> None:
    served = sharded(step)
    is_expected(served(PARAMS, fresh(), X))
    with pytest.raises(ShardwrightError, match="has 1 parameters, 2 were given: they lack w") as e:
        served({"v": W, "bias": W}, fresh(), X)
    assert e.value.message.endswith("and have bias, v") and "another decoder" in e.value.hint


def test_the_executable_is_called_as_the_step_is() -> None:
    """Packed in int8, with a cache in int8 whose heads are first."""
    config = llama.CONFIGS["toy"]
    params, cache, tokens = arrays_of(llama, config, 8, 32)
    passes = (
        "normalize, recognize, carry_cache, cache_layout, quantize{weights=int8, cache=int8}, "
        "plan{ffn=ws1d}, shard, stage, lower"
    )
    served = auto_shard(functools.partial(llama.decode_step, config), "cpu:8", pipeline=passes)
    executable = served.lower(params, cache, tokens).compile()
    packed = served.prepare(params, cache, tokens)
    expected, _ = served(packed, served.adapt(cache), tokens)
    logits, state = executable(packed, served.adapt(cache), tokens=tokens)
    np.testing.assert_array_equal(logits, expected)
    np.testing.assert_array_equal(executable(params, cache, tokens)[0], expected)
    assert int(served.restore(executable(packed, state, tokens)[1])["position"]) == 2
    assert executable.memory_analysis().alias_size_in_bytes > 0
    with pytest.raises(ShardwrightError, match="compiled for arguments of other shapes"):
        executable(
            packed, jax.tree.map(lambda leaf: leaf[:, :4] if leaf.ndim else leaf, cache), tokens
        )


def test_a_step_for_a_tpu_says_that_there_is_none() -> None:
    served = auto_shard(step, "v5e:2x4", pipeline=PASSES)
    assert served.plan(PARAMS, CACHE, X).target == "v5e:2x4"
    for run in (served, served.prepare):
        with pytest.raises(ShardwrightError, match="there are no 8 TPU") as error:
            run(PARAMS, CACHE, X)
        assert 'auto_shard(step, "cpu:8")' in error.value.hint
