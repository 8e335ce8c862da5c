"""A network in which every part is called once: each call of a layer is a part of its own.

    net, params, state = unrolled(net, params, state, images)
    params["stack1"]                        # body@1, body@2, ...: each with what is its own

What tells of a network part by part, such as `passes`, so tells of each turn of a `loop` and of a
`stack`, too. It computes the same; parameters that several calls share stand at each of them.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from convjax.combine import Shaped, shaped
from convjax.layer import Context, Layer, Net, Params, State, as_layer, call, compose, plan, spec_of
from convjax.surgery import rewrite


def unrolled(net: Layer, params: Params, state: State, images: Any) -> tuple[Layer, Params, State]:
    """The same network in evaluation, with its parameters and state; `NAME@2` is a second call.

    A network that calls each of its parts once is given back as it is.

    images: an array, or its shape.

    >>> from convjax import conv, serial, stack
    >>> images = jax.numpy.ones((1, 8, 8, 3))
    >>> net = serial(stack(2, conv(3, 3)))
    >>> params, state = net.init(jax.random.key(0), images)
    >>> params["stack1"]["body"]["kernel"].shape
    (2, 3, 3, 3, 3)
    >>> net, params, state = unrolled(net, params, state, images)
    >>> params["stack1"]["body@2"]["kernel"].shape
    (3, 3, 3, 3)
    """
    turns = _turns(net, images)
    if not turns:
        return net, params, state

    def apart(path: str, part: Layer) -> Layer:
        if isinstance(part.wire, Shaped):
            make = part.wire.make
            return shaped(lambda x: apart(path, as_layer(make(x)))).named(part.kind)
        own = {name: turns.get(_join(path, name)) for name in part.parts}
        if part.wire is None or not any(own.values()):
            return part
        wire = functools.partial(_called_apart, part.wire, own)
        parts = {copy: part.parts[name] for name in own for copy in _copies(name, own[name])}
        return compose(wire, **parts).named(part.kind)

    def moved(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in tree.items():
            if not isinstance(value, Mapping):
                found[name] = value
                continue
            inner = _join(path, name)
            turn = turns.get(inner)
            for number, copy in enumerate(_copies(name, turn)):
                found[copy] = moved(_nth(value, number, turn), inner)
        return found

    return apart("", rewrite(net, apart)), moved(params), moved(state)


class _Turn(NamedTuple):
    """How often a part is called by what it is a part of.

    length: of the scan that it is called in, over whose turns its parameters are stacked; else 0.
    """

    count: int
    length: int


def _turns(net: Layer, images: Any) -> dict[str, _Turn]:
    """The parts that are called several times, by path."""
    calls: Counter[str] = Counter()
    scans: dict[str, tuple[int, ...]] = {}

    def noting(path: str, part: Layer) -> Layer:
        def apply(params: Params, state: State, x: Any, ctx: Context = Context()):
            calls[path] += 1
            if ctx.plan is not None:
                scans[path] = ctx.plan.counts
            return part.apply(params, state, x, ctx)

        return part._replace(apply=apply)

    planned = plan(rewrite(net, noting), spec_of(images))
    scans |= {path: maker.counts for path, maker in planned.makers.items()}
    turns = {}
    for path, count in calls.items():
        parent = path.rpartition("/")[0]
        outer = calls[parent] if parent else 1
        # Where its calls differ from one call of the parent to the next, there is room for all.
        each = count // outer if count % outer == 0 else count
        stacked = len(scans[path]) > len(scans.get(parent, ()))
        length = scans[path][-1] if stacked else 0
        if stacked or each > 1:
            turns[path] = _Turn(each * (length or 1), length)
    return turns


def _copies(name: str, turn: _Turn | None) -> list[str]:
    return [name] if turn is None else [f"{name}@{number + 1}" for number in range(turn.count)]


def _nth(tree: Mapping[str, Any], number: int, turn: _Turn | None) -> Mapping[str, Any]:
    if turn is None or not turn.length:
        return tree
    return jax.tree.map(lambda leaf: leaf[number % turn.length], tree)


def _called_apart(
    wire: Callable[[Net, Any], Any], turns: Mapping[str, _Turn | None], net: Net, x: Any
) -> Any:
    own = _Apart(net, turns)
    y = wire(own, x)
    net.state = own.state
    return y


class _Apart(Net):
    """What a wire sees: its parts as it knows them, each call of which goes to another copy."""

    def __init__(self, net: Net, turns: Mapping[str, _Turn | None]):
        parts = {name: net.parts[_copies(name, turn)[0]] for name, turn in turns.items()}
        super().__init__(parts, net.params, net.state, net.ctx)
        self._all, self._turns, self._made = net.parts, turns, Counter()

    def scan(self, name: str, x: Any, count: int) -> Any:
        """As `Net.scan`, one turn after the other."""
        for _ in range(count):
            x = self._call(name, x)
        return x

    def pure(self, wire: Callable[[Net, Any], Any]) -> Callable[[Params, State, Any], Any]:
        """As `Net.pure`."""

        def run(params: Params, state: State, x: Any) -> tuple[Any, State]:
            net = _Apart(Net(self._all, params, state, self.ctx), self._turns)
            return wire(net, x), net.state

        return run

    def _call(self, name: str, x: Any) -> Any:
        copy = _copies(name, self._turns[name])[self._made[name]]
        self._made[name] += self._turns[name] is not None
        params, state = self.params.get(copy, {}), self.state.get(copy, {})
        y, state = call(self._all[copy], params, state, x, self.ctx.at(copy))
        self._keep(copy, state)
        return y


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name
