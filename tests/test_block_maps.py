"""Blocks of positions that attend to one another by a file: what they keep, in every form."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.ops.attend import attend
from dialect.user.block_map import read_block_map
from rewrite import auto_shard
from rewrite.errors import TextError
from rewrite.program import NOT_DONE
from tests import masked_layer
from tests.kit import assert_close, run, traced_after

B, T, G, J, K, S, CELL = 4, 8, 2, 3, 16, 48, 6
RANDOM = np.random.default_rng(0)
CELLS = RANDOM.random((8, 8)) > 0.5
AXES = "b t g j k, b s g k, b s g v, {} -> b t g j v"
LASTS = {
    "of each query": (jnp.arange(T) + 37, "t"),
    "of queries far apart": (jnp.arange(T) * CELL + 5, "t"),
    "one for all": (jnp.int32(44), ""),
    "of each row": (jnp.asarray([0, 7, 30, 47]), "b"),
}


def drawn(*sizes: int) -> jax.Array:
    return jnp.asarray(RANDOM.normal(size=sizes), jnp.float32)


ARRAYS = (drawn(B, T, G, J, K), drawn(B, S, G, K), drawn(B, S, G, K))


def kept(last: Any, context: int = S, cell: int = CELL, cells: Any = CELLS) -> np.ndarray:
    """Which positions of the context a position keeps."""
    last, places = np.asarray(last)[..., None], np.arange(context)
    return cells[last // cell, places // cell] & (places <= last)


@pytest.mark.parametrize("fill", [None, -1e9, -3.0])
@pytest.mark.parametrize("last", LASTS)
def test_a_map_is_the_mask_that_it_says(last: str, fill: float | None) -> None:
    """Rows that keep nothing are NaN or a mean of all, as with the mask."""
    ends, axes = LASTS[last]
    whole = partial(attend, axes=AXES.format(f"{axes} s"), given="mask", fill=fill)
    wanted = run(whole, *ARRAYS, jnp.asarray(kept(ends)))
    mapped = partial(
        attend, axes=AXES.format(f"{axes}, row column"), given="last map", fill=fill, cell=CELL
    )
    for blocks in (None, (4, 8), (8, 16) if fill else (1, 4)):
        found = run(partial(mapped, blocks=blocks), *ARRAYS, ends, jnp.asarray(CELLS))
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


def test_blocks_that_no_query_keeps_are_not_read() -> None:
    """Values there may be anything: NaN of a key without weight would be NaN in the whole."""
    cells = np.eye(8, dtype=bool) | (np.arange(8) == 0)
    ends, (query, keys, values) = jnp.arange(T) + 40, ARRAYS
    mapped = partial(
        attend, axes=AXES.format("t, row column"), given="last map", cell=CELL, blocks=(8, 6)
    )
    found = run(mapped, query, keys, values.at[:, 6:36].set(jnp.nan), ends, jnp.asarray(cells))
    wanted = run(mapped, query, keys, values, ends, jnp.asarray(cells))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_cells_need_a_map_and_a_last_position() -> None:
    with pytest.raises(ValueError, match="cells are those of a map"):
        attend(*ARRAYS, axes=AXES.replace(", {}", ""), cell=4)


# Files.


def text(cells: np.ndarray, cell: int) -> str:
    return (
        "\n".join([str(cell), *("".join("x" if x else "." for x in row) for row in cells)]) + "\n"
    )


def test_a_file_is_read() -> None:
    found = read_block_map(text(CELLS, CELL))
    np.testing.assert_array_equal(found.cells, CELLS)
    assert (found.cell, found.context) == (CELL, 48)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "a map begins with how many positions a block has"),
        ("x.\n.x\n", "a map begins with how many positions a block has"),
        ("0\nx\n", "a map begins with how many positions a block has"),
        ("9" * 1001 + "\nx\n", "a map begins with how many positions a block has"),
        ("128\n", "a map has a row at least"),
        ("4\nx.\nx#\n", "a row of a map has x and . alone\n    x#\n     ^"),
        ("4\nx.\nxxx\n", "a map of 2 rows has as many columns, and here are 3\n    xxx\n    ^^^"),
        ("4\nx.\n", "a map of 1 rows has as many columns, and here are 2"),
        ("4\nx.\n\nxx", "a map of 3 rows has as many columns, and here are 2"),
        ("4\n\x00\n", "a text cannot hold the character"),
    ],
)
def test_a_wrong_file_is_refused_where_it_is_wrong(given: str, said: str) -> None:
    with pytest.raises(TextError) as error:
        read_block_map(given, "own.map")
    assert said in str(error.value) and "own.map:" in str(error.value)


def test_a_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(TextError, match=r"cannot read the map of blocks 'none.map'"):
        traced_after('block_sparse{blocks="none.map"}', layer(None), *arguments(1, 0))


# Decoders.

BIGBIRD = np.eye(8, dtype=bool) | np.eye(8, k=-1, dtype=bool) | (np.arange(8) == 0)
BIGBIRD[6, 2] = True


def layer(cells: np.ndarray | None) -> Any:
    """A layer whose mask is a map by its own or not."""
    if cells is None:
        return masked_layer.layer()
    return masked_layer.layer(lambda last, place: jnp.asarray(cells)[last // 8, place // 8])


def arguments(queries: int, position: int) -> tuple[Any, ...]:
    return masked_layer.layer_arguments(drawn, queries, position)


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "bigbird.map"
    path.write_text(text(BIGBIRD, 8), encoding="utf-8")
    return f'block_sparse{{blocks="{path}"}}'


@pytest.mark.parametrize(("queries", "position"), [(1, 1), (1, 50), (32, 0), (32, 20)])
@pytest.mark.parametrize("blocks", ["", ", flash{query=8, key=16}", ", flash{query=16, key=8}"])
def test_a_decoder_follows_a_map(file: str, queries: int, position: int, blocks: str) -> None:
    args = arguments(queries, position)
    program = traced_after(f"normalize, recognize, {file}{blocks}", layer(None), *args)
    assert_close(run(program, *args), run(layer(BIGBIRD), *args), atol=1e-4)


@pytest.mark.parametrize("queries", [1, 32])
def test_eight_devices_follow_it_too(file: str, queries: int) -> None:
    args = arguments(queries, 20)
    passes = f"normalize, recognize, {file}, flash{{query=8, key=16}}, plan, shard, stage, lower"
    step = auto_shard(layer(None), "cpu:8", pipeline=passes)
    mixed, cache = step(step.prepare(*args), step.adapt(args[1]), args[2])
    assert_close((mixed, step.restore(cache)), run(layer(BIGBIRD), *args), atol=1e-4)


def test_what_is_visited_and_kept_is_told(file: str) -> None:
    passes = f"normalize, recognize, {file}, flash{{query=8, key=8}}"
    program = traced_after(passes, layer(None), *arguments(64, 0))
    (op,) = (op for op in program.graph.ops if op.name == "attend")
    assert (op["given"], op["visits"]) == ("last map", 1 + 2 + 3 * 6 + 1)
    notes = [str(note) for step in program.history[-2:] for note in step.remarks]
    assert notes[0] == "22 of 36 blocks of 8 positions"
    assert notes[1].endswith("of which 22 are visited")


def test_a_longer_context_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "short.map").write_text(text(BIGBIRD, 4), encoding="utf-8")
    narrow = f'block_sparse{{blocks="{tmp_path / "short.map"}"}}'
    program = traced_after(f"normalize, recognize, {narrow}", layer(None), *arguments(1, 9))
    ((note),) = program.history[-1].remarks
    assert note.text.partition(": ")[0] == "its context is 64, and the map has 32 positions"
    assert note.kind == NOT_DONE
