"""What features and classes look for: images that gradient ascent paints for them.

    wanted = {"conv2": jnp.eye(16)}                       # an image for each of 16 features
    painted = visualise(net, params, state, wanted, shape=(28, 28, 1), prepare=prepare)

After Olah, Mordvintsev and Schubert, Feature visualization, Distill 2017: the image is painted by
its Fourier spectrum, moved at random before each step, and kept smooth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from convjax.insight.compiled import SHORT, compiled
from convjax.layer import Context, Layer, Params, State
from convjax.surgery import capture

Prepare = Callable[[Array], Array]


def visualise(
    net: Layer,
    params: Params,
    state: State,
    wanted: Mapping[str, Any],
    *,
    shape: tuple[int, int, int],
    prepare: Prepare = jnp.asarray,
    key: Array | None = None,
    steps: int = 128,
    learning_rate: float = 0.1,
    jitter: int | None = None,
    variation: float = 0.1,
    energy: float = 0.02,
) -> Array:
    """Images that raise what is wanted of them, float32 `[batch, *shape]` in [0, 1].

    wanted: by path, what each image is to raise: `[batch, channels]`, the share of each channel of
        that part, whose mean over all places counts; "" is the logits. Every image is a sum over
        all paths, so that images for several layers are painted in one program.
    shape: height, width and channels of an image.
    prepare: from pixels in [0, 1] to what the network sees; the program is compiled for it.
    key: of the first images and of the moves; by default always the same.
    steps: of Adam.
    jitter: the most pixels by which an image is moved before a step; by default an eighth of it.
    variation: how much the difference of neighbouring pixels costs (total variation).
    energy: how much a pixel's distance from grey costs, squared (L2).

    Raises:
        ValueError: for a path that the network does not have, and for rows of unequal number.
    """
    rows = {path: np.shape(weights)[0] for path, weights in wanted.items()}
    if len(set(rows.values())) != 1:
        raise ValueError(f"visualise paints one image a row, but the rows differ: {rows}")
    if jitter is None:
        jitter = max(1, min(shape[:2]) // 8)
    weights = {path: jnp.asarray(each, jnp.float32) for path, each in wanted.items()}
    key = jax.random.key(0) if key is None else key
    numbers = {"learning_rate": learning_rate, "variation": variation, "energy": energy}
    costs = {name: jnp.float32(number) for name, number in numbers.items()}
    return _painted(
        *(net, params, state, weights, key, costs),
        shape=shape,
        prepare=prepare,
        steps=steps,
        jitter=jitter,
    )


def total_variation(images: Array) -> Array:
    """The mean absolute difference of neighbouring pixels, down and across, of each image.

    >>> total_variation(jnp.array([0.0, 1.0, 1.0, 1.0]).reshape(1, 2, 2, 1)).tolist()
    [1.0]
    """
    down = jnp.abs(jnp.diff(images, axis=1)).mean((1, 2, 3))
    return down + jnp.abs(jnp.diff(images, axis=2)).mean((1, 2, 3))


@compiled("net", "shape", "prepare", "steps", "jitter", runs=SHORT)
def _painted(
    net: Layer,
    params: Params,
    state: State,
    weights: Mapping[str, Array],
    key: Array,
    costs: Mapping[str, Array],
    *,
    shape: tuple[int, int, int],
    prepare: Prepare,
    steps: int,
    jitter: int,
) -> Array:
    height, width, channels = shape
    batch = len(next(iter(weights.values())))
    paths = [path for path in weights if path]
    frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    # Each frequency has the same say: natural images have 1 / f of it.
    scale = 1 / np.maximum(frequencies, 1 / max(height, width))
    scale = jnp.asarray(scale[None, ..., None], jnp.float32) * np.float32(np.sqrt(height * width))

    def image_of(spectrum: Array) -> Array:
        both = lax.complex(spectrum[0] * scale, spectrum[1] * scale)
        return jax.nn.sigmoid(jnp.fft.irfft2(both, (height, width), axes=(1, 2)))

    def cost(spectrum: Array, moved: Array) -> Array:
        images = image_of(spectrum)
        seen_there = prepare(jnp.roll(images, moved, (1, 2)))
        if paths:
            (logits, seen), _ = capture(net, paths).apply(params, state, seen_there, Context())
        else:
            (logits, _), seen = net.apply(params, state, seen_there, Context()), {}
        gain = jnp.zeros((), jnp.float32)
        for path, share in weights.items():
            made = (seen[path] if path else logits).astype(jnp.float32)
            means = made.reshape(batch, -1, made.shape[-1]).mean(1)
            gain = gain + (means * share).sum()
        smooth = costs["variation"] * total_variation(images).sum()
        return smooth + costs["energy"] * ((images - 0.5) ** 2).mean((1, 2, 3)).sum() - gain

    optimizer = optax.adam(costs["learning_rate"])

    def step(number: Array, carry: tuple[Array, Any]) -> tuple[Array, Any]:
        spectrum, opt = carry
        moved = jax.random.randint(jax.random.fold_in(key, number), (2,), -jitter, jitter + 1)
        slopes = jax.grad(cost)(spectrum, moved)
        with jax.numpy_dtype_promotion("standard"):  # Optax counts its steps in integers.
            updates, opt = optimizer.update(slopes, opt)
        return jnp.asarray(optax.apply_updates(spectrum, updates)), opt

    first = 0.01 * jax.random.normal(key, (2, batch, *frequencies.shape, channels))
    spectrum, _ = lax.fori_loop(0, steps, step, (first, optimizer.init(first)))
    return image_of(spectrum)
