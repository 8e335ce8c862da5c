"""Calibration against scikit-learn, SciPy, and pencil and paper."""

from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.special
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from convjax.insight.evaluation.calibration import calibration, reliability, temperature


def drawn(seed, images=400, classes=6, scale=3.0):
    """Labels that follow a network's probabilities, and its logits, `scale` times too large."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(images, classes)) * 2
    probabilities = scipy.special.softmax(logits, axis=1)
    labels = np.array([draw.choice(classes, p=row) for row in probabilities])
    return labels, (scale * logits).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bins", [1, 4, 15])
def test_bins_and_their_means_are_those_of_scikit_learn(seed, bins):
    labels, logits = drawn(seed)
    probabilities = scipy.special.softmax(logits.astype(np.float64), axis=1)
    confidence, hit = probabilities.max(1), probabilities.argmax(1) == labels
    found = reliability(confidence, hit, bins)
    there = found.count > 0
    accuracy, sure = calibration_curve(hit, confidence, n_bins=bins)
    np.testing.assert_allclose(found.accuracy[there], accuracy)
    np.testing.assert_allclose(found.confidence[there], sure)
    counts, _ = np.histogram(confidence, bins=np.linspace(0, 1, bins + 1))
    np.testing.assert_array_equal(found.count, counts)
    np.testing.assert_allclose(
        found.error, (np.abs(accuracy - sure) * counts[there]).sum() / len(hit)
    )
    np.testing.assert_allclose(found.largest, np.abs(accuracy - sure).max())
    both = calibration(logits, labels, bins)
    np.testing.assert_allclose(both.reliability.error, found.error)
    np.testing.assert_allclose(both.loss, log_loss(labels, probabilities, labels=range(6)))


def test_the_error_is_the_mean_distance_over_images():
    # Two bins: 3 images at 0.4, of which 1 is right; 2 at 0.9, both right.
    found = reliability(np.array([0.4, 0.4, 0.4, 0.9, 0.9]), np.array([1, 0, 0, 1, 1]), bins=2)
    assert found.count.tolist() == [3, 2]
    np.testing.assert_allclose(found.error, (3 * abs(1 / 3 - 0.4) + 2 * abs(1 - 0.9)) / 5)


def test_a_confidence_on_an_edge_is_of_the_bin_below():
    assert reliability(np.array([0.5, 1.0, 0.0]), np.ones(3), bins=2).count.tolist() == [2, 1]


def test_an_empty_bin_has_no_means_and_no_part_in_the_error():
    found = reliability(np.array([0.95]), np.array([True]), bins=10)
    assert np.isnan(found.accuracy[:-1]).all()
    np.testing.assert_allclose(found.error, 0.05)


@pytest.mark.parametrize("confidence", [[np.nan], [1.5], [-0.1]])
def test_what_is_no_probability_is_refused(confidence):
    with pytest.raises(ValueError, match="is to be in"):
        reliability(np.array(confidence), np.array([True]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_the_temperature_is_the_minimum_that_scipy_finds(seed, scale):
    labels, logits = drawn(seed, scale=scale)

    def loss(t):
        return log_loss(labels, scipy.special.softmax(logits / t, axis=1), labels=range(6))

    logits = logits.astype(np.float64)
    theirs: Any = scipy.optimize.minimize_scalar(loss, bounds=(0.05, 20), options={"xatol": 1e-9})
    np.testing.assert_allclose(temperature(logits, labels), theirs.x, rtol=1e-4)
    # The labels were drawn by the logits divided by `scale`.
    np.testing.assert_allclose(temperature(logits, labels), scale, rtol=0.25)


def test_scaling_by_the_temperature_calibrates_other_images():
    labels, logits = drawn(1, images=4000)
    best = temperature(logits[:2000], labels[:2000])
    before = calibration(logits[2000:], labels[2000:])
    after = calibration(logits[2000:] / best, labels[2000:])
    assert after.reliability.error < before.reliability.error / 3
    assert after.loss < before.loss


def test_a_network_that_is_always_right_or_surely_wrong_has_the_ends_of_the_range():
    logits = np.eye(3) * 2
    np.testing.assert_allclose(temperature(logits, np.arange(3)), 1e-3, rtol=1e-6)
    np.testing.assert_allclose(temperature(logits, np.array([1, 2, 0])), 1e3, rtol=1e-6)
    assert temperature(np.full((3, 4), 2.0), np.arange(3)) == 1
    # Always wrong, but by little: at inverse b the loss is log(1 + exp(b / 10) + exp(-5 b)), whose
    # slope is 0 at exp(5.1 b) = 50.
    wrong = np.tile([2.0, 1.9, -3.1], (4, 1))
    np.testing.assert_allclose(temperature(wrong, np.ones(4, int)), 5.1 / np.log(50), rtol=1e-6)


def test_a_temperature_needs_finite_logits():
    with pytest.raises(ValueError, match="finite logits of an image or more"):
        temperature(np.array([[np.nan, 1.0]]), np.array([0]))
    with pytest.raises(ValueError, match="finite logits of an image or more"):
        temperature(np.zeros((0, 3)), np.zeros(0, int))
