"""Every rule of some packages, found by walking them, so that no check of all rules forgets one."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

from dialect.normal.normal_form import normal_form
from dialect.user import usercode
from dialect.user.rule_file import read_rules
from rewrite.rules import Rule
from rewrite.source import read_file

Family = tuple[Rule, ...]


@dataclass(frozen=True)
class FoundRule:
    """A rule, the module that defines it, and the sets of rules that it is used in.

    `more` is the rule with other examples: further programs to try it on, near misses too.
    """

    rule: Rule
    module: str
    families: tuple[Family, ...]
    more: tuple[Rule, ...] = ()

    @property
    def name(self) -> str:
        """The rule's own name."""
        return self.rule.name


def all_rules(*places: str) -> list[FoundRule]:
    """Every rule of these packages, modules, Python files and files of rules, each once.

    Raises UsageError for an unknown name, and whatever `read_rules` raises.
    """
    texts = [place for place in places if place.endswith(".rules")]
    modules = [m for place in places if place not in texts for m in _modules(place)]
    return [*rules_of_modules(modules), *(rule for place in texts for rule in _of_text(place))]


def rules_of_modules(modules: Sequence[ModuleType]) -> list[FoundRule]:
    """Every rule that the modules hold, by itself or in a tuple, once."""
    families = [family for module in modules for family in _families(module)]
    homes: dict[Rule, str] = {}
    for module in modules:  # those defined there, before those that are only used there
        for rule in _members(module):
            if _definer(rule) in (module.__name__, ""):
                homes.setdefault(rule, module.__name__)
    for family in families:
        for rule in family:
            homes.setdefault(rule, _definer(rule))
    return [
        FoundRule(rule, home, tuple(dict.fromkeys(f for f in families if rule in f)))
        for rule, home in homes.items()
    ]


def _modules(place: str) -> Iterator[ModuleType]:
    module = usercode.module_of(place)
    yield module
    for info in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{module.__name__}."):
        yield importlib.import_module(info.name)


def _of_text(place: str) -> list[FoundRule]:
    rules = read_rules(read_file(place, "rules"), place, normal_form)
    return [FoundRule(rule, place, (rules,)) for rule in rules]


def _definer(rule: Rule) -> str:
    """The module that defines the rule; "" where a function of the engine made it."""
    name = getattr(rule.example, "__module__", "") or ""
    return "" if name.startswith("rewrite.") else name


def _members(module: ModuleType) -> Iterator[Rule]:
    return (value for value in vars(module).values() if isinstance(value, Rule))


def _families(module: ModuleType) -> Iterator[Family]:
    """The rules that a module defines, and those that its tuples, lists and tables hold."""
    defined = [rule for rule in _members(module) if _definer(rule) in (module.__name__, "")]
    yield tuple(defined)
    for value in vars(module).values():
        members = list(value.values()) if isinstance(value, dict) else value
        if isinstance(members, (tuple, list)) and any(isinstance(item, Rule) for item in members):
            yield tuple(item for item in members if isinstance(item, Rule))
