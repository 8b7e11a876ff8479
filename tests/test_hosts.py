"""Several processes of `jax.distributed` that run one engine, as processes of their own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_xla import QUICK

from dialect.engine import hosts
from dialect.engine.hosts import Hosts
from dialect.front.processes import Processes
from dialect.serving.policy import ServingError
from examples import llama

ROOT = Path(__file__).parents[1]
PROCESS = """
import json, os, signal, sys, threading, time
import jax
number, port, file, folder, told = int(sys.argv[1]), *sys.argv[2:], []
jax.distributed.initialize(f"127.0.0.1:{port}", 2, number)
from functools import partial
from examples import llama
from dialect.engine.executables import Executables
from dialect.engine.hosts import Hosts
from dialect.token_rows.packing import POSITION
from rewrite import Engine, auto_shard
from rewrite.errors import ShardwrightError
run, shared, wrote, place, ready = Executables.run, Hosts.shared, threading.Event(), 0, []
def noted(self, params, step):
    global place
    place, results = step.rows[:, POSITION].max(), run(self, params, step)
    ready[:] = results, self.pools
    return results
def killed(self, value):
    if place >= 55:
        jax.block_until_ready(ready)
        if number == 0:
            open(f"{folder}.ready", "w").close()
        else:
            wrote.wait()
            while not os.path.exists(f"{folder}.ready"):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
    return shared(self, value)
Executables.run, Hosts.shared = noted, killed
config = llama.CONFIGS["toy"]
params = llama.init_params(config, jax.random.key(0))
step, init_cache = partial(llama.decode_step, config), partial(llama.init_cache, config)
cache, tokens = init_cache(8, 16), jax.numpy.arange(8)
sharded = auto_shard(step, "cpu:8")
sharded.prepare(params, cache, tokens).save(folder)
logits, _ = sharded(sharded.load(folder, params, cache, tokens), cache, tokens)
wanted, _ = jax.jit(step)(params, init_cache(8, 16), tokens)
told.append(max(float(abs(x.data - wanted[x.index]).max()) for x in logits.addressable_shards))
sizes = {"max_context": 64, "rows": 4, "chunk": 4, "draft": "ngram", "draft_length": 2}
with Engine(step, params, init_cache, "cpu:8", **sizes) as engine:
    if number == 0:
        told.append(engine.generate([[1, 2, 3, 4, 5], [4, 5], [7] * 9], max_new_tokens=12))
        gone = engine.submit([1], max_new_tokens=50)
        gone.cancel()
        gone.ended.wait()
        told.append(gone.why)
        last = engine.submit([2], max_new_tokens=60)
        last.ended.wait()
        told.append(last.why)
    else:
        try:
            engine.submit([1])
        except ShardwrightError as error:
            told.append(error.message)
        with open(file, "w") as out:
            json.dump(told, out)
        wrote.set()
        engine.follow()
    engine.check()
    try:
        engine.submit([1], max_new_tokens=1)
    except ShardwrightError as error:
        told.append(error.message)
with open(file, "w") as out:
    json.dump(told, out)
os._exit(0)  # JAX would wait for the other one
"""


def told(folder: Path) -> list[list[Any]]:
    """What both processes tell."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    flags = f"--xla_force_host_platform_device_count=4 {QUICK}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    files = [folder / "first.json", folder / "second.json"]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(number), port, str(file), str(folder / "packed")],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, file in enumerate(files)
    ]
    for number, process in enumerate(running):
        _, errors = process.communicate(timeout=600)
        assert process.returncode == -signal.SIGKILL * number, errors[-2000:]
    return [json.loads(file.read_text()) for file in files]


def alone(prompt: list[int], count: int) -> list[int]:
    """The greedy tokens of the decoder itself."""
    config = llama.CONFIGS["toy"]
    params = llama.init_params(config, jax.random.key(0))
    step, cache = jax.jit(partial(llama.decode_step, config)), llama.init_cache(config, 1, 64)
    tokens = list(prompt)
    for at in range(len(prompt) + count - 1):
        logits, cache = step(params, cache, jnp.array(tokens[at : at + 1], jnp.int32))
        if at >= len(prompt) - 1:
            tokens.append(int(np.argmax(logits)))
    return tokens[len(prompt) :]


def test_two_processes_give_the_tokens_of_the_decoder_alone(tmp_path: Path) -> None:
    """Each has its part of packed weights and of the logits, and both make the same steps of an
    engine; then the second is killed in the middle of an answer, and the first ends with that."""
    (far, answered, left, why, closed), (away, refused) = told(tmp_path)
    assert max(far, away) < 1e-5
    prompts = [1, 2, 3, 4, 5], [4, 5], [7] * 9
    assert answered == [alone(prompt, 12) for prompt in prompts]
    assert left in ("cancelled", "length")
    lost = "process 0 of 2 hears no more of the others"
    assert (why, closed) == (f"failed: {lost}", f"the engine is closed: {lost}")
    assert refused == "requests go to process 0"


class Three(Hosts):
    """The second of three processes, beside blocks of the others."""

    def __init__(self, *messages: bytes) -> None:
        super().__init__()
        self.count, self.number, self.messages = 3, 1, list(messages)

    def _heard(self, block: bytes) -> np.ndarray:
        first = self.messages.pop(0).ljust(len(block), b"\0")
        return np.frombuffer(first + block + block, np.uint8).reshape(3, -1)


def head(length: int, *done: list[list[int]]) -> bytes:
    sums = Three()
    sums.did(*(np.array(each, np.int32) for each in done))
    return np.array([length, sums._done], np.uint32).tobytes()


def test_a_long_message_comes_in_parts() -> None:
    text = json.dumps(list(range(5000))).encode()
    parts = [text[at : at + hosts._ROOM] for at in range(0, len(text), hosts._ROOM)]
    heard = Three(*(head(len(text)) + part for part in parts)).shared(None)
    assert len(parts) == 2 and heard == list(range(5000))


def test_processes_that_made_other_steps_are_told() -> None:
    alike, other = (Three(head(2, [[1, 2]]) + b"[]") for _ in range(2))
    alike.did(np.array([[1, 2]], np.int32))
    assert alike.shared(None) == []
    other.did(np.array([[1, 3]], np.int32))
    with pytest.raises(ServingError, match="process 1 has made other steps than process 0"):
        other.shared(None)


def test_one_process_keeps_what_it_has() -> None:
    assert Hosts().shared({"now": 1.5}) == {"now": 1.5}


@pytest.mark.parametrize(
    ("text", "processes"),
    [
        (None, Processes()),
        ("auto", Processes(known_by_machine=True)),
        ("10.0.0.1:9000,4,3", Processes(4, 3, "10.0.0.1:9000")),
    ],
)
def test_processes_are_named(text: str | None, processes: Processes) -> None:
    assert Processes.of(text) == processes


@pytest.mark.parametrize("text", ["", "10.0.0.1,2,0", "here:1,2,2"])
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(ServingError, match="--hosts"):
        Processes.of(text)
