"""What the TPU executables are made of; compiled ahead of time, without a TPU."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from functools import partial

import jax
import pytest

from dialect.compiled.compiling import Compilable, compiled
from dialect.compiled.executable import DoesNotFit, read
from dialect.front.api import DEFAULT_PIPELINE
from dialect.machine.mesh import TargetError, prepare_libtpu
from examples import llama, palm
from rewrite import auto_shard, per_row
from tests.kit import shapes_of


@pytest.fixture(scope="module")
def llama_8b():
    """(program, executable's report, compiler's notes) of Llama-3-8B through serve.pipeline."""
    config = llama.CONFIGS["8b"]
    step = auto_shard(partial(llama.decode_step, config), pipeline="examples/serve.pipeline")
    program = step.program(*shapes_of(llama, config, 64, 2048))
    executable, notes = compiled(Compilable(program, step.mesh))
    return program, read(executable, step.mesh), notes


def test_llama_8b_weights_are_int8_parameters(llama_8b):
    program, report, _ = llama_8b
    arrays, size_bytes = report.by_dtype()["s8"]
    layers = [e for e in program.step_inputs if e.type.dtype == "i8"]
    assert arrays == len(layers) == 11  # wo and three of the FFN in layer 0, seven in the rest
    assert size_bytes == sum(each.type.bytes for each in layers) // 8


def test_llama_8b_cache_is_donated_and_not_copied(llama_8b):
    program, report, _ = llama_8b
    states = [e for e in program.step_inputs if e.role == "state"]
    cache_bytes = sum(each.type.bytes for each in states) // 8
    assert report.memory.alias_bytes >= cache_bytes
    assert report.memory.temp_bytes < 0.1 * cache_bytes


def test_llama_8b_collectives_are_the_plans(llama_8b):
    program, report, notes = llama_8b
    assert program.plan.label == "ws1d/heads"
    assert not [note for note in notes if "rematerialization" in note]
    assert {each.kind for each in report.collectives} == {"all-reduce"}
    in_loop = [each for each in report.collectives if each.trip_count == 31]
    assert sum(each.count for each in in_loop) == 2
    assert all(each.dtype == "bf16" for each in report.collectives)


@pytest.mark.parametrize(
    ("attention", "paged"), [("heads", ""), ("batch", ""), ("batch", "paged{groups=true}, ")]
)
def test_places_that_differ_by_sequence_are_written_in_place(attention: str, paged: str) -> None:
    """The cache keeps its layout, and every chip writes what it holds: nothing is gathered."""
    config = replace(llama.CONFIGS["8b"], layers=2)
    step = partial(llama.decode_step, config)
    rows = per_row(step, partial(llama.init_cache, config, context=2048))
    pipeline = DEFAULT_PIPELINE.replace("plan", f"{paged}plan{{attention={attention}}}")
    step = auto_shard(rows, "v5e:2x4", pipeline=pipeline)
    params, _, tokens = shapes_of(llama, config, 64, 2048)
    cache = jax.eval_shape(lambda: rows.init(64))
    program = step.program(params, cache, tokens)
    executable, _ = compiled(Compilable(program, step.mesh))
    report = read(executable, step.mesh)
    held = sum(entry.type.bytes for entry in program.step_inputs if entry.role == "state") // 8
    assert report.memory.temp_bytes < 0.1 * held
    assert "all-gather" not in {each.kind for each in report.collectives if each.trip_count == 2}


@pytest.mark.parametrize(
    ("topology", "plan"),
    [
        ("v4:2x2x2", "ffn=ws2d, attention=batch"),
        ("v5e:2x4", "ffn=ws2d, attention=heads"),
        ("v5p:2x2x2", "ffn=ws1d, attention=batch"),
        ("v6e:2x4", "ffn=wg_xyz, attention=batch"),
    ],
)
def test_every_chip_compiles_without_rematerialization(topology, plan):
    config = replace(palm.CONFIGS["8b"], layers=2)
    pipeline = f"normalize, recognize, carry_cache, quantize, plan{{{plan}}}, shard, stage, lower"
    step = auto_shard(partial(palm.decode_step, config), topology, pipeline=pipeline)
    program = step.program(*shapes_of(palm, config, 64, 1024))
    executable, notes = compiled(Compilable(program, step.mesh))
    report = read(executable, step.mesh)
    assert not [note for note in notes if "rematerialization" in note]
    assert "s8" in report.by_dtype()
    if "wg" not in plan:  # gathering weights is what wg does
        assert not [each for each in report.collectives if each.dtype == "s8"]


def test_a_program_that_does_not_fit_says_how_much_is_missing_and_what_is_large():
    config = replace(llama.CONFIGS["8b"], layers=2)
    step = auto_shard(
        partial(llama.decode_step, config),
        "v5e:2x2",
        pipeline="normalize, recognize, carry_cache, stage, lower",
    )
    program = step.program(*shapes_of(llama, config, 256, 32768))
    with pytest.raises(DoesNotFit) as error:
        compiled(Compilable(program, step.mesh))
    assert error.value.missing_bytes > 2**30
    assert "GiB are missing" in str(error.value)
    assert "largest: cache/k bf16[2,256,32768,8,128] (32.00 GiB)" in str(error.value)


def test_without_libtpu_one_command_is_named(monkeypatch):
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)  # set where it was loaded before
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "libtpu" else found(name, *rest),
    )
    with pytest.raises(TargetError, match=r'pip install "shardwright\[tpu\]"'):
        prepare_libtpu()
