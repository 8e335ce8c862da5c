"""Functions of a network that run as one compiled program each, not as one for each operation.

@compiled("steps")
def score(net, params, state, images, *, steps=3): ...

score(net, params, state, images)       # compiled once for each network, shape and `steps`
jax.jit(partial(score, net))            # inside another program it is an ordinary function
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.core import Tracer

from convjax.compiler import compiler_options

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(*static: str) -> Callable[[Function], Function]:
    """A decorator that compiles a function, with the options that suit the platform.

    static: the names of the arguments that are no arrays, such as the network; they are hashable.
    """

    def decorate(function: Function) -> Function:
        @functools.cache
        def program() -> Callable[..., Any]:
            options = compiler_options(jax.default_backend(), once=True)
            return jax.jit(function, static_argnames=static, compiler_options=options)

        @functools.wraps(function)
        def call(*arguments: Any, **keywords: Any) -> Any:
            # JAX takes the options of the outermost program alone, and refuses those of others.
            leaves = jax.tree.leaves((arguments, keywords))
            inside = any(isinstance(leaf, Tracer) for leaf in leaves)
            return (function if inside else program())(*arguments, **keywords)

        return call  # pyright: ignore[reportReturnType]

    return decorate
