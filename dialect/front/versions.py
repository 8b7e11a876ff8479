"""Which versions of JAX Shardwright works with; read from the installed package, not imported."""

from __future__ import annotations

import importlib.metadata
import sys

from rewrite.errors import ShardwrightError

# (first Python that gets it, how its version begins, what pip calls it); pyproject.toml agrees.
SUPPORTED = (
    ((3, 12), "0.12.", "jax>=0.12,<0.13"),
    ((3, 11), "0.10.2.", "jax==0.10.2"),
)


class UnsupportedVersion(ShardwrightError):
    """The JAX that is installed is none that Shardwright works with."""


def check() -> None:
    """Raises UnsupportedVersion unless a supported JAX is installed: 0.10.2, or any 0.12."""
    try:
        version = importlib.metadata.version("jax")
    except importlib.metadata.PackageNotFoundError:
        raise UnsupportedVersion("JAX is not installed", hint=_command()) from None
    if not any(f"{version}.".startswith(start) for _, start, _ in SUPPORTED):
        wanted = " or ".join(spec for _, _, spec in SUPPORTED)
        message = f"JAX {version} is installed; Shardwright works with {wanted}"
        raise UnsupportedVersion(message, hint=_command())


def _command() -> str:
    """The command that installs the JAX for this Python."""
    spec = next(spec for first, _, spec in SUPPORTED if sys.version_info >= first)
    return f'{sys.executable} -m pip install "{spec}"'
