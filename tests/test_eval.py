"""`shardwright eval`: what passes cost in accuracy, on the trained decoder of examples/tiny."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dialect.front.cli import main
from dialect.measured.accuracy import accuracy
from dialect.measured.evaluation import Evaluation, Measured, Prefixes, interface, over_text
from dialect.measured.tasks import Source, Task, tasks
from dialect.user import usercode
from dialect.user.usercode import Sizes, Trained
from examples.tiny import model
from rewrite import Pipeline, Program, manager, trace
from rewrite.program import ROLES
from rewrite.target import Target

MODEL = os.path.relpath(model.__file__)
ROWS, CONTEXT, NEW = 8, 256, 64
SERVING = "normalize, recognize, carry_cache, quantize, stage, lower"
Captured = pytest.CaptureFixture[str]
Found = dict[str, dict[str, Any]]


def sizes(config: str = "mha", **others: Any) -> Sizes:
    given = {"batch": ROWS, "context": CONTEXT, "tokens": NEW, "unrolled": False} | others
    return Sizes(config=config, **given)


def evaluated(*argv: str, config: str = "mha") -> tuple[str, ...]:
    """A command line that measures `prefill` in chunks."""
    named = ("eval", f"{MODEL}:prefill", "--config", config, "--tokens", str(NEW))
    return (*named, "--batch", str(ROWS), *argv)


_known: dict[tuple[str, ...], list[dict[str, Any]]] = {}


@pytest.fixture
def measured(capsys: Captured) -> Callable[..., Found]:
    """The rows of one configuration by pass; a command line is run once for all tests."""

    def rows(passes: str, *argv: str, config: str = "mha", of: str = "mha") -> Found:
        called = evaluated("-p", passes, "--json", *argv, config=config)
        if called not in _known:
            assert main(called) == 0, capsys.readouterr().err
            _known[called] = json.loads(capsys.readouterr().out)["rows"]
        return {each["pass"]: each for each in _known[called] if each["config"] == of}

    return rows


# The trained decoder.


def test_it_has_learned_python(measured: Callable[..., Found]) -> None:
    assert measured(SERVING)["original"]["bits_per_byte"] < 2.4


def test_its_checkpoints_are_small_and_its_texts_apart() -> None:
    files = {each.checkpoint for name, each in model.CONFIGS.items() if name != "distilled"}
    assert sum((model.FOLDER / file).stat().st_size for file in files) < 4_000_000
    held_out, others = model.text(held_out=True), model.text(held_out=False)
    assert 0.01 < len(held_out) / len(others) < 0.06
    assert held_out[:2000] not in others


def test_exact_passes_cost_nothing(measured: Callable[..., Found]) -> None:
    found = measured(SERVING)
    original = found["original"]
    assert original["change"] == 0 and original["kl_nats_per_byte"] == 0
    for name, keeps in {"normalize": "reals", "recognize": "reals", "carry_cache": "bits"}.items():
        row = found[name]
        assert row["keeps"] == keeps
        assert row["agreement"] == 1 and row["kl_nats_per_byte"] < 1e-9
        assert row["bits_per_byte"] == pytest.approx(original["bits_per_byte"], rel=1e-6)
        assert row["param_bytes"] == original["param_bytes"]


def test_int8_weights_change_bits_per_byte_by_half_a_percent_at_most(
    measured: Callable[..., Found],
) -> None:
    found = measured(SERVING)
    assert found["quantize"]["keeps"] == "approx"
    for row in (found["quantize"], found["stage"], found["lower"]):
        assert abs(row["change"]) <= 0.005
        assert 0.95 < row["agreement"] < 1
        assert 1e-7 < row["kl_nats_per_byte"] < 5e-3


@functools.cache
def decoder() -> tuple[Program, Trained]:
    function, arguments = usercode.decoder(f"{MODEL}:prefill", sizes())
    return trace(function, *arguments), usercode.trained(f"{MODEL}:prefill", sizes())


def after_all(passes: str) -> Measured:
    """Of passes between recognition and lowering only the end, beside the original."""
    program, trained = decoder()
    prefixes, target = Prefixes(), Target("cpu:1", (("x", 1),))
    steps = Pipeline.parse(f"normalize, recognize, carry_cache, {passes}, stage, lower").passes()
    manager.run(program, steps, target, (prefixes,))
    prefixes.programs[1:-1] = []
    _, last = Evaluation("prefill").measure(trained, prefixes, target)
    return last


# The largest change of bits per byte, and the largest share of parameters and cache.
FORMS = {
    "quantize{weights=int8, activations=int8}": (0.015, 0.35, 1.0),
    "quantize{weights=none, cache=int8}": (0.005, 1.0, 0.35),
    "quantize{weights=int4, group=64}": (0.03, 0.25, 1.0),
}


@pytest.mark.parametrize("passes", FORMS)
def test_quantised_forms_cost_little_and_save_much(passes: str) -> None:
    found, (change, params, cache) = after_all(passes), FORMS[passes]
    whole = {role: sum(v.type.bytes for v in decoder()[0].values(role)) for role in ROLES}
    assert found.param_bytes <= params * whole["param"]
    assert found.cache_bytes <= cache * whole["state"]
    assert 1e-6 < abs(found.change) <= change
    assert 0.9 < found.accuracy.agreement < 1
    assert 1e-6 < found.accuracy.kl_nats_per_byte < 0.05


def test_errors_of_weights_are_told_by_parameter(tmp_path: Path, capsys: Captured) -> None:
    """A table of twos on the diagonal: 2 becomes 127 steps of 2 / 127.5, half a step too little."""
    argv = list(written(tmp_path))
    argv[argv.index("normalize")] = "normalize, recognize, quantize{vocab=true}, stage, lower"
    assert main(argv) == 0
    (found,) = json.loads(capsys.readouterr().out)["weight_errors"]
    named = [found.pop(each) for each in ("config", "name", "form")]
    assert named == ["bytes", "params/table", "int8/256"]
    error = 1 / 127.5
    wanted = {"max": error, "rms": error / 16, "snr_db": 20 * math.log10(2 / error)}
    assert found == pytest.approx(wanted, rel=1e-4)
    assert main(argv[:-1]) == 0
    *_, title, columns, row = capsys.readouterr().out.strip().split("\n")
    assert title == "errors of quantised weights, bytes"
    assert columns.split() == "parameter form max error rms error signal to noise".split()
    assert row.split() == ["params/table", "int8/256", "0.00784", "0.00049", "48.1", "dB"]


def test_more_exact_passes() -> None:
    found = after_all("fold_scales, merge_dots")
    assert abs(found.change) < 1e-6
    assert found.accuracy.agreement == 1 and found.accuracy.kl_nats_per_byte < 1e-9


def test_bytes_are_those_that_a_step_reads(measured: Callable[..., Found]) -> None:
    found = measured(SERVING)
    tables = 2 * 256 * 128 * 4  # embedding and head, left alone
    norms = (2 * 4 + 1) * 128 * 4
    weights = 4 * (4 * 128 * 128 + 3 * 128 * 384)
    scales = 4 * (3 * 128 + 128 + 2 * 384 + 128) * 4  # one for each output channel
    assert found["original"]["param_bytes"] == tables + norms + 4 * weights
    assert found["quantize"]["param_bytes"] == tables + norms + weights + scales
    cache = 2 * 4 * ROWS * CONTEXT * 128 * 4 + 4  # keys, values, the position
    assert {row["cache_bytes"] for row in found.values()} == {cache}


def test_uptraining_recovers_what_merged_heads_cost(measured: Callable[..., Found]) -> None:
    """Multi-head to multiquery, the mean of all heads: before and after 5 % of the steps."""
    configs = ("mha", "merged", "mqa")
    rows = [measured("normalize", config=",".join(configs), of=each) for each in configs]
    bits = [each["original"]["bits_per_byte"] for each in rows]
    assert bits[0] < bits[2] < bits[1]
    assert bits[1] - bits[2] > 0.6 * (bits[1] - bits[0])
    cached = [each["original"]["cache_bytes"] - 4 for each in rows]
    assert cached[0] == 8 * cached[1] == 8 * cached[2]


def test_the_pass_merges_heads_as_the_configuration_does(measured: Callable[..., Found]) -> None:
    merged = measured("normalize", config="mha,merged,mqa", of="merged")["original"]
    found = after_all("cache_layout{kv_heads=1, merge=mean}")
    assert found.accuracy.bits_per_byte == pytest.approx(merged["bits_per_byte"], rel=1e-5)
    assert found.accuracy.kl_nats_per_byte == pytest.approx(merged["kl_nats_per_byte"], rel=1e-4)
    assert found.cache_bytes == merged["cache_bytes"]
    assert found.param_bytes == merged["param_bytes"]


def text_rows(trained: Trained) -> Task:
    """The held-out text of bytes."""
    sizes = trained.sizes
    return tasks((), Source.of(trained, vocab=256), sizes.batch, sizes.context)[0]


def test_a_step_is_measured_through_its_cache() -> None:
    """Token by token, each step reading what those before it wrote, the logits are the same."""
    trained = usercode.trained(f"{MODEL}:prefill", sizes(batch=2, context=64))
    rows = text_rows(trained)
    found = []
    for name, tokens in (("decode_step", None), ("prefill", 16), ("prefill", 64)):
        step, arguments = usercode.decoder(
            f"{MODEL}:{name}", sizes(batch=2, context=64, tokens=tokens)
        )
        program = trace(step, *arguments)
        steps, targets = rows.steps(*interface(program))
        assert np.array_equal(targets.swapaxes(0, 1).reshape(2, 64), rows.tokens[:, 1:])
        made = over_text(program, trained.params, trained.cache)(steps)
        found.append(made.swapaxes(0, 1).reshape(2, 64, 256))
    for each in found[:2]:
        np.testing.assert_allclose(each, found[2], atol=2e-4)


# The numbers, where they can be worked out by hand.


def test_accuracy_of_known_logits() -> None:
    half = np.log(np.array([0.5, 0.25, 0.25], np.float32))
    other = np.log(np.array([0.25, 0.5, 0.25], np.float32))
    original = np.stack([half, half])[None, :, None]  # one step of two rows
    found = accuracy(np.stack([half, other])[None, :, None], original, np.array([[[0], [0]]]), 4.0)
    assert found.bits_per_byte == pytest.approx((1 + 2) / 8)
    assert found.agreement == found.right == 0.5
    assert found.kl_nats_per_byte == pytest.approx(0.25 * math.log(2) / 8)


def test_rows_are_spread_over_the_text() -> None:
    text = bytes(range(100))
    found = text_rows(_trained(text, rows=3, context=9))
    assert found.tokens[:, 0].tolist() == [0, 45, 90]
    assert found.tokens[2].tolist() == list(range(90, 100))
    assert found.asked.all() and found.asked.shape == (3, 9)


def _trained(text: bytes, rows: int, context: int) -> Trained:
    return Trained(sizes(batch=rows, context=context), None, None, text, None)


BIGRAM = """
import jax.numpy as jnp

CONFIGS = {"bytes": 256, "pairs": 4}

def init_params(config, key, unrolled=False):
    return {"table": jnp.zeros((config, config))}

def init_cache(config, batch, context, unrolled=False):
    return {"seen": jnp.zeros(batch)}

def step(config, params, cache, tokens):
    return params["table"][tokens], {"seen": cache["seen"] + 1}

def trained_params(config, unrolled=False):
    return {"table": 2.0 * jnp.eye(config)}

def held_out():
    return b"aabbccdd" * 100
"""


def written(tmp_path: Path, *changes: tuple[str, str]) -> tuple[str, ...]:
    """A command line for BIGRAM with these changes."""
    text = BIGRAM
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    path = tmp_path / "bigram.py"
    path.write_text(text)
    named = ("eval", f"{path}:step", "--config", "bytes", "--batch", "4", "--context", "16")
    return (*named, "-p", "normalize", "--json")


def test_bits_per_byte_of_a_bigram(tmp_path: Path, capsys: Captured) -> None:
    """In the text every second byte repeats the one before it."""
    assert main(written(tmp_path)) == 0
    found = json.loads(capsys.readouterr().out)["rows"]
    nats = math.log(math.exp(2) + 255)
    for row in found:
        assert row["bits_per_byte"] == pytest.approx((nats - 2 / 2) / math.log(2), rel=1e-6)
        assert (row["agreement"], row["kl_nats_per_byte"]) == (1, 0)
        assert row["cache_bytes"] == 4 * 4


PAIRS = (
    "def held_out",
    "def encode(text):\n    return [b - 97 for b in text[::2]]\n\ndef held_out",
)


def test_tokens_of_several_bytes(tmp_path: Path, capsys: Captured) -> None:
    """With `encode` a token stands for two bytes, and none repeats the one before it."""
    argv = [*written(tmp_path, PAIRS)]
    argv[argv.index("bytes")] = "pairs"
    assert main(argv) == 0
    nats = math.log(math.exp(2) + 3)
    for row in json.loads(capsys.readouterr().out)["rows"]:
        assert row["bits_per_byte"] == pytest.approx(nats / 2 / math.log(2), rel=1e-6)


def test_other_text(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "same").write_bytes(b"x" * 200)
    assert main((*written(tmp_path), "--text", str(tmp_path / "same"))) == 0
    nats = math.log(math.exp(2) + 255)
    found = json.loads(capsys.readouterr().out)
    assert found["rows"][0]["bits_per_byte"] == pytest.approx((nats - 2) / math.log(2), rel=1e-6)
    assert found["measured_on"] == "64 predictions in 4 rows"


def test_the_table(tmp_path: Path, capsys: Captured) -> None:
    assert main(written(tmp_path)[:-1]) == 0
    title, columns, *rows = capsys.readouterr().out.strip().split("\n")
    assert title == "step, 64 predictions in 4 rows, compared with bytes before any pass"
    assert columns.split() == (
        "configuration after keeps bits per byte change top-1 agreement "
        "KL, nats per byte parameters cache".split()
    )
    numbers = ["6.5929", "+0.000", "%", "100.00", "%", "0.0e+00", "256.00", "KiB", "16", "B"]
    assert [row.split() for row in rows] == [
        ["bytes", *numbers],
        ["normalize", "reals", *numbers],
    ]


# At the door.

WRONG = {
    "comes without trained_params": ("trained_params", "other_params"),
    "comes without held_out": ("held_out", "other_text"),
    "returns table as float32[255, 255], init_params as float32[256, 256]": (
        "2.0 * jnp.eye(config)",
        "jnp.eye(config - 1)",
    ),
    "trained_params of": ("2.0 * jnp.eye(config)", "jnp.load('nowhere.npy')"),
    "returns PyTreeDef": ('return {"table": 2.0', 'return {"tables": 2.0'),
    "held_out of": ('b"aabbccdd" * 100', '"aabbccdd" * 100'),
    "the text has 8 tokens, 4 rows of 17 take more": ("* 100", ""),
    "bytes are not tokens of a vocabulary of 300": ('"bytes": 256', '"bytes": 300'),
    "the text has a token 400, the vocabulary only 256": (
        "def held_out",
        "def encode(text):\n    return [400] * 100\n\ndef held_out",
    ),
    "the step must take tokens and a cache": (
        'params["table"][tokens], {"seen": cache["seen"] + 1}',
        'params["table"][tokens]',
    ),
}


@pytest.mark.parametrize("told", WRONG)
def test_what_is_missing_or_wrong_is_said(told: str, tmp_path: Path, capsys: Captured) -> None:
    assert main(written(tmp_path, WRONG[told])) == 1
    assert told in capsys.readouterr().err


def test_a_context_that_steps_do_not_fill(capsys: Captured) -> None:
    assert main(evaluated("--context", "100", "-p", "normalize")) == 1
    told = "a context of 100 is not a multiple of 64 tokens per step"
    assert told in capsys.readouterr().err


def test_arguments_are_not_trained(capsys: Captured) -> None:
    assert main(("eval", f"{MODEL}:prefill", "--args", f"{MODEL}:held_out")) == 1
    assert "--args tells no trained parameters" in capsys.readouterr().err


def test_text_that_cannot_be_read(tmp_path: Path, capsys: Captured) -> None:
    assert main((*written(tmp_path), "--text", str(tmp_path / "nowhere"))) == 1
    assert "cannot read the text " in capsys.readouterr().err


def test_configurations_of_other_vocabularies(tmp_path: Path, capsys: Captured) -> None:
    argv = [*written(tmp_path, PAIRS, ("b - 97", "(b - 97) % 4"))]
    argv[argv.index("bytes")] = "bytes,pairs"
    assert main(argv) == 1
    assert "cannot be compared" in capsys.readouterr().err
