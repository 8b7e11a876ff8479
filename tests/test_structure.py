"""The shape of the code: who imports whom, no circles, no long files."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "rewrite": {"rewrite", "lark", "rich"},
    "dialect": {"dialect", "rewrite", "jax", "numpy"},
    "passes": {"passes", "dialect", "rewrite", "jax", "numpy"},
}
# Reach upward, lazily.
FRONT_DOOR = {f"rewrite{name}" for name in ("", ".api", ".asked", ".cli", ".console", ".faults")}
# What needs an extra, and is imported where it is asked for.
EXTRAS = {"dialect.planning.sweep_plot": {"matplotlib"}, "dialect.prepared.orbax_files": {"orbax"}}
PRIMITIVES = "dialect.primitives"  # the only module that touches jax.extend
MOST_LINES = 400
MOST_ENGINE_LINES = 3500


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for package in MAY_IMPORT
    for path in sorted((ROOT / package).rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def targets(node: ast.AST, module: str) -> Iterator[str]:
    """The dotted names that an import statement reads: `from a import b` gives `a.b`."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        yield from (f"{base}.{alias.name}" for alias in node.names)


def imports(module: str) -> set[str]:
    """Every import of a module, those inside functions included."""
    return {name for node in ast.walk(TREES[module]) for name in targets(node, module)}


def at_module_level(node: ast.AST) -> Iterator[ast.AST]:
    """The statements that run when a module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from at_module_level(child)


def needs(module: str) -> set[str]:
    """The modules of this project that must be there before `module` can be imported."""
    found = set()
    for node in at_module_level(TREES[module]):
        for name in targets(node, module):
            owner = name if name in MODULES else name.rpartition(".")[0]
            found |= {owner} & set(MODULES)
    return found - {module}


def attributes(module: str) -> set[str]:
    """The dotted names that a module reads, such as `jax.extend.core`."""
    nodes = ast.walk(TREES[module])
    return {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("module", sorted(set(MODULES) - FRONT_DOOR))
def test_arrows_point_down(module: str) -> None:
    allowed = MAY_IMPORT[module.partition(".")[0]] | sys.stdlib_module_names
    allowed = allowed | EXTRAS.get(module, set())
    tops = {name.partition(".")[0] for name in imports(module)}
    assert tops - allowed == set(), f"{module} imports what its layer may not"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_only_public_jax(module: str) -> None:
    private = [n for n in imports(module) | attributes(module) if "_src" in n.split(".")]
    assert private == [], f"{module} reaches into JAX's inside"


def test_one_module_touches_jax_extend() -> None:
    touching = {
        module
        for module in MODULES
        for name in imports(module) | attributes(module)
        if name.startswith("jax.extend")
    }
    assert touching <= {PRIMITIVES}


def test_no_circle_of_imports() -> None:
    graph = {module: needs(module) for module in MODULES}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail("modules import each other: " + " -> ".join(reversed(error.args[1])))
    assert set(order) == set(MODULES)


def test_no_circle_of_rooms() -> None:
    """The folders of dialect/ know each other in one direction; its own files are doors to all."""

    def room(module: str) -> str:
        return module.split(".")[1] if module.count(".") == 2 else ""

    inside = [module for module in MODULES if module.startswith("dialect.") and room(module)]
    graph: dict[str, set[str]] = {room(module): set() for module in inside}
    for module in inside:
        others = {room(need) for need in needs(module) if need in inside}
        graph[room(module)] |= others - {room(module)}
    assert len(graph) > 10
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)


def test_files_are_short() -> None:
    """Run with `pytest -s` to see the sizes."""
    lines = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    for name, count in lines.items():
        print(f"{count:5}  {name}")
    engine = sum(lines[name] for name in set(lines) - FRONT_DOOR if name.startswith("rewrite."))
    print(f"{engine:5}  the engine, without its front door")
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}
    assert engine < MOST_ENGINE_LINES
