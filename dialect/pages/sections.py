"""The sections of the report, each a function from what was gathered to a heading and content."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from dialect.compiled.compiling import bytes_per_chip
from dialect.display.quantities import amount, milliseconds, size
from dialect.display.tables import brief
from dialect.pages.bars import memory_bar
from dialect.pages.gathered import Gathered, Stage
from dialect.pages.lanes import lanes, of_layer
from dialect.pages.mesh_drawing import mesh_drawing
from dialect.pages.pipeline_timeline import pipeline_timeline
from dialect.pages.planned_lanes import of_plan
from dialect.pages.points import ceiling_of, compiled_points, program_points
from dialect.pages.roofline import roofline
from dialect.pages.tags import Html, folded, joined, listing, table, tag
from dialect.planning.label_words import in_words
from dialect.planning.plan import Exchange, Plan
from dialect.printed.difference import difference
from dialect.printed.difference_lines import difference_lines
from dialect.printed.program_lines import program_lines
from dialect.printed.story_page import page
from dialect.printed.words import as_html
from dialect.reports.audit import CompiledCollective, compared, planned_bytes
from dialect.reports.collective_text import shown, user_lines
from rewrite.program import Program

_CHANGED = 60  # ops of one change that a difference shows
_BEFORE = "as it was, on one chip"
_LANES = (
    "One trip of the loop in which the compiled program spends most time, or all of a program "
    "without loops, as its schedule is read: what stands above something else overlaps with it."
)
_PLANNED_LANES = (
    "One layer as the plan has it: arithmetic and reading side by side, and exchanges behind them."
)
_COMPILE = "Written with --compile, this page also has what the compiler made."


def bought(gathered: Gathered) -> Iterator[Html]:
    """Figures before and after, and the page that `explain` prints."""
    told = gathered.story
    figures = []
    if told.before and told.after:
        one, other = told.before, told.after
        figures.append(("a step", milliseconds(other.time_s), milliseconds(one.time_s)))
        if told.tokens:
            rates = [f"{told.tokens / step.time_s:,.0f}" for step in (other, one)]
            figures.append(("tokens a second", *rates))
            read = [
                size(step.hbm_bytes * chips / told.tokens)
                for step, chips in ((other, told.chips), (one, 1))
            ]
            figures.append(("memory traffic of a token", *read))
        figures.append(("memory of a chip", size(other.memory_bytes), size(one.memory_bytes)))
    held = [size(side.params) for side in reversed(told.held)]
    figures.append(("parameters", *held))
    yield tag(
        "dl",
        *(
            tag(
                "div",
                tag("dt", what),
                tag("dd", now, tag("small", f"as it was, on one chip: {was}")),
            )
            for what, now, was in figures
        ),
        class_="figures",
    )
    text = page(told, gathered.first)
    yield folded("The same in words, as explain prints it", listing_of(text, "explained"))


def listing_of(text: str, label: str) -> Html:
    """Plain text, preformatted."""
    return listing(tag("span", text), label)


def pipeline(gathered: Gathered) -> Iterator[Html]:
    """The passes as a timeline, and what each had to say."""
    yield pipeline_timeline(gathered.original.graph.op_count, gathered.stages)
    rows = [
        (s.report.text, f"{s.report.seconds * 1e3:.1f}", str(s.report.ops_after), s.report.keeps)
        for s in gathered.stages
    ]
    yield folded("As a table", table(("pass", ">ms", ">ops", "keeps"), rows, "passes"))
    said = []
    for stage in gathered.stages:
        if stage.report.notes:
            name = stage.report.text.partition("{")[0]
            said += [tag("h3", name), tag("ul", *(tag("li", n) for n in stage.report.notes))]
    yield folded("What every pass says", *said)


def programs(gathered: Gathered) -> Iterator[Html]:
    """The program at every stage, and what each pass changed."""
    yield _stage("as it was traced", gathered.original)
    before = gathered.original
    for stage in gathered.stages:
        yield _changed(stage, before)
        before = stage.program


def _stage(name: str, program: Program) -> Html:
    text = listing(as_html(program_lines(program)), f"program {name}")
    return folded(f"{name}: {program.graph.op_count} ops", text)


def _changed(stage: Stage, before: Program) -> Html:
    report = stage.report
    name = report.text.partition("{")[0]
    head = f"after {name}: {report.ops_before} to {report.ops_after} ops"
    difference_ = difference(before, stage.program, ("before", f"after {report.text}"))
    if difference_.is_empty:
        return folded(f"{head}, the same program", tag("p", "Nothing changed."))
    changes = listing(as_html(difference_lines(difference_, _CHANGED)), f"what {name} changed")
    text = listing(as_html(program_lines(stage.program)), f"program after {name}")
    return folded(
        head, folded("What it changed", changes, is_open=True), folded("The program", text)
    )


def mesh(gathered: Gathered) -> Iterator[Html]:
    """The chips, and how every group of tensors is split."""
    plan = gathered.program.plan
    if plan is None:
        yield tag("p", "No pass made a plan, so there is no mesh to draw.")
        return
    words = in_words(plan.label)
    yield tag("p", tag("strong", plan.label), f": {words}" if words else "")
    yield mesh_drawing(plan)
    yield _plans(plan)


def _plans(plan: Plan) -> Html:
    rows = [
        (other.label, milliseconds(other.time_s) if other.time_s is not None else "-", other.reason)
        for other in plan.alternatives
    ]
    what = table(("partitioning", ">a step", "why not"), rows, "plans that were not chosen")
    return folded(f"{len(rows)} other partitionings", what)


def roof(gathered: Gathered) -> Iterator[Html]:
    """Every op under the roofline of the chip."""
    if gathered.topology is None:
        yield tag("p", "No machine was named.")
        return
    ceiling = ceiling_of(gathered.topology.chip)
    before = program_points(gathered.original)
    built = gathered.built
    compiled = bool(built and built.schedule)
    after = compiled_points(built.schedule) if built and built.schedule else _unlowered(gathered)
    yield roofline(ceiling, before, after)
    where = "as scheduled on a chip" if compiled else "at best, before the compiler fuses them"
    keys = (("fb", "before, on one chip, at best"), ("fa", f"after, {where}"))
    items = (tag("li", tag("span", class_=f"key {kind}"), text) for kind, text in keys)
    yield tag("ul", *items, class_="legend")
    rows = [
        (p.name, amount(p.flops, "FLOP"), size(p.bytes), f"{p.intensity:.3g}")
        for p in sorted(after, key=lambda p: -p.bytes)[:40]
    ]
    columns = ("op", ">FLOP of a step", ">bytes", ">FLOP per byte")
    yield folded("The ops after, by traffic", table(columns, rows, "ops after the rewrite"))


def _unlowered(gathered: Gathered) -> list:
    """The ops of the last program that still says what it computes, over the chips."""
    stages = [s.program for s in gathered.stages]
    composite = [p for p in stages if p.stages is None] or stages or [gathered.original]
    return program_points(composite[-1], gathered.story.chips)


def memory(gathered: Gathered) -> Iterator[Html]:
    """A chip's memory by use: planned by group, and as compiled."""
    sizes, program = dict(gathered.story.target.mesh), gathered.program
    capacity = gathered.story.usable_bytes
    for title, one, chips in (
        ("Before, on one chip", gathered.original, {}),
        ("Now", program, sizes),
    ):
        parts: Counter[str] = Counter()
        for source in one.step_inputs:
            group = source.name.split("/")[1 if "/" in source.name else 0].partition(".")[0]
            name = f"{source.role}: {group}" if source.role == "param" else source.role
            parts[name] += round(bytes_per_chip(source, chips) if chips else source.type.bytes)
        largest = dict(parts.most_common(6))
        rest = sum(parts.values()) - sum(largest.values())
        yield tag("h3", f"{title}: inputs {size(sum(parts.values()))}")
        yield memory_bar(largest | ({"other": rest} if rest else {}), capacity, title)
    if gathered.built:
        yield tag("h3", "As compiled")
        yield memory_bar(gathered.built.memory, capacity, "as compiled")


def collectives(gathered: Gathered) -> Iterator[Html]:
    """What the plan implies, beside what was compiled."""
    plan, built = gathered.program.plan, gathered.built
    if plan is None or plan.predicted is None:
        yield tag("p", "No pass made a plan with a prediction.")
        return
    sizes = dict(plan.mesh)
    rows = [_row(e, e.part, planned_bytes(e, sizes)) for e in plan.exchanges]
    columns = ("kind", "over", "for", ">bytes", ">times", ">received in a step")
    yield tag("h3", "Planned")
    yield table(columns, rows, "planned collectives") if rows else tag("p", "None.")
    if built is None:
        yield tag("p", _COMPILE, class_="soft")
        return
    yield tag("h3", "Compiled")
    lines = user_lines(gathered.program.graph)
    rows = [
        _row(c, brief(shown(c, lines)).partition(", for ")[2], c.received_bytes)
        for c in built.collectives
    ]
    yield table(columns, rows, "compiled collectives") if rows else tag("p", "None.")
    audited = compared(plan, built.collectives, 0)
    received = f"Planned {size(audited.planned_bytes)}, compiled {size(audited.compiled_bytes)}"
    apart = f"{len(audited.unplanned)} not planned, {len(audited.missing)} not compiled"
    yield tag("p", f"{received}; {apart}.")
    beside = [(row.what, size(row.planned), size(row.compiled), row.cause) for row in built.beside]
    yield table(("per chip", ">planned", ">compiled", "why"), beside, "plan beside executable")


def _row(one: Exchange | CompiledCollective, part: str, received: float) -> tuple[str, ...]:
    axes = " ".join(one.axes)
    return one.kind, axes, part, size(one.bytes), str(one.times), size(received)


def layer(gathered: Gathered) -> Iterator[Html]:
    """One layer on one chip, over time."""
    built, plan = gathered.built, gathered.program.plan
    if built and built.schedule:
        yield tag("p", _LANES)
        yield lanes(of_layer(built.schedule), "one layer, as compiled")
    elif plan and plan.predicted:
        yield tag("p", f"{_PLANNED_LANES} {_COMPILE}")
        yield lanes(of_plan(plan), "one layer, as planned")
    else:
        yield tag("p", "No pass made a plan with a prediction.")


def accuracy(gathered: Gathered) -> Iterator[Html]:
    """What `shardwright eval --json` measured."""
    if not gathered.measured:
        text = "Not measured: shardwright eval ... --json > eval.json, then --accuracy eval.json."
        yield tag("p", text, class_="soft")
        return
    rows = [(str(r["config"]), str(r["pass"]), *_measured(r)) for r in gathered.measured]
    columns = ("configuration", "after", ">bits per byte", ">top-1 agreement", ">KL, nats per byte")
    yield table(columns, rows, "accuracy after every pass")


def _measured(row: Mapping[str, float]) -> tuple[str, ...]:
    right, apart = f"{100 * row['agreement']:.2f} %", f"{row['kl_nats_per_byte']:.2e}"
    return f"{row['bits_per_byte']:.4f}", right, apart


SECTIONS = (
    ("bought", "What it bought", bought),
    ("pipeline", "The passes", pipeline),
    ("programs", "The program, stage by stage", programs),
    ("mesh", "The mesh", mesh),
    ("roofline", "Roofline", roof),
    ("memory", "Memory of a chip", memory),
    ("collectives", "Collectives", collectives),
    ("layer", "One layer", layer),
    ("accuracy", "Accuracy", accuracy),
)


def section(name: str, title: str, content: Iterator[Html]) -> Html:
    """A section of the page with its heading."""
    head = tag("h2", title, id=f"{name}-title")
    return tag("section", head, joined(content), id=name, aria_labelledby=f"{name}-title")
