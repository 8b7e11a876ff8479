"""Rules broken on purpose: one guard, operator, axis or argument of a rule's source changed.

A mutant is compiled from the statements of its module that the rule is made of (its function, and
the helpers of the same module that it calls), in a copy of the module's namespace: nothing else
sees it. Rules of one function, which is given what differs between them, have the same mutants.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import ModuleType
from typing import Any

from dialect.checked.all_rules import FoundRule
from rewrite import opdef
from rewrite.rules import Rule

_FLIPS: dict[type, type] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
}
_KIN = (
    ("add", "sub"),
    ("mul", "div"),
    ("max", "min"),
    ("and", "or"),
    ("sqrt", "rsqrt"),
    ("lt", "le"),
    ("gt", "ge"),
    ("eq", "ne"),
    ("lt", "ge"),
    ("gt", "le"),
    ("reduce_sum", "reduce_max"),
)
# Calls that give their first argument in another form: without them it stays as it was.
_FORMS = {"reshaped", "in_dtype", "transposed", "reversed", "through", "_in_shape", "laid_out"}
_NOT_COMPUTED = {"Miss", "local", "word"}  # what they say is no part of what a rule does


@dataclass(frozen=True)
class Mutant:
    """A change of a rule's source: where, from what, to what."""

    line: int
    what: str
    source: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.what}"


def mutants(found: FoundRule) -> list[Mutant]:
    """Every mutant of a rule, in the order of its source; the first is the rule as it is."""
    module = _module(found)
    if module is None:
        return []
    statements = _statements(module, _variable(module, found))
    changed = [
        Mutant(line, what, _source(statements))
        for statement in statements
        for line, what in _changes(statement)
    ]
    return [Mutant(0, "as it is", _source(statements)), *sorted(changed, key=_line)]


def _line(mutant: Mutant) -> int:
    return mutant.line


def compiled(found: FoundRule, mutant: Mutant) -> Rule | None:
    """The rule of a mutant; None where its statements make none."""
    space = dict(vars(_module(found)))
    code = compile(mutant.source, f"<a mutant of {found.name}>", "exec", dont_inherit=True)
    exec(code, space)
    if function := shared_function(found):
        return replace(found.rule, apply=partial(space[function], *found.rule.apply.args))
    return next((v for v in space.values() if isinstance(v, Rule) and v.name == found.name), None)


def shared_function(found: FoundRule) -> str:
    """The function that a rule shares with others of its module; nothing where it has its own."""
    apply = found.rule.apply
    own = not isinstance(apply, partial) or apply.func.__module__ != found.module
    return "" if own else apply.func.__name__


def _module(found: FoundRule) -> ModuleType | None:
    return sys.modules.get(found.module)


@lru_cache(maxsize=256)
def _tree(module: ModuleType) -> ast.Module:
    return ast.parse(inspect.getsource(module))


def _variable(module: ModuleType, found: FoundRule) -> str | None:
    """What makes the rule: the variable that holds it, or the function that it shares."""
    held = (key for key, v in vars(module).items() if isinstance(v, Rule) and v.name == found.name)
    return shared_function(found) or next(held, None)


def _statements(module: ModuleType, variable: str | None) -> list[ast.stmt]:
    """The statement that makes the rule, and those of the functions and classes that it uses."""
    named = {each: s for s in _tree(module).body for each in _names(s)}
    chosen: dict[ast.stmt, None] = {}
    stack = [variable]
    while stack:
        statement = named.get(stack.pop())
        if statement is None or statement in chosen:
            continue
        chosen[statement] = None
        used = (node.id for node in _of_the_rule(statement) if isinstance(node, ast.Name))
        stack += [each for each in used if each in named and _defines(named[each])]
    return [statement for statement in _tree(module).body if statement in chosen]


def _of_the_rule(statement: ast.stmt) -> Iterator[ast.AST]:
    """Every node of a statement, but for the example of a rule: that is its test."""
    examples = {
        each
        for decorator in getattr(statement, "decorator_list", ())
        for keyword in ast.walk(decorator)
        if isinstance(keyword, ast.keyword) and keyword.arg == "example"
        for each in ast.walk(keyword)
    }
    return (node for node in ast.walk(statement) if node not in examples)


def _names(statement: ast.stmt) -> list[str]:
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _defines(statement: ast.stmt) -> bool:
    """Whether it may run again: a function of its own, no op and no other rule."""
    if isinstance(statement, ast.FunctionDef):
        return not any("local" in ast.dump(each) for each in statement.decorator_list)
    return isinstance(statement, ast.ClassDef)


def _source(statements: list[ast.stmt]) -> str:
    """The statements as they are now."""
    return "\n\n".join(["from __future__ import annotations", *map(ast.unparse, statements)])


# Changes, made in place and taken back when the generator goes on.


def _changes(statement: ast.stmt) -> Iterator[tuple[int, str]]:
    for parent, field, index, node in list(_places(statement)):
        for what, other in _others(node):
            _put(parent, field, index, other)
            try:
                yield getattr(node, "lineno", statement.lineno), what
            finally:
                _put(parent, field, index, node)


def _put(parent: ast.AST, field: str, index: int | None, node: Any) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def _places(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Every node of what a statement computes, with its place in its parent."""
    for field, value in ast.iter_fields(node):
        if field in ("decorator_list", "annotation", "returns", "args_of", "type_comment"):
            continue
        if isinstance(node, ast.arguments):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or _says_nothing(child):
                continue
            yield node, field, index, child
            yield from _places(child)


def _says_nothing(node: ast.AST) -> bool:
    if isinstance(node, (ast.JoinedStr, ast.Raise, ast.arguments)):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    return isinstance(node, ast.Call) and _called(node) in _NOT_COMPUTED


def _called(node: ast.Call) -> str:
    return getattr(node.func, "id", getattr(node.func, "attr", ""))


def _others(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What may stand in a node's place, and how to call the change."""
    if isinstance(node, ast.If) and not node.orelse and _leaves(node.body):
        yield f"without `if {_brief(node.test)}`", ast.Pass()
    elif isinstance(node, ast.BoolOp):
        for i, operand in enumerate(node.values):
            rest = [each for j, each in enumerate(node.values) if j != i]
            fewer = rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
            yield f"without `{_brief(operand)}`", fewer
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield f"without the not of `{_brief(node)}`", node.operand
    elif isinstance(node, ast.IfExp):
        yield f"always `{_brief(node.body)}`", node.body
        yield f"never `{_brief(node.body)}`", node.orelse
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _FLIPS:
        other = ast.Compare(node.left, [_FLIPS[type(node.ops[0])]()], node.comparators)
        yield f"`{_brief(other)}`", other
    elif isinstance(node, ast.BinOp) and type(node.op) in _FLIPS:
        other = ast.BinOp(node.left, _FLIPS[type(node.op)](), node.right)
        yield f"`{_brief(other)}`", other
    elif isinstance(node, ast.Constant):
        yield from _other_constants(node)
    elif isinstance(node, ast.Call):
        yield from _other_calls(node)
    elif isinstance(node, ast.comprehension) and node.ifs:
        fewer = ast.comprehension(node.target, node.iter, [], node.is_async)
        yield f"without `if {_brief(node.ifs[0])}`", fewer


def _leaves(body: list[ast.stmt]) -> bool:
    """Whether a branch only declines."""
    (last,) = body if len(body) == 1 else (None,)
    if isinstance(last, (ast.Continue, ast.Break)):
        return True
    if not isinstance(last, ast.Return):
        return False
    value = last.value
    declines = isinstance(value, ast.Constant) and value.value in (None, False)
    return value is None or declines or (isinstance(value, ast.Call) and _called(value) == "Miss")


def _other_constants(node: ast.Constant) -> Iterator[tuple[str, ast.AST]]:
    value = node.value
    if isinstance(value, bool):
        yield f"{not value} for {value}", ast.Constant(not value)
    elif isinstance(value, int):
        yield f"{value + 1} for {value}", ast.Constant(value + 1)
    elif isinstance(value, float):
        yield f"{value * 2 + 1} for {value}", ast.Constant(value * 2 + 1)
    elif isinstance(value, str):
        for kin in _KIN:
            if value in kin:
                (other,) = (name for name in kin if name != value)
                yield f"{other} for {value}", ast.Constant(other)


def _other_calls(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    name = _called(node)
    if name in _FORMS and node.args:
        yield f"`{_brief(node.args[0])}` for `{_brief(node)}`", node.args[0]
    makes = name == "make" and node.args and isinstance(node.args[0], ast.Constant)
    if not makes:
        return
    op, *args = node.args
    if op.value in ("transpose", "reshape", "convert_element_type", "broadcast_in_dim"):
        yield f"no {op.value} of `{_brief(args[0])}`", args[0]
    starred = any(isinstance(arg, ast.Starred) for arg in args)
    if len(args) == 2 and not starred and not opdef.lookup(op.value).traits.commutes:
        swapped = ast.Call(node.func, [op, args[1], args[0]], node.keywords)
        yield f"arguments swapped in `{_brief(node)}`", swapped


def _brief(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) < 70 else f"{text[:66]} ..."
