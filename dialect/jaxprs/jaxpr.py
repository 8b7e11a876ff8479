"""Import: a JAX function, traced to a jaxpr, becomes a Graph.

Jaxprs are read here through a handful of attributes and never constructed. Calls (jit, remat,
custom derivatives) are inlined, the shardings that a call gives to its arguments and results
becoming constraints on them; loops and branches become regions; every other primitive becomes an
op of the same name with the same parameters. Effects are refused with the user's line.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from dialect.arrays import attributes, dtypes, primitives
from dialect.arrays.dtypes import type_of
from dialect.arrays.notebook_cells import file_or_cell
from dialect.ops import control, lax  # noqa: F401  (control defines ops)
from rewrite.errors import TraceError
from rewrite.ir import NOWHERE, Graph, Op, Opaque, Origin, Type, Value, attrs_of, new_input

CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_lin": "call_jaxpr",
    "custom_vmap_call": "call",
}
_DRAWS = {"random_bits", "random_split"}  # the bits depend on a setting of JAX
_HIDDEN_STATE = {"rng_uniform"}
_LARGEST_PRINTED_CONSTANT = 64  # elements
_LARGE = 1 << 20  # bytes
_HERE = str(Path(__file__).resolve().parents[2])  # the folder of the three packages
_OURS = (
    *(os.path.join(_HERE, folder, "") for folder in ("dialect", "rewrite", "passes")),
    *(os.path.join(os.path.dirname(module.__file__), "") for module in (jax, np)),
    os.path.join(os.path.dirname(os.path.dirname(jax.__file__)), "opt_einsum", ""),  # JAX's einsum
)
_STANDARD_LIBRARY = os.path.join(sysconfig.get_path("stdlib"), "")
_INSTALLED = ("site-packages", "dist-packages")  # folders, inside of it in many Pythons


def is_users(file: str) -> bool:
    """Whether a file of Python is the user's, or of a library that the user's code is made with."""
    if file.startswith(_OURS) or "<frozen" in file:
        return False
    inner = file.removeprefix(_STANDARD_LIBRARY)
    return inner == file or inner.startswith(_INSTALLED)


def trace_graph(function: Callable[..., Any], *args: Any) -> Graph:
    """The Graph of a function of arrays (or ShapeDtypeStructs) that returns a list of arrays."""
    return import_jaxpr(jax.make_jaxpr(function)(*args))


def import_jaxpr(closed: Any) -> Graph:
    """The Graph of a closed jaxpr. Raises TraceError for a program with side effects."""
    return _Importer().graph(closed)


def constant(value: Any, type_: Type | None = None) -> Value:
    """A `const` op. Equal contents give equal ops; large contents are handles, never printed."""
    type_ = type_ or type_of(value)
    return Value(
        Op("const", (), attrs_of({"value": _content(value, type_), "type": type_}), (type_,)), 0
    )


def _content(value: Any, type_: Type) -> Any:
    if type_.dtype.startswith("key"):
        return Opaque("key", value, np.asarray(jax.random.key_data(value)).tobytes())
    array = np.asarray(value)
    if array.size > _LARGEST_PRINTED_CONSTANT or not dtypes.is_dtype(type_.dtype):
        digest = hashlib.sha256(repr((str(array.dtype), array.shape)).encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).tobytes())
        return Opaque("array", value, digest.hexdigest())
    if array.dtype.kind == "c":
        parts = np.stack([array.real, array.imag], -1).reshape(-1, 2).tolist()
        is_number = type_.weak and not array.ndim
        return Opaque("array", array.item() if is_number else value, attributes.encode(parts))
    flat = tuple(attributes.encode(_number(x)) for x in array.ravel())
    return flat if array.ndim else flat[0]


def _number(scalar: np.generic) -> bool | int | float:
    """A numpy scalar as the shortest number that its dtype reads back as the same bits."""
    if scalar.dtype.kind == "b":
        return bool(scalar)
    if scalar.dtype.kind in "iu" or scalar.dtype.name.startswith(("int", "uint")):
        return int(scalar)
    return float(str(scalar))


class _Importer:
    """Reads one traced program. Constants are shared by content over all of it."""

    def __init__(self) -> None:
        self.origins: dict[Any, Origin] = {}
        self.large: dict[Type, list[tuple[Any, Value]]] = {}

    def graph(self, jaxpr: Any) -> Graph:
        jaxpr, consts = primitives.opened(jaxpr)
        for var in (*jaxpr.constvars, *jaxpr.invars, *jaxpr.outvars):
            _refuse_type(var.aval)
        inputs = tuple(new_input(type_of(var.aval)) for var in jaxpr.invars)
        outputs = self.inline(jaxpr, consts, inputs, {})
        return Graph(inputs, tuple(outputs))

    def inline(
        self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Value], shared: dict
    ) -> list[Value]:
        """The outputs of a jaxpr on these values. `shared` holds the constants of the graph."""
        known: dict[Any, Value] = dict(zip(jaxpr.invars, args))
        for var, const in zip(jaxpr.constvars, consts):
            known[var] = self.constant(const, type_of(var.aval), shared)

        def read(atom: Any) -> Value:
            if isinstance(atom, primitives.Literal):
                return self.constant(atom.val, type_of(atom.aval), shared)
            return known[atom]

        for eqn in jaxpr.eqns:
            self.refuse(eqn)
            values = [read(atom) for atom in eqn.invars]
            results = self.equation(eqn, values, shared)
            known.update(zip(eqn.outvars, results))
        return [read(atom) for atom in jaxpr.outvars]

    def constant(self, array: Any, type_: Type, shared: dict) -> Value:
        if isinstance(array, jax.core.Tracer):
            raise TraceError(
                f"the function uses an array, {type_}, of another function that JAX traced",
                hint="pass it as an argument; with jax.checking_leaks() JAX says where it leaked",
            )
        large = type_.bytes > _LARGE and dtypes.is_dtype(type_.dtype)
        value = self.large_constant(array, type_) if large else constant(array, type_)
        return shared.setdefault((value.op.attrs, type_), value)

    def large_constant(self, array: Any, type_: Type) -> Value:
        """A constant that is compared with those of its type before it is digested: a library may
        hold the same table once per layer."""
        bits = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        known = self.large.setdefault(type_, [])
        for other, value in known:
            if np.array_equal(other, bits):
                return value
        known.append((bits, constant(array, type_)))
        return known[-1][1]

    def equation(self, eqn: Any, args: list[Value], shared: dict) -> Sequence[Value]:
        name, params = primitives.op_name(eqn), eqn.params
        if name in CALLS:
            inner, consts = primitives.opened(params[CALLS[name]])
            results = self.inline(inner, consts, self.placed(eqn, args, "in_shardings"), shared)
            return self.placed(eqn, results, "out_shardings")
        types = tuple(type_of(var.aval) for var in eqn.outvars)
        regions, attrs = self.regions(name, params)
        if not regions:
            primitives.remember(eqn.primitive)
        op = Op(name, tuple(args), attrs, types, regions, self.origin(eqn))
        return op.results

    def refuse(self, eqn: Any) -> None:
        """Raises TraceError for an equation that no rewrite may move, or that holds no numbers."""
        effects, name = _side_effects(eqn), eqn.primitive.name
        if effects:
            raise TraceError(
                f"{name} has side effects ({', '.join(map(str, effects))}), which a rewrite "
                "could reorder or drop",
                where=self.origin(_effectful(eqn)).source,
                hint="remove the callback, debug print or reference before tracing",
            )
        if name in _HIDDEN_STATE:
            raise TraceError(
                f"{name} draws from a state that the device hides: the same program gives "
                "other numbers each time",
                where=self.origin(eqn).source,
                hint="draw from a key, with jax.random",
            )
        if name in _DRAWS and _partitionable(eqn) != jax.config.jax_threefry_partitionable:
            raise TraceError(
                f"{name} is drawn under jax.threefry_partitionable({_partitionable(eqn)}), which "
                "a program does not carry",
                where=self.origin(eqn).source,
                hint="set it around the whole program, or not at all",
            )
        for atom in (*eqn.invars, *eqn.outvars):
            _refuse_type(atom.aval, lambda: self.origin(eqn).source)

    def placed(self, eqn: Any, values: list[Value], parameter: str) -> list[Value]:
        """The arguments or results of a call, constrained to the shardings that the call names."""
        shardings = eqn.params.get(parameter) or (None,) * len(values)
        return [
            self.constraint(eqn, value, sharding) if isinstance(sharding, Sharding) else value
            for value, sharding in zip(values, shardings)
        ]

    def constraint(self, eqn: Any, value: Value, sharding: Sharding) -> Value:
        """What `jax.lax.with_sharding_constraint` traces to."""
        params = {
            "sharding": sharding,
            "layout": None,
            "context_mesh": eqn.params["ctx_mesh"],
            "unconstrained_dims": frozenset(),
        }
        attrs = attributes.encode_params(params)
        op = Op("sharding_constraint", (value,), attrs, (value.type,), (), self.origin(eqn))
        return op.results[0]

    def regions(self, name: str, params: dict[str, Any]) -> tuple[tuple[Graph, ...], Any]:
        if name == "scan":
            consts, carry = scan_counts(params)
            kept = {key: params[key] for key in ("length", "reverse", "unroll")}
            return (self.graph(params["jaxpr"]),), attrs_of(
                {"consts": consts, "carry": carry, **kept}
            )
        if name == "while":
            counts = {
                k: params[f"{k.split('_')[0]}_nconsts"] for k in ("cond_consts", "body_consts")
            }
            bodies = (self.graph(params["cond_jaxpr"]), self.graph(params["body_jaxpr"]))
            return bodies, attrs_of(counts)
        if name == "cond":
            platforms = params.get("branches_platforms")
            attrs = () if platforms is None else attrs_of({"platforms": platforms})
            return tuple(self.graph(branch) for branch in params["branches"]), attrs
        if name in lax.SCATTERS:
            # Its jaxpr says what its name says already.
            params = {k: v for k, v in params.items() if not k.startswith("update_")}
        unsaid = primitives.unsaid(name)
        given = {k: v for k, v in params.items() if k not in unsaid or v is not unsaid[k]}
        return (), attributes.encode_params(given)

    def origin(self, eqn: Any) -> Origin:
        """The innermost frame of the user's code."""
        traceback = eqn.source_info.traceback
        if traceback is None:
            return NOWHERE
        if traceback not in self.origins:
            self.origins[traceback] = _users_line(traceback.frames)
        return self.origins[traceback]


def _partitionable(eqn: Any) -> bool:
    """How the equation's random bits are drawn, where it says so."""
    default = jax.config.jax_threefry_partitionable
    return getattr(getattr(eqn, "ctx", None), "threefry_partitionable", default)


def _refuse_type(aval: Any, where: Callable[[], str] = str) -> None:
    """Raises TraceError for what is no array of numbers or PRNG keys; `where` tells the line."""
    dtype = getattr(aval, "dtype", None)
    if dtype is None or not hasattr(aval, "shape") or not dtypes.is_carried(dtype):
        raise TraceError(
            f"a value of type {aval} is no array of numbers, nor of PRNG keys",
            where=where(),
            hint="leave it out of what is traced",
        )


def _side_effects(eqn: Any) -> list[Any]:
    """The effects that need an order: that a collective reads the name of an axis is none."""
    return [effect for effect in eqn.effects if type(effect).__name__ != "NamedAxisEffect"]


def _effectful(eqn: Any) -> Any:
    """The innermost equation that has the effects of `eqn`: it is on the user's line."""
    inner = [
        inner_eqn
        for value in eqn.params.values()
        for jaxpr in (value if isinstance(value, tuple) else (value,))
        if hasattr(primitives.opened(jaxpr)[0], "eqns")
        for inner_eqn in primitives.opened(jaxpr)[0].eqns
        if _side_effects(inner_eqn)
    ]
    return _effectful(inner[0]) if inner else eqn


def _users_line(frames: Sequence[Any]) -> Origin:
    for frame in frames:
        if is_users(frame.file_name):
            file = file_or_cell(frame.file_name)
            return Origin(f"{file}:{frame.line_num} ({frame.function_name})")
    return NOWHERE


def scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """How many constants a scan's equation has, and how many values it carries."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # jax 0.11 and later
    return len(consts), len(carry)
