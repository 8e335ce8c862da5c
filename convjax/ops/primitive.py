"""JAX primitives of our own: one operation, whose algorithm is chosen when it is compiled.

A primitive knows its derivative, its transpose and its batching, so that `grad`, `jvp`, `vmap`,
`scan` and `remat` compose over it in any order; a `custom_vjp` would give up forward mode. See
"JAX primitives" in JAX's documentation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import mlir

from convjax.compiler import compiler_options

Function = Callable[..., Array]


def make(
    name: str, shape: Callable[..., tuple[int, ...]], plain: Function, on_cpu: Function
) -> Primitive:
    """A primitive of one result, in the dtype of its first operand.

    shape: that of the result, `(*operands, **params)`.
    plain: the result on any platform, `(*arrays, **params)`, and where the compiler is to split
        the work over devices by itself: it knows how to split what is XLA's own.
    on_cpu: the same on the CPU.
    """
    primitive = Primitive(f"convjax_{name}")

    @primitive.def_abstract_eval
    def abstract(*operands: Any, **params: Any) -> ShapedArray:
        return ShapedArray(shape(*operands, **params), operands[0].dtype)

    @primitive.def_impl
    def run(*arrays: Array, **params: Any) -> Array:
        if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
            return plain(*arrays, **params)
        devices = getattr(arrays[0], "devices", jax.devices)()
        platform = next(iter(devices)).platform
        return _compiled(primitive, platform, tuple(params.items()))(*arrays)

    def lower_on_cpu(ctx: mlir.LoweringRuleContext, *operands: Any, **params: Any) -> Any:
        devices = getattr(ctx.module_context.axis_context, "num_devices", 1) or 1
        # A batch that is not known yet (jax.export) is left to XLA too.
        kinds: Any = ctx.avals_in
        known = all(isinstance(n, int) for kind in kinds for n in kind.shape)
        function = on_cpu if devices == 1 and known else plain
        return mlir.lower_fun(function, multiple_results=False)(ctx, *operands, **params)

    mlir.register_lowering(primitive, mlir.lower_fun(plain, multiple_results=False))
    mlir.register_lowering(primitive, lower_on_cpu, platform="cpu")
    return primitive


def unmarked(*arrays: Array) -> bool:
    """Whether no array carries JAX's own marks of how it is spread over devices.

    Those are explicit shardings, and the varying axes of a `shard_map` that checks them; JAX knows
    how its own operations change them, and so those are to be taken.
    """
    for array in arrays:
        kind = jax.typeof(array)
        manual = getattr(kind, "manual_axis_type", None)  # from JAX 0.12 on in the place of vma
        if getattr(kind, "vma", None) or (manual is not None and not manual.empty):
            return False
        if any(axis is not None for axis in kind.sharding.spec):
            return False
    return True


@functools.lru_cache(maxsize=1024)
def _compiled(primitive: Primitive, platform: str, params: tuple) -> Function:
    """What a call outside of any `jit` runs."""
    function = functools.partial(primitive.bind, **dict(params))
    return jax.jit(function, compiler_options=compiler_options(platform))
