"""JAX's persistent compilation cache: used unless somebody says otherwise.

A second start compiles nothing then. It is `$XDG_CACHE_HOME/shardwright` (`~/.cache/shardwright`),
keyed by JAX with the program, the compiler and its options. SHARDWRIGHT_CACHE names another folder,
or is `off`; a folder that JAX has already (JAX_COMPILATION_CACHE_DIR) is left alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

_VARIABLE = "SHARDWRIGHT_CACHE"
_OFF = ("off", "0", "")


@cache
def use_by_default() -> None:
    """Turns the cache on, once, for all that this process compiles from here on."""
    asked = os.environ.get(_VARIABLE)
    if asked in _OFF or jax.config.jax_compilation_cache_dir is not None:
        return
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(asked or Path(home, "shardwright"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # no home to write to: as JAX is without a cache
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Hundreds of small programs prepare parameters: all of them are kept.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    reset_cache()  # JAX asks once whether there is one


@contextmanager
def left_out() -> Iterator[None]:
    """Inside, nothing is looked up: what is compiled for a machine elsewhere cannot be loaded."""
    was = jax.config.jax_enable_compilation_cache
    if not was or jax.config.jax_compilation_cache_dir is None:
        yield
        return
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", was)
        reset_cache()
