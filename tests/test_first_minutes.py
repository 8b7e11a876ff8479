"""The first ten minutes: a decoder of one's own, in a style that no example has, by the command.

Modules are dataclasses, layers are scanned, the configuration is closed over, the state is nested
and its argument the last. What is typed wrongly gets a sentence that says what, where, and what to
do.
"""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dialect.front.cli import WRONG, main
from dialect.user.usercode import module_of
from rewrite import auto_shard
from tests.kit import Captured, complaint, printed

MINE = """
import dataclasses
import functools
import jax
import jax.numpy as jnp


def module(cls):
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)
    static = [f.name for f in fields if f.metadata.get("static")]
    arrays = [f.name for f in fields if f.name not in static]
    return jax.tree_util.register_dataclass(cls, arrays, static)


@module
class Linear:
    w: jax.Array
    b: jax.Array

    def __call__(self, x):
        return jnp.matmul(x, self.w) + self.b


@module
class Norm:
    g: jax.Array

    def __call__(self, x):
        x32 = x.astype(jnp.float32)
        scaled = x32 * jax.lax.rsqrt((x32**2).mean(-1, keepdims=True) + 1e-6)
        return scaled.astype(x.dtype) * self.g


@module
class Block:
    n1: Norm
    qkv: Linear
    out: Linear
    n2: Norm
    up: Linear
    down: Linear
    heads: int = dataclasses.field(metadata=dict(static=True))

    def __call__(self, x, mem, t):
        B, D = x.shape
        H = self.heads
        q, k, v = jnp.split(self.qkv(self.n1(x)), 3, axis=-1)
        q, k, v = (y.reshape(B, H, D // H) for y in (q, k, v))
        K = mem["K"].at[:, :, t].set(k)
        V = mem["V"].at[:, :, t].set(v)
        a = jnp.einsum("bhd,bhtd->bht", q, K) * (D // H) ** -0.5
        a = jnp.where(jnp.arange(K.shape[2])[None, None] > t, -1e30, a)
        p = jax.nn.softmax(a.astype(jnp.float32)).astype(x.dtype)
        x = x + self.out(jnp.einsum("bht,bhtd->bhd", p, V).reshape(B, D))
        return x + self.down(jax.nn.swish(self.up(self.n2(x)))), {"K": K, "V": V}


@module
class Model:
    emb: jax.Array
    blocks: Block
    norm: Norm


CFG = dict(D=32, H=4, L=3, V=64, T=16)


def make(key=jax.random.key(0)):
    D, H, L, V = (CFG[k] for k in "DHLV")

    def lin(k, i, o):
        return Linear(jax.random.normal(k, (i, o)) * i ** -0.5, jnp.zeros(o))

    def block(k):
        a, b, c, d = jax.random.split(k, 4)
        return Block(
            Norm(jnp.ones(D)), lin(a, D, 3 * D), lin(b, D, D),
            Norm(jnp.ones(D)), lin(c, D, 4 * D), lin(d, 4 * D, D), H,
        )

    k1, k2 = jax.random.split(key)
    blocks = jax.vmap(block)(jax.random.split(k2, L))
    return Model(jax.random.normal(k1, (V, D)), blocks, Norm(jnp.ones(D)))


def fresh(batch):
    shape = (CFG["L"], batch, CFG["H"], CFG["T"], CFG["D"] // CFG["H"])
    return {"kv": {"K": jnp.zeros(shape), "V": jnp.zeros(shape)}, "t": jnp.zeros((), jnp.int32)}


def decode(model, tok, mem):
    def body(x, layer):
        block, kv = layer
        return block(x, kv, mem["t"])

    x, kv = jax.lax.scan(body, model.emb[tok], (model.blocks, mem["kv"]))
    return {"kv": kv, "t": mem["t"] + 1}, model.norm(x) @ model.emb.T
"""
ARGUMENTS = ("--shape", "model=make()", "--shape", "mem=fresh(4)", "--shape", "tok=i32[4]")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the decoder, and with files of all kinds that are none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.pipeline").write_text("")
    (tmp_path / "marked.pipeline").write_text("\ufeffnormalize, recognize", encoding="utf-8")
    (tmp_path / "other.pipeline").write_text("normalize", encoding="utf-16")
    (tmp_path / "broken.py").write_text("x = 1\ndef f(:\n")
    (tmp_path / "ending.py").write_text("import sys\nsys.exit(3)\n")
    return tmp_path


@pytest.mark.parametrize("machine", ["cpu:4", "v5e:2x2", "h100:4", "board.machine:4"])
def test_a_plan_a_difference_and_a_report(home: Path, machine: str, capsys: Captured) -> None:
    """On machines that are not here, too: nothing is compiled."""
    figures = "bf16 4 TFLOP/s\nhbm 4 GiB at 3 GB/s\nswitch 4\nlinks 1 GB/s, 2 us\n"
    (home / "board.machine").write_text(figures)
    asked = ("mine.py:decode", *ARGUMENTS, "--target", machine)
    page = printed(capsys, "explain", *asked)
    assert page.startswith(f"decode for {machine}: 4 chips, mesh x=2 y=2\n")
    assert "Finds attention" in page and "How it is split" in page
    assert "= attend " in printed(capsys, "diff", *asked, "--pass", "recognize")
    assert printed(capsys, "report", *asked, "--out", "all.html").startswith("all.html: ")
    assert "<html" in (home / "all.html").read_text()


def test_the_step_computes_what_the_decoder_does(home: Path) -> None:
    names = vars(module_of(str(home / "mine.py")))
    model, tokens = names["make"](), jnp.arange(4)
    step = auto_shard(names["decode"], "cpu:4")
    packed = step.prepare(model, tokens, names["fresh"](4))
    state, logits = step(packed, tokens, step.adapt(names["fresh"](4)))
    state, logits = step(packed, tokens, state)
    kept, expected = names["decode"](model, tokens, names["fresh"](4))
    kept, expected = names["decode"](model, tokens, kept)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert int(step.restore(state)["t"]) == int(kept["t"]) == 2
    program = step.program()
    held = [
        sum(i.type.bytes for i in side if i.role == "param")
        for side in (program.inputs, program.step_inputs)
    ]
    assert held[0] == held[1]  # a fused product of queries, keys and values is kept once


def test_a_mark_in_front_of_a_pipeline_is_nothing(home: Path, capsys: Captured) -> None:
    asked = ("mine.py:decode", *ARGUMENTS, "--pipeline", "marked.pipeline")
    assert "Finds attention" in printed(capsys, "explain", *asked)


@pytest.mark.parametrize("command", ["explain", "show", "diff", "report", "coverage", "compile"])
@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (("-p", ""), "argument -p/--passes: it is empty: leave it out, or say what it is"),
        (("--target", " "), "argument --target: it is empty: leave it out, or say what it is"),
        (("--config", "small"), "argument --config: not allowed with argument --shape"),
        (("--target",), "argument --target: expected one argument"),
        (("--batch", "0"), "argument --batch: '0' is no number from 1 on"),
        (("--context", "-3"), "argument --context: '-3' is no number from 1 on"),
    ],
)
def test_a_wrong_command_line(
    home: Path, command: str, typed: tuple[str, ...], told: str, capsys: Captured
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "mine.py:decode", *ARGUMENTS, *typed])
    assert ended.value.code == WRONG
    assert capsys.readouterr().err == f"error: {told}\n  try: shardwright {command} --help\n"


@pytest.mark.parametrize(
    ("typed", "told", "hint"),
    [
        (("-p", "normalise"), "there is no pass 'normalise'", "did you mean normalize?"),
        (("--pipeline", "no.pipeline"), "cannot read the pipeline file 'no.pipeline': No such", ""),
        (("--pipeline", "folder"), "cannot read the pipeline file 'folder': Is a directory", ""),
        (("--pipeline", "other.pipeline"), "'utf-8' codec can't decode byte 0xff", ""),
        (("--pipeline", "empty.pipeline"), "found the end", "at: empty.pipeline:1"),
        (("--target", "v5e"), "'v5e' does not say how many chips", "did you mean v5e-8"),
        (("--target", "v5e:2x3"), "'v5e:2x3' is no slice of v5e", "did you mean v5e:2x4"),
        (("--target", "cuda:1"), "takes GPUs that are attached", "name their kind: h100:1"),
        (("--target", "no.machine:8"), "cannot read the machine 'no.machine': No such file", ""),
        (("--params", "modle"), "params='modle' is no argument", "did you mean model"),
        (("--batch", "4"), "--batch is for a --config", "--shape says how large each argument is"),
        (("--shape", "tok=i32[2]"), "Incompatible types", "check what it was given: model 12 arr"),
        (("--shape", "mem=fresh()"), "missing 1 required", "it is called as fresh(batch)"),
        (("--shape", "mem=frsh(4)"), "mine.py has no 'frsh'", "did you mean fresh?"),
        (("--shape", "mem=mine.py"), "'mine.py' says no argument", "for example i32[8]"),
        (("--print-ir-after", "shrad"), "the pipeline has no pass 'shrad'", "did you mean shard"),
    ],
)
def test_wrong_input(
    home: Path, typed: tuple[str, ...], told: str, hint: str, capsys: Captured
) -> None:
    said = complaint(capsys, "explain", "mine.py:decode", *ARGUMENTS, *typed)
    assert told in said and hint in said


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("mine.py", "'mine.py' names no function\n  try: write FILE.py:FUNCTION"),
        ("mine.py:decod", "mine.py has no function 'decod'\n  try: did you mean decode?"),
        ("no.py:decode", "there is no file no.py"),
        ("folder:decode", "folder has no function 'decode'\n"),
        ("broken.py:f", "cannot import broken.py: SyntaxError"),
        ("ending.py:f", "cannot import ending.py: SystemExit: 3"),
    ],
)
def test_a_function_that_is_not_there(home: Path, named: str, told: str, capsys: Captured) -> None:
    assert told in complaint(capsys, "explain", named, *ARGUMENTS)


def test_a_file_that_cannot_be_read_is_named_with_its_line(home: Path, capsys: Captured) -> None:
    assert f"at: {home / 'broken.py'}:2\n" in complaint(capsys, "explain", "broken.py:f")


def test_arguments_that_nobody_says_are_asked_for_by_their_names(
    home: Path, capsys: Captured
) -> None:
    said = complaint(capsys, "explain", "mine.py:decode")
    assert '--shape "model=FUNCTION()" of the same file' in said
    assert "--shape tok=i32[8] --shape mem=i32[8]; or all" in said
    assert "such as examples/llama.py" in complaint(capsys, "eval", "mine.py:decode", *ARGUMENTS)


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("no.rules", "cannot read the rules 'no.rules': No such file or directory"),
        ("mine.py", "there is no rule in mine.py\n  try: rules are made by `pattern`"),
        ("empty.pipeline", "there is no module empty.pipeline\n  try: a file of Python ends in"),
    ],
)
def test_rules_that_are_not_there(home: Path, place: str, told: str, capsys: Captured) -> None:
    assert told in complaint(capsys, "check-rules", place)


def test_a_text_that_is_not_there(home: Path, capsys: Captured) -> None:
    tiny = f"{Path(__file__).parents[1] / 'examples' / 'tiny' / 'model.py'}:decode_step"
    asked = ("eval", tiny, "--config", "mha", "--batch", "2", "--context", "16")
    told = "error: cannot read the text 'no.txt': No such file or directory\n"
    assert complaint(capsys, *asked, "--text", "no.txt") == told
