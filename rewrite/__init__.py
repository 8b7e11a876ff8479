"""Shardwright: JAX decoders, rewritten for inference.

from rewrite import auto_shard, trace, Pipeline, Plan, Pass, rule
"""

from __future__ import annotations

from typing import Any

_HOMES = {
    "dialect.front.api": "auto_shard trace compile per_row sampled Sampling accept distill",
    "dialect.printed.notebook": "diff",
    "dialect.engine.engine": "Engine",
    "rewrite.pipeline": "Pipeline",
    "dialect.planning.plan": "Plan",
    "rewrite.passbase": "Pass",
    "rewrite.program": "Program",
    "rewrite.target": "Target",
    "rewrite.rules": "rule local",
    "rewrite.errors": "ShardwrightError",
    "dialect.prepared.checkpoint_trees": "as_tree stacked",
    "dialect.prepared.packed_files": "read_checkpoint",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Loads what is asked for, and the dialect with it: reading a program needs its ops."""
    if name not in _HOME:
        raise AttributeError(f"module 'rewrite' has no attribute {name!r}")
    from importlib import import_module

    from dialect.front import versions

    versions.check()
    import_module("dialect.front.api")
    return getattr(import_module(_HOME[name]), {"rule": "pattern"}.get(name, name))
