"""Completion, typed in real shells: bash, zsh and fish, where they are installed."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dialect.front.cli import parser
from dialect.front.completion import script

TYPED = {
    "di": "diff",
    "show --print-ir-d": "show --print-ir-diff",
    "diff --pass recog": "diff --pass recognize",
    "show --print-ir-after carry": "show --print-ir-after carry_cache",
    "explain --color al": "explain --color always",
    "explain min": "explain mine.py",
    "explain --pipeline mi": "explain --pipeline mine.py",
    "completion z": "completion zsh",
}


def in_bash(home: Path, typed: str) -> str:
    words = typed.split()
    asked = (
        f"source ./completion; COMP_WORDS=(shardwright {typed}); COMP_CWORD={len(words)};"
        " _shardwright; echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, cwd=home)
    return " ".join([*words[:-1], *done.stdout.split()])


def in_zsh(home: Path, typed: str) -> str:
    """Typed into an interactive zsh, the tab key included: a function writes what it was given."""
    lines = [
        "autoload -U compinit; compinit -D -u",
        "source ./completion",
        "shardwright() { print -r -- $@ > given }",
        f"shardwright {typed}\t",
        "exit",
    ]
    screen, terminal = pty.openpty()
    shell = subprocess.Popen(
        ["zsh", "-f", "-i"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=os.environ | {"HOME": str(home), "ZDOTDIR": str(home), "TERM": "dumb"},
        cwd=home,
        start_new_session=True,
    )
    os.close(terminal)
    os.write(screen, "".join(f"{line}\n" for line in lines).encode())
    try:
        while os.read(screen, 4096):
            pass
    except OSError:  # the shell has gone
        pass
    shell.wait()
    os.close(screen)
    return (home / "given").read_text().strip()


def in_fish(home: Path, typed: str) -> str:
    asked = f"source ./completion; complete -C 'shardwright {typed}'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", asked],
        capture_output=True,
        text=True,
        cwd=home,
        env=os.environ | {"HOME": str(home)},
    )
    found = [line.split("\t")[0] for line in done.stdout.splitlines()]
    return " ".join([*typed.split()[:-1], *found])


@pytest.mark.parametrize("typed", TYPED)
@pytest.mark.parametrize("shell", [in_bash, in_zsh, in_fish], ids=lambda shell: shell.__name__[3:])
def test_a_shell_completes(shell: Callable[[Path, str], str], typed: str, tmp_path: Path) -> None:
    name = shell.__name__[3:]
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    (tmp_path / "completion").write_text(script(parser(), name))
    (tmp_path / "mine.py").write_text("")
    assert shell(tmp_path, typed) == TYPED[typed]
