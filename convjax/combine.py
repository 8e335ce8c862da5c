"""Combinators: layers in, a layer out.

    net = serial(
        conv(32, 3), relu, max_pool(2),
        residual(conv(32, 3), relu, conv(32, 3)), relu,
        flatten, dense(10))

Parts get their names from keywords, else from their kind and a number: conv1, relu1, conv2. A plain
function owns no parameters, and is numbered last, so that inserting one renames no parameter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from convjax.layer import Context, Layer, Net, Params, State, as_layer, call, compose

Part = Layer | Callable[[Any], Any]


def identity(x: Any) -> Any:
    """Its input."""
    return x


def serial(*layers: Part, **named: Part) -> Layer:
    """One layer after the other.

    >>> from convjax import conv, relu, serial
    >>> serial(conv(8, 3), relu, conv(8, 3), head=conv(10, 1))
    serial(conv1=conv, relu1=relu, conv2=conv, head=conv)
    """
    return compose(_serial, **name_parts(layers, named)).named("serial")


def residual(
    *layers: Part, shortcut: Part = identity, then: Part = identity, **named: Part
) -> Layer:
    """`then(f(x) + shortcut(x))`, where `f` is one layer after the other (He et al. 2015).

    Raises:
        ValueError: where the two sides differ in shape; they are added, never broadcast.
    """

    def wire(net: Net, x: Any) -> Any:
        y = x
        for name in body:
            y = net[name](y)
        side = net.shortcut(x)
        if y.shape != side.shape:
            raise ValueError(
                f"residual adds {y.shape} to {side.shape}: give shortcut= a layer that makes them "
                "alike, such as conv(width, 1, stride=2)"
            )
        return net.then(y + side)

    body = name_parts(layers, named)
    return compose(wire, **body, shortcut=shortcut, then=then).named("residual")


def branch(*layers: Part, join: Callable[..., Any] | None = None, **named: Part) -> Layer:
    """The same input to every layer, and the outputs joined: on the channel axis, or by `join`.

    join: a function of the list of outputs; `tuple` keeps them apart.
    """
    join = join or concatenate

    def wire(net: Net, x: Any) -> Any:
        return join([part(x) for part in net])

    return compose(wire, **name_parts(layers, named)).named("branch")


def parallel(*layers: Part, **named: Part) -> Layer:
    """A tuple of inputs, one for each layer, to the tuple of their outputs."""

    def wire(net: Net, x: Sequence[Any]) -> tuple[Any, ...]:
        if len(x) != len(net.parts):
            raise ValueError(f"parallel has {len(net.parts)} layers and was given {len(x)} inputs")
        return tuple(part(each) for part, each in zip(net, x))

    return compose(wire, **name_parts(layers, named)).named("parallel")


def repeat(count: int, layer: Part) -> Layer:
    """`count` copies of a layer one after the other, each with parameters of its own."""
    return serial(*[layer] * _counted(count)).named("repeat")


def loop(count: int, layer: Part) -> Layer:
    """One layer `count` times over, with the same parameters: a recurrent network in depth."""

    def wire(net: Net, x: Any) -> Any:
        for _ in range(count):
            x = net.body(x)
        return x

    _counted(count)
    return compose(wire, body=layer).named("loop")


def stack(count: int, layer: Part) -> Layer:
    """What `repeat` computes, as a `lax.scan` over stacked parameters: compiled once, not per copy.

    Parameters and state of the copies lie under "body" with a leading axis of length `count`. The
    layer's output has the shape and dtype of its input.
    """

    def wire(net: Net, x: Any) -> Any:
        return net.scan("body", x, count) if count else x

    _counted(count)
    return compose(wire, body=layer).named("stack")


def remat(layer: Part) -> Layer:
    """The same layer, whose activations are computed again in the backward pass, not stored.

    It has the same parts and parameters. See `jax.checkpoint`; Chen et al. 2016.
    """
    inner = as_layer(layer)
    if inner.wire is None:
        return inner._replace(apply=jax.checkpoint(inner.apply))
    if isinstance(inner.wire, Shaped):
        make = inner.wire.make
        return shaped(lambda x: remat(make(x))).named(inner.kind)
    inner_wire = inner.wire

    def wire(net: Net, x: Any) -> Any:
        y, net.state = jax.checkpoint(net.pure(inner_wire))(net.params, net.state, x)
        return y

    return compose(wire, **inner.parts).named(inner.kind)


def shaped(make: Callable[[Any], Part]) -> Layer:
    """A layer that is chosen by its input: `make(x)` returns it, and reads shape and dtype of x.

    >>> from convjax import conv, identity, shaped
    >>> project = shaped(lambda x: identity if x.shape[-1] == 64 else conv(64, 1))
    """

    def apply(params: Params, state: State, x: Any, ctx: Context = Context()) -> tuple[Any, State]:
        net = Net({}, params, state, ctx)
        return wire(net, x), net.state

    def init(key: Array, spec: Any) -> tuple[Params, State]:
        return as_layer(make(spec)).init(key, spec)

    wire = Shaped(make)
    return Layer(init, apply, "shaped", wire=wire)


class Shaped:
    """The wire of `shaped`, by which surgery knows it and reaches what it makes."""

    def __init__(self, make: Callable[[Any], Part]):
        self.make = make

    def __call__(self, net: Net, x: Any) -> Any:
        """Calls what is made for this input in the place of the layer itself."""
        y, net.state = call(as_layer(self.make(x)), net.params, net.state, x, net.ctx)
        return y


def concatenate(outputs: Sequence[Array]) -> Array:
    """Arrays that differ in channels only, one behind the other on the channel axis."""
    return jnp.concatenate(outputs, axis=-1)


def name_parts(layers: Sequence[Part], named: dict[str, Part]) -> dict[str, Layer]:
    """Parts by name: kind and number for those without a keyword.

    Raises:
        ValueError: if a keyword takes a name that was given by number.
    """
    parts: dict[str, Layer] = {}
    # A function may be called like a kind of layer, `norm`: numbered after them, it renames none.
    functions: Counter[str] = Counter(each.kind for each in layers if isinstance(each, Layer))
    counts: Counter[str] = Counter()
    for given in layers:
        layer = as_layer(given)
        numbers = counts if isinstance(given, Layer) else functions
        numbers[layer.kind] += 1
        parts[f"{layer.kind}{numbers[layer.kind]}"] = layer
    for name, layer in named.items():
        if name in parts:
            raise ValueError(f"two parts are called {name!r}: choose another keyword")
        parts[name] = as_layer(layer)
    return parts


def _serial(net: Net, x: Any) -> Any:
    for part in net:
        x = part(x)
    return x


def _counted(count: int) -> int:
    if not isinstance(count, int) or count < 0:
        raise ValueError(f"a layer is repeated a whole number of times, not {count!r}")
    return count
