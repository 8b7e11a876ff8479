"""Completion of the command line in bash, zsh and fish, from the parser itself."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

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
    --pass|--print-ir-before|--print-ir-after)
      COMPREPLY=($(compgen -W "%(passes)s" -- "$word")); return ;;
  esac
  case "$word" in
    -*) ;;
    *) COMPREPLY=($(compgen -f -- "$word")); return ;;
  esac
  case "$command" in
%(cases)s
  esac
}
complete -o filenames -F _shardwright shardwright
"""


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The text that a shell evaluates."""
    commands = _commands(parser)
    if shell == "fish":
        return _fish(commands)
    cases = "\n".join(
        f'    {name}) COMPREPLY=($(compgen -W "{" ".join(options)}" -- "$word")) ;;'
        for name, (_, options) in commands.items()
    )
    passes = " ".join(pass_names())
    text = _BASH % {"commands": " ".join(commands), "cases": cases, "passes": passes}
    before = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return before + text


def _commands(parser: argparse.ArgumentParser) -> dict[str, tuple[str, list[str]]]:
    """{command: (what it does, its options)}."""
    (group,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    about = {action.dest: action.help or "" for action in group._choices_actions}
    return {
        name: (
            about[name],
            [text for a in command._actions for text in a.option_strings if text[:2] == "--"],
        )
        for name, command in group.choices.items()
    }


def _fish(commands: Mapping[str, tuple[str, list[str]]]) -> str:
    lines = []
    first = "__fish_use_subcommand"
    for name, (about, options) in commands.items():
        lines.append(f"complete -c shardwright -f -n {first} -a {name} -d {_quoted(about)}")
        seen = f"'__fish_seen_subcommand_from {name}'"
        for text in options:
            takes = f" -x -a '{' '.join(pass_names())}'" if text in _OF_PASSES else ""
            lines.append(f"complete -c shardwright -n {seen} -l {text[2:]}{takes}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
