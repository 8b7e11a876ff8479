"""Random programs through every pass: texts read back, passes keep what they claim, types stay."""

from __future__ import annotations

import random

import jax
import pytest

from dialect.checked.compared import difference
from tests.fuzz import programs
from tests.fuzz.checks import Tally
from tests.fuzz.interpreted import interpreted_function
from tests.fuzz.pipelines import pipeline


@pytest.mark.parametrize("seed", range(4))
def test_the_oracle_in_numpy_computes_what_xla_does(seed: int) -> None:
    source = programs.of_seed(seed)
    function, args = source.function.compiled(), source.arrays
    with jax.enable_x64(source.x64):
        wanted = jax.tree.leaves(jax.jit(function)(*args))
        assert difference(wanted, interpreted_function(function, *args), "reals", 1e-3) is None


def test_a_seed_is_a_program() -> None:
    assert str(programs.of_seed(5)) == str(programs.of_seed(5)) != str(programs.of_seed(6))


def test_a_program_is_a_script() -> None:
    known: dict = {}
    exec(str(programs.of_seed(7)), known)
    outputs, state = known["step"](known["params"], known["state"], known["args"])
    assert len(outputs) > 0 and len(state) == len(known["state"])
