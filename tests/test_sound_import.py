"""Programs that import and export, or their text, once got wrong; most of them from JAX's own tests."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dialect.jaxpr import trace_graph
from rewrite import opdef


def test_a_type_inferred_without_64_bits_is_another_one_with_them() -> None:
    with jax.enable_x64(True):
        graph = trace_graph(lambda x: [jnp.exp(x)], jnp.ones(3))
    assert opdef.infer(graph.outputs[0].op)[0].dtype == "f32"  # there is no f64 here
    with jax.enable_x64(True):
        assert opdef.infer(graph.outputs[0].op)[0].dtype == "f64"
