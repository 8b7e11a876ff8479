"""Orbax checkpoints: folders in which every machine writes and reads its own shares.

The one module that imports orbax (https://orbax.readthedocs.io), an extra of this package.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dialect.prepared.originals import Lazy
from dialect.prepared.packed_schema import PackedError


def write(path: Path, arrays: Mapping[str, jax.Array], about: Mapping[str, str]) -> None:
    """Writes arrays and some text. The folder is there whole or not at all, and must be new."""
    if path.exists():
        raise PackedError(f"{path} exists", hint="remove it, or take another name")
    with _opened("StandardCheckpointer") as checkpointer:
        checkpointer.save(path.absolute(), dict(arrays), custom_metadata=dict(about))


def read_about(path: Path) -> dict[str, str]:
    """The text of a checkpoint."""
    with _opened("StandardCheckpointer") as checkpointer:
        return dict(checkpointer.metadata(path.absolute()).custom_metadata or {})


def read_onto(path: Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """All arrays of a checkpoint that `write` wrote, in the shardings that are wanted."""
    with _opened("StandardCheckpointer") as checkpointer:
        return checkpointer.restore(path.absolute(), dict(wanted))


def read(path: Path) -> dict[str, Lazy]:
    """The arrays of any checkpoint by their paths (`layers/wq`), to be read when they are needed.

    One array at a time is held in the host's memory. Raises PackedError for what is none.
    """
    with _opened("StandardCheckpointer") as checkpointer:
        metadata = checkpointer.metadata(path.absolute()).item_metadata
    if metadata is None:
        raise PackedError(f"{path} is no orbax checkpoint")
    leaves, structure = jax.tree_util.tree_flatten_with_path(metadata.tree)

    @lru_cache(maxsize=1)
    def whole(number: int) -> np.ndarray:
        ocp = _orbax()
        skipped = [ocp.PLACEHOLDER] * len(leaves)
        only = [*skipped[:number], 0, *skipped[number + 1 :]]
        as_numpy = [ocp.RestoreArgs(restore_type=np.ndarray)] * len(leaves)
        request = ocp.args.PyTreeRestore(
            item=jax.tree.unflatten(structure, only),
            restore_args=jax.tree.unflatten(structure, as_numpy),
        )
        with _opened("PyTreeCheckpointer") as checkpointer:
            restored = checkpointer.restore(path.absolute(), args=request)
        return jax.tree.leaves(restored)[number]

    found = {}
    for number, (keys, about) in enumerate(leaves):
        name = jax.tree_util.keystr(keys, simple=True, separator="/")

        def part(index: tuple[slice, ...], number: int = number) -> np.ndarray:
            return whole(number)[index]

        shape = tuple(about.shape)
        found[name] = Lazy(shape, np.dtype(about.dtype), part, f"{path.name}: {name}")
    return found


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
def _opened(kind: str) -> Iterator[Any]:
    """A checkpointer that is waited for, and tells its warnings by errors alone."""
    ocp = _orbax()
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with getattr(ocp, kind)() as checkpointer:
            yield checkpointer
    finally:
        log.setLevel(level)
