"""XLA executables: compiled without noise on the screen, and read back as facts.

What a compiler promises is one thing, what it built is another. `read` tells the second: which
types an executable's parameters have, which of them it updates in place, how much memory a chip
needs, and every collective that runs.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dialect.compiled import hlo
from rewrite.errors import ShardwrightError

_UNITS = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

# Where HBM is too small XLA says so before it schedules the program, or after.
_TOO_LARGE = (
    re.compile(r"temporaries \(([\d.]+\w?)\) exceeds available HBM \(([\d.]+\w?)\)"),
    re.compile(r"Used ([\d.]+\w?) of ([\d.]+\w?) hbm"),
)

# What stands before a message: glog's "W1121 03:02:05 10372 file.cc:459] ", or a date in full.
_LOG_PREFIX = re.compile(r"(?:[IWEF]\d{4} |\d{4}-\d\d-\d\d ).*?\.(?:cc|h):\d+\] ")
# Lines about the machine, the log or the compiler itself, never about the program.
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
    """The program needs more HBM than a chip has. Sizes are per chip, in bytes."""

    def __init__(
        self, needed_bytes: int, available_bytes: int, largest: Sequence[str] = ()
    ) -> None:
        self.needed_bytes, self.available_bytes = needed_bytes, available_bytes
        self.missing_bytes = needed_bytes - available_bytes
        super().__init__(
            f"the program does not fit: every chip needs {_size(needed_bytes)} of HBM and has "
            f"{_size(available_bytes)}; {_size(self.missing_bytes)} are missing"
            + "".join(f"\n  largest: {each}" for each in largest),
            hint="more chips, quantised weights, a smaller batch or context, or plan{refine=4}, "
            "which compiles the best four plans and takes one that fits",
        )


def compile_quietly(lowered: Any) -> tuple[Any, tuple[str, ...]]:
    """(executable, notes) of a `jax.stages.Lowered`, with the compiler kept off the screen.

    Notes are what the compiler said, without what says nothing about the program; the one to look
    for is "Involuntary full rematerialization". Threads take turns.

    Raises DoesNotFit where HBM is too small; any other error of the compiler comes with its notes.
    """
    said: list[str] = []
    try:
        with _kept_off_the_screen(said):
            compiled = lowered.compile()
    except Exception as error:
        too_large = _too_large(str(error))
        if too_large is not None:
            raise too_large from error
        for note in _notes(said):
            error.add_note(note)
        raise
    return compiled, _notes(said)


@contextmanager
def _kept_off_the_screen(said: list[str]) -> Iterator[None]:
    """Collects what is written to stderr, by C++ too, and what libtpu adds to its own log."""
    with _one_at_a_time, tempfile.TemporaryFile() as sink:
        before = _warning_logs()
        sys.stderr.flush()
        screen = os.dup(2)
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(screen, 2)
            os.close(screen)
            sink.seek(0)
            written = sink.read()
            for path in _warning_logs():
                written += path.read_bytes()[before.get(path, 0) :]
            said += written.decode(errors="replace").splitlines()


def _warning_logs() -> dict[Path, int]:
    """libtpu writes its warnings to a file per process and not to stderr: path -> bytes in it."""
    folder = Path(os.environ.get("TPU_LOG_DIR") or Path(os.sep, "tmp", "tpu_logs"))
    return {path: path.stat().st_size for path in folder.glob(f"*.WARNING.*.{os.getpid()}")}


def _notes(said: Sequence[str]) -> tuple[str, ...]:
    """Each thing once, without noise and without time and place in the compiler's own source."""
    kept = (_LOG_PREFIX.sub("", line) for line in said if not _NOISE.search(line))
    return tuple(dict.fromkeys(kept))


def _too_large(message: str) -> DoesNotFit | None:
    for form in _TOO_LARGE:
        found = form.search(message)
        if found:
            return DoesNotFit(*(_bytes(size) for size in found.groups()))
    return None


def _bytes(size: str) -> int:
    """15.75G -> 16911433728"""
    number, unit = (size[:-1], size[-1]) if size[-1] in _UNITS else (size, "B")
    return round(float(number) * _UNITS[unit])


def _size(count: int) -> str:
    """16911433728 -> 15.75 GiB"""
    for unit in ("G", "M", "K"):
        if abs(count) >= _UNITS[unit]:
            return f"{count / _UNITS[unit]:.2f} {unit}iB"
    return f"{count} B"


@dataclass(frozen=True)
class Parameter:
    """An array that the executable takes: the part of it on one chip, `bytes` without padding.

    `dtype` is XLA's name (s8, bf16, f32).
    """

    dtype: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class Alias:
    """Output number `output` is written over parameter number `parameter`."""

    parameter: int
    output: int


@dataclass(frozen=True)
class Memory:
    """Bytes on one chip, padding included. Aliased outputs count as arguments and as outputs."""

    argument_bytes: int
    output_bytes: int
    temp_bytes: int
    alias_bytes: int
    code_bytes: int

    @property
    def total_bytes(self) -> int:
        """Everything, aliased outputs once."""
        own_output_bytes = self.output_bytes - self.alias_bytes
        return self.argument_bytes + own_output_bytes + self.temp_bytes + self.code_bytes


@dataclass(frozen=True)
class Collective:
    """Equal collectives of an executable, `count` of them.

    - `kind`: all-reduce, all-gather, reduce-scatter, all-to-all, collective-permute ...
    - `dtype` of its largest result; `result_bytes` of one execution on one chip
    - `group_size`: the chips that take part together; None in a notation that is not known
    - `axes`: the mesh axes along which a group extends; None without a mesh or a group
    - `trip_count`: executions of each in one run, 1 outside of loops; None where a loop's count
      is not a constant. Every branch of a conditional counts as taken.
    - `source`: the JAX operation that XLA made it for, empty where XLA does not say
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
    """What XLA built. Made by `read`."""

    parameters: tuple[Parameter, ...]
    aliases: tuple[Alias, ...]
    memory: Memory
    collectives: tuple[Collective, ...]

    def by_dtype(self) -> dict[str, tuple[int, int]]:
        """Of the parameters: dtype -> (how many, bytes on one chip)."""
        counts, sizes = Counter[str](), Counter[str]()
        for each in self.parameters:
            counts[each.dtype] += 1
            sizes[each.dtype] += each.bytes
        return {dtype: (counts[dtype], sizes[dtype]) for dtype in sorted(counts)}

    def table(self) -> list[tuple[str, str, str]]:
        """Rows of (what, how often, how large)."""
        rows = [
            (f"{dtype} parameters", str(count), _size(size))
            for dtype, (count, size) in self.by_dtype().items()
        ]
        for name, size in asdict(self.memory).items():
            rows.append((f"{name.removesuffix('_bytes')} memory", "", _size(size)))
        for each in self.collectives:
            where = "" if each.axes is None else f" over {' '.join(each.axes)}"
            trips = "?" if each.trip_count is None else each.trip_count
            what = f"{each.kind} of {each.dtype}{where}"
            rows.append((what, f"{each.count} x {trips}", _size(each.result_bytes)))
        return rows

    def to_json(self) -> str:
        """Everything, as a JSON object."""
        return json.dumps(asdict(self), indent=2)


def read(compiled: Any, mesh: Any = None) -> Report:
    """What a `jax.stages.Compiled` is made of. With its mesh, collectives name their axes."""
    module, memory = hlo.Module(compiled.as_text()), compiled.memory_analysis()
    found = Counter(_collective(each, module.chips, mesh) for each in hlo.collectives(module))
    collectives = [replace(each, count=count) for each, count in found.items()]
    return Report(
        parameters=tuple(Parameter(*each, hlo.array_bytes(*each)) for each in module.parameters()),
        aliases=tuple(Alias(*each) for each in module.aliases()),
        memory=Memory(
            argument_bytes=memory.argument_size_in_bytes,
            output_bytes=memory.output_size_in_bytes,
            temp_bytes=memory.temp_size_in_bytes,
            alias_bytes=memory.alias_size_in_bytes,
            code_bytes=memory.generated_code_size_in_bytes,
        ),
        collectives=tuple(sorted(collectives, key=lambda each: (each.kind, -each.result_bytes))),
    )


def _collective(found: hlo.Found, chips: int, mesh: Any) -> Collective:
    sizes = [(hlo.array_bytes(*array), array[0]) for array in hlo.arrays(found.type)]
    groups = hlo.chip_groups(found.line, chips)
    return Collective(
        kind=found.kind,
        dtype=max(sizes)[1],
        result_bytes=sum(size for size, _ in sizes),
        group_size=max(map(len, groups)) if groups else None,
        axes=_axes(groups, mesh) if groups and mesh is not None else None,
        trip_count=found.trips,
        source=found.source,
    )


def _axes(groups: list[set[int]], mesh: Any) -> tuple[str, ...]:
    """The mesh axes along which members of a group differ: XLA numbers chips along the mesh."""
    sizes = dict(mesh.shape)
    extends = set()
    for group in groups:
        places = np.unravel_index(sorted(group), tuple(sizes.values()))
        extends |= {axis for axis, place in zip(sizes, places) if len(set(place.tolist())) > 1}
    return tuple(axis for axis in sizes if axis in extends)
