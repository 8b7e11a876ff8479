"""Random programs through every pass: texts read back, passes keep what they claim, types stay."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.checked.compared import difference
from tests.fuzz import programs
from tests.fuzz.checks import Tally, check
from tests.fuzz.interpreted import interpreted_function


@pytest.mark.parametrize("seed", range(4))
def test_the_oracle_in_numpy_computes_what_xla_does(seed: int) -> None:
    source = programs.of_seed(seed)
    function, args = source.function.compiled(), source.arrays
    with jax.enable_x64(source.x64):
        wanted = jax.tree.leaves(jax.jit(function)(*args))
        assert difference(wanted, interpreted_function(function, *args), "reals", 1e-3) is None


def test_the_oracle_stops_each_row_of_a_vmapped_loop_by_itself() -> None:
    def doubled(times):
        return jax.lax.while_loop(lambda s: s[1] < times, lambda s: (s[0] * 2, s[1] + 1), (1.0, 0))

    values, counts = interpreted_function(jax.vmap(doubled), jnp.array([3, 0, 1]))
    assert values.tolist() == [8.0, 1.0, 2.0] and counts.tolist() == [3, 0, 1]


@pytest.mark.parametrize("seed", range(0, 40, 10))
def test_every_pass_keeps_what_it_claims_of_random_programs(seed: int) -> None:
    for each in range(seed, seed + 10):
        source, failure = programs.checked(each, Tally())
        assert failure is None, f"{failure}\n{source}"


def test_a_seed_is_a_program() -> None:
    assert str(programs.of_seed(5)) == str(programs.of_seed(5)) != str(programs.of_seed(6))


def test_a_python_number_stays_as_wide_in_the_reals_as_it_was_traced() -> None:
    def step(w: jax.Array, number: int) -> tuple:
        return w, jnp.where(w[0] > 0, number, number)

    assert check(step, (np.ones(2, "float32"), 2), ("normalize",), Tally(), state=None) is None


def test_what_overflows_is_compared_in_the_reals() -> None:
    def step(w: jax.Array) -> jax.Array:
        square = jnp.mean(w * w) - jnp.mean(w) ** 2
        return square == square

    w = np.asarray([3e38, 1], "float32")
    assert check(step, (w,), ("normalize",), tally := Tally()) is None
    assert tally.counts["compared reals in the reals"] == 1


def test_a_program_is_a_script() -> None:
    known: dict = {}
    exec(str(programs.of_seed(7)), known)
    outputs, state = known["step"](known["params"], known["state"], known["args"])
    assert len(outputs) > 0 and len(state) == len(known["state"])
