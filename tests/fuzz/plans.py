"""Random plans on random meshes of eight devices: the sharded step equals one device's.

    python -m tests.fuzz.plans --seed 0 --count 100

Of some, parameters are prepared and the state adapted on the mesh, tokens are decoded and the state
is restored; of the others the step is compiled as one function. What one device gives is computed
in numpy (`tests.fuzz.interpreted`).
"""

from __future__ import annotations

import os

from tests.quick_xla import QUICK

os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {QUICK}")

import random
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np

from dialect.checked.compared import difference
from dialect.checked.sensitivity import forgiven
from dialect.compiled.compiling import Compilable
from dialect.machine.mesh import MeshSpec, Topology, jax_mesh
from dialect.ops.sharding import lowering_on, named_sharding
from dialect.planning.decoder import decoder_shape
from dialect.planning.fallback_plans import planned_axes
from dialect.planning.mesh_roles import MESH_ROLES, partitioning_of
from dialect.planning.plan import GROUPS, Plan
from dialect.prepared.serving import Executable
from rewrite import Program, Target, manager, trace
from rewrite.errors import InvalidProgram, ShardwrightError
from rewrite.manager import PassError
from tests.fuzz import decoders
from tests.fuzz.checks import Failure, Tally, crashed, first_line, step_of
from tests.fuzz.decoders import Decoder
from tests.fuzz.interpreted import as_numpy, interpreted_program
from tests.fuzz.runs import run

TOPOLOGY = "cpu:8"
MESHES = ((8,), (2, 4), (4, 2), (2, 2, 2), (1, 8), (8, 1), (2, 1, 4), (1, 2, 4))
PLANS_OF_ONE = 4  # decoders cost more than plans
TOKENS = 2
_FRONT = (
    "normalize, recognize",
    "normalize, recognize, carry_cache",
    "normalize, recognize, roll, carry_cache",
    "normalize, recognize, carry_cache, cache_layout, merge_dots",
    "normalize, recognize, roll, carry_cache, fold_scales, merge_dots, cache_layout",
    "normalize, recognize, first_layer{budget=10.0}",
    "normalize, recognize, carry_cache, unroll, cache_layout, first_layer{budget=10.0}",
    "normalize, recognize, quantize{weights=int8}",
    "normalize, recognize, carry_cache, quantize{weights=int8, cache=int8}, cache_layout",
)
_NEAR = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 4e-3}


@dataclass(frozen=True)
class Case:
    """A decoder, what is done to it, and how it lies over which mesh."""

    decoder: Decoder
    passes: str
    mesh: tuple[tuple[str, int], ...]
    plan: Plan | str  # a plan, or a pass that makes one
    served: bool = True

    def __str__(self) -> str:
        mesh = " ".join(f"{axis}={size}" for axis, size in self.mesh)
        return (
            f"{self.decoder}\npasses {self.passes}\nmesh {mesh}\n{self.plan}\nserved={self.served}"
        )

    @property
    def target(self) -> Target:
        return Target(TOPOLOGY, self.mesh)


# Drawing.


def of_seed(seed: int) -> Case:
    """The case of a number; some neighbours share their decoder."""
    source = random.Random(seed // PLANS_OF_ONE)
    decoder = replace(
        decoders.of_seed(source.randrange(1 << 30)),
        layers=source.choice([1, 1, 2]),
        batch=source.choice([2, 4, 8]),
        d_model=source.choice([8, 16]),
        d_ff=source.choice([8, 16, 12]),
        vocab=source.choice([8, 16, 11]),
    )
    passes, source = source.choice(_FRONT), random.Random(seed)
    mesh = tuple(zip("xyz", source.choice(MESHES)))
    case = Case(decoder, passes, mesh, "plan", seed % PLANS_OF_ONE == 0)
    kind = source.choice(("uses", "uses", "wild", "asked"))
    if kind == "asked":
        ffn = source.choice(("auto", "ws1d", "ws2d", "wg_x", "wg_xy", "wg_xyz"))
        attention = source.choice(("auto", "heads", "batch"))
        return replace(case, plan=f"plan{{ffn={ffn}, attention={attention}}}")
    drawn = _of_uses if kind == "uses" else _wild
    return replace(case, plan=drawn(source, _front(decoder, passes)[0], case))


def _of_uses(source: random.Random, program: Program, case: Case) -> Plan:
    """Any use of any mesh axis."""
    axes = planned_axes(program, case.mesh)
    uses = tuple((name, source.choice(MESH_ROLES)) for name, _ in case.mesh)
    made = partitioning_of("drawn", uses, decoder_shape(program, axes), MeshSpec(case.mesh))
    return Plan("drawn", case.mesh, made.groups, TOPOLOGY)


def _wild(source: random.Random, program: Program, case: Case) -> Plan:
    """Any split of any group that divides."""
    sizes = planned_axes(program, case.mesh).sizes()
    groups = []
    for group in GROUPS:
        free, split = [name for name, _ in case.mesh], []
        source.shuffle(free)
        for axis, size in source.sample(sorted(sizes.items()), len(sizes)):
            over = tuple(free[: source.choice([0, 1, 1, 2])])
            ways = MeshSpec(case.mesh).ways(over)
            if over and size % ways == 0 and axis in _SPLIT:
                free = free[len(over) :]
                split.append((axis, over))
        if source.random() < 0.8:
            groups.append((group, tuple(split)))
    return Plan("wild", case.mesh, tuple(groups), TOPOLOGY)


_SPLIT = ("batch", "context", "d_model", "heads", "kv_heads", "d_ff", "vocab", "experts", "d_head")


# Checking.


@lru_cache(maxsize=2)
def _front(decoder: Decoder, passes: str) -> tuple[Program, tuple[str, ...]]:
    """The program before its plan, and what refused to run."""
    args = (decoder.params(), decoder.cache(), decoder.given())
    program, refused = trace(decoder.step, *args, params=0, state=1), []
    for text in passes.split(", ") if "{" not in passes else _split(passes):
        try:
            program = manager.run(program, [step_of(text)], Target(TOPOLOGY))[0]
        except (PassError, InvalidProgram):
            raise
        except ShardwrightError as error:
            refused.append(f"{text}: {first_line(error)}")
    return program, tuple(refused)


def _split(passes: str) -> list[str]:
    """`a{x, y}, b`  ->  `a{x, y}`, `b`"""
    parts, depth = [""], 0
    for letter in passes:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def checked(seed: int, tally: Tally) -> tuple[Any, Failure | None]:
    """One case of a seed."""
    try:
        case = of_seed(seed)
    except Exception as error:
        return f"seed {seed}", crashed("front", (), error)
    return case, failure_of(case, tally)


def failure_of(case: Case, tally: Tally) -> Failure | None:
    """Where the sharded step differs from the same program in numpy, or None."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            front, refused = _front(case.decoder, case.passes)
        except Exception as error:
            return crashed("front", (case.passes,), error)
        tally.refused.update(refused)
        try:
            made = _sharded(front, case)
            tally.add(f"{made.plan.label if case.plan != 'plan' else 'plan'} planned")
        except (PassError, InvalidProgram) as error:
            return crashed("plan", (case.passes, "plan"), error.__cause__ or error)
        except ShardwrightError as error:
            tally.refused[f"plan: {first_line(error)}"] += 1
            return None
        except Exception as error:
            return crashed("plan", (case.passes, "plan"), error)
        try:
            failure = (_served if case.served else _compiled)(case, front, made)
        except ShardwrightError as error:
            tally.refused[f"compile: {first_line(error)}"] += 1
            return None
        except Exception as error:
            return crashed("serve", (case.passes, "serve"), error)
        tally.add("pairs (plan, mesh) compared")
        return failure


def _sharded(front: Program, case: Case) -> Program:
    if isinstance(case.plan, Plan):
        if Plan.parse(str(case.plan)) != case.plan:
            raise AssertionError("the plan does not read back")
        planned, passes = replace(front, plan=case.plan), ("shard", "stage", "lower")
    else:
        planned, passes = front, (case.plan, "shard", "stage", "lower")
    steps = [step_of(text) for text in passes if case.served or text != "stage"]
    return manager.run(planned, steps, case.target)[0]


def _compiled(case: Case, front: Program, made: Program) -> Failure | None:
    """One token, the whole step compiled as one function."""
    decoder, mesh = case.decoder, jax_mesh(Topology.parse(TOPOLOGY), MeshSpec(case.mesh))
    leaves = jax.tree.leaves((decoder.params(), decoder.cache(), decoder.given()))
    laid = [named_sharding(mesh, each.layout, each.type.rank) for each in made.inputs]
    with lowering_on(mesh):
        got = jax.jit(made.run, in_shardings=(laid,))(leaves)
    wanted = interpreted_program(front, leaves)
    wrong = _wrong(decoder, front, leaves, wanted, [as_numpy(each) for each in got])
    return wrong and Failure("differs: sharded", (case.passes, "compiled"), str(wrong))


def _served(case: Case, front: Program, made: Program) -> Failure | None:
    """Some tokens, on the mesh and in numpy."""
    mesh = jax_mesh(Topology.parse(TOPOLOGY), MeshSpec(case.mesh))
    decoder = case.decoder
    params, own = decoder.params(), decoder.cache()
    executable = Executable(Compilable(made, mesh, False), jax.tree.structure(params))
    packed, state = executable.packed(params), executable.adapted(own)
    expected = jax.tree.leaves(own)
    for number in range(TOKENS):
        leaves = [*jax.tree.leaves(params), *expected, decoder.given(number)]
        wanted = interpreted_program(front, leaves)
        logits, state = executable(packed, [state, decoder.given(number)])
        restored = jax.tree.leaves(executable.restored(state))
        got = [as_numpy(each) for each in (*jax.tree.leaves(logits), *restored)]
        if wrong := _wrong(decoder, front, leaves, wanted, got):
            return Failure("differs: sharded", (case.passes, "serve"), f"token {number}: {wrong}")
        expected = wanted[len(jax.tree.leaves(logits)) :]
        state = jax.tree.unflatten(jax.tree.structure(own), expected)
        state = executable.adapted(state)
    return None


def _wrong(
    decoder: Decoder, front: Program, leaves: list[Any], wanted: list[Any], got: list[Any]
) -> Any:
    near = max(_NEAR[decoder.dtype], _NEAR.get(decoder.cache_dtype, 0))
    found = difference(wanted, got, "reals", near, magnitude=1.0)
    if found is None:
        return None
    again = partial(interpreted_program, front, leaves)
    return difference(wanted, forgiven(again, wanted, got), "reals", near, magnitude=1.0)


# Making smaller.


def made_smaller(case: Any, failure: Failure) -> tuple[Any, Failure]:
    """The plainest case that fails alike."""
    smaller = isinstance(case, Case)
    while smaller:
        smaller = False
        for one in _plainer(case):
            found = failure_of(one, Tally())
            if found is not None and found.what == failure.what:
                case, failure, smaller = one, found, True
                break
    return case, failure


def _plainer(case: Case) -> Iterator[Case]:
    decoder = case.decoder
    for field in fields(decoder):
        plain = getattr(decoder, field.name) == field.default
        if not plain and field.name not in ("seed", "batch", "d_model", "d_ff", "vocab"):
            one = decoders.fitted(replace(decoder, **{field.name: field.default}))
            if one != decoder:
                yield replace(case, decoder=one)
    if case.passes != _FRONT[0]:
        yield replace(case, passes=_FRONT[0])
    if isinstance(case.plan, Plan):
        groups = case.plan.groups
        for i in range(len(groups)):
            fewer = (*groups[:i], *groups[i + 1 :])
            yield replace(case, plan=replace(case.plan, groups=fewer))


if __name__ == "__main__":
    sys.exit(bool(run("python -m tests.fuzz.plans", checked, made_smaller)))
