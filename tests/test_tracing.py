"""Tracing: names, roles and pytrees of a user's function, and clear words where it cannot be."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rewrite
from rewrite import Program, trace
from rewrite.errors import TraceError
from rewrite.ir import Type
from tests.kit import assert_close, run
from tests.tiny import Case, arguments, expected, traced

W, X = jnp.ones((3, 5)), jnp.arange(6.0).reshape(2, 3)
CACHE = {"k": jnp.zeros((2, 4, 5)), "position": jnp.int32(1)}


def step(params: Any, cache: Any, x: jax.Array) -> tuple[jax.Array, Any]:
    out = x @ params["w"]
    keys = jax.lax.dynamic_update_slice(cache["k"], out[:, None], (0, cache["position"], 0))
    return out + keys.sum(1), {"k": keys, "position": cache["position"] + 1}


def roles(program: Program) -> dict[str, str]:
    return {each.name: each.role for each in program.inputs}


def updates(program: Program) -> dict[str, str | None]:
    """What each output updates, both by name."""
    names = [each.name for each in program.inputs]
    return {
        each.name: None if each.updates is None else names[each.updates] for each in program.outputs
    }


def line_of(function: Callable[..., Any], text: str) -> int:
    lines, start = inspect.getsourcelines(function)
    return start + next(i for i, line in enumerate(lines) if text in line)


# Roles and state.


def test_names_roles_and_types() -> None:
    program = trace(step, {"w": W}, CACHE, X)
    assert program.name == "step"
    assert roles(program) == {
        "params/w": "param",
        "cache/k": "state",
        "cache/position": "state",
        "x": "arg",
    }
    assert updates(program) == {"0": None, "1/k": "cache/k", "1/position": "cache/position"}
    assert [str(each.type) for each in program.inputs] == [
        "f32[3,5]",
        "f32[2,4,5]",
        "i32[]",
        "f32[2,3]",
    ]


def test_examples_have_params_state_and_tokens() -> None:
    program = traced(Case("llama"))
    assert {name.split("/")[0]: role for name, role in roles(program).items()} == {
        "params": "param",
        "cache": "state",
        "tokens": "arg",
    }
    assert set(updates(program).values()) == {None, "cache/k", "cache/v", "cache/position"}


def test_tracing_asks_for_shapes_only() -> None:
    structs = jax.eval_shape(lambda *args: args, {"w": W}, CACHE, X)
    assert trace(step, *structs).graph == trace(step, {"w": W}, CACHE, X).graph


def test_numpy_arrays_and_scalars_are_arguments() -> None:
    program = trace(lambda p, x, s: p * x * s, np.float32(2), np.ones(3, np.float32), 3.0)
    assert [str(each.type) for each in program.inputs] == ["f32[]", "f32[3]", "f32[]~"]
    np.testing.assert_array_equal(program(np.float32(2), np.ones(3, np.float32), 3.0), [6, 6, 6])


def test_program_is_the_function() -> None:
    case = Case("llama")
    assert_close(run(traced(case), *arguments(case)), expected(case), rtol=0)


def test_program_refuses_another_structure() -> None:
    with pytest.raises(TraceError, match="the arguments have the structure"):
        traced(Case("llama"))({}, {}, X)


def test_state_that_is_the_whole_result() -> None:
    program = trace(lambda p, cache: {"k": cache["k"] + p}, 1.0, {"k": X})
    assert updates(program) == {"k": "cache/k"}
    assert roles(program)["cache/k"] == "state"


def test_state_in_a_dict_of_results() -> None:
    program = trace(
        lambda p, cache, x: {"out": x @ p, "cache": jax.tree.map(lambda v: v + 1, cache)},
        W,
        CACHE,
        X,
    )
    assert updates(program) == {
        "cache/k": "cache/k",
        "cache/position": "cache/position",
        "out": None,
    }


def test_tokens_that_come_back_are_no_state() -> None:
    program = trace(lambda p, tokens: (tokens + 1) % 5, 1.0, jnp.zeros(4, jnp.int32))
    assert roles(program) == {"p": "param", "tokens": "arg"}


def test_a_result_that_does_not_depend_is_no_update() -> None:
    program = trace(lambda p, x, y: p * y, W, W + 1, W)
    assert roles(program) == {"p": "param", "x": "arg", "y": "state"}


def test_params_are_never_state() -> None:
    program = trace(lambda p, x: p * x.sum(), W, X)
    assert roles(program) == {"p": "param", "x": "arg"}


def test_two_states() -> None:
    def two(params: Any, one: Any, other: Any, x: Any) -> Any:
        return x.sum() * params, {"a": one["a"] + 1}, {"b": other["b"] + x.sum()}

    program = trace(two, 2.0, {"a": X}, {"b": X}, W)
    assert updates(program) == {"0": None, "1/a": "one/a", "2/b": "other/b"}


def test_named_state() -> None:
    def two(params: Any, one: jax.Array, other: jax.Array) -> Any:
        return one + 1, other + one

    by_name = trace(two, 2.0, W, W, state="other")
    assert roles(by_name) == {"params": "param", "one": "arg", "other": "state"}
    assert trace(two, 2.0, W, W, state=2) == by_name
    both = trace(two, 2.0, W, W, state=["one", "other"])
    assert updates(both) == {"0": "one", "1": "other"}


def test_named_state_that_is_one_array() -> None:
    """It comes back as the result of its own type, wherever that stands."""

    def step(params: Any, cache: jax.Array, x: jax.Array) -> Any:
        return x @ params, cache + 1

    program = trace(step, W, jnp.zeros((4, 3)), X, state="cache")
    assert updates(program) == {"0": None, "1": "cache"}


def test_named_state_may_be_tokens() -> None:
    program = trace(lambda p, tokens: tokens + 1, 1.0, jnp.zeros(4, jnp.int32), state="tokens")
    assert roles(program)["tokens"] == "state"


def test_params_by_name_and_number() -> None:
    def late(x: jax.Array, weights: jax.Array) -> jax.Array:
        return x @ weights

    assert roles(trace(late, X, W, params="weights")) == {"x": "arg", "weights": "param"}
    assert roles(trace(late, X, W, params=1)) == {"x": "arg", "weights": "param"}
    assert roles(trace(late, X, W, params=-1)) == {"x": "arg", "weights": "param"}


# Pytrees and callables of every kind.


class Cache(NamedTuple):
    keys: jax.Array
    position: jax.Array


@functools.partial(jax.tree_util.register_dataclass, data_fields=["w", "b"], meta_fields=["act"])
@dataclass(frozen=True)
class Layer:
    w: jax.Array
    b: jax.Array
    act: str = "tanh"


def test_named_tuples_and_dataclasses_pass_through() -> None:
    def typed(params: list[Layer], cache: Cache, x: jax.Array) -> tuple[jax.Array, Cache]:
        for layer in params:
            x = getattr(jnp, layer.act)(x @ layer.w + layer.b)
        return x.sum(1), Cache(cache.keys + x, cache.position + 1)

    square = jnp.eye(3)
    args = [Layer(square, W[:, 0]), Layer(square, W[:, 1], "sin")], Cache(X, jnp.int32(0)), X
    program = trace(typed, *args)
    assert roles(program) == {
        "params/0/w": "param",
        "params/0/b": "param",
        "params/1/w": "param",
        "params/1/b": "param",
        "cache/keys": "state",
        "cache/position": "state",
        "x": "arg",
    }
    found, wanted = program(*args), typed(*args)
    assert isinstance(found[1], Cache)
    assert_close(found, wanted)


def test_none_and_empty_containers_pass_through() -> None:
    def sparse(params: Any, cache: Any) -> Any:
        return {"none": None, "empty": [], "out": params["w"] * 2}, cache

    args = {"w": W, "b": None, "l": ()}, {}
    program = trace(sparse, *args)
    assert roles(program) == {"params/w": "param"}
    assert_close(program(*args), sparse(*args))


def test_partial_keeps_name_and_arguments() -> None:
    def scaled(factor: float, params: Any, cache: Any, x: jax.Array) -> Any:
        return step(params, cache, x * factor)

    program = trace(functools.partial(scaled, 2.0), {"w": W}, CACHE, X)
    assert program.name == "scaled"
    assert list(roles(program)) == ["params/w", "cache/k", "cache/position", "x"]
    assert_close(program({"w": W}, CACHE, X), step({"w": W}, CACHE, X * 2))


def test_partial_of_a_keyword() -> None:
    def scaled(params: Any, x: jax.Array, *, factor: float) -> Any:
        return x @ params * factor

    program = trace(functools.partial(scaled, factor=3.0), W, X)
    assert (program.name, list(roles(program))) == ("scaled", ["params", "x"])
    assert_close(program(W, X), X @ W * 3)


def test_jitted_lambda_and_method() -> None:
    class Model:
        def step(self, params: Any, x: jax.Array) -> jax.Array:
            return x @ params

        def __call__(self, params: Any, x: jax.Array) -> jax.Array:
            return x @ params

    graphs = [
        trace(function, W, X).graph
        for function in (Model().step, Model(), jax.jit(Model().step), lambda p, x: x @ p)
    ]
    assert all(graph == graphs[0] for graph in graphs)
    assert trace(Model().step, W, X).name == "step"
    assert trace(lambda p, x: x @ p, W, X).name == "lambda"


def test_positional_rest() -> None:
    program = trace(lambda params, *rest: rest[0] @ params * rest[1].sum(), W, X, X)
    assert list(roles(program)) == ["params", "arg1", "arg2"]


def test_static_arguments() -> None:
    def powered(params: Any, count: int, kind: str, x: jax.Array) -> jax.Array:
        for _ in range(count):
            x = getattr(jnp, kind)(x @ params)
        return x

    square = jnp.eye(3)
    program = trace(powered, square, 3, "sin", X, static_argnums=(1, 2))
    assert roles(program) == {"params": "param", "x": "state"}
    assert [op.name for op in program.graph.ops].count("sin") == 3
    assert_close(program(square, X), powered(square, 3, "sin", X))


def test_static_argument_before_params() -> None:
    def configured(count: int, params: Any, cache: Any) -> Any:
        return {"k": cache["k"] * count + params}

    program = trace(configured, 3, W, {"k": W}, params="params", state="cache", static_argnums=(0,))
    assert roles(program) == {"params": "param", "cache/k": "state"}
    assert trace(configured, 3, W, {"k": W}, params=1, static_argnums=(0,)) == program


def test_default_params_behind_a_static_argument() -> None:
    """Without `params` they are the first argument with arrays; a static one can be none."""
    program = trace(lambda config, weights: weights * config, 3, W, static_argnums=(0,))
    assert roles(program) == {"weights": "param"}
    with pytest.raises(TraceError, match="params=0 is static"):
        trace(lambda config, weights: weights * config, 3, W, static_argnums=(0,), params=0)


# Mistakes.


def failed(*args: Any, **options: Any) -> TraceError:
    with pytest.raises(TraceError) as caught:
        trace(*args, **options)
    return caught.value


def test_params_not_found() -> None:
    error = failed(step, {"w": W}, CACHE, X, params="param")
    assert error.message == (
        "params='param' is no argument of the function, which has params, cache, x"
    )
    assert error.hint == "did you mean params?"
    error = failed(step, {"w": W}, CACHE, X, params=3)
    assert error.message.startswith("params=3 is no argument of the function")


def test_a_function_of_nothing_is_told_to_have_parameters() -> None:
    error = failed(lambda: W)
    assert error.message == "the function is given no argument, and its parameters are one"
    assert error.hint == "a step is traced as trace(step, params, cache, tokens)"


def test_state_not_found() -> None:
    assert failed(step, {"w": W}, CACHE, X, state="cahce").hint == "did you mean cache?"


def test_state_that_does_not_come_back() -> None:
    error = failed(lambda p, cache: p * 2, W, {"k": X}, state="cache")
    assert error.message.startswith("state 'cache' does not come back: no part of the result")
    assert "return the updated state" in error.hint


def test_state_whose_shape_differs() -> None:
    def grow(params: Any, cache: Any) -> Any:
        return {"k": jnp.concatenate([cache["k"], params[:, :3]])}

    error = failed(grow, W, {"k": X}, state="cache")
    assert error.message == ("state 'cache/k' goes in as f32[2,3] and comes back as f32[5,3]")
    assert error.where.startswith(f"{__file__}:{line_of(grow, 'concatenate')} ")


def test_state_whose_dtype_differs() -> None:
    def widen(params: Any, cache: Any) -> Any:
        return {"k": cache["k"] + params[:2, :3]}

    error = failed(widen, W, {"k": X.astype("bfloat16")}, state="cache")
    assert "goes in as bf16[2,3] and comes back as f32[2,3]" in error.message
    assert f"{__file__}:" in error.where


def test_branch_on_a_value() -> None:
    def branching(params: Any, x: jax.Array) -> jax.Array:
        if x.sum() > 0:
            return x
        return x @ params

    error = failed(branching, W, X)
    assert error.message.startswith("branching cannot be traced: TracerBoolConversionError")
    assert "while tracing the function branching at" in error.message  # JAX's text, in full
    assert "depends on the value of the argument x" in error.message
    assert error.where == f"{__file__}:{line_of(branching, 'if x.sum()')} (branching)"
    assert error.hint.startswith("it must be a pure function of arrays, as jax.jit asks; ")
    assert "static_argnames" in error.hint


def test_value_as_a_number() -> None:
    def indexing(params: Any, x: jax.Array) -> jax.Array:
        return [1, 2, 3][int(x[0, 0])] * params

    assert failed(indexing, W, X).where.startswith(f"{__file__}:{line_of(indexing, 'int(x')} ")


def test_shapes_that_do_not_fit() -> None:
    def product(params: Any, x: jax.Array) -> jax.Array:
        return x @ params

    error = failed(product, jnp.ones((4, 4)), X)
    assert "product cannot be traced: TypeError" in error.message
    assert error.hint == "check what it was given: params f32[4,4], x f32[2,3]"
    assert error.where.startswith(f"{__file__}:{line_of(product, 'x @ params')} ")


def test_an_error_of_the_function_itself() -> None:
    def broken(params: Any, x: jax.Array) -> jax.Array:
        return params["missing"]

    error = failed(broken, {"w": W}, X)
    assert error.message == "broken cannot be traced: KeyError: 'missing'"
    assert error.hint == "known: w"
    assert error.where.startswith(f"{__file__}:{line_of(broken, 'missing')} ")


def test_no_function() -> None:
    assert failed(W, X).message.startswith("expected a function, got ")
    assert failed("step", X).message == "expected a function, got str 'step'"
    assert '@auto_shard(mesh="cpu:8")' in failed("step", X).hint


def test_no_array() -> None:
    error = failed(lambda p, x: p, {"w": W, "kind": "text"}, X)
    assert error.message == "p/kind is 'text', among arrays"


def test_result_that_is_no_array() -> None:
    def texted(params: Any) -> Any:
        return params, "text"

    error = failed(texted, W)
    assert error.message == "texted returns 'text', which is no array, as output 1"


def test_all_lines_of_what_was_raised_and_the_line_that_called_a_library() -> None:
    def refused(params: Any, x: jax.Array) -> jax.Array:
        raise ValueError("the first line\nthe second")

    def spelled(params: Any, x: jax.Array) -> jax.Array:
        return jnp.einsum("ab,ad->bd", params, x)

    error = failed(refused, W, X)
    assert error.message == "refused cannot be traced: ValueError: the first line\nthe second"
    where = failed(spelled, W, X).where
    assert where.startswith(f"{__file__}:{line_of(spelled, 'einsum')} ")


def test_a_near_key_is_named_and_a_dict_is_none_of_attributes() -> None:
    def keyed(params: Any) -> jax.Array:
        return params["layers"]["wqs"]

    def dotted(params: Any) -> jax.Array:
        return params.layers

    tree = {"layers": {"wq": W, "wk": W}}
    assert failed(keyed, tree).hint == "did you mean wq?"
    assert failed(dotted, tree).hint.endswith('this one is a dict: ["layers"]')


def test_an_array_that_leaked_out_of_another_trace() -> None:
    kept = []
    trace(lambda params: kept.append(params) or params, W)
    error = failed(lambda params: params + kept[0], W)
    assert error.message.startswith("the function uses an array, f32[3,5], of another function")
    assert "jax.checking_leaks()" in error.hint


def test_too_few_arguments() -> None:
    error = failed(step, {"w": W}, CACHE)
    assert error.message == "step: missing a required argument: 'x'"
    assert error.hint.startswith("it is called as step(params: ")


def test_side_effects_are_refused() -> None:
    def printing(params: Any, x: jax.Array) -> jax.Array:
        jax.debug.print("{}", x)
        return x @ params

    error = failed(printing, W, X)
    assert error.where.startswith(f"{__file__}:{line_of(printing, 'debug.print')} ")


def test_types_keep_what_jax_calls_weak() -> None:
    program = trace(lambda p, x: p * x, W, 2.0)
    assert program.inputs[1].type == Type("f32", (), weak=True)


def test_front_door() -> None:
    from dialect.user.tracing import trace as same

    assert rewrite.trace is same


def test_state_and_parameters_are_different_arguments() -> None:
    with pytest.raises(TraceError, match="cache is named as parameters and as state"):
        trace(lambda cache: (cache, cache), jnp.ones(3), state=0)


# Weights that are closed over.


def closed_over(weights: Any) -> Any:
    def step(cache: Any, x: jax.Array) -> Any:
        y = x @ weights["up"]
        return y @ weights["down"], {"total": cache["total"] + y.sum(0)}

    return step


def test_weights_that_are_closed_over_are_refused_by_name() -> None:
    """The cache was taken for the parameters, and nothing was quantised or sharded."""
    weights = {"up": jnp.ones((8, 16)), "down": jnp.ones((16, 8))}
    step = closed_over(weights)
    with pytest.raises(TraceError, match="the function closes over its weights") as error:
        trace(step, {"total": jnp.ones(16)}, jnp.ones((4, 8)))
    text = str(error.value)
    assert "f32[8,16], f32[16,8], 1.00 KiB of constants" in text
    assert "cache is taken for its parameters, and comes back" in text
    assert "test_tracing.py" in text and "step(params, cache, tokens)" in text


def test_large_weights_that_are_closed_over_are_refused_beside_other_parameters() -> None:
    weights = jnp.ones((512, 1024))
    with pytest.raises(TraceError, match="2.00 MiB of constants; norm is taken"):
        trace(lambda norm, x: x @ weights * norm, jnp.ones(1024), jnp.ones((4, 512)))


def test_small_tables_may_be_closed_over() -> None:
    table = jnp.ones((64, 8))
    program = trace(lambda w, i: (w @ table.T)[i], jnp.ones((16, 8)), jnp.zeros(3, "int32"))
    assert [each.role for each in program.inputs] == ["param", "arg"]
