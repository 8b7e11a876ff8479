"""`shardwright serve` as a process of its own, and OpenAI's client library against it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dialect.front.cli import main

httpx = pytest.importorskip("httpx")
openai = pytest.importorskip("openai")
pytest.importorskip("starlette")

ROOT = Path(__file__).parents[1]
DECODER = """
import jax
from examples import llama
from examples.llama import *
from tests.test_server import TEMPLATE, byte_tokenizer
CONFIGS = {"toy": Config(2, 64, 16, 8, 8, 256, 256, dtype="float32")}
def trained_params(config, unrolled=False):
    return init_params(config, jax.random.key(1))
def tokenizer():
    return byte_tokenizer()
def chat_template():
    return TEMPLATE
def stop_tokens():
    return [0]
"""


class Process:
    """A server on a port of its own."""

    def __init__(self, folder: Path) -> None:
        (folder / "decoder.py").write_text(DECODER)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "dialect.front", "serve"]
        command += [f"{folder / 'decoder.py'}:decode_step", "--config", "toy", "--mesh", "cpu:1"]
        command += ["--context", "512", "--rows", "4", "--chunk", "8", "--port", str(self.port)]
        command += ["--draft", "ngram", "--draft-length", "2"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "SHARDWRIGHT_TOKEN": "secret"}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment)
        self.url = f"http://127.0.0.1:{self.port}"

    def wait(self) -> None:
        for _ in range(600):
            assert self.process.poll() is None
            try:
                return httpx.get(f"{self.url}/health").raise_for_status() and None
            except httpx.TransportError:
                time.sleep(0.2)
        raise AssertionError("the server does not answer")

    def figure(self, name: str) -> float:
        header = {"Authorization": "Bearer secret"}
        lines = httpx.get(f"{self.url}/metrics", headers=header).text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    server = Process(tmp_path_factory.mktemp("served"))
    try:
        server.wait()
        yield server
    finally:
        server.process.kill()
        server.process.wait()


@pytest.fixture
def client(server: Process) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0)


def test_drafts_are_counted(server: Process, client: openai.OpenAI) -> None:
    client.completions.create(model="toy", prompt="abc", max_tokens=300, temperature=0)
    accepted = server.figure("shardwright_drafts_accepted_total")
    assert server.figure("shardwright_drafts_total") >= max(1, accepted)
    assert server.figure("shardwright_draft_rows_total") >= 1


def test_openais_client_holds_a_conversation(client: openai.OpenAI) -> None:
    asked = {"model": "toy", "temperature": 0, "max_tokens": 8}
    messages = [{"role": "user", "content": "hello"}]
    whole = client.chat.completions.create(messages=messages, **asked)
    text = whole.choices[0].message.content
    assert whole.usage.completion_tokens == 8 and whole.choices[0].finish_reason == "length"
    chunks = list(client.chat.completions.create(messages=messages, stream=True, **asked))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    cut = client.chat.completions.create(messages=messages, stop=text[3:5], n=2, **asked)
    assert [each.message.content for each in cut.choices] == [text[: text.index(text[3:5])]] * 2
    told = client.completions.create(prompt="ab", logprobs=2, **asked).choices[0].logprobs
    assert len(told.tokens) == len(told.top_logprobs) == 8
    assert [model.id for model in client.models.list()] == ["toy"]


def test_openais_client_understands_refusals(server: Process, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="more tokens than the 512"):
        client.completions.create(model="toy", prompt="a" * 600)
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client.completions.create(model="other", prompt="a")
    stranger = openai.OpenAI(base_url=f"{server.url}/v1", api_key="guess", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_a_client_that_leaves_is_not_waited_for(server: Process, client: openai.OpenAI) -> None:
    asked = {"model": "toy", "prompt": "a", "max_tokens": 500, "temperature": 0}  # no early end
    stream = client.completions.create(stream=True, **asked)
    next(iter(stream))
    stream.close()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=httpx.Timeout(5, read=0.001)).completions.create(**asked)
    for _ in range(100):
        if not server.figure("shardwright_running") + server.figure("shardwright_waiting"):
            break
        time.sleep(0.1)
    assert server.figure("shardwright_running") == server.figure("shardwright_pages_in_use") == 0
    assert server.figure("shardwright_compilations_total") == 0


def test_told_to_end_it_finishes_what_runs(server: Process, client: openai.OpenAI) -> None:
    asked = {"model": "toy", "prompt": "ab", "max_tokens": 400, "temperature": 0}
    stream = client.completions.create(stream=True, **asked)
    first = next(iter(stream))
    server.process.send_signal(signal.SIGTERM)
    last = [first, *stream][-1].choices[0]
    assert last.finish_reason in ("length", "stop")
    assert server.process.wait(30) == -signal.SIGTERM  # as a process ends that finished its work


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("examples/llama.py:decode_step", "--config", "toy"), "comes without a tokenizer"),
        (
            ("examples/llama.py:decode_step", "--config", "toy", "--tokenizer", "none.json"),
            "none.json is no tokenizer",
        ),
    ],
)
def test_what_is_missing_is_told(
    options: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *options, "--mesh", "cpu:1"]) == 1
    assert said in capsys.readouterr().err
