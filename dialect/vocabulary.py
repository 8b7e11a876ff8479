"""How an op of the decoder's own vocabulary is declared: its reference says what it means.

`word` defines the op and remembers in `Traced` the function that rules call to write it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dialect import primitives
from dialect.lax import SIGNATURES, infer_by_reference
from rewrite import opdef
from rewrite.ir import Op
from rewrite.opdef import OpDef
from rewrite.signature import Signature

Traced: dict[str, Callable[..., Any]] = {}


def word(
    reference: Callable[..., Any],
    signature: Callable[[Op], Signature],
    attrs: tuple[str, ...] = (),
    lead: str | None = None,
    inverse: Callable[[Op], tuple[str, dict[str, Any]]] | None = None,
) -> None:
    """Defines an op named as its reference; one that gives a list has several results."""
    name = reference.__name__
    opdef.define(
        OpDef(
            name=name,
            signature=signature,
            infer=infer_by_reference(name),
            reference=reference,
            attrs=attrs,
            lead=lead,
            doc=(reference.__doc__ or "").strip().splitlines()[0],
            inverse=inverse,
        )
    )
    Traced[name] = primitives.call(name, reference)


def elementwise(op: Op) -> Signature:
    """Every axis is mapped."""
    return SIGNATURES["add"](op)


def over_last(op: Op) -> Signature:
    """Maps over every axis but the last, which it needs whole."""
    rank = op.args[0].type.rank
    axes = tuple((f"x{i}",) for i in range(rank))
    rest = tuple((axes[-1],) for _ in op.args[1:])
    return Signature((axes, *rest), (axes,), frozenset(axes[-1]))
