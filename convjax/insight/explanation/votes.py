"""How the votes for each class come about: what each feature adds to each logit, exactly.

    found = votes(net, params, state, images)
    found.of(3)                             # feature x weight, [batch, features], for class 3
    found.of(3).sum(-1) + found.bias[3]     # its logit

The last dense layer is a weighted sum, so that its votes can be taken apart without any choice.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from convjax.insight.compiled import ONCE, SHORT, compiled
from convjax.insight.passes import Called, called, passes, with_inputs
from convjax.layer import Layer, Params, State


class Votes(NamedTuple):
    """What argued for and against each class, on the host.

    path: the last dense layer.
    features: what went into it, float32 `[batch, features]`.
    weights: of each feature for each class, float32 `[features, classes]`.
    bias: what each class has without any feature, float32 `[classes]`.
    logits: float32 `[batch, classes]`.
    """

    path: str
    features: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    logits: np.ndarray

    def of(self, label: int) -> np.ndarray:
        """What each feature adds to the logit of a class, float32 `[batch, features]`."""
        return self.features * self.weights[:, label]


def votes(net: Layer, params: Params, state: State, images: Array) -> Votes:
    """The contributions of the last dense layer: with the bias they sum to the logits.

    After that layer the network may scale its logits, but do nothing else.

    Raises:
        ValueError: if the network does not end so.
    """
    layer = last_dense(net, images)
    seeing = with_inputs(net, params, state, [layer.path])
    there, back = _passed(*seeing, images, path=layer.path)
    return votes_of(
        *(layer, params, state),
        features=there[f"{layer.path}/input"],
        made=there[layer.path],
        slopes=back[layer.path],
        logits=there[""],
    )


def last_dense(net: Layer, images: Any) -> Called:
    """The dense layer that votes: the last one that puts out a number for each class.

    Raises:
        ValueError: if there is none.
    """
    calls = called(net, images)
    heads = [call for call in calls if call.kind == "dense" and len(call.made.shape) == 2]
    if not heads or (calls and heads[-1].made.shape != calls[-1].made.shape):
        raise ValueError(
            "the network does not end in a dense layer, whose votes could be taken apart: "
            "its logits are made another way"
        )
    return heads[-1]


def votes_of(
    layer: Called,
    params: Params,
    state: State,
    *,
    features: Array,
    made: Array,
    slopes: Array,
    logits: Array,
) -> Votes:
    """The votes of a layer from one pass of the network.

    features, made: what went into the layer and came out of it.
    slopes: the gradient of the sum of all logits by what came out.

    Raises:
        ValueError: if the votes do not make the logits.
    """
    branches = _at(params, layer.path), _at(state, layer.path)
    weights, bias = _affine(layer.part, *branches, jnp.zeros_like(features[:1]))
    # Where the logits are scaled, so are the votes: by one number for each class.
    scale = np.asarray(slopes, np.float32)
    if not np.all(scale == scale[:1]):
        raise ValueError(_OTHERWISE.format(layer.path))
    weights = np.asarray(weights, np.float32) * scale[0]
    bias = np.asarray(bias, np.float32) * scale[0]
    found = Votes(
        layer.path, np.asarray(features, np.float32), weights, bias, np.asarray(logits, np.float32)
    )
    terms = np.abs(found.features) @ np.abs(weights) + np.abs(bias)
    rounding = 64 * float(jnp.finfo(made.dtype).eps) * terms
    if np.any(np.abs(found.features @ weights + bias - found.logits) > rounding):
        raise ValueError(_OTHERWISE.format(layer.path))
    return found


@compiled(runs=ONCE)
def by_place(maps: Array, slopes: Array) -> Array:
    """What each place of the maps adds to a score: activation times slope, summed over channels.

    Where what follows the maps is a weighted sum, such as a mean over all places and a dense layer,
    the places and the bias sum to the score exactly; elsewhere to first order only.

    maps, slopes: activations, and the gradient of the score by them, `[batch, *spatial, channels]`.

    >>> by_place(jnp.array([[[1.0, 2.0], [3.0, 0.0]]]), jnp.array([[[0.5, 1.0], [0.5, 1.0]]]))
    Array([[2.5, 1.5]], dtype=float32)
    """
    return (maps.astype(jnp.float32) * slopes.astype(jnp.float32)).sum(-1)


_OTHERWISE = (
    "the logits are not the votes of {}, nor the same scaled: what the network does after it "
    "cannot be taken apart"
)


@compiled("net", "path", runs=SHORT)
def _passed(net: Layer, params: Params, state: State, images: Array, *, path: str) -> Any:
    made = next(call.made for call in called(net, images) if call.path == path)
    return passes(net, params, state, images, jnp.ones(made.shape), [f"{path}/input", path])


@compiled("part", runs=ONCE)
def _affine(part: Layer, params: Params, state: State, none: Array) -> tuple[Array, Array]:
    """Weights and bias that a layer uses, whatever its parameters are; none: `[1, features]`."""

    def votes(x: Array) -> Array:
        return part.apply(params, state, x)[0]

    bias, pull = jax.vjp(votes, none)
    each = jnp.eye(bias.shape[-1], dtype=bias.dtype)[:, None]
    (weights,) = jax.vmap(pull)(each)
    return weights[:, 0].T, bias[0]


def _at(tree: Any, path: str) -> Any:
    """The branch of a tree at a path, empty where there is none."""
    return functools.reduce(lambda branch, name: branch.get(name, {}), path.split("/"), tree)
