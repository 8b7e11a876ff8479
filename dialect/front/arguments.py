"""The arguments of the commands, in groups that several commands share."""

from __future__ import annotations

import argparse
from typing import Any

from dialect.front.completion import SHELLS


def _argument(text: str) -> int | str:
    """An argument of the user's function, by its number or its name."""
    return int(text) if text.isdecimal() else text


def _count(text: str) -> int:
    """How many there are, at least one."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _said(text: str) -> str:
    """A text that says something: an empty one is a shell's variable that nobody set."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty: leave it out, or say what it is")
    return text


def add_function(parser: argparse.ArgumentParser) -> None:
    """A decoder's step, with a batch."""
    add = add_decoder(parser).add_argument
    add("--batch", type=_count, default=64, metavar="N", help="sequences (64)")
    parser.set_defaults(sizes=("--batch", "--context", "--tokens", "--unrolled"))


def add_eval(parser: argparse.ArgumentParser) -> None:
    """Of `eval`."""
    add = add_decoder(parser, context=256).add_argument
    add("--batch", type=_count, default=32, metavar="N", help="rows of the text (32)")
    add("--text", nargs="+", default=(), metavar="FILE", help="instead of its held_out()")
    add = parser.add_argument_group("what is measured").add_argument
    add("--tasks", metavar="LIST", help="besides the text: copy, needle")
    text = "passes to compare: each TEXT runs alone behind the passes of -p"
    add("--compare", nargs="+", default=(), metavar="TEXT", help=text)
    add("--plot", metavar="FILE", help="accuracy over bytes, as .png, .svg or .pdf")
    text = "written: how much units, heads and layers matter, for prune{by=activation}"
    add("--importance", metavar="FILE", help=text)


def add_sweep(parser: argparse.ArgumentParser) -> None:
    """Of `sweep`."""
    add = add_decoder(parser).add_argument
    add("--prefill", metavar="FILE.py:FUNCTION", help="costed too, with --tokens (all of context)")
    add = parser.add_argument_group(
        "what is varied",
        "Every function is traced once for every --config; its sizes are then varied"
        " analytically: nothing is compiled. A range doubles: 8..64 is 8,16,32,64.",
    ).add_argument
    add("--chip", required=True, metavar="NAME", help="v4, v5e, ..., or the file of a machine")
    add("--chips", default="8..256", metavar="RANGE", help="in standard slices (8..256)")
    add("--batch", default="1..1024", metavar="RANGE", help="sequences (1..1024)")
    add("--dtype", default="bf16,int8", metavar="LIST", help="of the weights (bf16,int8)")
    add = parser.add_argument_group("where the result goes").add_argument
    add("--plot", metavar="FILE", help="cost over latency, as .png, .svg or .pdf")
    add("--out", metavar="FILE", help="the table, or with --json the facts, instead of printing")


def add_simulation(parser: argparse.ArgumentParser) -> None:
    """Of `simulate`."""
    add_decoder(parser)
    add = parser.add_argument_group("the requests: of a trace, or drawn").add_argument
    add("--trace", metavar="FILE", help="Azure's (.csv) or Mooncake's (.jsonl)")
    add("--requests", type=int, metavar="N", help="how many (all of a trace; 1000)")
    add("--rate", metavar="LIST", help="requests a second, such as 1,2,4; max: all at once")
    add("--burst", type=float, metavar="CV", help="of Gamma intervals; 1 is Poisson (1 if drawn)")
    add("--prompt", type=float, default=161, metavar="N", help="mean tokens of a prompt (161)")
    add("--new", type=float, default=338, metavar="N", help="mean tokens of an answer (338)")
    add("--spread", default="1.2,1.0", metavar="A,B", help="of their logarithms (1.2,1.0)")
    add("--prefixes", default="0x0", metavar="NxTOKENS", help="shared by the prompts (0x0)")
    add("--longest", type=int, default=8192, metavar="N", help="tokens a request may have (8192)")
    add("--seed", type=int, default=0, metavar="N", help="of what is drawn (0)")
    add = parser.add_argument_group("how they are served; lists are compared").add_argument
    add("--mesh", required=True, metavar="LIST", help="v5e:2x2, v5e:2x4, ...")
    add("--owner", metavar="LIST", help="of the pages: heads, batch (what is better)")
    add("--batching", default="static,slots,pages", metavar="LIST", help="(static,slots,pages)")
    add("--page", default="128", metavar="LIST", help="tokens of a page (128)")
    add("--rows", type=int, metavar="N", help="requests that run at a time (as have room)")
    add("--chunk", type=int, metavar="N", help="tokens of a step (as many as hide behind reading)")
    add("--room", type=int, metavar="N", help="tokens that have pages (what memory is left)")
    add("--victim", default="last", metavar="NAME", help="who loses its pages (last)")
    add("--guessed", type=float, default=0.0, metavar="P", help="a draft is right so often (none)")
    add("--no-sharing", action="store_true", help="of the pages of equal beginnings")
    add("--plot", metavar="FILE", help="latency over rate, as .png, .svg or .pdf")


def add_serving(parser: argparse.ArgumentParser) -> None:
    """Of `serve`."""
    group = parser.add_argument_group("the decoder")
    add = group.add_argument
    add("function", metavar="FILE.py:FUNCTION", help="or package.module:FUNCTION")
    add("--config", metavar="NAME", help="a name in its CONFIGS")
    text = "a checkpoint, for its read_params, or with arrays named as its parameters are"
    add("--weights", metavar="FILE", help=f"{text} (its trained_params)")
    add("--tokenizer", metavar="FILE", help="a tokenizer.json or its folder (its tokenizer())")
    add("--chat-template", metavar="FILE", help="of jinja (its chat_template(), the folder's)")
    add("--stop", metavar="TOKEN", help="behind which an answer ends (its stop_tokens())")
    group = parser.add_argument_group("how it is served")
    add_pipeline(group)
    add = group.add_argument
    add("--mesh", metavar="TOPOLOGY", help="v5e:2x4, cpu:8, ... (all devices there are)")
    add("--context", type=_count, default=2048, metavar="N", help="tokens of a request (2048)")
    add("--rows", type=int, metavar="N", help="requests that run at a time (by the plan)")
    add("--chunk", type=int, metavar="N", help="tokens of a step, prompts included (by the plan)")
    add("--pages", type=int, metavar="N", help="of the cache (as have room)")
    text = "ngram, self (int4 weights), passes, or FILE.py:FUNCTION of a second decoder (none)"
    add("--draft", metavar="WHAT", help=text)
    add("--draft-config", metavar="NAME", help="a name in the CONFIGS of a second decoder")
    add("--draft-weights", metavar="FILE", help="its checkpoint (its trained_params)")
    add("--draft-length", type=int, metavar="N", help="the most of a request (as many as pay)")
    text = "ADDRESS:PORT,COUNT,NUMBER of this process, or auto on a TPU slice (one process)"
    add("--hosts", metavar="WHICH", help=text)
    add("--name", metavar="NAME", help="of the model (that of the configuration)")
    add = parser.add_argument_group(
        "who may ask", "Where SHARDWRIGHT_TOKEN is set, clients must send it as bearer token."
    ).add_argument
    add("--host", default="127.0.0.1", metavar="HOST", help="to bind to (127.0.0.1)")
    add("--port", type=int, default=8000, metavar="N", help="(8000)")
    text = "requests that wait before others are told to come again (256)"
    add("--max-waiting", type=int, default=256, metavar="N", help=text)


def add_decoder(parser: argparse.ArgumentParser, context: int = 2048) -> Any:
    """The user's code; returns the group for what it is called with."""
    group = parser.add_argument_group("the function and its arguments")
    add = group.add_argument
    text = "or package.module:FUNCTION; the file of a program's text (.ir), or - for standard input"
    add("function", metavar="FILE.py:FUNCTION", help=text)
    text = "which argument is its parameters (the first of arrays)"
    add("--params", metavar="NAME", type=_argument, help=text)
    add("--state", metavar="NAME", type=_argument, help="what comes back updated (detected)")
    text = (
        "what an argument is: tokens=i32[8], cache={k: f32[2,8,64]}, params=FILE.safetensors,"
        " cache=init_cache(8,64) of the same file, config=FILE.json; one for every argument"
    )
    add = group.add_mutually_exclusive_group().add_argument
    add("--shape", action="append", default=[], metavar="NAME=WHAT", help=text)
    add("--args", metavar="FILE.py:FUNCTION", help="returns a tuple of arguments, or of shapes")
    text = "of a decoder as in examples/: a name in its CONFIGS, or the .json of its fields"
    add("--config", type=_said, metavar="NAME", help=text)
    called = parser.add_argument_group("what a --config is called with")
    add = called.add_argument
    text = f"positions in the cache ({context})"
    add("--context", type=_count, default=context, metavar="N", help=text)
    add("--tokens", type=_count, metavar="N", help="new tokens per sequence, for prefill")
    add("--unrolled", action="store_true", help="layers one by one, not in a loop")
    return called


def add_file(parser: argparse.ArgumentParser) -> None:
    """Of `opt`."""
    parser.add_argument("file", nargs="?", default="-", help="a program's text (standard input)")
    parser.add_argument("--list-passes", action="store_true", help="the same as `passes`")


def add_rules(parser: argparse.ArgumentParser) -> None:
    """Of `check-rules`."""
    add = parser.add_argument
    text = "a module, package, Python file or file of rules (all rules there are)"
    add("places", nargs="*", default=("dialect", "passes"), metavar="MODULE", help=text)
    add("--rule", metavar="NAME", help="one alone")
    add("--seed", type=int, default=0, metavar="N", help="of the programs and numbers (0)")
    add("--instances", type=int, default=20, metavar="N", help="firings of every rule (20)")


def add_passes(parser: argparse.ArgumentParser) -> None:
    """Which passes run, for what, and what is seen of them."""
    group = parser.add_argument_group("passes")
    add_pipeline(group)
    add = group.add_argument
    add("--phase", type=_said, metavar="NAME", help="of a pipeline with several")
    text = "v5e:2x4, v5e-8, cpu:8, FILE.machine:8, ... (the pipeline's)"
    add("--target", type=_said, metavar="TOPOLOGY", help=text)
    add("--strict", action="store_true", help="fail where what was asked for was not done")
    _add_watching(parser)


def _add_watching(parser: argparse.ArgumentParser) -> None:
    about = "What is printed here goes to standard error."
    add = parser.add_argument_group("watching the passes", about).add_argument
    for when, what in (("before", "gets"), ("after", "gives")):
        text = f"the program that this pass {what}; again for others"
        add(f"--print-ir-{when}", action="append", default=[], metavar="PASS", help=text)
        text = f"the program {when} every pass"
        add(f"--print-ir-{when}-all", action="store_true", help=text)
    add("--print-ir-diff", action="store_true", help="what every pass changes, and what that saves")
    add("--time-passes", action="store_true", help="one line per pass at the end")
    text = "read the text of every program back, too; that it is valid is always checked"
    add("--verify-each", action="store_true", help=text)
    add("--crash-reproducer", metavar="FILE", help="written on a failure, read by `reproduce`")
    add("--verify-numerics", action="store_true", help="compare numbers after every pass")


def add_pipeline(group: Any) -> None:
    """A pipeline, as text or in a file."""
    either = group.add_mutually_exclusive_group()
    add, text = either.add_argument, 'such as "normalize, recognize"'
    add("-p", "--passes", type=_said, metavar="TEXT", help=text)
    add("--pipeline", type=_said, metavar="FILE", help="a pipeline file")


def add_explain(parser: argparse.ArgumentParser) -> None:
    """Of `show`."""
    add = parser.add_argument
    add("--explain", action="store_true", help="what was done and why, instead of the program")


def add_details(parser: argparse.ArgumentParser) -> None:
    """Of `explain`."""
    text = "every pass with its rules, every plan, every cost, every axis"
    parser.add_argument("--details", action="store_true", help=text)


def add_report(parser: argparse.ArgumentParser) -> None:
    """Of `report`."""
    add = parser.add_argument_group("the report").add_argument
    add("-o", "--out", default="report.html", metavar="FILE", help="where it goes (report.html)")
    text = "what the compiler made, too: schedule, collectives, memory; takes its time"
    add("--compile", action="store_true", help=text)
    add("--accuracy", metavar="FILE", help="what `eval --json` printed, for the page")


def add_listing(parser: argparse.ArgumentParser) -> None:
    """How a program is printed."""
    group = parser.add_argument_group("how the program is printed")
    add = group.add_mutually_exclusive_group().add_argument
    text = "for people: repeated layers once, the user's names (the default on a terminal)"
    add("--fold", action="store_true", default=None, help=text)
    text = "the text that reads back (the default in a pipe)"
    add("--full", dest="fold", action="store_false", help=text)
    group.add_argument("--sources", action="store_true", help="with --fold: lines and rules too")


def add_diff(parser: argparse.ArgumentParser) -> None:
    """Of `diff`."""
    add_function(parser)
    add = parser.add_argument_group("what is compared").add_argument
    text = "another program; without one, the first before and after its passes"
    add("other", nargs="?", metavar="OTHER", help=text)
    add("--pass", dest="only", metavar="PASS", help="before and after this pass alone")
    add("--most", type=_count, default=40, metavar="N", help="ops of a change that are shown (40)")


def add_json(parser: argparse.ArgumentParser) -> None:
    """For machines."""
    parser.add_argument("--json", action="store_true", help="for machines, errors included")


def add_common(parser: argparse.ArgumentParser) -> None:
    """Of every command."""
    group = parser.add_argument_group("the screen")
    choices, text = ("auto", "always", "never"), "colour (auto: on a terminal, unless NO_COLOR)"
    group.add_argument("--color", choices=choices, default="auto", help=text)
    text = "where a mistake that nobody foresaw was made, as a traceback"
    group.add_argument("--debug", action="store_true", help=text)


def add_shell(parser: argparse.ArgumentParser) -> None:
    """Of `completion`."""
    parser.add_argument("shell", choices=SHELLS, help="whose completion is printed")


def add_bisect(parser: argparse.ArgumentParser) -> None:
    """Of `bisect`."""
    add = parser.add_argument_group("what it is run on").add_argument
    add("--seed", type=int, default=0, metavar="N", help="of the numbers (0)")
    add("--out", metavar="FILE", help="a reproducer, where something is wrong")


def add_reproduce(parser: argparse.ArgumentParser) -> None:
    """Of `reproduce`."""
    add = parser.add_argument
    add("file", metavar="FILE", help="written by --crash-reproducer, `bisect --out` or a fuzzer")
    add("--reduce", action="store_true", help="make it smaller while it fails in the same way")
    add("--seconds", type=float, default=60.0, metavar="S", help="to spend on that (60)")
    add("--out", metavar="FILE", help="where the smaller one goes (FILE.reduced)")
