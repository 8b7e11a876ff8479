"""Packed parameters in files, and originals that are read from files.

A name that ends in `.safetensors` is one file, any other a folder that orbax writes. With the
arrays goes their schema, which is checked before any array is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from dialect.dtypes import dtype_of, struct_of
from dialect.prepared import orbax_files, safetensors_file
from dialect.prepared.originals import Lazy, fetched
from dialect.prepared.packed_schema import PackedError, Schema, refuse
from rewrite.console import tracked
from rewrite.ir import Type

_KEY = "shardwright"  # of the schema, among a file's own texts


def save(path: str | Path, leaves: Sequence[jax.Array], schema: Schema) -> None:
    """Writes packed parameters. Raises PackedError, and OSError where nothing can be written."""
    path = Path(path)
    wrong = misfits(schema, leaves)
    if wrong:
        raise PackedError("\n  ".join(["the packed parameters were changed", *wrong]))
    arrays = {each.name: leaf for each, leaf in zip(schema.packed, leaves)}
    write = safetensors_file.write if path.suffix == safetensors_file.SUFFIX else orbax_files.write
    write(path, arrays, {_KEY: str(schema)})


def load(path: str | Path, schema: Schema, shardings: Sequence[Any]) -> list[jax.Array]:
    """Reads the packed parameters that `schema` describes, laid out by `shardings`.

    Raises PackedError with the difference where the file holds those of another plan, dtype or
    model.
    """
    path = Path(path)
    refuse(str(path), read_schema(path).differences(schema, whole_plan=True))
    types = {each.name: Type.parse(each.type) for each in schema.packed}
    if path.is_dir():
        structs = {
            name: jax.ShapeDtypeStruct(type_.shape, dtype_of(type_.dtype), sharding=sharding)
            for (name, type_), sharding in zip(types.items(), shardings, strict=True)
        }
        arrays = orbax_files.read_onto(path, structs)
        return [arrays[name] for name in types]
    lazy = safetensors_file.read(path, types)
    missing = sorted(set(types) - set(lazy))
    if missing:
        raise PackedError(f"{path} lacks {', '.join(missing[:4])}, which its schema promises")
    places = list(zip(types.items(), shardings, strict=True))
    return [
        fetched(lazy[name], type_, None, sharding)
        for (name, type_), sharding in tracked(places, "reading packed parameters")
    ]


def read_schema(path: str | Path) -> Schema:
    """What the packed parameters in a file are. Raises PackedError where it holds none."""
    path = Path(path)
    if not path.exists():
        raise PackedError(f"there is no {path}")
    about = orbax_files.read_about(path) if path.is_dir() else safetensors_file.read_header(path)[1]
    if _KEY not in about:
        raise PackedError(
            f"{path} holds no packed parameters",
            hint="give a checkpoint of originals to step.prepare: see read_checkpoint",
        )
    return Schema.parse(about[_KEY], path)


def misfits(schema: Schema, leaves: Sequence[Any]) -> list[str]:
    """Which arrays are not what the schema says."""
    if len(leaves) != len(schema.packed):
        return [f"there are {len(leaves)} arrays, and should be {len(schema.packed)}"]
    found = []
    for each, leaf in zip(schema.packed, leaves):
        wanted = Type.parse(each.type)
        if not hasattr(leaf, "dtype"):
            found.append(f"{each.name} is {type(leaf).__name__}, and should be {wanted}")
        elif (leaf.shape, leaf.dtype) != (wanted.shape, struct_of(wanted).dtype):
            found.append(f"{each.name} is {leaf.dtype}{list(leaf.shape)}, and should be {wanted}")
    return found


def read_checkpoint(path: str | Path) -> dict[str, Lazy]:
    """The arrays of a checkpoint by name, to be read when `step.prepare` needs them.

    path: a `.safetensors` file, a folder of such files, or an orbax checkpoint. `as_tree` and
    `stacked` bring them into the form of a step's parameters. Raises PackedError.
    """
    path = Path(path)
    if not path.exists():
        raise PackedError(f"there is no {path}")
    if not path.is_dir():
        return safetensors_file.read(path)
    files = sorted(path.glob(f"*{safetensors_file.SUFFIX}"))
    found: dict[str, Lazy] = {}
    for file in files:
        found |= safetensors_file.read(file)
    return found if files else orbax_files.read(path)
