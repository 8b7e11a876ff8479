"""State that is initialised in the program's form, without ever holding the user's form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from dialect.prepared.state import Form


def fresh_state(form: Form, formats: Sequence[Any], init: Callable[[], Any]) -> Any:
    """`adapt(init())`, compiled as one function.

    A merged, quantised or sharded cache may fit into memory where the user's form does not.
    `formats` are the shardings of the step's state, with memory layouts if the compiler chose them.
    """
    tree = jax.tree.structure(jax.eval_shape(init))
    state = jax.jit(lambda: form.parts(jax.tree.leaves(init())), out_shardings=list(formats))
    return jax.tree.unflatten(tree, form.states(state()))
