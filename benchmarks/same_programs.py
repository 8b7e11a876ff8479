"""Do two checkouts make the same programs? Their texts, up to the names of values.

    python benchmarks/same_programs.py ../other-checkout [--show NAME]

Each decoder of examples/ (decode and prefill) and each text of tests/frameworks/ir goes through the
default pipeline, and through one that quantises and precomputes, for eight chips of TPU v5e. A
line tells how many decoders came out alike; those that did not are listed with their first
differing line. Nothing is compiled. What only tells why is left out: the history, the plans that
were not chosen, the reasons of constraints.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from difflib import unified_diff
from functools import partial
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
PIPELINES = {
    "default": "retarget, normalize, recognize, roll, carry_cache, plan, shard, stage, lower",
    "int8": "normalize, recognize, fold_scales, carry_cache, quantize{weights=int8}, cache_layout, "
    "first_layer, plan, shard, stage, lower",
}
_VALUE = re.compile(r"%[A-Za-z0-9_./-]+")


def programs() -> Iterator[tuple[str, str]]:
    """A name and a text for every decoder and pipeline, made by the checkout on the path."""
    import jax

    from examples import gpt, llama, palm
    from rewrite import Pipeline, Program, Target, trace

    traced = {}
    for model in (gpt, llama, palm):
        config = model.CONFIGS["toy"]
        make = partial(model.init_params, config, jax.random.key(0))
        cache = jax.eval_shape(lambda config=config, model=model: model.init_cache(config, 8, 16))
        name = model.__name__.rpartition(".")[2]
        for step, tokens in (("decode_step", (8,)), ("prefill", (8, 4))):
            args = (jax.eval_shape(make), cache, jax.ShapeDtypeStruct(tokens, "int32"))
            traced[f"{name} {step}"] = trace(partial(getattr(model, step), config), *args)
    for path in sorted(Path("tests/frameworks/ir").glob("*.ir")):
        traced[path.stem] = Program.parse(path.read_text(encoding="utf-8"))
    target = Target("v5e:2x4", (("x", 2), ("y", 4)))
    for name, program in traced.items():
        for label, passes in PIPELINES.items():
            try:
                text = str(Pipeline.parse(passes).run(program, target))
            except Exception as error:
                text = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            yield f"{name}, {label}", text


def nameless(text: str) -> list[str]:
    """The lines of a program without what only tells why, values numbered as they come."""
    numbers: dict[str, str] = {}
    text = re.sub(r"history \{\n.*?\n\}\n", "", text, flags=re.DOTALL)
    text = re.sub(r"  (runner-up|unavailable) .*\n|, why=\"[^\"]*\"|why=\"[^\"]*\"", "", text)
    text = _VALUE.sub(lambda name: numbers.setdefault(name[0], f"%{len(numbers)}"), text)
    return text.split("\n")


def differences(before: list[str], after: list[str]) -> Iterator[str]:
    """The lines that only one program has, whatever the values are numbered."""
    unnumbered = ([_VALUE.sub("%", line) for line in lines] for lines in (before, after))
    lines = unified_diff(*unnumbered, n=0, lineterm="")
    return (line for line in list(lines)[2:] if not line.startswith("@"))


def texts_of(checkout: Path) -> dict[str, str]:
    """The programs that a checkout makes, in a process of its own."""
    env = os.environ | {"PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(Path(__file__).resolve()), "--print"]
    done = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{checkout} fails:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("other", nargs="?", type=Path, help="the other checkout")
    parser.add_argument("--show", metavar="NAME", help="all differing lines of one program")
    parser.add_argument("--print", action="store_true", help="the programs of this path, as JSON")
    args = parser.parse_args()
    if args.print:
        print(json.dumps(dict(programs())))
        return
    here, there = texts_of(CHECKOUT), texts_of(args.other.resolve())
    alike = 0
    for name in sorted(here.keys() & there.keys()):
        before, after = nameless(there[name]), nameless(here[name])
        if before == after:
            alike += 1
            continue
        differing = list(differences(before, after)) or ["  operands alone"]
        print(f"{name}: {len(differing)} lines differ")
        for line in differing if args.show == name else differing[:2]:
            print(f"  {line[:160]}")
    print(f"{alike} of {len(here.keys() & there.keys())} programs are the same")


if __name__ == "__main__":
    main()
