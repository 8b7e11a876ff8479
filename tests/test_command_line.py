"""The command line in the manner of mlir-opt: what is watched, said, coloured, completed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

import dialect.front.commands
from dialect.front.cli import MISTAKE, REFUSED, main, parser
from dialect.front.completion import script
from dialect.front.examples import EXAMPLES, EXIT_CODES
from examples import llama
from rewrite import Program
from rewrite.passbase import pass_names
from tests.kit import Captured, complaint, printed, traced_step

LLAMA = f"{Path(llama.__file__)}:decode_step"
TOY = (LLAMA, "--config", "toy", "--batch", "8", "--context", "16")

MINE = """
from dataclasses import dataclass
import jax
import jax.numpy as jnp

@dataclass
class Config:
    layers: int
    width: int

SMALL = Config(2, 4)

def weights(config):
    return [{"w": jnp.zeros((config.width, config.width))} for _ in range(config.layers)]

def memory(rows, width=4):
    return {"h": jnp.zeros((rows, width)), "at": jnp.int32(0)}

def fails():
    raise ValueError("no memory today")

def step(config: Config, weights, memory, x, scale=2):
    for layer in weights:
        x = x + jnp.tanh(x @ layer["w"]) * scale
    return x, {"h": memory["h"] + x, "at": memory["at"] + config.layers}
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A decoder of one's own, which knows nothing of conventions."""
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    (tmp_path / "config.json").write_text('{"layers": 3, "width": 4}')
    return path


def shown(capsys: Captured, mine: Path, *shapes: str) -> Program:
    """The program of `step` with these arguments."""
    said = [word for shape in shapes for word in ("--shape", shape)]
    return Program.parse(printed(capsys, "show", f"{mine}:step", *said, "-p", "normalize"))


# --- what is watched -------------------------------------------------------------------------


def watched(capsys: Captured, *argv: str) -> str:
    """What a command line writes to standard error."""
    assert main(["show", *TOY, "-p", "normalize, recognize", *argv]) == 0
    return capsys.readouterr().err


def heads(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("// ")]


def test_programs_before_and_after_passes(capsys: Captured) -> None:
    told = watched(capsys, "--print-ir-before", "recognize", "--print-ir-after", "normalize")
    assert heads(told) == ["// after normalize", "// before recognize"]
    after, before = told.split("// before recognize\n")
    assert after.removeprefix("// after normalize\n") == before


def test_programs_around_every_pass(capsys: Captured) -> None:
    told = watched(capsys, "--print-ir-before-all", "--print-ir-after-all", "--fold")
    names = ("normalize", "recognize")
    assert heads(told) == [f"// {when} {name}" for name in names for when in ("before", "after")]
    assert "    mixed = attend" in told


def test_what_passes_change(capsys: Captured) -> None:
    told = watched(capsys, "--print-ir-diff")
    assert "before normalize -> after normalize" in told
    assert "+     mixed = attend" in told.partition("before recognize")[2]


def test_every_text_is_read_back(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    assert watched(capsys, "--verify-each") == ""
    other = traced_step(llama, llama.CONFIGS["toy"], 4, 16)
    monkeypatch.setattr(Program, "parse", lambda text: other)
    assert main(["show", *TOY, "-p", "normalize", "--verify-each"]) == REFUSED
    assert "pass normalize: its text is read back as another program" in capsys.readouterr().err


# --- a decoder of one's own ------------------------------------------------------------------


def test_arguments_are_said_as_text(capsys: Captured, mine: Path) -> None:
    program = shown(
        capsys, mine, "config=SMALL", "weights=[{w: f32[4,4]}] * 2",
        "memory={h: f32[8,4], at: i32[]}", "x=f32[8,4]",
    )  # fmt: skip
    assert [(source.name, str(source.type), source.role) for source in program.inputs] == [
        ("weights/0/w", "f32[4,4]", "param"),
        ("weights/1/w", "f32[4,4]", "param"),
        ("memory/at", "i32[]", "state"),
        ("memory/h", "f32[8,4]", "state"),
        ("x", "f32[8,4]", "state"),
    ]


def test_arguments_are_what_functions_and_files_say(capsys: Captured, mine: Path) -> None:
    config = f"config={mine.with_name('config.json')}"
    program = shown(
        capsys, mine, config, "weights=weights(config)", "memory=memory(8, width=4)",
        "x=f32[8,4]", "scale=3",
    )  # fmt: skip
    assert len(program.values("param")) == 3
    assert "3.0:f32" in str(program)


def test_a_checkpoint_says_its_shapes(capsys: Captured, mine: Path, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.flax")
    path = tmp_path / "model.safetensors"
    safetensors.save_file({f"{n}.w": jnp.zeros((4, 4)) for n in range(2)}, path)
    program = shown(
        capsys, mine, "config=SMALL", f"weights={path}", "memory=memory(8)", "x=f32[8,4]"
    )
    assert [source.name for source in program.inputs][:2] == ["weights/0/w", "weights/1/w"]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("x", "'x' is no NAME=WHAT\n  try: the arguments are config, weights, memory, x, scale"),
        ("y=f32[8]", "no argument is called y"),
        ("x=f37[8]", "'f37[8]' is no type of arrays\n  try: there is no dtype f37: did you"),
        ("x=f32[8", "'f32[8' says no argument\n  try: for example i32[8]"),
        ("x=wheights()", "has no 'wheights'\n  try: did you mean weights?"),
        ("x=memory()", "memory(...) failed: memory() missing 1 required positional argument"),
        ("x=fails()", "fails(...) failed: no memory today"),
        ("x=open('x').read()", "has no 'open'"),
        ("x=", "x= says nothing"),
        ("x=f32[8,-4]", "an axis cannot have -4 elements\n  try: sizes are whole numbers"),
        ("x=f32[8.5]", "an axis cannot have 8.5 elements"),
        ("config=missing.json", "cannot read the configuration 'missing.json'"),
        ("x=f32[8,4]", "nothing says what config, weights, memory is\n  try: --shape config="),
    ],
)
def test_arguments_that_say_nothing(
    capsys: Captured, mine: Path, shape: str, expected: str
) -> None:
    assert expected in complaint(capsys, "show", f"{mine}:step", "--shape", shape)


def test_fields_that_no_configuration_has(capsys: Captured, mine: Path) -> None:
    mine.with_name("config.json").write_text('{"layers": 3, "hidden": 4}')
    config = f"config={mine.with_name('config.json')}"
    said = complaint(capsys, "show", f"{mine}:step", "--shape", config)
    assert "config cannot be a Config: " in said and "'hidden'" in said


def test_a_configuration_by_path(capsys: Captured, tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps({**vars(llama.CONFIGS["toy"]), "layers": 5}))
    text = printed(capsys, "show", LLAMA, "--config", str(path), "--batch", "2", "-p", "normalize")
    assert "%params/layers/wq : f32[5,64,16,8] param" in text


def test_programs_are_read_by_every_command(capsys: Captured, tmp_path: Path) -> None:
    path = tmp_path / "program.ir"
    path.write_text(printed(capsys, "show", *TOY, "-p", "normalize"))
    shown = printed(capsys, "show", str(path), "-p", "recognize")
    assert shown == printed(capsys, "show", *TOY, "-p", "normalize, recognize")
    assert "recognised: " in printed(capsys, "coverage", str(path), "-p", "recognize")


# --- the screen ------------------------------------------------------------------------------


def test_colour_is_as_asked(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = printed(capsys, "diff", *TOY, "-p", "normalize")
    assert "\x1b[" not in plain
    assert printed(capsys, "diff", *TOY, "-p", "normalize", "--color", "never") == plain
    monkeypatch.setenv("NO_COLOR", "1")
    coloured = printed(capsys, "diff", *TOY, "-p", "normalize", "--color", "always")
    assert "\x1b[31m" in coloured and "\x1b[32m" in coloured


def test_errors_for_machines(capsys: Captured) -> None:
    assert main(["show", *TOY, "-p", "normalise", "--json"]) == REFUSED
    out, error = capsys.readouterr()
    told = json.loads(out)["error"]
    assert told["hint"] == "did you mean normalize?" and told["where"] == "--passes:1"
    assert error.startswith("error: there is no pass 'normalise'")


@pytest.mark.parametrize("json_", [False, True])
def test_a_mistake_is_one_line_unless_it_is_debugged(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, json_: bool
) -> None:
    def broken(args: object) -> None:
        raise KeyError("nobody foresaw this")

    monkeypatch.setattr(dialect.front.commands, "run", broken)
    assert main(["show", *TOY, *(["--json"] if json_ else [])]) == MISTAKE
    out, error = capsys.readouterr()
    said = (
        "error: KeyError: 'nobody foresaw this'\n  try: --debug, which shows where it was raised\n"
    )
    assert error == said
    assert bool(out) == json_ and (not json_ or json.loads(out)["error"]["hint"] == "--debug")
    with pytest.raises(KeyError):
        main(["show", *TOY, "--debug"])


@pytest.mark.parametrize("command", [["bisect"], ["opt"], ["compile", "--target", "cpu:1"]])
def test_every_command_speaks_json(capsys: Captured, tmp_path: Path, command: list[str]) -> None:
    path = tmp_path / "program.ir"
    path.write_text(printed(capsys, "show", *TOY, "-p", "normalize"))
    name, *rest = command
    told = json.loads(
        printed(capsys, name, str(path), *rest, "-p", "recognize, stage, lower", "--json")
    )
    assert (
        told.get("departure", "") is None or [p["text"] for p in told["passes"]][0] == "recognize"
    )


# --- help and completion ---------------------------------------------------------------------


def test_every_command_has_examples_that_parse() -> None:
    for command, lines in EXAMPLES.items():
        for line, _ in lines:
            args = parser().parse_args([command, *shlex.split(line)])
            assert args.command == command


def test_help_teaches_by_example(capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert "a first look:" in text
    assert all(f"  {code:<4} {what}" in text for code, what in EXIT_CODES)
    with pytest.raises(SystemExit):
        main(["diff", "--help"])
    assert "  # two programs\n  shardwright diff before.ir after.ir" in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_options_and_passes(capsys: Captured, shell: str) -> None:
    text = printed(capsys, "completion", shell)
    assert text == script(parser(), shell)
    assert all(
        name in text for name in (*EXAMPLES, *pass_names(), "print-ir-diff", "crash-reproducer")
    )


ROUTED = """
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

def step(params, state, x):
    def experts(rows, w, counts):
        first = jax.lax.axis_index("e") * w.shape[0]
        here = jax.lax.dynamic_slice_in_dim(counts, first, w.shape[0])
        return jax.lax.psum(jax.lax.ragged_dot(rows, w, here), "e")

    of_one = jax.shard_map(experts, in_specs=P(), out_specs=P())
    y = of_one(x, params["w"], state["counts"])
    return y, {"counts": state["counts"] + 1}

def arguments():
    f32, i32 = jnp.float32, jnp.int32
    a = jax.ShapeDtypeStruct
    return {"w": a((4, 8, 8), f32)}, {"counts": a((4,), i32)}, a((16, 8), f32)
"""


def test_a_file_that_sets_a_mesh_with_explicit_axes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Passes run apart from it: JAX has no rule for the axes of a ragged product."""
    path = tmp_path / "routed.py"
    path.write_text(ROUTED)
    one = jax.make_mesh((1,), ("e",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:1])
    asked = ["explain", f"{path}:step", "--args", f"{path}:arguments", "-p", "retarget"]
    with jax.set_mesh(one):
        assert "wrote out a shard_map over e=1" in printed(
            capsys, *asked, "--target", "cpu:8", "--details"
        )
