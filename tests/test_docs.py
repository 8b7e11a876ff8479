"""The documentation promises nothing that is not there, and what it shows is what is printed."""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_structure import PACKAGES, ROOMS

import passes
from dialect.front.cli import main
from dialect.ops.vocabulary import Traced
from rewrite import opdef
from rewrite.passbase import find_pass, pass_names

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FOLDERS = "rewrite|dialect|passes|examples|tests|benchmarks|docs"
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def blocks(text: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page: what is written behind the fence, and the text."""
    return BLOCK.findall(text)


def unnumbered(text: str) -> str:
    """A text of the IR whose values have lost their numbers, which any pass may change."""
    return re.sub(r"%\d+", "%", text)


def anchors(text: str) -> Iterator[str]:
    """The links that headings have on GitHub; the second of a name ends in -1."""
    seen: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        yield f"{name}-{seen[name]}" if name in seen else name
        seen[name] = seen.get(name, 0) + 1


def test_every_pass_has_a_section_with_what_it_keeps_and_its_options():
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##)", page("reference.md"), re.S | re.M))
    for name in pass_names():
        found = find_pass(name)
        assert sections[name].strip().startswith(f"`keeps` {found.keeps}"), name
        for option in dataclasses.fields(found):
            assert re.search(rf"`{option.name}[`=]", sections[name]), f"{name}: {option.name}"
        assert name in ("audit", "retarget", "rules") or f"```ir {name}.ir" in sections[name]


def test_the_lines_of_the_ir_are_those_of_the_golden_files():
    """In their order; numbers may differ, and `...` stands for anything."""
    for head, text in blocks(page("reference.md")):
        if not head.startswith("ir "):
            continue
        printed = (ROOT / "tests" / "golden" / head.split()[1]).read_text(encoding="utf-8")
        lines = iter(unnumbered(printed).splitlines())
        for line in unnumbered(text).splitlines():
            wanted = ".*".join(map(re.escape, line.split("...")))
            assert any(re.fullmatch(wanted, each.strip()) for each in lines), f"{head}: {line}"


def test_every_room_stands_in_the_table():
    rows = re.findall(r"^\| `(\w+)` \|", page("design.md"), re.MULTILINE)
    assert rows == list(ROOMS)


def test_the_grammar_takes_twelve_lines():
    _, grammar = blocks(page("design.md"))[0]
    assert len(grammar.splitlines()) == 12


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_what_is_named_is_there(path):
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!http)([^)]+)\)", BLOCK.sub("", text)):
        file, _, anchor = link.partition("#")
        target = (path.parent / file) if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link
    for name in re.findall(rf"(?<![\w./])(?:{FOLDERS})/[\w./-]*\w", text):
        known = [head.split()[1] for head, _ in blocks(text) if "." in head]
        assert name in known or (ROOT / name).exists(), name


def test_what_comments_name_is_there():
    """Modules and files in backticks, in the code of the three packages."""
    for path in (each for package in PACKAGES for each in (ROOT / package).rglob("*.py")):
        for name in re.findall(
            r"`((?:rewrite|dialect|passes)[./][^`\s]+)`", path.read_text(encoding="utf-8")
        ):
            if "<" in name:
                continue  # stands for any name
            dotted = Path(*name.split("."))
            place = ROOT / (name if "/" in name else dotted)
            found = (place, place.with_suffix(".py"), place.parent.with_suffix(".py"))
            assert any(each.exists() for each in found), f"{path.relative_to(ROOT)}: {name}"


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """A folder to work in; ops and passes that are added there are gone afterwards."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "passes").mkdir()
    monkeypatch.setattr(passes, "__path__", [*passes.__path__, str(tmp_path / "passes")])
    known = [(table, dict(table)) for table in (opdef._DEFINED, Traced)]
    yield tmp_path
    for table, before in known:
        table.clear()
        table.update(before)


@pytest.mark.parametrize("name", ["how-to.md", "looking.md", "tutorial.md", "using.md"])
def test_the_code_of_a_page_runs(name, workshop, capsys):
    names: dict = {"__name__": "page"}
    printed = ""
    for head, text in blocks(page(name)):
        kind = head.partition(" ")[2]
        if head == "sh run":
            for line in text.splitlines():
                assert main(shlex.split(line)[1:]) == 0, capsys.readouterr().err
            printed = capsys.readouterr().out
        elif kind == "run":
            exec(compile(text, name, "exec"), names)
            printed = capsys.readouterr().out
        elif kind == "output":
            wanted = ".*".join(map(re.escape, unnumbered(text).split("...")))
            assert re.fullmatch(wanted, unnumbered(printed), re.DOTALL), f"{text}---\n{printed}"
        elif kind:
            (workshop / kind).write_text(text, encoding="utf-8")


def test_the_benchmark_of_a_device_ends_where_there_is_none() -> None:
    """With a sentence, and as if nothing were wrong."""
    command = [sys.executable, str(ROOT / "benchmarks" / "device.py")]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout.partition(":")[0]) == (0, "no GPU and no TPU is here")


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmark_runs_as_its_first_lines_say(path: Path) -> None:
    """`python benchmarks/x.py` has the folder of the benchmark on its path, and not ours."""
    text = path.read_text(encoding="utf-8")
    ours = re.search(r"^from (examples|tests|harness)\b", text, re.MULTILINE)
    assert not ours or re.search(r"^sys\.path", text[: ours.start()], re.MULTILINE)
