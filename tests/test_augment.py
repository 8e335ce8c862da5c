"""Random augmentations: each image by its own draws, however composed, compiled and swept."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from augment_oracle import (
    KEY,
    pictures,
    uniform,
    unoptimised_programs,  # noqa: F401
)
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from convjax.augment import (
    Augmentation,
    augment,
    auto_augment,
    autocontrast,
    color_jitter,
    crop,
    cutout,
    equalize,
    flip,
    gaussian_blur,
    grayscale,
    invert,
    posterize,
    rand_augment,
    random_erasing,
    random_resized_crop,
    rotate,
    sharpness,
    shear,
    solarize,
    sometimes,
    translate,
    trivial_augment,
    vertical_flip,
)

IMAGES = pictures(12, 10)
BATCH = len(IMAGES)
SIZE = (20, 16)  # Large enough for equalize to do something.
catalogue = {
    "geometry": augment(
        *(crop(2), flip(), vertical_flip(), translate(0.2, mode="edge"), rotate(30)),
        *(shear(0.3, 0.2), random_resized_crop(SIZE)),
    ),
    "colour": augment(
        *(color_jitter(0.4, 0.4, 0.4, 0.1), grayscale(0.3), gaussian_blur(3), sharpness()),
        *(solarize(p=0.3), posterize(p=0.3), invert(0.3), autocontrast(), equalize()),
    ),
    "boxes": augment(cutout(4), random_erasing(), random_erasing(value=None)),
    "policies": augment(rand_augment(1, 9), trivial_augment(), auto_augment("cifar10")),
    "sometimes": sometimes(0.5, rotate(30), flip()),
}
each = pytest.mark.parametrize("name", catalogue)


# -- Whatever the augmentation ---------------------------------------------------------------------


@each
def test_dtype_and_shape_stay_for_colour_and_grey_of_bytes_and_numbers(name):
    for channels, dtype in (1, jnp.uint8), (3, jnp.bfloat16), (1, jnp.float32):
        images = jax.ShapeDtypeStruct((8, *SIZE, channels), dtype)
        made = jax.eval_shape(catalogue[name], KEY, images)
        assert (made.shape, made.dtype) == (images.shape, images.dtype)


@each
def test_one_program_for_many_keys_gives_what_each_key_gives(name):
    images = pictures(*SIZE)
    alone = np.asarray(jax.jit(catalogue[name])(KEY, images))
    keys = jnp.stack([jax.random.key(1), KEY])
    several = np.asarray(jax.jit(jax.vmap(catalogue[name], (0, None)))(keys, images))
    # A product of matrices is rounded in another order, and then to a whole level.
    within = 1 if name == "geometry" else 0
    np.testing.assert_allclose(several[1].astype(int), alone, rtol=0, atol=within)
    assert (several[0] != alone).any((1, 2, 3)).mean() > 0.6, "another key changed little"
    assert (alone != images).any()


def test_a_batch_over_devices_is_changed_as_on_one():
    change = augment(crop(2), flip(), rand_augment(1, 9))
    whole = np.asarray(jax.jit(change)(KEY, IMAGES))
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("batch"))
    sharded = jax.jit(change)(KEY, jax.device_put(IMAGES, split))
    np.testing.assert_array_equal(sharded, whole)

    def of_a_device(key, images):
        numbers = jnp.arange(len(images)) + jax.lax.axis_index("batch") * len(images)
        return change(jax.vmap(jax.random.fold_in, (None, 0))(key, numbers), images)

    specs = (PartitionSpec(), PartitionSpec("batch"))
    mapped = jax.shard_map(of_a_device, mesh=mesh, in_specs=specs, out_specs=specs[1])
    np.testing.assert_array_equal(jax.jit(mapped)(KEY, IMAGES), whole)


# -- Composition -----------------------------------------------------------------------------------


def test_parts_draw_the_same_alone_and_beside_others():
    together = jax.jit(augment(flip(), crop(2)))(KEY, IMAGES)
    flipped = jax.jit(flip())(KEY, IMAGES)
    np.testing.assert_array_equal(together, jax.jit(crop(2))(KEY, flipped))
    more = jax.jit(augment(invert(0.0), flip(), cutout(0), crop(2)))(KEY, IMAGES)
    np.testing.assert_array_equal(more, together)


def test_a_second_part_of_a_kind_draws_anew_by_its_number():
    made = jax.jit(augment(flip(), flip()))(KEY, IMAGES)
    mirrored = (uniform("flip", 1) < 0.5) ^ (uniform("flip2", 1) < 0.5)
    np.testing.assert_array_equal(
        made, np.where(mirrored[:, :, None, None], np.flip(IMAGES, 2), IMAGES)
    )


def test_a_function_of_one_s_own_gets_a_key_an_image_folded_with_its_name():
    def dim(keys, images):
        return images * jax.vmap(jax.random.uniform)(keys)[:, None, None, None]

    ones = np.ones((BATCH, 1, 1, 1), np.float32)
    made = jax.jit(augment(dim))(KEY, ones)
    np.testing.assert_array_equal(np.ravel(made), np.ravel(uniform("dim", 1)))
    of_parts = Augmentation("dim", 1, lambda draw, u, images: images * u[:, :, None, None])
    np.testing.assert_array_equal(jax.jit(of_parts)(KEY, ones), made)


def test_sometimes_changes_its_share_of_the_images_and_leaves_the_rest():
    made = np.asarray(jax.jit(sometimes(0.3, invert(1.0)))(KEY, IMAGES))
    chosen = uniform("sometimes", 1)[:, 0] < 0.3
    np.testing.assert_array_equal(made, np.where(chosen[:, None, None, None], 255 - IMAGES, IMAGES))
    with pytest.raises(ValueError, match=r"sometimes: its parts made uint8\[32,4,4,3\]"):
        jax.eval_shape(sometimes(0.5, random_resized_crop(4)), KEY, IMAGES)


# -- Strengths that are traced ---------------------------------------------------------------------

traced = {
    "geometry": lambda s: augment(
        *(crop(4 * s), flip(s), translate(s), rotate(90 * s), shear(s, s), cutout(8 * s)),
        *(random_erasing(s, scale=(0.1, s)), random_resized_crop(8, scale=(s / 2, s))),
    ),
    "colour": lambda s: augment(
        *(color_jitter(s, s, s, s / 2), gaussian_blur(3, (0.1, 2 * s)), solarize(256 * s, s)),
        *(posterize(8 * s, s), sharpness(1 + s, s), grayscale(s), invert(s), autocontrast(s)),
        *(sometimes(s, flip()), rand_augment(1, 18 * s)),
    ),
}


@pytest.mark.parametrize("name", traced)
def test_a_traced_strength_gives_what_the_python_number_gives(name):
    swept = jax.jit(jax.vmap(lambda strength: traced[name](strength)(KEY, IMAGES)))
    several = swept(jnp.array([0.25, 0.5]))
    made = np.asarray(jax.jit(traced[name](0.5))(KEY, IMAGES)).astype(int)
    within = 1 if name == "geometry" else 0
    np.testing.assert_allclose(several[1], made, rtol=0, atol=within)
    assert (np.asarray(several[0]) != made).any(), "the strength changed nothing"


# -- Errors ----------------------------------------------------------------------------------------

wrong = {
    "crop: padding must be of 0 or more, got -1": lambda: crop(-1),
    "crop: mode='wrap' is unknown: take zero, reflect, edge": lambda: crop(2, mode="wrap"),
    "flip: p must be between 0 and 1, got 1.5": lambda: flip(1.5),
    "flip: p must be between 0 and 1, got nan": lambda: flip(float("nan")),
    "translate: fraction must be between 0 and 1, got 2": lambda: translate(2),
    "rotate: degrees must be between 0 and 360, got -3": lambda: rotate(-3),
    "shear: y must be of 0 or more, got -1": lambda: shear(0.1, -1),
    "cutout: size must be of 0 or more, got -8": lambda: cutout(-8),
    "random_erasing: p must be between": lambda: random_erasing(2.0),
    "random_erasing: scale goes from least to most": lambda: random_erasing(scale=(0.5, 0.1)),
    "random_resized_crop: scale must be between 0 and 1": lambda: random_resized_crop(
        8, scale=(0.1, 2)
    ),
    "random_resized_crop: ratio must be a pair": lambda: random_resized_crop(8, ratio=(1.0,)),
    "color_jitter: brightness must be of 0": lambda: color_jitter(-0.1),
    "color_jitter: hue must be between 0 and 0.5, got 0.7": lambda: color_jitter(hue=0.7),
    "gaussian_blur: size must be odd, got 4: take 5": lambda: gaussian_blur(4),
    "posterize: bits must be between 0 and 8, got 9": lambda: posterize(9),
    "posterize: bits must be a whole number, got 4.5": lambda: posterize(4.5),
    "crop: padding must be a whole number, got 2.5": lambda: crop(2.5),  # pyright: ignore[reportArgumentType]
    "cutout: size must be a whole number, got 7.5": lambda: cutout(7.5),  # pyright: ignore[reportArgumentType]
    "sharpness: factor must be of 0 or more, got inf": lambda: sharpness(float("inf")),
    "gaussian_blur: sigma must be a pair (least, most), got 2.0": lambda: gaussian_blur(
        3,
        2.0,  # pyright: ignore[reportArgumentType]
    ),
    "rand_augment: operations must be a whole number of 0 or more, got True": lambda: rand_augment(
        True, 9
    ),
    "solarize: threshold must be between 0 and 256": lambda: solarize(300),
    "rand_augment: magnitude must be between 0 and 30, got 31": lambda: rand_augment(2, 31),
    "rand_augment: operations must be a whole number": lambda: rand_augment(-1, 9),
    "trivial_augment: bins must be a whole number of 2": lambda: trivial_augment(bins=1),
    "sometimes: p must be between": lambda: sometimes(-1, flip()),
}


@pytest.mark.parametrize("message", wrong)
def test_a_number_out_of_range_is_refused_by_name(message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        wrong[message]()


no_number: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "crop: padding must be a number, got '4'": (crop, {"padding": "4"}),
    "flip: p must be a number, got None": (flip, {"p": None}),
    "flip: p must be a number, got True": (flip, {"p": True}),
    "rotate: fill must be a number, or one a channel, got 'black'": (
        rotate,
        {"degrees": 9, "fill": "black"},
    ),
    "cutout: value must be a number, or one a channel, got (1, 'x')": (
        cutout,
        {"size": 4, "value": (1, "x")},
    ),
    "random_erasing: value must be a number, or one a channel, got 'random'": (
        random_erasing,
        {"value": "random"},
    ),
    "rand_augment: operations decides on what is compiled, and cannot be traced": (
        rand_augment,
        {"operations": jnp.int32(2), "magnitude": 9},
    ),
}


@pytest.mark.parametrize("message", no_number)
def test_what_is_no_number_is_refused_by_name(message):
    function, arguments = no_number[message]
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        function(**arguments)


def test_what_does_not_fit_the_images_is_refused():
    with pytest.raises(
        ValueError, match=r"^crop: padding=10 would move uint8\[32,12,10,3\] out of"
    ):
        crop(10)(KEY, IMAGES)
    with pytest.raises(ValueError, match=r"^cutout: size=13 is more than .*: give 12 or less"):
        cutout(13)(KEY, IMAGES)
    with pytest.raises(ValueError, match=r"^blur_by: size=21 must be odd and less than twice"):
        gaussian_blur(21)(KEY, IMAGES)
    with pytest.raises(ValueError, match=r"value=0.5 is no level of uint8.* whole .* 0 to 255"):
        cutout(4, value=0.5)(KEY, IMAGES)
    with pytest.raises(ValueError, match=r"fill=\[0, 300, 0\] is no level of uint8"):
        rotate(9, fill=(0, 300, 0))(KEY, IMAGES)
    with pytest.raises(ValueError, match=r"value must be .* one a channel, got uint8\[2\] for"):
        cutout(4, value=(1, 2))(KEY, IMAGES)


def test_floating_images_out_of_range_are_refused_where_they_can_be_looked_at():
    normalised = (IMAGES / np.float32(255) - 0.5) / 0.25
    for change in grayscale(), color_jitter(0.4), rand_augment(1, 9):
        with pytest.raises(
            ValueError,
            match=r"^\w+ takes floating images of values in \[0, 1\], got float32.* from -2 to 2:",
        ):
            change(KEY, normalised)
    with pytest.raises(ValueError, match=r"from nan to nan"):
        grayscale()(KEY, np.full((2, 3, 3, 3), np.nan, np.float32))
    # What only moves or hides pixels takes any range.
    assert crop(2)(KEY, normalised).dtype == jnp.float32


def test_what_is_no_batch_of_images_is_refused():
    with pytest.raises(ValueError, match=r"needs an image or more, with pixels, got uint8\[0,12"):
        rand_augment(1, 9)(KEY, IMAGES[:0])
    with pytest.raises(
        ValueError, match=r"needs images .* got uint8\[12,10,3\]: .* images\[None\]"
    ):
        flip()(KEY, IMAGES[0])
    with pytest.raises(TypeError, match=r"takes images of uint8, or floating ones, got int32"):
        flip()(KEY, IMAGES.astype(np.int32))
    with pytest.raises(TypeError, match=r"got uint16\[.*by \(images // 257\)\.astype"):
        flip()(KEY, IMAGES.astype(np.uint16))
    with pytest.raises(ValueError, match=r"grayscale knows images of 1 channel .* 3 .*12,10,2\]"):
        grayscale()(KEY, IMAGES[..., :2])
    with pytest.raises(TypeError, match=r"a key of jax.random.key, got \w+: for an old one"):
        flip()(jax.random.PRNGKey(0), IMAGES)
    with pytest.raises(
        ValueError, match=r"one key, or one an image, got 2 for uint8\[32.*give jax"
    ):
        flip()(jax.random.split(KEY, 2), IMAGES)
    with pytest.raises(TypeError, match=r"a part of an augmentation is one, .* not 3 \(int\)"):
        augment(flip(), 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"flip: p must be one number, got float32\[2\]"):
        flip(jnp.ones(2))
