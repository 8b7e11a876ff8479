"""The shape of the code: who imports whom, no arrow upward, no circles, no long files."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.house import counts

ROOT = Path(__file__).parents[1]
PACKAGES = ("rewrite", "dialect", "passes")
# The rooms from the ground up, and whose files those of a room import: all of them stand above it.
ROOMS = {
    "rewrite": "",
    "display": "",
    "arrays": "rewrite",
    "machine": "rewrite",
    "ops": "rewrite arrays",
    "jaxprs": "rewrite arrays ops",
    "matching": "rewrite arrays",
    "staging": "rewrite arrays ops jaxprs matching",
    "normal": "rewrite arrays ops jaxprs matching",
    "naming": "rewrite ops matching staging",
    "tokens": "",
    "user": "rewrite display arrays machine ops jaxprs normal naming",
    "quantized": "rewrite arrays machine ops jaxprs matching normal naming",
    "recognition": "rewrite arrays ops jaxprs matching staging normal quantized",
    "layered": "rewrite ops jaxprs normal",
    "caching": "rewrite arrays ops matching staging normal naming",
    "padded": "rewrite arrays ops jaxprs matching staging naming",
    "compiled": "rewrite display arrays machine ops jaxprs matching normal",
    "planning": "rewrite display machine ops matching staging normal naming quantized compiled",
    "prepared": "rewrite display arrays machine ops jaxprs staging compiled planning",
    "reports": "rewrite display arrays machine ops jaxprs matching staging naming user"
    " layered compiled planning",
    "printed": "rewrite display machine ops naming planning reports",
    "pages": "rewrite display arrays machine compiled planning reports printed",
    "passes": "rewrite display arrays machine ops jaxprs matching staging normal naming"
    " user recognition layered caching quantized padded compiled planning reports",
    "measured": "rewrite display arrays jaxprs matching naming user layered padded reports passes",
    "checked": "rewrite display arrays ops jaxprs matching normal user compiled",
    "serving": "rewrite",
    "token_rows": "rewrite arrays ops jaxprs matching tokens user serving",
    "simulated": "rewrite display machine planning reports serving",
    "engine": "rewrite display arrays machine staging compiled prepared serving token_rows"
    " simulated",
    "server": "engine serving token_rows",
    "front": "rewrite display arrays machine ops jaxprs tokens user compiled planning prepared"
    " reports printed pages measured checked serving simulated engine server",
}
LIBRARIES = {
    "rewrite": {"lark"},
    "display": {"rich"},
    "planning": {"jax", "numpy", "lark"},
    "printed": {"rich"},
    "front": {"rich", "jax", "tokenizers"},
    "reports": {"jax", "numpy", "matplotlib"},  # matplotlib and orbax are extras
    "prepared": {"jax", "numpy", "orbax"},
    "serving": set(),  # what decides is plain Python
    "simulated": set(),
    "server": {"starlette", "uvicorn", "tokenizers", "jinja2", "prometheus_client"},
}
USUAL = {"jax", "numpy"}
# Modules named in a text: what `from rewrite import` offers, and how a pass is found by its name.
BY_NAME = {
    "rewrite": {"engine", "front", "planning", "prepared", "printed"},
    "rewrite.passbase": {"passes"},
}
# Imports inside a function: extras, and JAX itself behind the check of its version.
LAZY = {
    "rewrite": {"importlib", "dialect.front"},
    "dialect.front.cli": {"dialect.front"},
    "dialect.front.serving": {"dialect.server", "tokenizers"},
    "dialect.reports.plotting": {"matplotlib"},
    "dialect.reports.sweep_plot": {"matplotlib"},
    "dialect.prepared.orbax_files": {"orbax"},
}
PRIMITIVES = "dialect.arrays.primitives"  # the only module that touches jax.extend
MOST_LINES = 400
MOST_ENGINE_LINES = 3500


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for package in PACKAGES
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


def room(module: str) -> str:
    """The room of a module: a folder of dialect/, or one of the two other packages."""
    first, *rest = module.split(".")
    return rest[0] if first == "dialect" and rest else first


def of_this_project(module: str) -> set[str]:
    """The modules of this project that a module imports, at its top or inside a function."""
    owners = {name if name in MODULES else name.rpartition(".")[0] for name in imports(module)}
    return owners & set(MODULES) - {module}


def lazy(module: str) -> set[str]:
    """What a module imports inside functions."""
    tree = TREES[module]
    early = {id(node) for node in at_module_level(tree)}
    nodes = (node for node in ast.walk(tree) if id(node) not in early)
    return {name.rpartition(".")[0] for node in nodes for name in targets(node, module)}


def named(module: str) -> set[str]:
    """The rooms that a module names in a text."""
    texts = (node.value for node in ast.walk(TREES[module]) if isinstance(node, ast.Constant))
    places = (re.fullmatch(r"(rewrite|dialect|passes)(\.\w*)+", str(text)) for text in texts)
    return {room(place[0]) for place in places if place}


@pytest.mark.parametrize("name", ROOMS)
def test_arrows_point_down(name: str) -> None:
    """The table is the plan of the house: what it allows is used, and nothing else is."""
    inside = [module for module in MODULES if room(module) == name and module != "rewrite"]
    others = {room(other) for module in inside for other in of_this_project(module)} - {name}
    assert others == set(ROOMS[name].split())
    assert others <= set(list(ROOMS)[: list(ROOMS).index(name)])


def test_every_file_has_a_room() -> None:
    assert {room(module) for module in MODULES} - {"dialect"} == set(ROOMS)
    assert [name for name in MODULES if name.count(".") == 1 and name.startswith("dialect.")] == [
        f"dialect.{name}" for name in sorted(set(ROOMS) - {"rewrite", "passes"})
    ]


def test_nothing_imports_the_front_door() -> None:
    inside = {module for module in MODULES if room(module) != "front"}
    assert {m for m in inside if any(room(n) == "front" for n in of_this_project(m))} == {"rewrite"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_libraries(module: str) -> None:
    allowed = {*PACKAGES, *sys.stdlib_module_names, *LIBRARIES.get(room(module), USUAL)}
    assert {name.partition(".")[0] for name in imports(module)} <= allowed


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_hidden_arrows(module: str) -> None:
    """Nothing is imported late, named in a text or fetched from what is loaded, but for LAZY."""
    allowed = LAZY.get(module, set())
    assert {n for n in lazy(module) if not any(n.startswith(each) for each in allowed)} == set()
    below = {room(module), *ROOMS.get(room(module), "").split()}
    assert named(module) - below <= BY_NAME.get(module, set())
    if room(module) not in ("user", "front", "rewrite"):
        assert "sys.modules" not in attributes(module)


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


def test_files_are_short() -> None:
    """Run with `pytest -s` to see the sizes."""
    lines = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    for name, count in lines.items():
        print(f"{count:5}  {name}")
    engine = sum(count for name, count in lines.items() if room(name) == "rewrite")
    print(f"{engine:5}  the engine")
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}
    assert engine < MOST_ENGINE_LINES


def test_the_house_gets_no_worse() -> None:
    """`python -m tests.house` lists what is counted here; a lower count lowers its limit."""
    limits = {
        "op-name comparisons": 395,
        "op-name tables": 10,
        "functions over 40 lines": 5,
        "public definitions without a docstring": 0,
    }
    assert {what: count for what, count in counts().items() if count > limits[what]} == {}
