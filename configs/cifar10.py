"""CIFAR-10 without augmentation: ResNet-20 with the CIFAR stem (He et al., 2015, section 4.2).

  command:  python -m experiments.train --config=configs/cifar10.py --config.data.dir=TFDS_DIR
  hardware: 1 GPU is advised; it runs on 2 cores, slowly
  measured: not measured yet, as the set was not at hand

TFDS_DIR is the `data_dir` in which TensorFlow Datasets prepared cifar10 as array records; None
takes its usual one. The paper trains for 164 epochs with pad-and-crop and flips and reaches 0.9125.
"""

from convjax.config import ConfigError, Data, Experiment, Model, Optimizer
from convjax.names import nearest


def get_config(arg: str = "resnet20") -> Experiment:
    """Returns the experiment of `resnet20`, the only one so far."""
    if arg != "resnet20":
        raise ConfigError(f"cifar10.py has no {arg!r}: {nearest(arg, ['resnet20'])}")
    return Experiment(
        name=f"cifar10-{arg}",
        epochs=30,
        model=Model("resnet20"),
        data=Data("cifar10"),
        optimizer=Optimizer(
            "sgd",
            learning_rate=0.1,
            weight_decay=5e-4,
            warmup_epochs=1,
            args={"momentum": 0.9, "nesterov": True},
        ),
    )
