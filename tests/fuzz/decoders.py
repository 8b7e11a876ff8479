"""Random decoders `step(params, cache, tokens) -> logits, cache`, each a dozen choices.

python -m tests.fuzz.decoders --seed 0 --count 100
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.fuzz import decoder_parts as parts
from tests.fuzz.checks import Failure, Tally, check
from tests.fuzz.pipelines import pipeline
from tests.fuzz.runs import run

CHOICES: dict[str, tuple[Any, ...]] = {
    "block": ("serial", "parallel", "sandwich", "after"),
    "norm": (
        "rms rsqrt scale wide",
        "rms rsqrt scale narrow",
        "rms sqrt one_plus wide",
        "rms power scale_wide wide",
        "rms outside scale narrow",
        "rms at_least scale narrow",
        "rms rsqrt none narrow",
        "layer rsqrt scale narrow",
        "layer sqrt scale wide",
        "layer variance one_plus narrow",
        "layer var scale narrow",
        "none rsqrt none narrow",
    ),
    "positions": ("half", "none", "interleaved", "rotated", "partial", "learned", "alibi"),
    "kv_heads": (4, 1, 2),
    "grouped": ("repeat", "broadcast", "einsum"),
    "spelled": ("einsum", "matmul"),
    "scaled": ("times", "divided", "query"),
    "fused": ("apart", "qkv", "heads"),
    "mask": ("causal", "window", "prefix", "none"),
    "masked": ("where_inf", "where_low", "add_low", "add_product", "where_10000"),
    "cap": (0.0, 5.0),
    "softmax": ("library", "by_hand"),
    "wide_softmax": (False, True),
    "sink": (False, True),
    "qk_norm": (False, True),
    "biased": (False, True),
    "order": tuple(parts.ORDERS),
    "write": ("update", "scatter", "one_hot", "roll"),
    "ring": (False, True),
    "together": (False, True),
    "cache_dtype": ("same", "bfloat16"),
    "starts": ("shared", "rows"),
    "activation": (
        *("silu", "gelu", "gelu_tanh", "relu", "silu_by_hand", "gelu_by_hand", "quick_gelu"),
        *("relu_squared", "clipped_silu"),
    ),
    "gate": ("plain", "gated", "fused"),
    "experts": ("none", "none", "none", "dense", "top_k", "ragged"),
    "recurrent": ("none", "none", "none", "mean", "gated"),
    "tied": (False, True),
    "embedding": ("take", "one_hot", "scaled"),
    "layers": (1, 2, 3),
    "loop": ("written", "scanned", "stacked"),
    "dtype": ("float32", "float32", "bfloat16", "float16"),
    "tokens": ("one", "column", "several"),
    "last": (False, True),
}
HEADS, D_HEAD, CONTEXT, WINDOW, EXPERTS = 4, 4, 6, 3, 3


@dataclass(frozen=True)
class Decoder:
    """One choice of each kind; the defaults are the plainest."""

    block: str = "serial"
    norm: str = "rms rsqrt scale wide"
    positions: str = "half"
    kv_heads: int = 4
    grouped: str = "repeat"
    spelled: str = "einsum"
    scaled: str = "times"
    fused: str = "apart"
    mask: str = "causal"
    masked: str = "where_inf"
    cap: float = 0.0
    softmax: str = "library"
    wide_softmax: bool = False
    sink: bool = False
    qk_norm: bool = False
    biased: bool = False
    order: str = "bshd"
    write: str = "update"
    ring: bool = False
    together: bool = False
    cache_dtype: str = "same"
    starts: str = "shared"
    activation: str = "silu"
    gate: str = "plain"
    experts: str = "none"
    recurrent: str = "none"
    tied: bool = False
    embedding: str = "take"
    layers: int = 1
    loop: str = "written"
    dtype: str = "float32"
    tokens: str = "one"
    last: bool = False
    seed: int = 0
    d_model: int = 8
    d_ff: int = 12
    vocab: int = 11
    batch: int = 2

    def __str__(self) -> str:
        """`Decoder(...)` with what is not plain."""
        said = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"Decoder({', '.join(said)})"

    # Its arrays.

    def params(self) -> Any:
        draw = _Draw(self)
        layers = [self._layer(draw) for _ in range(self.layers)]
        if self.loop == "scanned":
            stacked: Any = jax.tree.map(lambda *each: np.stack(each), *layers)
        else:
            stacked = layers
        made = {"embedding": draw(self.vocab, self.d_model), "layers": stacked}
        made["last_norm"] = draw.scale(self.d_model)
        made |= {} if self.tied else {"head": draw(self.d_model, self.vocab)}
        made |= {"positions": draw(CONTEXT, self.d_model)} if self.positions == "learned" else {}
        return made

    def _layer(self, draw: _Draw) -> Any:
        d, inner, kv, width = self.d_model, HEADS * D_HEAD, self.kv_heads * D_HEAD, self.d_ff
        w: dict[str, Any] = {f"norm{i}": draw.scale(d) for i in range(4)}
        if self.fused == "qkv":
            w["qkv"] = draw(d, inner + 2 * kv)
        elif self.fused == "heads":
            w |= {"q": draw(d, HEADS, D_HEAD), "k": draw(d, self.kv_heads, D_HEAD)}
            w["v"] = draw(d, self.kv_heads, D_HEAD)
        else:
            w |= {"q": draw(d, inner), "k": draw(d, kv), "v": draw(d, kv)}
        w["o"] = draw(HEADS, D_HEAD, d) if self.fused == "heads" else draw(inner, d)
        w |= {"o_bias": draw(d), "sink": draw(HEADS)}
        w |= {"q_norm": draw.scale(D_HEAD), "k_norm": draw.scale(D_HEAD)}
        up = 2 * width if self.gate == "fused" and self.experts == "none" else width
        if self.experts == "none":
            w |= {"up": draw(d, up), "gate": draw(d, width), "down": draw(width, d)}
            w |= {"up_bias": draw(up), "down_bias": draw(d)}
        else:
            w |= {"up": draw(EXPERTS, d, width), "gate": draw(EXPERTS, d, width)}
            w |= {"down": draw(EXPERTS, width, d), "router": draw(d, EXPERTS)}
        return w | {"decay": draw(d)}

    def cache(self) -> Any:
        """Of two positions, some of which hold numbers."""
        draw = _Draw(self, 1)
        kind = self.dtype if self.cache_dtype == "same" else self.cache_dtype
        shape = (self.batch, CONTEXT, self.kv_heads, D_HEAD)
        shape = tuple(shape[i] for i in parts.ORDERS[self.order])

        def layer() -> Any:
            keys, values = (draw(*shape).astype(kind) for _ in range(2))
            own = {"kv": np.stack([keys, values])} if self.together else {"k": keys, "v": values}
            if self.recurrent != "none":
                own["state"] = draw(self.batch, self.d_model)
            return own

        layers: Any = [layer() for _ in range(self.layers)]
        if self.loop != "written":
            layers = jax.tree.map(lambda *each: np.stack(each), *layers)
        start = np.asarray(np.arange(self.batch) % 3 if self.starts == "rows" else 2, "int32")
        return {"layers": layers, "start": start}

    def given(self, number: int = 0) -> Any:
        """The tokens of a step."""
        shape = {"one": (self.batch,), "column": (self.batch, 1), "several": (self.batch, 3)}
        numbers = np.random.default_rng(self.seed + 2 + number).integers(
            0, self.vocab, shape[self.tokens]
        )
        return numbers.astype("int32")

    # What it computes.

    def step(self, params: Any, cache: Any, tokens: Any) -> Any:
        x, positions = self._embedded(params, cache, tokens)
        if self.loop == "scanned":
            x, layers = lax.scan(
                lambda x, each: self._block(x, each[0], each[1], positions),
                x,
                (params["layers"], cache["layers"]),
            )
        else:
            x, layers = self._layers(x, params["layers"], cache["layers"], positions)
        x = x[:, -1:] if self.last else x
        x = parts.norm(self.norm, x, params["last_norm"])
        logits = x @ (params["embedding"].T if self.tied else params["head"])
        logits = logits[:, 0] if self.tokens == "one" else logits
        count = positions.shape[1]
        return logits.astype("float32"), {"layers": layers, "start": cache["start"] + count}

    def _embedded(self, params: Any, cache: Any, tokens: Any) -> tuple[Any, Any]:
        tokens = tokens[:, None] if tokens.ndim == 1 else tokens
        start = jnp.broadcast_to(cache["start"], (tokens.shape[0],))
        positions = start[:, None] + jnp.arange(tokens.shape[1])
        if self.embedding == "one_hot":
            x = jax.nn.one_hot(tokens, self.vocab, dtype=self.dtype) @ params["embedding"]
        else:
            x = params["embedding"][tokens]
        if self.embedding == "scaled":
            x = x * jnp.asarray(self.d_model**0.5, x.dtype)
        if self.positions == "learned":
            x = x + params["positions"][positions]
        return x, positions

    def _layers(self, x: Any, layers: Any, caches: Any, positions: Any) -> tuple[Any, Any]:
        made = []
        for i, w in enumerate(layers):
            own = caches[i] if self.loop == "written" else jax.tree.map(itemgetter(i), caches)
            x, new = self._block(x, w, own, positions)
            made.append(new)
        if self.loop == "stacked":
            return x, jax.tree.map(lambda *each: jnp.stack(each), *made)
        return x, made

    def _block(self, x: Any, w: Any, cache: Any, positions: Any) -> tuple[Any, Any]:
        if self.recurrent != "none":
            x, cache = self._recurrent(x, w, cache)
        if self.block == "after":
            mixed, cache = self._attention(x, w, cache, positions)
            x = parts.norm(self.norm, x + mixed, w["norm0"])
            return parts.norm(self.norm, x + self._ffn(x, w), w["norm1"]), cache
        normed = parts.norm(self.norm, x, w["norm0"])
        mixed, cache = self._attention(normed, w, cache, positions)
        if self.block == "parallel":
            return x + mixed + self._ffn(normed, w), cache
        if self.block == "sandwich":
            mixed = parts.norm(self.norm, mixed, w["norm2"])
        x = x + mixed
        ffn = self._ffn(parts.norm(self.norm, x, w["norm1"]), w)
        if self.block == "sandwich":
            ffn = parts.norm(self.norm, ffn, w["norm3"])
        return x + ffn, cache

    def _ffn(self, x: Any, w: Any) -> Any:
        made = parts.feed_forward if self.experts == "none" else parts.mixed_experts
        return made(self, x, w).astype(x.dtype)

    def _recurrent(self, x: Any, w: Any, cache: Any) -> tuple[Any, Any]:
        decay = jax.nn.sigmoid(w["decay"]) if self.recurrent == "gated" else 0.5

        def along(state: Any, row: Any) -> tuple[Any, Any]:
            state = (decay * state + (1 - decay) * row).astype(row.dtype)
            return state, state

        state, rows = lax.scan(along, cache["state"], jnp.swapaxes(x, 0, 1))
        return x + jnp.swapaxes(rows, 0, 1), cache | {"state": state}

    def _attention(self, x: Any, w: Any, cache: Any, positions: Any) -> tuple[Any, Any]:
        q, k, v = self._projected(x, w)
        if self.qk_norm:
            q, k = (
                parts.norm("rms rsqrt scale wide", e, w[n])
                for e, n in ((q, "q_norm"), (k, "k_norm"))
            )
        if self.positions in ("half", "interleaved", "rotated", "partial"):
            q, k = (parts.rope(self.positions, each, positions) for each in (q, k))
        if self.scaled == "query":
            q = q * D_HEAD**-0.5
        held = (cache["kv"][0], cache["kv"][1]) if self.together else (cache["k"], cache["v"])
        places = positions % CONTEXT if self.ring else positions
        new = [parts.written(self.write, self.order, c, e, places) for c, e in zip(held, (k, v))]
        made = {"kv": jnp.stack(new)} if self.together else {"k": new[0], "v": new[1]}
        k, v = (parts.plain(self.order, each).astype(x.dtype) for each in new)
        visible, bias = self._seen(positions)
        sink = w["sink"] if self.sink else None
        mixed = parts.attended(self, q, k, v, visible, bias, sink)
        if self.fused == "heads":
            out = jnp.einsum("bthd,hde->bte", mixed, w["o"])
        else:
            out = mixed.reshape(*mixed.shape[:2], -1) @ w["o"]
        return (out + w["o_bias"] if self.biased else out).astype(x.dtype), cache | made

    def _projected(self, x: Any, w: Any) -> tuple[Any, Any, Any]:
        if self.fused == "heads":
            q, k, v = (jnp.einsum("btd,dhk->bthk", x, w[name]) for name in "qkv")
            return q, k, v
        if self.fused == "qkv":
            inner, kv = HEADS * D_HEAD, self.kv_heads * D_HEAD
            every = jnp.split(x @ w["qkv"], [inner, inner + kv], -1)
        else:
            every = [x @ w[name] for name in "qkv"]
        q, k, v = (each.reshape(*each.shape[:2], -1, D_HEAD) for each in every)
        return q, k, v

    def _seen(self, positions: Any) -> tuple[Any, Any]:
        """Which keys each query sees, and ALiBi's bias, both [b, 1, t, s]."""
        slots = jnp.arange(CONTEXT)
        now = positions[:, :, None]
        if self.ring:
            at = now - (now - slots) % CONTEXT
        elif self.write == "roll":
            at = positions[:, -1:, None] - (CONTEXT - 1 - slots)
        else:
            at = jnp.broadcast_to(slots, (1, 1, CONTEXT))
        visible = (at <= now) & (at >= 0)
        if self.mask == "window":
            visible &= at > now - WINDOW
        if self.mask == "prefix":
            visible |= (at < 2) & (at >= 0)
        bias = None
        if self.positions == "alibi":
            slopes = 2.0 ** -(1 + jnp.arange(HEADS, dtype="float32"))
            bias = -slopes[:, None, None] * (now - at)[:, None].astype("float32")
        return None if self.mask == "none" else visible[:, None], bias


class _Draw:
    """Draws parameters in the decoder's dtype."""

    def __init__(self, decoder: Decoder, more: int = 0) -> None:
        self.random = np.random.default_rng(decoder.seed + more)
        self.kind = jnp.dtype(decoder.dtype)

    def __call__(self, *shape: int) -> Any:
        return (self.random.standard_normal(shape) * 0.4).astype(self.kind)

    def scale(self, *shape: int) -> Any:
        return (1 + self.random.standard_normal(shape) * 0.2).astype(self.kind)


def of_seed(seed: int) -> Decoder:
    """The decoder of a number."""
    source = random.Random(seed)
    plain = source.random() * 0.9
    chosen = {
        name: source.choice(choices) for name, choices in CHOICES.items() if source.random() > plain
    }
    return fitted(Decoder(**chosen, seed=seed))


def fitted(decoder: Decoder) -> Decoder:
    """What cannot be had together is given up: a ring of several tokens, a slice of own rows ..."""
    if decoder.starts == "rows" and decoder.write == "update":
        decoder = replace(decoder, write="scatter")
    if decoder.ring and decoder.write == "roll":
        decoder = replace(decoder, ring=False)
    if decoder.ring and decoder.write == "update" and decoder.tokens == "several":
        decoder = replace(decoder, write="scatter")
    return decoder


def checked(seed: int, tally: Tally) -> tuple[Decoder, Failure | None]:
    """One decoder through one pipeline, both of a seed."""
    decoder = of_seed(seed)
    return decoder, failure_of(decoder, pipeline(random.Random(seed)), tally)


def failure_of(decoder: Decoder, passes: Sequence[str], tally: Tally) -> Failure | None:
    """What does not hold of a decoder on its way through the passes."""
    args = (decoder.params(), decoder.cache(), decoder.given())
    return check(decoder.step, args, passes, tally, params=0, state=1)


def made_smaller(decoder: Decoder, failure: Failure) -> tuple[Decoder, Failure]:
    """The plainest decoder that fails alike, with as few passes."""
    smaller = True
    while smaller:
        smaller = False
        for one, passes in _plainer(decoder, failure.passes):
            found = failure_of(one, passes, Tally())
            if found is not None and found.key == failure.key:
                decoder, failure, smaller = one, found, True
                break
    return decoder, failure


def _plainer(decoder: Decoder, passes: Sequence[str]) -> Iterator[tuple[Decoder, Sequence[str]]]:
    before, last = passes[:-1], passes[-1:]
    for i in range(len(before)):
        yield decoder, (*before[:i], *before[i + 1 :], *last)
    for field in fields(decoder):
        if field.name != "seed" and getattr(decoder, field.name) != field.default:
            one = fitted(replace(decoder, **{field.name: field.default}))
            if one != decoder:
                yield one, passes


if __name__ == "__main__":
    sys.exit(bool(run("python -m tests.fuzz.decoders", checked, made_smaller)))
