"""What the command reads and writes: closed streams, devices, prints and exits of a user's code."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

from dialect.front.cli import REFUSED, WRONG, main
from rewrite import trace
from rewrite.errors import TraceError
from rewrite.files import FileError, must_be_writable
from tests.kit import Captured, complaint, printed

LOUD = """
import sys
print("imported")

def weights():
    return {}

def step(w, x):
    print("traced")
    return x @ w

def ends(w, x):
    sys.exit(7)
"""
SAID = ("--shape", "w=f32[4,4]", "--shape", "x=f32[2,4]")


@pytest.fixture
def loud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loud.py").write_text(LOUD)
    return tmp_path


def test_what_a_step_prints_is_no_result(loud: Path, capsys: Captured) -> None:
    assert main(["show", "loud.py:step", *SAID, "-p", "normalize", "--json"]) == 0
    out, told = capsys.readouterr()
    assert json.loads(out)["target"] is not None
    assert told.splitlines()[:2] == ["imported", "traced"]


def test_a_step_that_ends_the_process_is_refused(loud: Path, capsys: Captured) -> None:
    assert main(["explain", "loud.py:ends", *SAID]) == REFUSED
    said = capsys.readouterr().err
    assert "error: ends cannot be traced: SystemExit: 7\n  at: " in said
    with pytest.raises(TraceError, match="SystemExit"):
        trace(lambda params: sys.exit(7), 1.0)


TREE = """program x
inputs {
  %w : f32[4] param
}
outputs {
  "0"
}
tree <PyTreeDef c198369c> -> 0
step {
  return %w
}
"""


@pytest.mark.parametrize("command", ["show", "opt", "reproduce"])
def test_an_error_in_a_text_names_its_file(loud: Path, command: str, capsys: Captured) -> None:
    (loud / "empty.ir").write_text("")
    assert "\n  at: empty.ir\n" in complaint(capsys, command, "empty.ir")


def test_a_text_whose_pytree_has_none(loud: Path, capsys: Captured) -> None:
    (loud / "tree.ir").write_text(TREE)
    said = complaint(capsys, "show", "tree.ir")
    assert said.endswith(
        "  at: tree.ir\n  try: name FILE.py:FUNCTION in the place of the program's text\n"
    )


def test_streams_that_are_closed(
    loud: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    told = "error: cannot read the program on standard input: it is closed\n"
    assert complaint(capsys, "show", "-") == told
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["show", "loud.py:step", *SAID, "-p", "normalize"]) == 0


def test_a_device_is_not_replaced_by_a_file() -> None:
    """Once the report took the place of /dev/null, for whoever may rename there."""
    with pytest.raises(FileError, match="cannot write /dev/null: it is no file"):
        must_be_writable(Path(os.devnull))


def test_a_pass_without_what_it_needs_says_so(loud: Path, capsys: Captured) -> None:
    page = printed(capsys, "explain", "loud.py:step", *SAID, "-p", "shard, plan")
    assert "run `plan` first: nothing is constrained" in page


def test_the_version(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("shardwright ")
    with pytest.raises(SystemExit) as ended:
        main(["diff", "a.ir", "b.ir", "--most", "-3"])
    assert ended.value.code == WRONG and "'-3' is no number from 1 on" in capsys.readouterr().err


def test_colour_in_a_pipe_is_all_that_a_terminal_adds(loud: Path, capsys: Captured) -> None:
    """Once a spinner went there, and hid the cursor."""
    shown = printed(capsys, "show", "loud.py:step", *SAID, "-p", "normalize", "--color", "always")
    assert "\x1b[1m" in shown and not {"\x1b[?25l", "\x1b[2K", "\r"} & set(
        re.split(r"(\x1b\[[?\d]+[lhK]|\r)", shown)
    )
