"""What the populations of tests/test_sweep_population.py train; as a program, one of them.

python tests/population_models.py FOLDER SECONDS        # so many more for each step
"""

import sys
import time

import jax.numpy as jnp
import numpy as np

from convjax import ops
from convjax.combine import serial
from convjax.config import Average, Checkpoint, Data, Experiment, Model, Optimizer
from convjax.data import Dataset
from convjax.flags import guard, leave
from convjax.layers import batch_norm, dense, dropout

EPOCH = 5  # steps: forty pictures, eight a batch
VARY = (
    "optimizer.learning_rate=log(1e-3, 1)",
    "model.args.dropout_rate=uniform(0, 0.5)",
    "optimizer.args.momentum=0.5,0.8,0.9",
)


def pictures(split, data_dir):
    """Pictures of nearly the same light: forty to train on, 199 to choose by, thirteen to test."""
    size = {"train": 40, "valid": 199, "test": 13}[split]
    draw = np.random.default_rng(size)
    labels = draw.integers(0, 3, size).astype(np.int32)
    light = labels[:, None, None, None] * 8 + draw.integers(0, 100, (size, 4, 4, 1))
    return Dataset(light.astype(np.uint8), labels, ("dark", "grey", "light"))


def noisy(classes, dropout_rate=0.2, width=4):
    """A network with batch statistics and noise of its own."""
    return serial(
        *(ops.flatten, dense(width), batch_norm(), ops.relu, dropout(dropout_rate), dense(classes))
    )


def breaking(classes, strength=1.0):
    """A network whose numbers are not finite where the strength is 10 or more."""

    def explode(x):
        return x * jnp.where(jnp.asarray(strength) >= 10, jnp.float32(jnp.nan), jnp.float32(1))

    return serial(ops.flatten, dense(4), ops.relu, explode, dense(classes))


def experiment(**given):
    """What the members share."""
    chosen = {
        "name": "member",
        "seed": 3,
        "epochs": 8.0,
        "batch_size": 8,
        "eval_batch_size": 64,
        "model": Model("population_models:noisy"),
        "data": Data("population_models:pictures", valid="valid"),
        "optimizer": Optimizer("sgd", schedule="constant"),
        "average": Average(decay=0.9),
        "checkpoint": Checkpoint(keep=100),
    }
    return Experiment(**chosen | given)


def main(argv):
    from convjax.sweep.lockstep import Places
    from convjax.sweep.population import Population, launch

    _, folder, seconds = argv
    step = Places.step

    def slowly(self, which):
        time.sleep(float(seconds))
        return step(self, which)

    Places.step = slowly
    print(launch(Population(VARY, experiment(), members=8, exploit_every=2), folder))


if __name__ == "__main__":
    sys.modules["population_models"] = sys.modules["__main__"]
    leave(guard(main, sys.argv))
