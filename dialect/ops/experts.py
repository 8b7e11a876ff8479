"""A product with the experts of a mixture that stays one product under `jax.vmap`.

JAX batches a ragged product by giving every element of the batch its own weights. But rows of any
origin can share one: sorted by expert, then put back (Gale et al. 2022, MegaBlocks, section 4).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dialect.arrays.attributes import decode
from dialect.ops.lax import infer_by_reference
from dialect.ops.vocabulary import word
from rewrite import opdef
from rewrite.ir import Op
from rewrite.opdef import OpDef, Traits
from rewrite.signature import Signature


def expert_product(rows: Any, weights: Any, counts: Any, *, dtype: Any, precision: Any) -> Any:
    """`jax.lax.ragged_dot`: the first counts[0] rows times weights[0], the next times weights[1].

    rows: [m, k], weights: [e, k, f], counts: integers [e]  ->  [m, f] in `dtype`; zero for rows
    beyond the sum of the counts. Under `jax.vmap` over rows and counts it is one ragged product of
    all rows. Raises NotImplementedError under `jax.vmap` over the weights.
    """

    @jax.custom_batching.custom_vmap
    def product(rows: Any, weights: Any, counts: Any) -> Any:
        return jax.lax.ragged_dot(
            rows, weights, counts, precision=decode(precision), preferred_element_type=decode(dtype)
        )

    @product.def_vmap
    def of_all_rows(size: int, batched: Any, rows: Any, weights: Any, counts: Any) -> Any:
        if batched[1]:
            raise NotImplementedError("the weights of experts differ from row to row")
        rows, counts = (
            array if is_batched else jnp.broadcast_to(array, (size, *array.shape))
            for array, is_batched in ((rows, batched[0]), (counts, batched[2]))
        )
        ends = jnp.cumsum(counts, axis=1)
        expert = jnp.sum(jnp.arange(rows.shape[1])[:, None] >= ends[:, None, :], axis=2)
        order = jnp.argsort(expert.reshape(-1), stable=True)
        flat = rows.reshape(-1, rows.shape[2])
        results = product(flat[order], weights, jnp.sum(counts, axis=0, dtype=counts.dtype))
        return results[jnp.argsort(order)].reshape(*rows.shape[:2], -1), True

    return product(rows, weights, counts)


EXPERT_PRODUCT = Signature.parse("m k, e k n, e -> m n; need m e")
word(
    expert_product,
    lambda op: EXPERT_PRODUCT,
    ("dtype", "precision"),
    traits=Traits(linear="each", sums=True, skips_zeros=True, counts=2),
)


def expert_product_of_layer(
    rows: Any, weights: Any, counts: Any, layer: Any, *, dtype: Any, precision: Any
) -> Any:
    """`expert_product` with the experts of one of the layers whose experts are stacked.

    rows: [m, k], weights: [l, e, k, f], counts: integers [e], layer: a scalar  ->  [m, f]

    All matrices are groups of one ragged product, and those of other layers have no rows. Its
    kernel reads the matrices that have some; one layer alone would be copied for it first. The name
    of the scope tells how many groups can have rows: see `dialect.compiled.traffic`.
    """
    layers, experts, *matrix = weights.shape
    none = jnp.zeros(layers * experts, counts.dtype)
    of_all = jax.lax.dynamic_update_slice(none, counts, (layer * experts,))
    with jax.named_scope(f"{experts}_experts"):
        return jax.lax.ragged_dot(
            rows,
            weights.reshape(layers * experts, *matrix),
            of_all,
            precision=decode(precision),
            preferred_element_type=decode(dtype),
        )


opdef.define(  # no word, so that it is not expanded: its scope is there when it is lowered
    OpDef(
        name="expert_product_of_layer",
        signature=lambda op: Signature.parse("m k, l e k n, e, -> m n; need m e l"),
        infer=infer_by_reference("expert_product_of_layer"),
        reference=expert_product_of_layer,
        attrs=("dtype", "precision"),
        doc="The first rows times a layer's first matrix, the next times its second, and so on.",
        traits=Traits(sums=True, skips_zeros=True, counts=2),
    )
)


def summed_axis(op: Op) -> int | None:
    """The contracted axis of the experts' matrices in a ragged product without batch whose rows are
    ragged and whose experts come first; None for any other."""
    numbers = dict(op["ragged_dot_dimension_numbers"].fields)
    (_, summed), _ = numbers["dot_dimension_numbers"]
    rows, experts = numbers["lhs_ragged_dimensions"], numbers["rhs_group_dimensions"]
    ranks = [arg.type.rank for arg in op.args[:2]]
    plain = (tuple(rows), tuple(experts)) == ((0,), (0,)) and ranks == [2, 3] and len(summed) == 1
    return summed[0] if plain and op.get("group_offset") is None else None
