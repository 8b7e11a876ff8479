"""For convolutions of every channel by itself."""

from __future__ import annotations

from typing import Any

import jax

from rewrite.ir import Symbol
from tests.more_examples.forms import Example, left_alone, making

_HIGHEST = (Symbol("Precision.HIGHEST"),) * 2


def _of(
    *types: str,
    groups: int = 3,
    padding: tuple[int, int] = (0, 0),
    step: int = 1,
    spec: tuple[str, str, str] = ("NWC", "WIO", "NWC"),
    **more: Any,
) -> Example:
    """A convolution along one axis."""

    def example(x: Any, kernel: Any) -> Any:
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (step,),
            (padding,),
            dimension_numbers=spec,
            feature_group_count=groups,
            **more,
        )

    return example, types


def _in_the_plane(x: Any, kernel: Any) -> Any:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=3,
    )


def _alone(*types: str, **how: Any) -> Example:
    example, types = _of(*types, **how)
    return left_alone(example), types


def _precisely(*types: str) -> Example:
    example, types = _of(*types, precision=jax.lax.Precision.HIGHEST)
    return making("contract", example, precision=_HIGHEST), types


X, KERNEL = "f32[2,5,3]", "f32[3,1,3]"
MORE: dict[str, list[Example]] = {
    "convolution_of_channels": [
        _of("f32[2,3,3]", KERNEL),
        _of("f32[2,3,3]", KERNEL, spec=("NWC", "WIO", "NCW")),
        _of("f32[3,2,3]", KERNEL, spec=("WNC", "WIO", "CNW")),
        _precisely("f32[2,3,3]", KERNEL),
        _of(X, KERNEL, padding=(0, 1)),
        _of(X, KERNEL, spec=("NWC", "WIO", "CNW")),
        _of("f32[2,3,5]", "f32[3,1,3]", spec=("NCW", "OIW", "NCW")),
        _of("bf16[2,3,3]", "bf16[3,1,3]"),
        _of("bf16[2,5,3]", "bf16[3,1,3]"),
        _of("f64[2,5,3]", "f64[3,1,3]"),
        _of("f32[2,20,3]", "f32[16,1,3]"),
        _alone("f32[2,20,3]", "f32[17,1,3]"),
        _alone("i32[2,5,3]", "i32[3,1,3]"),
        _alone("f32[2,5,6]", "f32[3,2,3]"),
        _alone(X, "f32[3,1,6]"),
        _alone(X, KERNEL, step=2),
        _alone(X, KERNEL, lhs_dilation=(2,)),
        _alone(X, KERNEL, rhs_dilation=(2,)),
        _alone("f32[6,5,1]", "f32[3,1,3]", groups=1, batch_group_count=3),
        (left_alone(_in_the_plane), ("f32[2,3,3,3]", "f32[2,2,1,3]")),
        _alone("f32[2,1,3]", KERNEL),
    ],
}
EQUAL: dict[str, dict[str, str]] = {}
