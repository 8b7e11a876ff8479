"""The `shardwright` command, as a user types it."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest

from dialect.front.cli import main
from dialect.machine.virtual_cpus import start
from examples import llama
from rewrite import Pipeline, Program
from rewrite.passbase import pass_names
from tests.kit import Captured, complaint, printed, traced_step

LLAMA = f"{os.path.relpath(llama.__file__)}:decode_step"
TOY = (LLAMA, "--config", "toy", "--batch", "8", "--context", "16")
PROGRAM = traced_step(llama, llama.CONFIGS["toy"], 8, 16)
PIPELINE = Path(llama.__file__).with_name("serve.pipeline")

OWN = """
import jax

def double(weights, x):
    return weights * x

def shapes():
    return jax.ShapeDtypeStruct((2, 3), "float32"), jax.ShapeDtypeStruct((3,), "float32")

def no_tuple():
    return 1

def fails():
    raise ValueError("no shapes today")
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    """A file of the user's own."""
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return str(path)


# --- passes ----------------------------------------------------------------------------------


def test_passes_are_listed_with_what_they_do_keep_and_take(capsys: Captured) -> None:
    lines = printed(capsys, "passes").splitlines()
    rows = [line.split() for line in lines[1:] if line[2] != " "]
    assert [row[0] for row in rows] == pass_names()
    assert ["carry_cache", "bits", "Carries", "caches"] in [row[:4] for row in rows]
    assert any(line.endswith("  weights=int8  (one of int8, int4, fp8 or none)") for line in lines)


def test_passes_for_machines(capsys: Captured) -> None:
    found = {each["name"]: each for each in json.loads(printed(capsys, "passes", "--json"))}
    assert list(found) == pass_names()
    assert found["quantize"]["keeps"] == "approx"
    assert found["unroll"]["options"] == [
        {"name": "most", "default": "256", "takes": "a whole number"}
    ]


def test_opt_lists_the_same_passes(capsys: Captured) -> None:
    assert printed(capsys, "opt", "--list-passes") == printed(capsys, "passes")


# --- show and opt ----------------------------------------------------------------------------


def test_show_prints_a_program_that_reads_back(capsys: Captured) -> None:
    text = printed(capsys, "show", *TOY, "-p", "normalize, recognize")
    assert Program.parse(text) == Pipeline.parse("normalize, recognize").run(PROGRAM)


def test_show_folds_on_request_for_people(capsys: Captured) -> None:
    text = printed(capsys, "show", *TOY, "--unrolled", "-p", "normalize, recognize", "--fold")
    assert "  3 times, reading take the first time, then block:" in text.splitlines()
    full = printed(capsys, "show", *TOY, "--unrolled", "-p", "normalize, recognize", "--full")
    assert full == printed(capsys, "show", *TOY, "--unrolled", "-p", "normalize, recognize")


def test_opt_folds_what_it_reads(capsys: Captured, tmp_path: Path) -> None:
    path = tmp_path / "program.ir"
    path.write_text(str(PROGRAM))
    text = printed(capsys, "opt", str(path), "-p", "normalize, recognize", "--fold", "--sources")
    assert any(line.lstrip().startswith("attend = attend") for line in text.splitlines())


def test_show_takes_a_phase_of_a_pipeline_file(capsys: Captured, tmp_path: Path) -> None:
    path = tmp_path / "two.pipeline"
    path.write_text("prefill { normalize }\ndecode { normalize, recognize }")
    shown = printed(capsys, "show", *TOY, "--pipeline", str(path), "--phase", "decode")
    assert shown == printed(capsys, "show", *TOY, "-p", "normalize, recognize")


def test_show_explains_each_pass(capsys: Captured) -> None:
    text = printed(capsys, "show", *TOY, "-p", "normalize, recognize, carry_cache", "--explain")
    first = [line.split()[0] for line in text.splitlines() if line and line[0] != " "]
    assert first[2:5] == ["normalize", "recognize", "carry_cache"]
    assert "    2 caches carried through a loop of 3" in text.splitlines()


def test_show_for_machines(capsys: Captured) -> None:
    command = ("show", *TOY, "-p", "normalize", "--target", "cpu:8", "--json")
    found = json.loads(printed(capsys, *command))
    assert found["mesh"] == {"x": 2, "y": 4} and found["plan"] is None
    assert [each["text"] for each in found["passes"]] == ["normalize"]
    assert (
        Program.parse(found["program"]).history == Pipeline.parse("normalize").run(PROGRAM).history
    )


def test_an_unrolled_decoder_has_no_loop(capsys: Captured) -> None:
    scanned = printed(capsys, "show", *TOY, "-p", "normalize")
    unrolled = printed(capsys, "show", *TOY, "-p", "normalize", "--unrolled")
    assert " = scan(" in scanned and " = scan(" not in unrolled


def test_tokens_make_a_prefill(capsys: Captured) -> None:
    prefill = (LLAMA.replace("decode_step", "prefill"), *TOY[1:], "--tokens", "4")
    assert "%tokens : i32[8,4] arg" in printed(capsys, "show", *prefill, "-p", "normalize")


def test_a_function_with_arguments_of_its_own(capsys: Captured, own: str) -> None:
    command = ("show", f"{own}:double", "--args", f"{own}:shapes", "-p", "normalize")
    assert "%weights : f32[2,3] param" in printed(capsys, *command)
    assert "%x : f32[3] param" in printed(capsys, *command, "--params", "1")
    assert "%x : f32[3] param" in printed(capsys, *command, "--params", "x")


def test_opt_continues_where_show_stopped(capsys: Captured, tmp_path: Path) -> None:
    path = tmp_path / "half.ir"
    path.write_text(printed(capsys, "show", *TOY, "-p", "normalize, recognize"))
    text = printed(capsys, "opt", str(path), "-p", "carry_cache, unroll")
    assert text == printed(capsys, "show", *TOY, "-p", "normalize, recognize, carry_cache, unroll")


def test_opt_reads_standard_input(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(str(PROGRAM)))
    text = printed(capsys, "opt", "-p", "normalize")
    assert Program.parse(text) == Pipeline.parse("normalize").run(PROGRAM)


def test_opt_reproduces_a_crash(capsys: Captured, tmp_path: Path) -> None:
    crash = tmp_path / "crash.ir"
    passes = 'normalize, plan{load="missing.plan"}, shard'
    main(["show", *TOY, "-p", passes, "--crash-reproducer", str(crash)])
    error = capsys.readouterr().err.splitlines()
    assert error[0] == f"pass plan{{load=missing.plan}} failed; {crash} reproduces it"
    assert complaint(capsys, "opt", str(crash)).splitlines() == error[1:]
    again = ("opt", str(crash), "--target", "cpu:8", "-p", 'plan{load="missing.plan"}')
    assert complaint(capsys, *again).splitlines() == error[1:]


def test_hooks_write_to_standard_error(capsys: Captured) -> None:
    listen = ("--print-ir-after-all", "--print-ir-before", "normalize", "--time-passes")
    assert main(["show", *TOY, "-p", "normalize", *listen]) == 0
    out, error = capsys.readouterr()
    before, after = error.split("// after normalize\n")
    assert Program.parse(before.removeprefix("// before normalize\n")) == traced_step(
        llama, llama.CONFIGS["toy"], 8, 16
    )
    assert after.startswith(out)
    words = after.removeprefix(out).split()
    assert words[:4] == ["ms", "ops", "->", "pass"]
    assert (words[7], words[-1]) == ("normalize", "total")


# --- compile ---------------------------------------------------------------------------------


def test_compile_for_machines(capsys: Captured) -> None:
    command = ("compile", *TOY, "--pipeline", str(PIPELINE), "--target", "cpu:8", "--json")
    found = json.loads(printed(capsys, *command))
    assert found["target"] == "cpu:8" and found["mesh"] == {"x": 2, "y": 4}
    assert [each["text"] for each in found["passes"][:2]] == ["retarget", "normalize"]
    assert found["plan"].startswith("plan ")
    built = found["executable"]
    assert {"s8", "f32", "s32"} == {each["dtype"] for each in built["parameters"]}
    assert built["memory"]["alias_bytes"] > 0
    assert {axis for each in built["collectives"] for axis in each["axes"]} == {"x", "y"}


def test_compile_for_a_tpu_shows_int8_weights_and_memory(capsys: Captured) -> None:
    command = ("compile", *TOY, "--pipeline", str(PIPELINE), "--target", "v5e:2x2")
    text = printed(capsys, *command)
    assert "decode_step for v5e:2x2, mesh x=2 y=2" in text
    assert " of 15.75 GiB" in text
    assert any(line.split()[:1] == ["s8"] for line in text.splitlines())
    assert "\nplan\nCHOSEN " in text
    assert "\ncollectives, per step\n" in text
    assert "rematerialization" not in text


def test_start_asks_for_cpu_devices_unless_the_user_did(monkeypatch: pytest.MonkeyPatch) -> None:
    flag = "--xla_force_host_platform_device_count"
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=here")
    start("v5e:2x4")
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=here"
    start("cpu:4")
    start("cpu-6")
    assert os.environ["XLA_FLAGS"] == f"--xla_dump_to=here {flag}=4"


# --- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ((*TOY, "-p", "normalise"), "'normalise'\n    normalise\n    ^^^^^^^^^\n"),
        ((*TOY, "-p", "normalise"), "at: --passes:1\n  try: did you mean normalize?"),
        ((*TOY, "-p", "quantize{weigths=int8}"), "try: did you mean weights?"),
        ((*TOY, "-p", "normalize", "--target", "v7:2x2"), "unknown chip 'v7'"),
        ((*TOY, "-p", "normalize", "--print-ir-before", "shrd"), "the pipeline has no pass 'shrd'"),
        ((*TOY, "--pipeline", "missing.pipeline"), "cannot read the pipeline file"),
        ((LLAMA, "-p", "normalize"), "--config NAME, known: 70b, 8b, toy"),
        ((LLAMA, "-p", "normalize", "--config", "7b"), "no configuration '7b'"),
        (("decode_step",), "'decode_step' names no function"),
        ((LLAMA.replace("decode", "deocde"),), "did you mean decode_step?"),
        (("missing.py:step",), "there is no file missing.py"),
        (("missing.module:step",), "there is no module missing.module"),
        ((*TOY, "-p", "normalize", "--params", "weights"), "params='weights' is no argument"),
        ((LLAMA.replace("decode_step", "prefill"), *TOY[1:]), "prefill cannot be traced"),
    ],
)
def test_bad_command_lines(capsys: Captured, argv: tuple[str, ...], expected: str) -> None:
    assert expected in complaint(capsys, "show", *argv)


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        ("double", None, "comes without CONFIGS, init_params, init_cache"),
        ("double", "no_tuple", "returns int, not a tuple of arguments"),
        ("double", "fails", "fails failed: ValueError: no shapes today\n  at: "),
        ("duoble", "shapes", "has no function 'duoble'\n  try: did you mean double?"),
    ],
)
def test_bad_files(
    capsys: Captured, own: str, function: str, arguments: str | None, expected: str
) -> None:
    given = ("--args", f"{own}:{arguments}") if arguments else ()
    assert expected in complaint(capsys, "show", f"{own}:{function}", *given)


def test_opt_points_into_bad_text(capsys: Captured, tmp_path: Path) -> None:
    path = tmp_path / "bad.ir"
    path.write_text("porgram step\n")
    assert "porgram step\n    ^^^^^^^" in complaint(capsys, "opt", str(path), "-p", "normalize")
    said = complaint(capsys, "opt", "missing.ir", "-p", "normalize")
    assert "cannot read the program 'missing.ir'" in said


def test_a_command_is_needed(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert "the following arguments are required: COMMAND" in capsys.readouterr().err
