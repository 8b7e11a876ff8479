"""An int8 KV cache: integers and one scale per token and head, in place of the user's floats.

cache  ->  dequantize_tokens(quantize_tokens(cache)), at the boundary, in and out

What is written is quantised, once; what attention reads stays integers up to its two products,
whose logits and weights take the scales (`attend` with a `key_scale` and a `value_scale`). So the
step holds no cache of floats anywhere. A cache that anything else reads is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from dialect.caching.state_forms import (
    Change,
    carried_in_form,
    carries,
    keep_in,
    kept_forms,
    written,
)
from dialect.matching.values import reshaped
from dialect.naming.axes import Axes, infer_axes
from dialect.ops.lax import reshape_signature
from dialect.ops.nn import Traced
from dialect.ops.token_scales import LARGEST
from rewrite.ir import Op, Symbol, Value
from rewrite.opdef import build, make
from rewrite.program import LEFT_ALONE, Program, Remark
from rewrite.rules import Miss, Outcome, Rule, local
from rewrite.signature import Signature

_FLOATS = ("f32", "bf16", "f16")
_CLIP = Symbol("GatherScatterMode.CLIP")


def with_quantized_cache(program: Program, form: str) -> tuple[Program, list[str]]:
    """`program` with every cache kept in `form` (`int8`), and notes; its history is not added.

    A cache is a state over the context with numbers of heads. The notes tell each one's bytes
    before and after, or why it was left alone. Raises ValueError for a form there is not.
    """
    if form not in LARGEST:
        raise ValueError(f"a cache is kept in {' or '.join(LARGEST)}, not in {form!r}")
    axes, changes, alone = infer_axes(program), {}, {}
    for number, (value, _) in sorted(kept_forms(program).items()):
        if any("context" in names for names in axes.of(value)):
            place = _place_of_head(axes, value)
            if isinstance(place, str):
                alone[number] = place
            else:
                changes[number] = _change(value.type.dtype, place, form)
    made, left = keep_in(program, changes, RULES, "dequantize_tokens")
    changes = {number: each for number, each in changes.items() if number not in left}
    alone |= left
    return made, _notes(program, changes, alone, form)


def _place_of_head(axes: Axes, value: Value) -> int | str:
    """Which dimension of a cache is d_head, or why it cannot be quantised."""
    if value.type.dtype not in _FLOATS:
        return f"it is {value.type.dtype} already"
    heads = [d for d, names in enumerate(axes.of(value)) if names == ("d_head",)]
    return heads[0] if len(heads) == 1 else "none of its axes is d_head alone"


def _change(dtype: str, axis: int, form: str) -> Change:
    return Change(
        partial(_quantized, axis=axis, form=form), partial(_dequantized, axis=axis, dtype=dtype)
    )


def _quantized(value: Value, *, axis: int, form: str) -> Sequence[Value]:
    return build("quantize_tokens", value, axis=axis, form=form).results


def _dequantized(q: Value, scale: Value, *, axis: int, dtype: str) -> Value:
    return make("dequantize_tokens", q, scale, axis=axis, dtype=Symbol(dtype))


def _notes(
    program: Program, changes: dict[int, Change], alone: dict[int, str], form: str
) -> list[str]:
    notes, forms = [], kept_forms(program)
    for number, change in changes.items():
        value, name = forms[number][0], program.inputs[number].name
        kept = sum(each.type.bytes for each in change.inward(value))
        notes.append(f"{name} kept in {form}: {value.type.bytes:,} bytes -> {kept:,}")
    return notes + [
        Remark(reason, program.inputs[number].name, LEFT_ALONE)
        for number, reason in sorted(alone.items())
    ]


# Rules: `dequantize_tokens` moves from where a cache comes in towards attention.


def _example(q: jax.Array, scale: jax.Array, axis: int = 2) -> jax.Array:
    return Traced["dequantize_tokens"](q, scale, axis=axis, dtype=Symbol("f32"))


def _exact(q: jax.Array) -> jax.Array:
    """Numbers that quantisation keeps as they are."""
    return jnp.sign(q) * jnp.float32(127)


def _again(q: Value, scale: Value, op: Op, axis: int) -> Value:
    """What other arrays stand for, as `op` says, their d_head being at `axis`."""
    return make("dequantize_tokens", q, scale, axis=axis, dtype=op["dtype"])


def _form(op: Op) -> str | None:
    """The form that a `dequantize_tokens` reads; None for any other op, and for what was not
    quantised by `quantize_tokens`, or has no elements."""
    if not op.types[0].size:
        return None
    dtypes = tuple(arg.type.dtype for arg in op.args)
    return "int8" if op.name == "dequantize_tokens" and dtypes == ("i8", "bf16") else None


@local(
    "quantize_tokens",
    keeps="approx",
    example=lambda x: Traced["quantize_tokens"](
        _example(*Traced["quantize_tokens"](x, axis=2, form="int8")), axis=2, form="int8"
    )[0],
    types=("f32[2,3,4]",),
)
def quantize_of_dequantize(op: Op) -> Outcome:
    """quantize_tokens(dequantize_tokens(q, s))  ->  q, s: what was rounded is not rounded again"""
    inner = op.args[0].op
    if inner.name != "dequantize_tokens" or inner["axis"] != op["axis"]:
        return None
    return inner.args if tuple(arg.type for arg in inner.args) == op.types else None


@local(
    "quantize_tokens",
    example=lambda x: Traced["quantize_tokens"](x.transpose(1, 2, 0), axis=1, form="int8")[0],
    types=("f32[2,3,4]",),
)
def quantize_of_transpose(op: Op) -> Outcome:
    """quantize_tokens(transpose(x))  ->  transpose(q), transpose(s): the order is the last word"""
    inner = op.args[0].op
    if inner.name != "transpose":
        return None
    order, axis = inner["permutation"], inner["permutation"][op["axis"]]
    q, scale = build("quantize_tokens", inner.args[0], axis=axis, form=op["form"]).results
    return _transposed(q, scale, order, axis)


def _transposed(q: Value, scale: Value, order: tuple[int, ...], axis: int) -> tuple[Value, Value]:
    """Both in another order of the numbers' axes, `axis` being the one that the scale lacks."""
    rest = tuple(place - (place > axis) for place in order if place != axis)
    return (
        make("transpose", q, permutation=tuple(order)),
        make("transpose", scale, permutation=rest),
    )


@local(
    "transpose",
    example=lambda q, s: jnp.transpose(_example(q, s), (2, 0, 1)),
    types=("i8[2,3,4]", "f32[2,3]"),
)
def transpose_of_dequantize(op: Op) -> Outcome:
    """transpose(dequantize_tokens(q, s))  ->  dequantize_tokens(transpose(q), transpose(s))"""
    inner = op.args[0].op
    if inner.name != "dequantize_tokens":
        return None
    order, axis = op["permutation"], inner["axis"]
    return _again(*_transposed(*inner.args, order, axis), inner, order.index(axis))


@local(
    "reshape",
    example=lambda q, s: _example(q, s).reshape(2, 3, 2, 2, 4),
    types=("i8[6,4,4]", "f32[6,4]"),
)
def reshape_of_dequantize(op: Op) -> Outcome:
    """reshape(dequantize_tokens(q, s)), d_head whole  ->  dequantize_tokens of both reshaped"""
    inner = op.args[0].op
    if inner.name != "dequantize_tokens":
        return None
    old, new = inner.types[0].shape, op.types[0].shape
    named = reshape_signature(old, new)
    head = named.inputs[0][inner["axis"]]
    if head not in named.outputs[0]:
        return Miss("it cuts d_head, or merges it with another axis", 2)
    axis = named.outputs[0].index(head)
    q, scale = inner.args
    return _again(reshaped(q, new), reshaped(scale, new[:axis] + new[axis + 1 :]), inner, axis)


@local(
    "slice",
    example=lambda q, s: _example(q, s)[:, 1:],
    types=("i8[2,3,4]", "f32[2,3]"),
)
def slice_of_dequantize(op: Op) -> Outcome:
    """slice(dequantize_tokens(q, s)), d_head whole  ->  dequantize_tokens of both sliced"""
    inner = op.args[0].op
    if inner.name != "dequantize_tokens":
        return None
    axis, (q, scale) = inner["axis"], inner.args
    if op.types[0].shape[axis] != q.type.shape[axis]:
        return Miss("it cuts d_head", 2)
    places = {name: each and each[:axis] + each[axis + 1 :] for name, each in op.attrs}
    return _again(make("slice", q, **dict(op.attrs)), make("slice", scale, **places), inner, axis)


@local(
    "cache_write",
    keeps="approx",
    example=lambda q, s, r: Traced["cache_write"](_example(q, s), _exact(r), 3, axes=(1,)),
    types=("i8[2,8,4]", "bf16[2,8]", "i8[2,1,4]"),
)
def write_of_dequantize(op: Op) -> Outcome:
    """cache_write(dequantize_tokens(q, s), new)  ->  dequantize_tokens of the writes of both"""
    inner = op.args[0].op
    form = _form(inner)
    if form is None or inner["axis"] in op["axes"]:
        return None
    axis, (q, scale) = inner["axis"], inner.args
    new_q, new_scale = _quantized(op.args[1], axis=axis, form=form)
    places = tuple(place - (place > axis) for place in op["axes"])
    scales = make("cache_write", scale, new_scale, *op.args[2:], axes=places)
    return _again(written(op, q, new_q), scales, inner, axis)


@local(
    "cache_put",
    keeps="approx",
    example=lambda q, s, r: Traced["cache_put"](
        _example(q, s), _exact(r), jnp.full((3, 1), 2), axis=1, mode=_CLIP
    ),
    types=("i8[3,8,4]", "bf16[3,8]", "i8[3,1,4]"),
)
def put_of_dequantize(op: Op) -> Outcome:
    """cache_put(dequantize_tokens(q, s), new)  ->  dequantize_tokens of the puts of both"""
    (_, new, positions, *layer), inner = op.args, op.args[0].op
    form = _form(inner)
    if form is None:
        return None
    axis, first, (q, scale) = inner["axis"], len(layer), inner.args
    if axis == op["axis"] or axis < first + (positions.type.rank == 2):
        return None
    new_q, new_scale = _quantized(new, axis=axis - first, form=form)
    place = op["axis"] - (op["axis"] > axis)
    scales = make("cache_put", scale, new_scale, *op.args[2:], axis=place, mode=op["mode"])
    return _again(written(op, q, new_q), scales, inner, axis)


@local(
    "cache_read",
    example=lambda q, s: Traced["cache_read"](_example(q, s), 1),
    types=("i8[2,3,4]", "f32[2,3]"),
)
def read_of_dequantize(op: Op) -> Outcome:
    """cache_read(dequantize_tokens(q, s), layer)  ->  dequantize_tokens of the reads of both"""
    inner = op.args[0].op
    if inner.name != "dequantize_tokens" or inner["axis"] == 0:
        return None
    read = (make("cache_read", each, op.args[1]) for each in inner.args)
    return _again(*read, inner, inner["axis"] - 1)


@local(
    "stack",
    example=lambda q, s: jnp.stack([_example(q, s), _example(q + 1, s)]),
    types=("i8[2,3,4]", "f32[2,3]"),
)
def stack_of_dequantize(op: Op) -> Outcome:
    """stack(dequantize_tokens(q, s), ..)  ->  dequantize_tokens(stack(q, ..), stack(s, ..))"""
    inner = op.args[0].op
    alike = {(arg.op.name, arg.op.attrs, *(x.type for x in arg.op.args)) for arg in op.args}
    if inner.name != "dequantize_tokens" or len(alike) > 1:
        return None
    at, axis = op["axis"], inner["axis"]
    q = make("stack", *(arg.op.args[0] for arg in op.args), axis=at)
    scale = make("stack", *(arg.op.args[1] for arg in op.args), axis=at - (at > axis))
    return _again(q, scale, inner, axis + (at <= axis))


@local(
    "unstack",
    example=lambda q, s: jnp.unstack(_example(q, s))[1],
    types=("i8[2,3,4]", "f32[2,3]"),
)
def unstack_of_dequantize(op: Op) -> Outcome:
    """unstack(dequantize_tokens(q, s))  ->  dequantize_tokens of each of unstack(q), unstack(s)"""
    inner = op.args[0].op
    if inner.name != "dequantize_tokens" or inner["axis"] == op["axis"]:
        return None
    at, axis, (q, scale) = op["axis"], inner["axis"], inner.args
    parts = build("unstack", q, axis=at).results
    scales = build("unstack", scale, axis=at - (at > axis)).results
    return [_again(*pair, inner, axis - (at < axis)) for pair in zip(parts, scales)]


@local(
    "convert_element_type",
    keeps="reals",
    example=lambda q, s: _example(q, s).astype("bfloat16"),
    types=("i8[2,3,4]", "f32[2,3]"),
)
def convert_of_dequantize(op: Op) -> Outcome:
    """convert(dequantize_tokens(q, s))  ->  dequantize_tokens(q, s) in the other dtype"""
    inner = op.args[0].op
    if inner.name != "dequantize_tokens" or op.types[0].dtype not in _FLOATS:
        return None
    return _dequantized(*inner.args, axis=inner["axis"], dtype=op.types[0].dtype)


@local(
    "scan",
    keeps="approx",
    example=lambda q, s: jax.lax.fori_loop(
        0,
        3,
        lambda i, c: Traced["cache_write"](c, _exact(jnp.ones((2, 1, 4))), i, axes=(1,)),
        _example(q, s),
    ),
    types=("i8[2,8,4]", "bf16[2,8]"),
)
def loop_over_dequantized(op: Op) -> Outcome:
    """scan(dequantize_tokens(q, s))  ->  dequantize_tokens(scan(q, s)), its body seeing the same"""
    for position in carries(op, "dequantize_tokens"):
        inner = op.args[position].op
        form = _form(inner)
        if form is not None:
            change = _change(inner.types[0].dtype, inner["axis"], form)
            return carried_in_form(op, position, change)
    return None


@local(
    "attend",
    keeps="approx",
    example=lambda q, k, s: Traced["attend"](
        q, _example(k, s), _example(k, s), axes="g t k, g s k, g s v -> g t v"
    ),
    types=("f32[2,3,4]", "i8[2,5,4]", "f32[2,5]"),
)
def attend_in_integers(op: Op) -> Outcome:
    """attend(q, k * s, v * t)  ->  attend(q, k, v){key_scale=s, value_scale=t}"""
    named = Signature.parse(op["axes"])
    args, inputs, given = list(op.args), list(named.inputs), op.get("given", "").split()
    attrs = dict(op.attrs)
    for i, summed, word in ((2, "v", "value_scale"), (1, "k", "key_scale")):
        inner = args[i].op
        if inner.name != "dequantize_tokens":
            continue
        if op.get("rounds") is not None:
            return Miss("its weights are rounded to integers of their own", 2)
        if inputs[i][inner["axis"]] != (summed,):
            return Miss("its scales are not those of whole heads", 2)
        args[i], scale = inner.args
        own = tuple(axis for d, axis in enumerate(inputs[i]) if d != inner["axis"])
        args.insert(3, scale)
        inputs.insert(3, own)
        given.insert(0, word)
        if word == "value_scale":
            attrs["weights"] = op.get("weights") or inner["dtype"]
    if tuple(args) == op.args:
        return None
    axes = str(Signature(tuple(inputs), named.outputs))
    return make("attend", *args, **{**attrs, "axes": axes, "given": " ".join(given)})


RULES: tuple[Rule, ...] = (
    quantize_of_dequantize,
    quantize_of_transpose,
    transpose_of_dequantize,
    reshape_of_dequantize,
    slice_of_dequantize,
    write_of_dequantize,
    put_of_dequantize,
    read_of_dequantize,
    stack_of_dequantize,
    unstack_of_dequantize,
    convert_of_dequantize,
    loop_over_dequantized,
    attend_in_integers,
)
