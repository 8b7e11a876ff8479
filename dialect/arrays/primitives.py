"""JAX's primitives by name: the only file that touches `jax.extend`.

`jax.extend.core.primitives` lists most of them; those it leaves out come from tracing a public
function that uses them. A primitive met in a user's program is remembered as well, so that even
one from another library re-binds.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, get_type_hints

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core
from jax.extend.core import primitives as public

Literal = jex_core.Literal
Primitive = jex_core.Primitive

APPLIES = "scatter-apply"  # a scatter that computes: what it writes is a function of what was there
_MET: dict[str, Primitive] = {}
_OURS: set[str] = set()


@lru_cache(maxsize=1)
def _known() -> dict[str, Primitive]:
    table = {
        member.name: member
        for name, member in vars(public).items()
        if name.endswith("_p") and isinstance(member, Primitive)
    }
    probes = (
        lambda x: jax.lax.split(x, (1, 1)),
        lambda x: jnp.stack([x, x]),
        lambda x: jnp.unstack(x),
        lambda x: jnp.tile(x, 2),
        lambda x: jax.lax.optimization_barrier(x),
        lambda x: jax.random.key_data(jax.random.wrap_key_data(x.astype("uint32"))),
        lambda x: jax.lax.platform_dependent(x, tpu=jnp.sin, default=jnp.cos),
    )
    for probe in probes:
        for eqn in _probed(probe, jax.ShapeDtypeStruct((2,), "float32")):
            table.setdefault(eqn.primitive.name, eqn.primitive)
    return table | {APPLIES: table["scatter"]}


def _probed(probe: Callable[..., Any], *types: jax.ShapeDtypeStruct) -> list[Any]:
    """The equations of a function. Another thread has none of the contexts of whoever asks:
    `ensure_compile_time_eval` would evaluate what takes no argument."""
    with ThreadPoolExecutor(1) as thread:
        return _equations(thread.submit(jax.make_jaxpr(probe), *types).result())


def _equations(jaxpr: Any) -> list[Any]:
    jaxpr, _ = opened(jaxpr)
    inner = [eqn.params["jaxpr"] for eqn in jaxpr.eqns if "jaxpr" in eqn.params]
    return [*jaxpr.eqns, *(eqn for jaxpr in inner for eqn in _equations(jaxpr))]


def opened(jaxpr: Any) -> tuple[Any, tuple[Any, ...]]:
    """A jaxpr, closed or open, in any supported JAX: (with eqns and variables, its constants)."""
    return getattr(jaxpr, "jaxpr", jaxpr), tuple(getattr(jaxpr, "consts", ()))


def op_name(eqn: Any) -> str:
    """The op that an equation becomes: its primitive's name, but for a scatter with a function."""
    name = eqn.primitive.name
    return APPLIES if name == "scatter" and eqn.params["update_jaxpr"] is not None else name


# Parameters that only the later of the supported versions have: what nobody asked for stands for
# what the earlier do, so that a text of one version is read by the others.
_LATER = {"top_k": "is_stable"}


@lru_cache(maxsize=1)
def _unsaid() -> dict[str, dict[str, Any]]:
    """The optional parameters of primitives, with their values where nobody asked."""
    square, index = jax.ShapeDtypeStruct((2, 2), "float32"), jax.ShapeDtypeStruct((2,), "int32")
    unary = (
        "cos sin tan exp exp2 log log1p expm1 tanh logistic sqrt rsqrt cbrt erf erf_inv"
    ).split()

    def probe(x: Any, i: Any) -> Any:
        plain = [getattr(jax.lax, name)(x) for name in unary]
        sums = [jnp.sum(x), jnp.max(x), jnp.min(x), jnp.prod(x), jnp.any(x > 0), jnp.all(x > 0)]
        shapes = [x[:, None], x[:1], x.reshape(4), x.astype("int32"), jax.lax.iota("int32", 3)]
        return [*plain, *sums, *shapes, x * x, x @ x, x[i], jax.lax.top_k(x, 1), jnp.argmax(x)]

    defaults: dict[str, dict[str, Any]] = {}
    for eqn in _probed(probe, square, index):
        name, known = eqn.primitive.name, defaults.get(eqn.primitive.name, eqn.params)
        defaults[name] = {
            key: value
            for key, value in eqn.params.items()
            if key in known and (value is None or key == _LATER.get(name))
        }
    return defaults


def unsaid(name: str) -> dict[str, Any]:
    """The parameters of a primitive that need not be said, and the values that they have then."""
    return _unsaid().get(name, {})


def remember(primitive: Primitive) -> None:
    """Makes a primitive that a program uses known by its name."""
    if _known().get(primitive.name) is not primitive:
        _MET[primitive.name] = primitive


def find(name: str) -> Primitive | None:
    """The primitive of that name, or None."""
    return _MET.get(name) or _known().get(name)


def is_ours(name: str) -> bool:
    """Whether `call` made the primitive of that name: it is a word of the toolkit."""
    return name in _OURS


def bind(name: str, args: tuple[Any, ...], params: dict[str, Any]) -> list[Any]:
    """Applies a primitive; traceable. Returns its results as a list."""
    primitive = find(name)
    if primitive is None:
        raise KeyError(f"this JAX ({jax.__version__}) has no primitive {name!r}")
    params = {**unsaid(name), **params}
    out = primitive.bind(*args, **primitive.get_bind_params(params))
    return list(out) if primitive.multiple_results else [out]


def call(name: str, reference: Callable[..., Any]) -> Callable[..., Any]:
    """A function that traces to one op `name`: how a rule's `after` writes a composite op.

    A reference annotated to return a list has several results.
    """
    _OURS.add(name)
    primitive = Primitive(name)
    primitive.multiple_results = get_type_hints(reference).get("return") == list[Any]

    def types(*avals: Any, **attrs: Any) -> Any:
        structs = jax.eval_shape(lambda *arrays: reference(*arrays, **attrs), *map(_struct, avals))
        return jax.tree.map(jax.typeof, structs)

    primitive.def_abstract_eval(types)
    primitive.def_impl(reference)
    return primitive.bind


def _struct(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)
