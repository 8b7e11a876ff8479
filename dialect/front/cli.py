"""The `shardwright` command.

    shardwright compile examples/llama.py:decode_step --config 8b --pipeline serve.pipeline
    shardwright show    examples/llama.py:decode_step --config 8b -p "normalize, recognize"
    shardwright coverage examples/llama.py:decode_step --config 8b
    shardwright eval    examples/tiny/model.py:decode_step --config mha -p "quantize{weights=int8}"
    shardwright sweep   examples/palm.py:decode_step --config 540b --chip v4 --plot pareto.png
    shardwright simulate examples/llama.py:decode_step --config 8b --mesh v5e:2x2 --trace conv.csv
    shardwright serve   examples/smollm2.py:decode_step --config 135m --mesh cpu:1 --port 8000
    shardwright opt     program.ir -p "normalize"
    shardwright bisect  examples/llama.py:decode_step --config toy --pipeline serve.pipeline
    shardwright reproduce crash.ir --reduce
    shardwright check-rules examples/own.rules
    shardwright passes

It traces on the CPU and compiles ahead of time; only `eval` and `serve` run the program, and only
`serve` uses a TPU.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from dialect.front import versions
from rewrite.errors import ShardwrightError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line, given without the program's name. Returns the exit code."""
    args = _parser().parse_args(argv)
    if args.command != "serve" or (args.mesh or "").startswith("cpu"):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # read when JAX is imported
    try:
        versions.check()
        from dialect.front import commands  # with JAX, whose version is now known to do

        commands.run(args)
        sys.stdout.flush()
    except ShardwrightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader has gone; what is still unwritten must not raise again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _argument(text: str) -> int | str:
    """An argument of the user's function, by its number or its name."""
    return int(text) if text.isdecimal() else text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shardwright", description="Rewrites JAX decoders for inference."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, about, groups in _COMMANDS:
        command = commands.add_parser(name, help=about, description=about)
        command.set_defaults(command=name, json=False)
        for add in groups:
            add(command)
    return parser


def _add_function(parser: argparse.ArgumentParser) -> None:
    add = _add_decoder(parser).add_argument
    add("--batch", type=int, default=64, metavar="N", help="sequences (64)")


def _add_eval(parser: argparse.ArgumentParser) -> None:
    add = _add_decoder(parser, context=256).add_argument
    add("--batch", type=int, default=32, metavar="N", help="rows of the text (32)")
    add("--text", nargs="+", default=(), metavar="FILE", help="instead of its held_out()")
    add = parser.add_argument_group("what is measured").add_argument
    add("--tasks", metavar="LIST", help="besides the text: copy, needle")
    text = "passes to compare: each TEXT runs alone behind the passes of -p"
    add("--compare", nargs="+", default=(), metavar="TEXT", help=text)
    add("--plot", metavar="FILE", help="accuracy over bytes, as .png, .svg or .pdf")


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    add = _add_decoder(parser).add_argument
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


def _add_simulation(parser: argparse.ArgumentParser) -> None:
    _add_decoder(parser)
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
    add("--no-sharing", action="store_true", help="of the pages of equal beginnings")
    add("--plot", metavar="FILE", help="latency over rate, as .png, .svg or .pdf")


def _add_serving(parser: argparse.ArgumentParser) -> None:
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
    _add_pipeline(group)
    add = group.add_argument
    add("--mesh", metavar="TOPOLOGY", help="v5e:2x4, cpu:8, ... (all devices there are)")
    add("--context", type=int, default=2048, metavar="N", help="tokens of a request (2048)")
    add("--rows", type=int, metavar="N", help="requests that run at a time (16)")
    add("--chunk", type=int, metavar="N", help="tokens of a step, prompts included (4 * rows)")
    add("--pages", type=int, metavar="N", help="of the cache (as have room)")
    add("--name", metavar="NAME", help="of the model (that of the configuration)")
    add = parser.add_argument_group(
        "who may ask", "Where SHARDWRIGHT_TOKEN is set, clients must send it as bearer token."
    ).add_argument
    add("--host", default="127.0.0.1", metavar="HOST", help="to bind to (127.0.0.1)")
    add("--port", type=int, default=8000, metavar="N", help="(8000)")
    text = "requests that wait before others are told to come again (256)"
    add("--max-waiting", type=int, default=256, metavar="N", help=text)


def _add_decoder(parser: argparse.ArgumentParser, context: int = 2048) -> Any:
    """The user's code; returns the group for what it is called with."""
    group = parser.add_argument_group("the function and its arguments")
    add = group.add_argument
    add("function", metavar="FILE.py:FUNCTION", help="or package.module:FUNCTION")
    add("--params", default=0, metavar="NAME", type=_argument, help="its parameters (the first)")
    add("--state", metavar="NAME", type=_argument, help="what comes back updated (detected)")
    add = group.add_mutually_exclusive_group().add_argument
    add("--args", metavar="FILE.py:FUNCTION", help="returns a tuple of arguments, or of shapes")
    add("--config", metavar="NAME", help="of a decoder as in examples/: a name in its CONFIGS")
    called = parser.add_argument_group("what a --config is called with")
    add = called.add_argument
    text = f"positions in the cache ({context})"
    add("--context", type=int, default=context, metavar="N", help=text)
    add("--tokens", type=int, metavar="N", help="new tokens per sequence, for prefill")
    add("--unrolled", action="store_true", help="layers one by one, not in a loop")
    return called


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", default="-", help="a program's text (standard input)")
    parser.add_argument("--list-passes", action="store_true", help="the same as `passes`")


def _add_rules(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = "a module, package, Python file or file of rules (all rules there are)"
    add("places", nargs="*", default=("dialect", "passes"), metavar="MODULE", help=text)
    add("--rule", metavar="NAME", help="one alone")
    add("--seed", type=int, default=0, metavar="N", help="of the programs and numbers (0)")
    add("--instances", type=int, default=20, metavar="N", help="firings of every rule (20)")


def _add_passes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("passes")
    _add_pipeline(group)
    add = group.add_argument
    add("--phase", metavar="NAME", help="of a pipeline with several")
    add("--target", metavar="TOPOLOGY", help="v5e:2x4, v5e-8, cpu:8, ... (the pipeline's)")
    add("--print-ir-after-all", action="store_true", help="the program after every pass")
    add("--print-ir-before", action="append", default=[], metavar="PASS")
    add("--time-passes", action="store_true", help="one line per pass at the end")
    add("--crash-reproducer", metavar="FILE", help="written on a failure, read by `reproduce`")
    add("--verify-numerics", action="store_true", help="compare numbers after every pass")
    add("--strict", action="store_true", help="fail where what was asked for was not done")


def _add_pipeline(group: Any) -> None:
    either = group.add_mutually_exclusive_group()
    either.add_argument("-p", "--passes", metavar="TEXT", help='such as "normalize, recognize"')
    either.add_argument("--pipeline", metavar="FILE", help="a pipeline file")


def _add_explain(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--explain", action="store_true", help="what was done and why, instead of the program")


def _add_listing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how the program is printed")
    add = group.add_mutually_exclusive_group().add_argument
    text = "for people: repeated layers once, the user's names (the default on a terminal)"
    add("--fold", action="store_true", default=None, help=text)
    text = "the text that reads back (the default in a pipe)"
    add("--full", dest="fold", action="store_false", help=text)
    group.add_argument("--sources", action="store_true", help="with --fold: lines and rules too")


def _add_diff(parser: argparse.ArgumentParser) -> None:
    _add_function(parser)
    add = parser.add_argument_group("what is compared").add_argument
    text = "another program; without one, the first before and after its passes"
    add("other", nargs="?", metavar="OTHER", help=text)
    add("--pass", dest="only", metavar="PASS", help="before and after this pass alone")
    add("--most", type=int, default=40, metavar="N", help="ops of a change that are shown (40)")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for machines")


def _add_bisect(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what it is run on").add_argument
    add("--seed", type=int, default=0, metavar="N", help="of the numbers (0)")
    add("--out", metavar="FILE", help="a reproducer, where something is wrong")


def _add_reproduce(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="FILE", help="written by --crash-reproducer, `bisect --out` or a fuzzer")
    add("--reduce", action="store_true", help="make it smaller while it fails in the same way")
    add("--seconds", type=float, default=60.0, metavar="S", help="to spend on that (60)")
    add("--out", metavar="FILE", help="where the smaller one goes (FILE.reduced)")


# Each command: what it does, and the groups of its arguments.
_COMMANDS = (
    (
        "compile",
        "Rewrites a function, compiles it, and shows the executable.",
        (_add_function, _add_passes, _add_json),
    ),
    (
        "show",
        "Rewrites a function and prints the program.",
        (_add_function, _add_explain, _add_listing, _add_passes, _add_json),
    ),
    (
        "coverage",
        "Shows what of a function is recognised, what is not and why, and what its axes are.",
        (_add_function, _add_passes, _add_json),
    ),
    (
        "eval",
        "Measures on held-out text the accuracy that every pass costs and the bytes that it saves.",
        (_add_eval, _add_passes, _add_json),
    ),
    (
        "sweep",
        "Costs a decoder over chips, batches and dtypes of weights; marks the Pareto front.",
        (_add_sweep, _add_passes, _add_json),
    ),
    (
        "simulate",
        "Serves a load on paper: throughput, latencies and pages, on any mesh.",
        (_add_simulation, _add_passes, _add_json),
    ),
    (
        "serve",
        "Serves a decoder over HTTP, as OpenAI's clients speak it.",
        (_add_serving,),
    ),
    (
        "diff",
        "Shows how two programs differ, or what passes change, and what that saves.",
        (_add_diff, _add_passes, _add_json),
    ),
    (
        "opt",
        "Reads a program, or the file of a crash, runs passes, and prints the result.",
        (_add_file, _add_listing, _add_passes),
    ),
    (
        "bisect",
        "Names the first pass, and its first rule, after which numbers leave their class.",
        (_add_function, _add_passes, _add_bisect),
    ),
    (
        "reproduce",
        "Runs the file of a failure again; with --reduce, makes it as small as it still fails.",
        (_add_reproduce,),
    ),
    (
        "check-rules",
        "Tries rules on programs around their examples: do they keep what they claim?",
        (_add_rules, _add_json),
    ),
    (
        "passes",
        "Lists every pass, those of other packages included.",
        (_add_json,),
    ),
)
