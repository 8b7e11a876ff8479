"""The safetensors format, read and written array by array, share by share.

Eight bytes with the length of the header, the header as JSON, and the arrays behind one another
(https://huggingface.co/docs/safetensors). The library of that name wants all arrays in the host's
memory at once, and knows neither bfloat16 as numpy has it nor int4; here a file is mapped, and each
device's share is written and read by itself.

Integers of four bits are two to a byte, the first in the lower half, where the last axis divides
so on every device, and one to a byte elsewhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dialect.dtypes import dtype_of, type_of
from dialect.prepared.originals import Lazy
from dialect.prepared.packed_schema import PackedError
from rewrite.ir import Type, bits

SUFFIX = ".safetensors"
_LARGEST_HEADER_BYTES = 100_000_000  # the format's own limit
_NAMES = {"bool": "BOOL", "c64": "C64", "f8_e4m3fn": "F8_E4M3", "f8_e5m2": "F8_E5M2"}
_NAMES |= {"f8_e8m0fnu": "F8_E8M0"}
_NAMES |= {n.lower(): n for n in ("BF16", "F16", "F32", "F64", *(f"I{n}" for n in (8, 16, 32, 64)))}
_NAMES |= {f"u{n}": f"U{n}" for n in (8, 16, 32, 64)}
_TYPES = {name: short for short, name in _NAMES.items()}


@dataclass(frozen=True)
class Entry:
    """An array in a file: its dtype and shape as they are stored, and its bytes from, up to."""

    dtype: str
    shape: tuple[int, ...]
    first: int
    last: int

    def mapped(self, path: Path, mode: str) -> np.memmap:
        stored = dtype_of(_TYPES[self.dtype])
        return np.memmap(path, stored, mode, self.first, self.shape, "C")


def write(path: Path, arrays: Mapping[str, jax.Array], about: Mapping[str, str]) -> None:
    """Writes arrays and some text. The file is there whole or not at all.

    Raises PackedError for an array that lies on other machines too.
    """
    for name, array in arrays.items():
        if not array.is_fully_addressable:
            raise PackedError(
                f"{name} lies on several machines, and a {SUFFIX} file is written by one",
                hint="save to a folder, which orbax writes from all of them",
            )
    header: dict[str, Any] = {"__metadata__": dict(about)}
    end = 0
    for name, array in arrays.items():
        dtype, shape = _stored(array)
        first, end = end, end + prod(shape) * dtype_of(_TYPES[dtype]).itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [first, end]}
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 64)  # so that arrays begin where processors like them to
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(unfinished, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
        entries, _ = read_header(unfinished)
        for name, array in arrays.items():
            _write_shares(unfinished, entries[name], array)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _stored(array: jax.Array) -> tuple[str, tuple[int, ...]]:
    """The dtype and shape in the file. A dtype that the format lacks goes by its bytes."""
    type_ = type_of(array)
    if type_.dtype in _NAMES:
        return _NAMES[type_.dtype], type_.shape
    if type_.dtype.startswith("key<"):
        raise PackedError(f"a parameter of type {type_} cannot be stored: it is a random key")
    if bits(type_.dtype) == 4 and _pairs(array):
        return "U8", (*type_.shape[:-1], type_.shape[-1] // 2)
    return "U8", (*type_.shape, *_wide(type_))


def _wide(type_: Type) -> tuple[int, ...]:
    """A last axis for the bytes of an element, where it has several."""
    size = dtype_of(type_.dtype).itemsize
    return (size,) if size > 1 else ()


def _pairs(array: jax.Array) -> bool:
    """Whether the last axis falls into pairs on every device."""
    if not array.ndim:
        return False
    bounds = (each.index[-1].indices(array.shape[-1])[:2] for each in array.addressable_shards)
    return all(edge % 2 == 0 for pair in bounds for edge in pair)


def _write_shares(path: Path, entry: Entry, array: jax.Array) -> None:
    """Each share once, however many devices have it; only one is in the host's memory."""
    if not array.size:
        return
    whole = entry.mapped(path, "r+")
    in_pairs = _in_pairs(entry, type_of(array))
    for shard in array.addressable_shards:
        if shard.replica_id:
            continue
        share, index = np.asarray(shard.data), shard.index
        if in_pairs:
            low, high = (share[..., i::2].view(np.uint8) & 15 for i in (0, 1))
            share = low | high << 4
            start, stop, _ = index[-1].indices(array.shape[-1])
            index = (*index[:-1], slice(start // 2, stop // 2))
        elif share.dtype != whole.dtype:
            share = share.view(whole.dtype).reshape((*share.shape, *entry.shape[share.ndim :]))
        whole[index] = share
    whole.flush()


def _in_pairs(entry: Entry, type_: Type) -> bool:
    return bits(type_.dtype) == 4 and entry.shape != type_.shape


def read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """(the arrays by name, the text). Raises PackedError for what is no such file, or cut off."""
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, _LARGEST_HEADER_BYTES):
                raise ValueError(f"its header would have {length} bytes")
            header = json.loads(file.read(length))
        about = header.pop("__metadata__", {})
        entries = {}
        for name, each in header.items():
            first, last = (8 + length + offset for offset in each["data_offsets"])
            entry = Entry(each["dtype"], tuple(map(int, each["shape"])), first, last)
            needed = prod(entry.shape) * dtype_of(_TYPES[entry.dtype]).itemsize
            if not 8 + length <= first <= last <= size or last - first != needed:
                raise ValueError(f"{name} has {needed} bytes, and not those from {first} to {last}")
            entries[name] = entry
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PackedError(f"{path} is no safetensors file, or is damaged: {error}") from error
    return entries, about


def read(path: Path, types: Mapping[str, Type] | None = None) -> dict[str, Lazy]:
    """The arrays of a file by name, to be read when they are needed.

    `types` are those of arrays whose dtype the format lacks. Raises PackedError.
    """
    entries, _ = read_header(path)
    return {
        name: _lazy(path, name, entry, (types or {}).get(name)) for name, entry in entries.items()
    }


def _lazy(path: Path, name: str, entry: Entry, type_: Type | None) -> Lazy:
    stored = Type(_TYPES[entry.dtype], entry.shape)
    type_ = type_ or stored
    dtype = dtype_of(type_.dtype)
    in_pairs = _in_pairs(entry, type_)
    expected = Type("u8", (*type_.shape[:-1], type_.shape[-1] // 2)) if in_pairs else stored
    if type_ != stored and expected not in (stored, Type("u8", (*type_.shape, *_wide(type_)))):
        raise PackedError(f"{path}: {name} is stored as {stored}, and should be {type_}")

    def part(index: tuple[slice, ...]) -> np.ndarray:
        if not type_.size:
            return np.zeros([each.stop - each.start for each in index], dtype)
        whole = entry.mapped(path, "r")
        if not in_pairs:
            found = np.array(whole[index])
            return found if found.dtype == dtype else _as(found, dtype, len(type_.shape))
        start, stop = index[-1].start, index[-1].stop
        pairs = np.asarray(whole[(*index[:-1], slice(start // 2, -(-stop // 2)))])
        halves = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(*pairs.shape[:-1], -1)
        return _signed(halves[..., start % 2 :][..., : stop - start], dtype)

    return Lazy(type_.shape, dtype, part, f"{path.name}: {name}")


def _as(found: np.ndarray, dtype: np.dtype, rank: int) -> np.ndarray:
    """The bytes as elements of a dtype that the format lacks."""
    return found.view(dtype).reshape(found.shape[:rank])


def _signed(halves: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Four bits in a byte each as the dtype of four bits: the upper bits carry the sign."""
    if dtype == dtype_of("i4"):
        return ((halves.astype(np.int8) ^ 8) - 8).astype(dtype)
    return halves.view(dtype)
