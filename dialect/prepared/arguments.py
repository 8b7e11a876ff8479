"""The leaves of a call, sorted into the groups of arguments that a compiled step takes.

(cache, tokens)  ->  (packed parameters, packed state, scalars of the state, other arguments)
"""

from __future__ import annotations

from typing import Any

import jax

from dialect.compiled.compiling import group_of
from dialect.prepared.state import Form, is_state
from rewrite.program import Program


class Arguments:
    """How the arguments of the user's function, parameters aside, become those of the step."""

    def __init__(self, program: Program) -> None:
        self.form = Form(program)
        self.roles = [input_.role for input_ in program.inputs if input_.role != "param"]
        self.state_groups = [
            group_of(input_) for input_ in program.step_inputs if input_.role == "state"
        ]

    def state_and_rest(self, others: list[Any]) -> tuple[list[Any], list[Any]]:
        """The leaves of the state, in either form, and those of all other arguments."""
        leaves = jax.tree.leaves(others, is_leaf=is_state)
        state: list[Any] = []
        rest: list[Any] = []
        for leaf, role in zip(leaves, self.roles, strict=True):
            (state if role == "state" else rest).append(leaf)
        return state, rest

    def groups(
        self, packed: list[Any], state: list[Any], rest: list[Any]
    ) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
        """Arrays in the order of ARGUMENT_GROUPS; the state is brought to the step's form."""
        arrays: list[Any] = []
        scalars: list[Any] = []
        for part, group in zip(self.form.parts(state), self.state_groups, strict=True):
            (arrays if group == "state" else scalars).append(part)
        return packed, arrays, scalars, rest
