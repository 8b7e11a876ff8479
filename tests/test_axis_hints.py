"""What a user says of axes: it is checked at the door, and wins over what is inferred."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from dialect.naming.axes import infer_axes
from rewrite import Pipeline, Program, trace
from rewrite.errors import TraceError
from rewrite.program import Program as Traced

PARAMS = {"layers": [{"mix": jnp.ones((16, 24)), "out": jnp.ones((24, 16))} for _ in range(2)]}


def mixer(params: dict, x: jax.Array) -> jax.Array:
    """A block that nothing recognises."""
    for layer in params["layers"]:
        x = x + jnp.sin(x @ layer["mix"]) @ layer["out"]
    return x


def traced(**axes: str) -> Traced:
    hints = {path.replace("__", "/"): text for path, text in axes.items()}
    program = trace(mixer, PARAMS, jnp.ones((4, 2, 16)), axes=hints)
    return Pipeline.parse("normalize, recognize").run(program)


def shown(program: Traced) -> dict[str, str]:
    axes = infer_axes(program)
    return {
        each.name: axes.show(value)
        for value, each in zip(program.graph.inputs, program.step_inputs)
    }


def hinted(hints: dict[str, str]) -> dict[str, str]:
    program = trace(mixer, PARAMS, jnp.ones((4, 2, 16)), axes=hints)
    return shown(Pipeline.parse("normalize, recognize").run(program))


def test_a_hint_names_every_axis_that_is_the_same() -> None:
    found = hinted({"params/layers/0/mix": "d f", "x": "b t _"})
    assert found == {
        "params/layers/0/mix": "d_model d_ff",
        "params/layers/0/out": "d_ff d_model",
        "params/layers/1/mix": "d_model _",
        "params/layers/1/out": "_ d_model",
        "x": "batch time d_model",
    }


def test_wildcards_and_full_names() -> None:
    for pattern in ("params/.../mix", "params/layers/*/mix"):
        found = hinted({pattern: "d_model d_ff"})
        assert {found[f"params/layers/{i}/mix"] for i in range(2)} == {"d_model d_ff"}


def test_an_axis_is_cut_where_a_size_is_known() -> None:
    def two(params: dict, x: jax.Array) -> jax.Array:
        return jnp.einsum("bd,dc->bc", x, params["w"]) + params["scale"].sum()

    params = {"w": jnp.ones((16, 24)), "scale": jnp.ones((4,))}
    hints = {"params/w": "d (h k)", "params/scale": "h"}
    program = trace(two, params, jnp.ones((2, 16)), axes=hints)
    assert shown(program)["params/w"] == "d_model (heads d_head)"
    assert infer_axes(program).sizes() == {"d_model": 16, "heads": 4, "d_head": 6}
    unknown = trace(two, params, jnp.ones((2, 16)), axes={"params/w": "d (h k)"})
    with pytest.raises(TraceError, match="cannot cut an axis of 24 of params/w .* heads d_head"):
        infer_axes(unknown)


def test_hints_are_printed_and_read_back() -> None:
    program = trace(mixer, PARAMS, jnp.ones((4, 2, 16)), axes={"params/.../mix": "d f"})
    text = str(program)
    assert '%params/layers/0/mix : f32[16,24] param axes "d_model d_ff"' in text
    assert Program.parse(text) == program


@pytest.mark.parametrize(
    "hints, message",
    [
        ({"params/layer/0/mix": "d f"}, "names no argument.*params/layers/0/mix"),
        ({"params/.../mix": "d"}, r"has 1 axes, but params/layers/0/mix is f32\[16,24\]"),
        ({"params/.../mix": "d_modle d_ff"}, "there is no axis 'd_modle'.*d_model"),
        ({"params/.../mix": "d (f"}, "unclosed parenthesis"),
    ],
)
def test_wrong_hints_are_met_at_the_door(hints: dict[str, str], message: str) -> None:
    with pytest.raises(TraceError, match="(?s)" + message):
        trace(mixer, PARAMS, jnp.ones((4, 2, 16)), axes=hints)
