"""The documentation as a site: every page is there, generated ones say what is declared, links
lead somewhere. Without mkdocs the site itself is not built here."""

from __future__ import annotations

import html
import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from dialect.front.cli import parser
from dialect.front.inspection import described
from rewrite.passbase import find_pass, pass_names

ROOT = Path(__file__).parents[1]
SETTINGS = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
NAV = re.findall(r"^ +- [^:]+: (\S+)$", SETTINGS, re.MULTILINE)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OUTSIDE = ("https:", "http:", "mailto:", "data:")


@pytest.fixture(scope="module")
def generated() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generated", ROOT / "docs" / "generated.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_list_of_pages_once(generated: ModuleType) -> None:
    written = [path.name for path in (ROOT / "docs").glob("*.md")]
    assert sorted(NAV) == sorted([*written, *generated.PAGES])


def test_passes_are_told_with_all_their_options(generated: ModuleType) -> None:
    sections = dict(
        re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", generated.passes_page(), re.M | re.S)
    )
    assert list(sections) == list(pass_names())
    for name, section in sections.items():
        fact = described(find_pass(name))
        assert f"`keeps` {fact['keeps']}" in section
        assert re.findall(r"^\| `(\w+)` \|", section, re.M) == [o["name"] for o in fact["options"]]


def test_ops_are_told_with_their_attributes_and_facts(generated: ModuleType) -> None:
    page = generated.ops_page()
    take = page.partition("### take\n")[2].partition("### ")[0]
    assert "Rows of a table. table: [v, ...], ids: [...]" in take
    assert "- attributes: `mode`, `fill`" in take and "- [traits](#traits): " in take
    sections = re.findall(r"^### (\w+)$", page, re.MULTILINE)
    assert {"attend", "contract", "quantize", "scan", "rope"} <= set(sections)
    assert len(sections) == len(set(sections))


def test_commands_are_told_with_their_options(generated: ModuleType) -> None:
    page = generated.commands_page()
    (commands,) = (a.choices for a in parser()._actions if isinstance(a.choices, dict))
    assert re.findall(r"^## ([\w-]+)$", page, re.MULTILINE) == list(commands)
    assert "--print-ir-diff" in page and "examples:\n" in page


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_headings_have_links_of_their_own(path: Path, generated: ModuleType) -> None:
    """GitHub and mkdocs number equal ones differently."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    slugs = [generated.slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    assert len(slugs) == len(set(slugs))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_command_line_can_be_typed(path: Path) -> None:
    """What a page shows in a line of its own: the command has these arguments."""
    joined = path.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^(?: {4})?shardwright (.+)$", joined, re.MULTILINE):
        words = shlex.split(line, comments=True)
        if "..." not in words:
            assert parser().parse_args(words).command == words[0], line


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built without a network; whatever mkdocs warns of is an error."""
    build = pytest.importorskip("mkdocs.commands.build", reason="mkdocs is not installed")
    from mkdocs.config import load_config

    place = tmp_path_factory.mktemp("site")
    build.build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(place), strict=True))
    return place


def test_what_a_page_links_to_is_there(site: Path) -> None:
    shown = {path: path.read_text(encoding="utf-8") for path in site.glob("*.html")}
    names = {
        path: {html.unescape(n) for n in re.findall(r'id="([^"]+)"', shown[path])} for path in shown
    }
    assert len(shown) >= len(NAV)
    for path, text in shown.items():
        for link in re.findall(r'(?:href|src)="([^"]+)"', text):
            file, _, anchor = html.unescape(link).partition("#")
            if link.startswith(OUTSIDE) or path.name == "404.html":
                continue
            target = (path.parent / file.partition("?")[0]).resolve() if file else path
            assert target.exists(), f"{path.name}: {link}"
            assert not anchor or anchor in names[target], f"{path.name}: {link}"


def test_nothing_is_loaded_from_the_network(site: Path) -> None:
    loads = re.compile(r'<(?:script|img)[^>]*src="(https?:)?//|<link[^>]*href="(https?:)?//')
    for path in site.glob("*.html"):
        found = loads.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{path.name}: {found and found[0]}"


def test_blocks_of_code_are_blocks(site: Path) -> None:
    for path in site.glob("*.html"):
        text = re.sub(r"<pre>.*?</pre>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert "```" not in text and not re.search(r"^(- |\| )", text, re.MULTILINE), path.name
