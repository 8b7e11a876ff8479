"""The README promises nothing that is not there."""

from __future__ import annotations

import re
import shlex
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.front.cli import main
from dialect.machine import mesh
from examples import llama
from rewrite import Pipeline, Program
from rewrite.passbase import find_pass, pass_names
from tests.kit import traced_step

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)


def block(start: str) -> str:
    """The fenced block that begins with this text."""
    return next(text for _, text in BLOCKS if text.startswith(start))


def program(passes: str = "") -> Program:
    traced = traced_step(llama, llama.CONFIGS["toy"], 8, 64)
    return Pipeline.parse(passes).run(traced) if passes else traced


def unnumbered(text: str) -> str:
    return re.sub(r"%\d+", "%", text)


def test_the_twelve_lines_run():
    code = block("from functools import partial")
    assert len([line for line in code.splitlines() if line.strip()]) == 12
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    expected, _ = jax.jit(partial(llama.decode_step, names["config"]))(
        names["params"], llama.init_cache(names["config"], 8, 64), jnp.zeros(8, jnp.int32)
    )
    assert float(jnp.abs(names["logits"] - expected).max()) < 1e-4


def test_packed_parameters_are_saved_and_loaded(tmp_path, monkeypatch):
    from safetensors.numpy import save_file

    names: dict = {}
    exec(compile(block("from functools import partial"), "README.md", "exec"), names)
    flat, _ = jax.tree_util.tree_flatten_with_path(names["params"])
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in flat}
    save_file(
        {name: np.asarray(x) for name, x in named.items()}, tmp_path / "originals.safetensors"
    )
    monkeypatch.chdir(tmp_path)
    shapes = jax.eval_shape(lambda: names["params"])
    tokens, cache = names["tokens"], llama.init_cache(names["config"], 8, 64)
    known = {"step": names["step"], "shapes": shapes, "cache": cache, "tokens": tokens}
    exec(compile(block("from rewrite import as_tree"), "README.md", "exec"), known)
    logits, _ = known["step"](known["packed"], known["step"].adapt(cache), tokens)
    again = llama.init_cache(names["config"], 8, 64)
    wanted, _ = names["step"](names["packed"], names["step"].adapt(again), tokens)
    np.testing.assert_array_equal(logits, wanted)


@pytest.mark.parametrize(
    ("start", "passes"), [("%89 = dot_general", ""), ("%51 = cache_write", "normalize, recognize")]
)
def test_the_ir_is_what_is_printed(start, passes):
    printed = unnumbered(str(program(passes)))
    for line in block(start).splitlines():
        assert unnumbered(line) in printed, line


def test_the_text_reads_back():
    assert Program.parse(str(program())) == program()


def test_the_pipeline_is_the_example():
    shown = Pipeline.parse(block("target v5e:2x4"))
    assert shown == Pipeline.load(ROOT / "examples" / "serve.pipeline")


def test_every_pass_is_listed_with_what_it_keeps():
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (.*?) \|$", README, re.MULTILINE))
    assert set(rows) == set(pass_names())
    for name, keeps in rows.items():
        assert keeps.partition(";")[0] in (find_pass(name)().keeps, "as they say"), name


def test_every_file_named_is_there():
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / link.partition("#")[0]).exists(), link


@pytest.mark.parametrize("command", ["explain", "diff", "report"])
def test_a_decoder_of_ones_own_is_looked_at(command, tmp_path, monkeypatch, capsys):
    """The one of docs/looking.md, as the README says, and on machines without libtpu too."""
    page = (ROOT / "docs" / "looking.md").read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(re.search(r"```python mine.py\n(.*?)```", page, re.S)[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mesh, "prepare_libtpu", lambda: pytest.fail("libtpu is asked for"))
    (line,) = re.findall(rf"^    shardwright {command} +(mine.py.*)$", README, re.MULTILINE)
    assert main([command, *shlex.split(line)]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", ["explain", "diff", "show", "passes"])
def test_the_commands_run(command, capsys):
    (line,) = re.findall(rf"^    shardwright {command}\b((?!.*mine).*)$", README, re.MULTILINE)
    words = shlex.split(line, comments=True)
    assert main([command, *words]) == 0
    assert capsys.readouterr().out
