"""Measures augmentations of a batch beside NumPy, PyTorch and Pillow, interleaved, on this machine.

    python -m benchmarks.augment
    python -m benchmarks.augment --only=crop --rounds=21 --out=augment.json
    python -m benchmarks.augment --parts="crop(4)" --parts=flip --shape=128,32,32,3

Figures are ms a batch of uint8, and seconds to compile. NumPy and Pillow go through the images one
by one on one core, as a loader's process does; PyTorch changes the batch at once, on all cores, as
airbench does (Jordan, 2024).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import flags
from PIL import Image, ImageEnhance, ImageOps

from benchmarks import machine, record
from benchmarks.timing import Plan, interleaved
from convjax.augment import Draw, alternating_flip, augment, crop, cutout, flip, named, rand_augment
from convjax.augment.mix import Mix
from convjax.compiler import compiler_options
from convjax.config import UserError
from convjax.flags import guard, parse

SECONDS = 20.0  # after which a player takes no more turns
AT_LEAST = 0.05  # seconds of a turn: what is short is called as often as fills it
SHAPES = ((128, 32, 32, 3), (512, 28, 28, 1))
HEAD = ["", "images", "convjax", "quartiles", "compiled in", "beside it", "n"]


class Measurement(NamedTuple):
    """An augmentation, and what changes a NumPy batch of uint8 in the same way, by its name."""

    name: str
    change: Callable[..., Any]
    rivals: dict[str, Callable[[np.ndarray], Any]]


def main(argv: list[str]) -> None:
    """Measures what `argv` asks for; raises UserError for what a person can put right."""
    options = flags.FlagValues()
    only = flags.DEFINE_string(
        "only", None, "measure what has this in its name", flag_values=options
    )
    rounds = flags.DEFINE_integer(
        "rounds", 9, "turns of each player", lower_bound=1, flag_values=options
    )
    parts = flags.DEFINE_multi_string(
        "parts", None, "measure these parts, as a config writes them", flag_values=options
    )
    shape = flags.DEFINE_list(
        "shape", None, "batch,height,width,channels; by default several", flag_values=options
    )
    out = flags.DEFINE_string(
        "out", None, "the file of results; by default a new one", flag_values=options
    )
    parse(options, argv, __doc__)
    every = list(measurements()) if parts.value is None else [written(parts.value)]
    chosen = [each for each in every if (only.value or "") in each.name]
    if not chosen:
        names = ", ".join(each.name for each in every)
        raise UserError(f"--only={only.value!r} is in no name: {names}")
    shapes = SHAPES if shape.value is None else (batch_shape(shape.value),)
    path = record.path_for(out.value)
    plan = Plan(rounds.value, SECONDS)
    rows = []
    for each in chosen:
        for size in shapes:
            row = measured(each, size, plan)
            rows.append(row)
            print(" | ".join(cells(row)), flush=True)
    table = {"head": HEAD, "rows": [cells(row) for row in rows]}
    about = record.about("augment", machine.cores(), plan)
    record.write(about | {"rows": rows, "table": table}, path)
    print(f"written: {path}")


def written(texts: list[str]) -> Measurement:
    """The parts that are written, alone; UserError if they are none."""
    try:
        change = named.parts_of(texts)
    except ValueError as error:
        raise UserError(f"--parts: {error}") from error
    assert change is not None  # As there is a text.
    return Measurement(", ".join(texts), change, {})


def batch_shape(texts: list[str]) -> tuple[int, ...]:
    """The four sizes that are written; UserError if they are none."""
    if len(texts) != 4 or not all(text.strip().isdecimal() and int(text) for text in texts):
        raise UserError(f"--shape={','.join(texts)}: give four sizes, such as 128,32,32,3")
    return tuple(map(int, texts))


def measured(each: Measurement, shape: tuple[int, ...], plan: Plan) -> dict[str, Any]:
    """The name and shape, seconds to compile, and for each player median, quartiles, n."""
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    key, on_device = jax.random.key(0), jax.device_put(images)
    platform = jax.devices()[0].platform
    jitted = jax.jit(each.change, compiler_options=compiler_options(platform))
    begun = time.perf_counter()
    program = jitted.lower(key, on_device).compile()
    compiled = time.perf_counter() - begun
    players = {"convjax": turn(lambda: jax.block_until_ready(program(key, on_device)))}
    players |= {name: turn(partial(rival, images)) for name, rival in each.rivals.items()}
    series = interleaved(players, plan, partial(machine.watched, machine.cores(), []))
    try:
        figures = {name: one.summary() for name, one in series.items()}
    except ValueError as error:
        raise UserError(f"{each.name}: {error}") from None
    return {"name": each.name, "shape": shape, "compiled": compiled, "players": figures}


def turn(call: Callable[[], Any]) -> Callable[[], float]:
    """A turn of a player: seconds a call."""
    begun = time.perf_counter()
    call()
    call()
    calls = max(1, round(AT_LEAST / max((time.perf_counter() - begun) / 2, 1e-6)))

    def play() -> float:
        begun = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - begun) / calls

    return play


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    ours = row["players"]["convjax"]
    low, high = ours["quartiles"]
    rivals = [
        f"{name} {1e3 * figures['median']:.2f} ms"
        for name, figures in row["players"].items()
        if name != "convjax"
    ]
    return [
        row["name"],
        "x".join(map(str, row["shape"])),
        f"{1e3 * ours['median']:.2f} ms",
        f"{1e3 * low:.2f} to {1e3 * high:.2f}",
        f"{row['compiled']:.1f} s",
        ", ".join(rivals),
        str(ours["n"]),
    ]


# -- What is measured ------------------------------------------------------------------------------


def measurements() -> Iterator[Measurement]:
    """Usual compositions, then every part alone."""
    both = {"NumPy": numpy_crop_flip, "PyTorch": torch_crop_flip}
    yield Measurement("crop(4), flip()", augment(crop(4), flip()), both)
    yield Measurement("crop(4), flip(), cutout(8)", augment(crop(4), flip(), cutout(8)), {})
    usual = augment(crop(4), flip(), rand_augment(2, 9))
    yield Measurement("crop(4), flip(), rand_augment(2, 9)", usual, {})
    yield Measurement("rand_augment(2, 9)", rand_augment(2, 9), {"Pillow": pillow_rand_augment})
    for text in ALONE:
        yield written([text])
    yield Measurement("alternating_flip()", alternating, {})
    for text in MIXTURES:
        mix = named.mix_of(text)
        assert mix is not None
        yield Measurement(text, partial(mixed, mix), {})


ALONE = (
    *("crop(4, mode='reflect')", "flip()", "translate(0.1)", "rotate(15)", "shear(0.3, 0.3)"),
    *("random_resized_crop(32)", "grayscale(0.1)", "gaussian_blur(5)", "solarize()"),
    *("color_jitter(0.4, 0.4, 0.4)", "color_jitter(0.4, 0.4, 0.4, 0.1)", "posterize()"),
    *("sharpness()", "invert()", "autocontrast()", "equalize()", "trivial_augment()"),
    *("auto_augment('cifar10')", "cutout(8)", "random_erasing()", "random_erasing(value=None)"),
)
MIXTURES = ("mixup(0.2)", "cutmix(1.0)")


def alternating(key: jax.Array, images: jax.Array) -> jax.Array:
    """Images numbered as they come, of the first epoch."""
    return alternating_flip()(Draw(key, key, jnp.arange(len(images)), 0), images)


def mixed(mix: Mix, key: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Images of ten classes, and their targets."""
    return mix(key, images, jax.nn.one_hot(jnp.arange(len(images)) % 10, 10))


def numpy_crop_flip(images: np.ndarray) -> np.ndarray:
    """Pads, and takes a window of each image, mirrored or not."""
    rng = np.random.default_rng()
    count, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    made = np.empty_like(images)
    offsets, mirrored = rng.integers(0, 9, (count, 2)), rng.random(count) < 0.5
    for i, ((top, left), mirror) in enumerate(zip(offsets, mirrored)):
        window = padded[i, top : top + height, left : left + width]
        made[i] = window[:, ::-1] if mirror else window
    return made


def torch_crop_flip(images: np.ndarray) -> torch.Tensor:
    """As airbench: rows and columns by a mask for each shift, then a flip by a mask."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    count, channels, height, width = x.shape
    padded = torch.nn.functional.pad(x, (4, 4, 4, 4))
    shift = torch.randint(0, 9, (count, 2))
    tall = torch.empty((count, channels, height, width + 8), dtype=x.dtype)
    made = torch.empty((count, channels, height, width), dtype=x.dtype)
    for s in range(9):
        mask = shift[:, 0] == s
        tall[mask] = padded[mask, :, s : s + height, :]
    for s in range(9):
        mask = shift[:, 1] == s
        made[mask] = tall[mask, :, :, s : s + width]
    mirrored = (torch.rand(count) < 0.5)[:, None, None, None]
    return torch.where(mirrored, made.flip(-1), made)


def pillow_rand_augment(images: np.ndarray) -> list[np.ndarray]:
    """RandAugment as torchvision applies it to images of Pillow's, of bytes and back."""
    rng = np.random.default_rng()
    images = images[..., 0] if images.shape[-1] == 1 else images
    made = []
    for pixels in images:
        image = Image.fromarray(pixels)
        for number in rng.integers(0, 14, 2):
            image = _OPERATIONS[number](image, 0.3 * (1 if rng.random() < 0.5 else -1))
        made.append(np.asarray(image))
    return made


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


_OPERATIONS: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    lambda image, share: image,
    lambda image, share: _affine(image, 1, 0.3 * share, 0, 0, 1, 0),
    lambda image, share: _affine(image, 1, 0, 0, 0.3 * share, 1, 0),
    lambda image, share: _affine(image, 1, 0, int(-14 * share), 0, 1, 0),
    lambda image, share: _affine(image, 1, 0, 0, 0, 1, int(-14 * share)),
    lambda image, share: image.rotate(30 * share),
    lambda image, share: ImageEnhance.Brightness(image).enhance(1 + 0.9 * share),
    lambda image, share: ImageEnhance.Color(image).enhance(1 + 0.9 * share),
    lambda image, share: ImageEnhance.Contrast(image).enhance(1 + 0.9 * share),
    lambda image, share: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * share),
    lambda image, share: ImageOps.posterize(image, 7),
    lambda image, share: ImageOps.solarize(image, 178),
    lambda image, share: ImageOps.autocontrast(image),
    lambda image, share: ImageOps.equalize(image),
)


if __name__ == "__main__":
    sys.exit(guard(main, sys.argv))
