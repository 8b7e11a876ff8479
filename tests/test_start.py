"""How a process starts: what is imported, and what is compiled the second time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SERVED = """
import collections, json, jax, jax.numpy as jnp
from rewrite import auto_shard

counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event]))

def step(params, cache, tokens):
    total = cache["sum"] + params["table"][tokens] @ params["w"]
    return jnp.tanh(total), {"sum": total}

params = {"table": jnp.arange(48.0).reshape(12, 4), "w": jnp.ones((4, 4)) / 64}
cache, tokens = {"sum": jnp.zeros((8, 4))}, jnp.arange(8)
served = auto_shard(step, "cpu:8", pipeline="normalize, recognize, plan, shard, stage, lower")
counts.clear()
packed, state = served.prepare(params, cache, tokens), served.adapt(cache)
for _ in range(2):
    out, state = served(packed, state, tokens)
print(json.dumps([
    counts["/jax/compilation_cache/compile_requests_use_cache"],
    counts["/jax/compilation_cache/cache_misses"],
    float(jnp.sum(served.restore(state)["sum"])),
]))
"""


def run(code: str, **variables: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMP")}
    environment |= {"PYTHONPATH": str(HERE.parent), **variables}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip().splitlines()[-1]


def test_a_second_start_compiles_nothing(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first, second = (json.loads(run(SERVED, SHARDWRIGHT_CACHE=str(cache))) for _ in range(2))
    assert first[0] >= first[1] > 0 and list(cache.iterdir())
    assert second == [first[0], 0, first[2]]


def test_a_cache_can_be_turned_off_and_that_of_jax_is_left_alone(tmp_path: Path) -> None:
    code = """
import jax
from rewrite import auto_shard
auto_shard(lambda params, x: params * x, "cpu:8")
print(jax.config.jax_compilation_cache_dir)
"""
    home = str(tmp_path)
    assert run(code, SHARDWRIGHT_CACHE="off") == "None"
    assert run(code, SHARDWRIGHT_CACHE="off", JAX_COMPILATION_CACHE_DIR=home) == home
    environment: dict[str, Any] = {"XDG_CACHE_HOME": home, "SHARDWRIGHT_CACHE": home + "/own"}
    assert run(code, **environment) == home + "/own"


def test_importing_rewrite_imports_nothing_else() -> None:
    """Not JAX, nor any module of the dialect: these come with what is taken from it."""
    code = """
import sys, rewrite
print(sorted(name for name in sys.modules if name.split(".")[0] in ("jax", "dialect", "passes")))
"""
    assert run(code) == "[]"
