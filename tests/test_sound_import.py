"""Programs that import, export or their text once got wrong; most from JAX's own tests."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas

from dialect.arrays import primitives
from dialect.arrays.evaluate import evaluate
from dialect.checked.compared import difference
from dialect.jaxprs import framework  # noqa: F401  (define the ops)
from dialect.jaxprs.jaxpr import trace_graph
from dialect.normal.normal_form import normal_form
from dialect.ops import control  # noqa: F401  (define the ops)
from rewrite import opdef
from rewrite.errors import TraceError


def test_a_type_inferred_without_64_bits_is_another_one_with_them() -> None:
    with jax.enable_x64(True):
        graph = trace_graph(lambda x: [jnp.exp(x)], jnp.ones(3))
    assert opdef.infer(graph.outputs[0].op)[0].dtype == "f32"  # there is no f64 here
    with jax.enable_x64(True):
        assert opdef.infer(graph.outputs[0].op)[0].dtype == "f64"


def exported(function, *args):
    """What the function gives once it is imported and exported."""
    return evaluate(trace_graph(lambda *a: jax.tree.leaves(function(*a)), *args), list(args))


def test_complex_constants_keep_the_signs_of_their_zeros() -> None:
    def function(x):
        return x * np.complex64(complex(0.0, 0.0)), x * np.complex64(complex(-0.0, 0.0))

    x = jnp.array([1 + 1j, -1 - 1j])
    assert difference(function(x), exported(function, x), "bits") is None


def test_a_loop_under_vmap_stops_row_by_row() -> None:
    def doubled(times):
        return lax.while_loop(lambda s: s[1] < times, lambda s: (s[0] * 2, s[1] + 1), (1.0, 0))

    values, counts = exported(jax.vmap(doubled), jnp.array([3, 0, 1]))
    assert values.tolist() == [8.0, 1.0, 2.0] and counts.tolist() == [3, 0, 1]


def test_a_scatter_that_applies_a_function_is_no_write() -> None:
    x, at = jnp.arange(4.0), jnp.array([1, 2])
    graph = trace_graph(lambda x, at: [x.at[at].apply(lambda y: y * 10)], x, at)
    assert [op.name for op in graph.ops if "scatter" in op.name] == ["scatter-apply"]
    assert evaluate(normal_form(graph), [x, at])[0].tolist() == [0.0, 10.0, 20.0, 3.0]


def test_a_large_constant_of_keys_is_carried() -> None:
    keys = jax.random.split(jax.random.key(0), 140_000)
    (words,) = exported(lambda i: jax.random.key_data(keys[i]), jnp.int32(7))
    assert words.tolist() == jax.random.key_data(keys[7]).tolist()


def test_what_a_program_cannot_carry_is_refused_at_the_door() -> None:
    def drawn(key):
        with jax.threefry_partitionable(False):
            return jax.random.bits(key, (3,))

    for function, argument, why in (
        (lambda x: lax.rng_uniform(0.0, x, (3,)), 1.0, "hides"),
        (jax.grad(lambda i: i * 2.0, allow_int=True), 2, "no array of numbers"),
        (drawn, jax.random.key(0), "threefry_partitionable"),
    ):
        with pytest.raises(TraceError, match=why):
            exported(function, argument)


def test_a_result_that_is_a_constant_is_an_array() -> None:
    (result,) = exported(lambda x: 0.5, 1.0)
    assert result.dtype == np.float32 and result.weak_type


def test_what_an_op_need_not_say_is_known_whoever_asks_first() -> None:
    with jax.ensure_compile_time_eval():
        primitives._unsaid.cache_clear()
        assert primitives.unsaid("iota") == {"sharding": None}


def test_a_literal_that_is_no_number_is_refused() -> None:
    @jax.custom_gradient
    def rounded(x):
        return (x, x.astype("int32")), lambda g: jnp.ones_like(x)

    def loss(x):
        kept, _ = lax.stop_gradient(rounded(x))  # its integers have gradients of type float0
        return rounded(x)[0].sum() + kept.sum()

    with pytest.raises(TraceError, match="float0"):
        exported(jax.grad(loss), jnp.ones(3))


def test_only_the_branch_of_the_platform_is_lowered() -> None:
    def kernel(x, out):
        out[...] = x[...] * 2

    def function(x):
        on_tpu = pallas.pallas_call(kernel, out_shape=x)  # which a CPU has no lowering for
        return lax.platform_dependent(x, tpu=on_tpu, default=lambda x: x + 1)

    graph = trace_graph(lambda x: [function(x)], jnp.ones(2))
    assert jax.jit(lambda x: evaluate(graph, [x]))(jnp.ones(2))[0].tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    "platforms",
    [(), (None, None), (("cpu",), ("cpu",)), ((1,), None), (("gpu",), None), "ab"],
)
def test_platforms_of_another_number_or_twice_are_refused(platforms) -> None:
    graph = trace_graph(
        lambda x: [lax.platform_dependent(x, tpu=jnp.sin, default=jnp.cos)], jnp.ones(2)
    )
    op = graph.outputs[0].op
    with pytest.raises(ValueError, match="platform"):
        opdef.build("cond", *op.args, regions=op.regions, platforms=platforms)
