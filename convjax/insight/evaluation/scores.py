"""How well a network classifies, beyond the share that it gets right.

    matrix = confusion(labels, logits.argmax(1), classes=10)
    precision, recall, f1, count = by_class(matrix)

All of it is NumPy in double precision, on the predictions of a whole split.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class ByClass(NamedTuple):
    """Scores of each class, `[classes]`.

    precision: of the images that were taken for the class, the share that are of it.
    recall: of the images of the class, the share that were taken for it.
    f1: the harmonic mean of the two. count: how many images of the class there are.

    Where there are no images to be a share of, it is 0, as scikit-learn has it by default.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    count: np.ndarray


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """How many images of each class were taken for each: int `[classes, classes]`, row by label.

    >>> confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), classes=2)
    array([[1, 1],
           [0, 1]])
    """
    cells = np.asarray(labels, np.int64) * classes + np.asarray(predicted, np.int64)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def by_class(matrix: np.ndarray) -> ByClass:
    """Precision, recall and F1 of each class, from a confusion matrix."""
    hits, count, taken = np.diagonal(matrix), matrix.sum(1), matrix.sum(0)
    return ByClass(_share(hits, taken), _share(hits, count), _share(2 * hits, count + taken), count)


def macro_f1(matrix: np.ndarray) -> float:
    """The mean of the classes' F1, each class counting alike.

    Classes without images that none was taken for do not count.
    """
    scores = by_class(matrix)
    there = (matrix.sum(0) + matrix.sum(1)) > 0
    return float(scores.f1[there].mean()) if there.any() else 0.0


def rank_of_label(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes the network finds likelier than the right one, int `[images]`.

    0 is a hit, and less than 5 a top-5 hit. Of equal logits the first class is the likelier, as
    `argmax` has it.
    """
    own = np.take_along_axis(logits, labels[:, None], 1)
    before = np.arange(logits.shape[1])[None] < labels[:, None]
    return ((logits > own) | ((logits == own) & before)).sum(1)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """The logarithms of the probabilities, float64 `[images, classes]`."""
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of each image, minus the logarithm of the probability of its label, float64 `[images]`.

    Its mean is the cross-entropy that the closing line calls loss.
    """
    return -np.take_along_axis(log_softmax(logits), labels[:, None], 1)[:, 0]


def most_confused(matrix: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    """The pairs of classes that are mistaken most often: (label, taken for, how often).

    >>> most_confused(np.array([[5, 3], [1, 9]]), 2)
    [(0, 1, 3), (1, 0, 1)]
    """
    wrong = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = (divmod(int(cell), len(matrix)) for cell in order)
    return [
        (label, taken, int(wrong[label, taken])) for label, taken in pairs if wrong[label, taken]
    ]


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), 0.0)
