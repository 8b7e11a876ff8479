"""What is known of JAX's primitives besides their axes and their meaning, one line an op.

`rewrite.opdef.Traits` says what the facts mean; `tests/test_traits.py` checks it on numbers.
"""

from __future__ import annotations

from dataclasses import replace

from rewrite.opdef import Traits

_VIEW = Traits(moves=True, view=True, linear="all")
_MOVE = Traits(moves=True, linear="all")
_EXACT = Traits(exact=True)
_STEP = Traits(exact=True, jumps=True)
_SYMMETRIC = Traits(exact=True, commutes=True)
_SCATTER = Traits(moves=True, writes=2)
_SUM = Traits(linear="all", sums=True)
_PRODUCT = Traits(linear="each", sums=True)

TRAITS: dict[str, Traits] = {
    # Another shape for the same elements, or the elements themselves.
    "reshape": Traits(moves=True, view=True, linear="all", shape="new_sizes"),
    "broadcast_in_dim": Traits(moves=True, view=True, linear="all", shape="shape"),
    "iota": Traits(moves=True, view=True, shape="shape"),
    "squeeze": _VIEW,
    "copy": _VIEW,
    "name": _VIEW,
    "stop_gradient": _VIEW,
    "optimization_barrier": _VIEW,
    "sharding_constraint": _VIEW,
    # Elements at other places.
    "transpose": Traits(moves=True, linear="all", order="permutation"),
    "slice": Traits(
        moves=True,
        linear="all",
        picks=True,
        by_axis=("start_indices", "limit_indices", "strides"),
    ),
    "split": _MOVE,
    "stack": Traits(moves=True, linear="all", new_axis="axis"),
    "unstack": Traits(moves=True, linear="all", axes="axis"),
    "concatenate": _MOVE,
    "rev": _MOVE,
    "tile": _MOVE,
    "pad": Traits(moves=True, linear="all", fills=True),
    "dynamic_slice": Traits(moves=True, picks=True, shape="slice_sizes"),
    "gather": Traits(moves=True, picks=True, fills=True),
    "dynamic_update_slice": Traits(moves=True, writes=1),
    "scatter": _SCATTER,
    "scatter-add": Traits(writes=2),
    "scatter-sub": Traits(writes=2),
    "scatter-mul": Traits(writes=2),
    "scatter-min": Traits(writes=2, exact=True),
    "scatter-max": Traits(writes=2, exact=True),
    # One of several elements, or what no float rounds.
    **dict.fromkeys(
        "select_n clamp top_k cummax cummin reduce_max reduce_min abs real imag".split(), _EXACT
    ),
    **dict.fromkeys("sort ceil floor round sign argmax argmin".split(), _STEP),
    **dict.fromkeys("lt le gt ge is_finite not reduce_and".split(), _EXACT),
    "reduce_or": Traits(exact=True, skips_zeros=True),
    **dict.fromkeys("max min and or xor eq ne".split(), _SYMMETRIC),
    # Arithmetic.
    "neg": Traits(exact=True, linear="all"),
    "add": Traits(linear="all", commutes=True),
    "add_any": Traits(linear="all"),
    "sub": Traits(linear="all"),
    "mul": Traits(linear="each", commutes=True),
    "div": Traits(linear="first"),
    "rem": Traits(jumps=True),
    "convert_element_type": Traits(converts=True, linear="all"),
    "reduce_sum": replace(_SUM, skips_zeros=True),
    "cumsum": _SUM,
    "dot_general": replace(_PRODUCT, skips_zeros=True),
    "ragged_dot_general": replace(_PRODUCT, skips_zeros=True, counts=2),
    "conv_general_dilated": _PRODUCT,
}
