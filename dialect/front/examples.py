"""Command lines that show what a command is for: its `--help` ends with them.

They are those of a clone of the project; FILE.py:FUNCTION stands for a decoder of one's own.
"""

from __future__ import annotations

LLAMA = "examples/llama.py:decode_step"
SERVED = "--pipeline examples/serve.pipeline"

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "compile": (
        (
            f"{LLAMA} --config 8b --batch 64 --context 2048 {SERVED}",
            "for eight TPU v5e, without one",
        ),
        (f"{LLAMA} --config toy --target cpu:8 --json", "for a machine to read"),
    ),
    "show": (
        (f'{LLAMA} --config toy -p "normalize, recognize"', "the program after two passes"),
        (f"{LLAMA} --config 70b --unrolled --fold", "80 layers, the same ones once"),
        (
            "mine.py:step --shape params=model.safetensors --shape 'cache=init_cache(8, 64)'"
            " --shape tokens=i32[8]",
            "a decoder of one's own, its arguments said",
        ),
        (f"{LLAMA} --config toy --print-ir-diff", "what every pass changed, on standard error"),
    ),
    "explain": (
        (f"{LLAMA} --config 8b --pipeline examples/serve.pipeline", "a page: done, bought, left"),
        (
            f"{LLAMA} --config 8b --pipeline examples/serve.pipeline --details",
            "all there is to say",
        ),
    ),
    "diff": (
        (f'{LLAMA} --config toy -p "normalize, recognize"', "before and after the passes"),
        (f"{LLAMA} --config toy --pass recognize", "before and after one of them"),
        ("before.ir after.ir", "two programs"),
    ),
    "report": (
        (
            f"{LLAMA} --config 8b {SERVED} --out report.html",
            "one page with everything",
        ),
    ),
    "coverage": ((f"{LLAMA} --config 8b", "what is recognised, layer by layer"),),
    "eval": (
        (
            "examples/tiny/model.py:decode_step --config mha"
            ' -p "normalize, recognize, quantize{weights=int8}"',
            "what int8 weights cost in accuracy",
        ),
    ),
    "sweep": (
        ("examples/palm.py:decode_step --config 540b --chip v4", "cost over latency, by chips"),
    ),
    "simulate": (
        (f"{LLAMA} --config 8b --mesh v5e:2x2 --rate 1,2,4", "latencies of a load, on paper"),
    ),
    "serve": (
        ("examples/smollm2.py:decode_step --config 135m --mesh cpu:1", "for OpenAI's clients"),
    ),
    "opt": (
        ('program.ir -p "carry_cache, stage"', "text in, text out"),
        ("crash.ir", "a failure again, from its own file"),
    ),
    "bisect": (
        (f'{LLAMA} --config toy -p "normalize, recognize"', "the first rule that changes numbers"),
    ),
    "reproduce": (("crash.ir --reduce", "as small as it still fails"),),
    "check-rules": (("examples/own.rules", "do my rules keep what they claim?"),),
    "passes": (("", "every pass, with its options"),),
    "completion": (
        ("bash", 'eval it in ~/.bashrc: eval "$(shardwright completion bash)"'),
        ("fish", "shardwright completion fish | source"),
    ),
}

EXIT_CODES = (
    (0, "done"),
    (1, "refused, or a fault was found: the message says what, where and what to do"),
    (2, "the command line itself is wrong"),
    (70, "a mistake in Shardwright or in the user's code: --debug shows where"),
    (130, "interrupted"),
)


def epilog(command: str) -> str:
    """What a command's help ends with."""
    lines = ["examples:"]
    for line, what in EXAMPLES.get(command, ()):
        lines += [f"  # {what}", f"  shardwright {command} {line}".rstrip()]
    return "\n".join(lines)


def overview() -> str:
    """What the help of `shardwright` itself ends with."""
    steps = (
        ("explain", "What would be done to my decoder, and what would it bring?"),
        ("diff", "What did the passes change?"),
        ("report", "All of it, as a page"),
        ("compile", "Does it fit, and what did the compiler make of it?"),
    )
    lines = ["a first look:"]
    for command, what in steps:
        lines += [f"  # {what}", f"  shardwright {command} {EXAMPLES[command][0][0]}"]
    lines += ["", "A decoder of one's own is FILE.py:FUNCTION or package.module:FUNCTION; its"]
    lines += ["arguments are said with --shape, as `shardwright show --help` shows."]
    lines += ["", "exit codes:", *(f"  {code:<4} {what}" for code, what in EXIT_CODES)]
    return "\n".join(lines)
