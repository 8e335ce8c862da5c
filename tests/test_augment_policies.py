"""RandAugment, TrivialAugment and AutoAugment: Pillow's operations, drawn as by torchvision."""

import hashlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from augment_oracle import (
    KEY,
    assert_levels,
    below,
    by_pillow,
    pictures,
    uniform,
    unoptimised_programs,  # noqa: F401
)
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from convjax.augment import auto_augment, autoaugment, policies, rand_augment, trivial_augment
from convjax.augment.autoaugment import SUBPOLICIES
from convjax.augment.policies import OPERATIONS, apply_operations

IMAGES = pictures()
GREY = pictures(channels=1)


def torchvision_operation(image, name, strength):
    """What `torchvision.transforms.RandAugment` does to an image of Pillow's.

    Its affine matrices are those of `Image.transform`; a fill of none is black.
    """

    def affine(*matrix):
        return image.transform(image.size, Image.Transform.AFFINE, matrix)

    return {
        "identity": lambda: image,
        "shear_x": lambda: affine(1, strength, 0, 0, 1, 0),
        "shear_y": lambda: affine(1, 0, 0, strength, 1, 0),
        "translate_x": lambda: affine(1, 0, -int(strength), 0, 1, 0),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, -int(strength)),
        "rotate": lambda: image.rotate(strength),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(1 + strength),
        "color": lambda: ImageEnhance.Color(image).enhance(1 + strength),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(1 + strength),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(1 + strength),
        "posterize": lambda: ImageOps.posterize(image, int(strength)),
        "solarize": lambda: ImageOps.solarize(image, strength),  # pyright: ignore[reportArgumentType]
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "invert": lambda: ImageOps.invert(image),
    }[name]()


def operation(name, strength):
    """The change of each image, at a strength of its own, as `by_pillow` takes it."""
    return lambda image, i: torchvision_operation(image, name, float(strength[i]))


def torchvision_strengths(bins, height, width, wide):
    """The magnitudes that torchvision lists, by operation: a row of its table, or none."""
    line = torch.linspace
    factor, steps = (0.99, 6) if wide else (0.9, 4)
    shear, turn = (0.99, 135.0) if wide else (0.3, 30.0)
    x, y = (32.0, 32.0) if wide else (150.0 / 331.0 * width, 150.0 / 331.0 * height)
    table = {
        "shear_x": line(0.0, shear, bins),
        "shear_y": line(0.0, shear, bins),
        "translate_x": line(0.0, x, bins),
        "translate_y": line(0.0, y, bins),
        "rotate": line(0.0, turn, bins),
        **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), line(0.0, factor, bins)),
        "posterize": 8 - (torch.arange(bins) / ((bins - 1) / steps)).round().int(),
        "solarize": line(255.0, 0.0, bins),
    }
    return {name: row.numpy() for name, row in table.items()}


@pytest.fixture
def drawn(monkeypatch):
    """What a policy would apply: operations and strengths, `[batch, operations]`, as drawn."""
    taken = []

    def take(images, kind, strength, *, fill):
        taken.append((kind, strength))
        return images

    for module in policies, autoaugment:
        monkeypatch.setattr(module, "apply_operations", take)

    def draw(policy, height=1, width=1, images=20_000):
        def run(key):
            policy(key, jnp.zeros((images, height, width, 1), jnp.uint8))
            return taken.pop()

        return [np.asarray(each) for each in jax.jit(run)(KEY)]

    return draw


# -- Operations ------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [IMAGES, GREY], ids=["RGB", "grey"])
def test_operations_equal_torchvision_s_on_images_of_pillow_s(images):
    change = jax.jit(apply_operations)
    ranges = torchvision_strengths(len(images), 20, 24, wide=True)
    for number, name in enumerate(OPERATIONS):
        strength = np.array(ranges.get(name, np.zeros(len(images))), np.float32)
        if policies.SIGNED[number]:
            strength[::2] *= -1
        expected = by_pillow(images, operation(name, strength))
        actual = change(images, np.full((len(images), 1), number), strength[:, None])
        difference = np.abs(np.asarray(actual).astype(int) - expected)
        assert difference.max() <= (1 if name == "autocontrast" else 0), name


def test_every_image_gets_its_own_operations_one_after_another():
    rng = np.random.default_rng(0)
    names = [name for name in OPERATIONS if name != "autocontrast"]  # exact to one level only
    kind = np.array([[OPERATIONS.index(x) for x in rng.choice(names, 2)] for _ in IMAGES])
    ranges = torchvision_strengths(31, 20, 24, wide=False)
    strength = np.array(
        [[ranges.get(OPERATIONS[number], [0] * 31)[9] for number in row] for row in kind],
        np.float32,
    )

    def change(image, i):
        for number, value in zip(kind[i], strength[i]):
            image = torchvision_operation(image, OPERATIONS[number], float(value))
        return image

    actual = jax.jit(apply_operations)(IMAGES, kind, strength)
    np.testing.assert_array_equal(actual, by_pillow(IMAGES, change))


def torchvision_draw(policy, u):
    """Operations and strengths of an image, from the numbers that a policy draws for it."""
    bins, chances = 31, [1, 1]
    if policy == "rand_augment":
        names, places, signs = [OPERATIONS[below(x, 14)] for x in u[:2]], [9, 9], u[2:]
    elif policy == "trivial_augment":
        names, places, signs = [OPERATIONS[below(u[0], 14)]], [below(u[1], bins)], u[2:]
    else:
        names, chances, places = zip(*SUBPOLICIES["cifar10"][below(u[0], 25)], strict=True)
        bins, chances, signs = 10, np.array(chances) >= u[1:3], u[3:]
    table = torchvision_strengths(bins, 20, 24, wide=policy == "trivial_augment")
    for name, place, sign, applied in zip(names, places, signs, chances):
        strength = float(table[name][int(place)]) if name in table else 0.0
        turned = policies.SIGNED[OPERATIONS.index(name)] and sign < 0.5
        yield (name if applied else "identity"), (-strength if turned else strength)


def test_a_policy_equals_torchvision_s_on_the_numbers_that_it_draws():
    chosen = {
        "rand_augment": rand_augment(2, 9),
        "trivial_augment": trivial_augment(),
        "auto_augment": auto_augment("cifar10"),
    }
    made = jax.jit(lambda x: {name: policy(KEY, x) for name, policy in chosen.items()})(IMAGES)
    for name, policy in chosen.items():
        u = uniform(name, policy.draws)
        drawn = [list(torchvision_draw(name, row)) for row in u]

        def change(image, i, drawn=drawn):
            for name, strength in drawn[i]:
                image = torchvision_operation(image, name, strength)
            return image

        # Autocontrast is exact to one level only, and what follows may make more of it.
        exact = np.array([all(one != "autocontrast" for one, _ in each) for each in drawn])
        assert exact.mean() > 0.6
        assert_levels(made[name][exact], by_pillow(IMAGES, change)[exact])


def test_a_policy_fills_with_the_colour_that_it_is_given():
    white = np.full((32, 9, 9, 3), 255, np.uint8)
    shift = np.full((32, 1), OPERATIONS.index("translate_x"))
    change = jax.jit(partial(apply_operations, fill=(1, 2, 3)))
    made = change(white, shift, np.full((32, 1), 4.0))
    np.testing.assert_array_equal(made[:, :, :4], np.broadcast_to([1, 2, 3], (32, 9, 4, 3)))
    assert (np.asarray(made)[:, :, 4:] == 255).all()


# -- Draws -----------------------------------------------------------------------------------------


def assert_strengths(kind, strength, allowed):
    """Strengths are of torchvision's table, with both signs where it has them."""
    for number, name in enumerate(OPERATIONS):
        values = strength[kind == number]
        if name not in allowed or not len(values):
            continue
        row = allowed[name]
        if policies.SIGNED[number]:
            assert stats.binomtest(int(np.signbit(values).sum()), len(values), 0.5).pvalue > 1e-4
            row = np.concatenate([row, -row])
        nearest = np.abs(values[:, None] - row[None]).min(1)
        assert nearest.max() < 1e-5 * max(1, np.abs(row).max()), name


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_rand_augment_draws_14_operations_alike_at_torchvision_s_magnitude(drawn, magnitude):
    kind, strength = drawn(rand_augment(2, magnitude), 20, 24)
    for i in range(2):
        assert stats.chisquare(np.bincount(kind[:, i], minlength=14)).pvalue > 1e-3
    # The second is drawn without regard to the first.
    table = np.bincount(kind[:, 0] * 14 + kind[:, 1], minlength=196).reshape(14, 14)
    apart: Any = stats.chi2_contingency(table)[1]
    assert apart > 1e-3
    ranges = torchvision_strengths(31, 20, 24, wide=False)
    chosen = {name: row[[magnitude]] for name, row in ranges.items()}
    if magnitude:
        assert_strengths(kind, strength, chosen)
    else:
        unsigned = OPERATIONS.index("posterize"), OPERATIONS.index("solarize")
        assert not strength[~np.isin(kind, unsigned)].any()


def test_trivial_augment_draws_operation_and_magnitude_alike(drawn):
    kind, strength = drawn(trivial_augment())
    assert kind.shape == (20_000, 1)
    assert stats.chisquare(np.bincount(kind[:, 0], minlength=14)).pvalue > 1e-3
    ranges = torchvision_strengths(31, 1, 1, wide=True)
    assert_strengths(kind, strength, ranges)
    turns = np.abs(strength[kind == OPERATIONS.index("rotate")])
    bins = np.round(turns / 135 * 30).astype(int)
    assert stats.chisquare(np.bincount(bins, minlength=31)).pvalue > 1e-3


# SHA-256 of torchvision's three lists, each operation as a line "name:probability:magnitude", with
# the magnitude 0 where it has None.
PUBLISHED = {
    "imagenet": "470bf48dc6738aa1445262065bb5f6e1d2a25636a99b34a4b2769ebbcf4316b8",
    "cifar10": "a6d79616663448bd845057441d750d93a998a8115ef6424ea1a32987a3e34a23",
    "svhn": "dddf3c5d372ffa8f40b54009af3a8485a743a13ca02a773554dcc1ecb72385a2",
}
TORCHVISION_NAMES = {
    **{
        f"{kind}_{axis}": f"{kind.title()}{axis.upper()}"
        for kind in ("shear", "translate")
        for axis in "xy"
    },
    "autocontrast": "AutoContrast",
}


@pytest.mark.parametrize("policy", PUBLISHED)
def test_the_pairs_of_auto_augment_are_the_published_ones(policy):
    lines = [
        f"{TORCHVISION_NAMES.get(name, name.title())}:{chance}:{magnitude:g}"
        for pair in SUBPOLICIES[policy]
        for name, chance, magnitude in pair
    ]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == PUBLISHED[policy]


@pytest.mark.parametrize("policy", SUBPOLICIES)
def test_auto_augment_applies_each_operation_as_often_as_its_policy_says(drawn, policy):
    kind, strength = drawn(auto_augment(policy), 331, 331)
    assert len(SUBPOLICIES[policy]) == 25
    for place in range(2):
        share = np.zeros(len(OPERATIONS))
        for pair in SUBPOLICIES[policy]:
            name, chance, _ = pair[place]
            share[OPERATIONS.index(name)] += chance / 25
            share[0] += (1 - chance) / 25
        counts = np.bincount(kind[:, place], minlength=len(OPERATIONS))
        assert not counts[share == 0].any()
        used = share > 0
        assert stats.chisquare(counts[used], 20_000 * share[used] / share.sum()).pvalue > 1e-3
    assert_strengths(kind, strength, torchvision_strengths(10, 331, 331, wide=False))


def test_a_policy_of_one_s_own_is_applied_pair_by_pair():
    policy = [(("invert", 1.0, 0), ("posterize", 1.0, 9)), (("invert", 1.0, 0), ("rotate", 0, 3))]
    made = np.asarray(jax.jit(auto_augment(policy))(KEY, IMAGES))
    inverted = 255 - IMAGES
    posterized = (made == (inverted & 0xF0)).all((1, 2, 3))
    plain = (made == inverted).all((1, 2, 3))
    np.testing.assert_array_equal(posterized ^ plain, np.ones(len(IMAGES), bool))
    assert 0 < posterized.sum() < len(IMAGES)


def test_floating_images_are_changed_as_their_bytes_are():
    change = jax.jit(rand_augment(1, 9))
    in_bytes = np.asarray(change(KEY, IMAGES))
    numbers = np.asarray(change(KEY, IMAGES / np.float32(255)))
    np.testing.assert_allclose(numbers, in_bytes / np.float32(255), rtol=2e-7)


wrong = {
    "auto_augment: policy='mnist' is unknown: take imagenet, cifar10, svhn": "mnist",
    "auto_augment: operation='Invert' is unknown": [(("Invert", 1, 0), ("rotate", 1, 0))],
    "auto_augment: p must be between 0 and 1": [(("invert", 2, 0), ("rotate", 1, 0))],
    "auto_augment: magnitude must be between 0 and 9": [(("invert", 1, 0), ("rotate", 1, 10))],
    "auto_augment: a policy is of pairs": [(("invert", 1, 0),)],
    "auto_augment: a policy is of pairs of .operation, prob": [(("invert", 1), ("rotate", 1, 0))],
    "auto_augment: a policy needs a pair": [],
}


@pytest.mark.parametrize("message", wrong)
def test_a_policy_that_is_none_is_refused(message):
    with pytest.raises(ValueError, match=f"^{message}"):
        auto_augment(wrong[message])
