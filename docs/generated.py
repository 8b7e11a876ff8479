"""What the site has beside the pages of this folder: a hook of mkdocs.

README.md is its first page, passes, ops and commands are read off their own declarations, and the
files that a page links to are copied beside it.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from dialect.front import api  # noqa: E402  (defines the ops)
from dialect.front.cli import parser  # noqa: E402
from dialect.front.inspection import described  # noqa: E402
from rewrite import opdef  # noqa: E402
from rewrite.passbase import find_pass, pass_names  # noqa: E402

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)([^)#]+)(#[^)]*)?\)")
_FENCE = re.compile(r"^```(\w+) .*$", re.MULTILINE)
_INLINE = re.compile(r"(```.*?^```$)", re.DOTALL | re.MULTILINE)


def passes_page() -> str:
    """Every pass: what it keeps, what its file says, its options."""
    assert api  # imported for what it defines
    kinds = [find_pass(name) for name in pass_names()]
    facts = [described(kind) for kind in kinds]
    lines = [
        "# Passes, by their declarations",
        "",
        "| pass | keeps | what it does |",
        "|---|---|---|",
    ]
    lines += [f"| [`{f['name']}`](#{f['name']}) | {f['keeps']} | {f['what']} |" for f in facts]
    for kind, fact in zip(kinds, facts):
        lines += ["", f"## {fact['name']}", "", f"`keeps` {fact['keeps']}", ""]
        lines += _prose(inspect.getdoc(inspect.getmodule(kind)) or fact["what"])
        if fact["options"]:
            lines += ["| option | default | takes |", "|---|---|---|"]
        for option in fact["options"]:
            takes = option["takes"].replace("|", "\\|")
            lines.append(f"| `{option['name']}` | `{option['default'] or 'none'}` | {takes} |")
    return "\n".join(lines) + "\n"


def ops_page() -> str:
    """Every op that is declared, by the module that declares it; JAX's primitives aside."""
    lines = ["# Ops, by their declarations", ""]
    lines += ["Every primitive of JAX is an op, too, with its own parameters as attributes.", ""]
    for module, ops in _by_module():
        lines += [f"## {module.rpartition('.')[2]}", ""]
        lines += _prose(inspect.getdoc(sys.modules[module]) or "")
        for op in ops:
            lines += [f"### {op.name}", "", *_prose(op.doc or inspect.getdoc(op.reference) or "")]
            lines += [f"- attributes: {_codes(op.attrs)}"] if op.attrs else []
            lines += [f"- regions: {op.regions or 'one or more'}"] if op.regions != 0 else []
            lines += [f"- results: {_codes(op.results)}"] if op.results else []
            lines += ["- has an inverse"] if op.inverse else []
            facts = {n: v for n, v in vars(op.traits).items() if v}
            told = ", ".join(f"`{n}`" if v is True else f"`{n}={v}`" for n, v in facts.items())
            lines += [f"- [traits](#traits): {told}"] if told else []
            lines.append("")
    lines += ["## Traits", "", *_prose(inspect.getdoc(opdef.Traits) or "")]
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """The help of every command."""
    whole = parser()
    (commands,) = (a.choices for a in whole._actions if isinstance(a.choices, dict))
    lines = ["# The command", "", *_text(whole.format_help())]
    for name, command in commands.items():
        lines += [f"## {name}", "", *_text(command.format_help())]
    return "\n".join(lines) + "\n"


def first_page() -> str:
    """README.md, with its links as they are from the folder of the pages."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return _outside_fences(text, lambda part: _LINK.sub(_from_docs, part))


PAGES = {
    "index.md": first_page,
    "passes.md": passes_page,
    "ops.md": ops_page,
    "command.md": commands_page,
}


def _by_module() -> Iterator[tuple[str, list[opdef.OpDef]]]:
    modules: dict[str, list[opdef.OpDef]] = {}
    for op in opdef._DEFINED.values():
        module = op.reference.__module__
        if module.startswith("dialect.ops.") and module != "dialect.ops.lax":
            modules.setdefault(module, []).append(op)
    return iter(sorted(modules.items()))


def _text(text: str) -> list[str]:
    return ["```text", text.strip("\n"), "```", ""]


def _prose(docstring: str) -> list[str]:
    """A docstring, of which what stands before and after an arrow is code."""
    lines: list[str] = []
    for paragraph in docstring.strip().split("\n\n") if docstring.strip() else []:
        is_code = "->" in paragraph or paragraph.startswith(" ")
        lines += _text(paragraph) if is_code else [paragraph.strip(), ""]
    return lines


def _codes(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _from_docs(link: re.Match[str]) -> str:
    words, path, anchor = link[1], link[2], link[3] or ""
    inside = path.removeprefix("docs/")
    return f"[{words}]({inside if inside != path else f'../{path}'}{anchor})"


def _outside_fences(text: str, change: Any) -> str:
    parts = _INLINE.split(text)
    return "".join(part if part.startswith("```") else change(part) for part in parts)


# What mkdocs calls.


def on_config(config: Any) -> Any:
    """Headings have the links that they have on GitHub."""
    config.mdx_configs["toc"] = {"slugify": slug, "permalink": False}
    return config


def slug(heading: str, separator: str = "-") -> str:
    """`The grammar of the IR`  ->  `the-grammar-of-the-ir`"""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated pages, and the files that pages link to."""
    from mkdocs.structure.files import File

    texts = {name: page() for name, page in PAGES.items()}
    texts |= {path.name: path.read_text(encoding="utf-8") for path in ROOT.glob("docs/*.md")}
    for name in PAGES:
        files.append(File.generated(config, name, content=texts[name]))
    linked = {link[2] for text in texts.values() for link in _LINK.finditer(text)}
    for path in sorted(link for link in linked if link.startswith("../")):
        if (ROOT / "docs" / path).is_file():
            copied = (ROOT / "docs" / path).read_bytes()
            files.append(File.generated(config, path.replace("../", "files/"), content=copied))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fences that say more than a language, and links out of the folder, as mkdocs takes them."""
    return _FENCE.sub(r"```\1", _outside_fences(markdown, lambda part: _LINK.sub(_inside, part)))


def _inside(link: re.Match[str]) -> str:
    words, path, anchor = link[1], link[2], link[3] or ""
    if not path.startswith("../"):
        return link[0]
    if not (ROOT / "docs" / path).is_file():
        return words  # a folder is no page
    return f"[{words}]({path.replace('../', 'files/')}{anchor})"
