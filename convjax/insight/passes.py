"""What goes forward through each part of a network, and the gradient that comes back to it.

    calls = called(net, images)                                 # in the order of the calls
    there, back = passes(net, params, state, images, cotangents, [call.path for call in calls])
    back["stage1/conv1"]                    # the gradient of the score by what that part puts out

Both are surgery, `capture` and `after`, and `jax.vjp`: they know of no kind of layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from convjax.combine import identity
from convjax.layer import Context, Layer, Net, Params, Spec, State, compose, plan, spec_of
from convjax.surgery import after, capture, rewrite

IMAGES = "images"  # in place of a path; the logits are at ""


class Called(NamedTuple):
    """One call of a part of a network.

    given, made: shape and dtype of what went in and of what came out, batch first.
    """

    path: str
    kind: str
    part: Layer
    given: Spec
    made: jax.ShapeDtypeStruct


class Passes(NamedTuple):
    """Activations by path, and the gradient of the sum of `cotangents * logits` by each of them.

    there: holds the logits as "". back: holds the gradient of the images as `IMAGES`.
    """

    there: dict[str, Array]
    back: dict[str, Array]


def called(net: Layer, images: Any) -> list[Called]:
    """Every part that is called once for a batch and makes one array, in the order of their ends.

    So a part stands before what it is a part of. Left out is what is called several times, as in a
    `loop` or a `stack`; these themselves are not. Nothing is computed but shapes.

    images: an array or a `jax.ShapeDtypeStruct`, `[batch, *spatial, channels]`.
    """
    return list(_called(net, spec_of(images)))


# A page asks for those of one network again and again.
@functools.lru_cache(maxsize=8)
def _called(net: Layer, images: Spec) -> list[Called]:
    noted: list[tuple[str, Layer, Spec, Spec]] = []

    def noting(path: str, part: Layer) -> Layer:
        def apply(params: Params, state: State, x: Any, ctx: Context = Context()):
            y, state = part.apply(params, state, x, ctx)
            noted.append((path, part, spec_of(x), spec_of(y)))
            return y, state

        return part._replace(apply=apply)

    if not net.parts:
        return []
    params, state = jax.eval_shape(net.init, jax.random.key(0), images)

    def run(net: Layer) -> Any:
        return jax.eval_shape(lambda *of: net.apply(*of, Context())[0], params, state, images)

    run(rewrite(net, noting))
    made_for = {path: maker.layer for path, maker in plan(net, images).makers.items()}
    # Of several calls it keeps a tuple, and of those in a scan an array with one more axis.
    _, seen = run(capture(net, "*"))
    return [
        # What `shaped` has made for this input tells more than `shaped` itself.
        Called(path, made_for.get(path, part).kind, made_for.get(path, part), given, made)
        for path, part, given, made in noted
        if isinstance(made, jax.ShapeDtypeStruct) and spec_of(seen.get(path)) == made
    ]


def passes(
    net: Layer,
    params: Params,
    state: State,
    images: Array,
    cotangents: Array | Callable[[Array], Array],
    paths: Iterable[str],
) -> Passes:
    """Activations at these paths, and the gradients that come back to them, in one program.

    images: `[batch, ...]`; their numbers are independent of each other, as they are when a network
        is evaluated, so that each image has its own gradient.
    cotangents: `[batch, classes]`, the gradient of the logits: a row that is 1 at one class gives
        the gradient of its score, `probabilities - target` that of the cross-entropy. It may be a
        function of the logits.
    paths: some of those of `called`.

    Raises:
        ValueError: for a path that the network does not have.
    """
    paths = list(paths)
    calls = {call.path: call for call in called(net, images)}
    if unknown := [path for path in paths if path not in calls]:
        raise ValueError(
            f"{', '.join(unknown)}: no part of the network that is called once and makes one "
            f"array; these are {', '.join(calls) or 'none'}"
        )
    zeros = {path: jnp.zeros(calls[path].made.shape, calls[path].made.dtype) for path in paths}

    def forward(shifts: Mapping[str, Array], images: Array) -> tuple[Array, dict[str, Array]]:
        moved = net
        for path, shift in shifts.items():
            moved = after(moved, path, functools.partial(jnp.add, shift))
        if not paths:
            return moved.apply(params, state, images, Context())[0], {}
        return capture(moved, paths).apply(params, state, images, Context())[0]

    logits, pull, seen = jax.vjp(forward, zeros, images, has_aux=True)
    rows = cotangents(logits) if callable(cotangents) else cotangents
    of_shifts, of_images = pull(rows.astype(logits.dtype))
    return Passes({**seen, "": logits}, {**of_shifts, IMAGES: of_images})


def with_inputs(
    net: Layer, params: Params, state: State, paths: Iterable[str]
) -> tuple[Layer, Params, State]:
    """The same network, where what goes into these parts is an activation at `PATH/input`.

    Each becomes a layer of two parts, `input` and `itself`, in the place that it had: parameters
    and state move to `PATH/itself`.
    """
    paths = set(paths)

    def wrapped(path: str, part: Layer) -> Layer:
        return compose(_input_first, input=identity, itself=part) if path in paths else part

    def moved(tree: Mapping[str, Any], at: str = "") -> dict[str, Any]:
        inner: dict[str, Any] = {}
        for name, value in tree.items():
            below = f"{at}/{name}" if at else name
            inner[name] = moved(value, below) if isinstance(value, Mapping) else value
        return {"itself": inner} if at in paths else inner

    return rewrite(net, wrapped), moved(params), moved(state)


def _input_first(net: Net, x: Any) -> Any:
    return net.itself(net.input(x))
