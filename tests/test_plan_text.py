"""Plans as data and as text: layouts, round trip, errors, files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialect.compiled.constraints import constrained
from dialect.planning.plan import AXES, GROUPS, Alternative, Plan, Prediction
from examples import llama
from rewrite import Pipeline
from rewrite.errors import PlanError, TextError
from tests.kit import traced_step

TEXT = """\
plan ws2d/batch
target v4:4x4x4
mesh x=4 y=4 z=4
weights    d_model@x d_ff@y,z heads@y,z
residual   d_model@x,y,z
hidden     d_ff@y,z,x
attention  batch@x,y,z
cache      batch@x,y,z
logits     whole
predicted  time_s=0.0288 compute_s=0.0053 hbm_s=0.008615 communication_s=0.0038 \
latency_s=0.0164 hbm_bytes=9303891968 communication_bytes=342000000 memory_bytes=11000000000
runner-up ws1d/batch time_s=0.0299 "communication 6.4 ms instead of 3.8 ms"
unavailable ws1d/heads "heads (48) do not divide over 64 chips: pad heads to \\"64\\""
unavailable wg_x/heads "needs 40.2 GiB\\nof 30.8 GiB; größer\""""

PLAN = Plan(
    label="ws2d/batch",
    target="v4:4x4x4",
    mesh=(("x", 4), ("y", 4), ("z", 4)),
    groups=(
        ("weights", (("d_model", ("x",)), ("d_ff", ("y", "z")), ("heads", ("y", "z")))),
        ("residual", (("d_model", ("x", "y", "z")),)),
        ("hidden", (("d_ff", ("y", "z", "x")),)),
        ("attention", (("batch", ("x", "y", "z")),)),
        ("cache", (("batch", ("x", "y", "z")),)),
        ("logits", ()),
    ),
    predicted=Prediction(
        time_s=0.0288,
        compute_s=0.0053,
        hbm_s=0.008615,
        communication_s=0.0038,
        latency_s=0.0164,
        hbm_bytes=9303891968,
        communication_bytes=342000000,
        memory_bytes=11000000000,
    ),
    alternatives=(
        Alternative("ws1d/batch", 0.0299, "communication 6.4 ms instead of 3.8 ms"),
        Alternative(
            "ws1d/heads", None, 'heads (48) do not divide over 64 chips: pad heads to "64"'
        ),
        Alternative("wg_x/heads", None, "needs 40.2 GiB\nof 30.8 GiB; größer"),
    ),
)


def test_the_text_of_a_plan() -> None:
    assert str(PLAN) == TEXT
    assert Plan.parse(TEXT) == PLAN


def test_a_plan_may_be_written_by_hand() -> None:
    plan = Plan.parse("# mine\r\nplan hand mesh x=8 # one axis\n\n weights d_ff@x residual whole")
    assert plan == Plan("hand", (("x", 8),), (("weights", (("d_ff", ("x",)),)), ("residual", ())))
    assert plan.predicted is None
    assert Plan.parse(str(plan)) == plan


splits = st.lists(st.sampled_from(AXES), unique=True, max_size=4).flatmap(
    lambda axes: st.tuples(
        *(
            st.tuples(
                st.just(axis),
                st.lists(st.sampled_from("xyz"), unique=True, min_size=1).map(tuple),
            )
            for axis in axes
        )
    )
)
times = st.floats(min_value=0, allow_infinity=False)
counts = st.integers(0, 2**63)
labels = st.from_regex(r"[a-z][a-z0-9_/-]{0,9}", fullmatch=True) | st.sampled_from(
    ["plan", "target", "mesh", "predicted", "whole", "runner-up", "unavailable"]  # keywords
)
plans = st.builds(
    Plan,
    label=labels,
    mesh=st.tuples(*(st.tuples(st.just(axis), st.integers(1, 64)) for axis in "xyz")),
    groups=st.lists(st.sampled_from(list(GROUPS)), unique=True).flatmap(
        lambda groups: st.tuples(*(st.tuples(st.just(group), splits) for group in groups))
    ),
    target=st.sampled_from(["", "v5e:4x4", "cpu:8"]),
    predicted=st.none()
    | st.builds(Prediction, times, times, times, times, times, counts, counts, counts),
    alternatives=st.lists(
        st.builds(
            Alternative,
            labels,
            st.none() | times,
            st.text(alphabet=st.characters(exclude_categories=["Cs"])),
        ),
        max_size=3,
    ).map(tuple),
)


@settings(deadline=None, derandomize=True)
@given(plans)
def test_every_plan_is_read_back_exactly(plan: Plan) -> None:
    assert Plan.parse(str(plan)) == plan


@pytest.mark.parametrize(
    ("text", "message", "line", "pointed", "hint"),
    [
        ("plan p\nmesh x=4\nwieghts d_ff@x", "unknown group of tensors", 3, "wieghts", "weights"),
        ("plan p\nmesh x=4\nhidden dff@x", "unknown logical axis 'dff'", 3, "dff@x", "d_ff"),
        ("plan p\nmesh x=4\nhidden d_ff@y", "unknown mesh axis 'y'", 3, "d_ff@y", "x"),
        ("plan p\nmesh x=four", "'four' is not a whole number", 2, "x=four", ""),
        ("plan p\nmesh x=4\npredicted time_s=1", "prediction lacks compute_s", 3, "time_s", ""),
        ("plan p\nmesh x=4\npredicted time=1", "unknown quantity 'time'", 3, "time=1", "time_s"),
        ('plan p\nmesh x=4\nrunner-up q time_s=z ""', "'z' is not a number", 3, "time_s=z", ""),
        ("plan p\nmesh x=4\nhidden", "an axis such as d_ff@x, found the end", 3, "", ""),
        ("plan p\n\n", "expected 'mesh' or 'target', found the end", 1, "", ""),
        ("", "expected 'plan', found the end", 1, "", ""),
        (
            "plan p\nmesh x=4\nhidden d_ff@x\n  @@",
            "a name or an axis such as d_ff@x, found '@'",
            4,
            "@",
            "",
        ),
        (
            "plan p\ntarget t\ntarget u\nmesh x=4",
            "expected 'mesh', found 'target'",
            3,
            "target",
            "",
        ),
        ('plan p\nmesh x=4\nunavailable q "\\k"', "unknown escape", 3, '"\\k"', "backslash"),
    ],
)
def test_a_bad_plan_is_shown_with_a_caret(
    text: str, message: str, line: int, pointed: str, hint: str
) -> None:
    with pytest.raises(TextError) as caught:
        Plan.parse(text, source="my.plan")
    shown = caught.value.message.split("\n")
    assert message in shown[0]
    assert caught.value.where == f"my.plan:{line}"
    assert shown[1] == f"    {text.split(chr(10))[line - 1]}"
    assert shown[1][shown[2].index("^") :].startswith(pointed)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("plan p mesh x=4 hidden d_ff@x,x", "hidden: d_ff names a mesh axis twice"),
        ("plan p mesh x=4 hidden whole hidden whole", "one of hidden, hidden is given twice"),
        ("plan p mesh x=4 hidden d_ff@x d_ff@x", "hidden: one of d_ff, d_ff is given twice"),
    ],
)
def test_nothing_is_said_twice(text: str, message: str) -> None:
    with pytest.raises(TextError, match=message):
        Plan.parse(text)


def test_a_whole_axis_is_left_out() -> None:
    with pytest.raises(PlanError, match="hidden: d_ff has no mesh axis; leave it out"):
        Plan("p", (("x", 4),), (("hidden", (("d_ff", ()),)),))


def test_layout_of_dimensions() -> None:
    assert PLAN.layout("weights", ("d_model", "d_ff")) == (("x",), ("y", "z"))
    assert PLAN.layout("hidden", ("batch", "time", "d_ff")) == ((), (), ("y", "z", "x"))
    assert PLAN.layout("logits", ("batch", "vocab")) == ((), ())
    assert PLAN.layout("weights", ()) == ()
    assert PLAN.layout("weights", ((), "_", "d_ff")) == ((), (), ("y", "z"))
    with pytest.raises(PlanError, match="unknown group of tensors 'wieghts'"):
        PLAN.layout("wieghts", ("d_ff",))


def test_layout_of_compound_dimensions_is_major_first() -> None:
    grouped = (("kv_heads", ("y",)), ("q_per_kv", ("x",)), ("d_model", ("x",)))
    plan = replace(PLAN, groups=(("weights", grouped),))
    assert plan.layout("weights", (("kv_heads", "q_per_kv"), "d_head")) == (("y", "x"), ())
    assert plan.layout("weights", (("q_per_kv", "kv_heads"), "d_head")) == (("x", "y"), ())


def test_a_mesh_axis_is_used_once_per_tensor() -> None:
    """By the logical axis that the group names first, wherever its dimension stands."""
    plan = replace(PLAN, groups=(("cache", (("batch", ("x", "y")), ("kv_heads", ("y", "z")))),))
    assert plan.layout("cache", ("kv_heads", "batch")) == (("z",), ("x", "y"))
    assert plan.layout("cache", ("kv_heads", "context")) == (("y", "z"), ())
    assert plan.layout("cache", ("batch", "batch")) == (("x", "y"), ())


def test_saved_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "decode.plan"
    PLAN.save(path)
    assert path.read_text(encoding="utf-8") == TEXT + "\n"
    assert Plan.load(path) == PLAN
    replace(PLAN, label="other").save(path)
    assert Plan.load(path).label == "other"
    assert [each.name for each in tmp_path.iterdir()] == ["decode.plan"]


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot read the plan .*missing.plan"):
        Plan.load(tmp_path / "missing.plan")


def test_explain() -> None:
    plan = replace(PLAN, alternatives=PLAN.alternatives[:2])
    assert (
        plan.explain()
        == """\
CHOSEN       ws2d/batch  28.8 ms  compute 5.3 ms, hbm 8.615 ms, communication 3.8 ms, \
latency 16.4 ms; 10.24 GiB per chip
  weights    d_model@x d_ff@y,z heads@y,z
  residual   d_model@x,y,z
  hidden     d_ff@y,z,x
  attention  batch@x,y,z
  cache      batch@x,y,z
  logits     whole
runner-up    ws1d/batch  29.9 ms  communication 6.4 ms instead of 3.8 ms
UNAVAILABLE  ws1d/heads        -  heads (48) do not divide over 64 chips: pad heads to "64\""""
    )


def test_plans_are_hashable() -> None:
    assert len({PLAN, Plan.parse(TEXT)}) == 1


def test_rows_and_weights_share_no_mesh_axis_of_a_constraint() -> None:
    """A plan by hand may split rows over the axis that its weights are split over."""
    plan = Plan.parse(
        "plan by_hand\ntarget cpu:8\nmesh x=8\nused d_ff@x\nresidual d_model@x\nhidden batch@x\n"
    )
    config = replace(llama.CONFIGS["toy"], d_ff=256)
    program = traced_step(llama, config, 8, 32)
    program = Pipeline.parse("normalize, recognize, carry_cache").run(program)
    made = Pipeline.parse("target cpu:8\nmesh x=8\nshard").run(replace(program, plan=plan))
    graph = constrained(made.graph, {"x": 8}, None)
    layouts = [op["layout"] for op, _ in graph.walk() if op.name == "constrain"]
    assert any("x" in axes for layout in layouts for axes in layout)
    for layout in layouts:
        used = [axis for axes in layout if axes for axis in axes]
        assert len(used) == len(set(used)), layout
