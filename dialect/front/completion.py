"""Completion of the command line in bash, zsh and fish, from the parser itself."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass

from rewrite.passbase import pass_names

SHELLS = ("bash", "zsh", "fish")
_OF_PASSES = ("--pass", "--print-ir-before", "--print-ir-after")
_BASH = """\
_shardwright() {
  local word=${COMP_WORDS[COMP_CWORD]} command=${COMP_WORDS[1]}
  local before=${COMP_WORDS[COMP_CWORD-1]}
  case "$COMP_CWORD:$word" in
    1:*) COMPREPLY=($(compgen -W "%(commands)s" -- "$word")); return ;;
  esac
  case "$before" in
%(values)s
  esac
  case "$command:$word" in
%(cases)s
    *) COMPREPLY=($(compgen -f -- "$word")) ;;
  esac
}
complete -o filenames -F _shardwright shardwright
"""


@dataclass(frozen=True)
class _Command:
    """What may follow a command: its options, and words that are no files."""

    about: str
    options: tuple[str, ...]
    words: tuple[str, ...]


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The text that a shell evaluates."""
    commands, values = _commands(parser)
    if shell == "fish":
        return _fish(commands, values)
    cases = []
    for name, command in commands.items():
        cases.append(_case(f"{name}:-*", command.options))
        cases += [_case(f"{name}:*", command.words)] if command.words else []
    text = _BASH % {
        "commands": " ".join(commands),
        "cases": "\n".join(cases),
        "values": "\n".join(_case(name, words, " return") for name, words in values.items()),
    }
    before = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return before + text


def _case(pattern: str, words: Iterable[str], then: str = "") -> str:
    offered = f'COMPREPLY=($(compgen -W "{" ".join(words)}" -- "$word"));'
    return f"    {pattern}) {offered}{then} ;;"


def _commands(
    parser: argparse.ArgumentParser,
) -> tuple[dict[str, _Command], dict[str, tuple[str, ...]]]:
    """The commands, and the values of all options of which they are known."""
    (group,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    about = {action.dest: action.help or "" for action in group._choices_actions}
    commands, values = {}, dict.fromkeys(_OF_PASSES, tuple(pass_names()))
    for name, command in group.choices.items():
        options = [text for a in command._actions for text in a.option_strings if text[:2] == "--"]
        chosen = [a for a in command._actions if a.choices]
        words = tuple(word for a in chosen if not a.option_strings for word in a.choices or ())
        commands[name] = _Command(about[name], tuple(options), words)
        values |= {text: tuple(a.choices or ()) for a in chosen for text in a.option_strings}
    return commands, values


def _fish(commands: dict[str, _Command], values: dict[str, tuple[str, ...]]) -> str:
    lines = []
    first = "__fish_use_subcommand"
    for name, command in commands.items():
        lines.append(f"complete -c shardwright -f -n {first} -a {name} -d {_quoted(command.about)}")
        seen = f"'__fish_seen_subcommand_from {name}'"
        if command.words:
            lines.append(f"complete -c shardwright -f -n {seen} -a '{' '.join(command.words)}'")
        for text in command.options:
            takes = f" -x -a '{' '.join(values[text])}'" if text in values else ""
            lines.append(f"complete -c shardwright -n {seen} -l {text[2:]}{takes}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
