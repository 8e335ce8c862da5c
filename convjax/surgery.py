"""Surgery on a built network: a layer in, a layer (or its activations) out.

    net = replace(net, "*/relu*", gelu)                      # every ReLU becomes a GELU
    (logits, seen), _ = capture(net, "stage?").apply(params, state, images, Context())

A path is that of the parts, as in "stage1/block2/conv1"; patterns are those of `convjax.tree`:
"stage?" finds the stages, "stage*" all that lies inside them too. Parameters keep their paths,
since a part keeps its name whatever it is replaced by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jax import Array

from convjax.combine import Part, Shaped, shaped
from convjax.layer import Context, Layer, Params, Spec, State, as_layer, compose, plan
from convjax.names import nearest
from convjax.tree import matches

_KEPT = "captured output"  # no part can be called so by keyword


def walk(net: Layer, path: str = "") -> Iterator[tuple[str, Layer]]:
    """Every part of a network with its path, outer parts before their inner ones.

    What `shaped` makes depends on its input and is not entered.

    >>> from convjax import conv, relu, serial
    >>> [path for path, part in walk(serial(stem=serial(conv(8, 3), relu)))]
    ['stem', 'stem/conv1', 'stem/relu1']
    """
    for name, part in net.parts.items():
        inner = _join(path, name)
        yield inner, part
        yield from walk(part, inner)


def rewrite(net: Layer, change: Callable[[str, Layer], Layer]) -> Layer:
    """A network whose every part is `change(path, part)`, inner parts first.

    The parts that `shaped` makes are changed when it makes them.
    """
    return _rewrite(net, change, "")


def replace(net: Layer, patterns: str | Iterable[str], part: Layer | Callable[[Any], Any]) -> Layer:
    """A network in which every part whose path matches is replaced by another.

    Raises:
        ValueError: if no part matches, with the nearest path. Not in a network with `shaped` parts,
            whose inner paths are known only when it is called.
    """
    patterns = _checked(net, patterns)
    new = as_layer(part)
    return rewrite(net, lambda path, old: new if matches(path, patterns) else old)


def replace_norms(
    net: Layer, patterns: str | Iterable[str], change: Callable[[Layer], Part]
) -> Layer:
    """A network in which every norm whose path matches is `change(norm)`; nothing else changes.

    Patterns choose among norms alone, so that "stage1/*" are those of the first stage.

    >>> import jax, jax.numpy as jnp
    >>> from convjax import frozen_norm, ghost_norm, models
    >>> net = models.create("resnet18", classes=10)
    >>> changed = replace_norms(net, "*", lambda norm: ghost_norm(norm, 32))
    >>> changed = replace_norms(changed, ["stem/*", "stage1/*"], frozen_norm)

    Parameters and state have the paths and shapes that they had:

    >>> x = jax.ShapeDtypeStruct((64, 32, 32, 3), jnp.float32)
    >>> before, after = (jax.eval_shape(each.init, jax.random.key(0), x) for each in (net, changed))
    >>> before == after
    True

    Raises:
        ValueError: if a pattern matches no norm, with the nearest path. Where there are `shaped`
            parts, whose norms are known only then, this is when the network is initialised.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)

    def changed(path: str, part: Layer) -> Layer:
        chosen = part.kind == "norm" and matches(path, patterns)
        return as_layer(change(part)) if chosen else part

    new = rewrite(net, changed)
    norms = [path for path, part in walk(net) if part.kind == "norm"]
    if not _has_shaped(net):
        _check_norms(patterns, norms)
        return new

    def init(key: Array, spec: Spec) -> tuple[Params, State]:
        made = [
            path for path, maker in plan(net, spec).makers.items() if maker.layer.kind == "norm"
        ]
        _check_norms(patterns, [*norms, *made])
        return new.init(key, spec)

    return new._replace(init=init)


def capture(net: Layer, patterns: str | Iterable[str]) -> Layer:
    """A network whose output is `(output, {path: activation})`, for the parts that match.

    Its parameters and state are those of `net`. Of a part that is called several times there is a
    tuple of activations, in order; in a `stack` they have a leading axis. It is an ordinary part
    of the program: it may be differentiated, mapped and compiled.

    Raises:
        ValueError: if no part matches, with the nearest path.
    """
    patterns = _checked(net, patterns)
    kept = rewrite(net, lambda path, part: _keep(part) if matches(path, patterns) else part)

    def apply(params: Params, state: State, x: Any, ctx: Context = Context()):
        y, state = kept.apply(params, state, x, ctx)
        seen: dict[str, Any] = {}
        state = _collect(state, "", seen)
        paths = _paths(net)
        _check(patterns, [*paths, *seen])
        in_order = {path: seen[path] for path in paths if path in seen}
        return (y, in_order | seen), state

    return Layer(net.init, apply, "capture")


def after(net: Layer, patterns: str | Iterable[str], change: Callable[[Any], Any]) -> Layer:
    """A network that calls `change` on the output of every part whose path matches.

    The paths of its parameters stay as they are. With `capture` and `jax.vjp` it gives the gradient
    with respect to any activation:

        scores = lambda shift: after(net, path, lambda y: y + shift).apply(params, state, x)[0]

    Raises:
        ValueError: as `replace` does.
    """
    patterns = _checked(net, patterns)
    return rewrite(net, lambda path, part: _then(part, change) if matches(path, patterns) else part)


def _then(layer: Layer, change: Callable[[Any], Any]) -> Layer:
    wire = layer.wire
    if isinstance(wire, Shaped):
        return shaped(lambda x: _then(as_layer(wire.make(x)), change)).named(layer.kind)
    if wire is not None:
        changed = compose(lambda net, x: change(wire(net, x)), **layer.parts)
        return changed.named(layer.kind)

    def apply(params: Params, state: State, x: Any, ctx: Context = Context()):
        y, state = layer.apply(params, state, x, ctx)
        return change(y), state

    return layer.around(apply)


def _rewrite(layer: Layer, change: Callable[[str, Layer], Layer], path: str) -> Layer:
    if isinstance(layer.wire, Shaped):
        make = layer.wire.make
        return shaped(lambda x: _rewrite(as_layer(make(x)), change, path)).named(layer.kind)
    if layer.wire is None:
        return layer

    def changed(name: str, part: Layer) -> Layer:
        inner = _join(path, name)
        return change(inner, _rewrite(part, change, inner))

    parts = {name: changed(name, part) for name, part in layer.parts.items()}
    if all(parts[name] is part for name, part in layer.parts.items()):
        return layer
    return compose(layer.wire, **parts).named(layer.kind)


def _keep(layer: Layer) -> Layer:
    """The same layer, which also puts its output into its state."""

    def apply(params: Params, state: State, x: Any, ctx: Context = Context()):
        earlier = state.get(_KEPT, ())
        y, state = layer.apply(params, _without(state), x, ctx)
        return y, {**state, _KEPT: (*earlier, y)}

    return layer._replace(apply=apply)


def _collect(state: State, path: str, seen: dict[str, Any]) -> State:
    """Moves what was kept from a state into `seen`, and returns the state without it."""
    if _KEPT in state:
        kept = state[_KEPT]
        seen[path] = kept[0] if len(kept) == 1 else kept
    rest = {
        name: _collect(value, _join(path, name), seen) if isinstance(value, dict) else value
        for name, value in _without(state).items()
    }
    return {name: value for name, value in rest.items() if not isinstance(value, dict) or value}


def _without(state: State) -> State:
    return {name: value for name, value in state.items() if name != _KEPT}


def _checked(net: Layer, patterns: str | Iterable[str]) -> list[str]:
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    if not _has_shaped(net):
        _check(patterns, _paths(net))
    return patterns


def _check(patterns: Iterable[str], paths: list[str]) -> None:
    for pattern in patterns:
        if not any(matches(path, pattern) for path in paths):
            raise ValueError(
                f"no part of the network matches {pattern!r}; {nearest(pattern, paths)}"
            )


def _check_norms(patterns: Iterable[str], norms: list[str]) -> None:
    for pattern in patterns:
        if any(matches(path, pattern) for path in norms):
            continue
        if any(matches(path, f"{pattern}/*") for path in norms):
            hint = f"write '{pattern}/*' for the norms inside"
        else:
            hint = nearest(pattern, norms)
        raise ValueError(f"no norm of the network matches {pattern!r}; {hint}")


def _has_shaped(net: Layer) -> bool:
    return any(isinstance(part.wire, Shaped) for part in (net, *dict(walk(net)).values()))


def _paths(net: Layer) -> list[str]:
    return [path for path, _ in walk(net)]


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name
