"""One line of a program each: `lax` by primitive, and `jax.numpy` as people write it."""

from __future__ import annotations

from tests.fuzz.drawing import Drawer, Template

_MODES = "clip fill promise_in_bounds drop"


def _unary(kind: str, names: str) -> Template:
    return lambda d: f"lax.{d.one(names)}({d.of(kind)})"


def _binary(kind: str, names: str) -> Template:
    return lambda d: f"lax.{d.one(names)}({d.of(kind)}, {d.like()})"


LAX_MAPS: tuple[Template, ...] = (
    _unary("f", "exp log rsqrt sqrt tanh logistic sin cos square neg abs erf log1p expm1"),
    _unary(
        "f",
        "acos acosh asin asinh atan atanh bessel_i0e bessel_i1e cbrt ceil cosh digamma erf_inv "
        "erfc exp2 floor is_finite lgamma reciprocal round sign sinh tan",
    ),
    _unary("i", "abs neg sign bitwise_not population_count clz square"),
    _unary("c", "exp log real neg square sqrt abs sign"),
    lambda d: f"lax.complex({d.of('f')}, {d.like()})",
    lambda d: f"lax.{d.one('imag conj real abs')}(lax.complex({d.of('f')}, {d.like()}))",
    _binary("f", "add sub mul div max min"),
    _binary("f", "add sub mul div max min"),
    _binary("f", "rem pow atan2 nextafter igamma igammac zeta polygamma random_gamma_grad"),
    _binary("i", "add sub mul div rem max min bitwise_and bitwise_or bitwise_xor"),
    _binary("i", "shift_left shift_right_arithmetic shift_right_logical"),
    _binary("b", "bitwise_and bitwise_or bitwise_xor eq ne"),
    _binary("n", "eq ne lt le gt ge"),
    lambda d: f"lax.bitwise_not({d.of('b')})",
    lambda d: f"lax.integer_pow({d.of('n')}, {d.between(-3, 4)})",
    lambda d: f"lax.clamp({d.number}, {d.of('f')}, {d.number})",
    lambda d: f"lax.clamp({d.of('n')}, {d.like()}, {d.like()})",
    lambda d: f"lax.select({_mask_like(d)}, {d.like()}, {d.like()})",
    lambda d: f"lax.select_n(lax.clamp(0, {d.of('i')}, 2).astype('int32'), {_three(d)})",
    lambda d: f"lax.convert_element_type({d.of('x')}, {d.dtype!r})",
    lambda d: f"lax.bitcast_convert_type({d.of('n')}, {d.one('int32 int16 uint8 float32')!r})",
    lambda d: f"lax.reduce_precision({d.of('f')}, {d.between(3, 8)}, {d.between(1, 9)})",
    lambda d: f"lax.{d.one('stop_gradient optimization_barrier')}({d.of('x')})",
    lambda d: f"jax.ad_checkpoint.checkpoint_name({d.of('x')}, 'name')",
    lambda d: f"lax.optimization_barrier(({d.of('x')}, {d.of('x')}))",
    lambda d: f"lax.betainc({d.of('f')}, {d.like()}, {d.like()})",
)


def _mask_like(d: Drawer) -> str:
    """A mask of the shape of a number, which is the last value then."""
    return f"{d.of('n')} {d.one('> < != ==')} {d.like()}"


def _three(d: Drawer) -> str:
    d.last = d.last.update(dtype=d.float)
    return f"{d.like()}, {d.like()}, {d.like()}"


LAX_SHAPES: tuple[Template, ...] = (
    lambda d: f"lax.reshape({d.of('x')}, {d.shape})",
    lambda d: f"lax.reshape({d.of('x', least=2)}, {d.shape}, dimensions={d.permutation})",
    lambda d: f"lax.transpose({d.of('x', least=2)}, {d.permutation})",
    lambda d: f"lax.broadcast({d.of('x')}, ({d.between(1, 3)},))",
    lambda d: f"lax.broadcast_in_dim({d.of('x', rank=1)}, {(*d.last.shape, 2)}, (0,))",
    lambda d: f"lax.broadcast_in_dim({d.of('x', rank=1)}, {(3, *d.last.shape)}, (1,))",
    lambda d: f"lax.expand_dims({d.of('x')}, ({d.axis},))",
    lambda d: f"lax.squeeze({d.of('x')}, {_ones(d)})",
    lambda d: f"lax.rev({d.of('x', least=1)}, {d.axes})",
    lambda d: f"lax.concatenate([{d.of('x', least=1)}, {d.like()}], {abs(d.axis + 0) % _rank(d)})",
    lambda d: f"lax.concatenate([{d.of('x', least=1)}] * {d.between(1, 3)}, {d.axis % _rank(d)})",
    lambda d: f"lax.pad({d.of('n')}, {_filler(d)}, {_padding(d)})",
    lambda d: f"lax.slice({d.of('x', least=1)}, {_slices(d)})",
    lambda d: (
        f"lax.slice_in_dim({d.of('x', least=1)}, {d.small}, None, {d.between(1, 2)}, {d.axis})"
    ),
    lambda d: f"lax.split({d.of('x', least=1)}, {_cuts(d)}",
    lambda d: f"lax.iota({d.dtype!r}, {d.between(0, 4)})",
    lambda d: f"lax.broadcasted_iota('int32', {d.one('(2,3) (3,) (4,1)')}, 0)",
    lambda d: f"lax.full_like({d.of('x')}, {d.number})",
    lambda d: f"lax.tile({d.of('x', rank=1)}, ({d.between(1, 2)},))",
    lambda d: f"lax.collapse({d.of('x', least=2)}, 0, 2)",
)


def _rank(d: Drawer) -> int:
    return max(1, len(d.last.shape))


def _ones(d: Drawer) -> tuple[int, ...]:
    return tuple(i for i, size in enumerate(d.last.shape) if size == 1 and d.flag)


def _filler(d: Drawer) -> str:
    return f"jnp.asarray({d.number}, {d.dtype_of_last!r})"


def _padding(d: Drawer) -> list[tuple[int, int, int]]:
    return [(d.between(-1, 2), d.between(-1, 2), int(d.between(0, 4) == 0)) for _ in d.last.shape]


def _slices(d: Drawer) -> str:
    """Starts, limits, and at times strides."""
    stops = [d.between(0, size) for size in d.last.shape]
    starts = [d.between(0, stop) for stop in stops]
    strides = f", {[d.between(1, 2) for _ in stops]}" if d.flag else ""
    return f"{starts}, {stops}{strides}"


def _cuts(d: Drawer) -> str:
    axis = d.axis % _rank(d)
    size = d.last.shape[axis]
    cut = d.between(0, size)
    return f"({cut}, {size - cut}), {axis})"


LAX_REDUCTIONS: tuple[Template, ...] = (
    lambda d: f"lax.{d.one('reduce_sum reduce_max reduce_min')}({d.of('n')}, axes={d.axes})",
    lambda d: f"lax.{d.one('reduce_sum reduce_max reduce_prod')}({d.of('f')}, axes={d.axes})",
    lambda d: f"lax.{d.one('reduce_and reduce_or reduce_xor')}({d.of('b')}, axes={d.axes})",
    lambda d: f"lax.{d.one('reduce_and reduce_or reduce_xor')}({d.of('i')}, axes={d.axes})",
    lambda d: (
        f"lax.{d.one('argmax argmin')}({d.of('n', least=1)}, {d.axis % _rank(d)}, "
        f"{d.one('int32 uint8 int32')!r})"
    ),
    lambda d: (
        f"lax.{d.one('cumsum cumprod cummax cummin')}({d.of('n', least=1)}, {d.axis % _rank(d)}, "
        f"reverse={d.flag})"
    ),
    lambda d: f"lax.cumlogsumexp({d.of('f', least=1)}, {d.axis % _rank(d)}, reverse={d.flag})",
    lambda d: f"lax.reduce({d.of('f')}, np.array(0, {d.dtype_of_last!r}), lax.add, {d.axes})",
    lambda d: (
        f"lax.reduce({d.of('f')}, np.array(1, {d.dtype_of_last!r}), "
        f"lambda a, b: a + b - a * b, {d.axes})"
    ),
    lambda d: (
        f"lax.reduce_window({d.of('f', least=1)}, np.array(0, {d.dtype_of_last!r}), lax.add, "
        f"{_window(d)})"
    ),
    lambda d: (
        f"lax.reduce_window({d.of('f', least=1)}, np.array(-inf, {d.dtype_of_last!r}), lax.max, "
        f"{_window(d)})"
    ),
    lambda d: f"lax.sort({d.of('n', least=1)}, dimension={d.axis})",
    lambda d: f"lax.sort(({d.of('n', least=1)}, {d.like()}), dimension=-1, num_keys={_keys(d)})",
    lambda d: f"lax.top_k({d.of('n', least=1)}, {d.between(0, d.last.shape[-1])})",
    lambda d: f"lax.approx_max_k({d.of('f', least=1)}, {d.between(1, 2)})",
)


def _keys(d: Drawer) -> int:
    return d.between(1, 2)


def _window(d: Drawer) -> str:
    rank = len(d.last.shape)
    window = tuple(d.between(1, 2) for _ in range(rank))
    strides = tuple(d.between(1, 2) for _ in range(rank))
    return f"{window}, {strides}, {d.one('SAME VALID')!r}"


LAX_INDEXING: tuple[Template, ...] = (
    lambda d: f"lax.dynamic_slice({d.of('x', least=1)}, {_starts(d)}, {d.sizes()})",
    lambda d: (
        f"lax.dynamic_update_slice({d.of('x', least=1)}, "
        f"jnp.full({d.sizes()}, {d.number}, {d.dtype_of_last!r}), {_starts(d)})"
    ),
    lambda d: f"lax.dynamic_index_in_dim({d.of('x', least=1)}, {_index(d)}, {d.axis}, {d.flag})",
    lambda d: (
        f"lax.dynamic_update_index_in_dim({d.of('x', least=2)}, "
        f"jnp.full({d.last.shape[1:]}, {d.number}, {d.dtype_of_last!r}), {_index(d)}, 0)"
    ),
    lambda d: f"{d.of('x', least=1)}[{_indices(d)}]",
    lambda d: f"{d.of('x', least=1)}.at[{_indices(d)}].get(mode={d.one(_MODES)!r})",
    lambda d: (
        f"jnp.take({d.of('x', least=1)}, {d.of('i')}, axis=0, mode={d.one('clip wrap fill')!r})"
    ),
    lambda d: (
        f"{d.of('n', least=1)}.at[{_indices(d)}].{d.one('set add multiply min max')}"
        f"({d.number}, mode={d.one(_MODES)!r})"
    ),
    lambda d: f"{d.of('n', least=1)}.at[{_indices(d)}].{d.one('set add')}({d.number})",
    lambda d: f"{d.of('n', least=1)}.at[{_slice_text(d)}].{d.one('set add mul')}({d.number})",
    lambda d: f"{d.of('x', least=1)}[{_slice_text(d)}]",
    lambda d: f"jnp.take_along_axis({d.of('x', least=1)}, jnp.argsort({_same(d)}, -1), -1)",
    lambda d: f"jax.ops.segment_sum({d.of('f', rank=1)}, {_segments(d)}, num_segments=3)",
    lambda d: f"jax.nn.one_hot({d.of('i')}, {d.between(1, 4)})",
    lambda d: f"jax.nn.one_hot({d.of('i', rank=1)}, 3) @ {_table(d)}",
    lambda d: f"jnp.searchsorted(jnp.sort({d.of('f', rank=1)}), {d.of('f')})",
    lambda d: f"jnp.where(jnp.arange({d.between(1, 4)}) == {d.of('i', rank=0)}, 1.0, {d.number})",
)


def _starts(d: Drawer) -> str:
    last = d.last
    starts = ", ".join(_index(d) for _ in last.shape)
    d.last = last
    return f"({starts},)"


def _index(d: Drawer) -> str:
    """A position: a number, or a scalar of the program."""
    last = d.last
    text = str(d.between(-2, 3)) if d.random.random() < 0.4 else d.of("i", rank=0)
    d.last = last
    return text


def _indices(d: Drawer) -> str:
    last = d.last
    text = d.of("i")
    if len(last.shape) > 1 and d.flag:
        text = f"{d.one(': ...')}, {text}"
    d.last = last
    return text


def _slice_text(d: Drawer) -> str:
    return d.one("0 -1 1: :-1 ::2 ::-1 None,...,0 ...,None ...,:1 :0 ...,-1:")


def _same(d: Drawer) -> str:
    return d.like()


def _segments(d: Drawer) -> str:
    return f"jnp.arange({d.last.shape[0]}) % {d.between(1, 3)}"


def _table(d: Drawer) -> str:
    return d.of("f", rank=2)


LAX_PRODUCTS: tuple[Template, ...] = (
    lambda d: f"{d.of('f', rank=2)} @ {d.of('f', rank=2)}",
    lambda d: f"{d.of('f', least=1)} @ {_fitting(d)}",
    lambda d: f"{d.of('f', least=1)} @ {_fitting(d)}",
    lambda d: f"jnp.dot({d.of('n', least=1)}, {_fitting(d)}, preferred_element_type={d.float!r})",
    lambda d: f"lax.dot_general({d.of('n', least=1)}, {d.like()}, {_contracting(d)})",
    lambda d: (
        f"lax.dot_general({d.of('n', least=1)}, {d.like()}, {_contracting(d)}, "
        f"preferred_element_type={d.one('float32 int32')!r})"
    ),
    lambda d: f"jnp.einsum({d.one('ij,kj->ik ij,ij->i ij,ij-> ij,kl->ki')!r}, {_pair(d)})",
    lambda d: f"jnp.einsum('ijk,ijl->ikl', {d.of('f', rank=3)}, {d.like()})",
    lambda d: f"jnp.einsum('i,j->ij', {d.of('f', rank=1)}, {d.of('f', rank=1)})",
    lambda d: f"jnp.tensordot({d.of('f', least=1)}, {d.like()}, {d.between(0, _rank(d))})",
    lambda d: f"jnp.outer({d.of('f')}, {d.of('f')})",
    lambda d: (
        f"lax.conv_general_dilated({_image(d)}, {_kernel(d)}, (1,), {d.one('SAME VALID')!r}, "
        f"rhs_dilation=({d.between(1, 2)},))"
    ),
    lambda d: f"jnp.convolve({d.of('f', rank=1)}, {d.of('f', rank=1)}, {d.one('full same')!r})",
    lambda d: (
        f"lax.ragged_dot({d.of('f', rank=2)}, jnp.full((2, {d.last.shape[1]}, 3), {d.number}, "
        f"{d.dtype_of_last!r}), jnp.array([1, {max(0, d.last.shape[0] - 1)}]))"
    ),
)


def _fitting(d: Drawer) -> str:
    """A matrix whose rows are as many as the columns of the last value."""
    size = d.last.shape[-1]
    fitting = [
        name
        for name, type_ in d.scope.types.items()
        if len(type_.shape) == 2 and type_.shape[0] == size and _is_float(type_)
    ]
    return d.random.choice(fitting) if fitting else f"jnp.eye({size}, 3, dtype={d.float!r})"


def _is_float(type_: object) -> bool:
    return str(type_.dtype) in ("float32", "bfloat16", "float16", "float64")  # type: ignore[attr-defined]


def _contracting(d: Drawer) -> str:
    rank = len(d.last.shape)
    summed = d.axis % rank
    batch = [i for i in range(rank) if i != summed and d.random.random() < 0.4]
    return f"((({summed},), ({summed},)), ({tuple(batch)}, {tuple(batch)}))"


def _pair(d: Drawer) -> str:
    return f"{d.of('f', rank=2)}, {d.like()}"


def _image(d: Drawer) -> str:
    return f"{d.of('f', rank=2)}[None]"


def _kernel(d: Drawer) -> str:
    return f"jnp.ones((2, {d.last.shape[0]}, {d.between(1, 2)}), {d.dtype_of_last!r})"


OPERATORS: tuple[Template, ...] = (
    lambda d: f"{d.of('n')} {d.one('+ - * / + - *')} {d.beside('n')}",
    lambda d: f"{d.of('f')} {d.one('+ - * / + - *')} {d.beside('f')}",
    lambda d: f"{d.beside('f')} {d.one('- / + *')} {d.of('f')}",
    lambda d: f"{d.number} {d.one('- / + *')} {d.of('n')}",
    lambda d: f"{d.of('n')} {d.one('// % **')} {d.beside('n')}",
    lambda d: f"{d.of('i')} {d.one('// % & | ^ << >>')} {d.beside('i')}",
    lambda d: f"{d.of('f')} ** {d.one('2 -1 0.5 -0.5 3 2.0 0 1')}",
    lambda d: f"-{d.of('n')}",
    lambda d: f"{d.of('n')} {d.one('< <= > >= == !=')} {d.beside('n')}",
    lambda d: f"{d.of('b')} {d.one('& | ^')} {d.beside('b')}",
    lambda d: f"~{d.of('b')}",
    lambda d: f"jnp.where({d.of('b')}, {d.beside('n')}, {d.beside('n')})",
    lambda d: f"jnp.where({d.of('b')}, {d.beside('f')}, {d.one('-inf 0.0 -1e9 1.0 nan 0')})",
    lambda d: f"{d.of('x')}.astype({d.dtype!r})",
    lambda d: f"{d.of('f')}.astype({d.one('float32 bfloat16 float16 int32')!r})",
    lambda d: f"jnp.{d.one('maximum minimum logaddexp hypot arctan2 copysign')}({_two(d)})",
    lambda d: f"jnp.{d.one('floor_divide remainder fmod divmod power float_power')}({_two(d)})",
    lambda d: f"jnp.clip({d.of('n')}, {d.number}, {d.number})",
    lambda d: f"jnp.{d.one('isnan isinf isfinite nan_to_num signbit rint trunc')}({d.of('f')})",
    lambda d: f"jnp.{d.one('square sqrt exp log2 log10 sinc heaviside modf frexp')}({_one(d)})",
)


def _two(d: Drawer) -> str:
    return f"{d.of('n')}, {d.beside('n')}"


def _one(d: Drawer) -> str:
    return d.of("f")


ARRAYS: tuple[Template, ...] = (
    lambda d: f"jnp.{d.one('sum max min mean prod')}({d.of('n')}, {d.axis_or_axes})",
    lambda d: f"jnp.{d.one('sum mean max')}({d.of('f')}, -1, keepdims={d.flag})",
    lambda d: (
        f"jnp.{d.one('var std')}({d.of('n')}, {d.axis_or_axes}, ddof={d.between(0, 1)}, "
        f"keepdims={d.flag})"
    ),
    lambda d: f"jnp.{d.one('any all')}({d.of('b')}, {d.axis_or_axes})",
    lambda d: f"jnp.{d.one('argmax argmin argsort sort')}({d.of('n', least=1)}, {d.axis})",
    lambda d: f"jnp.{d.one('cumsum cumprod')}({d.of('n')}, {d.axis})",
    lambda d: f"jnp.{d.one('median nanmean ptp average')}({d.of('f')})",
    lambda d: f"jnp.linalg.norm({d.of('f')}, axis={d.one('None -1 0')})",
    lambda d: f"{d.of('x')}.reshape({d.shape})",
    lambda d: f"{d.of('x')}.reshape(-1)",
    lambda d: f"jnp.swapaxes({d.of('x', least=2)}, 0, -1)",
    lambda d: f"{d.of('x', least=2)}.T",
    lambda d: f"jnp.broadcast_to({d.of('x')}, {(d.between(1, 3), *d.last.shape)})",
    lambda d: f"jnp.{d.one('stack concatenate hstack vstack')}([{d.of('x', least=1)}, {d.like()}])",
    lambda d: f"jnp.stack([{d.of('x')}, {d.like()}], -1)",
    lambda d: f"jnp.{d.one('split array_split')}({d.of('x', least=1)}, {d.between(1, 2)}, -1)",
    lambda d: f"jnp.{d.one('unstack')}({d.of('x', least=1)})",
    lambda d: f"jnp.repeat({d.of('x', least=1)}, {d.between(0, 3)}, {d.axis})",
    lambda d: f"jnp.tile({d.of('x')}, {d.one('2 (1,2) (2,1)')})",
    lambda d: f"jnp.roll({d.of('x', least=1)}, {d.between(-2, 2)}, {d.axis})",
    lambda d: f"jnp.roll({d.of('x', least=1)}, {d.of('i', rank=0)}, 0)",
    lambda d: f"jnp.{d.one('flip diff')}({d.of('n', least=1)}, axis={d.axis})",
    lambda d: f"jnp.{d.one('tril triu')}({d.of('n', least=2)}, {d.between(-1, 1)})",
    lambda d: f"jnp.pad({d.of('n', least=1)}, 1, mode={d.one('constant edge reflect wrap')!r})",
    lambda d: f"jnp.{d.one('diag atleast_2d ravel squeeze zeros_like ones_like')}({d.of('x')})",
    lambda d: f"jnp.arange({d.between(0, 4)}) {d.one('+ * - < >= ==')} {d.of('n', rank=0)}",
    lambda d: f"jnp.linspace({d.number}, 1.0, {d.between(0, 4)})",
    lambda d: f"jnp.{d.one('interp')}({d.of('f')}, jnp.arange(3.0), jnp.array([1.0, 2.0, -1.0]))",
    lambda d: f"jnp.{d.one('cross kron inner vdot')}({_two(d)})",
    lambda d: f"jnp.bincount(jnp.abs({d.of('i', rank=1)}), length=4)",
    lambda d: f"jnp.asarray({[d.between(-2, 4) for _ in range(3)]}, {d.dtype!r})",
    lambda d: f"jnp.asarray({d.number})",
)

RARE: tuple[Template, ...] = (
    lambda d: f"jnp.fft.{d.one('fft ifft rfft')}({d.of('f', least=1)})",
    lambda d: f"jnp.fft.irfft(jnp.fft.rfft({d.of('f', least=1)}))",
    lambda d: f"jnp.linalg.cholesky({_positive(d)})",
    lambda d: f"jnp.linalg.{d.one('det inv')}({_positive(d)})",
    lambda d: f"jnp.linalg.qr({d.of('f', rank=2)})",
    lambda d: f"jnp.linalg.eigvalsh({_positive(d)})",
    lambda d: f"jnp.linalg.svd({d.of('f', rank=2)}, compute_uv=False)",
    lambda d: f"lax.linalg.triangular_solve({_positive(d)}, jnp.ones({d.last.shape}), lower=True)",
    lambda d: f"jax.scipy.linalg.lu_factor({_positive(d)})",
    lambda d: f"jax.random.{d.one('uniform normal bits')}({d.of('k', rank=0)}, (3,))",
    lambda d: f"jax.random.split({d.of('k', rank=0)})",
    lambda d: f"jax.random.fold_in({d.of('k', rank=0)}, {d.of('i', rank=0)})",
    lambda d: f"jax.random.key_data({d.of('k')})",
    lambda d: f"jax.random.permutation({d.of('k', rank=0)}, 4)",
    lambda d: f"jax.random.categorical({d.of('k', rank=0)}, {d.of('f', least=1)})",
    lambda d: f"jax.random.{d.one('bernoulli gumbel')}({d.of('k', rank=0)}, shape=(2,))",
    lambda d: f"lax.rng_bit_generator(jax.random.key_data({d.of('k', rank=0)}), (3,))",
    lambda d: f"jax.image.resize({d.of('f', rank=2)}, (2, 2), 'linear')",
    lambda d: f"jax.scipy.special.{d.one('logsumexp logit xlogy entr ndtr')}({d.of('f')})",
    lambda d: f"lax.with_sharding_constraint({d.of('x')}, jax.NamedSharding(mesh, P()))",
    lambda d: f"lax.reduce_and_scatter({d.of('f')})",
)


def _positive(d: Drawer) -> str:
    """A square matrix that is positive definite."""
    name = d.of("f", rank=2)
    rows = d.last.shape[0]
    d.last = d.last.update(shape=(rows, rows))
    return f"{name} @ {name}.T + 2.0 * jnp.eye({rows}, dtype={d.dtype_of_last!r})"
