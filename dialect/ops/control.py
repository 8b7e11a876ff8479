"""Control flow: `scan`, `while` and `cond`, whose bodies are regions.

They go out through the public `jax.lax`, never by building a jaxpr. The regions take their
arguments in the order of JAX's bodies:

    scan   (consts, carry, xs)          body(consts, carry, x) -> carry, y
    while  (cond consts, body consts, carry)
    cond   (index, operands)            one region per branch
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dialect.arrays.dtypes import dtype_of
from dialect.arrays.evaluate import evaluate
from rewrite import opdef
from rewrite.ir import Graph, Op, Type, Value
from rewrite.opdef import OpDef
from rewrite.signature import Signature, opaque

CONTROL_FLOW = ("scan", "while", "cond")

# The platforms of every branch of a choice by platform; None stands for all others.
Platforms = tuple[tuple[str, ...] | None, ...] | None


def scan_parts(op: Op) -> tuple[slice, slice, slice]:
    """Which arguments of a scan are consts, carry and xs."""
    consts, carry = op["consts"], op["consts"] + op["carry"]
    return slice(0, consts), slice(consts, carry), slice(carry, len(op.args))


def given_inside(op: Op) -> list[dict[Value, tuple[Value, bool]]]:
    """For every region of an op: {input: (argument, whether it is carried between iterations)}."""
    if op.name == "scan":
        _, carried, _ = scan_parts(op)
        numbers = [[(i, carried.start <= i < carried.stop) for i in range(len(op.args))]]
    elif op.name == "while":
        first, fixed = op["cond_consts"], op["cond_consts"] + op["body_consts"]
        carry = [(i, True) for i in range(fixed, len(op.args))]
        consts = range(first), range(first, fixed)
        numbers = [[*((i, False) for i in numbers_), *carry] for numbers_ in consts]
    else:
        numbers = [[(i, False) for i in range(1, len(op.args))] for _ in op.regions]
    return [
        {inner: (op.args[i], carried) for inner, (i, carried) in zip(region.inputs, numbers_)}
        for region, numbers_ in zip(op.regions, numbers)
    ]


def remade_scan(
    op: Op, body: Graph, consts: Sequence[Value], carry: Sequence[Value], xs: Sequence[Value]
) -> Op:
    """The loop `op` with another body and other arguments; what the body never reads is dropped.

    A carry stays even when unread: it is a result of the loop.
    """
    used = set(body.users) | set(body.outputs)
    fixed, carried = len(consts), len(carry)
    keep = [
        i for i, value in enumerate(body.inputs) if value in used or fixed <= i < fixed + carried
    ]
    args = (*consts, *carry, *xs)
    return opdef.build(
        "scan",
        *(args[i] for i in keep),
        regions=(Graph(tuple(body.inputs[i] for i in keep), body.outputs),),
        origin=op.origin,
        consts=sum(i < fixed for i in keep),
        carry=carried,
        **{name: op[name] for name in ("length", "reverse", "unroll")},
    )


def remade_while(op: Op, body: Graph, consts: Sequence[Value]) -> Op:
    """The `while` `op` with another body and other constants for it; what the body never reads of
    these is dropped."""
    first = op["cond_consts"]
    used, carry = set(body.users) | set(body.outputs), op.args[first + op["body_consts"] :]
    keep = [i for i in range(len(consts)) if body.inputs[i] in used]
    inputs = (*(body.inputs[i] for i in keep), *body.inputs[len(consts) :])
    return opdef.build(
        "while",
        *(*op.args[:first], *(consts[i] for i in keep), *carry),
        regions=(op.regions[0], Graph(inputs, body.outputs)),
        origin=op.origin,
        cond_consts=first,
        body_consts=len(keep),
    )


def _scan(*args: Any, regions: tuple[Graph, ...], consts: int, carry: int, **options: Any) -> Any:
    body = regions[0]
    fixed, init, xs = args[:consts], args[consts : consts + carry], args[consts + carry :]

    def step(state: tuple, x: tuple) -> tuple[tuple, tuple]:
        out = evaluate(body, (*fixed, *state, *x))
        return tuple(out[:carry]), tuple(out[carry:])

    init = tuple(_like(value, type_) for value, type_ in zip(init, _carry_types(body, carry)))
    last, ys = jax.lax.scan(step, init, tuple(xs), **options)
    return [*last, *ys]


def _like(value: Any, type_: Type) -> Any:
    """Carries must not be Python scalars: their body returns an array, weakly typed or not."""
    if hasattr(value, "dtype"):
        return value
    return jnp.asarray(value) if type_.weak else jnp.asarray(value, dtype_of(type_.dtype))


def _carry_types(body: Graph, carry: int) -> tuple[Type, ...]:
    return tuple(value.type for value in body.outputs[:carry])


def _infer_scan(
    types: tuple[Type, ...], attrs: dict[str, Any], regions: tuple[Graph, ...]
) -> tuple[Type, ...]:
    body = regions[0]
    consts, carry, length = (_count(attrs, name) for name in ("consts", "carry", "length"))
    if type(attrs["reverse"]) is not bool or type(attrs["unroll"]) not in (bool, int):
        raise ValueError("`reverse` is true or false, `unroll` that or a whole number")
    if consts + carry > len(types):
        raise ValueError(f"it has {len(types)} arguments, and reads {consts} and carries {carry}")
    scanned = types[consts + carry :]
    for type_ in scanned:
        if type_.shape[:1] != (length,):
            raise ValueError(f"a scanned argument is {type_}, but the length is {length}")
    rows = [Type(t.dtype, t.shape[1:]) for t in scanned]
    must_take("its body", body, (*types[: consts + carry], *rows))
    out = [value.type for value in body.outputs]
    _must_be("what its body carries", out[:carry], types[consts : consts + carry])
    stacked = [Type(t.dtype, (length, *t.shape)) for t in out[carry:]]
    return (*out[:carry], *stacked)


def _count(attrs: dict[str, Any], name: str) -> int:
    if type(attrs[name]) is not int or attrs[name] < 0:
        raise ValueError(f"`{name}` is a number from 0, not {attrs[name]}")
    return attrs[name]


def must_take(what: str, region: Graph, types: Sequence[Type]) -> None:
    """Raises ValueError unless a region takes arguments of these types, weak or not."""
    _must_be(f"what {what} takes", [value.type for value in region.inputs], types)


def _must_be(what: str, actual: Sequence[Type], expected: Sequence[Type]) -> None:
    pairs = [[f"{t.dtype}{list(t.shape)}" for t in group] for group in (actual, expected)]
    if pairs[0] != pairs[1]:
        one, other = (", ".join(group) or "nothing" for group in pairs)
        raise ValueError(f"{what} is {one}, and should be {other}")


def _while(*args: Any, regions: tuple[Graph, ...], cond_consts: int, body_consts: int) -> Any:
    cond, body = regions
    for_cond, for_body = args[:cond_consts], args[cond_consts : cond_consts + body_consts]
    init = args[cond_consts + body_consts :]
    init = tuple(_like(v, t) for v, t in zip(init, _carry_types(body, len(init))))

    def goes_on(state: tuple) -> Any:
        return evaluate(cond, (*for_cond, *state))[0]

    def step(state: tuple) -> tuple:
        return tuple(evaluate(body, (*for_body, *state)))

    def step_of_some(state: tuple) -> tuple:
        """What `jax.vmap` makes of a loop: every row stops by its condition."""
        rows = goes_on(state)
        return tuple(_rows_of(rows, new, old) for new, old in zip(step(state), state))

    if cond.outputs[0].type.rank:
        return list(jax.lax.while_loop(lambda s: jnp.any(goes_on(s)), step_of_some, init))
    return list(jax.lax.while_loop(goes_on, step, init))


def _rows_of(rows: Any, new: Any, old: Any) -> Any:
    """`new` in the rows that are true, `old` in the others. Any dtype, PRNG keys too."""
    places = range(rows.ndim)
    return jax.lax.select(jax.lax.broadcast_in_dim(rows, jnp.shape(new), places), new, old)


def _cond(
    index: Any, *operands: Any, regions: tuple[Graph, ...], platforms: Platforms = None
) -> Any:
    branches = [lambda *args, region=region: tuple(evaluate(region, args)) for region in regions]
    if platforms is not None:
        return list(_of_platform(branches, platforms, operands))
    if jax.typeof(index).dtype == bool:
        return list(jax.lax.cond(index, branches[1], branches[0], *operands))
    return list(jax.lax.switch(index, branches, *operands))


def _infer_while(
    types: tuple[Type, ...], attrs: dict[str, Any], regions: tuple[Graph, ...]
) -> tuple[Type, ...]:
    cond, body = regions
    tested, fixed = (_count(attrs, name) for name in ("cond_consts", "body_consts"))
    carry = types[tested + fixed :]
    must_take("its condition", cond, (*types[:tested], *carry))
    must_take("its body", body, types[tested:])
    out = tuple(value.type for value in body.outputs)
    _must_be("what its body gives", out, carry)
    tests = [value.type for value in cond.outputs]
    rows = tests[0].shape if len(tests) == 1 and tests[0].dtype == "bool" else ()
    _must_be("its condition", tests, [Type("bool", rows)])
    if any(type_.shape[: len(rows)] != rows for type_ in out):
        raise ValueError(f"its condition is {tests[0]}, and not all that it carries has such rows")
    return out


def _of_platform(
    branches: Sequence[Callable[..., Any]], platforms: Sequence[Any], operands: Sequence[Any]
) -> Any:
    """Only the branch of the platform that is lowered for: others may not lower there at all."""
    chosen = dict(zip(platforms, branches))
    default = chosen.pop(None, None)
    named = {name: branch for names, branch in chosen.items() for name in names}
    return jax.lax.platform_dependent(*operands, default=default, **named)


def _infer_cond(
    types: tuple[Type, ...], attrs: dict[str, Any], regions: tuple[Graph, ...]
) -> tuple[Type, ...]:
    index, *operands = types
    if index.shape or index.dtype not in ("bool", "i32"):
        raise ValueError(f"its index is {index}, and should be bool[] or i32[]")
    if index.dtype == "bool" and len(regions) != 2:
        raise ValueError(f"a condition chooses among 2 regions, not {len(regions)}")
    if attrs.get("platforms") is not None:
        _check_platforms(attrs["platforms"], len(regions))
    out = [tuple(value.type for value in region.outputs) for region in regions]
    for region, types in zip(regions, out):
        must_take("a branch", region, operands)
        _must_be("what a branch gives", types, out[0])
    return out[0]


def _check_platforms(platforms: Any, count: int) -> None:
    """Raises ValueError unless every branch has its platforms, and only the last may have none."""
    if not isinstance(platforms, tuple) or len(platforms) != count:
        raise ValueError(f"`platforms` has an entry for every one of the {count} branches")
    named = platforms[:-1] if platforms[-1:] == (None,) else platforms
    names = [name for group in named for name in (group if isinstance(group, tuple) else (group,))]
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise ValueError("a platform is a name in one branch; only the last branch has none")
    if {"gpu", "default"} & set(names):
        raise ValueError("no platform has that name: cpu, tpu, cuda and rocm are some")


def _scan_signature(op: Op) -> Signature:
    return opaque(tuple(a.type.rank for a in op.args), tuple(t.rank for t in op.types))


opdef.define(
    OpDef(
        name="scan",
        signature=_scan_signature,
        infer=_infer_scan,
        reference=_scan,
        regions=1,
        attrs=("consts", "carry", "length", "reverse", "unroll"),
        doc="jax.lax.scan; its body is the region.",
    )
)
opdef.define(
    OpDef(
        name="while",
        signature=_scan_signature,
        infer=_infer_while,
        reference=_while,
        regions=2,
        attrs=("cond_consts", "body_consts"),
        doc="jax.lax.while_loop; the regions are the condition and the body.",
    )
)
opdef.define(
    OpDef(
        name="cond",
        signature=_scan_signature,
        infer=_infer_cond,
        reference=_cond,
        regions=None,
        attrs=("platforms",),
        doc="jax.lax.cond and switch; one region per branch. `platforms` are those of the branches"
        " of a platform_dependent; None stands for all others.",
    )
)
