"""Flags of XLA for programs that run once: time spent on better code for the CPU would be lost."""

from __future__ import annotations

from importlib.metadata import version

QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# Their programs are small: to compile them in pieces and run them on several threads costs more.
QUICK += " --xla_cpu_parallel_codegen_split_count=1 --xla_cpu_multi_thread_eigen=false"
# Three times faster to compile. XLA ends the process at a flag that it does not know.
if tuple(map(int, version("jaxlib").split(".")[:2])) <= (0, 10):
    QUICK += " --xla_cpu_use_fusion_emitters=false"
