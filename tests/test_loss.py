"""Losses and metrics against PyTorch and NumPy, and against what must hold of any sum."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from convjax import config
from convjax.config import ConfigError
from convjax.training.loss import LOSSES, cross_entropy, focal, numbers
from convjax.training.metrics import Metrics, add, correct, means, to_host

rng = np.random.default_rng(0)
LOGITS = rng.normal(size=(7, 5)).astype(np.float32) * 4
LABELS = rng.integers(0, 5, 7).astype(np.int32)
MASK = np.array([1, 0, 1, 1, 0, 1, 1], bool)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_cross_entropy_and_its_gradient_are_those_of_torch(smoothing):
    theirs = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(
        theirs, torch.tensor(LABELS).long(), reduction="sum", label_smoothing=smoothing
    )
    loss.backward()

    def total(logits):
        return cross_entropy(logits, jnp.asarray(LABELS), smoothing=smoothing)[0]

    value, gradient = jax.value_and_grad(total)(jnp.asarray(LOGITS))
    assert theirs.grad is not None
    np.testing.assert_allclose(value, loss.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=1e-6)


def test_a_mask_leaves_out_what_it_hides():
    total, count = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS), jnp.asarray(MASK), 0.1)
    shown, number = cross_entropy(
        jnp.asarray(LOGITS[MASK]), jnp.asarray(LABELS[MASK]), smoothing=0.1
    )
    np.testing.assert_allclose(total, shown, rtol=1e-6)
    assert int(count) == int(number) == 5
    broken = jnp.asarray(LOGITS).at[1].set(jnp.nan)
    assert float(cross_entropy(broken, jnp.asarray(LABELS), jnp.asarray(MASK), 0.1)[0]) == total


def test_smoothing_may_be_a_traced_number_that_compiles_once():
    traces = []

    @jax.jit
    def total(smoothing):
        traces.append(1)
        return cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS), smoothing=smoothing)[0]

    for smoothing in (0.0, 0.2):
        expected = torch.nn.functional.cross_entropy(
            torch.tensor(LOGITS),
            torch.tensor(LABELS).long(),
            reduction="sum",
            label_smoothing=smoothing,
        )
        np.testing.assert_allclose(total(jnp.float32(smoothing)), expected.item(), rtol=1e-5)
    assert len(traces) == 1


def test_the_sum_is_taken_in_float32_whatever_the_logits_are():
    total, _ = cross_entropy(jnp.zeros((3000, 10), jnp.bfloat16), jnp.zeros(3000, jnp.int32))
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(total, 3000 * np.log(10), rtol=1e-5)


@pytest.mark.parametrize("label", [-1, 5, 2**31 - 1, -(2**31)])
def test_a_label_out_of_range_makes_the_loss_nan(label):
    total, _ = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS).at[3].set(label))
    assert np.isnan(total)


def test_a_class_at_minus_infinity_leaves_the_plain_loss_finite():
    logits = jnp.array([[1.0, 2.0, -jnp.inf]])
    total, gradient = jax.value_and_grad(lambda x: cross_entropy(x, jnp.array([0]))[0])(logits)
    np.testing.assert_allclose(total, np.log(1 + np.e), rtol=1e-6)
    np.testing.assert_allclose(gradient[0], [-np.e / (1 + np.e), np.e / (1 + np.e), 0], rtol=1e-6)


def test_extreme_logits_neither_overflow_nor_vanish():
    total, _ = cross_entropy(jnp.array([[1e4, 0.0], [-1e4, 1e4]]), jnp.array([0, 0]))
    assert float(total) == 20000.0


def test_nan_logits_are_never_correct():
    logits = jnp.array([[jnp.nan, 0, 0], [0, jnp.nan, 0], [0, 9, jnp.nan], [0, 9, 0]])
    assert int(correct(logits, jnp.array([0, 1, 1, 1]))) == 1


def test_correct_counts_what_numpy_counts():
    expected = (LOGITS.argmax(-1) == LABELS)[MASK].sum()
    assert int(correct(jnp.asarray(LOGITS), jnp.asarray(LABELS), jnp.asarray(MASK))) == expected


def test_metrics_add_up_and_their_mean_comes_last():
    parts = [Metrics(jnp.float32(3.0), jnp.int32(1), jnp.int32(2)), Metrics(1.0, 3, 6)]
    total = add(*map(to_host, parts))
    assert total == (4.0, 4, 8, 0)
    assert means(total) == {"loss": 0.5, "accuracy": 0.5, "correct": 4, "count": 8}
    assert np.isnan(means(Metrics())["accuracy"])


SOFT = rng.dirichlet(np.ones(5), 7).astype(np.float32)
SOFT[0] = [0.7, 0.3, 0, 0, 0]
WEIGHTS = np.array([1.0, 0.5, 2.0, 0.0, 3.0], np.float32)


def distribution(labels, smoothing):
    """What each class should have, in float64."""
    share = labels if labels.ndim == 2 else np.eye(5)[labels]
    return torch.tensor(share * (1 - smoothing) + smoothing / 5, dtype=torch.float64)


def bce_of_torch(logits, labels, smoothing, weights, target_threshold=None):
    """The formula of timm's BinaryCrossEntropy, the sum over examples of the mean over classes."""
    wanted = distribution(labels, smoothing)
    if target_threshold is not None:
        wanted = wanted.gt(target_threshold).double()
    each = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, wanted, weights, reduction="none"
    )
    return each.mean(1).sum(), len(labels)


def cross_entropy_of_torch(logits, labels, smoothing, weights):
    target = torch.tensor(labels) if labels.ndim == 2 else torch.tensor(labels).long()
    mean = torch.nn.functional.cross_entropy(
        logits, target.double() if labels.ndim == 2 else target, weights, label_smoothing=smoothing
    )
    number = len(labels) if weights is None or labels.ndim == 2 else weights[target].sum()
    return mean * number, number


def focal_of_torch(logits, labels, smoothing, weights, gamma=2.0):
    """- sum over classes of target * (1 - p) ** gamma * log(p)."""
    p = logits.softmax(1)
    terms = -distribution(labels, smoothing) * (1 - p) ** gamma * p.log()
    if weights is None:
        return terms.sum(), len(labels)
    number = len(labels) if labels.ndim == 2 else weights[torch.tensor(labels).long()].sum()
    return (terms * weights).sum(), number


def sigmoid_focal_of_torch(logits, labels, smoothing, weights, gamma=2.0, alpha=0.25):
    """Equation 5 of Lin et al., line by line as torchvision's sigmoid_focal_loss."""
    wanted, p = distribution(labels, smoothing), logits.sigmoid()
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    p_t = p * wanted + (1 - p) * (1 - wanted)
    alpha_t = alpha * wanted + (1 - alpha) * (1 - wanted)
    terms = alpha_t * entropy * (1 - p_t) ** gamma
    return (terms if weights is None else terms * weights).sum(), len(labels)


CASES: dict[str, tuple[Callable, list[dict[str, float]]]] = {
    "cross_entropy": (cross_entropy_of_torch, [{}]),
    "binary_cross_entropy": (bce_of_torch, [{}, {"target_threshold": 0.2}]),
    "focal": (focal_of_torch, [{"gamma": 2.0}, {"gamma": 0.5}]),
    "sigmoid_focal": (
        sigmoid_focal_of_torch,
        [{"gamma": 2.0, "alpha": 0.25}, {"gamma": 3.0, "alpha": 0.6}],
    ),
}


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
@pytest.mark.parametrize("labels", [LABELS, SOFT], ids=["labels", "probabilities"])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_its_count_and_its_gradient_are_those_of_torch(name, labels, weights):
    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def mean(logits, smoothing, weights, numbers):
        total, count = LOSSES[name](
            logits, jnp.asarray(labels), smoothing=smoothing, class_weights=weights, **numbers
        )
        return total / count.astype(jnp.float32), (total, count)

    of_torch, cases = CASES[name]
    by_class = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    for keywords, smoothing in itertools.product(cases, (0.0, 0.2)):
        theirs = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
        expected, number = of_torch(theirs, labels, smoothing, by_class, **keywords)
        (expected / number).backward()
        given: Any = jax.tree.map(jnp.float32, (LOGITS, smoothing, weights, keywords))
        (_, (total, count)), gradient = mean(*given)
        assert theirs.grad is not None
        np.testing.assert_allclose(total, expected.item(), rtol=1e-5)
        np.testing.assert_allclose(count, float(number), rtol=1e-6)
        np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=2e-6)


def test_a_default_is_the_value_of_the_paper():
    for name, values in {
        "focal": {"gamma": 2.0},
        "sigmoid_focal": {"gamma": 2.0, "alpha": 0.25},
    }.items():
        given = jnp.asarray(LOGITS), jnp.asarray(LABELS)
        np.testing.assert_array_equal(LOSSES[name](*given)[0], LOSSES[name](*given, **values)[0])


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_leaves_out_what_a_mask_hides(name, weights):
    numbers = {"class_weights": None if weights is None else jnp.asarray(weights)}
    broken = jnp.asarray(LOGITS).at[1].set(jnp.nan)
    for labels in (LABELS, SOFT):
        found = LOSSES[name](broken, jnp.asarray(labels), jnp.asarray(MASK), 0.1, **numbers)
        shown = jnp.asarray(LOGITS[MASK]), jnp.asarray(labels[MASK])
        expected = LOSSES[name](*shown, smoothing=0.1, **numbers)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_takes_a_label_out_of_range_or_probabilities_of_other_classes(name):
    for label in (-1, 5):
        labels = jnp.asarray(LABELS).at[3].set(label)
        assert np.isnan(LOSSES[name](jnp.asarray(LOGITS), labels)[0])
    with pytest.raises(
        ValueError, match=r"labels are float32\[7,4\]: .* probabilities, \[batch,5\]"
    ):
        LOSSES[name](jnp.asarray(LOGITS), jnp.zeros((7, 4)))


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_of_what_is_certain_is_finite(name):
    """Of logits at which a float32 knows only the probabilities 0 and 1."""
    logits = jnp.array([[200.0, -200.0, 0.0], [-200.0, 200.0, 0.0]])
    labels = jnp.array([0, 0])
    keywords = {"gamma": 0.5} if "focal" in name else {}
    gradient = jax.grad(lambda x: LOSSES[name](x, labels, smoothing=0.0, **keywords)[0])(logits)
    assert np.isfinite(gradient).all()


def test_a_class_at_minus_infinity_leaves_the_loss_of_probabilities_finite():
    logits = jnp.array([[1.0, 2.0, -jnp.inf]])
    for loss, keywords in ((cross_entropy, {}), (focal, {"gamma": 0.0})):

        def total(x, loss=loss, keywords=keywords):
            return loss(x, jnp.array([[0.25, 0.75, 0.0]]), **keywords)[0]

        value, gradient = jax.value_and_grad(total)(logits)
        p = 1 / (1 + np.e)
        np.testing.assert_allclose(value, -0.25 * np.log(p) - 0.75 * np.log(1 - p), rtol=1e-6)
        np.testing.assert_allclose(gradient[0], [p - 0.25, 0.25 - p, 0], rtol=1e-5, atol=1e-7)


def test_focal_without_gamma_is_the_cross_entropy():
    found = focal(jnp.asarray(LOGITS), jnp.asarray(LABELS), gamma=0.0)
    np.testing.assert_allclose(found, cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS)))


def test_the_keywords_of_a_config_become_those_of_its_loss():
    assert numbers(config.Loss(), 3) == {}
    assert numbers(config.Loss("focal", args={"gamma": 1}), 3) == {"gamma": 1}
    weighted = config.Loss("sigmoid_focal", 0.0, (1.0, 2.0), {"alpha": 0.5})
    assert numbers(weighted, 2) == {"alpha": 0.5, "class_weights": (1.0, 2.0)}


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (config.Loss("focus"), r"loss\.name is 'focus': did you mean 'focal'"),
        (config.Loss("focal", args={"gama": 2}), r"'gama', which focal does not.* 'gamma'"),
        (config.Loss(args={"gamma": 2}), r"'gamma', which cross_entropy does not take: there is n"),
        (config.Loss("focal", args={"gamma": -1}), r"gamma is -1: give a number of 0 or more"),
        (config.Loss("focal", args={"gamma": "2"}), r"gamma is '2': give a number"),
        (config.Loss("sigmoid_focal", args={"alpha": 2}), r"alpha is 2: give a number from 0 to 1"),
        (config.Loss(class_weights=(1.0, 2.0)), r"class_weights has 2 numbers: .* have 3 classes"),
    ],
)
def test_a_loss_that_does_not_take_its_keywords_is_refused(chosen, message):
    with pytest.raises(ConfigError, match=message):
        numbers(chosen, 3)
