"""Shardwright: JAX decoders, rewritten for inference.

from rewrite import auto_shard, trace, Pipeline, Plan, Pass, rule
"""

from __future__ import annotations

from typing import Any

_HOME = {
    "auto_shard": "dialect.front.api",
    "trace": "dialect.front.api",
    "compile": "dialect.front.api",
    "per_row": "dialect.front.api",
    "Pipeline": "rewrite.pipeline",
    "Plan": "dialect.planning.plan",
    "Pass": "rewrite.passbase",
    "Program": "rewrite.program",
    "Target": "rewrite.target",
    "rule": "rewrite.rules",
    "local": "rewrite.rules",
    "ShardwrightError": "rewrite.errors",
    "as_tree": "dialect.prepared.originals",
    "read_checkpoint": "dialect.prepared.packed_files",
    "stacked": "dialect.prepared.originals",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Loads what is asked for, and the dialect with it: reading a program needs its ops."""
    if name not in _HOME:
        raise AttributeError(f"module 'rewrite' has no attribute {name!r}")
    from importlib import import_module

    from dialect.front import versions

    versions.check()
    import_module("dialect.front.api")
    module = import_module(_HOME[name])
    return getattr(module, {"rule": "pattern"}.get(name, name))
