"""The mistakes that a network is surest of: labels that are wrong, or what it has not understood.

for mistake in most_confident(logits, labels, 16):
    print(mistake.number, mistake.label, mistake.predicted, mistake.confidence)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from convjax.insight.evaluation.scores import log_softmax


class Mistake(NamedTuple):
    """An image that was taken for another class.

    number: of the image in its split. label, predicted: numbers of classes.
    confidence: the probability of the predicted class. label_probability: that of the label.
    """

    number: int
    label: int
    predicted: int
    confidence: float
    label_probability: float


def most_confident(logits: np.ndarray, labels: np.ndarray, count: int) -> list[Mistake]:
    """The wrong predictions of highest confidence, at most `count`, surest first.

    >>> most_confident(np.array([[0.0, 9.0], [0.0, 1.0], [2.0, 0.0]]), np.array([0, 0, 0]), 1)
    [Mistake(number=0, label=0, predicted=1, confidence=0.99987..., label_probability=0.00012...)]
    """
    probabilities = np.exp(log_softmax(logits))
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(predicted != labels)
    order = wrong[np.argsort(-confidence[wrong], kind="stable")[:count]]
    return [
        Mistake(
            *map(int, (number, labels[number], predicted[number])),
            *map(float, (confidence[number], probabilities[number, labels[number]])),
        )
        for number in order
    ]
