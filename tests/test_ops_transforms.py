"""Every op under JAX's transformations: the value of a composition is that of its parts."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import assert_close, normal, x64

from convjax import ops
from convjax.ops import activation

pytestmark = pytest.mark.usefixtures(x64.__name__)

kernel, bias = normal(3, 3, 4, 4, seed=1), normal(4, seed=2)
key = jax.random.key(0)

functions = {
    **{name: getattr(activation, name) for name in activation.__all__},
    "threshold": lambda x: ops.threshold(x, 0.5),
    "prelu": lambda x: ops.prelu(x, bias),
    "conv": lambda x: ops.conv(x, kernel, bias, stride=2),
    "conv_transpose": lambda x: ops.conv_transpose(x, kernel, bias, stride=2),
    "depthwise_conv": lambda x: ops.depthwise_conv(x, kernel[:, :, :1], bias, padding="CIRCULAR"),
    "dense": lambda x: ops.dense(x, kernel[0, 0], bias),
    "drop_path": lambda x: ops.drop_path(key, x, 0.5),
    "dropout": lambda x: ops.dropout(key, x, 0.5),
    "spatial_dropout": lambda x: ops.spatial_dropout(key, x, 0.5),
    "batch_norm": lambda x: ops.batch_norm(x, bias, jnp.square(bias), bias, bias),
    "group_norm": lambda x: ops.group_norm(x, 2, bias, bias),
    "instance_norm": lambda x: ops.instance_norm(x, bias, bias),
    "layer_norm": lambda x: ops.layer_norm(x, bias, bias),
    "local_response_norm": lambda x: ops.local_response_norm(x, 3, alpha=1.0),
    "moments": lambda x: ops.moments(x, (0, 1, 2)),
    "rms_norm": lambda x: ops.rms_norm(x, bias),
    "standardize_kernel": ops.standardize_kernel,
    "adaptive_avg_pool": lambda x: ops.adaptive_avg_pool(x, (3, 4)),
    "adaptive_max_pool": lambda x: ops.adaptive_max_pool(x, (3, 4)),
    "avg_pool": lambda x: ops.avg_pool(x, 2, stride=1, padding="SAME"),
    "blur_pool": ops.blur_pool,
    "global_avg_pool": ops.global_avg_pool,
    "global_max_pool": ops.global_max_pool,
    "lp_pool": lambda x: ops.lp_pool(x, 2),
    "max_pool": lambda x: ops.max_pool(x, 2, stride=1, padding="SAME"),
    "flatten": ops.flatten,
    "pixel_shuffle": lambda x: ops.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: ops.pixel_unshuffle(x, 2),
    "resize": lambda x: ops.resize(x, (3, 8), method="cubic"),
    "upsample": ops.upsample,
}


# A context manager and a policy: they say how ops are computed, and compute nothing themselves.
about = ["algorithm", "convolutions_saveable"]


def test_every_op_is_transformed():
    assert sorted([*functions, *about]) == sorted(ops.__all__)


@pytest.mark.parametrize("name", functions)
def test_vmap_of_the_rematerialised_gradient_is_the_gradient_of_each(name):
    xs = normal(2, 2, 4, 6, 4)

    def total(x):
        # Weighed, so that no gradient is zero by symmetry.
        values = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(functions[name](x))])
        return values @ jnp.cos(jnp.arange(values.size, dtype=values.dtype))

    gradient = jax.jit(jax.grad(total))
    mapped = jax.jit(jax.vmap(jax.grad(jax.checkpoint(total))))(xs)
    assert np.abs(mapped).max() > 0
    assert_close(mapped, np.stack([gradient(x) for x in xs]))


@pytest.mark.parametrize("name", sorted(ops.__all__))
def test_an_op_says_what_it_is_for(name):
    first = (inspect.getdoc(getattr(ops, name)) or "").partition("\n")[0]
    assert first.endswith((".", ":")), first
