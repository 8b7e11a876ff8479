"""Reading: text as programs and graphs (see `rewrite.text`). Every error points into the text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from lark import Lark, Token
from lark.exceptions import UnexpectedInput

from rewrite import opdef, runtime
from rewrite.errors import InvalidProgram, TextError, nearest
from rewrite.ir import (
    Attrs,
    Graph,
    Op,
    Opaque,
    Origin,
    Record,
    Type,
    Value,
    attrs_of,
    new_input,
)
from rewrite.program import Input, Layout, Output, Program, Remark, Stages, Step
from rewrite.signature import parse_array
from rewrite.source import MOST_OF_A_PROGRAM, Parsed, Source, TooDeep, grammar, whole_number
from rewrite.values import IN_WORDS, parsed, types_of, values_parser
from rewrite.verify import InvalidOp, check, verify

_ARG = re.compile(
    r"\s*(?P<name>%[A-Za-z0-9_./-]+|(?P<content>\([^()]*\)|<[^<>]*>|[A-Za-z0-9_.+-]+)"
    r":(?P<type>[A-Za-z][A-Za-z0-9_]*(?:<[a-z0-9_]+>)?(?:\[[0-9]+(?:,[0-9]+)*\])?~?))\s*(?:,|$)"
)
_COMMENT = re.compile(r"//[^\n]*")


def parse_program(text: str) -> Program:
    """The program that `show_program` printed.

    Raises TextError, with the line and a caret, where the text is no program or holds a handle
    that text cannot carry, and InvalidProgram where an op does not fit its arguments.
    """
    reader = _Reader(text)
    program = reader.program(reader.tree("program"))
    with reader.pointing():
        program.verify()
    return program


def parse_graph(text: str) -> Graph:
    """The graph that `show_graph` printed. Raises as `parse_program` does."""
    reader = _Reader(text)
    graph = reader.region(reader.tree("graph").children[0])
    with reader.pointing():
        verify(graph)
    return graph


@lru_cache(maxsize=1)
def _lines_parser() -> Lark:
    return grammar(
        Path(__file__).with_name("program.lark"),
        start=["program", "graph"],
        propagate_positions=False,
    )


class _Reader:
    """Reads one text. `scopes` holds what is defined, by name, in every open region."""

    def __init__(self, text: str) -> None:
        self.source = Source(text, most=MOST_OF_A_PROGRAM)
        self.scopes: list[dict[str, Value]] = []

    def tree(self, start: str) -> Parsed:
        return self.source.tree(_lines_parser(), IN_WORDS, start)

    @contextmanager
    def pointing(self) -> Iterator[None]:
        """Whatever the verifier finds is shown in the text."""
        try:
            yield
        except InvalidProgram as error:
            place = self.line_of("step|graph")
            self.source.fail(place, error.message, error.hint, error=InvalidProgram)

    def line_of(self, word: str) -> int:
        """Where the section of this name begins."""
        place = re.search(rf"^({word})\b", self.source.text, re.MULTILINE)
        return place.start() if place else 0

    # Programs.

    def program(self, tree: Parsed) -> Program:
        name, history, declared, results, skeletons, plan, *sections = tree.children
        inputs, names = self.inputs(declared)
        program = Program(
            name=_text(name),
            graph=Graph((), ()),
            inputs=inputs,
            outputs=self.outputs(results, names),
            tree=self.trees(skeletons, (len(inputs), len(results.children))),
            plan=None if plan is None else self.plan(plan),
            history=tuple(map(_step, history.children if history else ())),
        )
        by_name = list(zip(names, inputs))
        if len(sections) == 1:
            return program.with_graph(self.section(sections[0], by_name))
        prepare, adapt, declared, results, step, restore = sections
        inputs, names = self.inputs(declared)
        outputs, packed = self.outputs(results, names), list(zip(names, inputs))
        stages = Stages(
            self.section(prepare, [pair for pair in by_name if pair[1].role == "param"]),
            self.section(adapt, [pair for pair in by_name if pair[1].role == "state"]),
            self.section(restore, [packed[x.updates] for x in outputs if x.updates is not None]),
            inputs,
            outputs,
        )
        return replace(program, graph=self.section(step, packed), stages=stages)

    def inputs(self, tree: Parsed) -> tuple[tuple[Input, ...], dict[str, int]]:
        """The inputs as declared, and their numbers by the names of the text."""
        names: dict[str, int] = {}
        inputs = []
        for entry in tree.children:
            value, name, types, role, finite, axes, layout = entry.children
            if value in names:
                self.fail(value, f"{value} is declared twice")
            names[str(value)] = len(names)
            path = _text(name) if name else str(value[1:])
            hint = _text(axes) if axes else ""
            type_ = self.one_type(types)
            self.check_axes(axes, hint, type_)
            place = _layout(layout)
            inputs.append(Input(path, type_, str(role), place, hint, finite is not None))
        return tuple(inputs), names

    def check_axes(self, token: Token, hint: str, type_: Type) -> None:
        """A hint about an input's axes names all of them."""
        try:
            axes = parse_array(hint)
        except TextError as error:
            self.fail(token, error.message)
        if hint and len(axes) != type_.rank:
            self.fail(token, f"{len(axes)} axes are named, {type_} has {type_.rank}")

    def outputs(self, tree: Parsed, names: dict[str, int]) -> tuple[Output, ...]:
        outputs = []
        for name, value in (entry.children for entry in tree.children):
            if value is not None and value not in names:
                self.fail(value, f"there is no input {value}", nearest(value, names))
            outputs.append(Output(_text(name), None if value is None else names[value]))
        return tuple(outputs)

    def word(self, token: Token) -> Any:
        """A word, a text in quotes or a number."""
        try:
            return _text(token)
        except ValueError as error:
            self.fail(token, str(error))

    def plan(self, token: Token) -> Any:
        lines = token.split("\n")[1:-1]
        # Blank lines above it, so that its errors name the lines of this text.
        above = "\n" * (token.line or 0)
        return runtime.plan(above + "\n".join(line[2:] for line in lines), source="line")

    def trees(self, tree: Parsed, counts: tuple[int, int]) -> tuple[Any, Any]:
        """The structures of arguments and results, whose leaves are numbered in their order."""
        trees = (self.skeleton(tree.children[0]), self.skeleton(tree.children[1]))
        for one, count in zip(trees, counts):
            if list(_leaves(one)) != list(range(count)):
                message = f"the leaves of a tree of {count} arrays are numbered in order, from 0"
                self.source.fail(self.line_of("tree"), message)
        return trees

    def skeleton(self, node: Parsed) -> Any:
        """A pytree's structure; depth is that of the user's tree."""
        if isinstance(node, Token):
            if node.type == "OPAQUE":
                self.fail(node, f"the pytree is an opaque {node}, which text cannot carry")
            return None if node.type == "NONE" else self.word(node)
        if node.data == "dict":
            entries: dict[Any, Any] = {}
            for key, item in (entry.children for entry in node.children):
                if self.word(key) in entries:
                    self.fail(key, f"{key} is given twice")
                if key.type != node.children[0].children[0].type:
                    self.fail(key, "the keys of a dict are texts or numbers, not both")
                entries[self.word(key)] = self.skeleton(item)
            return entries
        items = [self.skeleton(child) for child in node.children]
        return items if node.data == "list" else tuple(items)

    # Graphs.

    def section(self, tree: Parsed, declared: Sequence[tuple[str, Input]]) -> Graph:
        """A graph of the inputs declared elsewhere, or of those that it lists itself."""
        inner = tree.children[0]
        if inner.data == "region":
            return self.region(inner)
        return self.body(inner, {name: new_input(source.type) for name, source in declared})

    def region(self, tree: Parsed) -> Graph:
        params, body = tree.children
        scope: dict[str, Value] = {}
        for value, types in (entry.children for entry in params.children):
            self.define(scope, str(value), new_input(self.one_type(types)), value)
        return self.body(body, scope)

    def body(self, tree: Parsed, scope: dict[str, Value]) -> Graph:
        inputs = tuple(scope.values())
        self.scopes.append(scope)
        *ops, returned = tree.children
        for op in ops:
            self.op(op.children, scope)
        # Comments become blanks, so that columns stay what they are.
        plain = _COMMENT.sub(lambda comment: " " * len(comment[0]), returned)
        outputs = self.values(returned, plain.rstrip(), len("return"), scope)
        self.scopes.pop()
        return Graph(inputs, tuple(outputs))

    def op(self, parts: list[Any], scope: dict[str, Value]) -> None:
        head, name, lead, args, braces, typed, *regions = parts
        types = self.types(typed)
        op = Op(
            _text(name),
            tuple(self.values(args, args[:-1], 1, scope)),
            self.attributes(name, lead, braces),
            types,
            tuple(self.region(region) for region in regions),
            Origin(f"line {head.line}"),
        )
        shown, _, count = head[:-1].rstrip().partition(":")
        if str(len(types)) != (count or "1"):
            hint = f"write {shown}:{len(types)} =" if len(types) > 1 else ""
            self.fail(head, f"{len(types)} types for {count or 1} results", hint)
        try:
            check(op)
        except InvalidOp as error:
            self.source.fail(head, error.reason, error.hint, error=InvalidProgram)
        for value in op.results:
            self.define(scope, f"{shown}.{value.index}" if count else shown, value, head)

    def attributes(self, name: Token, lead: Token | None, braces: Token | None) -> Attrs:
        try:
            definition = opdef.lookup(_text(name))
        except InvalidProgram as error:
            self.fail(name, error.message, error.hint)
        place = braces or lead or name
        pairs = self.read(braces, braces, "attributes") if braces else ()
        if lead and definition.lead is None:
            self.fail(lead, f"{name} takes nothing between its name and its arguments")
        if lead:
            pairs = (*pairs, (definition.lead, self.read(lead, lead, "value")))
        attrs = dict(pairs)
        if len(attrs) < len(pairs):
            self.fail(place, f"an attribute of {name} is given twice")
        for key, value in pairs:
            self.refuse_handles(f"attribute `{key}`", value, place)
        return attrs_of(attrs)

    def values(self, token: Token, text: str, at: int, scope: dict[str, Value]) -> list[Value]:
        """The values and constants listed in `text`, a copy of `token`, from `at` to its end."""
        values, end = [], len(text.rstrip())
        while at < end:
            match = _ARG.match(text, at)
            if match is None:
                gap = len(text) - len(text[at:].lstrip())
                self.fail(token, "expected values with commas between them", at=gap)
            name = match["name"]
            if name not in scope:
                scope[name] = self.constant(token, match)
            values.append(scope[name])
            at = match.end()
        return values

    def constant(self, token: Token, match: re.Match[str]) -> Value:
        """The constant of a match; a name is none, and therefore unknown."""
        name, content, at = match["name"], match["content"], match.start("name")
        if content is None:
            known = [value for value in self.scopes[-1] if value.startswith("%")]
            named = known and not name[1:].isdigit()  # any two numbers look alike
            hint = nearest(name, known) if named else "define it above the line that reads it"
            if any(name in scope for scope in self.scopes[:-1]):
                hint = "a region sees only its inputs: hand it over as an argument"
            self.fail(token, f"there is no value {name} here", hint, at, len(name))
        (type_,) = self.types(token, _listed(match["type"]), at, len(name))
        value = self.read(token, content, "value", at)
        self.refuse_handles(f"a constant of type {type_}", value, token)
        op = Op("const", (), attrs_of({"type": type_, "value": value}), (type_,))
        try:
            opdef.infer(op)
        except ValueError as error:
            self.fail(token, str(error), at=at, width=len(name))
        return Value(op, 0)

    def define(self, scope: dict[str, Value], name: str, value: Value, token: Token) -> None:
        if name in scope:
            self.fail(token, f"{name} is defined twice", width=len(name))
        scope[name] = value

    def one_type(self, token: Token) -> Type:
        types = self.types(token)
        if len(types) != 1:
            self.fail(token, f"an input has one type, not {len(types)}")
        return types[0]

    def types(self, token: Token, text: str = "", at: int = 0, width: int = 0) -> tuple[Type, ...]:
        try:
            return types_of(text or token)
        except ValueError as error:
            self.fail(token, str(error), at=at, width=width)

    # Errors.

    def read(self, token: Token, text: str, start: str, at: int = 0) -> Any:
        """Attributes or a value; `text` stands in `token` from character `at` on."""
        place = (token.start_pos or 0) + at
        try:
            return parsed(str(text), start)
        except (TooDeep, UnexpectedInput) as error:
            self.source.unexpected(error, values_parser(), IN_WORDS, text, place)
        except ValueError as error:
            self.source.fail(place, str(error), width=len(text))

    def refuse_handles(self, what: str, value: Any, token: Token) -> None:
        for handle in _handles(value):
            self.fail(
                token,
                f"{what} holds an opaque {handle.kind} `{handle.key}`, which text cannot carry",
                at=token.index(handle.key),
                width=len(handle.key),
            )

    def fail(
        self, token: Token, message: str, hint: str = "", at: int = 0, width: int = 0
    ) -> NoReturn:
        """Raises TextError at character `at` of a token."""
        place = (token.start_pos or 0) + at
        self.source.fail(place, message, hint, width or (1 if at else len(token)))


def _text(token: Token) -> Any:
    """A word, a text in quotes or a number."""
    word = whole_number(token) if token.type == "INT" else str(token)
    return json.loads(token, strict=False) if token.type == "STRING" else word


def _listed(text: str) -> str:
    """The type of a constant as types are written elsewhere: a scalar has no brackets there."""
    return text if "[" in text else text.replace("~", "") + "[]" + "~" * text.endswith("~")


def _leaves(tree: Any) -> Iterator[Any]:
    """The leaves of a pytree in order, which for a dict is that of its keys."""
    if isinstance(tree, (dict, list, tuple)):
        items = [tree[key] for key in sorted(tree)] if isinstance(tree, dict) else tree
        for item in items:
            yield from _leaves(item)
    elif tree is not None:
        yield tree


def _step(tree: Parsed) -> Step:
    text, keeps, *rest = tree.children
    words = [(part.data, [_text(word) for word in part.children if word]) for part in rest]
    remarks = tuple(Remark(*texts) for kind, texts in words if kind == "remark")
    asked = tuple((texts[0], texts[1]) for kind, texts in words if kind == "request")
    return Step(_text(text), str(keeps), remarks, asked)


def _layout(tree: Parsed | None) -> Layout | None:
    if tree is None:
        return None
    return tuple(tuple(map(_text, dimension.children)) for dimension in tree.children)


def _handles(value: Any) -> Iterator[Opaque]:
    if isinstance(value, Opaque):
        yield value
    if isinstance(value, (tuple, Record)):
        items = value if isinstance(value, tuple) else (item for _, item in value.fields)
        for item in items:
            yield from _handles(item)
