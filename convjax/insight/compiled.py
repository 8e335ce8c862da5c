"""Functions of a network that run as one compiled program each, not as one for each operation.

@compiled("steps")
def score(net, params, state, images, *, steps=3): ...

score(net, params, state, images)       # compiled once for each network, shape and `steps`
jax.jit(partial(score, net))            # inside another program it is an ordinary function

Most programs here run so few times that compiling them costs more: `runs=` has it done in haste.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.core import Tracer

from convjax.compiler import compiler_options

Function = TypeVar("Function", bound=Callable[..., Any])


# How hard LLVM tries, on the CPU. The gradient of ResNet-20's score for 32 images was compiled in
# 0.9, 2.4 and 4.1 s at the levels 0, 1 and 3, and ran in 0.22, 0.09 and 0.08 s (one core of an AMD
# EPYC, JAX 0.10.2, n = 1). XLA's own convolutions (`convjax.ops.choice.algorithm`) compile in half
# of that, but in the loop of gradient ascent, over two images, they ran several times slower.
ONCE, SHORT, LONG = 0, 1, 3


def compiled(*static: str, runs: int = LONG) -> Callable[[Function], Function]:
    """A decorator that compiles a function, with the options that suit the platform.

    static: the names of the arguments that are no arrays, such as the network; they are hashable.
    runs: for how long the program is going to run: `ONCE` over a few images, `SHORT`, for a few
        seconds, or `LONG`. The shorter, the less time the compiler spends on it.
    """

    def decorate(function: Function) -> Function:
        @functools.cache
        def program() -> Callable[..., Any]:
            platform = jax.default_backend()
            options = compiler_options(platform, once=True)
            if platform == "cpu" and runs != LONG:
                options = options | {"xla_backend_optimization_level": str(runs)}
            return jax.jit(function, static_argnames=static, compiler_options=options)

        @functools.wraps(function)
        def call(*arguments: Any, **keywords: Any) -> Any:
            # JAX takes the options of the outermost program alone, and refuses those of others.
            leaves = jax.tree.leaves((arguments, keywords))
            inside = any(isinstance(leaf, Tracer) for leaf in leaves)
            return (function if inside else program())(*arguments, **keywords)

        return call  # pyright: ignore[reportReturnType]

    return decorate
