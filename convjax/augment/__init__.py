"""Random changes of images on the device, inside the compiled step: `(key, images) -> images`.

    from convjax.augment import augment, crop, flip, rand_augment
    change = augment(crop(4), flip(), rand_augment(2, 9))
    images = change(key, images)

Where to look: `compose` says what an augmentation is; `geometric`, `color`, `erase`, `policies`,
`autoaugment` and `mix` draw; `warp` (pixels move) and `enhance` (colours change) do what was drawn;
`named` reads what a config writes.
"""

from convjax.augment.autoaugment import auto_augment
from convjax.augment.color import (
    autocontrast,
    color_jitter,
    equalize,
    gaussian_blur,
    grayscale,
    invert,
    posterize,
    sharpness,
    solarize,
)
from convjax.augment.compose import Augmentation, Draw, augment, sometimes
from convjax.augment.erase import cutout, random_erasing
from convjax.augment.geometric import (
    alternating_flip,
    crop,
    flip,
    random_resized_crop,
    rotate,
    shear,
    translate,
    vertical_flip,
)
from convjax.augment.mix import cutmix, mixup, mixup_or_cutmix
from convjax.augment.policies import rand_augment, trivial_augment

__all__ = [
    "Augmentation",
    "Draw",
    "alternating_flip",
    "augment",
    "auto_augment",
    "autocontrast",
    "color_jitter",
    "crop",
    "cutmix",
    "cutout",
    "equalize",
    "flip",
    "gaussian_blur",
    "grayscale",
    "invert",
    "mixup",
    "mixup_or_cutmix",
    "posterize",
    "rand_augment",
    "random_erasing",
    "random_resized_crop",
    "rotate",
    "sharpness",
    "shear",
    "solarize",
    "sometimes",
    "translate",
    "trivial_augment",
    "vertical_flip",
]
