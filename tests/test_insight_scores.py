"""Scores and intervals against scikit-learn and SciPy, on random predictions."""

from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from convjax.insight.evaluation.bootstrap import bootstrap
from convjax.insight.evaluation.mistakes import most_confident
from convjax.insight.evaluation.scores import (
    by_class,
    confusion,
    log_softmax,
    macro_f1,
    most_confused,
    negative_log_likelihood,
    rank_of_label,
)

metrics: Any = sklearn.metrics  # It says nothing of types, and what is guessed is wrong.


def drawn(seed, images, classes):
    """Labels and logits that know something of them; the last class may have no image."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, max(classes - seed % 2, 1), images).astype(np.int32)
    logits = draw.normal(size=(images, classes)).astype(np.float32) * 2
    logits[np.arange(images), labels] += 2
    return labels, logits


CASES = [
    (seed, images, classes) for seed, images in enumerate((1, 7, 60, 300)) for classes in (2, 5, 12)
]


@pytest.mark.parametrize("case", CASES)
def test_confusion_precision_recall_and_f1_are_those_of_scikit_learn(case):
    labels, logits = drawn(*case)
    predicted, every = logits.argmax(1), range(case[2])
    matrix = confusion(labels, predicted, case[2])
    np.testing.assert_array_equal(matrix, metrics.confusion_matrix(labels, predicted, labels=every))
    theirs = metrics.precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=0
    )
    for ours, expected in zip(by_class(matrix), theirs):
        np.testing.assert_allclose(ours, expected, rtol=1e-12)
    expected = metrics.f1_score(labels, predicted, average="macro", zero_division=0)
    np.testing.assert_allclose(macro_f1(matrix), expected, rtol=1e-12)


@pytest.mark.parametrize("case", [case for case in CASES if case[2] == 12])
def test_top_k_accuracy_and_loss_are_those_of_scikit_learn(case):
    labels, logits = drawn(*case)
    for k in (1, 3, 5):
        expected = metrics.top_k_accuracy_score(labels, logits, k=k, labels=range(12))
        np.testing.assert_allclose((rank_of_label(logits, labels) < k).mean(), expected)
    probabilities = scipy.special.softmax(logits.astype(np.float64), axis=1)
    expected = metrics.log_loss(labels, probabilities, labels=range(12))
    np.testing.assert_allclose(negative_log_likelihood(logits, labels).mean(), expected, rtol=1e-9)


def test_of_equal_logits_the_first_is_the_answer_as_argmax_has_it():
    logits = np.array([[1.0, 1.0, 0.0]] * 3)
    assert rank_of_label(logits, np.array([0, 1, 2])).tolist() == [0, 1, 2]


def test_large_logits_do_not_overflow():
    logits = np.array([[1e4, 0.0], [-1e4, -1e4]], np.float32)
    np.testing.assert_allclose(log_softmax(logits)[0], [0, -1e4])
    np.testing.assert_allclose(log_softmax(logits)[1], np.log([0.5, 0.5]))


def test_pairs_that_are_mistaken_come_in_order_and_without_the_right_ones():
    matrix = np.array([[90, 2, 0], [7, 50, 1], [0, 0, 4]])
    assert most_confused(matrix, 5) == [(1, 0, 7), (0, 1, 2), (1, 2, 1)]


def test_the_interval_of_a_mean_is_that_of_scipy():
    hit = np.random.default_rng(3).random(500) < 0.8
    low, high = bootstrap(lambda numbers: hit[numbers].mean(), 500, resamples=4000)
    theirs = scipy.stats.bootstrap(
        (hit.astype(float),), np.mean, n_resamples=4000, method="percentile", rng=1
    ).confidence_interval
    # Its ends come by chance themselves; the standard error of the mean is 0.018.
    np.testing.assert_allclose([low, high], theirs, atol=0.004)


def test_the_same_seed_gives_the_same_intervals_and_a_higher_level_wider_ones():
    values = np.random.default_rng(0).normal(size=(50, 2))

    def mean(numbers):
        return values[numbers].mean(0)

    narrow, again = (bootstrap(mean, 50, resamples=200, level=0.5) for _ in range(2))
    wide = bootstrap(mean, 50, resamples=200, level=0.99)
    np.testing.assert_array_equal(narrow, again)
    assert (wide[0] < narrow[0]).all()
    assert (wide[1] > narrow[1]).all()
    with pytest.raises(ValueError, match="an image or more"):
        bootstrap(mean, 0)


def test_the_mistakes_are_the_wrong_ones_surest_first():
    labels, logits = drawn(5, 300, 12)
    found = most_confident(logits, labels, 10)
    probabilities = scipy.special.softmax(logits.astype(np.float64), axis=1)
    wrong = np.flatnonzero(logits.argmax(1) != labels)
    surest = sorted(wrong, key=lambda number: -probabilities[number].max())[:10]
    assert [mistake.number for mistake in found] == surest
    for mistake in found:
        assert mistake.predicted == logits[mistake.number].argmax()
        assert mistake.label == labels[mistake.number]
        np.testing.assert_allclose(mistake.confidence, probabilities[mistake.number].max())
        expected = probabilities[mistake.number, mistake.label]
        np.testing.assert_allclose(mistake.label_probability, expected)


def test_a_network_without_mistakes_has_none_to_show():
    assert most_confident(np.eye(3), np.arange(3), 5) == []
