"""What the tests of optimizers share: parameters, gradients, our steps and those of PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from convjax import tree
from convjax.training import schedule

constant = schedule.make("constant", steps=5)
PARAMS = {
    "conv1": {"kernel": np.random.default_rng(0).normal(size=(3, 3, 2, 4)), "bias": np.ones(4)},
    "norm1": {"scale": np.ones(4), "bias": np.zeros(4)},
}
TREE = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PARAMS)


def gradients(step):
    draw = np.random.default_rng(100 + step)
    return jax.tree.map(lambda x: draw.normal(size=x.shape), PARAMS)


def ours(optimizer, hyper, steps=5):
    params, opt = TREE, optimizer(hyper, jnp.int32(0)).init(TREE)
    for step in range(steps):
        grads = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), gradients(step))
        updates, opt = optimizer(hyper, jnp.int32(step)).update(grads, opt, params)
        params = optax.apply_updates(params, updates)
    return params


def theirs(make_optimizer, decay, clip=None, rates=None, steps=5):
    """The same steps by torch in float64; only kernels decay."""
    params = {
        name: torch.tensor(leaf, dtype=torch.float64, requires_grad=True)
        for name, leaf in tree.leaves(PARAMS).items()
    }
    kernels = [leaf for name, leaf in params.items() if name.endswith("kernel")]
    others = [leaf for name, leaf in params.items() if not name.endswith("kernel")]
    groups = [{"params": kernels, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = make_optimizer(groups)
    for step in range(steps):
        for name, grad in tree.leaves(gradients(step)).items():
            params[name].grad = torch.tensor(grad)
        if clip:
            torch.nn.utils.clip_grad_norm_(list(params.values()), clip)
        for group in optimizer.param_groups:
            group["lr"] = rates[step] if rates else group["lr"]
        optimizer.step()
    return {name: leaf.detach().numpy() for name, leaf in params.items()}


def assert_same(found, expected, rtol=2e-5):
    assert tree.leaves(found).keys() == expected.keys()
    for name, leaf in tree.leaves(found).items():
        np.testing.assert_allclose(leaf, expected[name], rtol=rtol, atol=2e-6, err_msg=name)
