"""How far a result would move with other images of the same kind: bootstrap intervals.

    low, high = bootstrap(lambda numbers: hit[numbers].mean(), images=2000)

Efron and Tibshirani, An introduction to the bootstrap, 1993: the percentile method. What it says
nothing of is another training, with another seed: for that, train several.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95


def bootstrap(
    statistic: Callable[[np.ndarray], Any],
    images: int,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """The lower and upper ends of the interval of each statistic.

    statistic: what the images of these numbers, int `[images]` with repetitions, give: a number or
        several. level: the share of resamples inside.

    >>> hit = np.arange(100) < 90
    >>> low, high = bootstrap(lambda numbers: hit[numbers].mean(), images=100)
    >>> bool(0.8 < low < 0.9 < high < 1)
    True

    Raises:
        ValueError: if there are no images.
    """
    if images < 1:
        raise ValueError("bootstrap needs an image or more")
    draw = np.random.default_rng(seed)
    found = np.stack(
        [np.asarray(statistic(draw.integers(0, images, images))) for _ in range(resamples)]
    )
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high
