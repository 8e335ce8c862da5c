"""Which pixels a score is owed to: maps by gradients, of every network, for every class.

    share = integrated_gradients(net, params, state, images, classes)    # as images
    heat = grad_cam(net, params, state, images, classes)                 # [batch, height, width]

The score is the logit of a class. `images` are as the network sees them, `[batch, *spatial,
channels]`, and `classes` int `[batch]`, one class for each image. They may be `[several, batch]`
too: then there are so many maps for each image, `[several, batch, ...]`, which cost less than one
after the other. Maps are float32. Each function is a compiled program for each network and shape,
or a part of the program that it is called in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from convjax.insight import relus
from convjax.insight.compiled import ONCE, SHORT, compiled
from convjax.insight.passes import called, passes
from convjax.layer import Context, Layer, Params, State, function
from convjax.surgery import rewrite


@compiled("net", runs=SHORT)
def scores(net: Layer, params: Params, state: State, images: Array, classes: Array) -> Array:
    """The logits of the classes, float32, as `classes`; NaN for a number that is no class."""
    logits, _ = net.apply(params, state, images, Context())
    each = jnp.broadcast_to(logits.astype(jnp.float32), (*classes.shape, logits.shape[-1]))
    return jnp.take_along_axis(each, classes[..., None], -1, mode="fill")[..., 0]


@compiled("net", runs=SHORT)
def gradient(net: Layer, params: Params, state: State, images: Array, classes: Array) -> Array:
    """By how much the score grows with each number of the image (Simonyan et al. 2014)."""

    def totals(images: Array) -> Array:
        # Images do not see each other in evaluation: the sum gives each its own gradient.
        return scores(net, params, state, images, classes).sum(-1)

    if classes.ndim == 1:
        return jax.grad(totals)(images).astype(jnp.float32)
    _, pull = jax.vjp(totals, images)
    (maps,) = jax.vmap(pull)(jnp.eye(len(classes), dtype=jnp.float32))
    return maps.astype(jnp.float32)


def integrated_gradients(
    net: Layer,
    params: Params,
    state: State,
    images: Array,
    classes: Array,
    *,
    baseline: Array | None = None,
    steps: int = 64,
) -> Array:
    """What each number of the image adds to the score, from a baseline to the image.

    The sum over an image is the score of the image less that of the baseline, as nearly as `steps`
    points, the midpoints of equal parts of the straight way, tell the integral.

    baseline: what is taken for the absence of everything, of a shape that broadcasts to `images`
        and with as many axes; by default 0, which is the mean colour of normalised images.

    Sundararajan, Taly and Yan, Axiomatic attribution for deep networks, 2017 (arXiv 1703.01365).

    Raises:
        ValueError: for fewer steps than 1.
    """
    _at_least_one("integrated_gradients", steps=steps)
    if baseline is None:
        baseline = jnp.zeros((1,) * images.ndim, images.dtype)
    points, way = _straight(images, baseline, steps=steps)
    maps = mean_gradient(net, params, state, points, classes)
    return maps * jnp.broadcast_to(way, maps.shape)


def smooth_grad(
    net: Layer,
    params: Params,
    state: State,
    images: Array,
    classes: Array,
    *,
    key: Array | None = None,
    noise: float = 0.15,
    samples: int = 64,
) -> Array:
    """The mean gradient of the score over images with normal noise, which smoothes it.

    key: of the noise; by default always the same.
    noise: its standard deviation, as a share of the range of the image's numbers.

    Smilkov, Thorat, Kim, Viégas and Wattenberg, SmoothGrad, 2017 (arXiv 1706.03825), who take 50
    samples and a noise of 0.1 to 0.2.

    Raises:
        ValueError: for fewer samples than 1.
    """
    _at_least_one("smooth_grad", samples=samples)
    key = jax.random.key(0) if key is None else key
    points = _noisy(key, images, noise, samples=samples)
    return mean_gradient(net, params, state, points, classes)


@compiled("net", runs=SHORT)
def mean_gradient(net: Layer, params: Params, state: State, points: Array, classes: Array) -> Array:
    """The mean of `gradient` over points `[points, batch, ...]`, by a few of them at a time."""
    count, batch, *shape = points.shape
    several = classes.shape[:-1]
    fit = at_once((math.prod(classes.shape), *shape))
    some = max(size for size in range(1, fit + 1) if count % size == 0)
    points = points.reshape(count // some, some * batch, *shape)
    tiled = jnp.tile(classes, some)

    def of_some(points: Array) -> Array:
        found = gradient(net, params, state, points, tiled)
        return found.reshape(*several, some, batch, *shape).sum(len(several))

    return lax.map(of_some, points).sum(0) / count


@compiled("net", runs=SHORT)
def guided_gradient(
    net: Layer, params: Params, state: State, images: Array, classes: Array
) -> Array:
    """The gradient, but each ReLU hands back only what is positive there and came in positive.

    Springenberg, Dosovitskiy, Brox and Riedmiller, Striving for simplicity, 2015 (arXiv 1412.6806),
    figure 1: it follows what excites, and nothing that inhibits. It is sharp, and tells less of the
    weights than it seems (Adebayo et al., Sanity checks for saliency maps, 2018).

    Raises:
        ValueError: if the network calls no ReLU: it is not defined then.
    """
    return gradient(guided(net, images), params, state, images, classes)


def guided(net: Layer, images: Any, kinds: Iterable[str] = ()) -> Layer:
    """A network that computes the same, and hands back only positive gradients at its ReLUs.

    These are those of its program (`convjax.insight.relus`): of layers, of wires, and inside of
    other layers such as `squeeze_excite`.

    images: an array or its shape.
    kinds: other parts that count as ReLUs, such as "gelu".

    Raises:
        ValueError: if there are none.
    """
    kinds = set(kinds)

    def changed(path: str, part: Layer) -> Layer:
        return _only_positive(part) if part.kind in kinds and part.wire is None else part

    others = any(call.kind in kinds for call in called(net, images)) if kinds else False
    if not others and not relus.called(net, images):
        raise ValueError(
            "the network calls no ReLU, so that guided backpropagation is not defined for it: "
            "take gradient or smooth_grad"
        )
    place_of, rewritten = relus.places(net, images), rewrite(net, changed)

    def positive(scopes: str, relu: Callable[[Array], Array], x: Array) -> tuple[Array, None]:
        return (_positive(relu) if place_of(scopes) else relu)(x), None

    def apply(params: Params, state: State, x: Any, ctx: Context = Context()):
        def forward(params: Params, state: State, x: Any) -> Any:
            return rewritten.apply(params, state, x, ctx)

        return relus.with_relus(forward, positive)(params, state, x)[0]

    return net.around(apply)


def grad_cam(
    net: Layer,
    params: Params,
    state: State,
    images: Array,
    classes: Array,
    *,
    path: str | None = None,
) -> Array:
    """Where an image speaks for a class: activations weighted by the mean slope of the score.

    path: a part that puts out maps; by default `last_maps`. The result has their height and width:
        `ops.resize` brings it to those of the image.

    Selvaraju and others, Grad-CAM, 2017 (arXiv 1610.02391).

    Raises:
        ValueError: if the network has no such part, or it puts out no maps.
    """
    path = last_maps(net, images) if path is None else path
    return _grad_cam(net, params, state, images, classes, path=path)


@compiled(runs=ONCE)
def cam(maps: Array, slopes: Array) -> Array:
    """Grad-CAM of activations and of the slopes of a score by them, `[batch, *spatial, channels]`.

    >>> maps = jnp.array([[[1.0, 5.0], [2.0, -5.0]]])                # two places, two channels
    >>> cam(maps, jnp.array([[[1.0, 0.0], [3.0, 0.0]]])).tolist()     # the mean slopes are 2 and 0
    [[2.0, 4.0]]
    """
    maps, slopes = (each.astype(jnp.float32) for each in (maps, slopes))
    weights = slopes.mean(tuple(range(1, slopes.ndim - 1)), keepdims=True)
    return jax.nn.relu((maps * weights).sum(-1))


def last_maps(net: Layer, images: Any) -> str:
    """The path of the last maps: the last output as high and wide as the last convolution's.

    Convolutions that see but one place do not count.

    images: an array, or its shape.

    Raises:
        ValueError: if there is no convolution.
    """
    maps = [call for call in called(net, images) if is_maps(call.made)]
    sizes = [call.made.shape[1:-1] for call in maps if call.kind == "conv"]
    if not sizes:
        raise ValueError(
            "the network has no convolution that puts out maps of more than one place: "
            "Grad-CAM is not defined for it"
        )
    return next(call.path for call in reversed(maps) if call.made.shape[1:-1] == sizes[-1])


def at_once(shape: Sequence[int]) -> int:
    """How many batches of images of this shape one step of a long computation takes.

    Up to 32 images or half a million pixels, at least one batch: more would take memory for little.

    >>> at_once((2, 28, 28, 1)), at_once((1, 224, 224, 3)), at_once((64, 28, 28, 1))
    (16, 10, 1)
    """
    pixels = math.prod(shape[1:-1])
    return max(1, min(32, 2**19 // pixels) // shape[0])


def is_maps(spec: Any) -> bool:
    """Whether an activation, or its shape, has several places."""
    return len(spec.shape) > 2 and max(spec.shape[1:-1]) > 1


@compiled("net", "path", runs=SHORT)
def _grad_cam(
    net: Layer, params: Params, state: State, images: Array, classes: Array, *, path: str
) -> Array:
    logits = jax.eval_shape(lambda *of: net.apply(*of, Context())[0], params, state, images)

    def heat(classes: Array) -> Array:
        chosen = jax.nn.one_hot(classes, logits.shape[-1], dtype=jnp.float32)
        there, back = passes(net, params, state, images, chosen, [path])
        if not is_maps(there[path]):
            raise ValueError(
                f"{path} puts out {there[path].shape}, no maps of several places: name a "
                "convolution or what follows it"
            )
        return cam(there[path], back[path])

    return heat(classes) if classes.ndim == 1 else jax.vmap(heat)(classes)


@compiled("steps", runs=ONCE)
def _straight(images: Array, baseline: Array, *, steps: int) -> tuple[Array, Array]:
    """Points on the way from the baseline to the images, and the way."""
    start = baseline.astype(jnp.float32)
    way = images.astype(jnp.float32) - start
    shares = (jnp.arange(steps, dtype=jnp.float32) + 0.5) / steps
    each = shares.reshape(-1, *[1] * images.ndim)
    return (start[None] + each * way[None]).astype(images.dtype), way


@compiled("samples", runs=ONCE)
def _noisy(key: Array, images: Array, noise: float | Array, *, samples: int) -> Array:
    """So many copies of the images, each with noise of its own."""
    wide = images.astype(jnp.float32)
    axes = tuple(range(1, images.ndim))
    range_ = wide.max(axes, keepdims=True) - wide.min(axes, keepdims=True)
    drawn = jax.random.normal(key, (samples, *images.shape), jnp.float32)
    return (wide[None] + drawn * range_[None] * jnp.asarray(noise, jnp.float32)).astype(
        images.dtype
    )


def _only_positive(part: Layer) -> Layer:
    """A part without parameters that hands back only positive gradients."""
    return function(_positive(lambda x: part.apply({}, {}, x)[0]), part.kind)


def _positive(plain: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The same function, which hands back only positive gradients."""
    guided = jax.custom_vjp(plain)
    guided.defvjp(lambda x: jax.vjp(plain, x), lambda pull, gradient: pull(jax.nn.relu(gradient)))
    return guided


def _at_least_one(name: str, **counts: int) -> None:
    for what, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}: {what} is {count}: give 1 or more")
