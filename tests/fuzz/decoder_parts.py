"""What a decoder is put together from, each in the spellings that libraries use.

Shapes: x [b, t, d_model]; queries, keys and values [b, t, heads, d_head]; positions [b, t].
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


# Norms.


def norm(form: str, x: Array, scale: Any) -> Array:
    """form: `KIND SPELLING SCALE WIDTH`, such as `rms rsqrt one_plus wide`."""
    kind, spelling, scaled, width = form.split()
    if kind == "none":
        return x
    given, x = x, x.astype("float32") if width == "wide" else x
    if kind == "layer":
        x = x - jnp.mean(x, -1, keepdims=True)
    square = jnp.mean(jnp.square(x), -1, keepdims=True)
    match spelling:
        case "rsqrt":
            x = x * lax.rsqrt(square + 1e-6)
        case "sqrt":
            x = x / jnp.sqrt(square + 1e-5)
        case "outside":
            x = x / (jnp.sqrt(square) + 1e-5)
        case "power":
            x = x * (square + 1e-5) ** -0.5
        case "at_least":
            x = x * lax.rsqrt(jnp.maximum(square, 1e-6))
        case "variance":
            mean = jnp.mean(x, -1, keepdims=True)
            x = x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) - mean * mean * 0 + 1e-5)
        case "var":
            x = x * lax.rsqrt(jnp.var(x, -1, keepdims=True) + 1e-5)
    if width == "wide" and scaled != "scale_wide":
        x = x.astype(given.dtype)
    x = {"one_plus": lambda: x * (1 + scale), "none": lambda: x}.get(scaled, lambda: x * scale)()
    return x.astype(given.dtype)


# Positions.


def angles(positions: Array, size: int) -> tuple[Array, Array]:
    """(cos, sin), each [b, t, 1, size / 2]."""
    frequencies = 10000.0 ** (-jnp.arange(0, size, 2, dtype="float32") / size)
    turned = positions[..., None].astype("float32") * frequencies
    return jnp.cos(turned)[:, :, None], jnp.sin(turned)[:, :, None]


def rope(form: str, x: Array, positions: Array) -> Array:
    size = x.shape[-1] // 2 if form == "partial" else x.shape[-1]
    cos, sin = (each.astype(x.dtype) for each in angles(positions, size))
    if form == "partial":
        return jnp.concatenate([_halves(x[..., :size], cos, sin), x[..., size:]], -1)
    if form == "interleaved":
        even, odd = x[..., ::2], x[..., 1::2]
        turned = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], -1)
        return turned.reshape(x.shape)
    if form == "rotated":
        half = size // 2
        other = jnp.concatenate([-x[..., half:], x[..., :half]], -1)
        return x * jnp.concatenate([cos, cos], -1) + other * jnp.concatenate([sin, sin], -1)
    return _halves(x, cos, sin)


def _halves(x: Array, cos: Array, sin: Array) -> Array:
    one, two = jnp.split(x, 2, -1)
    return jnp.concatenate([one * cos - two * sin, two * cos + one * sin], -1)


# Caches. An array of keys is [b, s, h, d] in one of these orders.

ORDERS = {
    "bshd": (0, 1, 2, 3),
    "bhsd": (0, 2, 1, 3),
    "sbhd": (1, 0, 2, 3),
    "bhds": (0, 2, 3, 1),
}


def written(how: str, order: str, cache: Array, new: Array, positions: Array) -> Array:
    """The cache with new rows [b, t, h, d] at their positions [b, t]; `roll` shifts the others."""
    axes = ORDERS[order]
    rows = new.astype(cache.dtype).transpose(axes)
    at = axes.index(1)
    if how == "roll":
        kept = lax.slice_in_dim(cache, new.shape[1], cache.shape[at], axis=at)
        return jnp.concatenate([kept, rows], at)
    if how == "update":
        starts = [positions[0, 0] if axis == at else 0 for axis in range(4)]
        return lax.dynamic_update_slice(cache, rows, starts)
    back = plain(order, cache)
    if how == "scatter":
        made = back.at[jnp.arange(new.shape[0])[:, None], positions].set(new.astype(cache.dtype))
    else:
        chosen = jax.nn.one_hot(positions, back.shape[1], dtype=cache.dtype)
        kept = 1 - chosen.sum(1)[:, :, None, None]
        made = back * kept + jnp.einsum("bts,bthd->bshd", chosen, new.astype(cache.dtype))
    return made.transpose(axes)


def plain(order: str, cache: Array) -> Array:
    """The cache as [b, s, h, d]."""
    axes = ORDERS[order]
    return cache.transpose(tuple(axes.index(i) for i in range(4)))


# Attention.


def attended(form: Any, q: Array, k: Array, v: Array, visible: Any, bias: Any, sink: Any) -> Array:
    """q [b, t, h, d]; k, v [b, s, g, d]; visible and bias [b, 1, t, s] or None."""
    groups = q.shape[2] // k.shape[2]
    if form.grouped == "einsum" and groups > 1:
        split = q.reshape(*q.shape[:2], k.shape[2], groups, q.shape[3])
        logits = jnp.einsum("btgrd,bsgd->bgrts", split, k)
        logits = logits.reshape(q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    else:
        k = repeated(form.grouped, k, groups)
        logits = jnp.einsum("bthd,bshd->bhts", q, k)
        if form.spelled == "matmul":
            logits = q.transpose(0, 2, 1, 3) @ k.transpose(0, 2, 3, 1)
    scale = q.shape[-1] ** -0.5
    logits = logits / q.shape[-1] ** 0.5 if form.scaled == "divided" else logits * scale
    if form.cap:
        logits = form.cap * jnp.tanh(logits / form.cap)
    logits = logits.astype("float32") if form.wide_softmax else logits
    logits = logits if bias is None else logits + bias.astype(logits.dtype)
    logits = logits if visible is None else masked(form.masked, logits, visible)
    weights = softmax(form, logits, sink).astype(v.dtype)
    if form.grouped == "einsum" and groups > 1:
        split = weights.reshape(weights.shape[0], v.shape[2], groups, *weights.shape[2:])
        return jnp.einsum("bgrts,bsgd->btgrd", split, v).reshape(q.shape)
    v = repeated(form.grouped, v, groups)
    return jnp.einsum("bhts,bshd->bthd", weights, v)


def repeated(how: str, x: Array, groups: int) -> Array:
    """[b, s, g, d] -> [b, s, g * groups, d]"""
    if groups == 1:
        return x
    if how == "repeat":
        return jnp.repeat(x, groups, axis=2)
    wide = jnp.broadcast_to(x[:, :, :, None], (*x.shape[:3], groups, x.shape[3]))
    return wide.reshape(*x.shape[:2], -1, x.shape[3])


def masked(how: str, logits: Array, visible: Array) -> Array:
    lowest = jnp.finfo(logits.dtype).min
    match how:
        case "where_inf":
            return jnp.where(visible, logits, -jnp.inf)
        case "where_low":
            return jnp.where(visible, logits, lowest)
        case "add_low":
            return logits + jnp.where(visible, 0.0, lowest).astype(logits.dtype)
        case "add_product":
            return logits + (1.0 - visible.astype(logits.dtype)) * -1e4
    return jnp.where(visible, logits, -1e4)


def softmax(form: Any, logits: Array, sink: Any) -> Array:
    if sink is not None:
        wide = jnp.broadcast_to(sink[None, :, None, None], (*logits.shape[:-1], 1))
        logits = jnp.concatenate([logits, wide.astype(logits.dtype)], -1)
        return jax.nn.softmax(logits, -1)[..., :-1]
    if form.softmax == "by_hand":
        weights = jnp.exp(logits - logits.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True)
    return jax.nn.softmax(logits, -1)


# Feed-forward.


def activation(name: str, x: Array) -> Array:
    match name:
        case "gelu":
            return jax.nn.gelu(x, approximate=False)
        case "gelu_tanh":
            return jax.nn.gelu(x)
        case "gelu_by_hand":
            return 0.5 * x * (1 + jnp.tanh(0.7978845608 * (x + 0.044715 * x**3)))
        case "silu":
            return jax.nn.silu(x)
        case "silu_by_hand":
            return x * (1 / (1 + jnp.exp(-x)))
        case "quick_gelu":
            return x * jax.nn.sigmoid(1.702 * x)
        case "relu_squared":
            return jnp.square(jax.nn.relu(x))
        case "clipped_silu":
            return jnp.minimum(x, 1.0) * jax.nn.sigmoid(jnp.minimum(x, 1.0))
    return jax.nn.relu(x)


def feed_forward(form: Any, x: Array, w: Any) -> Array:
    up = x @ w["up"]
    if form.biased:
        up = up + w["up_bias"]
    if form.gate == "fused":
        gate, up = jnp.split(up, 2, -1)
        hidden = activation(form.activation, gate) * up
    elif form.gate == "gated":
        hidden = activation(form.activation, x @ w["gate"]) * up
    else:
        hidden = activation(form.activation, up)
    down = hidden @ w["down"]
    return down + w["down_bias"] if form.biased else down


def mixed_experts(form: Any, x: Array, w: Any) -> Array:
    """Experts' products; w: gate and up [e, d, f], down [e, f, d], router [d, e]."""
    logits = x @ w["router"]
    count = logits.shape[-1]
    if form.experts == "dense":
        share = jax.nn.softmax(logits, -1)
    else:
        best, which = lax.top_k(logits, 2)
        best = jax.nn.softmax(best, -1)
        share = jnp.sum(jax.nn.one_hot(which, count, dtype=x.dtype) * best[..., None], -2)
    if form.experts == "ragged":
        return _ragged(form, x, w, best, which)
    hidden = activation(form.activation, jnp.einsum("btd,edf->btef", x, w["gate"]))
    hidden = hidden * jnp.einsum("btd,edf->btef", x, w["up"])
    return jnp.einsum("btef,efd,bte->btd", hidden, w["down"], share.astype(x.dtype))


def _ragged(form: Any, x: Array, w: Any, best: Array, which: Array) -> Array:
    """Tokens sorted by their experts, one product a group."""
    b, t, d = x.shape
    flat = which.reshape(-1)
    order = jnp.argsort(flat)
    rows = jnp.repeat(x.reshape(b * t, d), 2, axis=0)[order]
    sizes = jnp.bincount(flat, length=w["router"].shape[-1]).astype("int32")
    hidden = activation(form.activation, lax.ragged_dot(rows, w["gate"], sizes))
    hidden = hidden * lax.ragged_dot(rows, w["up"], sizes)
    made = lax.ragged_dot(hidden, w["down"], sizes)[jnp.argsort(order)]
    made = made.reshape(b, t, 2, d) * best[..., None].astype(x.dtype)
    return made.sum(2)
