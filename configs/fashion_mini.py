"""The bundled part of Fashion-MNIST and the small ConvNet: the first thing to run, no download.

command:  python -m experiments.train
hardware: 2 cores of an AMD EPYC, no GPU
measured: 60 s, test accuracy 0.8893 ± 0.0025 (mean and standard deviation, n = 3 seeds)
"""

from convjax.config import Data, Experiment, Model, Optimizer


def get_config() -> Experiment:
    """Returns the experiment."""
    return Experiment(
        name="fashion_mini",
        epochs=6,
        batch_size=128,
        model=Model("small"),
        data=Data("fashion_mini"),
        optimizer=Optimizer("adamw", learning_rate=3e-3, weight_decay=2e-2, schedule="one_cycle"),
    )
