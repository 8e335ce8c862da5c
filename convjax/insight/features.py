"""Which convolution sees the images themselves: its features are pictures that one can look at.

path = first_kernel(net, jax.ShapeDtypeStruct((1, 28, 28, 1), "float32"))   # "conv1/kernel"
"""

from __future__ import annotations

from typing import Any

import jax

from convjax import tree
from convjax.layer import Layer, plan

MOST_FEATURES = 64  # of the first convolution that a run keeps, and a page shows


def first_kernel(net: Layer, spec: Any) -> str | None:
    """The path of the kernel of the convolution that is called first; None if there is none.

    spec: a batch of images, as `jax.ShapeDtypeStruct` or array. Nothing is computed.

    >>> from convjax import conv, dense, flatten, relu, serial
    >>> images = jax.ShapeDtypeStruct((1, 8, 8, 3), "float32")
    >>> first_kernel(serial(stem=serial(relu, conv(4, 3)), head=serial(flatten, dense(2))), images)
    'stem/conv1/kernel'
    >>> first_kernel(serial(flatten, dense(2)), images) is None
    True
    """
    for path, maker in plan(net, spec).makers.items():
        params, _ = jax.eval_shape(maker.layer.init, jax.random.key(0), maker.spec)
        for name, leaf in tree.leaves(params).items():
            # A kernel of a convolution has the axes of the window, and two of channels.
            if name.rpartition("/")[2] == "kernel" and leaf.ndim == len(spec.shape):
                return "/".join(filter(None, (path, name))) if not maker.counts else None
    return None
