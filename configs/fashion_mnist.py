"""All of Fashion-MNIST: `:lenet`, `:small` and `:resnet20` as it is, `:erasing` augmented.

  command:  python -m experiments.train --config=configs/fashion_mnist.py:small
  hardware: 2 cores of an AMD EPYC, no GPU
  measured: test accuracy on the 10,000 images, mean and standard deviation over seeds 0 to n - 1
    small     694 s, 0.9271 ± 0.0014 (n = 3; the machine had other work at the same time)
    lenet     142 s, 0.9044 ± 0.0014 (n = 3; likewise)
    resnet20  not measured yet: a step takes several times as long as that of small
    erasing   not measured here (300 epochs want a GPU); published 0.9555 ± 0.0004

The data (Xiao et al., 2017) are four IDX files, looked for in --config.data.dir or in the usual
places, such as the folder of Debian's package dataset-fashion-mnist.
"""

from convjax.config import Augment, ConfigError, Data, Experiment, Loss, Model, Optimizer
from convjax.names import nearest


def get_config(arg: str = "small") -> Experiment:
    """Returns the experiment of `lenet`, `small`, `resnet20` or `erasing`."""
    recipes = {each.__name__: each for each in (lenet, small, resnet20, erasing)}
    if arg not in recipes:
        raise ConfigError(f"fashion_mnist.py has no {arg!r}: {nearest(arg, recipes)}")
    config = recipes[arg]()
    config.name = f"fashion_mnist-{arg}"
    config.data = Data("fashion_mnist")
    return config


def lenet() -> Experiment:
    """LeNet-5 (LeCun et al., 1998) with Adam."""
    return Experiment(
        epochs=10,
        model=Model("lenet5"),
        optimizer=Optimizer("adam", learning_rate=2e-3, warmup_epochs=1),
    )


def small() -> Experiment:
    """The small ConvNet with AdamW, one cycle and label smoothing."""
    return Experiment(
        epochs=8,
        model=Model("small"),
        optimizer=Optimizer("adamw", learning_rate=3e-3, weight_decay=2e-2, schedule="one_cycle"),
        loss=Loss(label_smoothing=0.1),
    )


def resnet20() -> Experiment:
    """ResNet-20 (He et al., 2015, section 4.2) with SGD and Nesterov momentum."""
    return Experiment(
        epochs=20,
        model=Model("resnet20"),
        optimizer=Optimizer(
            "sgd",
            learning_rate=0.1,
            weight_decay=5e-4,
            warmup_epochs=1,
            args={"momentum": 0.9, "nesterov": True},
        ),
    )


def erasing() -> Experiment:
    """ResNet-20 with crop, flip and random erasing (Zhong et al., 2017), as its code trains it."""
    return Experiment(
        epochs=300,
        model=Model("resnet20"),
        optimizer=Optimizer(
            "sgd",
            learning_rate=0.1,
            weight_decay=5e-4,
            decay=("*",),
            schedule="step",
            schedule_args={"milestone_epochs": (150, 225)},
            args={"momentum": 0.9},
        ),
        augment=Augment(("crop(4)", "flip", "random_erasing(0.5, scale=(0.02, 0.4))")),
    )
