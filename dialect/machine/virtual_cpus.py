"""CPU devices that a machine does not have, so that a program for eight chips can run on it."""

from __future__ import annotations

import os
import re


def start(topology: str) -> None:
    """Gives JAX as many CPU devices as "cpu:8" asks for. JAX reads this at its first device."""
    cpu = re.fullmatch(r"cpu[:-](\d+)", topology)
    flags = os.environ.get("XLA_FLAGS", "")
    if cpu and "xla_force_host_platform_device_count" not in flags:
        flag = f"--xla_force_host_platform_device_count={cpu[1]}"
        os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()
