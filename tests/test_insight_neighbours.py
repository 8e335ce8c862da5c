"""Votes of neighbours and linear probes against scikit-learn."""

from typing import Any

import numpy as np
import pytest
import scipy.special
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from convjax.insight.evaluation import neighbours
from convjax.insight.evaluation.neighbours import Nearest, neighbour_votes
from convjax.insight.evaluation.probe import fit_probe


def drawn(seed, known=120, images=40, size=9, classes=4):
    """Features that lie about the centre of their class: known ones and others."""
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(classes, size))
    labels = draw.integers(0, classes, known + images)
    features = (centres[labels] + draw.normal(size=(known + images, size)) * 1.2).astype(np.float32)
    return features[:known], labels[:known], features[known:], labels[known:]


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (120, 0.5)])
@pytest.mark.parametrize("part", [16384, 50])
def test_votes_are_those_of_scikit_learn_by_cosine(monkeypatch, k, temperature, part):
    monkeypatch.setattr(neighbours, "_PART", part)  # The bank in one piece, or in several.
    bank, bank_labels, features, _ = drawn(0)
    weights: Any = lambda distance: np.exp((1 - distance) / temperature)  # noqa: E731
    theirs = KNeighborsClassifier(k, metric="cosine", weights=weights).fit(bank, bank_labels)
    votes = neighbour_votes(bank, bank_labels, features, classes=4, k=k, temperature=temperature)
    shares = votes / votes.sum(1, keepdims=True)
    np.testing.assert_allclose(shares, theirs.predict_proba(features), atol=2e-4)
    np.testing.assert_array_equal(votes.argmax(1), theirs.predict(features))


@pytest.mark.parametrize("part", [16384, 50, 7])
def test_known_images_that_go_by_in_parts_are_as_near_as_all_at_once(monkeypatch, part):
    monkeypatch.setattr(neighbours, "_PART", part)
    bank, bank_labels, features, _ = drawn(7)
    bank[60:] = bank[:60]  # Of equals the first that went by are the nearest.
    nearest = Nearest(features, k=5)
    for some in np.split(np.arange(120), [1, 40, 40, 110]):
        nearest.see(bank[some], bank_labels[some])
    unit = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    alike = features / np.linalg.norm(features, axis=1, keepdims=True) @ unit.T
    first = np.argsort(-alike.round(6), axis=1, kind="stable")[:, :5]
    similar = np.take_along_axis(alike, first, 1)
    expected = np.zeros((40, 4))
    weights = np.exp((similar - similar[:, :1]) / 0.07)
    np.add.at(expected, (np.arange(40)[:, None], bank_labels[first]), weights)
    np.testing.assert_allclose(nearest.votes(classes=4), expected, atol=1e-4)


def test_an_image_that_is_known_is_its_own_nearest_neighbour():
    bank, bank_labels, _, _ = drawn(1)
    votes = neighbour_votes(bank, bank_labels, 3 * bank, classes=4, k=1)
    np.testing.assert_array_equal(votes.argmax(1), bank_labels)


def test_the_smallest_temperature_does_not_overflow():
    bank, bank_labels, features, _ = drawn(2)
    votes = neighbour_votes(bank, bank_labels, features, classes=4, k=5, temperature=1e-4)
    nearest = neighbour_votes(bank, bank_labels, features, classes=4, k=1)
    assert np.isfinite(votes).all()
    np.testing.assert_array_equal(votes.argmax(1), nearest.argmax(1))


def test_features_of_zeros_are_like_nothing_and_give_no_nan():
    bank, bank_labels, features, _ = drawn(3)
    bank[:5] = 0
    features[0] = 0
    votes = neighbour_votes(bank, bank_labels, features, classes=4, k=10)
    assert np.isfinite(votes).all()
    np.testing.assert_allclose(votes[0].sum(), 10, rtol=1e-5)  # All are at similarity 0.


@pytest.mark.parametrize("k", [0, 121])
def test_as_many_neighbours_as_there_are_images_at_most(k):
    bank, bank_labels, features, _ = drawn(4)
    with pytest.raises(ValueError, match="give 1 to 120"):
        neighbour_votes(bank, bank_labels, features, classes=4, k=k)


@pytest.mark.parametrize("penalty", [1.0, 20.0])
def test_a_probe_is_the_logistic_regression_of_scikit_learn(penalty):
    bank, bank_labels, features, labels = drawn(5)
    bank[:, 3] = bank[:, 3] * 1000 + 500  # A scale of its own, which must not matter.
    features[:, 3] = features[:, 3] * 1000 + 500
    scaler = StandardScaler().fit(bank)
    theirs = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=5000)
    theirs.fit(scaler.transform(bank), bank_labels)
    probe = fit_probe(bank, bank_labels, classes=4, penalty=penalty, tolerance=1e-5)
    assert probe.converged
    assert probe.slope <= 1e-5
    logits = probe.logits(features)
    expected = theirs.decision_function(scaler.transform(features))
    # All logits of an image may move together.
    centred = (each - each.mean(1, keepdims=True) for each in (logits, expected))
    np.testing.assert_allclose(*centred, atol=5e-3)
    np.testing.assert_array_equal(logits.argmax(1), theirs.predict(scaler.transform(features)))
    assert (logits.argmax(1) == labels).mean() > 0.6


def test_a_probe_whose_steps_end_first_says_so():
    bank, bank_labels, _, _ = drawn(5)
    probe = fit_probe(bank, bank_labels, classes=4, steps=2)
    assert (probe.steps, probe.converged) == (2, False)
    # The gradient of the standardised problem after these steps, in NumPy.
    scaled = (bank - bank.mean(0)) / bank.std(0)
    shares = scipy.special.softmax(scaled @ probe.kernel + probe.bias, axis=1)
    away = shares - np.eye(4)[bank_labels]
    by_kernel = (scaled.T @ away + probe.kernel) / len(bank)
    expected = max(np.abs(by_kernel).max(), np.abs(away.mean(0)).max())
    np.testing.assert_allclose(probe.slope, expected, rtol=1e-3)


def test_a_feature_that_never_varies_counts_for_nothing():
    bank, bank_labels, features, _ = drawn(6)
    alone = fit_probe(bank, bank_labels, classes=4).logits(features)
    constant = np.full((len(bank), 1), 7.0, np.float32)
    beside = np.concatenate([bank, constant], 1)
    # What it happens to be in other images does not matter either.
    others = np.concatenate([features, np.full((len(features), 1), 9.0, np.float32)], 1)
    found = fit_probe(beside, bank_labels, classes=4).logits(others)
    np.testing.assert_allclose(found, alone, atol=1e-2)


def test_a_probe_needs_finite_features():
    with pytest.raises(ValueError, match="finite features"):
        fit_probe(np.array([[np.nan]]), np.array([0]), classes=2)
