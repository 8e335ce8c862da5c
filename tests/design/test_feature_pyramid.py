"""A feature pyramid (Lin et al. 2017): outputs at several scales, each told by the coarser ones."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convjax import Layer, compose, conv, ops, relu, serial, tree

KEY = jax.random.key(0)
IMAGES = jax.random.normal(KEY, (1, 16, 16, 3))


def stage(width: int) -> Layer:
    return serial(conv(width, 3, stride=2), relu).named("stage")


def feature_pyramid(widths: Sequence[int], features: int) -> Layer:
    """A dict of feature maps of one width, "p1" half as large as the image, "p2" a quarter, ..."""
    numbers = range(1, len(widths) + 1)

    def wire(net, x):
        bottom_up = [x := net[f"stage{n}"](x) for n in numbers]
        outputs, above = {}, None
        for n in reversed(numbers):
            y = net[f"side{n}"](bottom_up[n - 1])
            above = y if above is None else y + ops.upsample(above, 2)
            outputs[f"p{n}"] = net[f"smooth{n}"](above)
        return outputs

    stages = {f"stage{n}": stage(width) for n, width in zip(numbers, widths)}
    sides = {f"side{n}": conv(features, 1) for n in numbers}
    smooths = {f"smooth{n}": conv(features, 3) for n in numbers}
    return compose(wire, **stages, **sides, **smooths)


net = feature_pyramid([4, 6, 8], features=5)


def test_every_scale_has_an_output_of_the_same_width():
    params, state = net.init(KEY, IMAGES)
    outputs, _ = net.apply(params, state, IMAGES)
    assert {name: y.shape for name, y in outputs.items()} == {
        "p1": (1, 8, 8, 5),
        "p2": (1, 4, 4, 5),
        "p3": (1, 2, 2, 5),
    }


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("p3", {"stage1", "stage2", "stage3", "side3", "smooth3"}),
        ("p1", {"stage1", "stage2", "stage3", "side1", "side2", "side3", "smooth1"}),
    ],
)
def test_an_output_depends_on_its_own_way_and_on_the_coarser_ones(output, expected):
    params, state = net.init(KEY, IMAGES)
    gradient = jax.jit(
        jax.grad(lambda params: (net.apply(params, state, IMAGES)[0][output] ** 2).sum())
    )(params)
    used = {
        path.split("/")[0] for path, leaf in tree.leaves(gradient).items() if jnp.any(leaf != 0)
    }
    assert used == expected


def test_the_finest_output_sees_further_than_the_way_to_it_alone():
    # A 3x3 convolution of stride 2 and a 3x3 one see 7 pixels; the coarser ways see much more.
    params, state = net.init(KEY, IMAGES)
    alone = {**params, "side2": jax.tree.map(jnp.zeros_like, params["side2"])}
    alone["side3"] = jax.tree.map(jnp.zeros_like, params["side3"])

    def seen(params):
        slope = jax.jit(
            jax.grad(lambda x: (net.apply(params, state, x)[0]["p1"][0, 0, 0] ** 2).sum())
        )(IMAGES)
        return int(np.flatnonzero(np.asarray(slope)[0].any((0, 2))).max())

    assert seen(alone) < 7 < seen(params)
