"""What `step.lower` gives: JAX's `Lowered` and `Compiled`, called as the step is.

step.lower(params, cache, tokens).compile()(packed, state, tokens)  ->  logits, state
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Lowered:
    """A `jax.stages.Lowered`, whose executable takes the arguments of the step."""

    def __init__(self, lowered: Any, executable: Callable[[Any], Any], run: Callable[..., Any]):
        self.lowered, self._executable, self._run = lowered, executable, run

    def compile(self) -> Compiled:
        """The executable. Raises DoesNotFit where it does not fit into the chips' memory."""
        return Compiled(self._executable(self.lowered), self._run)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lowered, name)


class Compiled:
    """A `jax.stages.Compiled` that takes packed parameters and an adapted state, or the originals.

    Other shapes than those that it was compiled for are refused.
    """

    def __init__(self, executable: Any, run: Callable[..., Any]) -> None:
        self.compiled, self._executable, self._run = executable.compiled, executable, run

    def __call__(self, *args: Any, **named: Any) -> Any:
        """The step's results. Raises TraceError for other shapes."""
        return self._run(self._executable, args, named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.compiled, name)
