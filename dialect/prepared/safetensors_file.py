"""The safetensors format, read and written shard by shard.

A file is eight bytes with the length of the header, the header as JSON, and the arrays
(https://huggingface.co/docs/safetensors). The safetensors library needs all arrays in host memory
at once, and supports neither numpy's bfloat16 nor int4; here the file is memory-mapped, and shards
are written and read one at a time.

A file written here has a CRC-32 of every array and of the header, which are verified when it is
read. Other programs can read it.

4-bit integers are packed two to a byte, the first in the lower half, if the last axis of every
shard consists of such pairs, and stored one to a byte otherwise.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dialect.arrays.dtypes import dtype_of, type_of
from dialect.prepared.originals import Lazy
from dialect.prepared.packed_schema import PackedError
from rewrite.errors import brief
from rewrite.files import written_whole
from rewrite.ir import Type, bits

SUFFIX = ".safetensors"
_LARGEST_HEADER_BYTES = 100_000_000  # the format's own limit
_ARRAYS, _HEADER = "crc32", "header_crc32"  # the keys of our checksums in the metadata of a file
_UNKNOWN = "0" * 8  # a placeholder for a checksum
_CHUNK_BYTES = 1 << 24
_MOST_AXES = 32  # of a numpy memory map
_NAMES = {"bool": "BOOL", "c64": "C64", "f8_e4m3fn": "F8_E4M3", "f8_e5m2": "F8_E5M2"}
_NAMES |= {"f8_e8m0fnu": "F8_E8M0"}
_NAMES |= {n.lower(): n for n in ("BF16", "F16", "F32", "F64", *(f"I{n}" for n in (8, 16, 32, 64)))}
_NAMES |= {f"u{n}": f"U{n}" for n in (8, 16, 32, 64)}
_TYPES = {name: short for short, name in _NAMES.items()}


@dataclass(frozen=True)
class Entry:
    """An array in a file: its stored dtype and shape, and its bytes [first, last)."""

    dtype: str
    shape: tuple[int, ...]
    first: int
    last: int

    def mapped(self, path: Path, mode: str) -> np.memmap:
        """The array as a memory map of the file."""
        stored = dtype_of(_TYPES[self.dtype])
        return np.memmap(path, stored, mode, self.first, self.shape, "C")

    def crc32(self, path: Path) -> str:
        """The CRC-32 of its bytes in the file, in hexadecimal."""
        checksum = 0
        with open(path, "rb") as file:
            file.seek(self.first)
            for start in range(self.first, self.last, _CHUNK_BYTES):
                checksum = zlib.crc32(file.read(min(_CHUNK_BYTES, self.last - start)), checksum)
        return f"{checksum:08x}"


@dataclass(frozen=True)
class Header:
    """The header of a file: arrays and metadata by name, and checksums of the arrays, if any."""

    arrays: dict[str, Entry]
    about: dict[str, str]
    checksums: dict[str, str]


def write(path: Path, arrays: Mapping[str, jax.Array], about: Mapping[str, str]) -> None:
    """Writes arrays and metadata atomically.

    Raises PackedError for an array with shards on other hosts, FileError for an error of the
    system.
    """
    for name, array in arrays.items():
        if not array.is_fully_addressable:
            raise PackedError(
                f"{name} has shards on several hosts, and one host writes a {SUFFIX} file",
                hint="save to a folder, which orbax writes from all hosts",
            )
    entries: dict[str, Entry] = {}
    end = 0
    for name, array in arrays.items():
        dtype, shape = _stored(array)
        first, end = end, end + prod(shape) * dtype_of(_TYPES[dtype]).itemsize
        entries[name] = Entry(dtype, shape, first, end)
    begin = len(_header(entries, about, dict.fromkeys(entries, _UNKNOWN)))
    placed = {
        name: Entry(entry.dtype, entry.shape, begin + entry.first, begin + entry.last)
        for name, entry in entries.items()
    }
    with written_whole(path) as part:
        _reserve(part, begin + end)
        for name, array in arrays.items():
            _write_shards(part, placed[name], array)
        checksums = {name: entry.crc32(part) for name, entry in placed.items()}
        with open(part, "r+b") as file:
            file.write(_header(entries, about, checksums))


def _reserve(path: Path, size: int) -> None:
    """Makes a file of so many bytes, which the disk has: mapped into memory, one that it has not
    would end the process where it is written. Raises OSError."""
    with open(path, "wb") as file:
        file.truncate(size)
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)


def _header(
    entries: Mapping[str, Entry], about: Mapping[str, str], checksums: Mapping[str, str]
) -> bytes:
    """The header of a file; its length does not depend on the checksums."""

    def written(checksum: str) -> bytes:
        texts = {**about, _ARRAYS: json.dumps(checksums, ensure_ascii=False), _HEADER: checksum}
        header: dict[str, Any] = {"__metadata__": texts}
        for name, entry in entries.items():
            place = {"data_offsets": [entry.first, entry.last]}
            header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), **place}
        text = json.dumps(header, ensure_ascii=False).encode()
        text += b" " * (-len(text) % 64)  # aligns the arrays
        return len(text).to_bytes(8, "little") + text

    return written(f"{zlib.crc32(written(_UNKNOWN)):08x}")


def _stored(array: jax.Array) -> tuple[str, tuple[int, ...]]:
    """The stored dtype and shape. A dtype that the format lacks is stored as bytes."""
    type_ = type_of(array)
    if type_.dtype in _NAMES:
        return _NAMES[type_.dtype], type_.shape
    if type_.dtype.startswith("key<"):
        raise PackedError(f"a parameter of type {type_} cannot be stored: it is a random key")
    if bits(type_.dtype) == 4 and _pairs(array):
        return "U8", (*type_.shape[:-1], type_.shape[-1] // 2)
    return "U8", (*type_.shape, *_wide(type_))


def _wide(type_: Type) -> tuple[int, ...]:
    """The size of a last axis for the bytes of an element, if it has several."""
    size = dtype_of(type_.dtype).itemsize
    return (size,) if size > 1 else ()


def _pairs(array: jax.Array) -> bool:
    """Whether the last axis of every shard consists of aligned pairs."""
    if not array.ndim:
        return False
    bounds = (shard.index[-1].indices(array.shape[-1])[:2] for shard in array.addressable_shards)
    return all(edge % 2 == 0 for pair in bounds for edge in pair)


def _write_shards(path: Path, entry: Entry, array: jax.Array) -> None:
    """Writes every distinct shard, with one at a time in host memory."""
    if not array.size:
        return
    mapped = entry.mapped(path, "r+")
    in_pairs = _in_pairs(entry, type_of(array))
    for shard in array.addressable_shards:
        if shard.replica_id:
            continue
        data, index = np.asarray(shard.data), shard.index
        if in_pairs:
            low, high = (data[..., i::2].view(np.uint8) & 15 for i in (0, 1))
            data = low | high << 4
            start, stop, _ = index[-1].indices(array.shape[-1])
            index = (*index[:-1], slice(start // 2, stop // 2))
        elif data.dtype != mapped.dtype:
            data = data.view(mapped.dtype).reshape((*data.shape, *entry.shape[data.ndim :]))
        mapped[index] = data
    mapped.flush()


def _in_pairs(entry: Entry, type_: Type) -> bool:
    return bits(type_.dtype) == 4 and entry.shape != type_.shape


def read_header(path: Path) -> Header:
    """The header of a file. Raises PackedError if the file is truncated, damaged, or of another
    format."""
    with refusing(path):
        size = path.stat().st_size
        if not path.is_file():
            raise ValueError("it is not a file")
        with open(path, "rb") as file:
            first = file.read(8)
            length = int.from_bytes(first, "little")
            if not 2 <= length <= min(size - 8, _LARGEST_HEADER_BYTES):
                raise ValueError(f"its header would have {length} bytes")
            text = file.read(length)
        data = _json(text)
        about = data.pop("__metadata__", {})
        if not isinstance(about, dict) or not all(isinstance(x, str) for x in about.values()):
            raise ValueError("its metadata are not texts")
        checksums = _json(about.pop(_ARRAYS, "{}"))
        if checksums or _HEADER in about:
            _check_header(first + text, about.pop(_HEADER, ""))
        arrays = {name: _entry(name, fields, 8 + length) for name, fields in data.items()}
        end = 8 + length
        for name, entry in sorted(arrays.items(), key=lambda pair: (pair[1].first, pair[1].last)):
            if entry.first != end:
                raise ValueError(f"{brief(name)} begins at {entry.first}, and not at {end}")
            end = entry.last
        if end != size:
            raise ValueError(f"it has {size} bytes, and its arrays end at {end}")
        if checksums and set(checksums) != set(arrays):
            raise ValueError("its checksums are those of other arrays")
    return Header(arrays, about, checksums)


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turns errors of reading a file into PackedError."""
    try:
        yield
    except OSError as error:
        raise PackedError(f"cannot read {path}: {error}") from error
    except (ValueError, RecursionError) as error:
        what = f"{path} is not a safetensors file, or is damaged"
        raise PackedError(f"{what}: {brief(str(error))}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError, OSError."""
    with open(path, "rb") as file:
        text = file.read(_LARGEST_HEADER_BYTES + 1)
    if len(text) > _LARGEST_HEADER_BYTES:
        raise ValueError(f"it has more than {_LARGEST_HEADER_BYTES} bytes")
    return _json(text)


def _json(text: str | bytes) -> dict[str, Any]:
    """An object in JSON. Raises ValueError for any other value, and for a repeated name."""

    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        data = dict(pairs)
        if len(data) < len(pairs):
            raise ValueError("a name is repeated")
        return data

    data = json.loads(text, object_pairs_hook=unique)
    if not isinstance(data, dict):
        raise ValueError("its header is not an object")
    return data


def _check_header(text: bytes, checksum: str) -> None:
    """Verifies the checksum of the header. Raises ValueError."""
    written, unknown = (f'"{_HEADER}": "{text_}"'.encode() for text_ in (checksum, _UNKNOWN))
    if f"{zlib.crc32(text.replace(written, unknown, 1)):08x}" != checksum:
        raise ValueError("its header is not what was written")


def _entry(name: str, fields_: Any, begin: int) -> Entry:
    """The entry of an array in the header. Raises ValueError if it is invalid."""
    fields = ("dtype", "shape", "data_offsets")
    if not isinstance(fields_, dict) or set(fields_) != set(fields):
        raise ValueError(f"{brief(name)} has not the fields {', '.join(fields)}")
    dtype, shape, offsets = (fields_[field] for field in fields)
    if not isinstance(dtype, str) or dtype not in _TYPES:
        raise ValueError(f"{brief(name)} has the dtype {brief(str(dtype))}, which is unknown here")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or any(
            type(x) is not int or not 0 <= x < 1 << 63 for x in numbers
        ):
            raise ValueError(f"{brief(name)} has the shape or offsets {brief(str(numbers))}")
    needed = prod(shape) * dtype_of(_TYPES[dtype]).itemsize
    if len(shape) > _MOST_AXES or len(offsets) != 2 or offsets[1] - offsets[0] != needed:
        raise ValueError(f"{brief(name)} has {needed} bytes, and not those at {offsets[:2]}")
    return Entry(dtype, tuple(shape), begin + offsets[0], begin + offsets[1])


def read(path: Path, types: Mapping[str, Type] | None = None) -> dict[str, Lazy]:
    """The arrays of a file by name, to be read on demand.

    `types` are the types of arrays with a dtype that the format lacks. Raises PackedError, also
    later when a damaged array is read.
    """
    header = read_header(path)
    lazy = {}
    for name, entry in header.arrays.items():
        checksum = header.checksums.get(name)
        lazy[name] = _lazy(path, name, entry, (types or {}).get(name), checksum)
    return lazy


def _lazy(path: Path, name: str, entry: Entry, type_: Type | None, checksum: str | None) -> Lazy:
    stored = Type(_TYPES[entry.dtype], entry.shape)
    type_ = type_ or stored
    dtype = dtype_of(type_.dtype)
    in_pairs = _in_pairs(entry, type_)
    expected = Type("u8", (*type_.shape[:-1], type_.shape[-1] // 2)) if in_pairs else stored
    if type_ != stored and expected not in (stored, Type("u8", (*type_.shape, *_wide(type_)))):
        raise PackedError(f"{path}: {name} is stored as {stored}, and should be {type_}")

    @cache
    def check() -> None:
        with refusing(path):
            if checksum is not None and entry.crc32(path) != checksum:
                raise ValueError(f"{name} is not what was written")

    def part(index: tuple[slice, ...]) -> np.ndarray:
        check()
        if not type_.size:
            return np.zeros([bounds.stop - bounds.start for bounds in index], dtype)
        mapped = entry.mapped(path, "r")
        if not in_pairs:
            part_ = np.array(mapped[index])
            return part_ if part_.dtype == dtype else _as(part_, dtype, len(type_.shape))
        start, stop = index[-1].start, index[-1].stop
        pairs = np.asarray(mapped[(*index[:-1], slice(start // 2, -(-stop // 2)))])
        halves = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(*pairs.shape[:-1], -1)
        return _signed(halves[..., start % 2 :][..., : stop - start], dtype)

    return Lazy(type_.shape, dtype, part, f"{path.name}: {name}")


def _as(array: np.ndarray, dtype: np.dtype, rank: int) -> np.ndarray:
    """Bytes viewed as elements of a dtype that the format lacks."""
    return array.view(dtype).reshape(array.shape[:rank])


def _signed(halves: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """4-bit values in the lower halves of bytes, as a 4-bit dtype with the sign extended."""
    if dtype == dtype_of("i4"):
        return ((halves.astype(np.int8) ^ 8) - 8).astype(dtype)
    return halves.view(dtype)
