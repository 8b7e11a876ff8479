"""The commands of `shardwright`: what the command line was parsed to, done and shown."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dialect.checked import rule_tables
from dialect.checked.bisect import bisect as first_departure
from dialect.checked.failures import Rerun
from dialect.checked.reproducer import Failure
from dialect.checked.rule_check import checked_rules
from dialect.compiled.compiling import Compilable, compiled
from dialect.compiled.executable import read as read_executable
from dialect.display import tables
from dialect.front import api, inspection, reporting, serving, session, simulation
from dialect.front.console import Screen, as_json
from dialect.front.programs import parsed, sizes
from dialect.front.session import Arguments, rewritten
from dialect.front.strict import must_be_empty, not_done
from dialect.machine.mesh import Topology
from dialect.machine.virtual_cpus import start
from dialect.measured import evaluation, tradeoff_plot
from dialect.measured.importance import write_importance
from dialect.reports import plotting, sweep_plot
from dialect.reports import sweep as pareto
from dialect.reports.beside_plan import beside_plan, differences, plan_table
from dialect.reports.explained import Explained
from dialect.reports.sweep import TRACED_BATCH, Decoder
from dialect.simulated import comparison, latency_plot
from dialect.user import usercode
from rewrite import files
from rewrite.errors import PipelineError, ShardwrightError
from rewrite.program import Program


def run(args: Arguments) -> None:
    """The command that a command line names. Raises ShardwrightError where it fails."""
    _COMMANDS[args.command](args, Screen(args.color))


def compile_(args: Arguments, screen: Screen) -> None:
    """Rewrites a function, compiles it, and shows the executable."""
    explained = Explained()
    asked = session.traced(args, screen)
    mesh = asked.mesh
    done = rewritten(args, screen, listeners=(explained,), asked=asked)
    with screen.working(f"compiling for {done.target.topology}"), session.kept(args, done):
        started = time.perf_counter()
        executable, notes = compiled(Compilable(done.program, mesh))
        seconds = time.perf_counter() - started
        report = read_executable(executable, mesh)
        beside = beside_plan(done.program, executable, mesh)
        must_be_empty(differences(beside) if args.strict else ())
    if args.json:
        built = {"compile_s": seconds, "notes": notes, "executable": asdict(report)}
        screen.data(done.facts() | built | {"beside_plan": [asdict(row) for row in beside]})
        return
    screen.warnings([*not_done(done.program), *differences(beside)])
    screen.rewriting(args.function, done.target, done.reports, done.program.plan)
    usable = Topology.parse(done.target.topology).chip.usable_hbm_bytes
    screen.executable(report, notes, seconds, usable)
    screen.tables([plan_table(beside)] if beside else [])
    screen.tables(explained.moved(executable, mesh))


def coverage(args: Arguments, screen: Screen) -> None:
    """Shows what of a function is recognised, what is not and why, and what its axes are."""
    explained = Explained()
    rewritten(args, screen, "normalize, recognize", (explained,))
    if explained.program is None:
        raise PipelineError("the pipeline recognizes nothing", hint="add the pass recognize to it")
    if args.json:
        screen.data(explained.facts())
    else:
        screen.tables(explained.tables())


def sweep(args: Arguments, screen: Screen) -> None:
    """Costs a decoder over chips, batches and dtypes of weights, and marks the Pareto front."""
    outputs = [Path(name) for name in (args.out, args.plot) if name]
    for path in outputs:
        files.must_be_writable(path)
    if args.plot:
        plotting.must_be_possible(outputs[-1])
    chips, batches = (pareto.numbers(getattr(args, n), f"--{n}") for n in ("chips", "batch"))
    slices = tuple(pareto.standard_slice(args.chip, count) for count in chips)
    weights = pareto.weight_dtypes(args.dtype)
    varied = pareto.Sweep(_decoders(args, screen), slices, batches, weights)
    points = screen.counted("costing", varied.points(), len(varied))
    if args.plot:
        sweep_plot.draw(points, outputs[-1])
    if args.out:
        facts, shown = pareto.facts(points), varied.tables(points)
        with files.written_whole(outputs[0]) as part:
            text = as_json(facts) if args.json else tables.as_text(shown)
            part.write_text(f"{text}\n", encoding="utf-8")
    elif args.json:
        screen.data(pareto.facts(points))
    else:
        screen.tables(varied.tables(points))


def _decoders(args: Arguments, screen: Screen) -> tuple[Any, ...]:
    """A `dialect.reports.sweep.Decoder` for every function and every configuration."""
    functions = [(args.function, None if args.prefill else args.tokens)]
    functions += [(args.prefill, args.tokens or args.context)] if args.prefill else []
    decoders = []
    for function, tokens in functions:
        for config in args.config.split(",") if args.config else [None]:
            one = {"function": function, "tokens": tokens, "config": config}
            one |= {"batch": TRACED_BATCH, "args": None if function == args.prefill else args.args}
            done = rewritten(Arguments(**vars(args) | one), screen, "normalize, recognize")
            decoders.append(Decoder.of(function.rpartition(":")[2], config or "", done.program))
    return tuple(decoders)


def simulate(args: Arguments, screen: Screen) -> None:
    """Serves a load on paper, in several ways and on several meshes."""
    if args.plot:
        files.must_be_writable(Path(args.plot))
        plotting.must_be_possible(Path(args.plot))
    loads, compared = simulation.loads(args), simulation.options(args)
    one = Arguments(**vars(args) | {"batch": TRACED_BATCH})
    program = rewritten(one, screen, "normalize, recognize").program
    shape = Decoder.of(args.function.rpartition(":")[2], args.config or "", program).shape
    varied = comparison.Comparison(shape, loads, **compared)
    runs = screen.counted("simulating", varied.runs(), len(varied))
    if args.plot:
        latency_plot.draw(runs, Path(args.plot))
    if args.json:
        screen.data(comparison.facts(runs))
    else:
        screen.tables(comparison.tables(runs))


def eval_(args: Arguments, screen: Screen) -> None:
    """Measures on held-out text the accuracy that every pass costs, and the bytes that it saves."""
    if args.args:
        hint = "name a configuration that has them: --config NAME"
        raise usercode.UsageError("--args tells no trained parameters", hint=hint)
    if args.plot:
        files.must_be_writable(Path(args.plot))
        plotting.must_be_possible(Path(args.plot))
    if args.importance:
        files.must_be_writable(Path(args.importance))
    names = [name.strip() for name in args.tasks.split(",")] if args.tasks else []
    measured = evaluation.Evaluation(args.function.rpartition(":")[2], names)
    for config in (args.config or "").split(","):
        one = Arguments(**vars(args) | {"config": config})
        prefixes = evaluation.Prefixes()
        target = rewritten(one, screen, "normalize, recognize", (prefixes,)).target
        if args.compare:
            prefixes.compare(args.compare, target)
        told = [line for _, _, program in prefixes.programs for line in not_done(program)]
        must_be_empty(told if args.strict else ())
        if not args.json:
            screen.warnings(list(dict.fromkeys(told)))
        with screen.working("measuring") as spinner:
            trained = usercode.trained(args.function, sizes(one), args.text)
            for result in measured.measure(trained, prefixes, target):
                spinner.update(text=f"measuring {config}, after {result.text}")
            if args.importance:
                write_importance(prefixes.programs[0][2], trained, Path(args.importance))
    if args.plot:
        title = f"{measured.function}, {measured.about}"
        tradeoff_plot.draw(measured.measured, title, Path(args.plot))
    if args.json:
        screen.data(measured.facts())
    else:
        screen.tables(measured.tables())


def check_rules(args: Arguments, screen: Screen) -> None:
    """Tries rules on programs around their examples: do they keep what they claim?"""
    with screen.working("checking rules") as spinner:
        reports = []
        for report in checked_rules(args.places, args.rule, args.seed, args.instances):
            reports.append(report)
            spinner.update(text=f"checking rules, {len(reports)} done, {report.name} the last")
    if args.json:
        screen.data(rule_tables.facts(reports))
    else:
        screen.tables(rule_tables.tables(reports, refused=bool(args.rule)))
    rule_tables.must_be_clean(reports)


class FaultFound(ShardwrightError):
    """A fault that was looked for is there."""


def bisect(args: Arguments, screen: Screen) -> None:
    """Names the first pass, and in it the first rule, after which numbers leave their class.

    Every pass is run, and the results before and after it are compared on drawn numbers.
    """
    traced = session.traced(args, screen, "normalize, recognize")
    with screen.working("comparing before and after every pass"):
        departure = first_departure(traced.program, traced.passes, traced.target, args.seed)
    if departure is None:
        told = f"all {len(traced.passes)} passes keep what they claim"
        screen.data({"departure": None}) if args.json else screen.show(told)
        return
    if args.out:
        case = (traced.program, traced.passes, traced.target, str(departure), args.seed)
        Failure.of("numbers", *case).save(Path(args.out))
    raise FaultFound(str(departure), where=departure.blame.source if departure.blame else "")


def reproduce(args: Arguments, screen: Screen) -> None:
    """Runs the file of a failure again; with --reduce, makes it as small as it still fails."""
    failure = parsed(args.file, Failure.parse)
    if failure.pipeline.topology:
        start(failure.pipeline.topology)

    mesh, target = api.resolve(None, None, failure.pipeline)
    again = Rerun(failure, mesh, target)
    with screen.working("running it again"):
        error = again.error()
    if error is None:
        told = f"does not fail any more (it was written with {failure.versions})"
        screen.data({"fails": False}) if args.json else screen.show(told)
        return
    if args.reduce:
        with screen.working("making it smaller") as spinner:

            def watch(program: Program, passes: Any) -> None:
                size = f"{program.graph.op_count} ops, {len(passes)} passes"
                spinner.update(text=f"making it smaller: {size}")

            smaller = again.reduced(args.seconds, watch)
        path = Path(args.out or f"{args.file}.reduced")
        smaller.save(path)
        sizes = f"{failure.program.graph.op_count} ops to {smaller.program.graph.op_count}"
        if not args.json:
            screen.show(f"reduced from {sizes}: {path}")
    raise (
        error
        if isinstance(error, ShardwrightError)
        else FaultFound(f"{type(error).__name__}: {error}")
    )


_COMMANDS: dict[str, Callable[[Arguments, Screen], None]] = {
    "compile": compile_,
    "explain": inspection.explain,
    "report": reporting.write_report,
    "show": inspection.show,
    "diff": inspection.diff,
    "coverage": coverage,
    "eval": eval_,
    "sweep": sweep,
    "simulate": simulate,
    "serve": serving.serve,
    "opt": inspection.opt,
    "bisect": bisect,
    "reproduce": reproduce,
    "check-rules": check_rules,
    "passes": inspection.passes,
}
