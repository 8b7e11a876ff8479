"""The pipeline language, the pass manager, and passes from other packages."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialect.checked.reproducer import Failure, Reproducer
from rewrite import hooks, manager, opdef
from rewrite.errors import InvalidProgram, PipelineError, PlanError, ShardwrightError, TextError
from rewrite.ir import Graph, Type, new_input
from rewrite.opdef import OpDef
from rewrite.passbase import find_pass, pass_names
from rewrite.pipeline import Pipeline
from rewrite.program import Input, Output, Program
from rewrite.signature import Signature
from rewrite.target import Target

HERE = Path(__file__).parent
THIRD_PARTY = HERE.parent / "examples" / "third_party"
pytestmark = pytest.mark.usefixtures("probe_passes")

opdef.define(
    OpDef(
        name="probe.double",
        signature=lambda op: Signature.parse("a -> a"),
        infer=lambda types, attrs, regions: types,
        reference=lambda x: x + x,
        attrs=(),
    )
)

FULL = """\
// what serves the model
target v5e:4x4
mesh x=4 y = 4      # two axes
decode {
  options_probe{bits=int4, budget=5%, skip="embed|lm_head",},
  rewire,
}
prefill { rewire{way=silent}, rewire }
"""

CANONICAL = """\
target v5e:4x4
mesh x=4 y=4
decode {
  options_probe{bits=int4, skip="embed|lm_head", budget=0.05},
  rewire
}
prefill {
  rewire{way=silent},
  rewire
}"""


def program() -> Program:
    """One input, doubled once."""
    kind = Type("f32", (2,))
    x = new_input(kind)
    graph = Graph((x,), (opdef.make("probe.double", x),))
    return Program("tiny", graph, (Input("x", kind, "arg"),), (Output("y"),), tree=([0], [0]))


def probe(text: str) -> object:
    """The one pass of an inline pipeline."""
    (only,) = Pipeline.parse(text).passes()
    return only


# --- reading ---------------------------------------------------------------------------------


def test_a_file_with_phases_is_read() -> None:
    pipeline = Pipeline.parse(FULL, source="serve.pipeline")
    assert pipeline.target() == Target("v5e:4x4", (("x", 4), ("y", 4)))
    assert pipeline.target().chips == 16
    assert pipeline.where == "serve.pipeline:2"
    assert [name for name, _ in pipeline.phases] == ["decode", "prefill"]
    first = pipeline.passes("decode")[0]
    assert (first.bits, first.budget, first.skip) == ("int4", 0.05, "embed|lm_head")


def test_canonical_text_is_a_fixed_point() -> None:
    pipeline = Pipeline.parse(FULL)
    assert str(pipeline) == CANONICAL
    assert Pipeline.parse(CANONICAL) == pipeline
    assert str(Pipeline.parse(CANONICAL)) == CANONICAL


def test_an_inline_list_is_one_unnamed_phase() -> None:
    pipeline = Pipeline.parse("rewire,options_probe{count=8},")
    assert str(pipeline) == "rewire, options_probe{count=8}"
    assert pipeline.target() == Target()
    assert pipeline.passes() == dict(pipeline.phases)[""]


@pytest.mark.parametrize(
    ("text", "option", "value"),
    [
        ("skip=v5e:4x4", "skip", "v5e:4x4"),
        ("skip=embed|lm_head", "skip", "embed|lm_head"),
        ("skip=8", "skip", "8"),
        ("skip=none", "skip", "none"),
        (r'skip="a \"b\" \\d // c # d"', "skip", r'a "b" \d // c # d'),
        ("count=+12", "count", 12),
        ("budget=33.3%", "budget", 0.333),
        ("budget=1e-3", "budget", 0.001),
        ("budget=2", "budget", 2.0),
        ("fast=true", "fast", True),
        ("limit=none", "limit", None),
        ("limit=7", "limit", 7),
        ("label=none", "label", None),
        ('label="none"', "label", "none"),
        ("bits=none", "bits", "none"),
        ("level=2", "level", 2),
        ("names=()", "names", ()),
        ('names=(embed, "lm head",)', "names", ("embed", "lm head")),
        ("pair=(3, 50%)", "pair", (3, 0.5)),
    ],
)
def test_values_become_the_type_of_their_field(text: str, option: str, value: object) -> None:
    found = getattr(probe(f"options_probe{{{text}}}"), option)
    assert found == value
    assert type(found) is type(value)


@given(
    skip=st.text(),
    count=st.integers(min_value=0),
    budget=st.floats(allow_nan=False),
    fast=st.booleans(),
    limit=st.none() | st.integers(),
    label=st.none() | st.text() | st.sampled_from(["true", "none", "inf", "5%", "1.0"]),
    names=st.lists(st.text()).map(tuple),
)
def test_every_option_survives_its_own_text(**values: object) -> None:
    pipeline = Pipeline((("", (find_pass("options_probe")(**values),)),))
    assert Pipeline.parse(str(pipeline)) == pipeline


def test_pipelines_are_read_from_files(tmp_path: Path) -> None:
    path = tmp_path / "serve.pipeline"
    path.write_text(FULL, encoding="utf-8")
    expected = Pipeline.parse(FULL)
    assert Pipeline.load(path) == expected
    assert Pipeline.of(path) == expected
    assert Pipeline.of(str(path)) == expected
    assert Pipeline.of(FULL) == expected
    assert Pipeline.of(expected) is expected
    with pytest.raises(PipelineError, match="cannot read the pipeline file 'missing.pipeline'"):
        Pipeline.of("missing.pipeline")


def test_the_phase_must_be_clear() -> None:
    pipeline = Pipeline.parse(FULL)
    with pytest.raises(PipelineError, match="several phases") as caught:
        pipeline.passes()
    assert caught.value.hint == "known: decode, prefill"
    with pytest.raises(PipelineError, match="no phase 'decod'") as caught:
        pipeline.passes("decod")
    assert caught.value.hint == "did you mean decode?"


# --- errors ----------------------------------------------------------------------------------


def test_an_unknown_pass_gets_a_caret_and_the_nearest_name() -> None:
    text = "target v5e:4x4\ndecode {\n\trewire, rewyre{way=silent},\n}"
    with pytest.raises(PipelineError) as caught:
        Pipeline.parse(text, source="serve.pipeline")
    assert str(caught.value) == (
        "there is no pass 'rewyre'\n"
        "     rewire, rewyre{way=silent},\n"
        "             ^^^^^^\n"
        "  at: serve.pipeline:3\n"
        "  try: did you mean rewire or retarget?"
    )


def said(text: str, error: type[ShardwrightError] = PipelineError) -> tuple[str, str, str]:
    """The message of the error that a text gives, what its caret points at, and the hint."""
    with pytest.raises(error) as caught:
        Pipeline.parse(text)
    message, line, marks = caught.value.message.split("\n")
    start = marks.index("^")
    return message, line[start : start + marks.count("^")], caught.value.hint


@pytest.mark.parametrize(
    ("text", "message", "at", "hint"),
    [
        (
            "options_probe{bits=int9}",
            'option bits of options_probe is one of int8, int4, "none"',
            "int9",
            "did you mean int8 or int4?",
        ),
        (
            "options_probe{bitz=int8}",
            "pass options_probe has no option 'bitz'",
            "bitz",
            "did you mean bits?",
        ),
        ("two_passes", "passes/two_passes.py defines 2 passes; a file holds one", "two_passes", ""),
        ("options_probe{count=5%}", "option count of options_probe is a whole number", "5%", ""),
        (
            "options_probe{budget=much}",
            "option budget of options_probe is a number or a percentage",
            "much",
            "",
        ),
        ("options_probe{fast=1}", "option fast of options_probe is true or false", "1", ""),
        ('options_probe{count="4"}', "option count of options_probe is a whole number", '"4"', ""),
        (
            "options_probe{limit=x}",
            "option limit of options_probe is a whole number or none",
            "x",
            "",
        ),
        (
            "options_probe{names=embed}",
            "option names of options_probe is a list in parentheses of which each is a text",
            "embed",
            "",
        ),
        (
            "options_probe{pair=(1, 2, 3)}",
            "option pair of options_probe is a list in parentheses of a whole number, "
            "a number or a percentage",
            "(1, 2, 3)",
            "",
        ),
        ("options_probe{count=1, count=2}", "option 'count' is given twice", "count", ""),
        ("options_probe{count=-1}", "pass options_probe: count is negative", "options_probe", ""),
        ("needs_option", "pass needs_option needs the option 'axis'", "needs_option", ""),
        ("target a target b rewire", "the target is given twice", "target b", ""),
        ("mesh x=2\nmesh y=2 rewire", "the mesh is given twice", "mesh y=2", ""),
        ("mesh x=2 x=4 rewire", "mesh axis x is given twice", "x=4", ""),
        (
            "mesh x=two rewire",
            "mesh axis x needs a whole number of chips, not 'two'",
            "x=two",
            "",
        ),
        ("mesh x=0 rewire", "mesh axis x needs a whole number of chips, not '0'", "x=0", ""),
        ("d {rewire} d {rewire}", "phase 'd' is given twice", "d", ""),
        ("rewire{way}", "'rewire' is a pass, so no phase", "rewire", "{option=value}"),
    ],
)
def test_wrong_names_and_values(text: str, message: str, at: str, hint: str) -> None:
    assert said(text) == (message, at, hint)


@pytest.mark.parametrize(
    ("text", "message", "at", "hint"),
    [
        (
            "d {\n  rewire\n  options_probe\n}",
            "expected ',' or '=' or '{' or '}', found 'options_probe'",
            "options_probe",
            "",
        ),
        ("rewire{way=}", "expected '(' or a value, found '}'", "}", ""),
        ("rewire; rewire", "expected ',' or '{', found ';'", ";", ""),
        ("target: v5e:4x4 rewire", "expected a value, found ':'", ":", ""),
        ("d {rewire} rewire", "expected '{', found the end", "", ""),
        (
            'options_probe{skip="embed}',
            "expected '(' or a value, found '\"'",
            '"',
            "end the string on the same line",
        ),
        (
            r'options_probe{skip="\d"}',
            "unknown escape in a string",
            r'"\d"',
            r"write a backslash as \\",
        ),
    ],
)
def test_syntax_errors(text: str, message: str, at: str, hint: str) -> None:
    assert said(text, TextError) == (message, at, hint)


@pytest.mark.parametrize("text", ["", "// nothing\n", "target v5e:4x4", "d { }", "rewire{}"])
def test_a_pipeline_without_passes_is_refused(text: str) -> None:
    assert "expected" in said(text, TextError)[0]


# --- the manager -----------------------------------------------------------------------------


class Listener(manager.Hook):
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def before(self, step, program) -> None:
        self.heard.append(f"before {step}: {program.graph.op_count}")

    def after(self, step, program, report) -> None:
        self.heard.append(f"after {step}: {program.graph.op_count}")

    def failed(self, rest, program, target, error) -> None:
        self.heard.append(f"failed {', '.join(map(str, rest))}")

    def finished(self, reports) -> None:
        self.heard.append(f"finished {len(reports)}")


def run(text: str, *listeners: manager.Hook) -> tuple[Program, tuple[manager.PassReport, ...]]:
    steps = Pipeline.parse(text).passes()
    return manager.run(program(), steps, Target("v5e:2x2"), listeners)


def test_passes_run_in_order_and_are_reported() -> None:
    listener = Listener()
    made, reports = run("rewire, rewire{way=silent}", listener)
    assert made.graph.op_count == 3
    assert [(each.text, each.ops_before, each.ops_after) for each in reports] == [
        ("rewire", 1, 2),
        ("rewire{way=silent}", 2, 3),
    ]
    assert [each.notes for each in reports] == [("doubled once", "on v5e:2x2"), ()]
    assert [each.keeps for each in reports] == ["approx", "approx"]
    assert all(each.seconds >= 0 for each in reports)
    assert listener.heard == [
        "before rewire: 1",
        "after rewire: 2",
        "before rewire{way=silent}: 2",
        "after rewire{way=silent}: 3",
        "finished 2",
    ]


def test_a_pass_that_does_not_sign_is_signed_for() -> None:
    made, _ = run("rewire, rewire{way=silent}")
    assert [step.text for step in made.history] == ["rewire", "rewire{way=silent}"]
    assert made.keeps == "approx"


def test_a_pipeline_runs_with_its_own_target_or_another() -> None:
    pipeline = Pipeline.parse("target v4:2x2x1 rewire")
    assert pipeline.run(program()).history[-1].notes[-1] == "on v4:2x2x1"
    other = pipeline.run(program(), Target("cpu:8"))
    assert other.history[-1].notes[-1] == "on cpu:8"


def test_the_verifier_blames_the_pass() -> None:
    expected = r"^pass rewire\{way=invalid\}: op probe.double says its results are"
    with pytest.raises(InvalidProgram, match=expected):
        run("rewire, rewire{way=invalid}, rewire")


def test_a_broken_pass_is_named() -> None:
    listener = Listener()
    with pytest.raises(manager.PassError) as caught:
        run("rewire, rewire{way=crash}, rewire", listener)
    message = "pass rewire{way=crash} failed with ZeroDivisionError: one by none"
    assert caught.value.message == message
    assert Path(caught.value.where.rpartition(":")[0]).name == "rewire.py"
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert listener.heard[-1] == "failed rewire{way=crash}, rewire"


def test_what_a_pass_raises_on_purpose_goes_through() -> None:
    with pytest.raises(PlanError, match="no plan fits"):
        run("rewire{way=refuse}")


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("forget", "pass rewire{way=forget} changed the history of the passes before it"),
        ("nothing", "pass rewire{way=nothing} returned a NoneType, not a Program"),
    ],
)
def test_a_pass_must_return_a_program_with_its_history(way: str, message: str) -> None:
    with pytest.raises(manager.PassError) as caught:
        run(f"rewire, rewire{{way={way}}}")
    assert caught.value.message == message


# --- hooks -----------------------------------------------------------------------------------


def test_programs_are_printed_where_asked() -> None:
    printed: list[str] = []
    made, _ = run("rewire, options_probe", hooks.PrintBefore("options_probe", printed.append))
    without_last = Pipeline.parse("rewire").run(program(), Target("v5e:2x2"))
    assert printed == [f"// before options_probe\n{without_last}"]
    printed.clear()
    made, _ = run("options_probe, rewire", hooks.PrintAfterAll(printed.append))
    assert printed[0].startswith("// after options_probe\n")
    assert printed[1] == f"// after rewire\n{made}"


def test_times_are_a_table() -> None:
    printed: list[str] = []
    run("rewire, rewire", hooks.TimePasses(printed.append))
    header, first, second, total = printed[0].split("\n")
    assert header.split() == ["ms", "ops", "->", "pass"]
    assert first.split()[1:] == ["1", "2", "rewire"]
    assert second.split()[1:] == ["2", "3", "rewire"]
    assert float(total.split()[0]) == pytest.approx(
        float(first.split()[0]) + float(second.split()[0]), abs=0.2
    )


def test_a_crash_leaves_a_file_that_reproduces_it(tmp_path: Path) -> None:
    path, printed = tmp_path / "crash.ir", []
    hook = Reproducer(path, write=printed.append)
    with pytest.raises(manager.PassError):
        run("rewire, rewire{way=crash}, rewire", hook)
    assert printed == [f"pass rewire{{way=crash}} failed; {path} reproduces it"]
    assert list(tmp_path.iterdir()) == [path]
    failure = Failure.parse(path.read_text(encoding="utf-8"))
    again, pipeline = failure.program, failure.pipeline
    assert failure.kind == "pass" and "one by none" in failure.error
    assert str(pipeline) == "target v5e:2x2\nrewire{way=crash}, rewire"
    assert again.graph == Pipeline.parse("rewire").run(program()).graph
    with pytest.raises(manager.PassError, match="one by none"):
        pipeline.run(again)


def test_a_reproducer_that_cannot_be_written_hides_nothing(tmp_path: Path) -> None:
    printed: list[str] = []
    hook = Reproducer(tmp_path / "no such folder" / "crash.ir", write=printed.append)
    with pytest.raises(manager.PassError, match="one by none"):
        run("rewire{way=crash}", hook)
    assert printed[0].startswith("no reproducer could be written to ")


# --- passes of other packages ----------------------------------------------------------------


def install(folder: Path, name: str, entry_points: dict[str, str]) -> None:
    """Leaves in `folder` what pip leaves of a package with these entry points."""
    info = folder / f"{name}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    lines = [f"{key} = {value}" for key, value in entry_points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[shardwright.passes]", *lines]))


def test_the_example_package_adds_a_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((THIRD_PARTY / "pyproject.toml").read_text())["project"]
    install(tmp_path, "shardwright_example_pass", project["entry-points"]["shardwright.passes"])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(THIRD_PARTY)
    assert "count_ops" in pass_names()
    made, reports = run("rewire, count_ops{top=1}")
    assert [each.text for each in reports] == ["rewire", "count_ops{top=1}"]
    assert made.history[-1].notes == ("probe.double: 2",)
    assert made.history[-1].keeps == "bits"


@pytest.mark.parametrize(
    ("name", "place", "message"),
    [
        ("rewire", "shardwright_example.count_ops:CountOps", "pass 'rewire' is offered more"),
        ("other", "shardwright_example.count_ops:CountOps", "is called 'other'"),
        ("other", "shardwright_example.missing:CountOps", "pass 'other' cannot be loaded: No mod"),
        ("other", "pathlib:Path", "entry point pathlib:Path is no subclass of rewrite.Pass"),
    ],
)
def test_a_wrong_entry_point_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: str, message: str
) -> None:
    install(tmp_path, "faulty", {name: place})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(THIRD_PARTY)
    with pytest.raises(PipelineError, match=message):
        find_pass(name)
