"""The report: what its drawings and sections say, and that the page needs nothing else."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from dialect.machine.mesh import Topology
from dialect.pages.bars import memory_bar
from dialect.pages.lanes import Slot, lanes
from dialect.pages.mesh_drawing import mesh_drawing
from dialect.pages.planned_lanes import of_plan
from dialect.pages.points import ceiling_of, program_points
from dialect.pages.roofline import Ceiling, Point, roofline
from dialect.pages.sections import SECTIONS
from dialect.pages.tags import Html, table, tag
from dialect.planning.plan import Plan, Prediction
from examples import llama
from tests.chromium import IS_HERE, a_page
from tests.kit import Captured, after, complaint, printed, traced_step

STEP = (f"{Path(llama.__file__)}:decode_step", "--config", "toy", "--batch", "8", "--context", "64")
SERVE = str(Path(llama.__file__).with_name("serve.pipeline"))
PLAN = Plan.parse(
    "plan ws1d/heads\nmesh x=2 y=2\nweights d_ff@x,y\ncache batch@y\nresidual whole\n"
    "predicted time_s=0.004 compute_s=0.001 hbm_s=0.002 communication_s=0.001 latency_s=0.001"
    " hbm_bytes=8 communication_bytes=8 memory_bytes=8\n"
    "exchange all-reduce x,y bytes=100 times=4 attention\n"
    "exchange all-reduce x,y bytes=300 times=4 ffn\n"
    "exchange all-gather y bytes=100 times=1 logits"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small decoder for eight chips, not compiled."""
    from dialect.front.cli import main

    path = tmp_path_factory.mktemp("report") / "report.html"
    assert main(["report", *STEP, "--pipeline", SERVE, "--out", str(path)]) == 0
    return path


class Outline(HTMLParser):
    """What opens and closes, which addresses are named, and the text under every heading."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.links: list[str] = []
        self.names: list[str] = []
        self.feed(text)

    def handle_starttag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.links += [given[key] or "" for key in ("href", "src") if key in given]
        self.names += [given["id"] or ""] if "id" in given else []
        if name != "meta":
            self.open.append(name)

    def handle_startendtag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, name: str) -> None:
        if not self.open or self.open.pop() != name:
            self.wrong.append(name)


# --- tags and drawings -----------------------------------------------------------------------


def test_text_is_escaped_where_it_is_put_in() -> None:
    assert tag("p", "a < b & c", class_="x y") == '<p class="x y">a &lt; b &amp; c</p>'
    assert (
        tag("a", tag("b", "x"), href='"><script>')
        == '<a href="&quot;&gt;&lt;script&gt;"><b>x</b></a>'
    )
    assert isinstance(tag("p"), Html)
    assert "&lt;i&gt;" in table(("a", ">b"), [("<i>", "2")], "two")


def test_a_bar_shows_every_part_in_words() -> None:
    bar = memory_bar({"weights": 3 << 30, "cache": 1 << 30}, 16 << 30, "memory")
    widths = [float(width) for width in re.findall(r'width="([\d.]+)" height="26"', bar)]
    assert widths[1:] == [120, 40, 480]  # the drawing itself comes first
    assert "weights 3.00 GiB" in bar and "free 12.00 GiB" in bar and "full here" not in bar
    assert "full here" in memory_bar({"weights": 20 << 30}, 16 << 30, "memory")


def test_chips_hold_the_parts_that_their_place_gives_them() -> None:
    drawing = mesh_drawing(PLAN)
    rows = re.findall(r"<tr>(.*?)</tr>", drawing)[1:]
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in rows]
    assert [row[:3] for row in cells] == [
        ["x=0 y=0", "d_ff part 1 of 4", "batch part 1 of 2"],
        ["x=0 y=1", "d_ff part 2 of 4", "batch part 2 of 2"],
        ["x=1 y=0", "d_ff part 3 of 4", "batch part 1 of 2"],
        ["x=1 y=1", "d_ff part 4 of 4", "batch part 2 of 2"],
    ]
    assert drawing.count('class="chip"') == 4 and drawing.count('class="link"') == 4


def test_of_many_chips_one_plane_is_drawn() -> None:
    plan = Plan("ws1d/heads", (("x", 4), ("y", 4), ("z", 8)), (("weights", ()),))
    drawing = mesh_drawing(plan)
    assert drawing.count('class="chip"') == 32 and "32 of 128 chips are drawn" in drawing


def test_the_roof_is_bandwidth_and_then_arithmetic() -> None:
    ceiling = Ceiling(flops_per_s=200.0, bytes_per_s=10.0)
    assert [ceiling.at(x) for x in (1, 20, 100)] == [10, 200, 200]
    points = [Point("slow", 100, 100), Point("fast", 4000, 100, seconds=40)]
    drawing = roofline(ceiling, points[:1], points[1:])
    assert "slow: 100 FLOP, 1 FLOP/byte, 10.0 FLOP/s" in drawing
    assert "fast: 4.00 kFLOP, 40 FLOP/byte, 100.0 FLOP/s" in drawing
    assert drawing.count("<circle") == 2


def test_the_points_of_a_program_are_its_step() -> None:
    program = traced_step(llama, llama.CONFIGS["toy"], 8, 16)
    recognized = after(program, "normalize, recognize")
    points = program_points(recognized)
    products = [p for p in points if p.name.startswith("contract")]
    config = llama.CONFIGS["toy"]
    width = config.heads + 2 * config.kv_heads + config.heads
    weights = config.d_model * (width * config.d_head + 3 * config.d_ff) * config.layers
    assert sum(p.flops for p in products) == 2 * 8 * (weights + config.d_model * config.vocab)
    halves = program_points(recognized, chips=2)
    assert [p.flops for p in halves] == [p.flops / 2 for p in points]
    assert ceiling_of(Topology.parse("v5e:1x1").chip).flops_per_s == 197e12


def test_a_layer_of_a_plan_in_lanes() -> None:
    slots = of_plan(PLAN)
    assert [(s.lane, round(s.start_s * 1e6), round(s.seconds * 1e6)) for s in slots] == [
        ("compute", 0, 250),
        ("HBM", 0, 500),
        ("link x", 500, 170),
        ("link y", 500, 170),
        ("link x", 670, 288),
        ("link y", 670, 288),
    ]
    drawing = lanes([*slots, Slot("other", 0, 0.001, "late")], "one layer")
    assert [name for name in ("compute", "HBM", "link x", "link y") if f">{name}</text>" in drawing]
    assert "1000 us" in drawing
    assert isinstance(PLAN.predicted, Prediction)


# --- the page --------------------------------------------------------------------------------


def test_the_page_is_whole_and_needs_nothing_else(page: Path) -> None:
    text = page.read_text()
    outline = Outline(text)
    assert outline.wrong == [] and outline.open == []
    assert len(set(outline.names)) == len(outline.names)
    assert {link for link in outline.links if not link.startswith("#")} == set()
    assert {f"#{name}" for name in outline.names} >= set(outline.links)
    assert "<script" not in text and "url(" not in text and "@import" not in text
    assert len(text.encode()) < 5_000_000


def test_every_section_is_there_with_its_content(page: Path) -> None:
    text = page.read_text()
    parts = dict(re.findall(r'<section id="(\w+)".*?>(.*?)</section>', text, re.DOTALL))
    assert list(parts) == [name for name, _, _ in SECTIONS]
    assert "What was done" in parts["bought"] and "tokens a second" in parts["bought"]
    assert parts["pipeline"].count("<rect") == 2 * 11
    assert parts["programs"].count("<summary>after ") == 11
    assert '<span class="new">mixed</span>' in parts["programs"]
    assert parts["mesh"].count('class="chip"') == 8
    assert "all-reduce" in parts["collectives"] and "--compile" in parts["collectives"]
    assert ">HBM</text>" in parts["layer"]


def test_what_is_compiled_and_measured_stands_beside_it(capsys: Captured, tmp_path: Path) -> None:
    row = {"config": "toy", "pass": "quantize", "bits_per_byte": 2.5, "agreement": 0.75}
    (tmp_path / "eval.json").write_text(json.dumps({"rows": [row | {"kl_nats_per_byte": 0.001}]}))
    out = str(tmp_path / "report.html")
    measured = ("--accuracy", str(tmp_path / "eval.json"))
    told = printed(
        capsys, "report", *STEP, "--target", "cpu:4", "--compile", *measured, "--out", out, "--json"
    )
    text = Path(out).read_text()
    assert json.loads(told)["report"] == out
    assert "As compiled" in text and "<h3>Compiled</h3>" in text
    assert '<td class="right">75.00 %</td>' in text


def test_a_program_without_a_plan_has_a_report_too(capsys: Captured, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    printed(capsys, "report", *STEP, "-p", "normalize", "--out", str(out))
    assert "No pass made a plan, so there is no mesh to draw." in out.read_text()


@pytest.mark.parametrize(
    ("content", "expected"), [("{}", "holds no accuracy"), ("[", "holds no accuracy")]
)
def test_a_file_without_accuracy_is_refused(
    capsys: Captured, tmp_path: Path, content: str, expected: str
) -> None:
    path = tmp_path / "eval.json"
    path.write_text(content)
    out = str(tmp_path / "report.html")
    assert expected in complaint(capsys, "report", *STEP, "--accuracy", str(path), "--out", out)


@pytest.mark.skipif(not IS_HERE, reason="needs Debian's chromium and chromium-driver")
def test_the_page_in_a_browser(page: Path) -> None:
    """At 360 and 1,600 pixels, light and dark: nothing is wider than the screen, nothing is
    complained of, and everything opens by the keyboard."""
    backs: dict[bool, Any] = {}
    with a_page() as browser:
        for width in (360, 1600):
            for dark in (False, True):
                browser.open(page, width, dark)
                backs[dark] = browser.run("return getComputedStyle(document.body).backgroundColor")
                browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
                assert browser.run("return document.documentElement.scrollWidth") == width
        browser.open(page, 1600)
        browser.run("document.querySelector('summary').focus()")
        assert not browser.run("return document.querySelector('details').open")
        browser.press("\ue007")  # Enter
        assert browser.run("return document.querySelector('details').open")
        browser.press("\ue004")  # Tab: to what scrolls inside
        assert (
            browser.run("return document.activeElement.getAttribute('aria-label')") == "explained"
        )
        assert browser.complaints() == []
    assert backs == {False: "rgb(255, 255, 255)", True: "rgb(22, 24, 29)"}
