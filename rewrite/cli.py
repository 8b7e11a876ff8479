"""The `shardwright` command.

    shardwright compile examples/llama.py:decode_step --config 8b --pipeline serve.pipeline
    shardwright show    examples/llama.py:decode_step --config 8b -p "normalize, recognize"
    shardwright coverage examples/llama.py:decode_step --config 8b
    shardwright eval    examples/tiny/model.py:decode_step --config mha -p "quantize{weights=int8}"
    shardwright sweep   examples/palm.py:decode_step --config 540b --chip v4 --plot pareto.png
    shardwright opt     program.ir -p "normalize"
    shardwright bisect  examples/llama.py:decode_step --config toy --pipeline serve.pipeline
    shardwright reproduce crash.ir --reduce
    shardwright check-rules examples/own.rules
    shardwright passes

It traces on the CPU and compiles ahead of time; only `eval` runs the program.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, get_type_hints

from dialect import versions
from rewrite import asked, faults, manager, options
from rewrite.asked import Arguments, rewritten, start
from rewrite.console import Screen
from rewrite.errors import PipelineError, ShardwrightError
from rewrite.passbase import Pass, find_pass, pass_names
from rewrite.program import Program


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line, given without the program's name. Returns the exit code."""
    args = _parser().parse_args(argv)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # read when JAX is imported
    try:
        versions.check()
        args.command(args, Screen())
        sys.stdout.flush()
    except ShardwrightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader has gone; what is still unwritten must not raise again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


# The commands.


def compile_(args: Arguments, screen: Screen) -> None:
    """Rewrites a function, compiles it, and shows what the compiler made of it."""
    from dialect.compiled.compiling import Compilable, compiled
    from dialect.compiled.executable import read
    from dialect.mesh import Topology

    done = rewritten(args, screen)
    with screen.working(f"compiling for {done.target.topology}"), asked.kept(args, done):
        started = time.perf_counter()
        made, notes = compiled(Compilable(done.program, done.mesh))
        seconds = time.perf_counter() - started
        report = read(made, done.mesh)
    if args.json:
        built = asdict(report)
        _print_json(done.facts() | {"compile_s": seconds, "notes": notes, "executable": built})
        return
    screen.rewriting(args.function, done.target, done.reports, done.program.plan)
    usable = Topology.parse(done.target.topology).chip.usable_hbm_bytes
    screen.executable(report, notes, seconds, usable)


def show(args: Arguments, screen: Screen) -> None:
    """Rewrites a function and prints the program."""
    from dialect.explained import Explained

    explained = Explained()
    done = rewritten(args, screen, listeners=(explained,))
    if args.json:
        _print_json(done.facts() | {"program": str(done.program)})
        return
    if not args.explain:
        print(done.program)
        return
    screen.rewriting(args.function, done.target, done.reports, done.program.plan)
    screen.tables(explained.tables())


def coverage(args: Arguments, screen: Screen) -> None:
    """Shows what of a function is recognised, what is not and why, and what its axes are."""
    from dialect.explained import Explained

    explained = Explained()
    rewritten(args, screen, "normalize, recognize", (explained,))
    if explained.program is None:
        raise PipelineError("the pipeline recognizes nothing", hint="add the pass recognize to it")
    if args.json:
        _print_json(explained.facts())
    else:
        screen.tables(explained.tables())


def sweep(args: Arguments, screen: Screen) -> None:
    """Costs a decoder over chips, batches and dtypes of weights, and marks the Pareto front."""
    from dialect import files, tables
    from dialect.planning import sweep as pareto
    from dialect.planning import sweep_plot

    outputs = [Path(each) for each in (args.out, args.plot) if each]
    for path in outputs:
        files.must_be_writable(path)
    if args.plot:
        sweep_plot.must_be_possible(outputs[-1])
    chips, batches = (pareto.numbers(getattr(args, n), f"--{n}") for n in ("chips", "batch"))
    slices = tuple(pareto.standard_slice(args.chip, each) for each in chips)
    weights = pareto.weight_dtypes(args.dtype)
    varied = pareto.Sweep(_decoders(args, screen), slices, batches, weights)
    points = []
    with screen.working("costing") as spinner:
        for point in varied.points():
            points.append(point)
            spinner.update(text=f"costing, {len(points)} of {len(varied)}")
    if args.plot:
        sweep_plot.draw(points, outputs[-1])
    if args.out:
        facts, shown = pareto.facts(points), varied.tables(points)
        with files.written_whole(outputs[0]) as part:
            text = _json(facts) if args.json else tables.as_text(shown)
            part.write_text(f"{text}\n", encoding="utf-8")
    elif args.json:
        _print_json(pareto.facts(points))
    else:
        screen.tables(varied.tables(points))


def _decoders(args: Arguments, screen: Screen) -> tuple[Any, ...]:
    """A `dialect.planning.sweep.Decoder` for every function and every configuration."""
    from dialect.planning.sweep import TRACED_BATCH, Decoder

    functions = [(args.function, None if args.prefill else args.tokens)]
    functions += [(args.prefill, args.tokens or args.context)] if args.prefill else []
    found = []
    for function, tokens in functions:
        for config in args.config.split(",") if args.config else [None]:
            one = {"function": function, "tokens": tokens, "config": config}
            one |= {"batch": TRACED_BATCH, "args": None if function == args.prefill else args.args}
            done = rewritten(Arguments(**vars(args) | one), screen, "normalize, recognize")
            found.append(Decoder.of(function.rpartition(":")[2], config or "", done.program))
    return tuple(found)


def eval_(args: Arguments, screen: Screen) -> None:
    """Measures on held-out text what each pass costs in accuracy, and what it saves in bytes."""
    from dialect import usercode
    from dialect.measured import evaluation

    if args.args:
        hint = "name a configuration that has them: --config NAME"
        raise usercode.UsageError("--args tells no trained parameters", hint=hint)
    found = evaluation.Evaluation(args.function.rpartition(":")[2])
    for config in (args.config or "").split(","):
        one = Arguments(**vars(args) | {"config": config})
        prefixes = evaluation.Prefixes()
        target = rewritten(one, screen, "normalize, recognize", (prefixes,)).target
        with screen.working("measuring") as spinner:
            trained = usercode.trained(args.function, asked.sizes(one), args.text)
            for each in found.measure(trained, prefixes, target):
                spinner.update(text=f"measuring {config}, after {each.text}")
    if args.json:
        _print_json(found.facts())
    else:
        screen.tables(found.tables())


def opt(args: Arguments, screen: Screen) -> None:
    """Reads a program, or the file of a crash, runs passes, and prints the result."""
    from dialect.checked.reproducer import Failure
    from rewrite import api

    if args.list_passes:
        passes(args, screen)
        return
    text = faults.read(args.file)
    pipeline = asked.pipeline(args)
    if pipeline is not None:
        program = Program.parse(text)
    else:
        failure = Failure.parse(text)
        program, pipeline = failure.program, failure.pipeline
    target = pipeline.target()
    if args.target or target.topology:
        start(args.target or target.topology)
        target = api.resolve(None, args.target, pipeline)[1]
    listening = asked.listening_to(args, target)
    print(manager.run(program, pipeline.passes(args.phase), target, listening)[0])


def check_rules(args: Arguments, screen: Screen) -> None:
    """Tries rules on programs around their examples: do they keep what they claim?"""
    from dialect.checked import rule_tables
    from dialect.checked.rule_check import checked_rules

    with screen.working("checking rules") as spinner:
        reports = []
        for report in checked_rules(args.places, args.rule, args.seed, args.instances):
            reports.append(report)
            spinner.update(text=f"checking rules, {len(reports)} done, {report.name} the last")
    if args.json:
        _print_json(rule_tables.facts(reports))
    else:
        screen.tables(rule_tables.tables(reports, refused=bool(args.rule)))
    rule_tables.must_be_clean(reports)


def passes(args: Arguments, screen: Screen) -> None:
    """Lists every pass, those of other packages included."""
    found = [_described(find_pass(name)) for name in pass_names()]
    if args.json:
        _print_json(found)
    else:
        screen.listing(found)


def _described(kind: type[Pass]) -> dict[str, Any]:
    """A pass: its name, what it keeps, the first line of its docstring, its options."""
    types = get_type_hints(kind)
    takes = [
        {
            "name": field.name,
            "default": "" if field.default is MISSING else options.show(field.default),
            "takes": options.describe(types[field.name]),
        }
        for field in fields(kind)
    ]
    what = (inspect.getdoc(kind) or "").split("\n")[0]
    return {"name": kind.pass_name(), "keeps": kind.keeps, "what": what, "options": takes}


def _argument(text: str) -> int | str:
    """An argument of the user's function, by its number or its name."""
    return int(text) if text.isdecimal() else text


def _print_json(facts: Any) -> None:
    print(_json(facts))


def _json(facts: Any) -> str:
    return json.dumps(facts, indent=2)


# The command line.


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shardwright", description="Rewrites JAX decoders for inference."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command, groups in (
        ("compile", compile_, (_add_function, _add_passes, _add_json)),
        ("show", show, (_add_function, _add_explain, _add_passes, _add_json)),
        ("coverage", coverage, (_add_function, _add_passes, _add_json)),
        ("eval", eval_, (_add_eval, _add_passes, _add_json)),
        ("sweep", sweep, (_add_sweep, _add_passes, _add_json)),
        ("opt", opt, (_add_file, _add_passes)),
        ("bisect", faults.bisect, (_add_function, _add_passes, faults.add_bisect)),
        ("reproduce", faults.reproduce, (faults.add_reproduce,)),
        ("check-rules", check_rules, (_add_rules, _add_json)),
        ("passes", passes, (_add_json,)),
    ):
        about = inspect.getdoc(command)
        each = commands.add_parser(name, help=about, description=about)
        each.set_defaults(command=command, json=False)
        for add in groups:
            add(each)
    return parser


def _add_function(parser: argparse.ArgumentParser) -> None:
    add = _add_decoder(parser).add_argument
    add("--batch", type=int, default=64, metavar="N", help="sequences (64)")


def _add_eval(parser: argparse.ArgumentParser) -> None:
    add = _add_decoder(parser, context=256).add_argument
    add("--batch", type=int, default=32, metavar="N", help="rows of the text (32)")
    add("--text", nargs="+", default=(), metavar="FILE", help="instead of its own held_out()")


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    add = _add_decoder(parser).add_argument
    add("--prefill", metavar="FILE.py:FUNCTION", help="costed too, with --tokens (all of context)")
    add = parser.add_argument_group(
        "what is varied",
        "Each function is traced once, with each of --config A,B; from there its sizes are varied"
        " analytically: nothing is compiled. A range doubles: 8..64 is 8,16,32,64.",
    ).add_argument
    add("--chip", required=True, metavar="NAME", help="v4, v5e, ..., or the file of a machine")
    add("--chips", default="8..256", metavar="RANGE", help="in standard slices (8..256)")
    add("--batch", default="1..1024", metavar="RANGE", help="sequences (1..1024)")
    add("--dtype", default="bf16,int8", metavar="LIST", help="of the weights (bf16,int8)")
    add = parser.add_argument_group("what is made of it").add_argument
    add("--plot", metavar="FILE", help="cost over latency, as .png, .svg or .pdf")
    add("--out", metavar="FILE", help="the table, or with --json the facts, instead of printing")


def _add_decoder(parser: argparse.ArgumentParser, context: int = 2048) -> Any:
    """The user's code; returns the group for what it is called with."""
    group = parser.add_argument_group("the function and its arguments")
    add = group.add_argument
    add("function", metavar="FILE.py:FUNCTION", help="or package.module:FUNCTION")
    add("--params", default=0, metavar="NAME", type=_argument, help="its parameters (the first)")
    add("--state", metavar="NAME", type=_argument, help="what comes back updated (is found)")
    add = group.add_mutually_exclusive_group().add_argument
    add("--args", metavar="FILE.py:FUNCTION", help="returns a tuple of arguments, or of shapes")
    add("--config", metavar="NAME", help="of a decoder as in examples/: a name in its CONFIGS")
    called = parser.add_argument_group("what a --config is called with")
    add = called.add_argument
    told = f"positions in the cache ({context})"
    add("--context", type=int, default=context, metavar="N", help=told)
    add("--tokens", type=int, metavar="N", help="new tokens per sequence, for prefill")
    add("--unrolled", action="store_true", help="layers one by one, not in a loop")
    return called


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", default="-", help="a program's text (standard input)")
    parser.add_argument("--list-passes", action="store_true", help="the same as `passes`")


def _add_rules(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    told = "a module, package, Python file or file of rules (all rules there are)"
    add("places", nargs="*", default=("dialect", "passes"), metavar="MODULE", help=told)
    add("--rule", metavar="NAME", help="one alone")
    add("--seed", type=int, default=0, metavar="N", help="of the programs and numbers (0)")
    add("--instances", type=int, default=20, metavar="N", help="programs each fires on (20)")


def _add_passes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("passes")
    either = group.add_mutually_exclusive_group()
    either.add_argument("-p", "--passes", metavar="TEXT", help='such as "normalize, recognize"')
    either.add_argument("--pipeline", metavar="FILE", help="a pipeline file")
    add = group.add_argument
    add("--phase", metavar="NAME", help="of a pipeline with several")
    add("--target", metavar="TOPOLOGY", help="v5e:2x4, v5e-8, cpu:8, ... (the pipeline's)")
    add("--print-ir-after-all", action="store_true", help="the program after every pass")
    add("--print-ir-before", action="append", default=[], metavar="PASS")
    add("--time-passes", action="store_true", help="one line per pass at the end")
    add("--crash-reproducer", metavar="FILE", help="written on a failure, read by `reproduce`")
    add("--verify-numerics", action="store_true", help="compare numbers after every pass")


def _add_explain(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--explain", action="store_true", help="what was done and why, instead of the program")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for machines")
