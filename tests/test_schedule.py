"""Schedules against pencil and paper, PyTorch and optax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from convjax import config
from convjax.config import ConfigError
from convjax.training import schedule
from convjax.training.schedule import from_config, make

NAMES = sorted(schedule.SCHEDULES)


def values(name, steps, warmup=0, **options):
    factor = make(name, steps=steps, warmup=warmup, **options)
    return np.asarray(jax.jit(jax.vmap(factor))(jnp.arange(steps)))


def torch_values(scheduler, steps, **options):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
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
    expected = torch_values(lr_scheduler.CosineAnnealingLR, 40, T_max=40)
    np.testing.assert_allclose(values("cosine", 40), expected, atol=1e-6)
    np.testing.assert_allclose(values("cosine", 50, warmup=10)[10:], expected, atol=1e-6)


def test_warm_up_from_a_share_is_that_of_torch():
    start, steps = 0.2, 5
    expected = torch_values(lr_scheduler.LinearLR, 8, start_factor=start, total_iters=steps - 1)
    found = values("constant", 8, warmup=steps, warmup_start=start)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert values("constant", 3, warmup=1, warmup_start=start)[0] == pytest.approx(start)


def test_what_falls_to_a_share_is_that_of_torch():
    final, steps = 0.1, 40
    for name, scheduler, options in (
        ("cosine", lr_scheduler.CosineAnnealingLR, {"T_max": steps, "eta_min": final}),
        ("linear", lr_scheduler.LinearLR, {"start_factor": 1.0, "end_factor": final}),
    ):
        options |= {"total_iters": steps} if name == "linear" else {}
        expected = torch_values(scheduler, steps, **options)
        np.testing.assert_allclose(values(name, steps, final=final), expected, atol=1e-6)
        after = values(name, steps + 10, warmup=10, final=final)[10:]
        np.testing.assert_allclose(after, expected, atol=1e-6)


@pytest.mark.parametrize("power", [1.0, 2.0, 0.9])
def test_polynomial_is_that_of_torch(power):
    expected = torch_values(lr_scheduler.PolynomialLR, 30, total_iters=30, power=power)
    np.testing.assert_allclose(values("polynomial", 30, args={"power": power}), expected, atol=1e-6)
    share = values("polynomial", 30, final=0.25, args={"power": power})
    np.testing.assert_allclose(share, 0.25 + 0.75 * np.array(expected), atol=1e-6)


def test_exponential_is_that_of_torch_and_ends_where_it_is_told():
    expected = torch_values(lr_scheduler.ExponentialLR, 30, gamma=0.97)
    found = values("exponential", 30, args={"gamma": 0.97, "every_steps": 1})
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(values("exponential", 30, epoch=1, args={"gamma": 0.97}), found)
    factor = make("exponential", steps=30, warmup=10, final=0.04)
    np.testing.assert_allclose([factor(10), factor(20), factor(30)], [1, 0.2, 0.04], rtol=1e-5)
    assert float(make("exponential", steps=30)(30)) == pytest.approx(0.01)


def test_exponential_on_a_staircase_is_that_of_torch_and_counts_epochs():
    """EfficientNet: 0.97 every 2.4 epochs, here of 10 steps."""
    expected = torch_values(lr_scheduler.StepLR, 80, gamma=0.97, step_size=24)
    args = {"gamma": 0.97, "every_epochs": 2.4, "staircase": True}
    np.testing.assert_allclose(values("exponential", 80, epoch=10, args=args), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "length", [{"milestone_epochs": (3, 6, 8)}, {"milestone_steps": (30, 60, 80)}]
)
def test_step_falls_at_milestones_as_that_of_torch_does(length):
    """Those of He et al. 2015 on ImageNet, with epochs of 10 steps."""
    expected = torch_values(lr_scheduler.MultiStepLR, 90, milestones=[30, 60, 80], gamma=0.2)
    found = values("step", 90, epoch=10, args={"gamma": 0.2, **length})
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    warmed = values("step", 90, warmup=10, epoch=10, args={"gamma": 0.2, **length})
    np.testing.assert_allclose(warmed[10:], expected[10:], rtol=1e-6)


def test_trapezoid_is_constant_and_then_falls_in_a_straight_line():
    expected = [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    for length in {"fall_steps": 4}, {"fall_epochs": 2}:
        found = values("trapezoid", 10, warmup=2, epoch=2, args=length)
        np.testing.assert_allclose(found, expected)
    found = values("trapezoid", 10, final=0.5, args={"fall_steps": 4})
    np.testing.assert_allclose(found[5:], [1, 1, 0.875, 0.75, 0.625])
    np.testing.assert_allclose(values("trapezoid", 10)[7:], [1, 1, 0.5])


@pytest.mark.parametrize(("steps", "warmup"), [(60, 0), (60, 30), (57, 0), (41, 7)])
def test_one_cycle_is_that_of_torch_from_the_first_step_to_the_last(steps, warmup):
    options = {"max_lr": 1.0, "total_steps": steps, "cycle_momentum": False}
    options |= {"pct_start": warmup / steps} if warmup else {}
    expected = torch_values(lr_scheduler.OneCycleLR, steps, **options)
    np.testing.assert_allclose(values("one_cycle", steps, warmup), expected, atol=1e-6)
    options |= {"div_factor": 10, "final_div_factor": 100}
    expected = torch_values(lr_scheduler.OneCycleLR, steps, **options)
    found = values("one_cycle", steps, warmup, warmup_start=0.1, final=1e-3)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found[[0, -1]], [0.1, 1e-3], rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_every_schedule_of_the_config_stays_within_0_and_1_under_jit(name):
    factor = jax.jit(jax.vmap(make(name, steps=20, warmup=3)))
    found = np.asarray(factor(jnp.arange(30)))
    assert ((found >= 0) & (found <= 1)).all()
    assert found.max() == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_warm_up_as_long_as_the_run_is_no_division_by_zero(name):
    assert np.isfinite(values(name, 4, warmup=4)).all()
    assert np.isfinite(values(name, 1)).all()
    assert np.isfinite(values(name, 4, warmup=1, warmup_start=0.5)).all()


def test_a_misspelt_schedule_is_told_the_nearest_name():
    with pytest.raises(ConfigError, match="'cosin': did you mean 'cosine'"):
        make("cosin", steps=10)


def chosen(**settings):
    return config.Optimizer(**settings)


SHAPES = [
    *({"schedule": name} for name in NAMES),
    {"schedule": "polynomial", "schedule_args": {"power": 0.9}, "final_factor": 0.1},
    {"schedule": "exponential", "schedule_args": {"gamma": 0.97, "every_epochs": 0.24}},
    {"schedule": "exponential", "schedule_args": {"gamma": 0.9, "staircase": True}},
    {"schedule": "step", "schedule_args": {"milestone_epochs": (0.9, 1.5)}},
    {"schedule": "trapezoid", "schedule_args": {"fall_epochs": 0.7}},
]


@pytest.mark.parametrize("length", [{"warmup_epochs": 0.4}, {}])
@pytest.mark.parametrize("settings", SHAPES)
def test_a_run_that_is_resumed_has_the_rates_to_the_bit_that_it_would_have_had(settings, length):
    """Rates as a train step takes them: of a counter that the program itself moves on."""

    def run(first, steps):
        """The rates of a run that begins at that step, with a schedule of its own."""
        share = from_config(chosen(**settings, **length), 20, epoch=10)

        @jax.jit
        def take(step):
            return step + 1, np.float32(0.3) * share(step)

        step, rates = jnp.int32(first), []
        for _ in range(steps):
            step, rate = take(step)
            rates.append(np.asarray(rate))
        return np.stack(rates)

    whole = run(0, 20)
    assert whole.dtype == np.float32
    for first in (3, 11):
        np.testing.assert_array_equal(run(first, 20 - first), whole[first:])


def test_a_config_gives_its_warm_up_in_epochs_or_in_steps():
    for length in {"warmup_epochs": 0.5}, {"warmup_steps": 5}:
        factor = from_config(chosen(schedule="linear", final_factor=0.5, **length), 25, epoch=10)
        found = [float(factor(step)) for step in (0, 4, 5, 15, 25)]
        np.testing.assert_allclose(found, [0.2, 1, 1, 0.75, 0.5], rtol=1e-6)


def test_a_config_of_one_cycle_warms_up_from_its_own_start():
    factor = from_config(chosen(schedule="one_cycle", warmup_steps=5, warmup_start=0.5), 20, 10)
    np.testing.assert_allclose([factor(0), factor(4)], [0.5, 1])
    factor = from_config(chosen(schedule="one_cycle"), 20, 10)
    np.testing.assert_allclose([factor(0), factor(5), factor(19)], [1 / 25, 1, 1 / 25e4], rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"warmup_steps": 30},
            r"warmup_steps is 30, which is 30 steps: config\.epochs asks for a ru",
        ),
        ({"warmup_epochs": 2.99}, r"warmup_epochs is 2\.99, which is 30 steps: .* a run of 30,"),
        ({"schedule": "constant", "final_factor": 0.1}, r"final_factor is 0\.1: .* 'constant'"),
        ({"schedule": "step", "final_factor": 0.1}, r"final_factor is 0\.1: the schedule 'step'"),
        ({"schedule_args": {"power": 2.0}}, r"has 'power', which the schedule 'cosine' does not"),
        (
            {"schedule": "step", "schedule_args": {"milestones": (1,)}},
            r"'milestones', which .* did you mean 'milestone_",
        ),
        (
            {"schedule": "step", "schedule_args": {"milestone_epochs": (1, 3)}},
            r"steps \[10, 30\]: give some that rise, from the 0 of .* less than the 30",
        ),
        (
            {"schedule": "step", "schedule_args": {"milestone_steps": (9, 5)}},
            r"steps \[9, 5\]: give some that rise",
        ),
        (
            {
                "schedule": "step",
                "schedule_args": {"milestone_steps": (9,), "milestone_epochs": (1,)},
            },
            r"milestone_epochs is \(1,\) and milestone_steps is \(9,\): give one of them",
        ),
        (
            {"schedule": "trapezoid", "warmup_steps": 9, "schedule_args": {"fall_epochs": 2.5}},
            r"the fall takes 25 steps: the warm-up of 9 leaves 21 of the 30",
        ),
        (
            {"schedule": "trapezoid", "schedule_args": {"fall_steps": 0}},
            r"fall_steps is 0: give at least one step",
        ),
        (
            {"schedule": "exponential", "schedule_args": {"every_steps": 3}},
            r"the period is that of gamma: give gamma",
        ),
        (
            {"schedule": "exponential", "schedule_args": {"gamma": 0.9}, "final_factor": 0.1},
            r"gamma is 0\.9 and config\.optimizer\.final_factor is 0\.1: give one of them",
        ),
        (
            {"schedule_args": {"final": 0.1}},
            r"'final', .*: set config\.optimizer\.final_factor inst",
        ),
        (
            {"schedule": "step", "schedule_args": {"milestone_steps": 3}},
            r"the milestones are 3: give numbers, such as \(30, 60\)",
        ),
        (
            {"schedule": "step", "schedule_args": {"milestone_epochs": ("a",)}},
            r"the milestones are \('a',\): give numbers",
        ),
        (
            {"schedule": "step", "schedule_args": {"milestone_epochs": ()}},
            r"steps \[\]: give some that rise",
        ),
        ({"schedule": "step", "schedule_args": {"gamma": 0}}, r"gamma is 0: give more than 0"),
        (
            {"schedule": "exponential", "schedule_args": {"gamma": 1.1}},
            r"gamma is 1\.1: give more than 0 and at most 1",
        ),
        ({"schedule": "polynomial", "schedule_args": {"power": "two"}}, r"schedule_args are .*two"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message) as error:
        from_config(chosen(**settings), 30, epoch=10)
    assert str(error.value).startswith("config.optimizer.")
