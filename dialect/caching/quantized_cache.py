"""An int8 KV cache: integers and one scale per token and head, in place of the user's floats.

cache  ->  dequantize(quantize(cache)), at the boundary, in and out

What is written is quantised, once; what attention reads stays integers up to its two products,
whose logits and weights take the scales (`attend` with a `key_scale` and a `value_scale`). So the
step holds no cache of floats anywhere. A cache that anything else reads is left alone.

A token is rounded when it is written and never again: what is read back and rounded once more is
what it was. One scale in bf16 for d_head numbers costs 2 / d_head of the cache's bytes (KVQuant,
Hooper et al. 2024, section 3, and KIVI, Liu et al. 2024, round keys per channel instead; a token's
own scale is known when it comes, which a channel's is not).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dialect.arrays.dtypes import is_float
from dialect.caching.commute import Form, rule, rules
from dialect.caching.narrow_cache import NARROW
from dialect.caching.state_forms import Change, Forms, keep_in, stacked_forms
from dialect.caching.transposed_cache import TRANSPOSED
from dialect.naming.axes import Axes, infer_axes
from dialect.ops.attend import names_of, pairs_of
from dialect.ops.nn import Traced
from dialect.ops.scores import PAIRS
from dialect.staging.stored_states import undoes
from rewrite.ir import Op, Symbol, Value
from rewrite.opdef import build, make
from rewrite.program import LEFT_ALONE, Program, Remark
from rewrite.rules import Miss, Outcome, Rule, local
from rewrite.signature import Signature

_FLOATS = ("f32", "bf16", "f16")
_FORMS: dict[str, dict[str, Any]] = {
    "int8": {"form": "int8", "largest": 127.0, "scale_dtype": Symbol("bf16")}
}


def with_quantized_cache(program: Program, form: str) -> tuple[Program, list[str]]:
    """`program` with every cache kept in `form` (`int8`), and notes; its history is not added.

    A cache is a state over the context with numbers of heads. The notes tell each one's bytes
    before and after, or why it was left alone. Raises ValueError for a form there is not.
    """
    if form not in _FORMS:
        raise ValueError(f"a cache is kept in {' or '.join(_FORMS)}, not in {form!r}")
    axes, changes, alone = infer_axes(program), {}, {}
    forms = stacked_forms(program)
    for number, (value, _) in sorted(forms.items()):
        if any("context" in names for names in axes.of(value)):
            place = _place_of_head(axes, value)
            if isinstance(place, str):
                alone[number] = place
            else:
                changes[number] = _change(value.type.dtype, (place,), form)
    changed, left = keep_in(program, changes, RULES, "dequantize", forms=forms)
    changes = {number: change for number, change in changes.items() if number not in left}
    alone |= left
    return changed, _notes(program, forms, changes, alone, form)


def _place_of_head(axes: Axes, value: Value) -> int | str:
    """Which dimension of a cache is d_head, or why it cannot be quantised."""
    if value.type.dtype not in _FLOATS:
        return f"it is {value.type.dtype} already"
    heads = [d for d, names in enumerate(axes.of(value)) if names == ("d_head",)]
    return heads[0] if len(heads) == 1 else "none of its axes is d_head alone"


def _change(dtype: str, axes: tuple[int, ...], form: str) -> Change:
    return Change(
        partial(_quantized, axes=axes, form=form), partial(_dequantized, axes=axes, dtype=dtype)
    )


def _quantized(value: Value, *, axes: tuple[int, ...], form: str) -> Sequence[Value]:
    return build("quantize", value, axes=axes, **_FORMS[form]).results


def _dequantized(q: Value, scale: Value, *, axes: tuple[int, ...], dtype: str) -> Value:
    return make("dequantize", q, scale, axes=axes, dtype=Symbol(dtype))


def _notes(
    program: Program, forms: Forms, changes: dict[int, Change], alone: dict[int, str], form: str
) -> list[str]:
    notes = []
    for number, change in changes.items():
        value, name = forms[number][0], program.inputs[number].name
        share = sum(other == forms[number] for other in forms.values())
        kept = sum(part.type.bytes for part in change.inward(value)) // share
        notes.append(f"{name} kept in {form}: {value.type.bytes // share:,} bytes -> {kept:,}")
    return notes + [
        Remark(reason, program.inputs[number].name, LEFT_ALONE)
        for number, reason in sorted(alone.items())
    ]


# Rules: `dequantize` moves from where a cache comes in towards attention.


def _example(q: jax.Array, scale: jax.Array, axis: int = 2) -> jax.Array:
    return Traced["dequantize"](q, scale, axes=(axis,), dtype=Symbol("f32"))


def _exact(q: jax.Array, scale: jax.Array) -> jax.Array:
    """Numbers that quantisation keeps as they are."""
    return _example((jnp.sign(q) * 127).astype("int8"), scale, axis=3)


def _fits(op: Op) -> bool:
    """Whether `quantize` would give integers and scales of these types; of no elements
    it finds no scale."""
    dtypes = tuple(arg.type.dtype for arg in op.args)
    return op.types[0].size > 0 and dtypes == ("i8", "bf16")


QUANTIZED = Form(
    "dequantize",
    undo="quantize",
    parts=("q", "s"),
    change=lambda axes, dtype: _change(dtype.text, axes, "int8"),
    example=_exact,
    types=lambda places: (f"i8[2,3,{places},4]", f"bf16[2,3,{places}]"),
    keeps="approx",
    fits=_fits,
)


def _kept(x: jax.Array) -> list[jax.Array]:
    return Traced["quantize"](x, axes=(2,), **_FORMS["int8"])


@local(
    "quantize",
    keeps="approx",
    example=lambda x: _kept(_example(*_kept(x)))[0],
    types=("f32[2,3,4]",),
)
def quantize_of_dequantize(op: Op) -> Outcome:
    """quantize(dequantize(q, s))  ->  q, s: what was rounded is not rounded again"""
    inner = op.args[0].op
    return inner.args if undoes(inner, op) else None


@local(
    "convert_element_type",
    keeps="reals",
    example=lambda q, s: _example(q, s).astype("bfloat16"),
    types=("i8[2,3,4]", "f32[2,3]"),
)
def convert_of_dequantize(op: Op) -> Outcome:
    """convert(dequantize(q, s))  ->  dequantize(q, s) in the other dtype"""
    inner = op.args[0].op
    if inner.name != "dequantize" or op.types[0].dtype not in _FLOATS:
        return None
    return _dequantized(*inner.args, axes=inner["axes"], dtype=op.types[0].dtype)


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
    args, inputs = list(op.args), list(named.inputs)
    names, attrs = names_of(op), dict(op.attrs)
    keys = [(f"key{pair}", PAIRS[pair], f"key_scale{pair}") for pair in pairs_of(op)]
    for name, summed, word in (("value", "v", "value_scale"), *keys):
        i = names.index(name)
        inner = args[i].op
        if inner.name != "dequantize":
            continue
        if op.get("sparq") is not None:
            return Miss("it reads a choice of positions, and their scales would be those of all", 2)
        weights = (op.get("weights") or inner["dtype"]).text
        if op.get("rounds") is not None or not is_float(weights):
            return Miss("its weights are rounded to integers of their own", 2)
        if [inputs[i][d] for d in inner["axes"]] != [(summed,)]:
            return Miss("its scales are not those of whole heads", 2)
        args[i], scale = inner.args
        axes_left = tuple(axis for d, axis in enumerate(inputs[i]) if d not in inner["axes"])
        args.insert(3, scale)
        inputs.insert(3, axes_left)
        names.insert(3, word)
        if word == "value_scale":
            attrs["weights"] = Symbol(weights)
    if tuple(args) == op.args:
        return None
    axes = str(Signature(tuple(inputs), named.outputs))
    return make("attend", *args, **{**attrs, "axes": axes, "given": " ".join(names[3:])})


RULES: tuple[Rule, ...] = (
    quantize_of_dequantize,
    rule(TRANSPOSED, "quantize"),
    rule(NARROW, "quantize"),
    *rules(QUANTIZED, "transpose", "without_axis", "reshape", "slice"),
    convert_of_dequantize,
    attend_in_integers,
)
