"""The server: what OpenAI's clients send, and what they are told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import pytest

from dialect.token_rows.decoder import PASSES
from examples import llama
from rewrite import Engine
from tests.test_engine import alone

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")

from starlette.testclient import TestClient
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from dialect.server.app import Limits, Server
from dialect.server.texts import Texts

CONTEXT = 32
TEMPLATE = "{% for m in messages %}{{ m['role'][0] }}{{ m['content'] }}{% endfor %}>"


def byte_tokenizer() -> Tokenizer:
    """A token is a byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


TEXTS = Texts(byte_tokenizer(), TEMPLATE)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    config = replace(llama.CONFIGS["toy"], layers=2)
    params = llama.init_params(config, jax.random.key(1))
    step, init_cache = partial(llama.decode_step, config), partial(llama.init_cache, config)
    sizes = {"max_context": CONTEXT, "rows": 4, "chunk": 8, "max_pages": 24}
    with Engine(step, params, init_cache, "cpu:1", pipeline=PASSES.format(page=4), **sizes) as made:
        yield made


@pytest.fixture
def client(engine: Engine) -> TestClient:
    return TestClient(Server(engine, TEXTS, "toy").app())


def text_of(prompt: str, count: int) -> str:
    return TEXTS.tokenizer.decode(alone(llama, TEXTS.encoded(prompt), count))


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_a_completion(client: TestClient) -> None:
    asked = {"model": "toy", "prompt": "ab", "max_tokens": 6, "temperature": 0}
    told = client.post("/v1/completions", json=asked).json()
    assert (told["object"], told["model"]) == ("text_completion", "toy")
    (choice,) = told["choices"]
    assert (choice["text"], choice["finish_reason"]) == (text_of("ab", 6), "length")
    assert {name: told["usage"][name] for name in ("prompt_tokens", "completion_tokens")} == {
        "prompt_tokens": 2,
        "completion_tokens": 6,
    }


def test_prompts_in_a_list_and_as_tokens(client: TestClient) -> None:
    asked = {"prompt": ["ab", "cd"], "max_tokens": 4, "temperature": 0}
    told = client.post("/v1/completions", json=asked).json()
    assert [each["text"] for each in told["choices"]] == [text_of("ab", 4), text_of("cd", 4)]
    tokens = client.post("/v1/completions", json=asked | {"prompt": TEXTS.encoded("ab")}).json()
    assert tokens["choices"][0]["text"] == text_of("ab", 4)


def test_a_conversation(client: TestClient) -> None:
    parts = [{"type": "text", "text": "b"}]
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": parts}]
    asked = {"messages": messages, "max_completion_tokens": 5, "temperature": 0}
    told = client.post("/v1/chat/completions", json=asked).json()
    (choice,) = told["choices"]
    assert choice["message"] == {"role": "assistant", "content": text_of("saub>", 5)}
    assert told["usage"]["prompt_tokens"] == 5


def test_without_max_tokens_a_conversation_fills_the_context(client: TestClient) -> None:
    asked = {"messages": [{"role": "user", "content": "b"}], "temperature": 0}
    told = client.post("/v1/chat/completions", json=asked).json()
    assert told["usage"]["total_tokens"] == CONTEXT


@pytest.mark.parametrize("chat", [False, True])
def test_text_streams(client: TestClient, chat: bool) -> None:
    asked: dict[str, Any] = {"stream": True, "max_tokens": 6, "temperature": 0}
    asked |= {"stream_options": {"include_usage": True}}
    asked |= {"messages": [{"role": "user", "content": "b"}]} if chat else {"prompt": "ub>"}
    path = "/v1/chat/completions" if chat else "/v1/completions"
    *chunks, last = events(client.post(path, json=asked).text)
    choices = [chunk["choices"][0] for chunk in chunks]
    texts = [each["delta"]["content"] if chat else each["text"] for each in choices]
    assert "".join(texts) == text_of("ub>", 6)
    assert [each["finish_reason"] for each in choices][-1] == "length"
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 6
    assert not chat or [("role" in each["delta"]) for each in choices] == [
        True,
        *[False] * (len(choices) - 1),
    ]


def test_choices_are_drawn_apart_and_again_alike(client: TestClient) -> None:
    asked = {"prompt": "ab", "max_tokens": 8, "temperature": 1.5, "n": 3, "seed": 7}

    def texts() -> list[str]:
        told = client.post("/v1/completions", json=asked).json()
        assert told["usage"]["prompt_tokens"] == 2
        return [choice["text"] for choice in told["choices"]]

    assert texts() == texts() and len(set(texts())) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_before_a_stop_string(client: TestClient, stream: bool) -> None:
    asked = {"prompt": "xyz", "max_tokens": 12, "temperature": 0}
    whole = client.post("/v1/completions", json=asked).json()["choices"][0]["text"]
    stop = whole[3:5]
    asked |= {"stop": [stop, "never"], "stream": stream}
    answer = client.post("/v1/completions", json=asked)
    told = events(answer.text) if stream else [answer.json()]
    assert "".join(each["choices"][0]["text"] for each in told) == whole[: whole.index(stop)]
    assert told[-1]["choices"][0]["finish_reason"] == "stop"


def test_stop_tokens_are_not_told(engine: Engine) -> None:
    tokens = alone(llama, TEXTS.encoded("ab"), 8)
    stop = next(token for token in tokens[2:] if token not in tokens[:2])
    client = TestClient(Server(engine, TEXTS, "toy", [stop]).app())
    asked = {"prompt": "ab", "max_tokens": 8, "temperature": 0}
    (choice,) = client.post("/v1/completions", json=asked).json()["choices"]
    assert choice["text"] == TEXTS.tokenizer.decode(tokens[: tokens.index(stop)])
    assert choice["finish_reason"] == "stop"


def test_log_probabilities(client: TestClient) -> None:
    asked = {"prompt": "ab", "max_tokens": 3, "temperature": 0, "logprobs": 2}
    told = client.post("/v1/completions", json=asked).json()["choices"][0]["logprobs"]
    numbers = alone(llama, TEXTS.encoded("ab"), 3)
    assert told["tokens"] == [TEXTS.of(number) for number in numbers]
    assert told["text_offset"] == [0, 1, 2]
    for text, own, likely in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"]):
        assert likely[text] == own == max(likely.values()) and len(likely) <= 2
    asked = {"messages": [{"role": "user", "content": "b"}], "max_tokens": 2, "temperature": 0}
    asked |= {"logprobs": True, "top_logprobs": 3}
    choice = client.post("/v1/chat/completions", json=asked).json()["choices"][0]
    content = choice["logprobs"]["content"]
    assert [len(each["top_logprobs"]) for each in content] == [3, 3]
    assert content[0]["top_logprobs"][0]["logprob"] == content[0]["logprob"]


def test_models_health_page_and_metrics(client: TestClient) -> None:
    assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["toy"]
    assert client.get("/v1/models/toy").json()["max_model_len"] == CONTEXT
    assert client.get("/v1/models/other").status_code == 404
    assert client.get("/health").json() == {"status": "ok"}
    assert "<title>toy</title>" in client.get("/").text
    client.post("/v1/completions", json={"prompt": "ab", "max_tokens": 2})
    told = client.get("/metrics").text
    assert "shardwright_pages 24.0" in told and "shardwright_first_token_seconds_count 1.0" in told
    assert 'shardwright_requests_total{status="200"}' in told


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        ("nonsense", 400, "the body is no JSON"),
        ("[1]", 400, "the body must be a JSON object"),
        ("[" * 10_000, 400, "the body is no JSON"),
        ({}, 400, "prompt must be a text, tokens, or a list of either"),
        ({"prompt": []}, 400, "prompt must be one, or at most 64"),
        ({"prompt": [[1], "a"]}, 400, "prompt must be a text, tokens"),
        ({"prompt": [True]}, 400, "prompt must be a text, tokens"),
        ({"prompt": [999]}, 400, "there is no token 999"),
        ({"prompt": ""}, 400, "a request needs a prompt"),
        ({"prompt": "a" * 40}, 400, "40 and 16 new ones are more tokens than the 32"),
        ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens must be a whole number from 1 to 32"),
        ({"prompt": "a", "max_tokens": True}, 400, "max_tokens must be a whole number"),
        ({"prompt": "a", "temperature": 3}, 400, "temperature must be a number from 0 to 2"),
        ({"prompt": "a", "top_p": 0}, 400, "top_p must be more than 0"),
        ({"prompt": "a", "n": 17}, 400, "n must be a whole number from 1 to 16"),
        ({"prompt": "a", "stop": ["a"] * 5}, 400, "stop must be a text, or at most 4"),
        ({"prompt": "a", "logprobs": 6}, 400, "logprobs must be a whole number from 0 to 5"),
        ({"prompt": "a", "presence_penalty": 1}, 400, "presence_penalty is not supported"),
        ({"prompt": "a", "tools": [{}]}, 400, "tools is not supported"),
        ({"prompt": "a", "tpyo": 1}, 400, "tpyo is not supported"),
        ({"prompt": "a", "model": "gpt"}, 404, "there is no model 'gpt', but 'toy'"),
    ],
)
def test_what_is_refused_is_told(client: TestClient, asked: Any, status: int, said: str) -> None:
    body = asked if isinstance(asked, str) else json.dumps(asked)
    answer = client.post("/v1/completions", content=body)
    assert (answer.status_code, said in answer.json()["error"]["message"]) == (status, True)
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "messages must be a list"),
        ({"messages": [{"role": "user"}]}, "the content of a message must be text"),
        ({"messages": ["a"]}, "a message is an object"),
        ({"messages": [{"role": "user", "content": "a"}], "top_logprobs": 1}, "needs logprobs"),
    ],
)
def test_what_is_no_conversation_is_refused(
    client: TestClient, asked: dict[str, Any], said: str
) -> None:
    answer = client.post("/v1/chat/completions", json=asked)
    assert answer.status_code == 400 and said in answer.json()["error"]["message"]


def test_without_a_template_there_is_no_conversation(engine: Engine) -> None:
    client = TestClient(Server(engine, Texts(byte_tokenizer()), "toy").app())
    asked = {"messages": [{"role": "user", "content": "a"}]}
    answer = client.post("/v1/chat/completions", json=asked)
    assert "no chat template" in answer.json()["error"]["message"]


def test_a_bearer_token(engine: Engine) -> None:
    client = TestClient(Server(engine, TEXTS, "toy", token="secret").app())
    assert client.get("/health").status_code == 200
    for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
        assert client.get("/v1/models", headers=header).status_code == 401
    header = {"Authorization": "Bearer secret"}
    assert client.get("/v1/models", headers=header).status_code == 200


def test_a_full_line_and_a_large_body_are_sent_away(engine: Engine) -> None:
    client = TestClient(Server(engine, TEXTS, "toy", limits=Limits(4, 2000)).app())
    answers = [engine.submit([1], max_new_tokens=30) for _ in range(40)]
    answer = client.post("/v1/completions", json={"prompt": "a"})
    assert answer.status_code == 429 and 1 <= int(answer.headers["Retry-After"]) <= 60
    assert answer.json()["error"]["type"] == "rate_limit_error"
    for each in answers:
        each.cancel()
    large = client.post("/v1/completions", json={"prompt": "a" * 3000})
    assert large.status_code == 413
    assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 200


def test_a_request_that_fails_is_told(engine: Engine, client: TestClient) -> None:
    executables = engine.built.executables
    run = executables.run

    def raising(*_: Any) -> Any:
        raise RuntimeError("out of order")

    executables.run = raising
    asked = {"prompt": "a", "max_tokens": 3}
    try:
        answer = client.post("/v1/completions", json=asked)
        streamed = client.post("/v1/completions", json=asked | {"stream": True})
    finally:
        executables.run = run
    assert answer.status_code == 500 and "out of order" in answer.json()["error"]["message"]
    assert "out of order" in events(streamed.text)[-1]["error"]["message"]
    engine.check()


def test_stop_strings_across_tokens_are_held_back() -> None:
    text = TEXTS.growing(["abc"])
    told = [text.add(token) for token in TEXTS.encoded("xababz")]
    assert "".join(told) + text.rest() == "xababz"
    text = TEXTS.growing(["abc"])
    assert "".join(text.add(token) for token in TEXTS.encoded("xababc")) == "xab"
    assert text.stopped
    text = TEXTS.growing()
    told = [text.add(token) for token in TEXTS.encoded("é")]
    assert told == ["", "é"]
