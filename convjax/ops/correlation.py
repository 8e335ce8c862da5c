"""The convolution as a primitive: a function of an image and a kernel that is linear in each.

Its two transposes are primitives too, the input gradient and the weight gradient; and the three
are each other's transposes, so derivatives of any order are among them. Each is computed by the
algorithm that `convjax.ops.choice` names for its shape. A fourth primitive is the tangent of the
convolution in both, which knows in what order to compute the gradients. Under `vmap` an image of
its own for each member becomes a larger batch, and a kernel of its own more features, or else a
batched dot.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from convjax.ops import algorithms, choice, depthwise, winograd
from convjax.ops.geometry import Geometry
from convjax.ops.primitive import make, unmarked

# operation -> name of the algorithm -> the function
FUNCTIONS: dict[str, dict[str, algorithms.Algorithm]] = {
    "conv": {
        "lax": algorithms.lax_forward,
        "dot": algorithms.dot_forward,
        "taps": algorithms.taps_forward,
        "im2col": algorithms.im2col_forward,
        "pairs": algorithms.pairs_forward,
        "winograd": winograd.winograd_forward,
        "depthwise": depthwise.depthwise_forward,
    },
    "conv_input": {
        "lax": algorithms.lax_input,
        "flipped": algorithms.flipped_input,
        "phases": algorithms.phases_input,
        "dot": algorithms.dot_input,
        "taps": algorithms.taps_input,
        "col2im": algorithms.col2im_input,
        "winograd": winograd.winograd_input,
        "depthwise": depthwise.depthwise_input,
    },
    "conv_weight": {
        "lax": algorithms.lax_weight,
        "canonical": algorithms.canonical_weight,
        "dot": algorithms.dot_weight,
        "taps": algorithms.taps_weight,
        "im2col": algorithms.im2col_weight,
        "winograd": winograd.winograd_weight,
        "depthwise": depthwise.depthwise_weight,
    },
}
# A stride takes a sum, or a convolution, for each of its remainders, and a depthwise window as many
# products as taps: more than so many take XLA seconds to compile.
MOST_SUMS, MOST_CONVOLUTIONS, MOST_TAPS = 64, 16, 1024
# Those that call XLA's convolution, which is slow where every member has a kernel of its own.
CONVOLUTIONS = ("lax", "canonical", "flipped", "phases")


def correlate(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Slides the kernel over `x`.

    x: `[batch, *size, channels]`; kernel: `[*window, channels / groups, features]`, of its dtype.
    Returns `[batch, *out, features]`.
    """
    return _bind("conv", x, kernel, geometry)


def paint(g: Array, kernel: Array, geometry: Geometry) -> Array:
    """The transpose of `correlate` in its image: every number of `g` paints the kernel.

    g: `[batch, *out, features]`; kernel as there. Returns `[batch, *size, channels]`.
    """
    return _bind("conv_input", g, kernel, geometry)


def convolutions_saveable(primitive: Any, *arguments: Any, **params: Any) -> bool:
    """A policy of `jax.checkpoint`: convolutions and dots are stored, all else is computed again.

    `jax.checkpoint_policies.dots_saveable` knows only the convolutions of XLA's own.

    >>> step = jax.checkpoint(jnp.sin, policy=convolutions_saveable)
    """
    return primitive in (_forward, _input) or jax.checkpoint_policies.dots_saveable(
        primitive, *arguments, **params
    )


def applies(operation: str, name: str, geometry: Geometry, channels: int) -> bool:
    """Whether an algorithm can compute an operation of that geometry over that many channels."""
    grouped, rank = geometry.groups > 1, len(geometry.size)
    plain = all(gap == 1 for gap in geometry.dilation)
    phases = math.prod(geometry.stride)
    return {
        "dot": geometry.window == (1,) * rank and not grouped,
        "taps": not grouped,
        # Windows that do not overlap have nothing in common.
        "pairs": not grouped
        and geometry.dilation[-1] == 1
        and geometry.stride[-1] < geometry.window[-1],
        "winograd": winograd.applies(geometry),
        "depthwise": geometry.groups == channels
        and (phases if operation == "conv_input" else 1) <= MOST_SUMS
        and math.prod(geometry.window) <= MOST_TAPS,
        "flipped": geometry.stride == (1,) * rank,
        "phases": plain and not grouped and phases <= MOST_CONVOLUTIONS,
        "canonical": not grouped,
    }.get(name, True)


def _bind(operation: str, a: Array, b: Array, geometry: Geometry) -> Array:
    forced = tuple(choice.forced(each) for each in PRIMITIVES)
    if forced == ("lax",) * 3 or not unmarked(a, b):
        return FUNCTIONS[operation]["lax"](a, b, geometry)
    return PRIMITIVES[operation].bind(
        a,
        b,
        geometry=geometry,
        forced=forced,
        precision=jax.config.jax_default_matmul_precision,  # type: ignore[attr-defined]
        members=False,
    )


def _shape(operation: str) -> Callable[..., tuple[int, ...]]:
    def shape(a: Any, b: Any, *, geometry: Geometry, members: bool, **_: Any) -> tuple[int, ...]:
        lead = a.shape[:1] if members else ()
        batch = a.shape[1 if members else 0]
        if operation == "conv":
            return (*lead, batch, *geometry.out, b.shape[-1])
        if operation == "conv_input":
            return (*lead, batch, *geometry.size, b.shape[-2] * geometry.groups)
        return (*lead, *geometry.window, a.shape[-1] // geometry.groups, b.shape[-1])

    return shape


def _compute(operation: str, on_cpu: bool) -> Callable[..., Array]:
    def compute(
        a: Array, b: Array, *, geometry: Geometry, forced: Any, precision: Any, members: bool
    ) -> Array:
        with jax.default_matmul_precision(precision):
            return chosen(a, b, geometry, forced, precision, members)

    def chosen(
        a: Array, b: Array, geometry: Geometry, forced: Any, precision: Any, members: bool
    ) -> Array:
        name = "lax"
        if on_cpu and a.size and b.size:
            first = (a[0], b[0]) if members else (a, b)
            name = _name(operation, *first, geometry, forced, precision, members)
        function = partial(_with_geometry, FUNCTIONS[operation][name], geometry)
        if members:
            function = jax.vmap(function)
        if name != "lax" and a.dtype.itemsize < 4:
            # The CPU multiplies half precision in single precision anyway: sums are to be in it.
            return function(a.astype(jnp.float32), b.astype(jnp.float32)).astype(a.dtype)
        return function(a, b)

    return compute


def _with_geometry(
    algorithm: algorithms.Algorithm, geometry: Geometry, a: Array, b: Array
) -> Array:
    return algorithm(a, b, geometry)


def _name(
    operation: str,
    a: Array,
    b: Array,
    geometry: Geometry,
    forced: Any,
    precision: str | None,
    members: bool,
) -> str:
    """The name of the algorithm: the one that is asked for, if it applies, or that of the table."""
    channels = b.shape[-2] * geometry.groups if operation != "conv_weight" else a.shape[-1]
    asked = dict(zip(PRIMITIVES, forced, strict=True))[operation]
    if asked and applies(operation, asked, geometry, channels):
        return asked
    one_each = geometry.groups == channels and geometry.groups > 1
    case = choice.Case(
        operation,
        "depthwise" if one_each else "grouped" if geometry.groups > 1 else "dense",
        max(geometry.window),
        max(geometry.stride),
        channels,
        b.shape[-1],
        min(geometry.out),
        a.shape[0] * math.prod(geometry.out),
    )

    def possible(name: str) -> bool:
        exact = name != "winograd" or precision not in ("highest", "float32")
        return exact and applies(operation, name, geometry, channels)

    name = choice.choose(case, possible)
    if members and name in CONVOLUTIONS:
        return {"conv": "im2col", "conv_input": "col2im", "conv_weight": "im2col"}[operation]
    return name


PRIMITIVES = {
    operation: make(
        operation, _shape(operation), _compute(operation, False), _compute(operation, True)
    )
    for operation in FUNCTIONS
}
_forward, _input, _weight = PRIMITIVES.values()

# -- Derivatives -----------------------------------------------------------------------------------


def _jvp(primals, tangents, **params):
    (x, kernel), (dx, dkernel) = primals, tangents
    y = _forward.bind(x, kernel, **params)
    if isinstance(dkernel, ad.Zero):
        return y, _forward.bind(dx, kernel, **params)
    if isinstance(dx, ad.Zero):
        return y, _forward.bind(x, dkernel, **params)
    return y, _tangent.bind(dx, dkernel, x, kernel, **params)


def _transpose(g, x, kernel, **params):
    g = ad.instantiate_zeros(g)
    if ad.is_undefined_primal(x):
        return [_input.bind(g, kernel, **params), None]
    return [None, _weight.bind(x, g, **params)]


def _both(dx: Array, dkernel: Array, x: Array, kernel: Array, **params: Any) -> Array:
    """The tangent of a convolution of `x` and `kernel`, whose tangents are `dx` and `dkernel`."""
    return _forward.bind(dx, kernel, **params) + _forward.bind(x, dkernel, **params)


def _transpose_both(g, dx, dkernel, x, kernel, *, geometry, **params):
    """The weight gradient, and only then the input gradient.

    In that order the backward pass frees `x` and `g` layer by layer. XLA by itself goes through all
    input gradients first and keeps both of every layer for the weight gradients: that took a sixth
    more memory for a ResNet-18. It costs nothing but for 1x1 and depthwise convolutions, which ran
    up to a fifth slower and are left as they are.
    """
    g = ad.instantiate_zeros(g)
    weight = _weight.bind(x, g, geometry=geometry, **params)
    if max(geometry.window) > 1 and geometry.groups == 1 and weight.size:
        # Nothing is larger than infinity, which XLA does not know: adds 0, once there is a weight.
        kernel += (weight.ravel()[0] > jnp.inf).astype(kernel.dtype)
    return [_input.bind(g, kernel, geometry=geometry, **params), weight, None, None]


_tangent = Primitive("convjax_conv_tangent")
_tangent.def_impl(_both)
_tangent.def_abstract_eval(
    lambda dx, dkernel, x, kernel, **params: ShapedArray(
        _shape("conv")(x, kernel, **params), x.dtype
    )
)
mlir.register_lowering(_tangent, mlir.lower_fun(_both, multiple_results=False))
ad.primitive_jvps[_tangent] = lambda primals, tangents, **params: jax.jvp(
    partial(_both, **params), primals, tuple(map(ad.instantiate_zeros, tangents))
)
ad.primitive_transposes[_tangent] = _transpose_both
batching.primitive_batchers[_tangent] = lambda args, dims, **params: (
    jax.vmap(partial(_both, **params), dims)(*args),
    0,
)

ad.primitive_jvps[_forward] = _jvp
ad.primitive_transposes[_forward] = _transpose
ad.defbilinear(
    _input,
    lambda x, g, kernel, **params: _forward.bind(x, kernel, **params),
    lambda x, g, kernel, **params: _weight.bind(x, g, **params),
)
ad.defbilinear(
    _weight,
    lambda kernel, x, g, **params: _input.bind(g, kernel, **params),
    lambda kernel, x, g, **params: _forward.bind(x, kernel, **params),
)


# -- Batching --------------------------------------------------------------------------------------


def _batcher(operation: str) -> Callable[..., tuple[Array, int]]:
    """How `vmap` goes over an operation: see the head of this file."""
    primitive = PRIMITIVES[operation]

    def batch(args, dims, *, members, **params):
        geometry = params["geometry"]
        number = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
        mapped = [d is not None for d in dims]
        args = [a if d is None else jnp.moveaxis(a, d, 0) for a, d in zip(args, dims, strict=True)]
        if not members and operation != "conv_weight" and mapped == [True, False]:
            image, kernel = args
            y = primitive.bind(_merge(image, 0), kernel, **params, members=False)
            return y.reshape(number, image.shape[1], *y.shape[1:]), 0
        shared_images = geometry.groups == 1 and mapped == [False, True]
        if not members and shared_images and operation != "conv_input":
            # More features of the one convolution, or of the one gradient.
            wide = _merge(jnp.moveaxis(args[1], 0, -2), -2)
            y = primitive.bind(args[0], wide, **params, members=False)
            return jnp.moveaxis(y.reshape(*y.shape[:-1], number, args[1].shape[-1]), -2, 0), 0
        args = [
            a if is_mapped else jnp.broadcast_to(a, (number, *a.shape))
            for a, is_mapped in zip(args, mapped, strict=True)
        ]
        if not members:
            return primitive.bind(*args, **params, members=True), 0
        y = primitive.bind(*(_merge(a, 0) for a in args), **params, members=True)
        return y.reshape(number, args[0].shape[1], *y.shape[1:]), 0

    return batch


def _merge(x: Array, axis: int) -> Array:
    """Makes one axis of this one and the next."""
    axis %= x.ndim
    return x.reshape(*x.shape[:axis], math.prod(x.shape[axis : axis + 2]), *x.shape[axis + 2 :])


for _operation, _primitive in PRIMITIVES.items():
    batching.primitive_batchers[_primitive] = _batcher(_operation)
