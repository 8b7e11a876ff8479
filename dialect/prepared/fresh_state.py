"""State made in the program's own form at once, the user's form of it never held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from dialect.prepared.state import Form


def fresh_state(form: Form, formats: Sequence[Any], init: Callable[[], Any]) -> Any:
    """What `init()` makes, as `adapt` would turn it, traced with it as one program.

    A cache that is merged, quantised or sharded may fit where the user's own does not. `formats`
    are the shardings of the step's state, or where the compiler chose more, their formats.
    """
    tree = jax.tree.structure(jax.eval_shape(init))
    made = jax.jit(lambda: form.parts(jax.tree.leaves(init())), out_shardings=list(formats))
    return jax.tree.unflatten(tree, form.states(made()))
