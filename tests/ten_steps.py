"""Ten steps of a small ResNet, for the tests of mappers: in this process, or in one of several.

    python tests/ten_steps.py HOST:PORT PROCESSES ID FOLDER MAPPER ...

leaves in the folder a checkpoint and the metrics of the steps, for each mapper.
"""

import functools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from convjax import distributed, tree
from convjax.augment import augment, crop, flip
from convjax.checkpoint import Checkpoints
from convjax.combine import serial
from convjax.layers import dropout
from convjax.models.resnet import cifar_stem, pad_channels, resnet
from convjax.ops import global_avg_pool
from convjax.surgery import replace
from convjax.training import optimizer as optimizers
from convjax.training import parallel, schedule
from convjax.training.average import moving_average
from convjax.training.loss import cross_entropy
from convjax.training.optimizer import hyper_of
from convjax.training.state import init_state
from convjax.training.step import Batch, make_step, normalise

SIZE, STEPS = 16, 10
WHOLE_BELOW = 512  # of the numbers in a leaf: all kernels of the blocks have more
RESNET = resnet(5, depths=(1,), width=8, stem=cifar_stem, shortcut=pad_channels)
NET = replace(RESNET, "pool", serial(global_avg_pool, dropout(0.3)))
ARGS = {"momentum": 0.9}


# Functions, as processes must have met before JAX makes its first array.
@functools.cache
def sgd():
    return optimizers.make("sgd", schedule.make("cosine", steps=STEPS, warmup=2), args=ARGS)


def hyper():
    return hyper_of(0.05, 0.01, 0.1, ARGS)


def begin():
    """The state before the first step, with an average."""
    spec = jax.ShapeDtypeStruct((SIZE, 8, 8, 3), jnp.float32)
    return init_state(NET, sgd(), jax.random.key(3), spec, hyper(), averaged=True)


def batch(number, part=(0, 1)):
    """The rows of a process of a batch."""
    draw = np.random.default_rng(number)
    images = draw.integers(0, 256, (SIZE, 8, 8, 3), np.uint8)
    labels = draw.integers(0, 5, SIZE).astype(np.int32)
    return Batch(*(np.split(each, part[1])[part[0]] for each in (images, labels)))


def compiled(mapper):
    step = make_step(
        NET,
        sgd(),
        cross_entropy,
        prepare=normalise(np.full(3, 0.5), np.full(3, 0.25)),
        change=augment(crop(1), flip()),
        average=moving_average(0.9),
        axis=mapper.axis,
    )
    return mapper.compile(step, donate=True)


def train(mapper, step, state, steps=STEPS):
    """The state after the steps, and the metrics of each."""
    state, numbers, seen = mapper.place(state), mapper.replicate(hyper()), []
    for number in range(steps):
        state, metrics = step(state, mapper.shard(batch(number, mapper.part)), numbers)
        seen.append([float(each) for each in metrics])
    return state, seen


def assert_equal_here(state, other):
    """Two states are spread alike, and what lies on the devices of this process is equal."""
    for (path, a), b in zip(tree.leaves(state).items(), jax.tree.leaves(other), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim), path
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        for mine, yours in zip(a.addressable_shards, b.addressable_shards, strict=True):
            np.testing.assert_array_equal(mine.data, yours.data, err_msg=path)


def main(coordinator, processes, process, folder, names):
    distributed.start(coordinator, processes, process)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    assert distributed.leads() == (process == 0)
    for name in names:
        mapper = parallel.make(name, whole_below=WHOLE_BELOW)
        assert mapper.part == (process, processes)
        step = compiled(mapper)
        state, seen = train(mapper, step, begin())
        Path(folder, f"{name}-{process}.json").write_text(json.dumps(seen))
        # One more step on a copy, whose memory is given away, leaves the state as it was.
        train(mapper, step, state, steps=1)
        with Checkpoints(Path(folder, name)) as checkpoints:
            checkpoints.save(STEPS, state, {"process": process})
            again, extra = checkpoints.restore(mapper.spec(state))
        assert extra == {"process": 0}
        assert_equal_here(again, state)
    distributed.barrier("all mappers are done")
    distributed.stop()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5:])
