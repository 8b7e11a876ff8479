"""The notebook shows what its cells show: they run here, in plain Python, and in Jupyter where it
is installed. `--update-golden` writes its outputs anew."""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib.util
import io
import json
import linecache
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dialect.user.calls import first_line
from rewrite import trace

NOTEBOOK = Path(__file__).parents[1] / "examples" / "looking.ipynb"


def cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def read() -> dict[str, Any]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def ran(cell: dict[str, Any], names: dict[str, Any]) -> list[dict[str, Any]]:
    """What a cell shows: what it prints, and the value of its last line."""
    file, source = f"<{cell['id']}>", "".join(cell["source"])
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    outputs = []
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, file, "exec"), names)
        value = last and eval(compile(ast.Expression(last.value), file, "eval"), names)
    if printed.getvalue():
        text = printed.getvalue().splitlines(keepends=True)
        outputs.append({"name": "stdout", "output_type": "stream", "text": text})
    if value is not None:
        data = {"text/html": [value._repr_html_()], "text/plain": repr(value).splitlines(True)}
        shown = {"data": data, "execution_count": cell["execution_count"], "metadata": {}}
        outputs.append({**shown, "output_type": "execute_result"})
    return outputs


def text_of(outputs: list[dict[str, Any]]) -> str:
    """What outputs say as plain text, in however many messages it came; names of files aside."""
    said = "".join("".join(o.get("text") or o["data"]["text/plain"]) for o in outputs)
    return re.sub(r"[\w<>\[\].-]+:(\d+) (\w+)", r"line \1 of \2", said)


def test_the_cells_show_what_is_kept(request: pytest.FixtureRequest) -> None:
    notebook, names = read(), {"__name__": "notebook"}
    for cell in cells(notebook):
        shown = ran(cell, names)
        if request.config.getoption("--update-golden"):
            cell["outputs"] = shown
        assert text_of(cell["outputs"]) == text_of(shown)
    if request.config.getoption("--update-golden"):
        text = json.dumps(notebook, indent=1, ensure_ascii=False)
        NOTEBOOK.write_text(f"{text}\n", encoding="utf-8")


def test_it_is_small_and_shows_itself() -> None:
    html = [
        o["data"]["text/html"] for cell in cells(read()) for o in cell["outputs"] if "data" in o
    ]
    assert len(html) == 2 and all("<pre class" in "".join(fragment) for fragment in html)
    assert NOTEBOOK.stat().st_size < 100_000


def test_a_cell_is_called_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    file, source = (
        "/elsewhere/ipykernel_7/1234.py",
        "def step(w, x):\n    h = x @ w\n    return h\n",
    )
    monkeypatch.setitem(linecache.cache, file, (len(source), None, source.splitlines(True), file))
    compiler = SimpleNamespace(format_code_name={file: ("Cell", "In[3]")}.get)
    shell = SimpleNamespace(compile=compiler)
    monkeypatch.setattr(builtins, "get_ipython", lambda: shell, raising=False)
    names: dict[str, Any] = {}
    exec(compile(source, file, "exec"), names)
    program = trace(names["step"], np.ones((4, 4)), np.ones((2, 4)), state=())
    (product,) = (op for op in program.graph.ops if op.name == "dot_general")
    assert product.origin.source == "In[3]:2 (step)"
    assert '<span class="name">h</span>' in program._repr_html_()
    assert first_line(names["step"]) == "In[3]:1 (step)"


@pytest.mark.skipif(
    not (importlib.util.find_spec("nbclient") and importlib.util.find_spec("ipykernel")),
    reason="Jupyter (nbclient, ipykernel) is not installed",
)
def test_jupyter_shows_it_too() -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    kept = [text_of(cell.outputs) for cell in cells(notebook)]
    NotebookClient(notebook, resources={"metadata": {"path": str(NOTEBOOK.parents[1])}}).execute()
    streams = [[o for o in cell.outputs if o.get("name") != "stderr"] for cell in cells(notebook)]
    assert [text_of(outputs) for outputs in streams] == kept
