"""Files that were cut, changed or made up: refused with the reason, and nothing else happens."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from dialect.prepared import orbax_files, safetensors_file
from dialect.prepared.checkpoint_trees import as_tree
from dialect.prepared.digests import digests
from dialect.prepared.originals import Lazy
from dialect.prepared.packed_files import load, read_checkpoint, read_schema, save
from dialect.prepared.packed_schema import Array, PackedError, Schema
from rewrite.errors import ShardwrightError, TraceError
from rewrite.files import FileError

ARRAYS = {
    "w": np.arange(12, dtype=np.float32).reshape(3, 4),
    "ids": np.arange(3, dtype=np.int8),
    "mask": np.array([True, False, True]),
}
SCHEMA = Schema("step", "cpu", (), "", (), (Array("w", "f32[3,4]"), Array("ids", "i8[3]"),
                Array("mask", "bool[3]")))  # fmt: skip
ONE = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])


def packed(path: Path) -> Path:
    save(path, [jnp.asarray(each) for each in ARRAYS.values()], SCHEMA)
    return path


def loaded(path: Path) -> list[jax.Array]:
    return load(path, SCHEMA, [ONE] * 3)


def refused(function: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(ShardwrightError) as caught:
        function(*args)
    assert len(str(caught.value)) < 2000
    return str(caught.value)


def as_written(found: list[jax.Array]) -> None:
    for one, other in zip(found, ARRAYS.values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_any_flipped_bit_of_a_file_is_refused(tmp_path: Path) -> None:
    good = packed(tmp_path / "good.safetensors").read_bytes()
    as_written(loaded(tmp_path / "good.safetensors"))
    bad = tmp_path / "bad.safetensors"
    for place in range(len(good)):
        bad.write_bytes(good[:place] + bytes([good[place] ^ 1 << place % 8]) + good[place + 1 :])
        refused(loaded, bad)


@pytest.mark.parametrize("dtype", ["int4", "bool", "float8_e4m3fn", "bfloat16"])
def test_bits_that_no_number_needs_are_watched_too(tmp_path: Path, dtype: str) -> None:
    """Three numbers of four bits lie in three bytes, a boolean in eight bits."""
    path = tmp_path / "one.safetensors"
    safetensors_file.write(path, {"a": jnp.array([1, 0, 1]).astype(dtype)}, {})
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x80
    path.write_bytes(content)
    lazy = safetensors_file.read(path)["a"]
    whole = tuple(slice(0, size) for size in lazy.shape)
    assert "a is not what was written" in refused(lambda: lazy[whole])


def test_cut_longer_and_empty_files_are_refused(tmp_path: Path) -> None:
    good = packed(tmp_path / "good.safetensors").read_bytes()
    path = tmp_path / "bad.safetensors"
    for content in (
        b"",
        b"\0",
        good[:8],
        good[:-1],
        good + b"\0",
        good + good,
        good[8:],
        b"\0" * 99,
    ):
        path.write_bytes(content)
        assert "is not a safetensors file, or is damaged" in refused(loaded, path)


def header(path: Path, said: Any, data: bytes = b"\0" * 8) -> Path:
    """A file with this header: an object, or its text."""
    text = said if isinstance(said, bytes) else json.dumps(said).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> Any:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"[" * 100_000, "is damaged"),
        (b'{"a":' * 100_000, "is damaged"),
        (b"77", "its header is not an object"),
        (b"\xff\xfe{}", "is damaged"),
        (b'{"a": 1, "a": 2}', "a name is repeated"),
        ({"__metadata__": []}, "its metadata are not texts"),
        ({"__metadata__": {"a": 1}}, "its metadata are not texts"),
        ({"a": 7}, "a has not the fields dtype, shape, data_offsets"),
        ({"a": entry(more=1)}, "a has not the fields"),
        ({"a": entry(dtype="F31")}, "a has the dtype F31, which is unknown here"),
        ({"a": entry(dtype=[])}, "a has the dtype"),
        ({"a": entry(shape=[2.0])}, "a has the shape or offsets [2.0]"),
        ({"a": entry(shape=[True, 2])}, "a has the shape or offsets"),
        ({"a": entry(shape="2")}, "a has the shape or offsets 2"),
        ({"a": entry(shape=[-1, -2])}, "a has the shape or offsets"),
        ({"a": entry(shape=[10**30, 0], offsets=[0, 0])}, "a has the shape or offsets"),
        ({"a": entry(shape=[3])}, "a has 12 bytes, and not those at [0, 8]"),
        ({"a": entry(shape=[1] * 50, offsets=[0, 4])}, "a has 4 bytes"),
        ({"a": entry(offsets=[0, 8, 9])}, "a has 8 bytes"),
        ({"a": entry(offsets=[8, 0])}, "a has 8 bytes"),
        ({"a": entry(offsets=[1, 9])}, "a begins at"),
        ({"a": entry(), "b": entry()}, "b begins at"),
        (
            {"a": entry(shape=[1], offsets=[0, 4]), "b": entry(shape=[0], offsets=[6, 6])},
            "b begins",
        ),
        ({"a": entry(offsets=[2**62, 2**62 + 8])}, "a begins at"),
        ({"a": entry(shape=[1], offsets=[0, 4])}, "and its arrays end at"),
        (f'{{"a": {"9" * 5000}}}'.encode(), "is damaged"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, said: Any, reason: str) -> None:
    assert reason in refused(read_checkpoint, header(tmp_path / "a.safetensors", said))


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**63, 2**64 - 1])
def test_a_header_is_as_long_as_it_says(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}" + b"\0" * 100)
    assert f"its header would have {length} bytes" in refused(read_checkpoint, path)


def test_a_file_without_checksums_is_packed_again(tmp_path: Path) -> None:
    path, texts = tmp_path / "old.safetensors", {"shardwright": str(SCHEMA)}
    safetensors.numpy.save_file(ARRAYS, path, texts)
    assert "has no checksums\n  try: pack the originals again" in refused(loaded, path)
    texts = {"shardwright": str(SCHEMA).replace('"format": 2', '"format": 1')}
    safetensors.numpy.save_file(ARRAYS, path, texts)
    assert "has the format 1" in refused(read_schema, path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    loop = tmp_path / "loop.safetensors"
    loop.symlink_to(loop)
    for path in (folder, pipe, loop, tmp_path / "none.safetensors"):
        refused(loaded, path)
        refused(read_checkpoint, path)
    with pytest.raises(FileError, match="it is a folder"):
        packed(folder)
    with pytest.raises(FileError, match="there is no folder"):
        packed(tmp_path / "nowhere" / "a.safetensors")


class Bomb:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("exploded",))


def test_nothing_is_ever_unpickled(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.safetensors", "a.index.json", "folder/_METADATA", "folder/a.safetensors"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps(Bomb()))
        refused(read_checkpoint, path)
    refused(read_checkpoint, tmp_path / "folder")
    assert not (tmp_path / "exploded").exists()


# Folders that orbax wrote.


def test_a_changed_folder_is_refused_or_the_same(tmp_path: Path) -> None:
    """What orbax does not need (names of hosts, dates) may change; a number never does."""
    folder = packed(tmp_path / "good")
    as_written(loaded(folder))
    files = sorted(each for each in folder.rglob("*") if each.is_file())
    outcomes = {"same": 0, "refused": 0}
    for number, file in enumerate(files * 3):
        good = file.read_bytes()
        if not good:
            continue
        place = (number * 7919 + 13) % len(good)
        file.write_bytes(good[:place] + bytes([good[place] ^ 1 << number % 8]) + good[place + 1 :])
        try:
            as_written(loaded(folder))
            outcomes["same"] += 1
        except PackedError:
            outcomes["refused"] += 1
        file.write_bytes(good)
    assert outcomes["refused"] > 0


def test_arrays_that_changed_under_orbax_are_told_by_name(tmp_path: Path, monkeypatch: Any) -> None:
    other = {**ARRAYS, "w": ARRAYS["w"].copy()}
    other["w"][1, 2] = np.nextafter(other["w"][1, 2], np.float32(9))
    right = digests({name: jnp.asarray(each) for name, each in ARRAYS.items()})
    monkeypatch.setattr(orbax_files, "digests", lambda arrays: right)
    leaves = [jnp.asarray(each) for each in other.values()]
    save(tmp_path / "folder", leaves, SCHEMA)
    monkeypatch.undo()
    assert "is damaged: w is not what was written" in refused(loaded, tmp_path / "folder")


@pytest.mark.parametrize("dtype", ["int4", "bool", "float8_e4m3fn", "bfloat16", "float32", "int32"])
def test_a_digest_sees_every_bit_and_every_place(dtype: str) -> None:
    def digest(values: Any) -> int:
        return digests({"a": jnp.asarray(values).astype(dtype)})["a"]

    values = [[1, 0, 1], [0, 1, 0]]
    others = [[[1, 0, 1], [0, 1, 1]], [[0, 1, 1], [0, 1, 0]], [[1, 0, 1], [1, 0, 0]]]
    assert digest(values) not in [digest(other) for other in others]


# Checkpoints.


def checkpoint(folder: Path, name: str, **arrays: Any) -> None:
    safetensors.numpy.save_file(arrays, folder / name)


def index(folder: Path, places: Any, name: str = "model.safetensors.index.json") -> None:
    (folder / name).write_text(json.dumps({"weight_map": places}))


def test_an_index_says_which_file_holds_what(tmp_path: Path) -> None:
    checkpoint(tmp_path, "one.safetensors", a=ARRAYS["w"])
    checkpoint(tmp_path, "two.safetensors", b=ARRAYS["ids"])
    checkpoint(tmp_path, "other.safetensors", a=ARRAYS["ids"])
    assert "is in" in refused(read_checkpoint, tmp_path)  # `a` in two files
    index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        found = read_checkpoint(path)
        assert {name: each.shape for name, each in found.items()} == {"a": (3, 4), "b": (3,)}
    index(tmp_path, {"a": "two.safetensors"})
    assert "two.safetensors lacks a" in refused(read_checkpoint, tmp_path)
    index(tmp_path, {"a": "one.safetensors"}, "model.fp16.index.json")
    assert "has several indices" in refused(read_checkpoint, tmp_path)


@pytest.mark.parametrize(
    "place",
    ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", ".", "x\0.safetensors"],
)
def test_an_index_cannot_leave_its_folder(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    for home in (tmp_path, folder / "sub"):
        checkpoint(home, "x.safetensors", a=ARRAYS["w"])
    index(folder, {"a": place})
    refused(read_checkpoint, folder)


@pytest.mark.parametrize("places", [7, [], {"a": 7}, {"a": None}, None, {"a": {"b": "c"}}])
def test_an_index_gives_a_file_for_each_array(tmp_path: Path, places: Any) -> None:
    index(tmp_path, places)
    assert "its weight_map gives no file" in refused(read_checkpoint, tmp_path)


def test_links_cannot_leave_the_folder_but_into_the_hubs_own_blobs(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
    away, plain = tmp_path / "away", tmp_path / "plain"
    for folder in (blobs, snapshot, away, plain):
        folder.mkdir(parents=True)
    checkpoint(blobs, "4567", a=ARRAYS["w"])
    checkpoint(away, "x.safetensors", b=ARRAYS["w"])
    (snapshot / "model.safetensors").symlink_to(blobs / "4567")
    assert list(read_checkpoint(snapshot)) == ["a"]
    (plain / "model.safetensors").symlink_to(away / "x.safetensors")
    assert "leads out of" in refused(read_checkpoint, plain)
    (snapshot / "more.safetensors").symlink_to(away / "x.safetensors")
    assert "leads out of" in refused(read_checkpoint, snapshot)


STEP_SHAPES = {"w": jax.ShapeDtypeStruct((3, 4), jnp.float32)}


def test_another_dtype_is_told_and_converted_only_by_name(tmp_path: Path) -> None:
    checkpoint(tmp_path, "a.safetensors", w=ARRAYS["w"].astype(np.float16))
    found = read_checkpoint(tmp_path / "a.safetensors")
    with pytest.raises(TraceError) as caught:
        as_tree(STEP_SHAPES, found)
    assert "w is float16, and the step takes float32" in str(caught.value)
    assert "cast='w'" in caught.value.hint
    lazy = as_tree(STEP_SHAPES, {"w": found["w"].astype("float32")})["w"]
    np.testing.assert_array_equal(lazy[slice(1, 3), slice(0, 4)], ARRAYS["w"][1:])
    with pytest.raises(TraceError, match="w is float64"):
        as_tree(STEP_SHAPES, {"w": ARRAYS["w"].astype(np.float64)})


def test_arrays_that_are_missing_or_left_over_are_told() -> None:
    with pytest.raises(TraceError, match="there is no array 'w'"):
        as_tree(STEP_SHAPES, {"v": ARRAYS["w"]})
    with pytest.raises(TraceError, match="no parameter for 1 of the arrays: v"):
        as_tree(STEP_SHAPES, {"w": ARRAYS["w"], "v": ARRAYS["w"]})
    wrong = Lazy((4, 3), np.dtype("float32"), lambda index: None)
    with pytest.raises(TraceError, match="has the shape"):
        as_tree(STEP_SHAPES, {"w": wrong})
