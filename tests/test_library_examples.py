"""Decoders of other libraries, checkpoints, hosts and machines: every example of them runs."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import llama
from rewrite import auto_shard
from tests.kit import Captured, assert_close, at_once, printed

ROOT = Path(__file__).parents[1]
EXAMPLES = [
    path
    for folder in ("libraries", "checkpoints")
    for path in sorted((ROOT / "examples" / folder).glob("*.py"))
]
TOY = llama.CONFIGS["toy"]


def imported(name: str, library: str) -> ModuleType:
    """An example; the test is skipped where its library is not installed."""
    pytest.importorskip(library, reason=f"{library} is not installed")
    return importlib.import_module(f"examples.{name}")


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("equinox_decoder", "equinox"),
        ("flax_nnx", "flax.nnx"),
        ("hugging_face", "transformers"),
        ("pytorch", "torchax"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of the libraries
def test_a_decoder_of_a_library(name: str, library: str, capsys: Captured) -> None:
    """It is served as it is: the same logits and state on eight devices; attention is found."""
    example = imported(f"libraries.{name}", library)
    params, tokens = example.init_params(), jnp.arange(8)
    step = auto_shard(example.step, "cpu:8")
    packed = step.prepare(params, example.init_cache(8), tokens)
    state, kept = step.adapt(example.init_cache(8)), example.init_cache(8)
    alone = jax.jit(example.step)
    for _ in range(3):
        logits, state = step(packed, state, tokens)
        expected, kept = alone(params, kept, tokens)
        assert_close(logits, expected, 1e-4)
    for found, wanted in zip(jax.tree.leaves(step.restore(state)), jax.tree.leaves(kept)):
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert "Finds attention" in step.explain()
    shapes = ("params=init_params()", "cache=init_cache(8)", "tokens=i32[8]")
    said = [word for shape in shapes for word in ("--shape", shape)]
    page = printed(capsys, "explain", f"{example.__file__}:step", *said, "--target", "v5e:2x2")
    assert page.startswith("step for v5e:2x2: 4 chips")


def arguments() -> tuple[Any, Any, Any]:
    params = llama.init_params(TOY, jax.random.key(3))
    return params, llama.init_cache(TOY, 8, 64), jnp.arange(8)


def logits_of(packed: Any, step: Any) -> Any:
    _, cache, tokens = arguments()
    return step(packed, step.adapt(cache), tokens)[0]


@pytest.fixture(scope="module")
def step() -> Any:
    return auto_shard(partial(llama.decode_step, TOY), "cpu:8")


def test_weights_of_hugging_face(step: Any, tmp_path: Path) -> None:
    """Written as torch has them; the second start reads the packed file alone."""
    safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    example = imported("checkpoints.safetensors_file", "safetensors")
    params, cache, tokens = arguments()
    arrays = {}
    for path, name in example.NAMES.items():
        group, _, leaf = path.rpartition("/")
        stored = np.asarray(params[group][leaf] if group else params[leaf])
        rows = list(stored) if group else [stored]
        for number, row in enumerate(rows):
            if leaf.startswith("w") or leaf == "head":
                width = row.shape[-1] if leaf in ("wo", "w_down") else row.shape[0]
                row = row.reshape(-1, width) if leaf in ("wo", "w_down") else row.reshape(width, -1)
                row = np.ascontiguousarray(row.T)
            arrays[name.format(number)] = row
    file = tmp_path / "model.safetensors"
    safetensors.save_file(arrays, file)
    expected, _ = at_once(partial(llama.decode_step, TOY), params, cache, tokens)
    for _ in range(2):
        packed = example.packed_params(step, file, cache, tokens)
        assert_close(logits_of(packed, step), expected, 1e-4)
    assert (tmp_path / "model.packed.safetensors").exists()


def test_weights_of_a_training_run(step: Any, tmp_path: Path) -> None:
    example = imported("checkpoints.orbax_folder", "orbax.checkpoint")
    params, cache, tokens = arguments()
    example.keep(tmp_path / "kept", params)
    packed = step.prepare(example.lazy_params(tmp_path / "kept"), cache, tokens)
    expected, _ = at_once(partial(llama.decode_step, TOY), params, cache, tokens)
    assert_close(logits_of(packed, step), expected, 1e-4)


def test_several_hosts() -> None:
    """Two processes with half of the devices each: the tokens of the decoder alone."""
    command = [sys.executable, "-m", "examples.several_hosts"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    params = llama.init_params(TOY, jax.random.key(0))
    one = jax.jit(partial(llama.decode_step, TOY))
    expected = []
    for prompt in ([1, 2, 3], [4, 5]):
        cache, tokens = llama.init_cache(TOY, 1, 64), list(prompt)
        for at in range(len(prompt) + 7):
            logits, cache = one(params, cache, jnp.asarray(tokens[at : at + 1]))
            tokens += [int(logits.argmax())] if at >= len(prompt) - 1 else []
        expected.append(tokens[len(prompt) :])
    assert str(expected) in ran.stdout


def test_a_machine_of_ones_own(capsys: Captured) -> None:
    asked = ("examples/llama.py:decode_step", "--config", "8b", "--target")
    page = printed(capsys, "explain", *asked, f"{ROOT / 'examples' / 'edge.machine'}:8x8")
    assert "64 chips, mesh" in page.split("\n")[0] and "of 46.50 GiB" in page


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) <= 70 and max(map(len, lines)) <= 100
