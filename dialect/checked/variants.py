"""A rule's example at other types: every dtype and mixture, sizes 0, 1 and more, one more axis."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from random import Random

import jax

from dialect.arrays.dtypes import struct_of
from dialect.checked.edits import NARROW, WIDE
from dialect.checked.retyped import retyped
from dialect.jaxprs.jaxpr import trace_graph
from rewrite.ir import Graph, Type
from rewrite.rules import Rule

_SIZES = (0, 1, 2, 3)
_COMPLEX = ("c64",)
# The first variants are the example's ops at these dtypes.
PLAIN = ("bf16", "f16", "f64", "i32", "i8", "u8", "u32", "i64", "bool", "c64")
# In the next all axes have the same size.
CUBES = (2, 3, 4)


def is_wide(types: Sequence[Type]) -> bool:
    """Whether a type is of 64 bits, which JAX has only where they are on."""
    return any(type_.dtype in (*WIDE, "c128") for type_ in types)


def variant(rule: Rule, number: int) -> Graph | None:
    """The `number`-th variant of the rule's example, the first being itself; None where there is
    no such program."""
    return _variant(rule, rule.name, number)


@lru_cache(maxsize=1024)
def _variant(rule: Rule, name: str, number: int) -> Graph | None:
    random = Random(f"{name} {number}")
    types = [Type.parse(text) for text in rule.types]
    mapped, kinds = None, {}
    if 0 < number <= len(PLAIN):
        kinds = {_commonest(types): PLAIN[number - 1]}
    elif 0 < number <= len(PLAIN) + len(CUBES):
        size = CUBES[number - len(PLAIN) - 1]  # there, one axis for another is no type error
        types = [Type(type_.dtype, (size,) * type_.rank) for type_ in types]
    elif number:
        types = _resized(types, random) if random.random() < 0.5 else types
        form = random.choice(("as it is", "its types", "its ops", "its ops"))
        types = _retyped(types, random) if form == "its types" else types
        kinds = _kinds(types, random) if form == "its ops" else {}
        mapped = random.choice((0, 1, 3)) if random.random() < 0.2 else None
    try:
        with jax.enable_x64(is_wide([*types, *(Type(kind, ()) for kind in kinds.values())])):
            graph = _traced(rule, types, mapped)
            return retyped(graph, kinds) if kinds else graph
    except Exception:  # whatever the example's function raises at types that it does not take
        return None


def _commonest(types: Sequence[Type]) -> str:
    return max((type_.dtype for type_ in types), key=[t.dtype for t in types].count, default="f32")


def _traced(rule: Rule, types: Sequence[Type], mapped: int | None) -> Graph:
    function = rule.example
    if mapped is not None:
        function = jax.vmap(function)
        types = [Type(type_.dtype, (mapped, *type_.shape)) for type_ in types]
    structs = map(struct_of, types)
    return trace_graph(lambda *arrays: jax.tree.leaves(function(*arrays)), *structs)


def _resized(types: Sequence[Type], random: Random) -> list[Type]:
    """Each size becomes another one everywhere; sometimes one more axis gets size one."""
    old_sizes = sorted({size for type_ in types for size in type_.shape})
    sizes = {size: random.choice((size, *_SIZES)) for size in old_sizes}
    if random.random() < 0.2:
        sizes = dict.fromkeys(old_sizes, random.choice(CUBES))
    resized = [Type(t.dtype, tuple(sizes[size] for size in t.shape), t.weak) for t in types]
    ranked = [i for i, type_ in enumerate(resized) if type_.rank]
    if ranked and random.random() < 0.2:
        at = random.choice(ranked)
        shape = list(resized[at].shape)
        shape[random.randrange(len(shape))] = 1
        resized[at] = Type(resized[at].dtype, tuple(shape))
    return resized


def _retyped(types: Sequence[Type], random: Random) -> list[Type]:
    """Each dtype becomes another one everywhere, or that of each array by itself.

    The function is traced again at these, and may convert them.
    """
    if random.random() < 0.4:
        pool = (*NARROW, *WIDE, *_COMPLEX)
        return [
            Type(random.choice(pool), type_.shape) if random.random() < 0.4 else type_
            for type_ in types
        ]
    kinds = _kinds(types, random)
    return [Type(kinds.get(type_.dtype, type_.dtype), type_.shape) for type_ in types]


def _kinds(types: Sequence[Type], random: Random) -> dict[str, str]:
    """{a dtype of the types: another dtype}."""
    dtypes = sorted({type_.dtype for type_ in types})
    dtype = random.choice(dtypes)
    floats, integers = ("f32", "bf16", "f16", "f64"), ("i8", "i32", "u8", "u32", "i64")
    pools = (floats, floats, integers, (*NARROW, *WIDE, *_COMPLEX))
    choices = [choice for choice in random.choice(pools) if choice != dtype]
    return {dtype: random.choice(choices)}
