"""For the rules that change forms: caching, padding, planning, quantised products, staging."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from dialect.arrays import primitives
from dialect.ops import sharding
from dialect.ops.vocabulary import Traced
from rewrite.ir import Symbol

Example = tuple[Callable[..., Any], tuple[str, ...]]
CLIP = Symbol("GatherScatterMode.CLIP")

constrain = primitives.call("constrain", sharding.constrain)


# Products of scaled numbers.

_STEPS: dict[str, dict[str, Any]] = {
    "int8": {"largest": 127.5},
    "fp8": {"largest": 448.0, "form": "fp8"},
}


def _product(x: Any, w: Any, spec: str, out: str = "f32", parts: int = 0) -> Any:
    more = {"parts": parts} if parts else {}
    name = "partial_contract" if parts else "contract"
    return Traced[name](x, w, spec=spec, dtype=Symbol(out), **more)


def _scaled_products(form: str) -> list[Example]:
    def rows(x: Any, *axes: int) -> Any:
        return Traced["rounded"](x, axes=axes, least=1e-19, **_STEPS[form])

    def weight(q: Any, s: Any, dtype: str = "f32") -> Any:
        return Traced["dequantize"](q, s, dtype=Symbol(dtype))

    q = {"int8": "i8", "fp8": "f8_e4m3fn"}[form]
    groups = (f"{q}[2,5,3]", "f32[2,1,3]")
    return [
        # one scale for all, and a result in another order
        (
            lambda x, w, s: _product(weight(w, s), rows(x, 1), "d f, b d -> b f"),
            ("f32[2,5]", f"{q}[5,3]", "f32[]"),
        ),
        (
            lambda x, w, s: _product(rows(x, 1), weight(w, s), "b d, f g d -> g b f"),
            ("f32[2,5]", f"{q}[3,4,5]", "f32[3,4,1]"),
        ),
        # narrower integers and wider floats
        (
            lambda x, w, s: _product(rows(x, 1), weight(w, s, "f64"), "b d, d f -> b f", "f64"),
            ("f64[2,5]", f"{q}[5,3]", "f64[1,3]"),
        ),
        (
            lambda x, w, s: _product(rows(x, 1), weight(w, s, "f16"), "b d, d f -> b f", "f16"),
            ("f16[2,5]", f"{q}[5,3]", "f16[1,3]"),
        ),
        (
            lambda x, w, s: _product(rows(x, 1), weight(w, s), "b d, d f -> b f"),
            ("f32[2,5]", "i4[5,3]", "f32[1,3]"),
        ),
        (
            lambda x, w, s: _product(rows(x, 1), weight(w, s), "b d, d f -> b f"),
            ("f32[2,5]", "i16[5,3]", "f32[1,3]"),
        ),
        (
            lambda x, w, s: _product(rows(x, 1), weight(w, s), "b d, d f -> b f", "i32"),
            ("f32[2,5]", f"{q}[5,3]", "f32[1,3]"),
        ),
        # a scale for each group of a sum; then one for each number, and more rows than are summed
        (
            lambda x, w, s: _product(rows(x, 2), weight(w, s), "b g d, g d f -> b f"),
            ("f32[2,2,5]", *groups),
        ),
        (
            lambda x, w, s: _product(rows(x, 0, 1, 2), weight(w, s), "b g d, g d f -> b f", "bf16"),
            ("f32[2,2,5]", *groups),
        ),
        (
            lambda x, w, s: _product(rows(x, 1), weight(w, s), "b d, d f -> b f"),
            ("f32[1,5]", f"{q}[5,3]", "f32[5,1]"),
        ),
        (
            lambda x, w, s: _product(rows(x, 2), weight(w, s), "b g d, g d f -> b f"),
            ("f32[7,2,5]", *groups),
        ),
        # sums in parts
        (
            lambda x, w, s: _product(rows(x, 1), weight(w, s), "b d, d f -> p b f", parts=2),
            ("f32[3,6]", f"{q}[6,4]", "f32[1,4]"),
        ),
        (
            lambda x, w, s: _product(rows(x, 0), weight(w, s), "d b, f d -> p b f", parts=3),
            ("f32[6,1]", f"{q}[4,6]", "f32[4,1]"),
        ),
        # rows of several axes made one: all with a scale of their own, with one, and with neither
        *(
            (
                lambda x, w, s, axes=axes: _product(
                    rows(x, *axes).reshape(6, 4), weight(w, s), "b d, d f -> b f"
                ),
                ("f32[2,3,4]", f"{q}[4,5]", "f32[1,5]"),
            )
            for axes in ((2,), (0, 1, 2), (0, 1), (1, 2), (0, 2))
        ),
        (
            lambda x, w, s: _product(rows(x, 2).reshape(4, 6), weight(w, s), "b d, d f -> b f"),
            ("f32[2,2,6]", f"{q}[6,5]", "f32[1,5]"),
        ),
        (
            lambda x, w, s: _product(rows(x, 2).reshape(4, 6), weight(w, s), "b d, d f -> b f"),
            ("f32[2,3,4]", f"{q}[6,5]", "f32[1,5]"),
        ),
        (
            lambda x, w, s: _product(
                rows(x, 1).reshape(2, 3, 4), weight(w, s), "b t d, d f -> b t f"
            ),
            ("f32[6,4]", f"{q}[4,5]", "f32[1,5]"),
        ),
        (
            lambda x, w, s: _product(rows(x, 0).reshape(()), weight(w, s), ", d f -> d f"),
            ("f32[1]", f"{q}[4,5]", "f32[1,5]"),
        ),
        # what is summed lies on several chips, or an axis of it does
        *(
            (
                lambda x, w, s, layout=layout: _product(
                    rows(x, 1), constrain(weight(w, s), layout=layout), "b d, d f -> b f", "bf16"
                ),
                ("f32[3,6]", f"{q}[6,4]", "f32[1,4]"),
            )
            for layout in ((("x",), ()), ((), ("x",)), ((), None), (("y",), ()), (("x", "y"), ()))
        ),
        (
            lambda x, w, s: _product(
                constrain(rows(x, 1), layout=((), ("x",))), weight(w, s), "b d, d f -> b f", "bf16"
            ),
            ("f32[3,5]", f"{q}[5,4]", "f32[1,4]"),
        ),
        (
            lambda x, w, s: _product(
                constrain(rows(x, 2), layout=((), ("x",), ())).reshape(6, 4),
                weight(w, s),
                "b d, d f -> b f",
                "bf16",
            ),
            ("f32[2,3,4]", f"{q}[4,5]", "f32[1,5]"),
        ),
        (
            lambda x, w, s: _product(
                constrain(rows(x, 2), layout=((), (), ("x",))).reshape(6, 4),
                weight(w, s),
                "b d, d f -> b f",
                "bf16",
            ),
            ("f32[2,3,4]", f"{q}[4,5]", "f32[1,5]"),
        ),
        (
            lambda x, w, s: _product(
                constrain(rows(x, 0, 1, 2), layout=((), ("x",), ())),
                constrain(weight(w, s), layout=(("x",), (), ())),
                "b g d, g d f -> b f",
                "bf16",
            ),
            ("f32[2,2,5]", *groups),
        ),
    ]


def _scale_behind() -> list[Example]:
    """Products of one array with a scale, and one without."""

    def weight(q: Any, s: Any, dtype: str = "f32") -> Any:
        return Traced["dequantize"](q, s, dtype=Symbol(dtype))

    groups = ("i8[2,9,3]", "f32[2,1,3]")
    grouped = "b g d, g d f -> b f"
    return [
        (lambda x, w, s: _product(x, weight(w, s), grouped), ("f32[3,2,9]", *groups)),
        (lambda x, w, s: _product(x, weight(w, s), grouped), ("f32[4,2,9]", *groups)),
        (lambda x, w, s: _product(x, weight(w, s), grouped), ("f32[9,2,9]", *groups)),
        (lambda x, w, s: _product(x, weight(w, s), grouped), ("f32[10,2,9]", *groups)),
        (lambda x, w, s: _product(x, weight(w, s), grouped, "bf16"), ("bf16[3,2,9]", *groups)),
        (lambda x, w, s: _product(x, weight(w, s), grouped, "f64"), ("f64[3,2,9]", *groups)),
        (
            lambda x, w, s: _product(x, weight(w, s), "b g d, g d f -> b f g"),
            ("f32[30,2,9]", *groups),
        ),
        (
            lambda x, w, s: _product(x, weight(w, s, "f16"), "b d, d f -> b f", "f16"),
            ("f16[2,300]", "i8[300,3]", "f32[1,3]"),
        ),
        (
            lambda x, w, s: _product(x, weight(w, s), "b d, d f -> b f"),
            ("i32[2,5]", "i8[5,3]", "f32[1,3]"),
        ),
        (
            lambda x, w, s: _product(
                constrain(x, layout=((), ("x",))), weight(w, s), "b d, d f -> b f"
            ),
            ("f32[2,6]", "i8[6,3]", "f32[1,3]"),
        ),
        (
            lambda x, w: _product(x, w, "b d, d f -> b f"),
            ("f32[2,6]", "f32[6,3]"),
        ),
    ]


_INTEGERS = _scaled_products("int8")

MORE: dict[str, list[Example]] = {
    "integers_multiplied": _INTEGERS,
    "narrow_floats_multiplied": _scaled_products("fp8"),
    "put_of_spread": [
        # of one layer of a stack
        (
            lambda x, new: Traced["cache_put"](
                Traced["spread_heads"](x, axis=3, count=2, by="mean"),
                Traced["spread_heads"](new, axis=2, count=2, by="mean"),
                jnp.full((3, 1), 2),
                1,
                axis=2,
                mode=CLIP,
            ),
            ("f32[2,3,8,2]", "f32[3,1,2]"),
        ),
    ],
    "scale_behind_product": [*_scale_behind(), *_INTEGERS],
}
EQUAL: dict[str, dict[str, str]] = {}
