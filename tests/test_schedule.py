"""Schedules against pencil and paper, PyTorch and optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from convjax import config
from convjax.config import ConfigError
from convjax.training.schedule import make


def values(name, steps, warmup=0):
    return np.array([float(make(name, steps=steps, warmup=warmup)(step)) for step in range(steps)])


def torch_values(scheduler, steps, **options):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = scheduler(optimizer, **options)
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


def test_warm_up_rises_linearly_and_reaches_the_peak_with_its_last_step():
    expected = [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    np.testing.assert_allclose(values("constant", 6, warmup=4), expected)


def test_linear_falls_in_a_straight_line():
    np.testing.assert_allclose(values("linear", 5), [1.0, 0.8, 0.6, 0.4, 0.2], rtol=1e-6)
    expected = [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    np.testing.assert_allclose(values("linear", 6, warmup=2), expected, rtol=1e-6)


def test_step_divides_by_ten_at_one_half_and_three_quarters():
    np.testing.assert_allclose(values("step", 8), [1] * 4 + [0.1] * 2 + [0.01] * 2, rtol=1e-6)


def test_cosine_is_that_of_torch():
    expected = torch_values(torch.optim.lr_scheduler.CosineAnnealingLR, 40, T_max=40)
    np.testing.assert_allclose(values("cosine", 40), expected, atol=1e-6)
    np.testing.assert_allclose(values("cosine", 50, warmup=10)[10:], expected, atol=1e-6)


def test_one_cycle_is_that_of_optax_and_rises_over_the_warm_up():
    for steps, warmup in (60, 0), (60, 30):
        theirs = optax.schedules.cosine_onecycle_schedule(steps, 1.0, pct_start=(warmup or 18) / 60)
        with jax.numpy_dtype_promotion("standard"):
            expected = [np.asarray(theirs(step)) for step in range(steps)]
        np.testing.assert_allclose(values("one_cycle", steps, warmup), expected, atol=1e-6)


@pytest.mark.parametrize("name", config.SCHEDULES)
def test_every_schedule_of_the_config_stays_within_0_and_1_under_jit(name):
    factor = jax.jit(jax.vmap(make(name, steps=20, warmup=3)))
    found = np.asarray(factor(jnp.arange(30)))
    assert ((found >= 0) & (found <= 1)).all()
    assert found.max() == 1


@pytest.mark.parametrize("name", config.SCHEDULES)
def test_a_warm_up_as_long_as_the_run_is_no_division_by_zero(name):
    assert np.isfinite(values(name, 4, warmup=4)).all()
    assert np.isfinite(values(name, 1)).all()


def test_a_misspelt_schedule_is_told_the_nearest_name():
    with pytest.raises(ConfigError, match="'cosin': did you mean 'cosine'"):
        make("cosin", steps=10)
