"""Our plans against layouts written by hand, on the same decoders, as the TPU compiler builds them.

    pip install "shardwright[tpu]"
    python benchmarks/yardsticks.py [--model palm_540b] [--phase decode] [--batch 64] [--json FILE]

The yardsticks are tables in by_hand/rules.py: the paper's layouts, Megatron, FSDP, MaxText's rules,
parameters in two dimensions without constraints. Each is compiled ahead of time for each row (a
model, a slice, a phase, a batch; context 2048, bfloat16), and so is what `auto_shard` makes of the
plain decoder: by its own choice, and asked for the paper's partitionings. Seconds per step come
from a walk over the compiled schedule (`dialect.compiled.schedule`). Nothing is allocated.
`--refine 4` adds the fastest of our best four as compiled, `--show 10` the dearest instructions of
ours and of the best by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
from by_hand import llama as llama_by_hand
from by_hand import palm as palm_by_hand
from by_hand.layouts import Layouts, Rules
from by_hand.rules import YARDSTICKS
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from dialect.compiled.compiling import Compilable
from dialect.compiled.executable import DoesNotFit, compile_quietly
from dialect.compiled.schedule import Schedule, schedule
from dialect.front.api import DEFAULT_PIPELINE
from dialect.machine.mesh import Topology, jax_mesh
from examples import llama, palm
from rewrite import auto_shard
from rewrite.errors import ShardwrightError

CONTEXT = 2048
OURS = "ours"
REFINED = f"{OURS} refine="
NAMED = ("ws1d/heads", "ws1d/batch", "ws2d/heads", "ws2d/batch", "wg_xyz/batch")
ASKED_FOR = tuple("{} ffn={}, attention={}".format(OURS, *name.split("/")) for name in NAMED)


@dataclass(frozen=True)
class Model:
    """A decoder, the slices that it is served on, and how many sequences at once."""

    plain: ModuleType
    by_hand: ModuleType
    config: str
    slices: tuple[str, ...]
    decode: tuple[int, ...]
    prefill: tuple[int, ...]


MODELS = {
    "palm_540b": Model(
        palm, palm_by_hand, "540b_padded", ("v4:4x4x4",), (64, 512), (1, 16, 64, 512)
    ),
    "palm_62b": Model(palm, palm_by_hand, "62b", ("v4:2x2x4", "v5e:4x4"), (64, 512), (1, 16, 64)),
    "llama_70b": Model(llama, llama_by_hand, "70b", ("v5p:2x2x2", "v6e:4x4"), (64,), (1, 16, 64)),
    "llama_8b": Model(llama, llama_by_hand, "8b", ("v5e:2x4",), (64,), (1, 16, 64)),
}


@dataclass(frozen=True)
class Row:
    model: str
    slice: str
    phase: str
    batch: int

    def __str__(self) -> str:
        return f"{self.model} on {self.slice}, {self.phase}, batch {self.batch}"

    @property
    def tokens(self) -> Any:
        length = 1 if self.phase == "decode" else CONTEXT
        return jax.ShapeDtypeStruct((self.batch, length), jnp.int32)


@dataclass(frozen=True)
class Result:
    """One layout of a row. `failed` says why there are no figures; those are of one chip."""

    layout: str
    failed: str = ""
    time_s: float = float("inf")
    compute_s: float = 0.0
    hbm_s: float = 0.0
    link_s: float = 0.0
    hbm_bytes: int = 0
    collective_bytes: int = 0
    collectives: int = 0
    memory_bytes: int = 0

    @property
    def by_hand(self) -> bool:
        return not self.layout.startswith(OURS)


def rows(model: str, phase: str, batch: int) -> Iterator[Row]:
    for name, each in MODELS.items():
        for slice_ in each.slices:
            for of, batches in (("decode", each.decode), ("prefill", each.prefill)):
                if model in ("", name) and phase in ("", of):
                    yield from (Row(name, slice_, of, b) for b in batches if batch in (0, b))


def lowered_by_hand(row: Row, rules: Rules, mesh: Any) -> Any:
    """The annotated decoder under jax.jit, with the shardings of its arguments and results."""
    model = MODELS[row.model]
    module, config = model.by_hand, model.by_hand.CONFIGS[model.config]
    layouts = Layouts(rules, mesh)
    params, cache = module.shapes(config, row.batch, CONTEXT)
    kept = jax.tree.map(layouts.free, module.CACHE, cache)
    logits = jax.ShapeDtypeStruct((row.batch, config.vocab), jnp.float32)
    whole = NamedSharding(mesh, PartitionSpec())
    step = jax.jit(
        partial(module.prefill, config, layouts.constrain),
        in_shardings=(jax.tree.map(layouts.sharding, module.PARAMS, params), kept, whole),
        out_shardings=(layouts.sharding(module.LOGITS, logits), kept),
        donate_argnums=1,
    )
    return step.trace(params, cache, row.tokens).lower(lowering_platforms=("tpu",))


def lowered_by_us(row: Row, asked: str) -> tuple[str, Any]:
    """(the plan's label, our own pipeline on the plain decoder); `asked`: options of its plan."""
    model = MODELS[row.model]
    module, config = model.plain, model.plain.CONFIGS[model.config]
    pipeline = DEFAULT_PIPELINE.replace("plan", f"plan{{{asked}}}" if asked else "plan")
    step = auto_shard(partial(module.prefill, config), row.slice, pipeline=pipeline)
    params = jax.eval_shape(partial(module.init_params, config), jax.random.key(0))
    cache = jax.eval_shape(lambda: module.init_cache(config, row.batch, CONTEXT))
    program = step.program(params, cache, row.tokens)
    return program.plan.label, Compilable(program, step.mesh).lower()


class Bench:
    """Compiles what a row needs, one program at a time; equal programs once."""

    def __init__(self, row: Row, show: Progress, hlo: Path | None) -> None:
        self.row, self.show, self.hlo = row, show, hlo
        self.topology = Topology.parse(row.slice)
        self.mesh = jax_mesh(self.topology, self.topology.mesh_axes())
        self.results: list[Result] = []
        self.schedules: dict[str, Schedule] = {}
        self.seen: dict[str, str] = {}

    def run(self, layouts: list[str]) -> None:
        task = self.show.add_task(str(self.row), total=len(layouts))
        for layout in layouts:
            self.show.update(task, description=f"{self.row}: {layout}")
            self.results.append(self.result(layout))
            self.show.advance(task)
        self.show.remove_task(task)

    def result(self, layout: str) -> Result:
        try:
            name, lowered = self.lowered(layout)
            text = lowered.as_text()
            if text in self.seen:
                return Result(name, f"the same program as {self.seen[text]}")
            self.seen[text] = name
            compiled, _ = compile_quietly(lowered)
        except DoesNotFit as error:
            return Result(name, f"does not fit: {error.needed_bytes / 2**30:.1f} GiB per chip")
        except ShardwrightError as error:
            return Result(layout, f"unavailable: {error.message}")
        if self.hlo:
            file = f"{self.row} {name}.txt".replace(":", "_").replace("/", "_").replace(" ", "-")
            (self.hlo / file).write_text(compiled.as_text())
        found = self.schedules[name] = schedule(compiled, self.topology, self.mesh)
        return Result(
            name,
            time_s=found.time_s,
            compute_s=found.compute_s,
            hbm_s=found.hbm_s,
            link_s=found.link_s,
            hbm_bytes=found.hbm_bytes,
            collective_bytes=found.collective_bytes,
            collectives=sum(each.trips * len(each.exchanges) for each in found.events),
            memory_bytes=found.memory.total_bytes,
        )

    def lowered(self, layout: str) -> tuple[str, Any]:
        if not layout.startswith(OURS):
            return layout, lowered_by_hand(self.row, YARDSTICKS[layout], self.mesh)
        asked = layout.removeprefix(OURS).strip()
        label, lowered = lowered_by_us(self.row, asked)
        return f"{OURS}, {label}" + (f" ({asked})" if asked else ""), lowered

    @property
    def best(self) -> Result | None:
        """The fastest by hand."""
        found = [each for each in self.results if each.by_hand and not each.failed]
        return min(found, key=lambda each: each.time_s, default=None)

    @property
    def ours(self) -> list[Result]:
        """What our own choices came to, where no partitioning was asked for."""
        found = [each for each in self.results if not (each.by_hand or each.failed)]
        return [each for each in found if "ffn=" not in each.layout]

    def table(self) -> Table:
        table = Table(title=str(self.row), title_justify="left")
        table.add_column("layout")
        for name in ("ms", "compute", "HBM", "links", "HBM GB", "links GB", "collectives", "GiB"):
            table.add_column(name, justify="right")
        done = [each for each in self.results if not each.failed]
        for each in sorted(done, key=lambda each: each.time_s):
            table.add_row(each.layout, *_figures(each))
        return table

    def failures(self) -> Iterator[str]:
        yield from (f"{each.layout}: {each.failed}" for each in self.results if each.failed)

    def verdict(self) -> str:
        best = self.best
        if not self.ours or best is None:
            return "ours does not run" if best else "nothing by hand runs"
        ratios = (
            f"{each.layout} / {best.layout} = {each.time_s / best.time_s:.3f}" for each in self.ours
        )
        return f"{self.row}: {'; '.join(ratios)}"

    def dearest(self, count: int) -> Iterator[Table]:
        shown = (*self.ours, self.best) if count else ()
        for each in filter(None, shown):
            table = Table("exposed", "share", "trips", "what", "bytes a trip", "source")
            table.title = each.layout
            for line in self.schedules[each.layout].table(count):
                table.add_row(*line)
            yield table


def _figures(each: Result) -> list[str]:
    seconds = (each.time_s, each.compute_s, each.hbm_s, each.link_s)
    moved = (each.hbm_bytes, each.collective_bytes)
    return [
        *(f"{one * 1e3:,.2f}" for one in seconds),
        *(f"{one / 1e9:,.2f}" for one in moved),
        f"{each.collectives:,}",
        f"{each.memory_bytes / 2**30:.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="")
    parser.add_argument("--slice", default="")
    parser.add_argument("--phase", choices=["decode", "prefill"], default="")
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--layout", nargs="*", default=[], help="names of rules.py, or ours")
    parser.add_argument("--refine", type=int, default=0, metavar="N", help="ours as compiled too")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="the dearest instructions")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--hlo", type=Path, metavar="FOLDER", help="keeps the compiled programs")
    options = parser.parse_args()
    layouts = options.layout or [OURS, *YARDSTICKS, *ASKED_FOR]
    layouts += [f"{REFINED}{options.refine}"] if options.refine else []
    console, verdicts, found = Console(), [], []
    if options.hlo:
        options.hlo.mkdir(parents=True, exist_ok=True)
    for row in rows(options.model, options.phase, options.batch):
        if options.slice not in ("", row.slice):
            continue
        start = time.perf_counter()
        with Progress(console=console, transient=True) as show:
            bench = Bench(row, show, options.hlo)
            bench.run(layouts)
        console.print(bench.table(), *bench.failures(), *bench.dearest(options.show), sep="\n")
        verdicts.append(bench.verdict())
        console.print(f"{verdicts[-1]}  ({time.perf_counter() - start:.0f} s)\n")
        found.append({"row": asdict(row), "results": [asdict(each) for each in bench.results]})
        if options.json:
            options.json.write_text(json.dumps(found, indent=2))
    console.print("ours / best by hand, seconds per step", *verdicts, sep="\n")


if __name__ == "__main__":
    main()
