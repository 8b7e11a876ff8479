"""Orbax checkpoints: folders in which every host writes and reads its shards.

The only module that imports orbax (https://orbax.readthedocs.io), an optional dependency.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dialect.prepared.digests import digests
from dialect.prepared.originals import Lazy
from dialect.prepared.packed_schema import PackedError
from rewrite.errors import ShardwrightError, cause, in_quotes

_DIGESTS, _TEXTS = "digests", "texts_sha256"  # our keys in the metadata of a checkpoint


def write(path: Path, arrays: Mapping[str, jax.Array], about: Mapping[str, str]) -> None:
    """Writes arrays and metadata atomically. Raises PackedError if the folder exists."""
    if path.exists():
        raise PackedError(f"{path} exists", hint="remove it, or take another name")
    texts = {**about, _DIGESTS: json.dumps(digests(arrays))}
    texts[_TEXTS] = _digest_of(texts)
    with _opened("StandardCheckpointer", path) as checkpointer:
        checkpointer.save(path.absolute(), dict(arrays), custom_metadata=texts)


def read_about(path: Path) -> dict[str, str]:
    """The metadata of a checkpoint. Raises PackedError if it is damaged."""
    with _opened("StandardCheckpointer", path) as checkpointer:
        texts = dict(checkpointer.metadata(path.absolute()).custom_metadata or {})
        if _TEXTS in texts and texts.pop(_TEXTS) != _digest_of(texts):
            raise PackedError(f"{path} is damaged: its texts are not what was written")
    return texts


def read_onto(path: Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """All arrays of a checkpoint that `write` wrote, with the shardings of `wanted`.

    Raises PackedError if an array is damaged.
    """
    written = read_about(path).get(_DIGESTS)
    with _opened("StandardCheckpointer", path) as checkpointer:
        arrays = checkpointer.restore(path.absolute(), dict(wanted))
        sums, written = digests(arrays), json.loads(written or "{}")
    wrong = [name for name in sums if sums[name] != written.get(name)]
    if wrong:
        raise PackedError(f"{path} is damaged: {wrong[0]} is not what was written")
    return arrays


def _digest_of(texts: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()


def read(path: Path) -> dict[str, Lazy]:
    """The arrays of any checkpoint by their paths (`layers/wq`), to be read on demand.

    One array at a time is held in host memory. Raises PackedError for any other folder.
    """
    with _opened("StandardCheckpointer", path) as checkpointer:
        metadata = checkpointer.metadata(path.absolute()).item_metadata
        if metadata is None:
            raise PackedError(f"{path} is no orbax checkpoint")
        leaves, structure = jax.tree_util.tree_flatten_with_path(metadata.tree)

    @lru_cache(maxsize=1)
    def array(number: int) -> np.ndarray:
        ocp = _orbax()
        skipped = [ocp.PLACEHOLDER] * len(leaves)
        only = [*skipped[:number], 0, *skipped[number + 1 :]]
        as_numpy = [ocp.RestoreArgs(restore_type=np.ndarray)] * len(leaves)
        request = ocp.args.PyTreeRestore(
            item=jax.tree.unflatten(structure, only),
            restore_args=jax.tree.unflatten(structure, as_numpy),
        )
        with _opened("PyTreeCheckpointer", path) as checkpointer:
            restored = checkpointer.restore(path.absolute(), args=request)
        return jax.tree.leaves(restored)[number]

    arrays = {}
    for number, (keys, about) in enumerate(leaves):
        name = jax.tree_util.keystr(keys, simple=True, separator="/")
        if ".." in name.split("/") or not hasattr(about, "shape"):
            raise PackedError(
                f"{path} holds {in_quotes(name)}, which is the name of no array in it"
            )

        def part(index: tuple[slice, ...], number: int = number) -> np.ndarray:
            return array(number)[index]

        shape = tuple(about.shape)
        arrays[name] = Lazy(shape, np.dtype(about.dtype), part, f"{path.name}: {name}")
    return arrays


def _orbax() -> Any:
    try:
        import orbax.checkpoint

        return orbax.checkpoint
    except ImportError as error:
        raise PackedError(
            f"a checkpoint in a folder needs orbax, which cannot be imported: {error}",
            hint='pip install "shardwright[orbax]", or name a file that ends in .safetensors',
        ) from error


@contextmanager
def _opened(kind: str, path: Path) -> Iterator[Any]:
    """A checkpointer that is closed at the end, with its warnings silenced.

    Raises PackedError for any error inside, since orbax raises many types.
    """
    ocp = _orbax()
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with getattr(ocp, kind)() as checkpointer:
            yield checkpointer
    except ShardwrightError:
        raise
    except Exception as error:
        raise PackedError(f"{path} cannot be used as a checkpoint: {cause(error)}") from error
    finally:
        log.setLevel(level)
