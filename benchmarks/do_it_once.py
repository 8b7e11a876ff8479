"""What is done once, pass by pass, on every decoder there is: a table of how far each moves logits.

    pip install "shardwright[frameworks]"
    python benchmarks/do_it_once.py [examples:llama hf_flax:gemma tunix_models:qwen3_32b texts:...]
        [--phase decode] [--devices 8] [--form rolled] [--whole]

A row is a case, its phase, its layers as they are written or rolled into a scan, and how many CPU
devices serve it. A cell is one pass alone, or all together:

- exact passes: the largest difference of logits or cache, as a share of the largest number there
  (RMS as below where the model itself rounds its activations)
- rounding passes: the RMS of the difference in per cent of the logits' standard deviation
- ` `: a single pass, asked of layers as written on one device and of rolled ones on eight
- `-`: nothing to do here, the program is as it was; the notes of the pass say why (`--notes`)

A cell ends in `!` where it is not what it should be: an exact pass that moves logits or the cache,
or a program that differs from its own rewrite before staging, lowering and sharding.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Each program runs once: time spent on its machine code is lost.
QUICK = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ.setdefault("XLA_FLAGS", QUICK)
TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS.parent), str(TESTS / "frameworks")]

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from axes_tables import HF_FLAX, TUNIX  # noqa: E402
from harness import PHASES, SERVED, built, drawn, positions, prompted  # noqa: E402

from dialect.compiled.compiling import Compilable  # noqa: E402
from dialect.front.api import resolve  # noqa: E402
from dialect.prepared.serving import Executable  # noqa: E402
from dialect.prepared.state import is_state  # noqa: E402
from rewrite import Pipeline, Program, trace  # noqa: E402
from rewrite.errors import ShardwrightError  # noqa: E402
from tests import tiny  # noqa: E402

FORMS = {
    "as written": "retarget, normalize, recognize, carry_cache",
    "rolled": "retarget, normalize, recognize, roll, carry_cache",
}
SERVE = "plan, shard, stage, lower"
EVERYTHING = "fold_scales, merge_dots, cache_layout, first_layer{budget=10.0}"
# Groups of 8 divide every summed axis of the small models.
PASSES = {
    "first_layer": "first_layer{budget=10.0}",
    "cache_layout": "cache_layout",
    "merge_dots": "merge_dots",
    "fold_scales": "fold_scales",
    "exact": EVERYTHING,
    "int8": "quantize{weights=int8}",
    "w8a8": "quantize{weights=int8, activations=int8}",
    "int4": "quantize{weights=int4, group=8}",
    "cache8": "quantize{weights=none, cache=int8}",
    "all int8": EVERYTHING.replace(
        "cache_layout",
        "quantize{weights=int8, activations=int8, cache=int8, vocab=true}, cache_layout",
    ),
    "all int4": EVERYTHING.replace(
        "cache_layout", "quantize{weights=int4, group=8, cache=int8}, cache_layout"
    ),
}
TOGETHER = ("exact", "all int8", "all int4")
ROUNDS_WEIGHTS = ("int8", "int4")
ROUNDS_IN_THE_STEP = ("w8a8", "cache8", "all int8", "all int4")
WIDTH = 52  # of a row's name
EXACTLY = 2e-5  # of the largest number: floats are added up in another order
NEARLY = 5e-2  # RMS: what lies between two steps of a rounding may go to either
HF, TUNIX_MODELS, TEXTS, EXAMPLES = "hf_flax", "tunix_models", "texts", "examples"


class Decoder(NamedTuple):
    """A traced step, the arrays to run it on, and what it gives back itself; all flat lists."""

    traced: Program
    leaves: list[jax.Array]
    wanted: list[jax.Array]

    @property
    def rounds(self) -> bool:
        """Whether it rounds activations itself: the last bit of a sum can be a step of those."""
        return any(op.name == "round" for op, _ in self.traced.graph.walk())


def every_case() -> list[str]:
    texts = sorted(path.stem for path in (TESTS / "frameworks" / "ir").glob("*.ir"))
    named = {EXAMPLES: tiny.MODELS, HF: HF_FLAX, TUNIX_MODELS: TUNIX, TEXTS: texts}
    return [f"{library}:{model}" for library, models in named.items() for model in models]


def decoders(name: str, phase: str) -> Iterator[tuple[str, Decoder]]:
    """(label, decoder) of a case: two of an example, whose layers are written in both ways."""
    library, _, model = name.partition(":")
    if library == EXAMPLES:
        for unrolled in (False, True):
            case = tiny.Case(model, phase == "prefill", unrolled)
            kind = "unrolled" if unrolled else "scanned"
            yield f"{name} {kind}", of_function(case.function, tiny.arguments(case))
    elif library != TEXTS:
        yield name, of_library(library, model, phase)
    elif phase == "decode":  # a text is of one step
        program = Program.parse((TESTS / "frameworks" / "ir" / f"{model}.ir").read_text("utf-8"))
        yield name, of_program(program, drawn(program))


def of_library(library: str, model: str, phase: str) -> Decoder:
    """A prompt, or the token behind it with the cache that the library's own prefill leaves."""
    case = built(library, model, "prefill", batch=SERVED)
    args = prompted(library, model)
    if phase == "prefill":
        return of_function(case.function, args)
    logits, cache = jax.jit(case.function)(*args)
    token = jnp.argmax(logits[:, -1:], axis=-1).astype(jnp.int32)
    at = jnp.full(token.shape, case.tokens.shape[1], jnp.int32)
    step = built(library, model, "decode", batch=SERVED)
    return of_function(step.function, (args[0], cache, token, *positions(step, at)))


def of_function(function: Any, args: tuple[Any, ...]) -> Decoder:
    return of_program(trace(function, *args, params=0, state=1), jax.tree.leaves(args))


def of_program(program: Program, leaves: list[jax.Array]) -> Decoder:
    return Decoder(program, leaves, jax.jit(program.run)(leaves))


class Cell(NamedTuple):
    text: str
    wrong: bool = False
    notes: tuple[str, ...] = ()


BLANK = Cell("")


def cell(decoder: Decoder, front: Program, column: str, devices: int) -> Cell:
    """What one column's passes do to one decoder."""
    mesh, target = resolve(f"cpu:{devices}", None, Pipeline(()))
    made = Pipeline.parse(PASSES[column]).run(front, target)
    notes = tuple(note for each in made.history[len(front.history) :] for note in each.notes)
    if made.graph == front.graph:
        return Cell("-", notes=notes)
    found = on_devices(Pipeline.parse(SERVE).run(made, target), mesh, decoder.leaves)
    rounds = column in ROUNDS_WEIGHTS + ROUNDS_IN_THE_STEP
    reference = jax.jit(made.run)(decoder.leaves) if rounds else decoder.wanted
    (logits,) = (i for i, out in enumerate(decoder.traced.outputs) if out.updates is None)
    if decoder.rounds or column in ROUNDS_IN_THE_STEP:
        off = spread(found[logits], reference[logits])
        wrong = not off < NEARLY
    else:
        off = max(map(difference, found, reference))
        wrong = not off < EXACTLY
    if not rounds:
        return Cell(f"{off:.0e}", wrong, notes)
    moved = spread(found[logits], decoder.wanted[logits])
    return Cell(f"{moved:.1%}", wrong or not 0 < moved < 1, notes)


def spread(found: Any, wanted: Any) -> float:
    """The RMS of the difference, as a share of the standard deviation of what is wanted."""
    return float(np.std(np.subtract(found, wanted)) / np.std(wanted))


def difference(found: Any, wanted: Any) -> float:
    """The largest, as a share of the largest number wanted."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-30))


def on_devices(program: Program, mesh: Any, leaves: list[jax.Array]) -> list[jax.Array]:
    """The program's results, its parameters packed and its state adapted, and restored again."""
    params = program.take(leaves, "param")
    executable = Executable(Compilable(program, mesh, False), jax.tree.structure(params))
    others = [leaf for leaf, each in zip(leaves, program.inputs) if each.role != "param"]
    tree = executable(executable.packed(params), others)
    results = jax.tree.leaves(tree, is_leaf=is_state)
    updates = {i: out.updates for i, out in enumerate(program.outputs) if out.updates is not None}
    at = sorted(updates, key=updates.__getitem__)
    for i, array in zip(at, executable.restored([results[i] for i in at]), strict=True):
        results[i] = array
    return results


def rows(options: argparse.Namespace, name: str, phase: str) -> Iterator[tuple[str, list[Cell]]]:
    """(label, cells) of one case."""
    for label, decoder in decoders(name, phase):
        for form in options.form:
            front = Pipeline.parse(FORMS[form]).run(decoder.traced)
            for devices in options.devices:
                both = options.whole or (form == "rolled") == (devices > 1)
                row = [
                    tried(decoder, front, column, devices) if both or column in TOGETHER else BLANK
                    for column in options.columns
                ]
                yield f"{label} {phase}, {form}, {devices}", row


def tried(*asked: Any) -> Cell:
    try:
        return cell(*asked)
    except ShardwrightError as error:
        return Cell("refused", True, (str(error),))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", default=every_case(), metavar="library:model")
    parser.add_argument("--phase", nargs="+", default=list(PHASES), choices=PHASES)
    parser.add_argument("--form", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--devices", nargs="+", default=[1, 8], type=int)
    parser.add_argument("--columns", nargs="+", default=list(PASSES), choices=list(PASSES))
    parser.add_argument("--whole", action="store_true", help="single passes in both kinds of rows")
    parser.add_argument("--notes", action="store_true", help="print what each pass says")
    options = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)  # the libraries' own
    print(" " * WIDTH, *(f"{column:>12}" for column in options.columns))
    cells = wrong = 0
    for name in options.cases:
        for phase in options.phase:
            for label, row in rows(options, name, phase):
                shown = (f"{each.text}{'!' if each.wrong else ''}" for each in row)
                print(f"{label:{WIDTH}}", *(f"{each:>12}" for each in shown), flush=True)
                for column, each in zip(options.columns, row):
                    if options.notes or each.wrong:
                        print(*(f"    {column}: {note}" for note in each.notes), sep="\n")
                cells += sum(bool(each.text) for each in row)
                wrong += sum(each.wrong for each in row)
        jax.clear_caches()
    print(f"{cells} cells, {wrong} of them wrong")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
