"""Augmentations that a config writes as text: what is made of it, and how it is refused."""

import re
import sys

import jax
import numpy as np
import pytest
from augment_oracle import KEY, pictures, unoptimised_programs  # noqa: F401

from convjax import augment as augmentations
from convjax.augment import (
    Draw,
    alternating_flip,
    augment,
    crop,
    cutout,
    flip,
    invert,
    mixup,
    mixup_or_cutmix,
    rotate,
    sometimes,
)
from convjax.augment.named import MIXES, PARTS, mix_of, parts_of

IMAGES = pictures(8, 6)
TARGETS = np.eye(len(IMAGES), dtype=np.float32)


def made_of(*texts):
    change = parts_of(texts)
    assert change is not None
    return change


def test_every_augmentation_of_the_package_can_be_written():
    functions = set(augmentations.__all__) - {"Augmentation", "Draw", "augment"}
    assert {*PARTS, *MIXES} == functions


@pytest.mark.parametrize(
    ("texts", "parts"),
    [
        (["crop(2)", "flip"], [crop(2), flip()]),
        (["flip()", " crop( 2 , mode = 'reflect' ) "], [flip(), crop(2, mode="reflect")]),
        (["flip(p=0.3)", "flip(0.3)"], [flip(0.3), flip(0.3)]),
        (["cutout(4, value=(1, 2, 3))"], [cutout(4, value=(1, 2, 3))]),
        (
            ["sometimes(0.5, rotate(30), flip, sometimes(0.3, invert(1.0)))"],
            [sometimes(0.5, rotate(30), flip(), sometimes(0.3, invert(1.0)))],
        ),
    ],
    ids=lambda value: value[0] if isinstance(value[0], str) else "",
)
def test_text_makes_what_the_functions_make(texts, parts):
    made = jax.jit(made_of(*texts))(KEY, IMAGES)
    np.testing.assert_array_equal(made, jax.jit(augment(*parts))(KEY, IMAGES))
    assert (np.asarray(made) != IMAGES).any()


def test_the_alternating_flip_needs_no_argument_but_a_draw():
    draw = Draw(KEY, jax.random.key(1), np.arange(len(IMAGES)), 1)
    made = jax.jit(made_of("alternating_flip"))(draw, IMAGES)
    np.testing.assert_array_equal(made, jax.jit(augment(alternating_flip()))(draw, IMAGES))
    flipped = (np.asarray(made) == IMAGES[:, :, ::-1]).all((1, 2, 3))
    assert 0 < flipped.sum() < len(IMAGES)


def test_a_policy_of_one_s_own_can_be_written():
    policy = "[(('invert', 1.0, 0), ('invert', 0.0, 0))]"
    made = jax.jit(made_of(f"auto_augment({policy})"))(KEY, IMAGES)
    np.testing.assert_array_equal(made, 255 - IMAGES)


def test_no_text_is_no_augmentation():
    assert parts_of([]) is None
    assert parts_of(()) is None
    assert mix_of(None) is None


def test_a_mixture_is_written_alike():
    for text, mix in (
        ("mixup(0.2)", mixup(0.2)),
        ("mixup_or_cutmix(0.8, 1.0, switch=0.3)", mixup_or_cutmix(0.8, 1.0, switch=0.3)),
    ):
        made = mix_of(text)
        assert made is not None
        images, targets = jax.jit(made)(KEY, IMAGES, TARGETS)
        expected = jax.jit(mix)(KEY, IMAGES, TARGETS)
        np.testing.assert_array_equal(images, expected[0])
        np.testing.assert_array_equal(targets, expected[1])


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of a person's own, `mine_changes`."""
    (tmp_path / "mine_changes.py").write_text(
        "def dim(by=2):\n"
        "    def dimmed(keys, images):\n"
        "        return images // by\n"
        "    return dimmed\n"
        "\n"
        "def nothing():\n"
        "    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("mine_changes", None)


def test_a_function_elsewhere_is_named_with_its_module(mine):
    for text, by in ("mine_changes:dim", 2), ("mine_changes:dim(by=4)", 4):
        np.testing.assert_array_equal(jax.jit(made_of(text))(KEY, IMAGES), IMAGES // by)


def test_a_function_elsewhere_that_is_none_is_refused(mine):
    for text, message in (
        ("mine_changes:dimm", "has no function 'dimm'; did you mean 'dim'?"),
        ("no_such_module:dim", "there is no module 'no_such_module'"),
        ("mine_changes:dim(3, 4)", "too many positional arguments; it is dim(by=2)"),
        ("mine_changes:nothing", "a part of an augmentation is one, such as flip(), or a function"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)) as refused:
            parts_of([text])
        assert str(refused.value).startswith(repr(text))


# -- Errors ----------------------------------------------------------------------------------------

wrong = {
    "crp(4)": "there is no crp; did you mean 'crop'?",
    "RandAugment(2, 9)": "there is no RandAugment; did you mean 'rand_augment'?",
    "crop": "missing a required argument: 'padding'; it is crop(padding, *, mode='zero')",
    "crop(4, 5)": "too many positional arguments; it is crop(padding, *, mode='zero')",
    "crop(4, mod='edge')": "got an unexpected keyword argument 'mod'; it is crop(padding, *, mode=",
    "crop(4, padding=4)": "multiple values for argument 'padding'; it is crop(",
    "crop(padding=1, padding=2)": "give each argument once, and by its name",
    "crop(**{'padding': 4})": "give each argument once, and by its name",
    "crop('4')": "crop: padding must be a number, got '4'",
    "crop(-1)": "crop: padding must be of 0 or more, got -1",
    "crop(4, mode='wrap')": "crop: mode='wrap' is unknown: take zero, reflect, edge",
    "crop(4, mode=edge)": "edge is no literal: give a number, 'a text', True, False, None, or a",
    "crop(flip)": "flip is no literal: give a number",
    "crop(open('x'))": "open('x') is no literal: give a number",
    "crop(2 * 2)": "2 * 2 is no literal: give a number",
    "crop(*[4])": "*[4] is no literal: give a number",
    "crop({[]: 1})": "{[]: 1} is no literal: give a number",
    "flip(1.5)": "flip: p must be between 0 and 1, got 1.5",
    "cutout(8, value='grey')": "cutout: value must be a number, or one a channel, got 'grey'",
    "mixup(0.2)": "mixup mixes images and their labels: write it in config.augment.mix",
    "sometimes(0.5, crp(4))": "there is no crp; did you mean 'crop'?",
    "sometimes(crop(2))": "sometimes: p must be a number, got Augmentation(",
    "sometimes(0.5, 3)": "a part of an augmentation is one, such as flip()",
    "crop(4": "this is no call such as crop(4) or flip",
    "": "this is no call such as crop(4) or flip",
    "4": "this is no call such as crop(4) or flip",
    "crop(4), flip": "this is no call such as crop(4) or flip",
    "__import__('os').system('true')": "this is no call such as crop(4) or flip",
    "os.system('true')": "this is no call such as crop(4) or flip",
    "[flip for _ in (1,)]": "this is no call such as crop(4) or flip",
    "crop(4)\x00": "this is no call such as crop(4) or flip",
    "(" * 500: "this is no call such as crop(4) or flip",
}


@pytest.mark.parametrize("text", wrong)
def test_text_that_is_no_augmentation_is_refused_with_what_to_write(text):
    with pytest.raises(ValueError, match=f"^{re.escape(f'{text!r}: {wrong[text]}')}") as refused:
        parts_of(["flip", text])
    assert "\n" not in str(refused.value)


def test_what_is_no_list_of_text_is_refused():
    with pytest.raises(
        ValueError, match=r"^'crop\(4\)' is one text: give a list of them, as in \["
    ):
        parts_of("crop(4)")
    with pytest.raises(ValueError, match=r"^4 is no text: write a call in quotes"):
        parts_of([4])  # pyright: ignore[reportArgumentType]


def test_a_mixture_that_is_none_is_refused():
    for text, message in (
        ("mixp(0.2)", "there is no mixp; did you mean 'mixup'?"),
        ("mixup(-1)", "mixup: alpha must be of 0 or more, got -1"),
        ("crop(4)", "crop mixes nothing: write it in config.augment.parts"),
        ("mixup", "missing a required argument: 'alpha'; it is mixup(alpha, *, p=1.0, every="),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(f'{text!r}: {message}')}"):
            mix_of(text)
