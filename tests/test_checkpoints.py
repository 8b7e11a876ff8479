"""Packed parameters in files, and originals out of files: nothing lost, nothing mistaken."""

from __future__ import annotations

import builtins
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dialect.arrays.dtypes import dtype_of
from dialect.prepared import orbax_files, safetensors_file
from dialect.prepared.checkpoint_trees import as_tree, stacked
from dialect.prepared.packed_files import read_checkpoint, read_schema
from dialect.prepared.packed_schema import PackedError, Schema
from examples import llama
from rewrite import auto_shard
from rewrite.files import FileError
from rewrite.ir import Type
from tests.kit import assert_same_shards

BATCH, CONTEXT = 8, 32
TOY = llama.CONFIGS["toy"]
PIPELINE = (
    "normalize, recognize, carry_cache, quantize{{weights={weights}}}, "
    "plan{{ffn={ffn}, attention={attention}}}, shard, stage, lower"
)
NAMES = ("packed.safetensors", "packed")  # a file, and a folder that orbax writes


def serving(config: llama.Config = TOY, **options: str) -> Any:
    """(sharded step, parameters, the other arguments)."""
    chosen = {"weights": "int8", "ffn": "ws1d", "attention": "heads", **options}
    step = partial(llama.decode_step, config)
    params = llama.init_params(config, jax.random.key(0))
    cache = jax.eval_shape(partial(llama.init_cache, config, BATCH, CONTEXT))
    rest = (cache, jax.ShapeDtypeStruct((BATCH,), jnp.int32))
    return auto_shard(step, "cpu:8", pipeline=PIPELINE.format(**chosen)), params, rest


def shapes_of(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: Any) -> Any:
    """(folder with the toy's packed parameters in both forms, what was saved)."""
    folder = tmp_path_factory.mktemp("saved")
    step, params, rest = serving()
    packed = step.prepare(params, *rest)
    for name in NAMES:
        packed.save(folder / name)
    return folder, packed


# There and back.


@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_comes_back_as_it_was(saved: Any, name: str) -> None:
    folder, packed = saved
    step, params, rest = serving()
    found = step.load(folder / name, shapes_of(params), *rest)
    assert_same_shards(found.leaves, packed.leaves)
    assert found.schema == packed.schema == read_schema(folder / name)
    assert found.names == packed.names
    tokens = jnp.arange(BATCH, dtype=jnp.int32)
    logits = [
        step(each, llama.init_cache(TOY, BATCH, CONTEXT), tokens)[0] for each in (found, packed)
    ]
    np.testing.assert_array_equal(*logits)
    assert_same_shards(
        step.load(folder / name).leaves, packed.leaves
    )  # the shapes are known by now


@pytest.mark.parametrize("name", NAMES)
def test_four_bits_come_back_too(tmp_path: Path, name: str) -> None:
    step, params, rest = serving(weights="int4")
    packed = step.prepare(params, *rest)
    packed.save(tmp_path / name)
    assert_same_shards(step.load(tmp_path / name, params, *rest).leaves, packed.leaves)


def test_other_programs_read_the_file(saved: Any) -> None:
    """The library of the format's authors finds the same names, numbers and text."""
    folder, packed = saved
    arrays = dict(zip(packed.names, packed.leaves))
    with safetensors.safe_open(folder / NAMES[0], "np") as file:
        assert set(file.keys()) == set(arrays)
        for name in file.keys():
            np.testing.assert_array_equal(file.get_tensor(name), arrays[name])
        told = json.loads(file.metadata()["shardwright"])
    assert told["format"] == 2 and told["target"] == "cpu x=2 y=4"
    assert told["plan"].startswith("plan ws1d/heads\n")
    assert "quantize" in told["pipeline"]
    assert told["model"][0] == {
        "name": "params/embedding", "type": "f32[256,64]", "layout": "", "made": "",
    }  # fmt: skip
    wq = next(each for each in told["packed"] if each["name"] == "params/layers/wq.quantized")
    assert (wq["type"], wq["layout"]) == ("i8[3,64,16,8]", "_ _ xy _")


def mesh() -> Mesh:
    return Mesh(np.array(jax.devices()).reshape(2, 4), ("x", "y"))


DTYPES = [
    *("bool", "i8", "u8", "i16", "i32", "u32", "f16", "bf16", "f32", "c64", "i4", "u4", "i2"),
    *("f8_e4m3fn", "f8_e5m2", "f8_e4m3b11fnuz"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "spec"),
    [((6, 16), ("x", "y")), ((4, 10), ("y", "x")), ((7,), ()), ((), ()), ((0, 4), ())],
)
def test_every_dtype_and_share(tmp_path: Path, dtype: str, shape: Any, spec: Any) -> None:
    """16 columns over four are pairs of four bits, 10 over two and 7 are not."""
    random = np.random.default_rng(0)
    values = random.integers(-2 if dtype[0] in "if" else 0, 2, shape).astype(dtype_of(dtype))
    sharding = NamedSharding(mesh(), PartitionSpec(*spec))
    array = jax.make_array_from_callback(shape, sharding, lambda index: values[index])
    path = tmp_path / "one.safetensors"
    safetensors_file.write(path, {"first": jnp.zeros(3, "int8"), "array": array}, {"a": "b"})
    lazy = safetensors_file.read(path, {"array": Type(dtype, shape)})["array"]
    assert (lazy.shape, lazy.dtype) == (shape, values.dtype)
    whole = lazy[tuple(slice(0, size) for size in shape)]
    assert whole.tobytes() == values.tobytes()
    if len(shape) == 2 and shape[0]:
        part = (slice(1, 3), slice(3, 8))
        assert lazy[part].tobytes() == values[part].tobytes()
    assert safetensors_file.read_header(path).about == {"a": "b"}
    with safetensors.safe_open(path, "np") as file:
        assert set(file.keys()) == {"first", "array"}


def test_four_bits_take_half_a_byte_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    array = jnp.array([[1, -2, 7, -8]]).astype("int4")
    safetensors_file.write(path, {"array": array}, {})
    with safetensors.safe_open(path, "np") as file:
        np.testing.assert_array_equal(file.get_tensor("array"), [[0xE1, 0x87]])


# Refused, and why.


def refused(step: Any, path: Path, *args: Any) -> str:
    with pytest.raises(PackedError) as error:
        step.load(path, *args)
    return str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_another_dtype_is_refused(saved: Any, name: str) -> None:
    step, params, rest = serving(weights="int4")
    assert refused(step, saved[0] / name, params, *rest).split("\n") == [
        f"{saved[0] / name} was packed for another program",
        "    packed: params/layers/wq.quantized is i8[3,64,16,8] there, i4[3,64,16,8] here",
        "    packed: params/layers/wk.quantized is i8[3,64,8,8] there, i4[3,64,8,8] here",
        "    packed: params/layers/wv.quantized is i8[3,64,8,8] there, i4[3,64,8,8] here",
        "    packed: params/layers/wo.quantized is i8[3,8,2,8,64] there, i4[3,8,2,8,64] here",
        "    packed: and 10 more",
        "    pipeline: quantize only there",
        "    pipeline: quantize{weights=int4} only here",
        "  try: pack the originals for this step: step.prepare(params, *rest)",
    ]


def test_originals_of_another_dtype_are_refused(saved: Any) -> None:
    half = llama.Config(3, 64, 16, 8, 8, 256, 256, dtype="bfloat16")
    step, params, rest = serving(half)
    told = refused(step, saved[0] / NAMES[0], params, *rest)
    assert "\n    model: params/head is f32[64,256] there, bf16[64,256] here\n" in told


@pytest.mark.parametrize("name", NAMES)
def test_another_plan_is_refused(saved: Any, name: str) -> None:
    step, params, rest = serving(ffn="ws2d")
    told = refused(step, saved[0] / name, params, *rest)
    assert "\n    plan: ws1d/heads there, ws2d/heads here\n" in told
    assert "\n    packed: params/embedding has the sharding xy _ there, y x here\n" in told
    assert "\n    pipeline: plan{ffn=ws2d, attention=heads} only here\n" in told


def test_a_plan_for_another_cache_is_refused_from_a_file(saved: Any) -> None:
    """In memory steps may share parameters that lie alike; a file is for one plan."""
    step, params, rest = serving(attention="batch")
    told = refused(step, saved[0] / NAMES[0], params, *rest)
    assert "plan: ws1d/heads there, ws1d/batch here" in told
    assert "plan: cache kv_heads@x,y there, batch@x,y here" in told


@pytest.mark.parametrize("name", NAMES)
def test_another_model_is_refused(saved: Any, name: str) -> None:
    wide = llama.Config(3, 64, 16, 8, 8, 512, 256, dtype="float32")
    step, params, rest = serving(wide)
    told = refused(step, saved[0] / name, params, *rest)
    assert "\n    model: params/layers/w_down is f32[3,256,64] there, f32[3,512,64] here" in told


def test_another_number_of_arrays_is_refused(saved: Any) -> None:
    step, params, rest = serving()
    schema = step.prepare(params, *rest).schema
    fewer = Schema(**{**vars(schema), "packed": schema.packed[:-1]})
    assert fewer.differences(schema) == [f"packed: {schema.packed[-1].name} is only here"]
    assert schema.differences(fewer) == [f"packed: {schema.packed[-1].name} is only there"]


def test_arrays_that_are_computed_otherwise_are_refused(tmp_path: Path) -> None:
    """Types, names and plan are the same, and only a number in `prepare` is another."""

    def decoder(factor: float) -> Any:
        def step(params: Any, cache: Any, x: Any) -> Any:
            y = x @ (params["w"] @ (params["w"] * factor))
            return y, cache + y

        return auto_shard(step, "cpu:8", pipeline="normalize, stage, lower")

    args = ({"w": jnp.eye(8)}, jnp.zeros((2, 8)), jnp.ones((2, 8)))
    decoder(2.0).prepare(*args).save(tmp_path / "two.safetensors")
    assert_same_shards(
        decoder(2.0).load(tmp_path / "two.safetensors", *args).leaves,
        decoder(2.0).prepare(*args).leaves,
    )
    told = refused(decoder(3.0), tmp_path / "two.safetensors", *args)
    assert re.search(r"packed: params/w\.\w+ is computed by other ops there", told)


def test_predictions_do_not_count(saved: Any) -> None:
    """For another batch the plan predicts other times, and decides the same."""
    step, params, _ = serving()
    cache = jax.eval_shape(partial(llama.init_cache, TOY, 2 * BATCH, CONTEXT))
    rest = (cache, jax.ShapeDtypeStruct((2 * BATCH,), jnp.int32))
    assert str(step.plan(params, *rest)) != saved[1].schema.plan
    assert_same_shards(step.load(saved[0] / NAMES[0], params, *rest).leaves, saved[1].leaves)


def test_what_is_no_packed_file_is_told(tmp_path: Path, saved: Any) -> None:
    step, params, rest = serving()
    text = tmp_path / "text.safetensors"
    text.write_text("this is no header")
    assert "text.safetensors is not a safetensors file, or is damaged: its header would" in refused(
        step, text, params, *rest
    )
    assert f"there is no {tmp_path / 'none'}" in refused(step, tmp_path / "none", params, *rest)
    plain = tmp_path / "plain.safetensors"
    safetensors.numpy.save_file({"a": np.ones(3)}, plain)
    assert "plain.safetensors holds no packed parameters" in refused(step, plain, params, *rest)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((saved[0] / NAMES[0]).read_bytes()[:-100])
    assert "cut.safetensors is not a safetensors file, or is damaged" in refused(
        step, cut, params, *rest
    )
    assert "holds no packed parameters" in refused(step, tmp_path, params, *rest)


def test_a_later_format_is_refused(tmp_path: Path, saved: Any) -> None:
    later = json.dumps({"format": 3})
    path = tmp_path / "later.safetensors"
    safetensors.numpy.save_file({"a": np.ones(3)}, path, {"shardwright": later})
    with pytest.raises(PackedError, match="has the format 3, this version of Shardwright reads 2"):
        read_schema(path)
    safetensors.numpy.save_file({"a": np.ones(3)}, path, {"shardwright": "[]"})
    with pytest.raises(PackedError, match="its schema cannot be read"):
        read_schema(path)


def test_before_anything_is_packed_or_known(tmp_path: Path) -> None:
    step, params, _ = serving()
    with pytest.raises(PackedError, match="these parameters are not packed yet"):
        step.prepare(params).save(tmp_path / "early.safetensors")
    told = refused(step, tmp_path / "early.safetensors")
    assert "is not known before the shapes of the arguments are" in told
    assert "step.load(path, params, cache, tokens)" in told


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "one.safetensors"
    safetensors_file.write(path, {"a": jnp.zeros(3)}, {})

    def broken(*args: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors_file, "_write_shards", broken)
    with pytest.raises(FileError, match="no space left"):
        safetensors_file.write(path, {"a": jnp.ones(3)}, {})
    assert list(tmp_path.iterdir()) == [path]
    np.testing.assert_array_equal(safetensors_file.read(path)["a"][slice(0, 3),], np.zeros(3))


def test_a_folder_is_never_written_over(saved: Any) -> None:
    with pytest.raises(PackedError, match="packed exists"):
        saved[1].save(saved[0] / "packed")


def test_without_orbax_the_way_out_is_told(tmp_path: Path, monkeypatch: Any, saved: Any) -> None:
    found = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.startswith("orbax"):
            raise ImportError("No module named 'orbax'")
        return found(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(PackedError) as error:
        saved[1].save(tmp_path / "folder")
    assert "a checkpoint in a folder needs orbax" in str(error.value)
    assert 'pip install "shardwright[orbax]", or name a file that ends in .safe' in str(error.value)


# Originals out of files.


def test_a_checkpoint_of_one_file_a_layer_is_packed_from_the_files(tmp_path: Path) -> None:
    """As on the Hugging Face hub: a name and a file for each layer, weights transposed or not."""
    step, params, rest = serving()
    names = sorted(params["layers"])
    for number in range(TOY.layers):
        arrays = {f"model.layers.{number}.{n}": params["layers"][n][number] for n in names}
        safetensors.numpy.save_file(
            {name: np.asarray(array) for name, array in arrays.items()},
            tmp_path / f"model-{number}.safetensors",
        )
    rest_of_it = {n: np.asarray(params[n]) for n in ("embedding", "final_norm", "head")}
    safetensors.numpy.save_file(rest_of_it, tmp_path / "rest.safetensors")
    found = read_checkpoint(tmp_path)
    layers = {
        n: stacked([found[f"model.layers.{i}.{n}"] for i in range(TOY.layers)]) for n in names
    }
    lazy = {**{n: found[n] for n in rest_of_it}, "layers": layers}
    assert_same_shards(step.prepare(lazy, *rest).leaves, step.prepare(params, *rest).leaves)


def test_an_orbax_checkpoint_is_packed_from_its_folder(tmp_path: Path) -> None:
    import orbax.checkpoint as ocp

    step, params, rest = serving()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "originals", params)
    found = read_checkpoint(tmp_path / "originals")
    assert found["layers/wq"].shape == (3, 64, 16, 8)
    lazy = as_tree(shapes_of(params), found)
    assert_same_shards(step.prepare(lazy, *rest).leaves, step.prepare(params, *rest).leaves)


def test_a_folder_without_a_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(PackedError, match="is no orbax checkpoint"):
        read_checkpoint(tmp_path)
    with pytest.raises(PackedError, match="there is no"):
        read_checkpoint(tmp_path / "none")
    assert orbax_files.read_about(tmp_path) == {}
