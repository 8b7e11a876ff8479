"""The yardsticks: how people who know the trade lay out a decoder, as tables of rules.

Mesh axes are called x, y, z, as in "Efficiently Scaling Transformer Inference" (arXiv:2211.05102);
on two axes yz is y. Groups of tensors, in the order in which a step meets them:

    tables, weights, norms    parameters, as they are stored; a table is the embedding or the head
    rows                      what is looked up in the embedding
    residual                  the residual stream
    normed                    what the input products read
    used                      a layer's weights as products read them, where they are gathered
    query, key                as the products with wq, wk and wv leave them
    moved                     on the way to attention, and back
    attention                 queries and the result, where attention is computed
    kept, cache               keys and values within the step, and between steps
    hidden                    gate and up, as their products leave them
    merged                    heads and d_ff, as the output products read them
    last, logits              what the head reads and gives
"""

from __future__ import annotations

from by_hand.layouts import Rules


def inner(axes: str) -> dict[str, str]:
    """The axes within a layer: d_ff and heads; of grouped queries first the KV heads."""
    return {"d_ff": axes, "heads": axes, "kv_heads": axes, "q_per_kv": axes}


def attend(split: dict[str, str]) -> Rules:
    """Attention and its cache in one layout."""
    return {"attention": split, "kept": split, "cache": split}


STORED_1D = {"tables": {"vocab": "xyz"}, "weights": inner("xyz")}
STORED_2D = {"tables": {"vocab": "yz", "d_model": "x"}, "weights": {"d_model": "x"} | inner("yz")}

# The paper's, section 3.2. Partial sums are reduced and scattered.
WS1D = STORED_1D | {
    "residual": {"d_model": "xyz"},
    "normed": {},
    "query": inner("xyz"),
    "key": inner("xyz"),
    "hidden": inner("xyz"),
    "merged": inner("xyz"),
    "last": {},
    "logits": {"vocab": "xyz"},
}
WS2D = STORED_2D | {
    "rows": {"d_model": "x"},
    "residual": {"d_model": "xyz"},
    "normed": {"d_model": "x"},
    "query": inner("yz"),
    "key": inner("yz"),
    "hidden": inner("yzx"),
    "merged": inner("yz"),
    "last": {"d_model": "x"},
    "logits": {"vocab": "yzx"},
}
# What the paper scatters along d_ff the compiler scatters more readily along rows; and where few
# bytes are exchanged, two exchanges fewer count for more than a residual stream in more parts.
BY_ROWS = {"hidden": {"batch": "x", "time": "x"} | inner("yz")}
LESS_SPLIT = {"residual": {"d_model": "x"}}
TO_BATCH = {"moved": {"batch": "x"} | inner("yz")}


def gathered(batch: str, still: str) -> Rules:
    """Batch over some axes, over which the weights are gathered, activations over the others."""
    return STORED_2D | {
        "tables": {"d_model": "xyz"},
        "rows": {"d_model": "xyz"},
        "residual": {"batch": batch, "d_model": still},
        "normed": {"batch": batch},
        "used": inner(still),
        "query": {"batch": batch} | inner(still),
        "key": {"batch": batch} | inner(still),
        "hidden": {"batch": batch} | inner(still),
        "merged": {"batch": batch} | inner(still),
        "last": {"d_model": "xyz"},
        "logits": {"vocab": "xyz"},
    }


# Section 3.3. Over heads: where the products leave them, and over what is left of the mesh.
OVER_BATCH = attend({"batch": "xyz"})

# Megatron-LM (arXiv:1909.08053): products split in one dimension, the residual stream whole.
MEGATRON = WS1D | {"residual": {}, "normed": {}}

# Zero stage 3 (arXiv:1910.02054), FSDP (arXiv:2304.11277): a slice of every weight on every chip.
FSDP = gathered("xyz", "") | OVER_BATCH
DATA_PARALLEL = FSDP | {"weights": {}}


def maxtext(fsdp: str, tensor: str) -> Rules:
    """MaxText's logical_axis_rules (MaxText/configs/base.yml; its decoders' constraints).

    Parameters: embed over fsdp; mlp, heads, kv_heads, vocab and norm over tensor. Activations:
    activation_batch over fsdp; activation_embed, _heads, _kv_heads, _mlp and _vocab over tensor.
    Caches: heads over tensor, and the batch over fsdp as decode_batch has it
    (configs/inference.yml), since whole it would not fit.
    """
    stream = {"batch": fsdp, "d_model": tensor}
    within = {"batch": fsdp} | inner(tensor)
    return {
        "tables": {"vocab": tensor, "d_model": fsdp},
        "weights": {"d_model": fsdp} | inner(tensor),
        "norms": {"d_model": tensor},
        "rows": stream,
        "residual": stream,
        "normed": stream,
        "query": within,
        "key": within,
        "hidden": within,
        "merged": within,
        "last": stream,
        "logits": {"batch": fsdp, "vocab": tensor},
    } | attend(within)


def unconstrained(cache: dict[str, str]) -> Rules:
    """Parameters in two dimensions, and whatever the compiler makes of it."""
    return STORED_2D | {"cache": cache, "logits": {"vocab": "yzx"}}


YARDSTICKS: dict[str, Rules] = {
    "ws1d/heads": WS1D | attend(inner("xyz")),
    "ws1d/batch": WS1D | OVER_BATCH,
    "ws2d/heads": WS2D | attend(inner("yzx")),
    "ws2d/heads by rows": WS2D | attend(inner("yzx")) | BY_ROWS,
    "ws2d/mixed": WS2D | attend({"batch": "x"} | inner("yz")),
    "ws2d/mixed less split": WS2D | attend({"batch": "x"} | inner("yz")) | LESS_SPLIT,
    "ws2d/batch": WS2D | OVER_BATCH | TO_BATCH,
    "ws2d/batch by rows": WS2D | OVER_BATCH | TO_BATCH | BY_ROWS,
    "ws2d/batch less split": WS2D | OVER_BATCH | TO_BATCH | LESS_SPLIT,
    "ws2d/batch by rows, less split": WS2D | OVER_BATCH | TO_BATCH | BY_ROWS | LESS_SPLIT,
    "wg_x/batch": gathered("x", "yz") | OVER_BATCH,
    "wg_xy/batch": gathered("xy", "z") | OVER_BATCH,
    "wg_xyz/batch": gathered("xyz", "") | OVER_BATCH,
    "megatron/heads": MEGATRON | attend(inner("xyz")),
    "megatron/mixed": MEGATRON | attend({"kv_heads": "xyz", "batch": "xyz"}),
    "megatron/batch": MEGATRON | OVER_BATCH,
    "megatron/replicated": MEGATRON | attend({}) | {"attention": inner("xyz")},
    "fsdp over d_model": FSDP | {"weights": {"d_model": "xyz"}},
    "fsdp over d_ff": FSDP | {"weights": inner("xyz") | {"d_model": "xyz"}},
    "data parallel": DATA_PARALLEL,
    "maxtext fsdp=x tensor=yz": maxtext("x", "yz"),
    "maxtext fsdp=xy tensor=z": maxtext("xy", "z"),
    "maxtext tensor=xyz": maxtext("", "xyz"),
    "2d parameters only, cache over heads": unconstrained(inner("yz")),
    "2d parameters only, cache over batch": unconstrained({"batch": "xyz"}),
}
