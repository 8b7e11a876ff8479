"""What ops exist: one declaration per op, holding everything the toolkit knows about it.

An `OpDef` is found by name. Dialects add theirs with `define`; a dialect that stands for a whole
family (every primitive of a framework) adds a resolver, asked once per unknown name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rewrite.errors import InvalidProgram, nearest
from rewrite.ir import NOWHERE, Graph, Op, Origin, Type, Value, attrs_of
from rewrite.signature import Signature

Infer = Callable[[tuple[Type, ...], dict[str, Any], tuple[Graph, ...]], tuple[Type, ...]]


@dataclass(frozen=True)
class Traits:
    """Facts about an op that passes ask for; from `shape` on, how its attributes follow its axes.

    - `moves`: every element of its results is one of its arguments, or zero, or says its own place;
    - `view`: nothing is stored: the same bytes in another shape, or made by whoever reads them;
    - `exact`: no result is rounded;
    - `converts`: its result is its argument in another dtype;
    - `commutes`: its two arguments may change places;
    - `linear`: in "all" of its arguments, in "each" while the others stay, or in its "first" alone;
    - `sums`: its terms may cancel;
    - `skips_zeros`: more zeros along an axis that it reduces or needs do not change its results;
    - `fills`: it may also give numbers that its array does not have, such as a fill value;
    - `jumps`: it is not continuous: the least change of an argument may change a result altogether;
    - `writes`: the number of the argument that it writes into its first, in place; 0 for none;
    - `picks`: of its first argument it reads only as much as it gives;
    - `of_cache`: its first argument is a cache;
    - `counts`: the number of the argument that counts rows for each matrix of its second; 0: none;
    - `shape`: the attribute that holds the shape of its result;
    - `axes`: the attribute that numbers dimensions of its first argument, one or several;
    - `lacked`: the attribute that numbers those that another of its arrays lacks;
    - `order`: the attribute that is the order of its first argument's dimensions in its result;
    - `new_axis`: the attribute that numbers the dimension that only its result has;
    - `by_axis`: the attributes with an entry for each dimension of its first argument;
    - `spelled`: the attribute that is its signature, as text;
    - `batches`: it may have one more `map` axis in front, or one of another size, and no attributes
      change but those named here.
    """

    moves: bool = False
    view: bool = False
    exact: bool = False
    converts: bool = False
    commutes: bool = False
    linear: str = ""
    sums: bool = False
    skips_zeros: bool = False
    fills: bool = False
    jumps: bool = False
    writes: int = 0
    picks: bool = False
    of_cache: bool = False
    counts: int = 0
    shape: str = ""
    axes: str = ""
    lacked: str = ""
    order: str = ""
    new_axis: str = ""
    by_axis: tuple[str, ...] = ()
    spelled: str = ""
    batches: bool = False


@dataclass(frozen=True)
class OpDef:
    """One op: its name, its axes, its types, and its meaning.

    - `signature(op)` gives the axes of its arrays (see `rewrite.signature`);
    - `infer(types, attrs, regions)` gives the types of the results, or raises ValueError;
    - `reference(*arrays, **attrs)` computes them: meaning, default lowering and test oracle at
      once. An op with regions gets them as the keyword `regions`;
    - `attrs` are the attribute names it takes, or None where any may stand;
    - `inverse(op)` names the op, and its attributes, that gives the arguments of a mere change of
      form back from its results;
    - `lead` is the attribute that prints right behind the name;
    - `regions` is how many regions it has, None where that is one or more;
    - `results` names its results, where they differ in kind;
    - `traits` are the facts that passes ask for.
    """

    name: str
    signature: Callable[[Op], Signature]
    infer: Infer
    reference: Callable[..., Any]
    attrs: tuple[str, ...] | None = None
    lead: str | None = None
    doc: str = ""
    inverse: Callable[[Op], tuple[str, dict[str, Any]]] | None = None
    regions: int | None = 0
    results: tuple[str, ...] = ()
    traits: Traits = Traits()


_DEFINED: dict[str, OpDef] = {}
_RESOLVERS: list[Callable[[str], OpDef | None]] = []


def define(opdef: OpDef) -> OpDef:
    """Adds an op. Raises ValueError where the name is taken."""
    if opdef.name in _DEFINED:
        raise ValueError(f"op {opdef.name!r} is already defined")
    _DEFINED[opdef.name] = opdef
    return opdef


def resolve_with(resolver: Callable[[str], OpDef | None]) -> None:
    """Adds a resolver for a family of ops: name -> OpDef, or None where it is not of the family."""
    _RESOLVERS.append(resolver)


def lookup(name: str) -> OpDef:
    """The definition of an op. Raises InvalidProgram with the nearest names."""
    known = _DEFINED.get(name)
    if known is not None:
        return known
    for resolver in _RESOLVERS:
        definition = resolver(name)
        if definition is not None:
            return _DEFINED.setdefault(name, definition)
    raise InvalidProgram(f"there is no op {name!r}", hint=nearest(name, _DEFINED))


def is_known(name: str) -> bool:
    """Whether there is an op of this name."""
    return name in _DEFINED or any(resolver(name) for resolver in _RESOLVERS)


def signature(op: Op) -> Signature:
    """The axis signature of an op."""
    return lookup(op.name).signature(op)


def traits(op: Op) -> Traits:
    """What is known of an op besides its axes and its meaning; of an input, nothing."""
    return Traits() if op.name == "input" else lookup(op.name).traits


def infer(op: Op) -> tuple[Type, ...]:
    """The result types that an op's definition gives for its arguments."""
    types = tuple(arg.type for arg in op.args)
    return lookup(op.name).infer(types, dict(op.attrs), op.regions)


def build(
    name: str,
    /,
    *args: Value,
    regions: tuple[Graph, ...] = (),
    origin: Origin = NOWHERE,
    **attrs: Any,
) -> Op:
    """A new op with its result types inferred."""
    types = lookup(name).infer(tuple(arg.type for arg in args), attrs, regions)
    return Op(name, args, attrs_of(attrs), types, regions, origin)


def make(name: str, /, *args: Value, **options: Any) -> Value:
    """The only result of a new op."""
    return Value(build(name, *args, **options), 0)


def with_args(op: Op, args: tuple[Value, ...], regions: tuple[Graph, ...] | None = None) -> Op:
    """`op` on other arguments; its result types are inferred again where theirs changed."""
    regions = op.regions if regions is None else regions
    if args == op.args and all(new is old for new, old in zip(regions, op.regions)):
        return op
    same = all(new.type == old.type for new, old in zip(args, op.args)) and regions == op.regions
    if same:
        return Op(op.name, args, op.attrs, op.types, regions, op.origin)
    return build(op.name, *args, regions=regions, origin=op.origin, **dict(op.attrs))


def substitute(graph: Graph, args: Sequence[Value], origin: Origin | None = None) -> list[Value]:
    """The outputs of `graph` with its inputs replaced: the graph inlined into another."""
    memo = dict(zip(graph.inputs, args, strict=True))
    for op in graph.ops:
        moved = with_args(op, tuple(memo[arg] for arg in op.args))
        if origin is not None:
            moved = replace(moved, origin=origin)
        memo.update(zip(op.results, moved.results))
    return [memo[value] for value in graph.outputs]
