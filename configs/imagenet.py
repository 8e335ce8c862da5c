"""ImageNet-1k from a folder of images: `:resnet50` (90 epochs) and `:resnet50_a2` (300 epochs).

  command:  python -m experiments.train --config=configs/imagenet.py:resnet50 \\
                --config.data.dir=DIR --config.parallel=sharded
  hardware: 8 GPUs or TPU cores; it cannot be run on 2 cores
  measured: not measured here, as neither the set nor the hardware was at hand. Published top-1
    accuracies: 0.765 of Flax's example after 100 epochs, 0.798 for resnet50_a2 (Wightman et al.,
    2021, ResNet strikes back, table 2)

DIR holds train/SYNSET/*.JPEG and test/SYNSET/*.JPEG; --config.data.test=val names another folder.
"""

from convjax.config import (
    Augment,
    ConfigError,
    Data,
    Experiment,
    Loss,
    Model,
    Optimizer,
)
from convjax.names import nearest


def get_config(arg: str = "resnet50") -> Experiment:
    """Returns the experiment of that name."""
    recipes = {each.__name__: each for each in (resnet50, resnet50_a2)}
    if arg not in recipes:
        raise ConfigError(f"imagenet.py has no {arg!r}: {nearest(arg, recipes)}")
    config = recipes[arg]()
    config.name = f"imagenet-{arg}"
    return config


def resnet50() -> Experiment:
    """ResNet-50 as Flax's ImageNet example: Goyal et al. (2017), but with a cosine."""
    return Experiment(
        epochs=90,
        batch_size=1024,
        eval_batch_size=1024,
        precision="bfloat16",
        model=Model("resnet50"),
        data=Data(
            "image_folder",
            view="random_resized_crop(224)",
            eval_view="centre_crop(224, resize=256)",
            processes=4,
        ),
        optimizer=Optimizer(
            "sgd",
            learning_rate=0.4,  # 0.1 for every 256 images
            weight_decay=1e-4,
            warmup_epochs=5,
            args={"momentum": 0.9, "nesterov": True},
        ),
    )


def resnet50_a2() -> Experiment:
    """ResNet-50 by procedure A2 of Wightman et al. (2021), as timm has it.

    What differs: RandAugment is that of the paper that made it, without timm's noise on its
    strength, and augmentation is not repeated.
    """
    return Experiment(
        epochs=300,
        batch_size=2048,
        eval_batch_size=2048,
        precision="bfloat16",
        model=Model("resnet50", {"drop_path_rate": 0.05}),
        data=Data(
            "image_folder",
            view="random_resized_crop(224, resample=3)",
            eval_view="centre_crop(224, resize=236, resample=3)",
            processes=4,
        ),
        optimizer=Optimizer("lamb", learning_rate=5e-3, weight_decay=0.02, warmup_epochs=5),
        loss=Loss("binary_cross_entropy"),
        augment=Augment(("rand_augment(2, 7)",), "mixup_or_cutmix(0.1, 1.0)"),
    )
