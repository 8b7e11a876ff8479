"""How much JAX has compiled in this process since an engine is ready: nothing, if all is well."""

from __future__ import annotations

from typing import Any

import jax.monitoring

_EVENT = "/jax/core/compile/backend_compile_duration"
_seen = 0


def _listen(event: str, _: float, **__: Any) -> None:
    global _seen
    _seen += event == _EVENT


jax.monitoring.register_event_duration_secs_listener(_listen)


class Compilations:
    """Counts from when it is made."""

    def __init__(self) -> None:
        self._before = _seen

    @property
    def count(self) -> int:
        """Programs that were compiled since."""
        return _seen - self._before
