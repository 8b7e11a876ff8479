"""The caller's mesh and settings around a step: `jax.set_mesh`, `jax.disable_jit`.

A step has a mesh of its own and is compiled for it. What it does runs `apart` from the caller's
mesh. Under a mesh with Explicit axes, JAX wants arrays of that mesh: there results are `handed` to
it, as `jax.jit` would give them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from dialect.machine.mesh_spec import MeshSpec, TargetError
from rewrite.errors import TraceError

_MAKE_IT = (
    "make the step for the mesh that is set: auto_shard(step) inside jax.set_mesh, or "
    "auto_shard(step, mesh); or set none around it"
)
_NO_MESH = Mesh(np.empty((), dtype=object), ())


@contextmanager
def apart() -> Iterator[None]:
    """Inside, the caller's mesh is none, functions are compiled in any case, and -inf is a number.

    Constants are computed there, and an executable has no ops that JAX could try one by one.
    """
    with ExitStack() as stack:
        if _sought():
            stack.enter_context(jax.debug_nans(False))
            stack.enter_context(jax.debug_infs(False))
        if jax.config.jax_disable_jit:
            stack.enter_context(jax.disable_jit(False))
        if not jax.sharding.get_abstract_mesh().empty:
            stack.enter_context(_without_mesh())
        yield


def must_be_numbers(results: Any, names: Iterable[str], step: str) -> None:
    """Raises FloatingPointError for results with NaN, or infinities, where JAX looks for them."""
    sought = _sought()
    if not sought:
        return
    leaves = (
        (name, leaf) for name, result in zip(names, results) for leaf in jax.tree.leaves(result)
    )
    floats = ((name, leaf) for name, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact))
    for (name, leaf), (kind, is_wrong) in product(floats, sought):
        if jnp.any(is_wrong(leaf)):
            raise FloatingPointError(
                f"invalid value ({kind}) in output {name} of {step}; the function that it was made "
                f"of, called under jax.debug_{kind}s, names the line"
            )


def _sought() -> list[tuple[str, Callable[[Any], Any]]]:
    """What the caller has JAX look for in results."""
    sought = [("nan", jnp.isnan)] if jax.config.jax_debug_nans else []
    return sought + ([("inf", jnp.isinf)] if jax.config.jax_debug_infs else [])


def settings() -> tuple[Any, ...]:
    """The caller's settings that JAX traces another program for."""
    config = jax.config
    return (
        config.jax_enable_x64,
        config.jax_default_matmul_precision,
        config.jax_numpy_dtype_promotion,
        config.jax_default_prng_impl,
    )


def _without_mesh() -> Any:
    try:
        return jax.set_mesh(_NO_MESH)
    except ValueError:  # inside a function that JAX traces
        return jax.sharding.use_abstract_mesh(AbstractMesh((), ()))


def callers_mesh() -> Mesh | None:
    """The mesh that `jax.set_mesh` set; None without one, and inside a function that is traced."""
    if jax.sharding.get_abstract_mesh().empty:
        return None
    try:
        return jax.sharding.get_mesh()
    except ValueError:
        return None


def is_traced(leaves: Any) -> bool:
    """Whether a function is called by one that JAX traces: with tracers, or without any.

    Without, all of its arguments are closed over. Under `vmap` and `grad` it is then none of what
    they transform, and is called as outside of them.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(leaves)):
        return True
    try:
        jax.sharding.get_mesh()
    except ValueError:  # not outside of what JAX transforms
        here = jax.sharding.get_abstract_mesh()
        return not here.empty or isinstance(jnp.zeros(()), jax.core.Tracer)
    return False


def must_be_outside(what: str, leaves: Any) -> None:
    """Raises TraceError for what puts arrays on devices, inside a function that JAX traces."""
    if is_traced(leaves):
        raise TraceError(
            f"{what} is called inside a function that JAX traces, and puts arrays on devices",
            hint="call it outside, and hand over what it gives; a step that is called inside takes "
            "parameters and a state in the form of your function too",
        )


def explicit_mesh(leaves: Any = ()) -> Any:
    """The abstract mesh of the caller, or of an array, that has Explicit axes; else None."""
    meshes = [jax.sharding.get_abstract_mesh()]
    meshes += [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(leaves)]
    return next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)


def must_agree(mesh: Mesh) -> None:
    """Raises TargetError if a step for this mesh cannot be traced under that of the caller."""
    callers = jax.sharding.get_abstract_mesh()
    if callers.empty:
        return
    there, here = (MeshSpec(tuple(grid.shape.items())) for grid in (callers, mesh))
    if AxisType.Manual in callers.axis_types:
        raise TargetError(
            f"the step is called inside jax.shard_map over {there}, or jax.pmap, and splits its "
            "work over chips itself",
            hint="call it outside of the shard_map, or of the pmap",
        )
    if callers.size != mesh.size:
        raise TargetError(
            f"the step is for the mesh {here}, and is traced under another, {there}, of "
            f"{callers.size} devices and not {mesh.size}",
            hint=_MAKE_IT,
        )


def must_be_of(mesh: AbstractMesh, leaves: Any) -> None:
    """Raises TargetError for arrays of another mesh than this one, with Explicit axes."""
    meshes = (jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(leaves))
    other = next((known for known in meshes if not known.empty and known != mesh), None)
    if other is not None:
        here, there = (MeshSpec(tuple(grid.shape.items())) for grid in (other, mesh))
        raise TargetError(
            f"the state lies on the mesh {here}, and is traced under another, {there}, "
            "with Explicit axes",
            hint=_MAKE_IT,
        )


def handed(result: Any, updates: bool, step_mesh: Mesh) -> Any:
    """A result as an array of the caller's mesh, if that has Explicit axes.

    On the same grid of devices it stays where it is. Elsewhere it becomes whole, but for what
    updates the state, which goes back to the step.
    """
    if explicit_mesh() is None:
        return result
    mesh, sharding = jax.sharding.get_mesh(), result.sharding
    if getattr(sharding, "mesh", None) == mesh:
        return result
    if np.array_equal(mesh.devices, step_mesh.devices) and isinstance(sharding, NamedSharding):
        names = dict(zip(step_mesh.axis_names, mesh.axis_names))
        there = NamedSharding(mesh, _renamed(sharding.spec, names))
        shards = [shard.data for shard in result.addressable_shards]
        return jax.make_array_from_single_device_arrays(result.shape, there, shards)
    stays = updates and not sharding.is_fully_replicated
    return result if stays else jax.device_put(result, NamedSharding(mesh, PartitionSpec()))


def _renamed(spec: PartitionSpec, names: dict[str, str]) -> PartitionSpec:
    """P("x", None, ("x", "y"))  ->  P("a", None, ("a", "b"))"""
    entries = ((axes,) if isinstance(axes, str) else axes for axes in spec)
    return PartitionSpec(*(axes and tuple(names[name] for name in axes) for axes in entries))
