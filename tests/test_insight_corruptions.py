"""Corruptions against their published formulas, in NumPy, SciPy, Matplotlib and Pillow."""

import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.sparse.csgraph
import scipy.stats
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image

from convjax.config import UserError
from convjax.insight.evaluation.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    blur,
    corruption,
    digital,
    names_of,
    noise,
    spatter,
    weather,
)
from convjax.insight.evaluation.corruptions.jpeg import jpeg_compression
from convjax.insight.evaluation.corruptions.sampling import boxes, cut, smoothing, zooming
from convjax.training import parallel

KEY = jax.random.key(7)
SIZES = [(32, 32), (19, 24)]


def picture(height=32, width=32, channels=3, seed=0):
    """A picture with edges and with slopes, float64 in [0, 1], of whole levels."""
    draw = np.random.default_rng(seed)
    rough = draw.integers(0, 256, (6, 6, channels)).astype(np.uint8)
    planes = [
        np.asarray(Image.fromarray(rough[..., i]).resize((width, height), Image.Resampling.BICUBIC))
        for i in range(channels)
    ]
    image = np.stack(planes, -1).astype(np.float64)
    image[: height // 3, : width // 2] = draw.integers(0, 256, channels)
    return image / 255


def ours(function, image, *amounts):
    """What a corruption makes of an image in float32."""
    static = () if function is jpeg_compression else tuple(range(2, 2 + len(amounts)))
    program = jax.jit(function, static_argnums=static)
    return np.asarray(program(KEY, jnp.asarray(image, jnp.float32), *amounts), np.float64)


@pytest.fixture(scope="module", autouse=True)
def compiled_in_haste():
    """Most of the time here goes into compiling programs that run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


# -- Noise -----------------------------------------------------------------------------------------


def test_gaussian_noise_is_normal_and_of_its_scale():
    found = ours(noise.gaussian_noise, np.full((60, 60, 3), 0.5), 0.08) - 0.5
    assert scipy.stats.kstest(found.ravel() / 0.08, "norm").pvalue > 0.01


def test_speckle_noise_grows_with_the_level():
    image = np.stack([np.full((60, 60), 0.2), np.full((60, 60), 0.9)], -1)
    found = (ours(noise.speckle_noise, image, 0.12) - image) / image / 0.12
    assert scipy.stats.kstest(found[..., 0].ravel(), "norm").pvalue > 0.01
    assert scipy.stats.kstest(found[..., 1].ravel(), "norm").pvalue > 0.01


def test_shot_noise_counts_photons_as_poisson_does():
    found = ours(noise.shot_noise, np.full((60, 60, 3), 0.25), 12.0) * 12
    np.testing.assert_allclose(found, np.round(found), atol=1e-5)
    counts = np.bincount(np.round(found).astype(int).ravel(), minlength=20)[:9]
    expected = scipy.stats.poisson.pmf(range(9), 3) * found.size
    np.testing.assert_allclose(counts, expected, atol=4.5 * np.sqrt(expected.max()))


def test_impulse_noise_is_salt_and_pepper_alike_of_its_amount():
    found = ours(noise.impulse_noise, np.full((100, 100, 3), 0.5), 0.27)
    salt, pepper = (found == 1).mean(), (found == 0).mean()
    deviation = np.sqrt(0.135 * 0.865 / found.size)
    np.testing.assert_allclose([salt, pepper], 0.135, atol=4 * deviation)
    assert set(np.unique(found)) == {0, 0.5, 1}


# -- Blur ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sigma", [0.4, 1.0, 6.0])
def test_gaussian_blur_is_that_of_scipy(size, sigma):
    image = picture(*size)
    expected = scipy.ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest")
    np.testing.assert_allclose(ours(blur.gaussian_blur, image, sigma), expected, atol=1e-6)


@pytest.mark.parametrize(("radius", "soft"), [(0.3, 0.4), (1.5, 0.1), (3, 0.1), (10, 0.5)])
def test_defocus_is_the_mean_over_a_disk_with_a_soft_edge(radius, soft):
    image, reach = picture(), 8 if radius <= 8 else 10
    place = np.arange(-reach, reach + 1)
    kernel = (place[:, None] ** 2 + place**2 <= radius**2).astype(float)
    kernel /= kernel.sum()
    line = np.exp(-((np.arange(-1, 2) if reach == 8 else np.arange(-2, 3)) ** 2) / (2 * soft**2))
    line /= line.sum()
    kernel = scipy.ndimage.correlate(kernel, np.outer(line, line), mode="mirror")
    expected = scipy.ndimage.correlate(image, kernel[..., None], mode="mirror")
    found = ours(blur.defocus_blur, image, radius, soft)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("sigma", "reach", "times"), [(0.4, 1, 2), (0.9, 2, 1)])
def test_glass_moves_pixels_one_after_the_other_as_the_published_loop_does(sigma, reach, times):
    image = picture(16, 13)
    x = scipy.ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest")
    x = np.floor(x * 255 + 1e-3) / 255
    places = [(h, w) for h in range(16 - reach, reach, -1) for w in range(13 - reach, reach, -1)]
    moves = np.asarray(jax.random.randint(KEY, (times, len(places), 2), -reach, reach))
    for turn in moves:
        for (h, w), (down, right) in zip(places, turn):
            # Two views of one array: both get the second one's colour.
            x[h, w], x[h + down, w + right] = x[h + down, w + right], x[h, w]
    expected = scipy.ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest")
    found = ours(blur.glass_blur, image, sigma, reach, times)
    # A level that lies between two may be cut off to either.
    assert np.abs(found - expected).max() < 1.5 / 255
    assert (np.abs(found - expected) < 1e-5).mean() > 0.95


@pytest.mark.parametrize("degrees", [-45.0, 0.0, 30.0, -100.0])
def test_motion_is_the_one_sided_gaussian_of_imagemagick(degrees):
    image, radius, sigma = picture(19, 24), 6, 2.0
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    expected: Any = np.zeros_like(image)
    for step, weight in enumerate(weights):
        right = int(np.ceil(step * np.cos(np.deg2rad(degrees)) - 0.5))
        down = int(np.ceil(step * np.sin(np.deg2rad(degrees)) - 0.5))
        rows = np.clip(np.arange(19) + down, 0, 18)
        cols = np.clip(np.arange(24) + right, 0, 23)
        expected += weight * image[rows][:, cols]
    streaked = jax.jit(blur.streaked, static_argnums=(2, 3))
    found = streaked(jnp.asarray(image, jnp.float32), jnp.float32(degrees), radius, sigma)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_motion_is_drawn_between_45_degrees_up_and_down():
    image = np.zeros((33, 33, 1))
    image[16, 16] = 1
    moved = jax.jit(blur.motion_blur, static_argnums=(2, 3))
    for seed in range(5):
        found = moved(jax.random.key(seed), jnp.asarray(image, jnp.float32), 6, 2.5)
        rows, cols = np.nonzero(np.asarray(found)[..., 0])
        assert (np.abs(rows - 16) <= np.abs(cols - 16)).all()
        np.testing.assert_allclose(
            np.asarray(found) * 255, np.round(np.asarray(found) * 255), atol=1e-4
        )


def clipped_zoom(image, factor):
    """As published: the middle of the image, made larger, and its middle again."""
    size = image.shape[0]
    crop = int(np.ceil(size / factor))
    top = (size - crop) // 2
    middle = image[top : top + crop, top : top + crop]
    large: Any = scipy.ndimage.zoom(middle, (factor, factor, 1), order=1)
    trim = (large.shape[0] - size) // 2
    return large[trim : trim + size, trim : trim + size]


@pytest.mark.parametrize(
    ("size", "most", "step"), [(32, 1.26, 0.01), (28, 1.11, 0.01), (40, 1.31, 0.03)]
)
def test_zoom_blur_is_the_mean_of_what_scipy_zooms(size, most, step):
    image, factors = picture(size, size), np.arange(1, most, step)
    total = image + sum(clipped_zoom(image, factor) for factor in factors)
    found = ours(blur.zoom_blur, image, most, step)
    np.testing.assert_allclose(found, total / (len(factors) + 1), atol=1e-5)


# -- Weather ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_snow_is_made_of_drawn_numbers_that_are_zoomed_streaked_and_added_twice(channels):
    mean, scale, zoom, least, radius, sigma, share = 0.3, 0.3, 1.75, 0.55, 5, 4, 0.9
    image = picture(channels=channels)
    draws, angles = jax.random.split(KEY)
    layer = mean + scale * np.asarray(jax.random.normal(draws, (32, 32, 1)), np.float64)
    layer = clipped_zoom(layer, zoom)
    layer[layer < least] = 0
    layer = np.floor(np.clip(layer, 0, 1) * 255 + 1e-3) / 255
    degrees = jax.random.uniform(angles, (), minval=-135, maxval=-45)
    layer = np.asarray(blur.streaked(jnp.asarray(layer, jnp.float32), degrees, radius, sigma))
    layer = np.round(layer * 255) / 255
    grey = image @ [0.299, 0.587, 0.114] if channels == 3 else image[..., 0]
    white = np.maximum(image, grey[..., None] * 1.5 + 0.5)
    expected = share * image + (1 - share) * white + layer + np.rot90(layer, 2)
    found = ours(weather.snow, image, mean, scale, zoom, least, radius, sigma, share)
    np.testing.assert_allclose(found, expected, atol=1.5 / 255)
    assert (np.abs(found - expected) < 1e-5).mean() > 0.9


@pytest.mark.parametrize(("size", "decay"), [(8, 3.0), (32, 1.75)])
def test_plasma_is_the_diamond_square_algorithm(size, decay):
    chance = np.asarray(jax.random.uniform(KEY, (size, size), minval=-1, maxval=1), np.float64)
    heights, step, rough = np.zeros((size, size)), size, 100.0
    while step >= 2:
        half = step // 2
        for row in range(half, size, step):
            for col in range(half, size, step):
                corners = [
                    heights[(row + a) % size, (col + b) % size]
                    for a in (-half, half)
                    for b in (-half, half)
                ]
                heights[row, col] = np.mean(corners) + rough**2 * chance[row, col]
        for row in range(0, size, half):
            for col in range((row + half) % step, size, step):
                around = [
                    heights[(row + a) % size, (col + b) % size]
                    for a, b in ((-half, 0), (half, 0), (0, -half), (0, half))
                ]
                heights[row, col] = np.mean(around) + rough**2 * chance[row, col]
        step, rough = half, rough / decay
    expected = (heights - heights.min()) / (heights.max() - heights.min())
    plasma = jax.jit(weather.plasma_fractal, static_argnums=(1, 2))
    np.testing.assert_allclose(plasma(KEY, size, decay), expected, atol=1e-5)


def test_fog_adds_plasma_and_keeps_the_maximum():
    image = picture(20, 28)
    plasma = jax.jit(weather.plasma_fractal, static_argnums=(1, 2))(KEY, 32, 2.5)
    plasma = np.asarray(plasma)[:20, :28, None]
    expected = (image + 0.75 * plasma) * image.max() / (image.max() + 0.75)
    np.testing.assert_allclose(ours(weather.fog, image, 0.75, 2.5), expected, atol=1e-5)


@pytest.mark.parametrize("amount", [0.05, 0.3, 0.5])
def test_brightness_adds_to_the_value_of_hsv(amount):
    image = picture()
    image[:4] = 0  # Black has no hue.
    hsv = rgb_to_hsv(image)
    hsv[..., 2] = np.clip(hsv[..., 2] + amount, 0, 1)
    np.testing.assert_allclose(ours(weather.brightness, image, amount), hsv_to_rgb(hsv), atol=1e-6)


# Levels of a layer of water, and what OpenCV 5.0 makes of them: `cv2.Canny(layer, 50, 150)`, and by
# the steps of the published code the relief that shines.
WATER = """
    00000000000000000000afbcbdb6af00000000000000
    0000000000000000000000b0b2afadadafb100000000
    000000000000000000000000000000b3babdb8ae0000
    0000000000000000000000000000afbac3c6c0b6b0b1
    0000000000000000aeb0ae0000adb7c0c7c9c3bbb8bc
    0000000000000000afb4b4afadb2bac0c4c5c3bebdc1
    000000000000000000b4b5af00adb3b7babdbebfc0c3
    beb600000000000000afb000000000afb1b4b8bdc2c6
    cec2b4000000000000000000000000adaeafb2b8c0c6
    daccbdb000000000000000000000aeb2b2b1b0b3bbc1
    dbd0c3b6000000000000000000aeb4b8b9b6b2b2b6bb
    cbc7c1b8af000000afb2b0adaeb1b5b8bbbbb7b5b5b8
    afb4b6b4b0adaeb1b4b3b0aeafb0b2b4b9bdbcb9b7b8
    000000000000afb2b1ad000000aeafb1b6bbbcb9b6b6
    0000000000000000000000000000aeafb2b6b6b3b0af
    0000000000000000000000000000000000aead000000
    00000000000000000000000000000000000000000000
    00000000000000000000000000000000000000000000
"""
EDGES = """
    ..........#....#......
    ..........####..###...
    ..............#....##.
    .............##......#
    ........######........
    ........#....#........
    ........#..###........
    ###......###..#.......
    ..##..........#.......
    ...#.........##.......
    ....#.......##........
    ....##.#####..........
    ####..................
    .....##.###.##........
    .............###....##
    ................####..
    ......................
    ......................
"""
RELIEF = """
    f1ebe5d49e5214000000000000003047471834687474
    e8e5dbc7904b12000000000000184c74745c6879685c
    c5c2b8985b24020000000000003485c9c9b1a1907464
    76766e562f0f0000000000000050a5fafafae7cbaea1
    30302e2212040000000000000055aafffffffcf7f7f6
    0000001420200c00000000000055aafffffffcfcfcff
    0000002c4b5024050c0c0c000055aaffffffffffffff
    342818537d76301d40584c240c55aafffffffffefcfb
    896134406a69352e4c644c240c55aafffffffffcf9f6
    8961342840391d2940584024246dc2fffffefcefe4d9
    55391c000c1111110c0c00003489defffbe4cba89788
    304034280c000000000000004095e0ebcba276544538
    859589795c5055555555452834619096764e240c0500
    dae7dbcbb1a5aaaaaaaa9a79584c4741251300000000
    fffcfcf7fafaffffffffebcb9e745c50555555555555
    fffcfcfcfffffffffff5efeae4c5ada1aaaaaaaaaaaa
    f0f2edf0f0f2f2f2e7cdbbc1c9b9abb2c7cecececece
    f0f2edf0f0f2f2f2e7c3b2b7c9b9abb2c7cecececece
"""


def levels(text):
    return np.array([[*bytes.fromhex(line)] for line in text.split()])


def test_water_has_the_edges_and_the_relief_that_opencv_gives_it():
    water, relief = levels(WATER), levels(RELIEF)
    edges = np.array([[sign == "#" for sign in line] for line in EDGES.split()])
    found = jax.jit(spatter.canny)(jnp.asarray(water, jnp.int32))
    np.testing.assert_array_equal(found, edges)
    light = water * relief
    found = jax.jit(spatter.shining)(jnp.asarray(water, jnp.int32))
    np.testing.assert_allclose(found, light / light.max(), atol=1e-6)


def test_distances_to_edges_are_those_of_the_shortest_way_of_kings_and_knights():
    edges = np.random.default_rng(2).random((14, 17)) < 0.02
    lengths = {1: 1.0, 2: 1.4, 5: 2.1969}  # by the square of how far a move goes
    places = np.argwhere(np.ones_like(edges))
    squares = ((places[:, None] - places[None]) ** 2).sum(-1)
    ways = sum(np.where(squares == square, cost, 0) for square, cost in lengths.items())
    from_edges = scipy.sparse.csgraph.dijkstra(ways, indices=np.flatnonzero(edges)).min(0)
    found = np.asarray(jax.jit(spatter.chamfer)(jnp.asarray(edges))) / 65536
    assert 1 < edges.sum() < 10
    np.testing.assert_allclose(found, from_edges.reshape(edges.shape), atol=1e-3)


def test_a_layer_without_water_or_without_edges_shines_nowhere_or_everywhere():
    shining = jax.jit(spatter.shining)
    assert not np.asarray(shining(jnp.zeros((18, 22), jnp.int32))).any()
    np.testing.assert_allclose(shining(jnp.full((18, 22), 200, jnp.int32)), 1)


def smoothed(sigma):
    """Drawn numbers as spatter smooths them."""
    drawn = np.asarray(jax.random.normal(KEY, (32, 32, 1)), np.float64)[..., 0]
    return scipy.ndimage.gaussian_filter(0.65 + 0.3 * drawn, sigma, mode="nearest")


def test_spatter_adds_turquoise_water():
    image, layer = picture(), smoothed(1)
    water = np.floor(np.clip(np.where(layer < 0.69, 0, layer), 0, 1) * 255 + 1e-3)
    shine = np.asarray(jax.jit(spatter.shining)(jnp.asarray(water, jnp.int32)))[..., None]
    found = ours(spatter.spatter, image, 0.65, 0.3, 1, 0.69, 0.5, 0)
    expected = image + 0.5 * shine * np.array([175, 238, 238]) / 255
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert shine.max() > 0.999


@pytest.mark.parametrize("channels", [1, 3])
def test_spatter_covers_with_brown_mud(channels):
    image, colour = picture(channels=channels), np.array([63, 42, 20]) / 255
    grey = colour @ [0.299, 0.587, 0.114]
    mud = (smoothed(1) > 0.65).astype(float)
    mud = scipy.ndimage.gaussian_filter(mud, 0.6, mode="nearest")
    mud = np.where(mud < 0.8, 0, mud)[..., None]
    found = ours(spatter.spatter, image, 0.65, 0.3, 1, 0.65, 0.6, 1)
    expected = image * (1 - mud) + mud * (colour if channels == 3 else grey)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert 0.05 < (mud > 0).mean() < 0.6


# -- Digital ---------------------------------------------------------------------------------------


def test_contrast_moves_levels_towards_the_mean_of_their_channel():
    image = picture()
    mean = image.mean((0, 1))
    expected = (image - mean) * 0.4 + mean
    np.testing.assert_allclose(ours(digital.contrast, image, 0.4), expected, atol=1e-6)


@pytest.mark.parametrize(("factor", "more"), [(0.3, 0.0), (2.5, 0.2), (20.0, 0.2)])
def test_saturate_changes_the_saturation_of_hsv(factor, more):
    image = picture()
    image[:4] = 0
    image[4:8] = 0.5  # Grey has the hue of red.
    hsv = rgb_to_hsv(image)
    hsv[..., 1] = np.clip(hsv[..., 1] * factor + more, 0, 1)
    found = ours(digital.saturate, image, factor, more)
    np.testing.assert_allclose(found, hsv_to_rgb(hsv), atol=1e-5)


@pytest.mark.parametrize(
    ("size", "amounts"),
    [((32, 32), (0, 0, 0.08)), ((19, 24), (0.05, 0.2, 0.07)), ((32, 32), (0.1, 0.03, 0.03))],
)
def test_elastic_is_an_affine_map_and_then_smoothed_displacements(size, amounts):
    (height, width), side = size, min(size)
    strength, sigma, turn = (amount * side for amount in amounts)
    image = picture(height, width)
    keys = jax.random.split(KEY, 3)
    centre = np.array([width // 2, height // 2])
    before = centre + side // 3 * np.array([[1, 1], [1, -1], [-1, -1]])
    draws = np.asarray(jax.random.uniform(keys[0], (3, 2), minval=-turn, maxval=turn))
    # The matrix that takes the points to their new places, and so the image with them.
    homogeneous = np.concatenate([before, np.ones((3, 1))], 1)
    forward = np.linalg.solve(homogeneous, before + draws).T
    inverse = np.linalg.inv(np.concatenate([forward, [[0, 0, 1]]]))
    row, col = np.mgrid[:height, :width].astype(float)
    right, down, _ = np.einsum("ij,jhw->ihw", inverse, np.stack([col, row, np.ones(size)]))
    turned = [
        scipy.ndimage.map_coordinates(image[..., i], [down, right], order=1, mode="mirror")
        for i in range(3)
    ]

    def field(key):
        draws = np.asarray(jax.random.uniform(key, (height, width, 1), minval=-1, maxval=1))
        smooth = scipy.ndimage.gaussian_filter(
            draws[..., 0].astype(np.float64), sigma, mode="reflect", truncate=3
        )
        return smooth * strength

    places = [row + field(keys[1]), col + field(keys[2])]
    expected = [
        scipy.ndimage.map_coordinates(each, places, order=1, mode="reflect") for each in turned
    ]
    found = ours(digital.elastic_transform, image, *amounts)
    np.testing.assert_allclose(found, np.stack(expected, -1), atol=2e-3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("factor", [0.95, 0.65, 0.25])
def test_pixelate_is_pillow_shrinking_and_enlarging_by_boxes(size, factor):
    (height, width), image = size, picture(*size)
    pillow = Image.fromarray(np.round(image * 255).astype(np.uint8))
    small = pillow.resize((int(width * factor), int(height * factor)), Image.Resampling.BOX)
    expected = np.asarray(small.resize((width, height), Image.Resampling.BOX), int)
    found = np.round(ours(digital.pixelate, image, factor) * 255)
    assert np.abs(found - expected).max() <= 1
    assert (found == expected).mean() > 0.98


@pytest.mark.parametrize("size", [*SIZES, (17, 33)])
@pytest.mark.parametrize("quality", [7, 25, 50, 80])
def test_jpeg_is_what_pillow_saves_and_opens(size, quality):
    for channels in (1, 3):
        image = picture(size[0], size[1], channels)
        levels = np.round(image * 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(levels[..., 0] if channels == 1 else levels).save(
            file, "JPEG", quality=quality
        )
        expected = np.asarray(Image.open(file), float).reshape(levels.shape)
        found = ours(jpeg_compression, image, quality) * 255
        # A cosine between two multiples of the table may go to either.
        assert np.abs(found - expected).mean() < 0.6
        assert np.abs(expected - levels).mean() > 1.5 * np.abs(found - expected).mean()


@pytest.mark.parametrize("quality", [1, 7, 49, 50, 80, 100])
def test_tables_of_quantisation_are_those_that_pillow_writes(quality):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", quality=quality)
    tables = Image.open(file).quantization  # type: ignore[attr-defined]
    from convjax.insight.evaluation.corruptions import jpeg

    bright = np.asarray(jpeg._table(jpeg._BRIGHT, quality), int).ravel()
    coloured = np.asarray(jpeg._table(jpeg._COLOURED, quality), int).ravel()
    np.testing.assert_array_equal(bright, tables[0])
    np.testing.assert_array_equal(coloured, tables[1])


# -- All of them -----------------------------------------------------------------------------------


def test_matrices_are_means_of_pixels():
    for matrix in (
        smoothing(20, 3.0),
        smoothing(5, 9.0, mirrored=True),
        zooming(9, 1.3),
        boxes(10, 3),
    ):
        np.testing.assert_allclose(matrix.sum(1), 1)
        assert (matrix >= 0).all()


def test_levels_are_cut_off_and_whole_ones_stay():
    levels = jnp.arange(256, dtype=jnp.float32)
    np.testing.assert_array_equal(cut(levels / 255), levels)
    np.testing.assert_array_equal(cut(jnp.array([-1.0, 0.5, 2.0])), [0, 127, 255])


@pytest.fixture(scope="module")
def batch():
    images = [np.round(picture(seed=seed) * 255).astype(np.uint8) for seed in range(8)]
    return jnp.asarray(np.stack(images))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_changes_images_and_more_where_its_amounts_grow(batch, name):
    # Those whose severities share a program are seen at two of them.
    severities = (1, 5) if CORRUPTIONS[name].traced else (5,)
    far = []
    for severity in severities:
        found = corruption(name, severity, (32, 32, 3))(KEY, jnp.arange(8), batch)
        assert (found.shape, found.dtype) == (batch.shape, jnp.uint8)
        far.append(np.abs(np.asarray(found, int) - np.asarray(batch, int)).mean())
    assert far[0] > 0.5
    # Saturate takes colour away at first, and adds some later.
    assert name == "saturate" or far == sorted(far)


@pytest.mark.parametrize("name", ["gaussian_noise", "motion_blur"])
def test_what_becomes_of_an_image_depends_on_its_number_and_not_on_its_batch(batch, name):
    change = corruption(name, 3, (32, 32, 3))
    whole = change(KEY, jnp.arange(8), batch)
    part = change(KEY, jnp.arange(4, 8), batch[4:])
    np.testing.assert_array_equal(part, whole[4:])
    same = change(KEY, jnp.arange(8), jnp.broadcast_to(batch[:1], batch.shape))
    assert (np.asarray(same[0]) != np.asarray(same[1])).any()
    # Split over eight devices, too.
    mapper = parallel.make("sharded")
    spread = change(KEY, *mapper.shard((np.arange(8, dtype=np.int32), np.asarray(batch))))
    np.testing.assert_array_equal(spread, whole)


def test_large_images_have_larger_amounts():
    image = jnp.asarray(np.round(picture(96, 96)[None] * 255), jnp.uint8)
    number = jnp.zeros(1, jnp.int32)
    found = corruption("contrast", 1, (96, 96, 3))(KEY, number, image)
    mean = np.asarray(image[0], np.float64).mean((0, 1))
    expected = np.floor((np.asarray(image[0], np.float64) - mean) * 0.4 + mean + 1e-3)
    assert np.abs(np.asarray(found[0], int) - expected).max() <= 1


def test_every_corruption_has_five_severities_for_both_sizes():
    for each in CORRUPTIONS.values():
        assert len(each.small) == len(each.large) == len(SEVERITIES) == 5


def test_grey_images_have_all_but_those_that_need_colours():
    assert {*CORRUPTIONS} - {*names_of("all", 1)} == {"saturate"}
    assert names_of("all", 3) == [*CORRUPTIONS]
    assert names_of(" fog, snow,fog", 1) == ["fog", "snow"]


@pytest.mark.parametrize(
    ("chosen", "channels", "expected"),
    [
        ("fogg", 3, "no corruption 'fogg'; did you mean 'fog'"),
        ("", 3, "no corruption ''"),
        ("fog,frost", 3, "frost is made of photographs, which are not here"),
        ("fog,saturate", 1, "saturate needs colours, and the images are grey"),
        ("all", 4, "the images have 4 channels"),
    ],
)
def test_wrong_names_are_refused(chosen, channels, expected):
    with pytest.raises(UserError, match=expected):
        names_of(chosen, channels)


@pytest.mark.parametrize(
    ("name", "severity", "channels"), [("fogg", 1, 3), ("fog", 0, 3), ("fog", 6, 3), ("fog", 1, 2)]
)
def test_wrong_corruptions_are_refused(name, severity, channels):
    with pytest.raises(ValueError, match="fog"):
        corruption(name, severity, (32, 32, channels))
