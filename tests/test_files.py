"""Files that are written whole: killed writers, several at once, and full disks."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import jax.numpy as jnp
import pytest

from dialect.machine.mesh import MeshSpec, Topology
from dialect.planning.search import choose
from dialect.prepared import safetensors_file
from rewrite.files import FileError, written_whole
from tests.decoder_shapes import LLAMA_8B

ARRAYS = {"w": jnp.arange(4096, dtype=jnp.float32)}

WRITER = """
import sys, time
from pathlib import Path
from rewrite.files import written_whole

with written_whole(Path(sys.argv[1])) as part, open(part, "w") as file:
    file.write("half of it")
    file.flush()
    print("written", flush=True)
    time.sleep(60)
"""


def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "own.plan"
    path.write_text("old")
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout.readline() == "written\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert path.read_text() == "old"
    with written_whole(path) as part:
        part.write_text("new")
    assert path.read_text() == "new"


def test_several_writers_leave_the_file_of_one(tmp_path: Path) -> None:
    """Threads of one process too, which had one name for their parts."""
    path, at_once = tmp_path / "front.txt", Barrier(4)

    def write(number: int) -> None:
        with written_whole(path) as part, open(part, "w") as file:
            for _ in range(100):
                file.write(f"{number}\n")
            at_once.wait()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert path.read_text() in {f"{number}\n" * 100 for number in range(4)}
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_said_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file mapped into memory that the disk has no room for ended the process (SIGBUS)."""

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "packed.safetensors"
    safetensors_file.write(path, ARRAYS, {})
    old = path.read_bytes()
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(FileError, match="cannot write .*packed.safetensors: .*No space left"):
        safetensors_file.write(path, {"w": ARRAYS["w"] + 1}, {})
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_a_limit_on_files_is_said_and_leaves_no_part_of_a_plan(tmp_path: Path) -> None:
    plan = choose(LLAMA_8B, Topology.parse("v5e:2x4"), MeshSpec.parse("x=2 y=4"))
    path = tmp_path / "own.plan"
    path.write_text("old")
    text = tmp_path / "given.plan"
    plan.save(text)
    program = (
        "import resource, sys; from rewrite.files import FileError;"
        "from dialect.planning.plan import Plan; plan = Plan.load(sys.argv[1]);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); plan.save(sys.argv[2])"
    )
    command = [sys.executable, "-c", program, str(text), str(path)]
    failed = subprocess.run(command, capture_output=True, text=True)
    assert "FileError: cannot write" in failed.stderr and "File too large" in failed.stderr
    assert path.read_text() == "old" and sorted(tmp_path.iterdir()) == [text, path]
