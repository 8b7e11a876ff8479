"""How a request chooses its tokens: as columns of an array, and as a function of logits.

Where no row of a step draws, the noise and the filters are not computed; where none asks for
log-probabilities, neither are these.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dialect.arrays.dtypes import struct_of
from dialect.serving.policy import ServingError
from dialect.tokens.choice import Sampling, choose, log_probabilities
from rewrite.program import Program

LISTED = 5  # the most likely tokens that are told beside the one that was chosen
RESULTS = 2 + 2 * LISTED  # numbers of a row's result
ROW, POSITION, SEED, TOP_K, TEMPERATURE, TOP_P, TOLD = range(7)
COLUMNS = 7
_MOST_SEED = 0x7FFFFFFF


@dataclass(frozen=True)
class Choice:
    """temperature: 0 takes the most likely token; top_k, top_p: see `dialect.tokens.choice`;
    logprobs: whether log-probabilities are told.

    The noise of a token follows from the seed and its position, whatever else runs. Raises
    ServingError for what has no meaning.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    logprobs: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ServingError(f"temperature is {self.temperature}, and must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise ServingError(f"top_p is {self.top_p}, and must be more than 0, at most 1")
        if not 0 <= self.top_k <= _MOST_SEED:
            raise ServingError(f"top_k is {self.top_k}, and must be 0 or more")

    @cached_property
    def columns(self) -> list[int]:
        """All from SEED on; floats as their bits."""
        floats = np.asarray([self.temperature, self.top_p], np.float32).view(np.int32)
        return [self.seed & _MOST_SEED, self.top_k, *floats.tolist(), int(self.logprobs)]


def unasked(count: int) -> np.ndarray:
    """So many choices that nobody asks for, i32[count, COLUMNS]."""
    return np.tile(np.array((0, 0, *Choice().columns), np.int32), (count, 1))


def results(logits: Any, columns: Any) -> Any:
    """The next token of every row, i32[rows, RESULTS]: itself, the bits of its log-probability, the
    LISTED most likely tokens, the bits of theirs; zeros for what no row asks for.

    logits: [rows, vocabulary]; columns: i32[rows, COLUMNS]
    """
    temperature, top_p = _floats(columns[:, TEMPERATURE]), _floats(columns[:, TOP_P])

    def drawn() -> Any:
        keys = jax.vmap(jax.random.key)(columns[:, SEED])
        draws = columns[:, POSITION]
        asked = Sampling(keys, draws, temperature, columns[:, TOP_K], top_p)
        return choose(logits, asked).tokens

    def greedy() -> Any:
        return choose(logits, Sampling()).tokens

    tokens = jax.lax.cond(jnp.any(temperature > 0), drawn, greedy)

    def told() -> Any:
        told = log_probabilities(logits, tokens, LISTED)
        chosen, likely = _bits(told.log_probability)[:, None], _bits(told.top_log_probability)
        return jnp.concatenate([chosen, told.top_tokens, likely], axis=1)

    def untold() -> Any:
        return jnp.zeros((len(tokens), RESULTS - 1), jnp.int32)

    about = jax.lax.cond(jnp.any(columns[:, TOLD] > 0), told, untold)
    return jnp.concatenate([tokens[:, None], about], axis=1)


@dataclass(frozen=True)
class Logits:
    """The logits behind which tokens are chosen: as the plan splits the vocabulary, which is made
    longer where that does not divide it; and split into rows where chips own these."""

    vocab: int
    struct: jax.ShapeDtypeStruct  # [choices, vocabulary]
    sharding: NamedSharding
    groups: int

    @classmethod
    def of(cls, program: Program, mesh: Any, choices: int, groups: int) -> Logits:
        """Those of a program under its plan."""
        logits = struct_of(program.graph.outputs[0].type)
        split = program.plan.split("logits").get("vocab", ())
        owners = program.plan.split("cache").get("pages", ()) if groups > 1 else ()
        rows = tuple(axis for axis in owners if axis not in split)
        vocab, ways = logits.shape[-1], prod(mesh.shape[axis] for axis in split)
        struct = jax.ShapeDtypeStruct((choices, -(-vocab // ways) * ways), logits.dtype)
        return cls(vocab, struct, NamedSharding(mesh, PartitionSpec(rows, split)), groups)

    def of_choices(self, logits: Any, rows: Any) -> Any:
        """Of all logits [rows, .., vocabulary] those of some rows, counted from the first of their
        group; all in their order, where there is room for them."""
        count, length = (len(rows) // self.groups, self.struct.shape[1])
        chosen = logits.reshape(self.groups, -1, self.vocab).astype(self.struct.dtype)
        if chosen.shape[1] > count:
            chosen = jax.vmap(lambda of_group, at: of_group[at])(chosen, rows.reshape(-1, count))
        longer = ((0, 0), (0, count - chosen.shape[1]), (0, length - self.vocab))
        return jnp.pad(chosen, longer).reshape(-1, length)


def _floats(bits: Any) -> Any:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _bits(floats: Any) -> Any:
    return jax.lax.bitcast_convert_type(floats, jnp.int32)
