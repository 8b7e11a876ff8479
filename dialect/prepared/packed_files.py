"""Saves and loads packed parameters, and reads checkpoints of originals.

A path that ends in `.safetensors` is one file, any other a folder that orbax writes. The schema is
stored with the arrays, and is checked before any array is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from dialect.arrays.dtypes import dtype_of, struct_of
from dialect.display.progress import tracked
from dialect.prepared import orbax_files, safetensors_file
from dialect.prepared.originals import Lazy, fetched
from dialect.prepared.packed_schema import PackedError, Schema, refuse
from rewrite.ir import Type

_INDEX = ".index.json"
_KEY = "shardwright"  # of the schema, among a file's own texts


def save(path: str | Path, leaves: Sequence[jax.Array], schema: Schema) -> None:
    """Writes packed parameters. Raises PackedError, and FileError for an error of the system."""
    path = Path(path)
    wrong = misfits(schema, leaves)
    if wrong:
        raise PackedError("\n  ".join(["the packed parameters were changed", *wrong]))
    arrays = {entry.name: leaf for entry, leaf in zip(schema.packed, leaves)}
    write = safetensors_file.write if path.suffix == safetensors_file.SUFFIX else orbax_files.write
    write(path, arrays, {_KEY: str(schema)})


def load(path: str | Path, schema: Schema, shardings: Sequence[Any]) -> list[jax.Array]:
    """Reads the packed parameters that `schema` describes, with these shardings.

    Raises PackedError with the differences if the file is of another plan, dtype or model.
    """
    path = Path(path)
    refuse(str(path), read_schema(path).differences(schema, whole_plan=True))
    types = {entry.name: Type.parse(entry.type) for entry in schema.packed}
    if path.is_dir():
        structs = {
            name: jax.ShapeDtypeStruct(type_.shape, dtype_of(type_.dtype), sharding=sharding)
            for (name, type_), sharding in zip(types.items(), shardings, strict=True)
        }
        arrays = orbax_files.read_onto(path, structs)
        return [arrays[name] for name in types]
    header = safetensors_file.read_header(path)
    if header.arrays and not header.checksums:
        raise PackedError(f"{path} has no checksums", hint="pack the originals again")
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
    """The schema of a file of packed parameters. Raises PackedError for any other file."""
    path = Path(path)
    if not path.exists():
        raise PackedError(f"there is no {path}")
    about = (
        orbax_files.read_about(path) if path.is_dir() else safetensors_file.read_header(path).about
    )
    if _KEY not in about:
        raise PackedError(
            f"{path} holds no packed parameters",
            hint="give a checkpoint of originals to step.prepare: see read_checkpoint",
        )
    return Schema.parse(about[_KEY], path)


def misfits(schema: Schema, leaves: Sequence[Any]) -> list[str]:
    """One message per array that differs from the schema."""
    if len(leaves) != len(schema.packed):
        return [f"there are {len(leaves)} arrays, and should be {len(schema.packed)}"]
    wrong = []
    for entry, leaf in zip(schema.packed, leaves):
        wanted = Type.parse(entry.type)
        if not hasattr(leaf, "dtype"):
            wrong.append(f"{entry.name} is {type(leaf).__name__}, and should be {wanted}")
        elif (leaf.shape, leaf.dtype) != (wanted.shape, struct_of(wanted).dtype):
            wrong.append(f"{entry.name} is {leaf.dtype}{list(leaf.shape)}, and should be {wanted}")
    return wrong


def read_checkpoint(path: str | Path) -> dict[str, Lazy]:
    """The arrays of a checkpoint by name, to be read on demand by `step.prepare`.

    path: a `.safetensors` file, an index of such files (`*.index.json`), a folder of them, or an
    orbax checkpoint. If a folder has an index, only that is read. `as_tree` and `stacked` bring
    the arrays into the form of a step's parameters. Raises PackedError.
    """
    path = Path(path)
    with safetensors_file.refusing(path):
        there, folder = path.exists(), path.is_dir()
        files = sorted(path.glob(f"*{safetensors_file.SUFFIX}")) if folder else [path]
        indices = sorted(path.glob(f"*{_INDEX}")) if folder else []
    if not there:
        raise PackedError(f"there is no {path}")
    if not folder:
        return _indexed(path) if path.name.endswith(_INDEX) else safetensors_file.read(path)
    if len(indices) > 1:
        names = " and ".join(index.name for index in indices[:2])
        raise PackedError(f"{path} has several indices, {names}", hint="name one of them")
    if indices:
        return _indexed(indices[0])
    arrays: dict[str, Lazy] = {}
    for file in files:
        more = safetensors_file.read(_inside(path, file.name))
        twice = sorted(set(arrays) & set(more))
        if twice:
            raise PackedError(f"{twice[0]} is in {file} and in another file of {path}")
        arrays |= more
    return arrays if files else orbax_files.read(path)


def _indexed(path: Path) -> dict[str, Lazy]:
    """The arrays that an index maps to files."""
    with safetensors_file.refusing(path):
        places = safetensors_file.read_json(path).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(x, str) for x in places.values()):
            raise ValueError("its weight_map gives no file for each array")
    files = {name: safetensors_file.read(_inside(path.parent, name)) for name in {*places.values()}}
    missing = sorted(name for name, file in places.items() if name not in files[file])
    if missing:
        raise PackedError(f"{places[missing[0]]} lacks {missing[0]}, which {path} says is there")
    return {name: files[file][name] for name, file in places.items()}


def _inside(folder: Path, name: str) -> Path:
    """A file in a folder. Raises PackedError for a name or a link that leads out of the folder.

    The cache of the Hugging Face hub links its snapshots to its blobs; these links are allowed.
    """
    with safetensors_file.refusing(folder / name):
        home, real = folder.resolve(), (folder / name).resolve()
        hub = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if Path(name).name != name or real.parent not in (home, hub):
        raise PackedError(f"{folder / name} leads out of {folder}")
    return folder / name
