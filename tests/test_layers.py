"""Finding layers: by structure alone, whatever a library calls them, however it spells them."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import rewrite
from dialect.layered.layers import Layers, Run, find_layers
from rewrite import Pipeline
from tests.decoders import (
    BATCH,
    D_MODEL,
    FIRST,
    arguments,
    block,
    caches,
    decoder,
    recognized,
    weights,
)
from tests.tiny import LAYERS, MODELS, Case, traced


def runs(found: Layers) -> list[tuple[int, int]]:
    """(how many layers a group has, how often it repeats) of each run."""
    groups = [(range(run.first, run.first + run.period), run.repeats) for run in found.runs]
    layer = found.layer_of_segment
    return [(len({layer[n] for n in group if n in layer}), times) for group, times in groups]


# Which layers repeat.

KINDS = {
    "gggg": [(1, 4)],
    "lglglg": [(2, 3)],
    "llgllgl": [(3, 2)],  # what is left of a group stays outside
    "llllglllgl": [(4, 2)],
    "lllllglllllgll": [(6, 2), (1, 2)],
    "geee": [(1, 3)],
    "ggeee": [(1, 2), (1, 3)],
    "glgeglge": [(4, 2)],
    "nnn": [(1, 3)],  # layers may have each their own number
    "ccc": [],  # but not their own array
    "gw": [],
    "ss": [(1, 2)],
    "g": [],
}


@pytest.mark.parametrize("starts", ["shared", "own"])
@pytest.mark.parametrize("kinds", KINDS)
def test_alike_layers_are_runs(kinds: str, starts: str) -> None:
    found = find_layers(recognized(kinds, starts))
    assert runs(found) == KINDS[kinds]
    assert len(found.pieces) == len(kinds)


@pytest.mark.parametrize("kinds", ["lglglg", "geee", "gwgw", "ccc"])
def test_alike_layers_are_of_one_kind(kinds: str) -> None:
    found = find_layers(recognized(kinds, "own"))
    alike = {(a, b) for a in range(len(kinds)) for b in range(a)}
    kinds_of = [tuple(found.segments[n].kind for n in numbers) for numbers in found.pieces]
    same = {(a, b) for a, b in alike if kinds_of[a] == kinds_of[b]}
    assert same == {(a, b) for a, b in alike if kinds[a] == kinds[b] != "c"}


@pytest.mark.parametrize("prefill", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_the_examples_layers_are_found(model: str, prefill: bool) -> None:
    program = Pipeline.parse(FIRST).run(traced(Case(model, prefill, unrolled=True)))
    found = find_layers(program)
    assert runs(found) == [(1, LAYERS)]
    assert len(found.pieces) == LAYERS


@pytest.mark.parametrize("model", MODELS)
def test_a_loop_over_layers_has_none_to_find(model: str) -> None:
    found = find_layers(Pipeline.parse(FIRST).run(traced(Case(model))))
    assert found.runs == ()


def test_a_sum_that_repeats_is_no_layer() -> None:
    def step(w: Any, x: Any) -> Any:
        x = x @ w
        for _ in range(6):
            x = jnp.sin(x) + x
        return x

    program = rewrite.trace(step, jnp.eye(4), jnp.ones((2, 4)))
    assert find_layers(program).runs == ()


# What it does not depend on.


def test_names_play_no_part() -> None:
    def renamed(params: Any, cache: Any, tokens: Any) -> Any:
        layers = [each for _, each in sorted(params["layers"].items())]
        return decoder("lglg")({**params, "layers": layers}, cache, tokens)

    params, cache, tokens = arguments("lglg")
    names = ["a", "everything else", "layer_9", "x/y"]
    params["layers"] = dict(zip(names, params["layers"]))
    program = Pipeline.parse(FIRST).run(rewrite.trace(renamed, params, cache, tokens))
    assert runs(find_layers(program)) == [(2, 2)]


def test_the_order_of_results_plays_no_part() -> None:
    def turned(params: Any, cache: Any, tokens: Any) -> Any:
        logits, state = decoder("ggg")(params, cache, tokens)
        return state, logits

    program = recognized("ggg", step=turned)
    assert runs(find_layers(program)) == [(1, 3)]


def test_the_stream_may_begin_outside() -> None:
    """A step that is given the embedded tokens."""

    def step(params: Any, cache: Any, x: Any) -> Any:
        new = []
        for number, (w, own) in enumerate(zip(params["layers"], cache["layers"])):
            x, k, v = block("g", number, w, x, own["k"], own["v"], own["start"])
            new.append({"k": k, "v": v, "start": own["start"] + 1})
        return x, {"layers": new}

    x = jnp.ones((BATCH, D_MODEL))
    program = rewrite.trace(step, weights("ggg"), caches("ggg", "own"), x)
    assert runs(find_layers(Pipeline.parse(FIRST).run(program))) == [(1, 3)]


def test_tables_among_the_parameters_do_not_hide_the_trunk() -> None:
    """Angles that are looked up in a parameter join the stream in every layer."""

    def step(params: Any, cache: Any, tokens: Any, position: Any) -> Any:
        angles = jnp.cos(jnp.sin(params["table"][position] * 2.0) + 1.0)
        x, new = params["embedding"][tokens], []
        for number, (w, own) in enumerate(zip(params["layers"], cache["layers"])):
            x, k, v = block("g", number, w, x + angles, own["k"], own["v"], cache["start"])
            new.append({"k": k, "v": v})
        return x @ params["head"], {"layers": new, "start": cache["start"] + 1}

    params, cache, tokens = arguments("ggg")
    params["table"] = jnp.ones((5, D_MODEL))
    program = rewrite.trace(step, params, cache, tokens, jnp.int32(1))
    assert runs(find_layers(Pipeline.parse(FIRST).run(program))) == [(1, 3)]


def test_more_than_one_value_between_layers_is_no_trunk() -> None:
    """The first layer's network is added to every layer: nothing in between is passed by all."""

    def step(params: Any, cache: Any, tokens: Any) -> Any:
        x, new, first = params["embedding"][tokens], [], 0.0
        for number, (w, own) in enumerate(zip(params["layers"], cache["layers"])):
            x, k, v = block("g", number, w, x, own["k"], own["v"], cache["start"])
            first = x if number == 0 else first
            x = x + first
            new.append({"k": k, "v": v})
        return x @ params["head"], {"layers": new, "start": cache["start"] + 1}

    assert find_layers(recognized("ggg", step=step)).runs == ()


# What belongs to a layer.


def test_ops_know_their_layer() -> None:
    program = recognized("ggg", "own")
    found = find_layers(program)
    products = [op for op in program.graph.ops if op.name == "contract"]
    assert [found.layer(op) for op in products] == [*[0] * 6, *[1] * 6, *[2] * 6, None]
    written = [op for op in program.graph.ops if op.name == "cache_write"]
    assert [found.layer(op) for op in written] == [0, 0, 1, 1, 2, 2]
    (taken,) = (op for op in program.graph.ops if op.name == "take")
    assert found.layer(taken) is None


def test_what_layers_share_belongs_to_none() -> None:
    program = recognized("gg")
    found = find_layers(program)
    (mask,) = (op for op in program.graph.ops if op.name == "le")
    assert found.layer(mask) is None
    segment = found.segments[found.runs[0].first]
    assert any(leaf.op is mask for leaf in segment.leaves)


def test_segments_hold_all_that_depends_on_their_start() -> None:
    found = find_layers(recognized("gg", "own"))
    for before, after in zip(found.segments, found.segments[1:]):
        assert before.end == after.start
        inside = {value for op in after.ops for value in op.results}
        read = {arg for op in after.ops for arg in op.args}
        assert read - inside <= {after.start, *after.leaves}
        assert after.end in inside
    attending = found.segments[found.runs[0].first]
    assert attending.keeps_state and len(attending.exits) == 3  # keys, values and the next start


def test_layers_are_those_that_keep_a_state() -> None:
    found = find_layers(recognized("gw"))
    assert [list(own) for own in found.pieces] == [[2, 3], [4, 5]]
    assert found.layer_of_segment == {2: 0, 3: 0, 4: 1, 5: 1}


def test_without_a_state_each_group_is_a_layer() -> None:
    def step(ws: Any, x: Any) -> Any:
        for w in ws:
            x = x + jnp.tanh(x @ w)
        return x.sum()

    found = find_layers(rewrite.trace(step, [jnp.eye(4)] * 3, jnp.ones((2, 4))))
    assert found.runs == (Run(0, 1, 3),)
    assert [list(own) for own in found.pieces] == [[0], [1], [2]]


# Why two are not alike.


@pytest.mark.parametrize(
    "kinds, told",
    [
        ("gw", r"contract at .*\(block\) gives f32\[2,12\] where the other gives f32\[2,24\]"),
        ("cc", r"mul at .*\(block\) reads f32.* where the other reads f32.*, another constant"),
        ("gn", r"contract at .* reads its arguments from elsewhere|.* stands where .*"),
    ],
)
def test_the_first_difference_is_told(kinds: str, told: str) -> None:
    import re

    found = find_layers(recognized(kinds))
    same, text = found.difference(0, 1)
    assert same == 1  # their attention is alike
    assert re.fullmatch(told, text), text
    assert found.difference(1, 1) == (2, "")


def test_another_mask_is_told() -> None:
    def step(params: Any, cache: Any, tokens: Any) -> Any:
        x, new = params["embedding"][tokens], []
        for number, (w, own) in enumerate(zip(params["layers"], cache["layers"])):
            start = cache["start"] if number < 3 else cache["start"] + 1
            x, k, v = block("g", number, w, x, own["k"], own["v"], start)
            new.append({"k": k, "v": v})
        return x @ params["head"], {"layers": new, "start": cache["start"] + 1}

    found = find_layers(recognized("ggggg", step=step))
    assert runs(found) == [(1, 3), (1, 2)]
    same, text = found.difference(2, 3)
    assert same == 0 and text.startswith("it reads ") and text.endswith("reads another")


def test_big_programs_take_a_sweep() -> None:
    """Every op is placed once: ten times the layers are ten times the segments, and no more."""

    def step(ws: Any, x: Any) -> Any:
        for w in ws:
            x = x + jnp.tanh(x @ w)
        return lax.tanh(x)

    shapes = [jax.ShapeDtypeStruct((4, 4), "float32")] * 400
    program = rewrite.trace(partial(step), shapes, jax.ShapeDtypeStruct((2, 4), "float32"))
    found = find_layers(program)
    assert found.runs == (Run(0, 1, 400),)
    assert sum(len(segment.ops) for segment in found.segments) == len(program.graph.ops)
