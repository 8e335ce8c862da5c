"""A network is a value: two pure functions, `init` and `apply`, and the parts it was made from.

    net = serial(conv(32, 3), relu, flatten, dense(10))
    params, state = net.init(key, images)                         # nested dicts
    logits, state = net.apply(params, state, images, Context(key, train=True))

`compose` is the one mechanism: a `wire` says how the parts are called, and the rest follows.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

Params = Mapping[str, Any]  # nested: {"conv1": {"kernel": Array}}
State = Mapping[str, Any]  # nested: {"norm1": {"mean": Array, "var": Array}}
Spec = Any  # an array, a jax.ShapeDtypeStruct, or a pytree of them


class Layer(NamedTuple):
    """A pair of pure functions over parameters and state, and the parts that it was made from.

    init: `(key, spec) -> (params, state)`, nested dicts; a part without any has no key in them.
    apply: `(params, state, x, ctx) -> (output, state)`.
    kind: what it is, "conv", "norm", "dense", ...; serial numbers its parts by it: conv1, conv2.
    parts: name -> Layer, for tools that walk a network; empty for a leaf.
    wire: `(net, x) -> output` says how the parts are called; None for a leaf.

    It is hashable, and so may be a static argument of `jax.jit`.
    """

    init: Callable[[Array, Spec], tuple[Params, State]]
    apply: Callable[..., tuple[Any, State]]
    kind: str
    parts: Mapping[str, Layer] = {}
    wire: Callable[[Net, Any], Any] | None = None

    def named(self, kind: str) -> Layer:
        """The same layer under another kind: `serial(...).named("stage")` becomes stage1, ..."""
        return self._replace(kind=kind)

    def around(self, apply: Callable[..., tuple[Any, State]]) -> Layer:
        """A layer that behaves otherwise, with the parameters of this one: a wrapper.

        It is a leaf: surgery takes or leaves it whole, and cannot lose what it does.
        """
        return Layer(self.init, apply, self.kind)

    def __hash__(self) -> int:
        return hash((self.init, self.apply, self.kind))

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}={part!r}" for name, part in self.parts.items())
        return f"{self.kind}({parts})" if parts else self.kind


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["key"],
    meta_fields=["train", "axis", "path", "plan"],
)
@dataclass(frozen=True)
class Context:
    """What a call of a network is told beside its input.

    key: randomness of this call (dropout, ...); None where none is wanted.
    train: update the running statistics, apply noise.
    axis: the mapped device axis over which batch statistics are averaged (`pmap`, `shard_map`).
    path: where in the network the call is, as "stage1/block2/conv1".
    plan: set while `init` traces a network to learn its shapes; of no use to a layer.
    """

    key: Array | None = None
    train: bool = False
    axis: str | None = None
    path: str = ""
    plan: Plan | None = None

    def at(self, name: str) -> Context:
        """The context of the part called `name`."""
        return replace(self, path=f"{self.path}/{name}" if self.path else name)

    def rng(self, what: str = "this layer") -> Array:
        """The key of this very layer: the call's key folded with the layer's path.

        Raises:
            ValueError: if the call was given no key.
        """
        if self.key is None:
            raise ValueError(
                f"{what} needs randomness when training: pass Context(key=..., train=True)"
            )
        return fold(self.key, self.path)


def fold(key: Array, name: str) -> Array:
    """A key derived from another by a name, so that it does not depend on any order."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


# -- Making layers ---------------------------------------------------------------------------------


def function(fn: Callable[[Any], Any], kind: str | None = None) -> Layer:
    """A layer without parameters, from a plain function of an array."""
    kind = kind or kind_of(fn)

    def apply(params: Params, state: State, x: Any, ctx: Context = Context()) -> tuple[Any, State]:
        y = fn(x)
        if isinstance(y, Layer) or callable(y):
            raise TypeError(
                f"{kind} made a layer of its input: call it first, as in serial({kind}(...))"
            )
        return y, state

    return Layer(lambda key, spec: ({}, {}), apply, kind)


def as_layer(part: Layer | Callable[[Any], Any]) -> Layer:
    """The part itself if it is a layer, the layer of a plain function otherwise."""
    if isinstance(part, Layer):
        return part
    if callable(part):
        return function(part)
    raise TypeError(
        f"a part of a network is a Layer or a function of an array, not {part!r} "
        f"({type(part).__name__})"
    )


def parametric(
    kind: str, apply: Callable[[Params, Any], Any], /, **makers: Callable[[Array, Any], Array]
) -> Layer:
    """A layer with parameters and nothing else: `apply(params, x)`, and a maker for each of them.

    A maker takes a key and the input's spec and returns the parameter.

    >>> import jax, jax.numpy as jnp
    >>> def gain():
    ...     return parametric(
    ...         "gain",
    ...         lambda params, x: x * params["scale"],
    ...         scale=lambda key, x: jnp.ones(x.shape),
    ...     )
    >>> params, state = gain().init(jax.random.key(0), jnp.zeros((2, 3)))
    >>> params["scale"].shape
    (2, 3)
    """

    def init(key: Array, spec: Spec) -> tuple[Params, State]:
        x = spec_of(spec)
        return {name: make(fold(key, name), x) for name, make in makers.items()}, {}

    def call_with(params: Params, state: State, x: Any, ctx: Context = Context()):
        expect(f"{kind} has the parameters", makers, params)
        return apply(params, x), state

    return Layer(init, call_with, kind)


def expect(what: str, names: Iterable[str], given: Mapping[str, Any]) -> None:
    """Raises a ValueError unless exactly these names are given; `what` begins its message."""
    if {*given} != {*names}:
        raise ValueError(
            f"{what} {', '.join(names) or 'none'}, but was given {', '.join(given) or 'none'}: "
            "are they of this network's init?"
        )


def compose(wire: Callable[[Net, Any], Any], /, **parts: Layer | Callable[[Any], Any]) -> Layer:
    """A layer made of named parts that `wire(net, x)` calls as `net.name(x)`.

    Parameters, state, randomness and the path of each part are carried by `net`. A part that is
    called twice shares its parameters; one that is never called has none. The wire's own name is
    the layer's kind.

    >>> from convjax import relu, conv, compose
    >>> def block(net, x):
    ...     return x + net.conv2(relu(net.conv1(x)))
    >>> compose(block, conv1=conv(8, 3), conv2=conv(8, 3))
    block(conv1=conv, conv2=conv)

    Raises:
        ValueError: if a part's name is taken by `net` itself or holds a slash.
    """
    layers = {name: as_layer(part) for name, part in parts.items()}
    for name in layers:
        if hasattr(Net, name) or name in Net.__annotations__ or "/" in name or not name:
            raise ValueError(f"a part cannot be called {name!r}: choose another name")

    def apply(params: Params, state: State, x: Any, ctx: Context = Context()) -> tuple[Any, State]:
        for what, given in (("params", params), ("state", state)):
            if unknown := [name for name in given if name not in layers]:
                raise ValueError(
                    f"{what} of {ctx.path or 'the network'} hold {', '.join(map(repr, unknown))}, "
                    f"but its parts are {', '.join(layers)}: are they of this network's init?"
                )
        net = Net(layers, params, state, ctx)
        return wire(net, x), net.state

    def init(key: Array, spec: Spec) -> tuple[Params, State]:
        return draw(key, plan(layer, spec))

    layer = Layer(init, apply, kind_of(wire), layers, wire)
    return layer


# -- Calling parts ---------------------------------------------------------------------------------


class Net:
    """What a wire sees of its layer: each part as a function, `net.conv1(x)` or `net["conv1"](x)`.

    Iterating gives the parts in order, as functions. `net.ctx` is the context of the call.
    """

    parts: Mapping[str, Layer]
    params: Params
    state: State
    ctx: Context
    _calls: dict[str, int]

    def __init__(self, parts: Mapping[str, Layer], params: Params, state: State, ctx: Context):
        self.parts, self.params, self.state, self.ctx = parts, params, state, ctx
        self._calls = {}

    def __getitem__(self, name: str) -> Callable[[Any], Any]:
        if name not in self.parts:
            raise AttributeError(f"no part {name!r} here: the parts are {', '.join(self.parts)}")
        return functools.partial(self._call, name)

    __getattr__ = __getitem__

    def __iter__(self) -> Iterator[Callable[[Any], Any]]:
        return (self[name] for name in self.parts)

    def scan(self, name: str, x: Any, count: int) -> Any:
        """Calls a part `count` times by `lax.scan`, with other parameters each time.

        Its parameters and state have a leading axis of that length, and the key of each call its
        number folded in.

        Raises:
            ValueError: if the part's output differs in shape or dtype from its input.
        """
        part, ctx = self.parts[name], self._next(name)
        if ctx.plan is not None:
            ctx = replace(ctx, plan=ctx.plan.stacked(count))

        def once(params: Params, state: State, x: Any, ctx: Context) -> tuple[Any, State]:
            y, state = call(part, params, state, x, ctx)
            if spec_of(y) != spec_of(x):
                raise ValueError(
                    f"a scan of {ctx.path} feeds its output back in, so that the two must be "
                    f"alike, but {show(x)} became {show(y)}: use repeat, or keep the shape"
                )
            return y, state

        if ctx.plan is not None:
            return once({}, {}, x, ctx)[0]

        def body(x: Any, each: tuple[Array, Params, State]) -> tuple[Any, State]:
            number, params, state = each
            return once(params, state, x, _nth(ctx, number))

        each = (jnp.arange(count), self.params.get(name, {}), self.state.get(name, {}))
        y, state = lax.scan(body, x, each)
        self._keep(name, state)
        return y

    def pure(self, wire: Callable[[Net, Any], Any]) -> Callable[[Params, State, Any], Any]:
        """A wire as a pure function `(params, state, x) -> (y, state)`, to be transformed."""

        def run(params: Params, state: State, x: Any) -> tuple[Any, State]:
            net = Net(self.parts, params, state, self.ctx)
            return wire(net, x), net.state

        return run

    def _call(self, name: str, x: Any) -> Any:
        params, state = self.params.get(name, {}), self.state.get(name, {})
        y, state = call(self.parts[name], params, state, x, self._next(name))
        self._keep(name, state)
        return y

    def _next(self, name: str) -> Context:
        """The context of the next call of a part: each call after the first has another key."""
        number = self._calls.get(name, 0)
        self._calls[name] = number + 1
        ctx = self.ctx.at(name)
        return _nth(ctx, number) if number else ctx

    def _keep(self, name: str, state: State) -> None:
        if state:
            self.state = {**self.state, name: state}


def call(part: Layer, params: Params, state: State, x: Any, ctx: Context) -> tuple[Any, State]:
    """Calls one part: every call of every part of every network passes through here.

    It opens a named scope, so that profiles speak of layers, and adds the part's path, kind and
    input to an error. While `init` plans, it gives a leaf the parameters that it would have.
    """
    name = ctx.path.rsplit("/", 1)[-1]
    with jax.named_scope(name or part.kind):
        try:
            if ctx.plan is not None and part.wire is None:
                params, state = part.init(jax.random.key(0), ctx.plan.record(ctx.path, part, x))
                ctx = replace(ctx, plan=None)  # What a leaf holds inside is its own.
            return part.apply(params, state, x, ctx)
        except Exception as error:
            if not any(note.startswith("in ") for note in getattr(error, "__notes__", ())):
                where = f"{ctx.path} ({part.kind})" if ctx.path else "the network"
                error.add_note(f"in {where}, called with {show(x)}")
            raise


# -- Initialisation: one abstract pass that plans, then one that draws -----------------------------


class Maker(NamedTuple):
    """A leaf of a network, the spec of its first input, and the lengths of the scans around it."""

    layer: Layer
    spec: Spec
    counts: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """The leaves that a network calls, by path, in the order of their first call."""

    makers: dict[str, Maker] = field(default_factory=dict)
    counts: tuple[int, ...] = ()

    def record(self, path: str, layer: Layer, x: Any) -> Spec:
        """Notes a leaf at its first call, and returns the spec of that call."""
        return self.makers.setdefault(path, Maker(layer, spec_of(x), self.counts)).spec

    def stacked(self, count: int) -> Plan:
        """The same plan, for what lies inside a scan of that length."""
        return replace(self, counts=(*self.counts, count))


def plan(layer: Layer, spec: Spec) -> Plan:
    """What a network calls and with which shapes, from one abstract pass in training mode."""
    result = Plan()

    def trace(key: Array, x: Any) -> Any:
        return call(layer, {}, {}, x, Context(key, train=True, plan=result))[0]

    jax.eval_shape(trace, jax.random.key(0), spec_of(spec))
    return result


def draw(key: Array, plan: Plan) -> tuple[Params, State]:
    """The parameters and state of a plan; a leaf's key is folded by name, level by level."""
    params: dict[str, Any] = {}
    state: dict[str, Any] = {}
    keys = {"": key}

    def key_of(path: str) -> Array:
        if path not in keys:
            parent, _, name = path.rpartition("/")
            keys[path] = fold(key_of(parent), name)
        return keys[path]

    def make(layer: Layer, spec: Spec, key: Array, counts: tuple[int, ...]):
        if not counts:
            return layer.init(key, spec)
        each = [
            make(layer, spec, jax.random.fold_in(key, number), counts[1:])
            for number in range(counts[0])
        ]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)

    for path, (layer, spec, counts) in plan.makers.items():
        for tree, drawn in zip((params, state), make(layer, spec, key_of(path), counts)):
            if drawn:
                _put(tree, path, drawn)
    return params, state


def spec_of(x: Any) -> Spec:
    """The shapes and dtypes of a pytree of arrays.

    Raises:
        TypeError: if a leaf is neither an array nor a `jax.ShapeDtypeStruct`.
    """

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise TypeError(
                f"an input is described by an array or a jax.ShapeDtypeStruct, not by {leaf!r}: "
                "pass jax.ShapeDtypeStruct((batch, height, width, channels), jax.numpy.float32)"
            )
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

    return jax.tree.map(one, x)


def show(x: Any) -> str:
    """An input in a few words, as `float32[32,8,8,3]`."""

    def one(leaf: Any) -> str:
        if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
            return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        return repr(leaf)

    leaves, tree = jax.tree.flatten(x)
    shown = [one(leaf) for leaf in leaves]
    return shown[0] if tree == jax.tree.structure(0) else f"({', '.join(shown)})"


def kind_of(fn: Callable[..., Any]) -> str:
    """A function's name, as the kind of the layer that it makes."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__name__", type(fn).__name__.lower())
    return name if name.isidentifier() else "function"


def _nth(ctx: Context, number: int | Array) -> Context:
    """The context of a call by number: folded with the path too, which tells inner from outer."""
    if ctx.key is None:
        return ctx
    return replace(ctx, key=jax.random.fold_in(fold(ctx.key, ctx.path), number))


def _put(tree: dict[str, Any], path: str, value: Params) -> None:
    for name in filter(None, path.split("/")):
        tree = tree.setdefault(name, {})
    tree.update(value)
