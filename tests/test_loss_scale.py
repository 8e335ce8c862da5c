"""Loss scaling against flax's `DynamicScale` and PyTorch's `GradScaler`, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.training.dynamic_scale import DynamicScale

from convjax.training.loss_scale import LossScale, follow, start
from convjax.training.watch import choose, finite

EVERY = 4


def steps_that_go_well(count, seed):
    """True and False: a long good run, as long a bad one down to the lowest scale, then chance."""
    chance = np.random.default_rng(seed).random(count) < 0.85
    return np.concatenate([np.ones(5 * EVERY, bool), np.zeros(30, bool), chance])


def scale_of(scale, good_steps=0):
    return LossScale(jnp.float32(scale), jnp.int32(good_steps))


def followed(scale, good, every):
    """The scales before each step and after the last, by one compiled loop."""

    @jax.jit
    def run(scale, good):
        def step(scale, good):
            return follow(scale, good, every=every), scale.scale

        return jax.lax.scan(step, scale, good)

    last, scales = run(scale, jnp.asarray(good))
    return last, np.append(scales, last.scale)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_scale_of_every_step_is_that_of_flax(seed):
    """Flax grows at the good step after so many; we, like PyTorch and jmp, at the last of them."""
    good = steps_that_go_well(100, seed)
    theirs = DynamicScale(
        growth_interval=EVERY - 1, fin_steps=jnp.int32(0), scale=2.0**16, minimum_scale=1.0
    )

    @jax.jit
    def step(theirs, factor):
        return theirs.value_and_grad(lambda p: p * factor)(jnp.float32(1))[:2]

    expected = [theirs.scale]
    for well in good:
        theirs, is_finite = step(theirs, jnp.float32(0.5 if well else np.inf))
        assert bool(is_finite) == well
        expected.append(theirs.scale)
    last, scales = followed(start(), good, EVERY)
    np.testing.assert_array_equal(scales, np.asarray(expected))
    assert last.good_steps == theirs.fin_steps
    assert scales.min() == 1
    assert scales.max() == 2.0**21


def test_scales_and_skipped_steps_are_those_of_the_grad_scaler_of_pytorch():
    good = np.random.default_rng(2).random(60) < 0.8
    parameter = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    scaler = torch.amp.GradScaler("cpu", growth_interval=EVERY)
    params, scale = {"w": jnp.asarray([3.0, -2.0])}, start()

    @jax.jit
    def step(params, scale, factor):
        scaled = {"w": params["w"] * jnp.stack([jnp.float32(1), factor]) * scale.scale}
        grads = jax.tree.map(lambda grad: grad / scale.scale, scaled)
        new = jax.tree.map(lambda p, grad: p - 0.5 * grad, params, grads)
        well = finite(grads)
        return choose(well, new, params), follow(scale, well, every=EVERY)

    for number, well in enumerate(good):
        factor = 0.25 if well else (np.inf, -np.inf, np.nan)[number % 3]
        gradient = parameter.detach() * torch.tensor([1.0, factor])
        scaler.scale(torch.zeros(1))  # Without it the scaler does not begin.
        parameter.grad = gradient * scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        params, scale = step(params, scale, np.float32(factor))
        assert scale.scale == scaler.get_scale()
        np.testing.assert_allclose(params["w"], parameter.detach(), rtol=1e-6)
    assert len(good) > good.sum() > 40


def test_the_first_scale_doubles_at_the_2000th_good_step():
    def after(steps):
        return jax.jit(
            lambda: jax.lax.fori_loop(0, steps, lambda _, s: follow(s, jnp.asarray(True)), start())
        )()

    assert after(1999) == (65536, 1999)
    assert after(2000) == (131072, 0)


def test_a_bad_step_halves_the_scale_and_begins_to_count_anew():
    assert follow(scale_of(1024, 1999), jnp.asarray(False)) == (512, 0)


def test_the_scale_stays_between_1_and_the_largest_power_of_two():
    low, scales = followed(scale_of(4), np.zeros(5, bool), EVERY)
    assert scales.tolist() == [4, 2, 1, 1, 1, 1]
    high, scales = followed(scale_of(2.0**126), np.ones(9, bool), EVERY)
    assert scales.tolist() == [2.0**126] * 4 + [2.0**127] * 6
    assert low.scale.dtype == high.scale.dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_one_number_that_is_not_finite_in_any_leaf_is_found(dtype, value):
    good = {"a": {"kernel": jnp.ones((2, 3), dtype)}, "b": jnp.zeros(3, jnp.float32)}
    assert finite(good)
    bad = good | {"a": {"kernel": good["a"]["kernel"].at[1, 2].set(value)}}
    assert not finite(bad)
    assert not finite((jnp.zeros(()), [bad]))


def test_the_largest_numbers_are_finite_whose_sum_is_not():
    assert finite([jnp.full(8, jnp.finfo(dtype).max) for dtype in (jnp.float16, jnp.float32)])


def test_gradients_of_nothing_are_finite():
    assert finite({})


@pytest.mark.parametrize("good", [True, False])
def test_one_of_two_trees_is_chosen_to_the_bit(good):
    def tree_of(seed):
        key = jax.random.key(seed)
        noise = jax.random.normal(key, (3,)).at[0].set(-0.0)
        return {"w": noise, "half": noise.astype(jnp.float16), "count": jnp.int32(seed), "key": key}

    new, old = tree_of(1), tree_of(2)
    new["w"] = new["w"].at[1].set(np.nan)
    chosen, wanted = jax.jit(choose)(jnp.asarray(good), new, old), new if good else old
    for name in ("w", "half", "count"):
        assert chosen[name].dtype == wanted[name].dtype
        assert np.asarray(chosen[name]).tobytes() == np.asarray(wanted[name]).tobytes()
    assert (
        jax.random.key_data(chosen["key"]).tolist() == jax.random.key_data(wanted["key"]).tolist()
    )


def test_a_gradient_that_vanishes_in_float16_survives_scaled():
    """By hand: d/dw of 1e-6 * (0.01 * w) is 1e-8, less than half the smallest float16, 6e-8."""

    def gradient(scale):
        def loss(w):
            y = w.astype(jnp.float16) * np.float16(0.01)
            return y.astype(jnp.float32) * 1e-6 * scale

        return jax.grad(loss)(jnp.float32(1)) / scale

    assert gradient(jnp.float32(1)) == 0
    np.testing.assert_allclose(gradient(start().scale), 1e-8, rtol=2e-3)


def test_steps_that_overflow_are_skipped_until_the_scale_has_come_down():
    """SGD on w^2 / 2 in float16: the gradient w * scale overflows where it is beyond 65,504."""

    @jax.jit
    def step(w, scale):
        def loss(w):
            half = w.astype(jnp.float16)
            return (half * half / 2).astype(jnp.float32) * scale.scale

        grad = jax.grad(loss)(w) / scale.scale
        good = finite(grad)
        return choose(good, w - 0.5 * grad, w), follow(scale, good)

    w, scale, seen = jnp.float32(4), start(), []
    for _ in range(6):
        w, scale = step(w, scale)
        seen.append((float(w), float(scale.scale)))
    # 4 * 65536, 4 * 32768 and 4 * 16384 are too large, 4 * 8192 is not.
    expected = [(4, 32768), (4, 16384), (4, 8192), (2, 8192), (1, 8192), (0.5, 8192)]
    assert seen == expected


def test_each_member_of_an_ensemble_has_a_scale_of_its_own():
    scales = LossScale(jnp.asarray([8.0, 8.0, 8.0]), jnp.asarray([0, 3, 3], jnp.int32))
    good = jnp.asarray([False, True, False])
    new = jax.vmap(lambda scale, good: follow(scale, good, every=EVERY))(scales, good)
    assert new.scale.tolist() == [4, 16, 4]
    assert new.good_steps.tolist() == [0, 0, 0]
