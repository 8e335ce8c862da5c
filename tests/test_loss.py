"""Losses and metrics against PyTorch and NumPy, and against what must hold of any sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from convjax.training.loss import cross_entropy
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
    assert total == (4.0, 4, 8)
    assert means(total) == {"loss": 0.5, "accuracy": 0.5, "correct": 4, "count": 8}
    assert np.isnan(means(Metrics())["accuracy"])
