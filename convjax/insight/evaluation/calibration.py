"""Whether a network is as often right as it is sure: reliability, its error, and how to mend it.

    found = reliability(confidence, hit, bins=15)
    found.error                                     # ECE: 0 for a network that knows what it knows
    logits / temperature(valid_logits, valid_labels)

Guo, Pleiss, Sun and Weinberger, On calibration of modern neural networks, 2017 (arXiv 1706.04599).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from convjax.insight.evaluation.scores import log_softmax, negative_log_likelihood

BINS = 15  # as in the paper


class Reliability(NamedTuple):
    """Images in bins of equal width by confidence, the probability of what they were taken for.

    edges: `[bins + 1]`, from 0 to 1; a bin holds its upper edge and not its lower one.
    count: images in each bin. confidence, accuracy: their means, NaN in an empty bin.
    error: the expected calibration error, the mean distance of the two over images.
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error (ECE)."""
        return float(_share(self.gaps * self.count, self.count.sum()).sum())

    @property
    def largest(self) -> float:
        """The largest distance of a bin (maximum calibration error, MCE)."""
        return float(self.gaps.max(initial=0.0))

    @property
    def gaps(self) -> np.ndarray:
        """How far confidence and accuracy of each bin are apart; 0 of an empty one."""
        return np.where(self.count > 0, np.abs(self.accuracy - self.confidence), 0.0)


def reliability(confidence: np.ndarray, hit: np.ndarray, bins: int = BINS) -> Reliability:
    """Confidence and accuracy by bins of confidence.

    confidence: in [0, 1], of each image. hit: bool, whether its class is the right one.

    Raises:
        ValueError: for fewer bins than one, or a confidence that is not in [0, 1].
    """
    confidence = np.asarray(confidence, np.float64)
    if bins < 1:
        raise ValueError(f"reliability needs 1 bin or more, got {bins}")
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError("reliability: each confidence is to be in [0, 1], and not NaN")
    edges = np.linspace(0, 1, bins + 1)
    number = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(number, minlength=bins)
    sums = (np.bincount(number, each, bins) for each in (confidence, np.asarray(hit, np.float64)))
    return Reliability(edges, count, *(_share(each, count, np.nan) for each in sums))


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The number that logits are to be divided by for the least negative log-likelihood.

    Above 1 the network was too sure of itself. The function is convex in 1 / temperature, and its
    minimum is found by bisecting on its slope, to 1e-9 of itself, between 0.001 and 1000. It ends
    at the one where all images are right, and at the other where equal logits would be the best.

    logits: float `[images, classes]`; labels: int `[images]`: not those that it is judged by.

    Raises:
        ValueError: if there are no images, or a logit is not finite.
    """
    logits = np.asarray(logits, np.float64)
    if not len(logits) or not np.isfinite(logits).all():
        raise ValueError(f"temperature needs finite logits of an image or more, got {logits.shape}")
    own = np.take_along_axis(logits, labels[:, None], 1)[:, 0]

    def slope(inverse: float) -> float:
        """The derivative of the mean loss by 1 / temperature."""
        mean = (np.exp(log_softmax(logits * inverse)) * logits).sum(1)
        return float((mean - own).mean())

    if not np.ptp(logits, axis=1).any():
        return 1.0  # All classes are equally likely at any temperature.
    low, high = 1e-3, 1e3
    while high / low > 1 + 1e-9:
        middle = float(np.sqrt(low * high))
        # Where the right classes have all of the probability, to rounding, the slope is 0.
        low, high = (middle, high) if slope(middle) <= 0 else (low, middle)
    return 1 / low


class Calibration(NamedTuple):
    """How sure a network is of what it says: reliability and mean loss of the same images."""

    reliability: Reliability
    loss: float


def calibration(logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Calibration:
    """Reliability and negative log-likelihood of a network by its logits `[images, classes]`."""
    confidence = np.exp(log_softmax(logits)).max(1).clip(0, 1)
    found = reliability(confidence, logits.argmax(1) == labels, bins)
    return Calibration(found, float(negative_log_likelihood(logits, labels).mean()))


def _share(part: np.ndarray, whole: np.ndarray, empty: float = 0.0) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), empty)
