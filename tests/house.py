"""What the code is like, counted: `python -m tests.house`.

lines in rewrite/, dialect/, passes/
op-name comparisons        `op.name == "scan"`, `op.name in (...)`
op-name tables             module-level collections of names of ops, outside declarations
functions over 40 lines    docstring included
public definitions without a docstring
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from dialect.front import api  # noqa: F401  (declares every op)
from rewrite import opdef

ROOT = Path(__file__).parents[1]
PACKAGES = ("rewrite", "dialect", "passes")
LONGEST = 40
FEWEST = 3  # names of ops that make a table
DECLARATIONS = ("dialect/ops/", "dialect/arrays/")
Definition = ast.FunctionDef | ast.ClassDef


def files() -> list[Path]:
    """Every Python file of the three packages."""
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def comparisons() -> list[str]:
    """Where the name of an op is compared with a literal or a table."""
    return [
        place(path, node)
        for path, node in walked()
        if isinstance(node, ast.Compare)
        and isinstance(node.left, ast.Attribute)
        and node.left.attr == "name"
        and ast.unparse(node.left.value).split(".")[-1] in ("op", "inner", "user", "reader", "each")
        and any(names_of(right) or isinstance(right, ast.Name) for right in node.comparators)
    ]


def tables() -> list[str]:
    """Module-level collections with the names of several ops."""
    return [
        f"{place(path, node)} {ast.unparse(node.targets[0])}"
        for path, tree in trees().items()
        if not str(path.relative_to(ROOT)).startswith(DECLARATIONS)
        for node in tree.body
        if isinstance(node, ast.Assign) and len(names_of(node.value)) >= FEWEST
    ]


def names_of(node: ast.AST) -> set[str]:
    """The names of ops among the texts of an expression."""
    constants = (each.value for each in ast.walk(node) if isinstance(each, ast.Constant))
    texts = (text.split() for text in constants if isinstance(text, str))
    return {word for words in texts if all(map(_is_op, words)) for word in words}


@cache
def _is_op(word: str) -> bool:
    return word.isidentifier() and opdef.is_known(word)


def long_functions() -> list[str]:
    """Functions of more than 40 lines."""
    return [
        f"{place(path, node)} {node.name}, {length(node)} lines"
        for path, node in walked()
        if isinstance(node, ast.FunctionDef) and length(node) > LONGEST
    ]


def length(node: ast.FunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def without_docstring() -> list[str]:
    """Public functions, classes, methods and properties that say nothing of themselves.

    A method that a base class documents need not say it again.
    """
    said = {
        (node.name, method.name)
        for _, node in walked()
        if isinstance(node, ast.ClassDef)
        for method in node.body
        if isinstance(method, ast.FunctionDef) and ast.get_docstring(method)
    }
    return [
        f"{place(path, node)} {node.name}"
        for path, tree in trees().items()
        for node, bases in public(tree, ())
        if not ast.get_docstring(node) and not any((base, node.name) in said for base in bases)
    ]


def public(tree: ast.AST, bases: tuple[str, ...]) -> Iterator[tuple[Definition, tuple[str, ...]]]:
    """The public definitions of a module or class, and the bases of the class that holds each."""
    for node in tree.body if isinstance(tree, ast.Module | ast.ClassDef) else ():
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node, bases
            if isinstance(node, ast.ClassDef):
                yield from public(node, tuple(ast.unparse(b).split(".")[-1] for b in node.bases))


@cache
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in files()}


@cache
def walked() -> list[tuple[Path, ast.AST]]:
    return [(path, node) for path, tree in trees().items() for node in ast.walk(tree)]


COUNTS = {
    "op-name comparisons": comparisons,
    "op-name tables": tables,
    f"functions over {LONGEST} lines": long_functions,
    "public definitions without a docstring": without_docstring,
}


def counts() -> dict[str, int]:
    """How many of everything, counted in a process of its own: tests define ops, too."""
    command = [sys.executable, "-m", "tests.house", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    if sys.argv[1:] == ["--json"]:
        print(json.dumps({what: len(find()) for what, find in COUNTS.items()}))
        return
    for package in PACKAGES:
        own = [path for path in files() if path.relative_to(ROOT).parts[0] == package]
        total = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in own)
        print(f"{total:6} lines in {package}/, {len(own)} files")
    for what, count in COUNTS.items():
        print(f"{len(count()):6} {what}")
    for what in list(COUNTS)[1:]:
        print(f"\n{what}:", *COUNTS[what](), sep="\n    ")


if __name__ == "__main__":
    main()
