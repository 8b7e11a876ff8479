"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rewrite.errors import ShardwrightError


class FileError(ShardwrightError):
    """A file cannot be written where it was asked for."""


def must_be_writable(path: Path) -> None:
    """Raises FileError where the folder of a file is not there, before the work is done."""
    if not path.parent.is_dir():
        raise FileError(f"cannot write {path}: there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise FileError(f"cannot write {path}: it is {'a folder' if path.is_dir() else 'no file'}")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, renamed to it at the end; no other writer has the same.

    Readers see the whole old file or a whole new one. Raises FileError where the system refuses.
    """
    must_be_writable(path)
    part = path.with_name(f".{path.stem}.{os.urandom(8).hex()}{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
