"""States that are no attention: updated in place, named, planned, beside attention and alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewrite import Pipeline, Target, auto_shard, trace
from tests.kit import assert_close, run
from tests.stateful_decoders import LAYERS, arguments, decoder, shapes
from tests.test_beside_plan import on_v5e

STATES = [kind for kind in LAYERS if kind != "attention"]
HYBRIDS = [
    ("attention", "linear attention") * 2,
    ("state space", "attention") * 2,
    ("gated recurrence", "gated recurrence", "attention") * 2,
    ("delta rule", "delta rule", "delta rule", "attention"),
]
DECODERS = [*((kind,) * 2 for kind in STATES), *HYBRIDS]
FOUND = "normalize, recognize, roll, carry_cache"


def notes(program: Any, name: str) -> tuple[str, ...]:
    return next(each.notes for each in program.history if each.text.startswith(name))


@pytest.mark.parametrize("kinds", DECODERS, ids=" ".join)
def test_layers_with_a_state_are_served(kinds: tuple[str, ...]) -> None:
    """Two steps on eight devices: what comes back is the state of the next."""
    step = auto_shard(decoder(*kinds), "cpu:8", state=1)
    params, state, tokens = arguments(*kinds)
    wanted, packed = jax.jit(decoder(*kinds)), step.prepare(params, state, tokens)
    given = step.adapt(jax.tree.map(jnp.array, state))
    for _ in range(2):
        logits, state = wanted(params, state, tokens)
        found, given = step(packed, given, tokens)
        assert_close(found, logits, 1e-4)
    assert_close(step.restore(given), state, 1e-4)


@pytest.mark.parametrize("kinds", DECODERS, ids=" ".join)
def test_a_loop_carries_every_state(kinds: tuple[str, ...]) -> None:
    """In place, whether a place of it is written or all of it is computed anew. (Positions are
    numbers, and are stacked.)"""
    args = arguments(*kinds)
    program = Pipeline.parse(FOUND).run(trace(decoder(*kinds), *args, state=(1,)))
    scans = [op for op, _ in program.graph.walk() if op.name == "scan"]
    stacked = [type_ for op in scans for type_ in op.types[op["carry"] :]]
    assert scans and all(type_.rank == 1 for type_ in stacked)
    assert any("computed anew carried" in note for note in notes(program, "carry_cache"))
    assert_close(run(program, *args), jax.jit(decoder(*kinds))(*args), 1e-4)


@pytest.mark.parametrize("kind", STATES)
def test_a_state_is_named(kind: str) -> None:
    """With all that computes it: nothing of these layers is left unrecognised."""
    text = auto_shard(decoder(kind, kind), "cpu:8", state=1).details(*arguments(kind, kind))
    assert "recognised: 100.0 % of" in text and "NOT RECOGNISED" not in text
    assert "state update" in text and "state/*" in text


@pytest.mark.parametrize(("sizes", "is_small"), [((8, 256, 512), True), ((8, 8192, 32768), False)])
def test_that_one_chip_is_faster_than_four_is_said(sizes: tuple[int, ...], is_small: bool) -> None:
    """A small decoder's exchanges take longer than all its weights."""
    args = shapes("state space", "state space", sizes=(*sizes, 8, 64, 16), vocab=1024)
    program = trace(decoder("state space", "state space"), *args, state=(1,))
    target = Target("v5e:2x2", (("x", 2), ("y", 2)))
    planned = Pipeline.parse("normalize, recognize, plan").run(program, target)
    said = [note for note in notes(planned, "plan") if note.startswith("one chip by itself")]
    assert len(said) == is_small


@pytest.mark.parametrize("kind", STATES)
def test_layers_with_a_state_compile_as_planned(kind: str) -> None:
    """What products with a state's heads leave partial was not planned, nor the traffic of a state;
    of a joint projection the weight was gathered in every step."""
    args = shapes(kind, kind, sizes=(16, 1024, 2048, 16, 128, 128), vocab=16384)
    program, rows = on_v5e(decoder(kind, kind), *args)
    memory, received, moved = (row.compiled / row.planned for row in rows)
    assert (memory, received, moved) == pytest.approx((1, 1, 1), abs=0.1)


def test_a_state_is_kept_in_the_parts_that_chips_share() -> None:
    """The last inputs of a convolution over x, B and C are one array of the user's."""
    kinds = ("joint state space",) * 2
    args = shapes(*kinds, sizes=(16, 1024, 2048, 16, 128, 128), vocab=16384)
    program = trace(decoder(*kinds), *args, params=0, state=1)
    target = Target("v5e:2x4", (("x", 2), ("y", 4)))
    program = Pipeline.parse(f"{FOUND}, plan, shard, stage").run(program, target)
    kept = {x.name: x for x in program.step_inputs if x.role == "state" and "conv" in x.name}
    assert {name: x.type.shape for name, x in kept.items()} == {
        "state/0-1/conv.0": (2, 16, 2048, 3),
        "state/0-1/conv.1": (2, 16, 128, 3),
        "state/0-1/conv.2": (2, 16, 128, 3),
    }
    assert {x.layout for x in kept.values()} == {((), (), ("x", "y"), ())}


CHUNK = 13


def chunked(x: jax.Array, state: jax.Array, b: jax.Array, c: jax.Array, rate: jax.Array) -> Any:
    """A state space of one token as a chunk of many (Dao & Gu 2024, section 6), the rest zeros."""
    x, b, c, rate = (
        jnp.pad(y[:, None], [(0, 0), (0, CHUNK - 1)] + [(0, 0)] * (y.ndim - 1))
        for y in (x, b, c, rate)
    )
    sums = jnp.cumsum(rate, 1)
    apart = sums[:, :, None] - sums[:, None]
    mask = jnp.tril(jnp.ones((CHUNK, CHUNK), bool))[..., None]
    decay = jnp.exp(jnp.where(mask, apart, -jnp.inf))
    inside = jnp.einsum("bln,bsn,blsh,bshp->blhp", c, b, decay, x)
    before = jnp.einsum("bln,bhpn,blh->blhp", c, state, jnp.exp(sums))
    new = jnp.einsum("bln,blh,blhp->bhpn", b, jnp.exp(sums[:, -1:] - sums), x)
    return (inside + before)[:, 0], state * jnp.exp(sums[:, -1])[..., None, None] + new


def test_what_a_chunk_is_padded_with_is_not_computed() -> None:
    random = np.random.default_rng(0)
    shapes_ = ((2, 3, 4), (2, 3, 4, 5), (2, 5), (2, 5), (2, 3))
    args = [jnp.asarray(random.standard_normal(shape), "float32") for shape in shapes_]
    program = Pipeline.parse("normalize, recognize").run(trace(chunked, *args, state=1))
    computed = [op for op, _ in program.graph.walk() if op.name in ("contract", "exp", "cumsum")]
    assert computed and not any(CHUNK in op.types[0].shape for op in computed)
    assert not any(op.name == "pad" for op, _ in program.graph.walk())
    assert_close(run(program, *args), jax.jit(chunked)(*args), 1e-5)


@pytest.mark.parametrize(
    "read",
    [
        lambda x: jnp.exp(x).sum(1),
        lambda x: jnp.cos(x)[:, -1:],
        lambda x: jnp.cumsum(x + 1, 1)[:, -1:],
        lambda x: jnp.cumsum(x, 1)[:, 2:5],
        lambda x: jnp.cumsum(x, 1)[:, :4],
        lambda x: jax.lax.cumsum(x, 1, reverse=True)[:, :1],
        lambda x: (x @ jnp.arange(13.0 * 2).reshape(13, 2), jnp.cumprod(x, 1)[:, -1:]),
        lambda x: jnp.max(x, 1),
    ],
)
def test_padding_that_is_read_is_computed(read: Any) -> None:
    def step(_: jax.Array, x: jax.Array) -> Any:
        return read(jnp.pad(x, ((0, 0), (0, CHUNK - 3))))

    args = jnp.zeros(1), jnp.asarray(-np.arange(1.0, 7).reshape(2, 3), "float32")
    program = Pipeline.parse("normalize, recognize").run(trace(step, *args))
    assert_close(run(program, *args), jax.jit(step)(*args), 1e-5)


def scanned(kind: str) -> Any:
    """A prompt, one token after the other."""

    def prefill(params: Any, state: Any, tokens: jax.Array) -> Any:
        def one(state: Any, token: jax.Array) -> Any:
            logits, state = decoder(kind)(params, state, token)
            return state, logits

        state, logits = jax.lax.scan(one, state, tokens.T)
        return logits[-1], state

    return prefill


@pytest.mark.parametrize("kind", STATES)
def test_a_scan_over_tokens_is_served(kind: str) -> None:
    params, state, tokens = arguments(kind)
    prompt = jnp.stack([tokens, tokens + 1, tokens * 2 % 96], 1)
    step = auto_shard(scanned(kind), "cpu:8", state=1)
    wanted = jax.jit(scanned(kind))(params, state, prompt)
    packed = step.prepare(params, state, prompt)
    logits, new = step(packed, step.adapt(jax.tree.map(jnp.array, state)), prompt)
    assert_close((logits, step.restore(new)), wanted, 1e-4)
