"""AutoAugment: the pairs of operations that were learned on three data sets, one an image.

    augment(crop(4), flip(), auto_augment("cifar10"), cutout(16))

Images are as those of `policies`, whose operations these are.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from convjax.augment.arguments import (
    Pixel,
    below,
    colored,
    filling,
    one_of,
    probability,
    within,
)
from convjax.augment.compose import Augmentation, Draw
from convjax.augment.policies import (
    IDENTITY,
    OPERATIONS,
    apply_operations,
    magnitude_ranges,
    strengths,
)

# Its name, its probability, and its magnitude, 0 to 9.
Operation = tuple[str, float, float]
Subpolicy = tuple[Operation, Operation]


def auto_augment(
    policy: str | Sequence[Subpolicy] = "imagenet", *, fill: Pixel = 0
) -> Augmentation:
    """Applies one of a policy's pairs of operations, each at its probability and magnitude.

    policy: "imagenet", "cifar10" or "svhn" for the 25 pairs that were learned on it, or pairs of
        your own, each of two `(operation, probability, magnitude 0 to 9)`.

    Cubuk et al., AutoAugment: Learning Augmentation Strategies from Data, 2018 (arXiv 1805.09501);
    operations, ranges and signs of `torchvision.transforms.AutoAugment`. fill: as for
    `rand_augment`. Raises ValueError for an unknown policy or operation, or numbers out of range.
    """
    op = "auto_augment"
    tables = _tables(op, policy)
    filling(op, "fill", fill)

    def apply(draw: Draw, uniform: Array, images: Array) -> Array:
        images = colored(op, images)
        kinds, chances, shares = (jnp.asarray(table) for table in tables)
        drawn = below(uniform[:, 0], len(kinds))
        kind, share = kinds[drawn], shares[drawn]
        # As in torchvision, where a draw equal to the probability counts.
        kind = jnp.where(uniform[:, 1:3] <= chances[drawn], kind, IDENTITY)
        negative = uniform[:, 3:5] < 0.5
        strength = strengths(kind, share, negative, magnitude_ranges(*images.shape[1:3]))
        return apply_operations(images, kind, strength, fill=fill)

    return Augmentation(op, 5, apply)


def _tables(
    op: str, policy: str | Sequence[Subpolicy]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Operations, probabilities and shares of the range, `[pairs, 2]` each."""
    if isinstance(policy, str):
        one_of(op, "policy", policy, tuple(SUBPOLICIES))
        policy = SUBPOLICIES[policy]
    for pair in policy:
        if len(pair) != 2 or any(len(operation) != 3 for operation in pair):
            raise ValueError(
                f"{op}: a policy is of pairs of (operation, probability, magnitude), got {pair!r}"
            )
        for name, chance, magnitude in pair:
            one_of(op, "operation", name, OPERATIONS)
            probability(op, chance)
            within(op, "magnitude", magnitude, 0, _STEPS)
    if not policy:
        raise ValueError(f"{op}: a policy needs a pair of operations or more, got {policy!r}")
    table = [[(OPERATIONS.index(name), p, step / _STEPS) for name, p, step in x] for x in policy]
    kinds, chances, shares = np.moveaxis(np.array(table, np.float32), -1, 0)
    return kinds.astype(np.int32), chances, shares


_STEPS = 9  # the largest magnitude


# -- The learned policies --------------------------------------------------------------------------


def _pairs(table: str) -> tuple[Subpolicy, ...]:
    """Pairs, one a line, of a table without magnitudes where an operation has none."""

    def operation(words: str) -> Operation:
        name, probability, *magnitude = words.split()
        return name, float(probability), float(*magnitude)

    lines = (line.split(",") for line in table.strip().splitlines())
    return tuple((operation(first), operation(second)) for first, second in lines)


# Appendix A of the paper, tables 7 to 9.
SUBPOLICIES: dict[str, tuple[Subpolicy, ...]] = {
    "imagenet": _pairs(
        """
        posterize 0.4 8, rotate 0.6 9
        solarize 0.6 5, autocontrast 0.6
        equalize 0.8, equalize 0.6
        posterize 0.6 7, posterize 0.6 6
        equalize 0.4, solarize 0.2 4
        equalize 0.4, rotate 0.8 8
        solarize 0.6 3, equalize 0.6
        posterize 0.8 5, equalize 1.0
        rotate 0.2 3, solarize 0.6 8
        equalize 0.6, posterize 0.4 6
        rotate 0.8 8, color 0.4 0
        rotate 0.4 9, equalize 0.6
        equalize 0.0, equalize 0.8
        invert 0.6, equalize 1.0
        color 0.6 4, contrast 1.0 8
        rotate 0.8 8, color 1.0 2
        color 0.8 8, solarize 0.8 7
        sharpness 0.4 7, invert 0.6
        shear_x 0.6 5, equalize 1.0
        color 0.4 0, equalize 0.6
        equalize 0.4, solarize 0.2 4
        solarize 0.6 5, autocontrast 0.6
        invert 0.6, equalize 1.0
        color 0.6 4, contrast 1.0 8
        equalize 0.8, equalize 0.6
        """
    ),
    "cifar10": _pairs(
        """
        invert 0.1, contrast 0.2 6
        rotate 0.7 2, translate_x 0.3 9
        sharpness 0.8 1, sharpness 0.9 3
        shear_y 0.5 8, translate_y 0.7 9
        autocontrast 0.5, equalize 0.9
        shear_y 0.2 7, posterize 0.3 7
        color 0.4 3, brightness 0.6 7
        sharpness 0.3 9, brightness 0.7 9
        equalize 0.6, equalize 0.5
        contrast 0.6 7, sharpness 0.6 5
        color 0.7 7, translate_x 0.5 8
        equalize 0.3, autocontrast 0.4
        translate_y 0.4 3, sharpness 0.2 6
        brightness 0.9 6, color 0.2 8
        solarize 0.5 2, invert 0.0
        equalize 0.2, autocontrast 0.6
        equalize 0.2, equalize 0.6
        color 0.9 9, equalize 0.6
        autocontrast 0.8, solarize 0.2 8
        brightness 0.1 3, color 0.7 0
        solarize 0.4 5, autocontrast 0.9
        translate_y 0.9 9, translate_y 0.7 9
        autocontrast 0.9, solarize 0.8 3
        equalize 0.8, invert 0.1
        translate_y 0.7 9, autocontrast 0.9
        """
    ),
    "svhn": _pairs(
        """
        shear_x 0.9 4, invert 0.2
        shear_y 0.9 8, invert 0.7
        equalize 0.6, solarize 0.6 6
        invert 0.9, equalize 0.6
        equalize 0.6, rotate 0.9 3
        shear_x 0.9 4, autocontrast 0.8
        shear_y 0.9 8, invert 0.4
        shear_y 0.9 5, solarize 0.2 6
        invert 0.9, autocontrast 0.8
        equalize 0.6, rotate 0.9 3
        shear_x 0.9 4, solarize 0.3 3
        shear_y 0.8 8, invert 0.7
        equalize 0.9, translate_y 0.6 6
        invert 0.9, equalize 0.6
        contrast 0.3 3, rotate 0.8 4
        invert 0.8, translate_y 0.0 2
        shear_y 0.7 6, solarize 0.4 8
        invert 0.6, rotate 0.8 4
        shear_y 0.3 7, translate_x 0.9 3
        shear_x 0.1 6, invert 0.6
        solarize 0.7 2, translate_y 0.6 7
        shear_y 0.8 4, invert 0.8
        shear_x 0.7 9, translate_y 0.8 3
        shear_y 0.8 5, autocontrast 0.7
        shear_x 0.7 2, invert 0.1
        """
    ),
}
