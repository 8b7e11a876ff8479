"""What many tests do: trace, run passes, run programs, and compare what comes out.

One name, one meaning: what only one file does stands in that file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from rewrite import Program, runtime
from tests.fuzz.interpreted import interpreted_function, interpreted_program

# Numbers.


def run(function: Callable[..., Any], *args: Any) -> Any:
    """A function or a program on arrays, in NumPy: nothing is compiled, and no code of XLA's runs.

    The tests' programs are many, and each runs once: any compilation costs more than the numbers.
    """
    if isinstance(function, Program):
        framework, (given, made) = runtime.framework(), function.tree
        leaves = interpreted_program(function, framework.flatten(given, args))
        return framework.unflatten(made, leaves)
    shape = jax.eval_shape(function, *args)
    return jax.tree.unflatten(jax.tree.structure(shape), interpreted_function(function, *args))
