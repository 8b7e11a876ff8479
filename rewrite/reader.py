"""Reading: text as programs and graphs (see `rewrite.text`). Every error points into the text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NoReturn

from lark import Lark, Token, Transformer, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedInput
from lark.lexer import PatternStr

from rewrite import opdef
from rewrite.errors import InvalidProgram, TextError, caret, nearest
from rewrite.ir import Attrs, Graph, Op, Opaque, Origin, Record, Symbol, Type, Value, attrs_of
from rewrite.ir import new_input
from rewrite.plan import Plan
from rewrite.program import Input, Layout, Output, Program, Stages, Step
from rewrite.verify import verify

_GRAMMAR = {"rel_to": __file__, "parser": "lalr", "maybe_placeholders": True}
_ARG = re.compile(
    r"\s*(?P<name>%[A-Za-z0-9_./-]+|(?P<content>\([^()]*\)|<[^<>]*>|[A-Za-z0-9_.+-]+)"
    r":(?P<type>[A-Za-z][A-Za-z0-9_]*(?:<[a-z0-9_]+>)?(?:\[[0-9]+(?:,[0-9]+)*\])?~?))\s*(?:,|$)"
)
_TYPE = re.compile(r"[^\s:,\[]+\[[^\]]*\]~?")
_COMMENT = re.compile(r"//[^\n]*")
_SHOWN = 100  # columns of a line that an error shows
_IN_WORDS = {
    "ARGS": "arguments such as (%x, 0.5:f32)",
    "ATTRS": "attributes such as {axis=0}",
    "INT": "a number",
    "KEEPS": "bits, reals or approx",
    "NAME": "a name",
    "OPAQUE": "a value",
    "PLAN": "a plan, its lines indented by two spaces",
    "RESULT": "an op such as `%1 = add(%0, %0) : f32[2]`",
    "RETURN": "return",
    "ROLE": "param, state or arg",
    "STRING": "a quoted text",
    "TYPES": "a type such as `: f32[8,64]`",
    "VALUE": "a value such as %x",
}


def parse_program(text: str) -> Program:
    """The program that `show_program` printed.

    Raises TextError, with the line and a caret, where the text is no program or holds a handle
    that text cannot carry, and InvalidProgram where an op does not fit its arguments.
    """
    reader = _Reader(text)
    program = reader.program(reader.tree("program"))
    program.verify()
    return program


def parse_graph(text: str) -> Graph:
    """The graph that `show_graph` printed. Raises as `parse_program` does."""
    reader = _Reader(text)
    graph = reader.region(reader.tree("graph").children[0])
    verify(graph)
    return graph


class _Values(Transformer):
    """Attribute values, made while they are read."""

    NONE = staticmethod(lambda token: None)
    TRUE = staticmethod(lambda token: True)
    FALSE = staticmethod(lambda token: False)
    INT, COMPLEX, TYPE, NAME = int, complex, staticmethod(Type.parse), str
    STRING = staticmethod(json.loads)
    sequence = attribute = attributes = tuple

    def FLOAT(self, token: Token) -> float | Symbol:
        value = float(token)
        return Symbol("-0.0") if value == 0 and token.startswith("-") else value

    def QUOTED(self, token: Token) -> str:
        return json.loads(f'"{token[1:-1]}"')

    def OPAQUE(self, token: Token) -> Opaque:
        return Opaque(token[1:-1].rpartition(" ")[0], None, str(token))

    def symbol(self, children: list[str]) -> Symbol:
        return Symbol(children[0])

    def record(self, children: list[Any]) -> Record:
        return Record(children[0], tuple(children[1:]))

    def value(self, children: list[Any]) -> Any:
        return children[0]


@lru_cache(maxsize=1)
def _lines_parser() -> Lark:
    return Lark.open("program.lark", start=["program", "graph"], **_GRAMMAR)


@lru_cache(maxsize=1)
def _values_parser() -> Lark:
    start = ["attributes", "value"]
    return Lark.open("program.lark", start=start, transformer=_Values(), **_GRAMMAR)


@lru_cache(maxsize=1 << 16)
def _parsed(text: str, start: str) -> Any:
    """Attributes or a value by their text, which a program repeats over and over."""
    return _values_parser().parse(text, start=start)


@lru_cache(maxsize=1 << 16)
def _types(text: str) -> tuple[Type, ...]:
    return tuple(map(Type.parse, _TYPE.findall(text)))


class _Reader:
    """Reads one text. `scopes` holds what is defined, by name, in each region that is open."""

    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n")
        self.scopes: list[dict[str, Value]] = []

    def tree(self, start: str) -> Tree:
        try:
            return _lines_parser().parse(self.text, start=start)
        except UnexpectedInput as error:
            self.unexpected(error)

    # Programs.

    def program(self, tree: Tree) -> Program:
        name, history, declared, results, skeletons, plan, *sections = tree.children
        inputs, names = self.inputs(declared)
        program = Program(
            name=_text(name),
            graph=Graph((), ()),
            inputs=inputs,
            outputs=self.outputs(results, names),
            tree=tuple(map(self.skeleton, skeletons.children)),
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

    def inputs(self, tree: Tree) -> tuple[tuple[Input, ...], dict[str, int]]:
        """The inputs as declared, and the number of each by the name that the text has for it."""
        names: dict[str, int] = {}
        inputs = []
        for each in tree.children:
            value, name, types, role, axes, layout = each.children
            if value in names:
                self.fail(value, f"{value} is declared twice")
            names[str(value)] = len(names)
            path = _text(name) if name else str(value[1:])
            said = _text(axes) if axes else ""
            inputs.append(Input(path, self.one_type(types), str(role), _layout(layout), said))
        return tuple(inputs), names

    def outputs(self, tree: Tree, names: dict[str, int]) -> tuple[Output, ...]:
        outputs = []
        for name, value in (each.children for each in tree.children):
            if value is not None and value not in names:
                self.fail(value, f"there is no input {value}", nearest(value, names))
            outputs.append(Output(_text(name), None if value is None else names[value]))
        return tuple(outputs)

    def plan(self, token: Token) -> Plan:
        lines = token.split("\n")[1:-1]
        # Blank lines above it, so that its errors name the lines of this text.
        above = "\n" * token.line
        return Plan.parse(above + "\n".join(line[2:] for line in lines), source="line")

    def skeleton(self, node: Tree | Token) -> Any:
        """A pytree's structure; depth is that of the user's tree."""
        if isinstance(node, Token):
            if node.type == "OPAQUE":
                self.fail(node, f"the pytree is an opaque {node}, which text cannot carry")
            return None if node.type == "NONE" else _text(node)
        if node.data == "dict":
            pairs = (each.children for each in node.children)
            return {_text(key): self.skeleton(item) for key, item in pairs}
        items = [self.skeleton(each) for each in node.children]
        return items if node.data == "list" else tuple(items)

    # Graphs.

    def section(self, tree: Tree, declared: Sequence[tuple[str, Input]]) -> Graph:
        """A graph of the inputs declared elsewhere, or of those that it lists itself."""
        inner = tree.children[0]
        if inner.data == "region":
            return self.region(inner)
        return self.body(inner, {name: new_input(each.type) for name, each in declared})

    def region(self, tree: Tree) -> Graph:
        params, body = tree.children
        scope: dict[str, Value] = {}
        for value, types in (each.children for each in params.children):
            self.define(scope, str(value), new_input(self.one_type(types)), value)
        return self.body(body, scope)

    def body(self, tree: Tree, scope: dict[str, Value]) -> Graph:
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
        types = _types(typed)
        op = Op(
            _text(name),
            tuple(self.values(args, args[:-1], 1, scope)),
            self.attributes(name, lead, braces),
            types,
            tuple(self.region(each) for each in regions),
            Origin(f"line {head.line}"),
        )
        shown, _, count = head[:-1].rstrip().partition(":")
        if len(types) != int(count or 1):
            hint = f"write {shown}:{len(types)} =" if len(types) > 1 else ""
            self.fail(head, f"{len(types)} types for {count or 1} results", hint)
        for value in op.results:
            self.define(scope, f"{shown}.{value.index}" if count else shown, value, head)

    def attributes(self, name: Token, lead: Token | None, braces: Token | None) -> Attrs:
        try:
            definition = opdef.lookup(_text(name))
        except InvalidProgram as error:
            self.fail(name, error.message, error.hint)
        pairs = self.parsed(braces, braces, "attributes") if braces else ()
        if lead and definition.lead is None:
            self.fail(lead, f"{name} takes nothing between its name and its arguments")
        if lead:
            pairs = (*pairs, (definition.lead, self.parsed(lead, lead, "value")))
        attrs = dict(pairs)
        if len(attrs) < len(pairs):
            self.fail(braces or lead, f"an attribute of {name} is given twice")
        for key, value in pairs:
            self.refuse_handles(f"attribute `{key}`", value, braces)
        return attrs_of(attrs)

    def values(self, token: Token, text: str, at: int, scope: dict[str, Value]) -> list[Value]:
        """The values and constants listed in `text`, a copy of `token`, from `at` to its end."""
        values, end = [], len(text.rstrip())
        while at < end:
            found = _ARG.match(text, at)
            if found is None:
                gap = re.compile(r"\s*").match(text, at)
                self.fail(token, "expected values with commas between them", at=gap.end())
            name = found["name"]
            if name not in scope:
                scope[name] = self.constant(token, found)
            values.append(scope[name])
            at = found.end()
        return values

    def constant(self, token: Token, found: re.Match[str]) -> Value:
        """The constant that was found; a name is none, and therefore unknown."""
        name, content, at = found["name"], found["content"], found.start("name")
        if content is None:
            known = [each for each in self.scopes[-1] if each.startswith("%")]
            named = known and not name[1:].isdigit()  # any two numbers look alike
            hint = nearest(name, known) if named else "define it above the line that reads it"
            if any(name in scope for scope in self.scopes[:-1]):
                hint = "a region sees only its own inputs: hand it over as an argument"
            self.fail(token, f"there is no value {name} here", hint, at, len(name))
        type_ = Type.parse(found["type"])
        value = self.parsed(token, content, "value", at)
        self.refuse_handles(f"a constant of type {type_}", value, token)
        count = len(value) if isinstance(value, tuple) else None
        if count != (type_.size if type_.shape else None):
            said = "a single value" if count is None else f"{count} values"
            self.fail(token, f"{said} cannot be {type_}", at=at, width=len(name))
        return Value(Op("const", (), attrs_of({"type": type_, "value": value}), (type_,)), 0)

    def define(self, scope: dict[str, Value], name: str, value: Value, token: Token) -> None:
        if name in scope:
            self.fail(token, f"{name} is defined twice", width=len(name))
        scope[name] = value

    def one_type(self, token: Token) -> Type:
        types = _types(token)
        if len(types) != 1:
            self.fail(token, f"an input has one type, not {len(types)}")
        return types[0]

    # Errors.

    def parsed(self, token: Token, text: str, start: str, at: int = 0) -> Any:
        """Attributes or a value; `text` stands in `token` from character `at` on."""
        try:
            return _parsed(str(text), start)
        except UnexpectedInput as error:
            self.unexpected(error, token, at)

    def refuse_handles(self, what: str, value: Any, token: Token) -> None:
        for handle in _handles(value):
            self.fail(
                token,
                f"{what} holds an opaque {handle.kind} `{handle.key}`, which text cannot carry",
                at=token.index(handle.key),
                width=len(handle.key),
            )

    def unexpected(
        self, error: UnexpectedInput, token: Token | None = None, at: int = 0
    ) -> NoReturn:
        """Says what stands where something else was expected, in the text or inside of a token."""
        if isinstance(error, UnexpectedCharacters):
            wanted = error.allowed or set()
        else:
            wanted = error.accepts or set()
        ended = getattr(getattr(error, "token", None), "type", "") == "$END"
        inner = token if token is not None else self.text.rstrip()
        place = token if token is not None else Token("", self.text, 0, 1, 1)
        at = len(inner) if ended else at + error.pos_in_stream
        found = re.compile(r"[\w.%-]+|.|$", re.DOTALL).match(inner, at)[0]
        expected = " or ".join(sorted({*map(_shown, wanted - {"$END"})}) or ["the end"])
        said = f"expected {expected}, found {repr(found) if found else 'the end'}"
        self.fail(place, said, at=at, width=len(found))

    def fail(
        self, token: Token, message: str, hint: str = "", at: int = 0, width: int | None = None
    ) -> NoReturn:
        """Raises TextError at character `at` of a token."""
        before = token[:at].split("\n")
        line = token.line + len(before) - 1
        column = len(before[-1]) + (token.column if len(before) == 1 else 1)
        width = len(token) if width is None and not at else width or 1
        shown = self.text.split("\n")[line - 1].replace("\t", " ")
        if len(shown) > _SHOWN:  # a window of it, the column near its middle
            first = max(0, min(column - 1 - _SHOWN // 2, len(shown) - _SHOWN))
            shown, column = shown[first : first + _SHOWN], column - first
        width = min(width, len(shown) - column + 1)
        said = f"line {line}: {message}\n{caret(shown, column, width)}"
        raise TextError(said, hint=hint) from None


def _text(token: Token) -> Any:
    """A word, a text in quotes or a number."""
    return {"STRING": json.loads, "INT": int}.get(token.type, str)(token)


def _step(tree: Tree) -> Step:
    text, keeps, *notes = tree.children
    return Step(_text(text), str(keeps), tuple(map(_text, notes)))


def _layout(tree: Tree | None) -> Layout | None:
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


def _shown(terminal: str) -> str:
    """A terminal of the grammar as a person would say it."""
    if terminal in _IN_WORDS:
        return _IN_WORDS[terminal]
    known = (*_lines_parser().terminals, *_values_parser().terminals)
    pattern = next(each.pattern for each in known if each.name == terminal)
    return repr(pattern.value) if isinstance(pattern, PatternStr) else "a value"
