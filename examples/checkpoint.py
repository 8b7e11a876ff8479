"""Reads parameters of a Llama (llama.py) from a Hugging Face folder or from a GGUF file.

A GGUF file needs the package gguf: pip install "shardwright[gguf]".
"""

from collections.abc import Callable
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Tensors = dict[str, tuple[list[int], Callable[[], np.ndarray]]]  # name -> (shape, how it is read)


def load_params(place: str | Path, specs: Any, config: Any) -> Any:
    """The parameters that `specs` lists (PARAMS of llama.py), one at a time, in config.dtype.

    ValueError for a tensor missing, misshapen or without a use.
    """
    in_gguf = Path(place).suffix == ".gguf"
    tensors = gguf_tensors(place, config) if in_gguf else folder_tensors(place)

    def read(spec: str, layer: int | None = None) -> Array:
        if spec.startswith("L "):
            return jnp.stack([read(spec[2:], number) for number in range(config.layers)])
        *inputs, outputs, hugging_face_name, gguf_name = spec.split()
        prefix = "" if layer is None else f"{'blk' if in_gguf else 'model.layers'}.{layer}."
        name = f"{prefix}{gguf_name if in_gguf else hugging_face_name}.weight"
        shape = config.shape("".join(inputs) + outputs)
        wanted = [prod(config.shape(axes)) for axes in (outputs, *inputs)] if inputs else [*shape]
        found, tensor = tensors.pop(name, ("no such tensor", None))
        if found != wanted:
            raise ValueError(f"{place}: {name} should have the shape {wanted}, found {found}")
        return jnp.asarray(tensor().T if inputs else tensor(), config.dtype).reshape(shape)

    params = jax.tree.map(read, specs)
    if tensors:
        name = min(tensors)
        raise ValueError(f"{place}: {name} has no place in this model; does the config fit?")
    return params


def folder_tensors(folder: str | Path) -> Tensors:
    """Those of all .safetensors files of a folder."""
    from safetensors import safe_open
    files = [safe_open(path, "numpy") for path in sorted(Path(folder).glob("*.safetensors"))]
    return {
        name: (file.get_slice(name).get_shape(), partial(file.get_tensor, name))
        for file in files
        for name in file.keys()
    }


@cache
def gguf_file(path: str | Path) -> Any:
    """A gguf.GGUFReader, which takes a second to read a vocabulary."""
    from gguf import GGUFReader
    return GGUFReader(path)


def gguf_tensors(path: str | Path, config: Any) -> Tensors:
    """Those of a GGUF file, dequantised to f32. Without a head of its own it is the embedding."""
    from gguf import dequantize

    def dequantized(tensor: Any) -> np.ndarray:
        weight = dequantize(tensor.data, tensor.tensor_type)
        if not tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
            return weight
        # GGUF rotates neighbours, llama.py the two halves of a head.
        pairs = weight.reshape(-1, config.d_head // 2, 2, config.d_model)
        return pairs.swapaxes(1, 2).reshape(weight.shape)

    tensors = {
        tensor.name: (tensor.shape.tolist()[::-1], partial(dequantized, tensor))
        for tensor in gguf_file(path).tensors
    }
    if "token_embd.weight" in tensors:
        tensors.setdefault("output.weight", tensors["token_embd.weight"])
    return tensors
