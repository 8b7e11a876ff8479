"""A decode step that reads what its queries promise most of: SparQ attention."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.ops.attend import attend
from dialect.ops.vocabulary import Traced
from examples import gpt, llama
from rewrite import auto_shard, per_row, trace
from rewrite.errors import PipelineError
from rewrite.program import LEFT_ALONE, NOT_DONE, NOTHING_DONE, Program
from tests.kit import after, assert_close, graph_of, run

B, G, J, K, S = 4, 2, 3, 16, 48
RANDOM = np.random.default_rng(0)
FOUND, CONTEXT = "retarget, normalize, recognize, roll, carry_cache", 64
PLANNED = "plan, shard, stage, lower"


def drawn(*sizes: int) -> jax.Array:
    return jnp.asarray(RANDOM.normal(size=sizes), jnp.float32)


ARRAYS = (drawn(B, G, J, K), drawn(B, S, G, K), drawn(B, S, G, K))
LASTS = [(jnp.int32(40), ""), (jnp.asarray([3, 47, 20, 9]), "b")]


def chosen(last: jax.Array, axes: str, **more: Any) -> Any:
    named = f"b g j k, b s g k, b s g v, {axes} -> b j g v"
    step = partial(attend, axes=named, given="last", scale=0.25, **more)
    return np.asarray(run(step, *ARRAYS, last))


@pytest.mark.parametrize(("last", "axes"), LASTS)
@pytest.mark.parametrize("mean", [True, False])
def test_all_columns_and_positions_are_attention(last: Any, axes: str, mean: bool) -> None:
    wanted = chosen(last, axes)
    assert_close(chosen(last, axes, sparq=(K, S, 4, mean)), wanted, atol=1e-5)
    assert np.abs(chosen(last, axes, sparq=(4, 6, 2, mean)) - wanted).max() > 0.01


def test_it_is_the_algorithm_of_the_paper() -> None:
    """Algorithm 1 of arXiv:2312.04985 for one head, written down in NumPy."""
    q, keys, values = (np.asarray(drawn(*sizes)) for sizes in ((K,), (S, K), (S, K)))
    last, r, k, local = 40, 5, 9, 3
    largest = np.argsort(-np.abs(q))[:r]
    temperature = np.sqrt(K * np.abs(q[largest]).sum() / np.abs(q).sum())
    logits = keys[: last + 1, largest] @ q[largest] / temperature
    shares = np.exp(logits) / np.exp(logits).sum()
    preferred = shares + (np.arange(last + 1) > last - local)
    places = np.argsort(-preferred)[:k]
    exact = np.exp(keys[places] @ q / np.sqrt(K))
    alpha, mean = shares[places].sum(), values[: last + 1].mean(0)
    wanted = alpha * (exact / exact.sum()) @ values[places] + (1 - alpha) * mean
    held = values.copy()
    held[last + 1 :] = 0  # a fresh cache
    step = partial(attend, axes="k, s k, s v,  -> v", given="last", scale=K**-0.5)
    found = run(partial(step, sparq=(r, k, local, True)), q, keys, held, np.int32(last))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("sparq", "why"),
    [((17, 4, 1, True), "17 of 16 numbers"), ((4, 49, 1, True), "49 of 48 positions")],
)
def test_more_than_there_is_cannot_be_chosen(sparq: tuple, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        chosen(*LASTS[0], sparq=sparq)


def decoder(model: ModuleType, rows: bool = False, tokens: int | None = None) -> Any:
    """A toy decoder, its step or one with a position for every row, and its arguments."""
    config, random = model.CONFIGS["toy"], np.random.default_rng(1)
    step: Any = partial(model.prefill if tokens else model.decode_step, config)
    init = partial(model.init_cache, config, context=CONTEXT)
    step = per_row(step, init) if rows else step
    cache = step.init(8) if rows else init(8)
    for name, leaf in cache.items():
        if leaf.ndim > 1:
            cache[name] = jnp.asarray(random.normal(size=leaf.shape), "float32")
    places = jnp.asarray([3, 9, 0, 31, 1, 2, 63, 40], jnp.int32)
    cache["position"] = places if rows else jnp.int32(0 if tokens else 40)
    ids = random.integers(0, config.vocab, (8, tokens) if tokens else 8)
    params = model.init_params(config, jax.random.key(0))
    return step, (params, cache, jnp.asarray(ids, jnp.int32))


def all_of_it(model: ModuleType) -> str:
    return f"{FOUND}, sparq{{r={model.CONFIGS['toy'].d_head}, k={CONTEXT}, mean=always}}"


@pytest.mark.parametrize("model", [llama, gpt])
@pytest.mark.parametrize("mesh", ["cpu:1", "cpu:8"])
def test_a_decoder_that_reads_all_computes_what_it_did(model: ModuleType, mesh: str) -> None:
    step, args = decoder(model)
    sharded = auto_shard(step, mesh, pipeline=f"{all_of_it(model)}, {PLANNED}")
    logits, cache = sharded(sharded.prepare(*args), sharded.adapt(args[1]), args[2])
    assert_close((logits, sharded.restore(cache)), run(step, *args), atol=1e-4)


def test_what_is_read_again_is_kept() -> None:
    """Two steps, so that what the first wrote is read: as with the cache adapted in between."""
    step, (params, cache, ids) = decoder(gpt)
    cache = {name: leaf * 0 if leaf.ndim else leaf for name, leaf in cache.items()}
    choice = "sparq{r=4, k=16, local=4, mean=always}"
    sharded = auto_shard(step, "cpu:1", pipeline=f"{FOUND}, {choice}, {PLANNED}")
    packed = sharded.prepare(params, cache, ids)
    _, kept = sharded(packed, sharded.adapt(cache), ids)
    anew = sharded.adapt(jax.tree.map(jnp.array, sharded.restore(kept)))
    assert_close(sharded(packed, kept, ids)[0], sharded(packed, anew, ids)[0], atol=1e-5)


def remarks(program: Program) -> list[tuple[str, str, str]]:
    step = program.history[-1]
    return [(note.of, note.text.partition(": ")[0], note.kind) for note in step.remarks]


def test_rows_choose_too_but_have_no_mean() -> None:
    step, args = decoder(llama, rows=True)
    program = after(trace(step, *args), all_of_it(llama))
    assert_close(run(program, *args), run(step, *args), atol=1e-4)
    kinds = [(of, kind) for of, _, kind in remarks(program)[1:]]
    assert kinds == [("cache/v", LEFT_ALONE), ("", NOT_DONE)]


def test_grouped_heads_have_no_mean_unless_asked() -> None:
    for model, is_mean in ((llama, False), (gpt, True)):
        step, args = decoder(model)
        program = after(trace(step, *args), f"{FOUND}, sparq{{r=4, k=16, local=4}}")
        (op,) = (op for op, _ in program.graph.walk() if op.name == "attend")
        assert op["sparq"] == (4, 16, 4, is_mean)
        assert op["given"] == ("total columns last" if is_mean else "columns last")


def test_what_is_read_is_told() -> None:
    step, args = decoder(gpt)
    program = after(trace(step, *args), f"{FOUND}, sparq{{r=4, k=16, local=4}}")
    (note,) = program.history[-1].notes
    assert note == (
        "4 of 8 columns and 16 of 64 positions are read: 544 of 1,040 numbers a head, 1/1.9"
    )


def test_what_cannot_be_done_is_told() -> None:
    step, args = decoder(llama)
    for choice, why in (
        ("sparq{r=4}", "k=128 is more than its 64 positions"),
        ("sparq{k=64}", "r=32 is more than the 8 numbers of a query"),
        ("flash{key=8}, sparq{r=4, k=64}", "it is in blocks or has a window already"),
    ):
        program = after(trace(step, *args), f"{FOUND}, {choice}")
        assert remarks(program) == [("", why, NOT_DONE)]
        assert [entry.name for entry in program.step_inputs if entry.role == "state"] == [
            *("cache/k", "cache/position", "cache/v")
        ]
    prefill, args = decoder(llama, tokens=32)
    program = after(trace(prefill, *args), f"{FOUND}, sparq{{r=4, k=64}}")
    why = "its queries have positions of their own, it is no decode step"
    assert remarks(program) == [("", why, NOT_DONE)]
    (remark,) = remarks(after(trace(step, *decoder(llama)[1]), "normalize, sparq"))
    assert remark[1:] == ("no attention was recognised", NOTHING_DONE)


def test_a_mask_that_depends_on_data_is_left_alone() -> None:
    def step(w: Any, x: jax.Array, kept: jax.Array) -> jax.Array:
        q, k, v = (x @ each for each in w)
        return jax.nn.softmax(jnp.where(kept, q[:1] @ k.T, -jnp.inf), -1) @ v

    args = ([drawn(16, 8) for _ in "qkv"], drawn(24, 16), RANDOM.random(24) > 0.5)
    program = after(trace(step, *args), "normalize, recognize, sparq{r=4, k=8, local=2}")
    assert remarks(program) == [("", "its mask depends on data", NOT_DONE)]


def test_a_choice_of_nothing_is_refused() -> None:
    step, args = decoder(llama)
    with pytest.raises(PipelineError, match="local is at most k"):
        after(trace(step, *args), "sparq{k=8, local=9}")


@pytest.mark.parametrize(("word", "kept"), [("with_columns", (2, 4, 3)), ("with_total", (2, 4))])
def test_what_is_kept_beside_a_cache_has_its_dtype(word: str, kept: tuple[int, ...]) -> None:
    """The body of a loop could not carry it in another one."""
    cache, beside = jnp.ones((2, 3, 4)), jnp.ones(kept, jnp.bfloat16)
    with pytest.raises(ValueError, match="bfloat16.* is kept, and should be float32"):
        graph_of(lambda x, y: Traced[word](x, y, axis=1), cache, beside)
