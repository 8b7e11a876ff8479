"""What a command line says of the arguments of a function: every kind, as expressions."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from dialect.front.given import given
from dialect.user.usercode import module_of
from rewrite import Program, ShardwrightError
from tests.kit import Captured, printed

MINE = """
import jax
import jax.numpy as jnp
from types import SimpleNamespace

SIZES = SimpleNamespace(width=4)
CONFIGS = {"small": SIZES, 3: None}


def init(key, width=4):
    return {"w": jax.random.normal(key, (width, 6))}


def like(weights, rows):
    return jnp.zeros((rows, weights["w"].shape[1]), weights["w"].dtype)


def decode(tokens, /, past, *rest, weights, scale=2.0, **more):
    past = past + tokens @ weights["w"] * scale
    return past * more.get("times", 1), past
"""
ARGUMENTS = ("weights=init(jax.random.key(0))", "past=like(weights, 8)", "tokens=f32[8,4]")


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path / "mine.py"


def test_arguments_of_every_kind_are_said_by_name(mine: Path, capsys: Captured) -> None:
    """By position only, by name only, and of any name: once they were handed over in order."""
    said = [word for text in (*ARGUMENTS, "times=f32[]") for word in ("--shape", text)]
    shown = printed(
        capsys, "show", "mine.py:decode", *said, "-p", "normalize", "--params", "weights"
    )
    assert [(source.name, source.role) for source in Program.parse(shown).inputs] == [
        ("tokens", "arg"),
        ("past", "state"),
        ("weights/w", "param"),
        ("times", "arg"),
    ]


@pytest.mark.parametrize(
    ("what", "shape"),
    [
        ("init(jax.random.key(0))", (4, 6)),
        ("init(jax.random.PRNGKey(seed=3), 8)", (8, 6)),
        ("init(u32[2], width=SIZES.width)", (4, 6)),
        ("init(jax.random.key(0), CONFIGS['small'].width)", (4, 6)),
    ],
)
def test_arguments_of_calls_are_said_as_others_are(
    mine: Path, what: str, shape: tuple[int, ...]
) -> None:
    module = module_of(str(mine))
    made = given(lambda weights: weights, module, [f"weights={what}"]).named["weights"]
    assert isinstance(made["w"], jax.ShapeDtypeStruct) and made["w"].shape == shape


@pytest.mark.parametrize(
    ("what", "told", "hint"),
    [
        ("f32", "'f32' has no shape", "a number is f32[], a row f32[8]"),
        ("SIZES.widht", "no attribute 'widht'", "did you mean width?"),
        ("CONFIGS['smal']", "there is no 'smal' in it", "did you mean small?"),
        ("jax.rndom.key(0)", "no attribute 'rndom'", "did you mean random?"),
        ("nothing", "has no 'nothing'", "known: CONFIGS, SIZES, SimpleNamespace, decode, init"),
        ("mine.py", "'mine.py' says no argument", "for example i32[8]"),
        ("init()", "missing 1 required", "it is called as init(key, width=4)"),
        ("init(lambda: 0)", "says no argument", "for example i32[8]"),
        ("__builtins__['eval']", "'__builtins__' says no argument", "for example i32[8]"),
        ("init.__globals__", "'__globals__' says no argument", "for example i32[8]"),
    ],
)
def test_what_is_said_wrongly(mine: Path, what: str, told: str, hint: str) -> None:
    with pytest.raises(ShardwrightError) as error:
        given(lambda weights: weights, module_of(str(mine)), [f"weights={what}"])
    assert told in error.value.message and hint in error.value.hint


def test_what_is_no_array_is_static(mine: Path) -> None:
    said = given(lambda n, config: n, module_of(str(mine)), ["n=3", "config=SIZES"])
    assert said.static == ("n", "config") and said.named["config"] == SimpleNamespace(width=4)
