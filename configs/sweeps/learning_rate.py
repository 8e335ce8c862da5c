"""32 learning rates of a small ConvNet, from 1e-4 to 1e-1, on the bundled images: 96 trials.

  command:  python -m experiments.sweep --sweep=configs/sweeps/learning_rate.py
  shorter:  ... --seeds=1 --config.epochs=1

All trials differ in two numbers only, the learning rate and the seed, so that --engine=auto may
train many of them in one program. No download; the results are not stated here: run it.
"""

from convjax.config import Data, Experiment, Model, Optimizer
from convjax.sweep.distributions import of
from convjax.sweep.space import Sweep


def get_sweep() -> Sweep:
    """Returns the sweep."""
    rates = [float(f"{1e-4 * 1000 ** (step / 31):.3g}") for step in range(32)]
    return Sweep(
        {"optimizer.learning_rate": of(*rates)},
        Experiment(
            name="learning_rate",
            epochs=2,
            model=Model("small", {"width": 8}),
            data=Data("fashion_mini"),
            optimizer=Optimizer("adamw", weight_decay=2e-2, schedule="one_cycle"),
        ),
        seeds=3,
        sampler="grid",
    )
