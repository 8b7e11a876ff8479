"""The spellings of rotary position embedding (Su et al. 2021, arXiv:2104.09864) as `rope`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
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


def _fitting_tables(parts: int) -> Callable[[Type, Type, Type], str | None]:
    """A guard: the tables broadcast to the rows of x and have d_head / parts angles each."""

    def misfit(x: Type, cos: Type, sin: Type) -> str | None:
        rows = (pair for table in (cos, sin) for pair in zip(table.shape[:-1], x.shape))
        angles = (x.shape[-1] / parts,)
        if all(size in (1, full) for size, full in rows):
            if cos.shape[-1:] == sin.shape[-1:] == angles:
                return None
        return f"tables of {cos} and {sin} do not broadcast to {x}"

    return misfit


def _rope(name: str, doc: str, before: Any, after: Any, parts: int) -> Rule:
    """A rule for one spelling; `parts` is 2 if the tables have one angle a pair, 1 if they repeat
    it."""
    types, guard = ("f32[2,8]", *[f"f32[2,{8 // parts}]"] * 2), _fitting_tables(parts)
    return pattern(
        name, doc, before=before, after=after, example=types, normal=normal_form, guard=guard
    )


def _by_hand(x: Any, cos: Any, sin: Any) -> Any:
    left, right = pairs_of(x, "halves")
    return joined(left * cos - right * sin, right * cos + left * sin, "halves")


_halves = partial(joined, pairs="halves")


def _stacked(left: Any, right: Any) -> Any:
    """Neighbours, as the columns of an array: whoever reads them may shape it in any way."""
    return jnp.stack([left, right], axis=-1)


def _by_hand_neighbours(x: Any, cos: Any, sin: Any) -> Any:
    left, right = pairs_of(x, "neighbours")
    return _stacked(left * cos - right * sin, right * cos + left * sin)


def _columns(pairs: Any, cos: Any, sin: Any, join: Callable[[Any, Any], Any]) -> Any:
    """Neighbours as the columns of an array [.., k/2, 2], such as the two parts of complex numbers,
    converted one by one."""
    left, right = (pairs[..., i].astype(cos.dtype) for i in (0, 1))
    return join(left * cos - right * sin, right * cos + left * sin)


def _flat(pairs: Any) -> Any:
    """[.., n, m] -> [.., n m]"""
    return pairs.reshape(*pairs.shape[:-2], pairs.shape[-2] * pairs.shape[-1])


def _fitting_columns(pairs: Type, cos: Type, sin: Type) -> str | None:
    if pairs.rank < 2 or pairs.shape[-1] != 2:
        return f"{pairs} has no pairs"
    x = replace(pairs, shape=(*pairs.shape[:-2], 2 * pairs.shape[-2]))
    return _fitting_tables(2)(x, cos, sin)


def _rope_of_columns(name: str, doc: str, join: Any, after: Any, dtype: str = "f32") -> Rule:
    """A rule for columns, which `join` puts together again."""
    return pattern(
        name,
        doc,
        before=partial(_columns, join=join),
        after=after,
        example=(f"{dtype}[2,4,2]", "f32[2,4]", "f32[2,4]"),
        normal=normal_form,
        guard=_fitting_columns,
    )


def _made_neighbours(x: Any, cos: Any, sin: Any) -> Any:
    """rope{neighbours} as pairs, [.., k/2, 2]"""
    turned = Traced["rope"](x, cos, sin, pairs="neighbours")
    return turned.reshape(*x.shape[:-1], x.shape[-1] // 2, 2)


def _columns_kept(pairs: Any, cos: Any, sin: Any) -> Any:
    return _made_neighbours(_flat(pairs).astype(cos.dtype), cos, sin)


def _made_halves(pairs: Any, cos: Any, sin: Any) -> Any:
    return Traced["rope"](_flat(pairs.swapaxes(-1, -2)).astype(cos.dtype), cos, sin)


halves = _rope(
    "rope",
    "concat(x1 * cos - x2 * sin, x2 * cos + x1 * sin)  ->  rope(x, cos, sin)",
    _by_hand,
    Traced["rope"],
    parts=2,
)


def _by_hand_leading(x: Any, cos: Any, sin: Any) -> Any:
    count = 2 * cos.shape[-1]
    left, right = pairs_of(x[..., :count], "halves")
    turned = left * cos - right * sin, right * cos + left * sin
    return jnp.concatenate([*turned, x[..., count:]], axis=-1)


halves_leading = pattern(
    "rope_leading",
    "concat(x1 * cos - x2 * sin, x2 * cos + x1 * sin, x3)  ->  rope{turned=n}(x, cos, sin)",
    before=_by_hand_leading,
    after=lambda x, cos, sin: Traced["rope"](x, cos, sin, turned=2 * cos.shape[-1]),
    example=("f32[2,10]", "f32[2,3]", "f32[2,3]"),
    normal=normal_form,
)

halves_wide = _rope(
    "rope_wide",
    "x * cos + concat(-x2, x1) * sin  ->  rope(x, cos, sin), whose tables repeat every angle",
    lambda x, cos, sin: x * cos + quarter_turn(x, "halves") * sin,
    Traced["rope"],
    parts=1,
)

neighbours = _rope(
    "rope_neighbours",
    "stack(x1 * cos - x2 * sin, x2 * cos + x1 * sin)  ->  reshape(rope{neighbours}(x, cos, sin))",
    _by_hand_neighbours,
    _made_neighbours,
    parts=2,
)

columns = _rope_of_columns(
    "rope_columns",
    "rope_neighbours, x1 and x2 the columns of x: [.., k/2, 2]  ->  the same of flat(x)",
    _stacked,
    _columns_kept,
)

columns_to_halves = _rope_of_columns(
    "rope_columns_to_halves",
    "rope, x1 and x2 the columns of x: [.., k/2, 2]  ->  rope(flat(x transposed), cos, sin)",
    _halves,
    _made_halves,
)

columns_converted = _rope_of_columns(
    "rope_columns_converted",
    "rope_columns, x1 and x2 converted one by one  ->  the same of convert(x)",
    _stacked,
    _columns_kept,
    "bf16",
)

columns_converted_to_halves = _rope_of_columns(
    "rope_columns_converted_to_halves",
    "rope_columns_to_halves, x1 and x2 converted one by one  ->  the same of convert(x)",
    _halves,
    _made_halves,
    "bf16",
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
    guard=_fitting_tables(2),
)


@local(
    "convert_element_type",
    example=lambda x: quarter_turn(x, "halves").astype("float32"),
    types=("bf16[2,8]",),
)
def turn_of_converted(op: Op) -> Outcome:
    """convert(join(-x2, x1))  ->  join(-y2, y1) where y = convert(x), to a wider dtype"""
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
    return _substituted(turned, source, with_args(op, (source,)).results[0])


def _substituted(value: Value, source: Value, replacement: Value) -> Value:
    """`value` computed from another value instead of `source`, on which alone it depends."""
    if value == source:
        return replacement
    args = tuple(_substituted(arg, source, replacement) for arg in value.op.args)
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
    leading, trailing = (unrounded(x).op for x in (turned.args[0], op.args[1]))
    if not (leading.name == trailing.name == "slice" and leading.args == trailing.args):
        return None
    if leading.get("strides") is not None:
        return None
    x, last = in_dtype(leading.args[0], dtype), op.types[0].rank - 1
    if x.type != op.types[0]:
        return None
    count = turned.types[0].shape[last]
    if trailing["start_indices"] != (*[0] * last, count) or any(leading["start_indices"]):
        return None
    return make("rope", x, *turned.args[1:], **{"turned": count, **dict(turned.attrs)})
