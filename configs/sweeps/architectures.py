"""Which network for the bundled images: the small ConvNet, LeNet-5 or a ResNet, each with its own.

  command:  python -m experiments.sweep --sweep=configs/sweeps/architectures.py
  shorter:  ... --trials=6 --config.epochs=2

A space with conditions: a width is chosen where the network has one, and stages for the small
ConvNet alone. The learning rate is sought by TPE in 30 points, of which those that fall behind the
median of the others end early; a tenth of the training images is held back to judge them by, so
that the test images judge only what is left. The results are not stated here: run it.
"""

from convjax.config import Data, Experiment, Optimizer
from convjax.sweep.space import Choose, Sweep


def get_sweep() -> Sweep:
    """Returns the sweep."""
    return Sweep(
        networks,
        Experiment(
            name="architectures",
            epochs=4,
            data=Data("fashion_mini", train="train[:90%]", valid="train[90%:]"),
            optimizer=Optimizer("adamw", weight_decay=2e-2, schedule="one_cycle"),
        ),
        trials=30,
        sampler="tpe",
        pruner="median",
        objective="max valid accuracy",
    )


def networks(choose: Choose) -> None:
    """The space: a network, what it takes, and its learning rate."""
    network = choose.of("model.name", "small", "lenet5", "resnet20")
    if network == "small":
        choose.of("model.args.width", 8, 16)
        choose.integers("model.args.stages", 1, 3)
    elif network == "resnet20":
        choose.of("model.args.width", 8, 16)
    choose.log("optimizer.learning_rate", 3e-4, 3e-2)
