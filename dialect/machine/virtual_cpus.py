"""Virtual CPU devices, to run a program for several chips on one machine."""

from __future__ import annotations

import os
import re


def start(topology: str, processes: int = 1) -> None:
    """Sets the XLA flag for the devices of "cpu:8", of which every process has its part. JAX reads
    it when it starts its backend."""
    cpu = re.fullmatch(r"cpu[:-](\d+)", topology)
    flags = os.environ.get("XLA_FLAGS", "")
    if cpu and "xla_force_host_platform_device_count" not in flags:
        flag = f"--xla_force_host_platform_device_count={int(cpu[1]) // processes}"
        os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()
