"""Programs that no decoder is: passes keep what they compute, and do not fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import rewrite
from dialect.arrays.evaluate import evaluate
from dialect.naming.axes import infer_axes
from rewrite import Pipeline, opdef
from rewrite.errors import ShardwrightError
from rewrite.ir import Op

W, X = jnp.arange(9.0).reshape(3, 3) - 4, jnp.arange(6.0).reshape(2, 3) - 2
STACK = jnp.stack([W, W - 1])
KEY = jax.random.key(3)


def plain(array: Any) -> np.ndarray:
    array = jnp.asarray(array)
    is_key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(array) if is_key else array)


def after(passes: str, function: Callable[..., Any], *args: Any) -> rewrite.Program:
    """The program after these passes; it gives what the function does."""
    made = Pipeline.parse(passes).run(rewrite.trace(function, *args))
    for one, other in zip(jax.tree.leaves(made(*args)), jax.tree.leaves(function(*args))):
        assert jnp.shape(one) == jnp.shape(other)
        np.testing.assert_allclose(plain(one), plain(other), rtol=1e-4, atol=1e-5)
    return made


LOOPS: dict[str, tuple[Callable[..., Any], tuple]] = {
    "none": (lambda w, x: lax.scan(lambda c, a: (c @ w, a), x, jnp.zeros((0, 2))), (W, X)),
    "backwards": (lambda w, x: lax.scan(lambda c, a: (c @ a, c), x, w, reverse=True), (STACK, X)),
    "keys": (
        lambda w, k: lax.scan(
            lambda k, a: (jax.random.fold_in(k, 1), jax.random.key_data(k)), k, None, length=2
        ),
        (W, KEY),
    ),
    "keys out": (
        lambda w, k: lax.scan(lambda c, a: (c, jax.random.fold_in(k, a)), 0, jnp.arange(2)),
        (W, KEY),
    ),
    "numbers": (
        lambda w, x: (lax.scan(lambda c, a: ((c[0] + 1, 2.0), 3), (0, 1.0), w), x),
        (STACK, X),
    ),
    "nothing of its own": (lambda w, x: lax.scan(lambda c, a: (x, 1.0), x, w), (STACK, X)),
    "without elements": (
        lambda w, x: lax.scan(lambda c, a: (c * 2, c.sum()), x[:, :0], w),
        (STACK, X),
    ),
    "nested": (
        lambda w, x: lax.scan(
            lambda c, a: lax.scan(lambda d, b: (d @ b, d), c, a), x, jnp.stack([w, w])
        ),
        (STACK, X),
    ),
    "gradients": (
        lambda w, x: jax.grad(
            lambda w: lax.scan(lambda c, a: (jnp.tanh(c @ w), c.sum()), x, None, 2)[0].sum()
        )(w),
        (W, X),
    ),
}


@pytest.mark.parametrize("function, args", LOOPS.values(), ids=LOOPS)
def test_any_loop_is_written_out(function: Any, args: tuple) -> None:
    made = after("unroll", function, *args)
    assert any("written out" in note or "nothing" in note for note in made.history[0].notes)


EMPTY: dict[str, tuple[Callable[..., Any], tuple]] = {
    "reshaped": (lambda w, x: x.reshape(3, 2, 0).sum(1) + w[:, :0], (W, jnp.zeros((6, 0)))),
    "merged": (lambda w, x: (x @ w).reshape(0, 6).reshape(2, 0, 3), (W, jnp.zeros((2, 0, 3)))),
    "summed": (lambda w, x: w @ x @ x.T, (W, jnp.zeros((3, 0)))),
    "a state": (lambda w, c, t: (t @ w, c * 2), (W, jnp.zeros((0, 3)), X)),
    "a vector of the batch": (lambda w, c, t: (t @ w, c + 1), (W, jnp.zeros(0), X)),
}


MESH = "target cpu:8\nmesh x=2 y=4\n"


@pytest.mark.parametrize("passes", ["cache_layout", f"{MESH} pad", f"{MESH} plan, shard"])
@pytest.mark.parametrize("function, args", EMPTY.values(), ids=EMPTY)
def test_arrays_without_elements(function: Any, args: tuple, passes: str) -> None:
    after(passes, function, *args)


def test_loops_of_a_batch_end_by_themselves() -> None:
    after(
        "normalize",
        lambda w, x: jax.vmap(lambda r: lax.while_loop(lambda c: c.sum() < 9, jnp.exp2, r))(x),
        *(W, X + 2),
    )


# What a signature says of an axis.

SIGNED: dict[str, tuple[Callable[..., Any], tuple]] = {
    "shifted": (lambda x: lax.pad(x, 0.0, [(1, -1, 0), (0, 0, 0)]), (X,)),
    "longer": (lambda x: lax.pad(x, 0.0, [(0, 0, 0), (1, 1, 1)]), (X,)),
    "cut": (lambda x: lax.split(x, (1, 2), 1), (X,)),
    "beside nothing": (lambda x: jnp.concatenate([x, x[:, :0]], 1), (X,)),
    "held in place": (lambda x: lax.optimization_barrier((x, x[0])), (X,)),
    "running": (lambda x: jnp.cumsum(x, 1), (X,)),
    "by rows": (lambda x: x.at[:, jnp.array([2, 0])].set(x[:, :2]), (X,)),
    "mapped": (lambda x: jax.vmap(lambda t, i: t[i])(x, jnp.array([2, 1])), (X,)),
    "part": (lambda x: lax.dynamic_slice(x, (0, 1), (2, 2)), (X,)),
    "reversed": (lambda x: x[:, ::-1], (X,)),
}


@pytest.mark.parametrize("function, args", SIGNED.values(), ids=SIGNED)
def test_what_is_mapped_may_be_turned_round(
    function: Any, args: tuple, rng: np.random.Generator
) -> None:
    graph = rewrite.trace(lambda p, *given: function(*given), (), *args).graph
    for op in graph.ops:
        signature = opdef.signature(op)
        arrays = [np.asarray(rng.permutation(a.type.size), np.float32) for a in op.args]
        arrays = [a.reshape(b.type.shape) for a, b in zip(arrays, op.args)]
        if any(arg.type.dtype != "f32" for arg in op.args):
            arrays = evaluate(rewrite.ir.Graph(graph.inputs, op.args), args)
        for letter in signature.row_wise:
            found = results(op, [turned(*pair, letter) for pair in zip(arrays, signature.inputs)])
            wanted = results(op, arrays)
            for one, other, axes in zip(found, wanted, signature.outputs):
                np.testing.assert_array_equal(one, turned(other, axes, letter))


def results(op: Op, arrays: list[Any]) -> list[np.ndarray]:
    made = opdef.lookup(op.name).reference(*arrays, **dict(op.attrs))
    return list(map(np.asarray, made if isinstance(made, list) else [made]))


def turned(array: Any, axes: Any, letter: str) -> np.ndarray:
    back = tuple(slice(None, None, -1 if axis == (letter,) else 1) for axis in axes)
    return np.asarray(array)[back] if axes else np.asarray(array)


def test_a_projection_may_be_cut_into_a_part_of_nothing() -> None:
    def step(w: Any, x: Any) -> Any:
        made = x @ w
        return made[:, :0] * 2, made[:, :2] * 3

    after("normalize, recognize", step, W, X)


def test_axes_of_unlike_parts_are_not_the_same() -> None:
    program = rewrite.trace(lambda w, x: lax.split(x, (4, 2), 1), W, jnp.ones((2, 6)))
    axes = infer_axes(program)
    four, two = (axes.at(value)[1] for value in program.graph.outputs)
    assert not four.parts and two.size == 2


def test_arrays_of_keys_are_not_padded() -> None:
    keys = jax.random.split(KEY, 2)
    program = rewrite.trace(lambda keys, x: (keys, x), {"embed": keys}, X)
    with pytest.raises(ShardwrightError, match="an array of random keys has it"):
        Pipeline.parse(f"{MESH} pad{{vocab=12}}").run(program)


WEAK: dict[str, tuple[str, Callable[..., Any]]] = {
    "unroll": (
        "unroll",
        lambda x: lax.scan(lambda c, a: (c, jnp.where(a > 0, 1.0, 0.5)), 0, x)[1],
    ),
    "rules": ('rules{file="examples/own.rules"}', lambda x: jnp.maximum(x, 0.0)),
}


@pytest.mark.parametrize("passes, function", WEAK.values(), ids=WEAK)
def test_results_stay_as_weakly_typed(passes: str, function: Callable[..., Any]) -> None:
    program = rewrite.trace(lambda p, x: function(x), (), X)
    made = Pipeline.parse(passes).run(program)
    assert [v.type for v in made.graph.outputs] == [v.type for v in program.graph.outputs]


@pytest.mark.parametrize("passes", ["pad{vocab=12}", "roll", "retarget"])
def test_staged_programs_whose_states_are_stacked(passes: str) -> None:
    """The step has fewer outputs than the user: four caches are one."""

    def step(params: Any, caches: Any, tokens: Any) -> Any:
        x = params["embed"][tokens]
        made = []
        for w, cache in zip(params["layers"], caches):
            made.append(cache + x)
            x = jnp.tanh((x + made[-1]) @ w)
        return x @ params["embed"].T, made

    params = {"embed": jnp.arange(33.0).reshape(11, 3) / 33, "layers": [W, W - 1, W + 1, W * 2]}
    args = (params, [X, X + 1, X + 2, X + 3], jnp.array([1, 10]))
    program = rewrite.trace(step, *args, params=0, state=1)
    staged = Pipeline.parse("normalize, recognize, roll, stage").run(program)
    assert len(staged.graph.outputs) < len(staged.outputs)
    made = Pipeline.parse(f"{MESH} {passes}").run(staged)
    for one, other in zip(jax.tree.leaves(made(*args)), jax.tree.leaves(step(*args))):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_state_that_leaves_turned_round_is_staged() -> None:
    """What enters and what leaves are the two ends of one transposition."""
    state = jnp.arange(4).reshape(2, 2)
    program = rewrite.trace(lambda p, s, x: (x, s.T), (), state, X, state=1)
    made = Pipeline.parse("stage").run(program)((), state, X)
    np.testing.assert_array_equal(made[1], state.T)


def test_a_product_of_no_rows_keeps_its_axes() -> None:
    def step(w: Any, x: Any) -> Any:
        return jnp.dot(jnp.repeat(x, 0, 1), w[:0])

    after("normalize, recognize", step, W, X)


def test_three_products_added_to_the_stream_are_added_up_once() -> None:
    """A sum of two that leave partial sums is no partial sum of a third."""

    def step(params: Any, x: Any) -> Any:
        a, b, c = (jnp.tanh(x @ w) @ w.T for w in params)
        return ((x + a) + b) + c

    params, x = [jnp.ones((8, 16)) / each for each in (9, 7, 5)], jnp.ones((2, 4, 8))
    program = rewrite.trace(step, params, x, axes={"params/*": "d f", "x": "b t d"})
    made = Pipeline.parse(f"{MESH} normalize, recognize, plan, shard").run(program)
    np.testing.assert_allclose(made(params, x), step(params, x), rtol=1e-5)
