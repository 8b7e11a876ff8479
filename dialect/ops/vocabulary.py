"""How a composite op is declared: its reference says what it means.

`word` defines the op and remembers in `Traced` the function that rules call to write it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from dialect.arrays import primitives
from dialect.ops.lax import SIGNATURES, infer_by_reference
from rewrite import opdef
from rewrite.ir import Graph, Op, Type, attrs_of, new_input
from rewrite.opdef import Infer, OpDef, Traits
from rewrite.signature import Array, Dimension, Signature, numbered, show_array

NONE = Traits()
Traced: dict[str, Callable[..., Any]] = {}


def word(
    reference: Callable[..., Any],
    signature: Callable[[Op], Signature],
    attrs: tuple[str, ...] = (),
    lead: str | None = None,
    inverse: Callable[[Op], tuple[str, dict[str, Any]]] | None = None,
    results: tuple[str, ...] = (),
    traits: Traits = NONE,
) -> None:
    """Defines an op named as its reference; one that gives a list has several results."""
    name = reference.__name__
    opdef.define(
        OpDef(
            name=name,
            signature=signature,
            infer=_infer(name, signature),
            reference=reference,
            attrs=attrs,
            lead=lead,
            doc=(reference.__doc__ or "").strip().splitlines()[0],
            inverse=inverse,
            results=results,
            traits=traits,
        )
    )
    Traced[name] = primitives.call(name, reference)


def along(name: str) -> Callable[[Op], tuple[str, dict[str, Any]]]:
    """The inverse of a change of form that has an `axis` and no other attribute: an op of this name
    along the same axis."""
    return lambda op: (name, {"axis": op["axis"]})


def _infer(name: str, signature: Callable[[Op], Signature]) -> Infer:
    """The types that the reference gives, of arrays whose axes are those of the signature."""
    by_reference = infer_by_reference(name)

    @lru_cache(maxsize=4096)
    def check(types: tuple[Type, ...], attrs: tuple, results: tuple[Type, ...]) -> None:
        axes = signature(Op(name, tuple(map(new_input, types)), attrs, results))
        _must_have_axes((*axes.inputs, *axes.outputs), (*types, *results))

    def infer(
        types: tuple[Type, ...], attrs: dict[str, Any], regions: tuple[Graph, ...]
    ) -> tuple[Type, ...]:
        results = by_reference(types, attrs, regions)
        check(types, attrs_of(attrs), results)
        return results

    return infer


def _must_have_axes(arrays: tuple[Array, ...], types: tuple[Type, ...]) -> None:
    """Raises ValueError where an axis that several arrays have is not as long in all of them."""
    sizes: dict[Dimension, int] = {(): 1}
    for axes, type_ in zip(arrays, types, strict=True):
        if len(axes) != type_.rank:
            raise ValueError(f"{type_} does not have the axes {show_array(axes) or 'of a scalar'}")
        for axis, size in zip(axes, type_.shape):
            if sizes.setdefault(axis, size) != size:
                raise ValueError(f"an axis of {type_} is {size} long, and {sizes[axis]} elsewhere")


def elementwise(op: Op) -> Signature:
    """Every axis is mapped."""
    return SIGNATURES["add"](op)


def over_last(op: Op) -> Signature:
    """Maps over every axis but the last, which it needs whole."""
    rank = op.args[0].type.rank
    axes = numbered(rank)
    rest = tuple((axes[-1],) * arg.type.rank for arg in op.args[1:])
    return Signature((axes, *rest), (axes,), frozenset(axes[-1]))
