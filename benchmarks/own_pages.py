"""A decoder that brings pages of its own: what is planned beside what is compiled.

    pip install "shardwright[tpu]"
    python benchmarks/own_pages.py [--layers 4] [--slices v5e:2x4 v6e:2x4] [--only "by page"]

The decoder is that of tests/own_pages.py at the size of Llama-3-8B: 64 rows of 16 pages of 128
places, in the default pipeline, once for every spelling. Nothing is allocated.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax

from dialect.compiled.compiling import Compilable, compiled
from dialect.compiled.schedule import schedule
from dialect.display.tables import Table, as_text
from dialect.front.api import DEFAULT_PIPELINE
from dialect.machine.mesh import MeshSpec, Topology, jax_mesh
from dialect.reports.beside_plan import beside_plan
from rewrite import Pipeline, Target, trace
from tests import own_pages

ROWS, PAGES, COUNT = 64, 16, 1100


def row(config: own_pages.Config, spelling: str, slice_: str) -> Iterator[str]:
    """The figures of a spelling, compiled for a TPU slice."""
    params = own_pages.params_of(config, spelling)
    state = own_pages.state_of(config, spelling, ROWS, PAGES, COUNT)
    tokens = jax.ShapeDtypeStruct((ROWS,), "int32")
    topology = Topology.parse(slice_)
    target = Target(slice_, topology.mesh_axes().axes)
    program = trace(partial(own_pages.step, config, spelling), params, state, tokens)
    program = Pipeline.parse(DEFAULT_PIPELINE).run(program, target)
    mesh = jax_mesh(topology, MeshSpec(target.mesh))
    executable, _ = compiled(Compilable(program, mesh))
    found = schedule(executable, topology, mesh)
    yield from (slice_, spelling, program.plan.label, f"{found.time_s * 1e3:.2f} ms")
    yield f"{found.memory.temp_bytes / 1e6:,.1f} MB"
    for figures in beside_plan(program, executable, mesh):
        yield f"{figures.compiled / figures.planned:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=own_pages.LLAMA_8B.layers)
    parser.add_argument("--slices", nargs="+", default=["v5e:2x4"])
    parser.add_argument("--only", default="", metavar="TEXT", help="spellings with this text")
    args = parser.parse_args()
    config = replace(own_pages.LLAMA_8B, layers=args.layers)
    rows = []
    for slice_ in args.slices:
        for spelling in own_pages.SPELLINGS:
            if args.only in spelling:
                rows.append(tuple(row(config, spelling, slice_)))
                print("  ".join(rows[-1]), flush=True)
    measured = (">time", ">temporaries", ">memory", ">received", ">HBM traffic")
    columns = ("slice", "pages", "plan", *measured)
    print(as_text([Table("compiled / planned, per chip", columns, tuple(rows))]))


if __name__ == "__main__":
    main()
