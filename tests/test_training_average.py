"""Averages of a model, and the best of its evaluations, against pencil and paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convjax.config import Stop
from convjax.training.average import moving_average
from convjax.training.choose import Best, better


def followed(follow, values):
    """The average and what training goes on from, after each step, of a model of one number.

    values: what each step adds to the number.
    """
    average = model = ({"w": jnp.float32(1.0)}, {"n": jnp.int32(0)})
    seen = []
    for step, value in enumerate(values):
        model = {"w": model[0]["w"] + value}, {"n": model[1]["n"] + 1}
        average, model = follow(average, model, jnp.int32(step))
        seen.append((float(average[0]["w"]), float(model[0]["w"]), int(average[1]["n"])))
    return seen


def test_the_share_of_an_average_grows_up_to_its_decay():
    # (1 + n) / (10 + n) after n steps: 2/11, 3/12, and then the decay of 0.27 is less than 4/13.
    first = 2 / 11 * 1.0 + 9 / 11 * 2.0
    second = 3 / 12 * first + 9 / 12 * 3.0
    third = 0.27 * second + 0.73 * 4.0
    found = followed(moving_average(0.27), [1.0, 1.0, 1.0])
    np.testing.assert_allclose([each[0] for each in found], [first, second, third], rtol=1e-5)
    assert [each[1] for each in found] == [2.0, 3.0, 4.0]
    assert [each[2] for each in found] == [1, 2, 3]  # A count is the newest.


def test_the_share_rises_as_a_power_of_how_far_training_is():
    # 0.8 * (n / 4) ** 3 after n of 4 steps.
    expected, model = 1.0, 1.0
    for n, (average, _, _) in enumerate(
        followed(moving_average(0.8, power=3.0, steps=4), [1.0] * 4), 1
    ):
        model += 1.0
        share = 0.8 * (n / 4) ** 3
        expected = share * expected + (1 - share) * model
        np.testing.assert_allclose(average, expected, rtol=1e-5)


def test_before_its_start_the_average_is_the_model_and_nothing_is_written_back():
    follow = moving_average(0.5, 2, power=1.0, start=3, steps=8, write_back=True)
    found = followed(follow, [1.0] * 6)
    assert [each[0] for each in found[:3]] == [2.0, 3.0, 4.0]
    assert [each[1] for each in found[:3]] == [2.0, 3.0, 4.0]
    # Step 4 is due: a quarter of the old, three quarters of the new; training goes on from there.
    fourth = 4.0 + (1 - 0.5 * 4 / 8) * 1.0
    np.testing.assert_allclose(found[3][:2], [fourth, fourth], rtol=1e-6)
    np.testing.assert_allclose(found[4][:2], [fourth, fourth + 1.0], rtol=1e-6)
    sixth = fourth + (1 - 0.5 * 6 / 8) * 2.0
    np.testing.assert_allclose(found[5][:2], [sixth, sixth], rtol=1e-6)


def test_what_never_changes_keeps_every_bit_in_the_average():
    value = np.float32(0.1)
    average = model = ({"w": jnp.asarray(value)}, {})
    follow = jax.jit(moving_average(0.999))
    for step in range(50):
        average, model = follow(average, model, jnp.asarray(step, jnp.int32))
    assert np.asarray(average[0]["w"]).tobytes() == value.tobytes()


def judged(results, stop, kept=None):
    """The best after each of these evaluations."""
    best, seen = Best(), []
    for step, (accuracy, loss) in enumerate(results):
        best = better(best, step, {"accuracy": accuracy, "loss": loss}, stop, kept)
        seen.append(best)
    return seen


def test_evaluations_are_counted_since_the_last_that_was_better_by_enough():
    results = [(0.5, 1.0), (0.505, 0.9), (0.6, 0.8), (0.6, 0.7), (0.59, 0.6)]
    found = judged(results, Stop(3, "accuracy", 0.01))
    assert [each.waited for each in found] == [0, 1, 0, 1, 2]
    assert [each.mark for each in found] == [0.5, 0.5, 0.6, 0.6, 0.6]
    assert [each.step for each in found] == [0, 1, 2, 2, 2]
    by_loss = judged(results, Stop(3, "loss", 0.15))
    assert [each.waited for each in by_loss] == [0, 1, 0, 1, 0]


def test_the_model_that_is_kept_may_go_by_another_metric():
    found = judged([(0.5, 1.0), (0.4, 0.9), (0.6, 0.95)], Stop(3, "accuracy"), "loss")
    assert [(each.step, each.value) for each in found] == [(0, 1.0), (1, 0.9), (1, 0.9)]
    assert [each.waited for each in found] == [0, 1, 0]


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_what_is_no_number_is_no_better(metric):
    nan = float("nan")
    found = judged([(nan, nan), (0.5, 1.0), (nan, nan)], Stop(3, metric))
    assert [each.step for each in found] == [-1, 1, 1]
    assert [each.waited for each in found] == [1, 0, 1]
