"""The spellings of rotary position embedding that the field writes, found as `rope`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dialect.matching.values import in_dtype, through, unrounded
from dialect.normal.normal_form import normal_form
from dialect.ops.rotary import joined, pairs_of, quarter_turn
from dialect.ops.vocabulary import Traced
from rewrite.ir import Op, Type, Value, bits
from rewrite.opdef import make, with_args
from rewrite.rules import Outcome, Rule, local, pattern


def _beside(parts: int) -> Callable[[Type, Type, Type], str | None]:
    """A guard: each table broadcasts to the rows of x, and holds as many angles as a part of one of
    them has values."""

    def not_beside(x: Type, cos: Type, sin: Type) -> str | None:
        rows = (pair for table in (cos, sin) for pair in zip(table.shape[:-1], x.shape))
        angles = (x.shape[-1] / parts,)
        if all(size in (1, full) for size, full in rows):
            if cos.shape[-1:] == sin.shape[-1:] == angles:
                return None
        return f"tables of {cos} and {sin} do not lie beside {x}"

    return not_beside


def _rope(name: str, doc: str, before: Any, after: Any, parts: int) -> Rule:
    types, guard = ("f32[2,8]", *[f"f32[2,{8 // parts}]"] * 2), _beside(parts)
    return pattern(
        name, doc, before=before, after=after, example=types, normal=normal_form, guard=guard
    )


def _by_hand(x: Any, cos: Any, sin: Any) -> Any:
    left, right = pairs_of(x, "halves")
    return joined(left * cos - right * sin, right * cos + left * sin, "halves")


def _by_hand_neighbours(x: Any, cos: Any, sin: Any) -> Any:
    left, right = pairs_of(x, "neighbours")
    return joined(left * cos - right * sin, right * cos + left * sin, "neighbours")


def _of_shape_2(x: Any, cos: Any, sin: Any) -> Any:
    """Neighbours taken by a reshape, as where they are the two parts of a complex number."""
    parts = x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2)
    left, right = parts[..., 0], parts[..., 1]
    return joined(left * cos - right * sin, right * cos + left * sin, "neighbours")


halves = _rope(
    "rope",
    "concat(x1 * cos - x2 * sin, x2 * cos + x1 * sin)  ->  rope(x, cos, sin)",
    _by_hand,
    Traced["rope"],
    parts=2,
)

halves_wide = _rope(
    "rope_wide",
    "x * cos + concat(-x2, x1) * sin  ->  rope(x, cos, sin), each angle twice in the tables",
    lambda x, cos, sin: x * cos + quarter_turn(x, "halves") * sin,
    Traced["rope"],
    parts=1,
)

neighbours = _rope(
    "rope_neighbours",
    "interleave(x1 * cos - x2 * sin, x2 * cos + x1 * sin)  ->  rope{neighbours}(x, cos, sin)",
    _by_hand_neighbours,
    lambda x, cos, sin: Traced["rope"](x, cos, sin, pairs="neighbours"),
    parts=2,
)

neighbours_of_reshape = _rope(
    "rope_neighbours_of_reshape",
    "rope_neighbours, x1 and x2 the columns of reshape(x: k -> k/2 2)  ->  rope{neighbours}(x)",
    _of_shape_2,
    lambda x, cos, sin: Traced["rope"](x, cos, sin, pairs="neighbours"),
    parts=2,
)

neighbours_wide = _rope(
    "rope_neighbours_wide",
    "x * cos + interleave(-x2, x1) * sin  ->  rope{neighbours}(x, cos, sin)",
    lambda x, cos, sin: x * cos + quarter_turn(x, "neighbours") * sin,
    lambda x, cos, sin: Traced["rope"](x, cos, sin, pairs="neighbours"),
    parts=1,
)


def _converted(halves: list[jax.Array], cos: jax.Array, sin: jax.Array) -> jax.Array:
    left, right = (half.astype(cos.dtype) for half in halves)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


halves_converted = pattern(
    "rope_converted",
    "rope by hand on halves that are converted one by one  ->  rope(convert(x), cos, sin)",
    before=lambda x, cos, sin: _converted(jnp.split(x, 2, axis=-1), cos, sin),
    after=lambda x, cos, sin: Traced["rope"](x.astype(cos.dtype), cos, sin),
    example=("bf16[2,8]", "f32[2,4]", "f32[2,4]"),
    normal=normal_form,
    guard=_beside(2),
)


@local(
    "convert_element_type",
    example=lambda x: quarter_turn(x, "halves").astype("float32"),
    types=("bf16[2,8]",),
)
def turn_of_converted(op: Op) -> Outcome:
    """convert(join(-x2, x1))  ->  join(-y2, y1) where y = convert(x), to more bits"""
    turned = op.args[0]
    joined = through(turned, "reshape").op
    if joined.name not in ("concatenate", "stack") or joined.args[0].op.name != "neg":
        return None
    cuts = [through(arg, "neg", "reshape").op for arg in joined.args]
    names, sources = {cut.name for cut in cuts}, {cut.args for cut in cuts}
    if names != {"slice"} or len(sources) != 1:
        return None
    ((source,),) = sources
    if unrounded(op.results[0]) == op.results[0]:
        return None
    if bits(op.types[0].dtype) < bits(source.type.dtype):
        return None
    return _made_of(turned, source, with_args(op, (source,)).results[0])


def _made_of(value: Value, source: Value, other: Value) -> Value:
    """What `value` makes of `source`, made of another value."""
    if value == source:
        return other
    args = tuple(_made_of(arg, source, other) for arg in value.op.args)
    return with_args(value.op, args).results[value.index]


@local(
    "concatenate",
    keeps="reals",
    example=lambda x, c, s: jnp.concatenate([Traced["rope"](x[:, :4], c, s), x[:, 4:]], axis=-1),
    types=("f32[2,8]", "f32[2,2]", "f32[2,2]"),
)
def leading_part(op: Op) -> Outcome:
    """concat(rope(x[..., :n]), x[..., n:])  ->  rope{turned=n}(x)"""
    if len(op.args) != 2 or op.args[0].op.name != "rope":
        return None
    turned, dtype = op.args[0].op, op.types[0].dtype
    head, rest = (unrounded(x).op for x in (turned.args[0], op.args[1]))
    if not (head.name == rest.name == "slice" and head.args == rest.args):
        return None
    if head.get("strides") is not None:
        return None
    whole, last = in_dtype(head.args[0], dtype), op.types[0].rank - 1
    if whole.type != op.types[0]:
        return None
    count = turned.types[0].shape[last]
    if rest["start_indices"] != (*[0] * last, count) or any(head["start_indices"]):
        return None
    return make("rope", whole, *turned.args[1:], **{"turned": count, **dict(turned.attrs)})
