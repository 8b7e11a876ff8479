"""XLA executables: compiled without log noise, and reported as data.

`read` reports what XLA built: the dtypes of the parameters, which of them are updated in place, the
memory per chip, and all collectives.
"""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dialect.compiled import hlo
from dialect.display.quantities import size
from dialect.machine.stderr import captured_stderr
from rewrite.errors import ShardwrightError

_UNITS = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

# XLA's messages for too little HBM, before and after scheduling.
_TOO_LARGE = (
    re.compile(r"temporaries \(([\d.]+\w?)\) exceeds available HBM \(([\d.]+\w?)\)"),
    re.compile(r"Used ([\d.]+\w?) of ([\d.]+\w?) hbm"),
)

# The prefix of a log line: glog's "W1121 03:02:05 10372 file.cc:459] ", or a full date.
_LOG_PREFIX = re.compile(r"(?:[IWEF]\d{4} |\d{4}-\d\d-\d\d ).*?\.(?:cc|h):\d+\] ")
# Log lines about the machine, the log or the compiler, not about the program.
_NOISE = re.compile(
    r"^\s*$|^Log (?:file created|line format)|^Running on machine|^Binary: |^Previous log"
    r"|Logging before InitGoogle|=== Source Location Trace|libtpu_init_utils|^STDERR$"
    r"|Failed to find host bounds|unexpected worker hostname|Collective matmul V1 is enabled"
    r"|log function has NOT been set|HloShardingV3|slow barrier"
    r"|Unable to dump host DMA stats|0-iteration loop inserted"
    r"|^\s*\*+$|Very slow compile\?|^The operation took "
)
_one_at_a_time = threading.Lock()


class DoesNotFit(ShardwrightError):
    """Raised if a program needs more HBM than a chip has. Sizes are bytes per chip."""

    def __init__(
        self, needed_bytes: int, available_bytes: int, largest: Sequence[str] = ()
    ) -> None:
        self.needed_bytes, self.available_bytes = needed_bytes, available_bytes
        self.missing_bytes = needed_bytes - available_bytes
        super().__init__(
            f"the program does not fit: every chip needs {size(needed_bytes)} of HBM and has "
            f"{size(available_bytes)}; {size(self.missing_bytes)} are missing"
            + "".join(f"\n  largest: {array}" for array in largest),
            hint="use more chips, quantised weights, a smaller batch or context, or plan{refine=4},"
            " which compiles the best four plans and takes one that fits",
        )


def compile_quietly(lowered: Any) -> tuple[Any, tuple[str, ...]]:
    """(executable, notes) of a `jax.stages.Lowered`, without log output on the screen.

    Notes are the compiler's messages about the program, such as "Involuntary full
    rematerialization". Threads take turns.

    Raises DoesNotFit if HBM is too small; any other error of the compiler carries the notes.
    """
    output: list[str] = []
    try:
        with _captured_log(output):
            compiled = lowered.compile()
    except Exception as error:
        too_large = _too_large(str(error))
        if too_large is not None:
            raise too_large from error
        for note in _notes(output):
            error.add_note(note)
        raise
    return compiled, _notes(output)


@contextmanager
def _captured_log(output: list[str]) -> Iterator[None]:
    """Adds to `output` the lines of stderr, and those of libtpu's log file."""
    with _one_at_a_time, captured_stderr() as written:
        before = _warning_logs()
        try:
            yield
        finally:
            log = written()
            for path in _warning_logs():
                log += path.read_bytes()[before.get(path, 0) :].decode(errors="replace")
            output += log.splitlines()


def _warning_logs() -> dict[Path, int]:
    """The log files to which libtpu writes warnings of this process: path -> size in bytes."""
    folder = Path(os.environ.get("TPU_LOG_DIR") or Path(os.sep, "tmp", "tpu_logs"))
    return {path: path.stat().st_size for path in folder.glob(f"*.WARNING.*.{os.getpid()}")}


def _notes(lines: Sequence[str]) -> tuple[str, ...]:
    """The distinct messages, without noise and without log prefixes."""
    kept = (_LOG_PREFIX.sub("", line) for line in lines if not _NOISE.search(line))
    return tuple(dict.fromkeys(kept))


def _too_large(message: str) -> DoesNotFit | None:
    for form in _TOO_LARGE:
        match = form.search(message)
        if match:
            return DoesNotFit(*map(_bytes, match.groups()))
    return None


def _bytes(text: str) -> int:
    """15.75G -> 16911433728"""
    number, unit = (text[:-1], text[-1]) if text[-1] in _UNITS else (text, "B")
    return round(float(number) * _UNITS[unit])


@dataclass(frozen=True)
class Parameter:
    """The shard of an input array on one chip; `bytes` without padding.

    `dtype` is XLA's name (s8, bf16, f32).
    """

    dtype: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class Alias:
    """Output number `output` aliases parameter number `parameter`: it is updated in place."""

    parameter: int
    output: int


@dataclass(frozen=True)
class Memory:
    """Bytes on one chip, with padding. Aliased outputs count as arguments and as outputs."""

    argument_bytes: int
    output_bytes: int
    temp_bytes: int
    alias_bytes: int
    code_bytes: int

    @property
    def total_bytes(self) -> int:
        """All memory, with aliased outputs counted once."""
        unaliased_bytes = self.output_bytes - self.alias_bytes
        return self.argument_bytes + unaliased_bytes + self.temp_bytes + self.code_bytes


@dataclass(frozen=True)
class Collective:
    """`count` equal collectives of an executable.

    - `kind`: all-reduce, all-gather, reduce-scatter, all-to-all, collective-permute ...
    - `dtype` of the largest result; `result_bytes` of one execution on one chip
    - `group_size`: chips per replica group; None if the groups cannot be read
    - `axes`: the mesh axes along which a group extends; None without a mesh or groups
    - `trip_count`: executions in one run, 1 outside of loops; None if a loop's count is not a
      constant. Every branch of a conditional counts as taken.
    - `source`: the JAX operation that it implements, empty if XLA does not record it
    """

    kind: str
    dtype: str
    result_bytes: int
    group_size: int | None
    axes: tuple[str, ...] | None
    trip_count: int | None
    source: str
    count: int = 1


@dataclass(frozen=True)
class Report:
    """An executable as data; see `read`."""

    parameters: tuple[Parameter, ...]
    aliases: tuple[Alias, ...]
    memory: Memory
    collectives: tuple[Collective, ...]

    def by_dtype(self) -> dict[str, tuple[int, int]]:
        """The parameters by dtype: dtype -> (number of arrays, bytes per chip)."""
        counts, sizes = Counter[str](), Counter[str]()
        for parameter in self.parameters:
            counts[parameter.dtype] += 1
            sizes[parameter.dtype] += parameter.bytes
        return {dtype: (counts[dtype], sizes[dtype]) for dtype in sorted(counts)}


def read(compiled: Any, mesh: Any = None) -> Report:
    """The report of a `jax.stages.Compiled`. With its mesh, collectives name their mesh axes."""
    module, memory = hlo.module_of(compiled), compiled.memory_analysis()
    counts = Counter(_collective(entry, module.chips, mesh) for entry in hlo.collectives(module))
    collectives = [replace(collective, count=count) for collective, count in counts.items()]
    return Report(
        parameters=tuple(
            Parameter(*entry, hlo.array_bytes(*entry)) for entry in module.parameters()
        ),
        aliases=tuple(Alias(*entry) for entry in module.aliases()),
        memory=Memory(
            argument_bytes=memory.argument_size_in_bytes,
            output_bytes=memory.output_size_in_bytes,
            temp_bytes=memory.temp_size_in_bytes,
            alias_bytes=memory.alias_size_in_bytes,
            code_bytes=memory.generated_code_size_in_bytes,
        ),
        collectives=tuple(sorted(collectives, key=lambda entry: (entry.kind, -entry.result_bytes))),
    )


def _collective(entry: hlo.CollectiveInstruction, chips: int, mesh: Any) -> Collective:
    sizes = [(hlo.array_bytes(*array), array[0]) for array in hlo.arrays(entry.type)]
    groups = hlo.chip_groups(entry.line, chips)
    return Collective(
        kind=entry.kind,
        dtype=max(sizes)[1],
        result_bytes=sum(count for count, _ in sizes),
        group_size=max(map(len, groups)) if groups else None,
        axes=_axes(groups, mesh) if groups and mesh is not None else None,
        trip_count=entry.trips,
        source=entry.source,
    )


def _axes(groups: list[set[int]], mesh: Any) -> tuple[str, ...]:
    """The mesh axes along which the chips of a group differ; XLA numbers chips along the mesh."""
    sizes = dict(mesh.shape)
    extends = set()
    for group in groups:
        places = np.unravel_index(sorted(group), tuple(sizes.values()))
        extends |= {axis for axis, place in zip(sizes, places) if len(set(place.tolist())) > 1}
    return tuple(axis for axis in sizes if axis in extends)
