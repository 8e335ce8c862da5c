"""Measures images a second from a folder of JPEG files: convjax, and PyTorch's DataLoader.

  python -m benchmarks.input
  python -m benchmarks.input --processes=2 --side=1024 --rounds=5

Everybody decodes the same files with the same Pillow, cuts a random resized crop of 224 pixels,
mirrors half of them, and gives batches of 64. PyTorch does it as torchvision's references do: crop,
resize, float32 between 0 and 1, channels first; and once more with batches of uint8. convjax gives
uint8, channels last, as its compiled step takes them. The files are made here: noise with the
spectrum of photographs, for a JPEG decoder about as much work as they are.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from benchmarks import machine
from benchmarks import record as results
from benchmarks.timing import Plan, Series, interleaved
from benchmarks.worker import Worker
from convjax.config import UserError
from convjax.flags import guard, parse

SIZE, BATCH = 224, 64
BASE = "PyTorch, float32"


def main(argv: list[str]) -> None:
    """Measures what `argv` asks for; raises UserError for what a person can put right."""
    options = flags.FlagValues()
    at_least_one: dict[str, Any] = {"lower_bound": 1, "flag_values": options}
    text = "numbers of processes that decode; 0 decodes in the one that reads"
    processes = flags.DEFINE_list("processes", ["0", "1", "2"], text, flag_values=options)
    side = flags.DEFINE_integer("side", 224, "pixels of a side of the images", **at_least_one)
    images = flags.DEFINE_integer("images", 2000, "images in the folder", **at_least_one)
    batches = flags.DEFINE_integer("batches", 20, "batches of a turn", **at_least_one)
    rounds, seconds, threads, out = results.define_flags(options, rounds=5, seconds=60.0)
    parse(options, argv, __doc__)
    if not all(number.isdecimal() for number in processes.value):
        raise UserError(f"--processes has {','.join(processes.value)!r}: give numbers from 0")
    if images.value < BATCH:
        raise UserError(f"--images={images.value}: give a batch of them at least, {BATCH}")
    numbers = [int(number) for number in processes.value]
    cores = results.cores_for(threads.value)
    path = results.path_for(out.value)
    with tempfile.TemporaryDirectory() as folder:
        size = make_photos(Path(folder), images.value, side.value)
        plan = Plan(rounds.value, seconds.value)
        about = results.about("input", cores, plan) | {
            "side": side.value,
            "bytes_per_image": round(size),
        }
        measure(Path(folder), numbers, side.value, batches.value, plan, cores, path, about)


def measure(
    folder: Path,
    processes: Sequence[int],
    side: int,
    batches: int,
    plan: Plan,
    cores: Sequence[int],
    out: Path,
    record: dict[str, Any],
) -> None:
    """Lets all read in turn, for each number of processes, and writes what is known so far."""
    head = ["processes", "with", "images/s", "quartiles", f"times {BASE}", "n"]
    record |= {"table": {"head": head, "rows": []}, "rows": []}
    for number in processes:
        workers = {
            name: Worker(f"benchmarks.input:{target}", folder, number, *rest, cores=cores)
            for name, (target, *rest) in _players(side).items()
        }
        try:
            players: dict[str, Callable[[], float]] = {
                name: functools.partial(worker.call, "turn", batches)
                for name, worker in workers.items()
            }
            # Processes that have decoded are no longer there to be asked: what others take is not
            # known, and all turns count.
            series = interleaved(players, plan, lambda: contextlib.nullcontext(machine.Seen()))
        finally:
            for worker in workers.values():
                worker.close()
        rows = _rows(number, series, batches)
        record["rows"] += rows
        record["table"]["rows"] += [[row[key] for key in ROW] for row in rows]
        for row in rows:
            print(", ".join(f"{key} {row[key]}" for key in ROW), flush=True)
        results.write(record, out)
    print(f"written: {out}")


def _players(side: int) -> dict[str, tuple[Any, ...]]:
    """Who reads: the name of a class, and what it is made with beside folder and processes."""
    players = {
        "convjax": ("Convjax", None, False),
        "convjax, 1 thread a process": ("Convjax", 1, False),
        BASE: ("Torch", False),
        "PyTorch, uint8": ("Torch", True),
    }
    if side >= 2 * SIZE:  # Of smaller images, no crop leaves enough pixels at half of the size.
        players["convjax, drafts"] = ("Convjax", None, True)
    return players


ROW = ("processes", "with", "images_per_second", "quartiles", "ratio", "n")


def _rows(processes: int, series: dict[str, Series], batches: int) -> list[dict[str, Any]]:
    for name, each in series.items():
        if each.error is not None:
            raise UserError(f"{name} with {processes} processes: {each.error}")
    speeds = {
        name: {key: each.summary()[key] for key in ("median", "quartiles", "n")}
        for name, each in series.items()
    }
    images = batches * BATCH
    return [
        {
            "processes": processes,
            "with": name,
            "images_per_second": round(images / speed["median"]),
            "quartiles": " to ".join(
                str(round(images / seconds)) for seconds in reversed(speed["quartiles"])
            ),
            "ratio": f"{speeds[BASE]['median'] / speed['median']:.2f}",
            "n": speed["n"],
        }
        for name, speed in speeds.items()
    ]


# -- The readers -----------------------------------------------------------------------------------


class Convjax:
    """convjax's stream; threads: of each process, None for all cores together."""

    def __init__(self, folder: Path, processes: int, threads: int | None, draft: bool):
        from convjax.data import open_examples
        from convjax.data.stream import Workers
        from convjax.data.views import random_resized_crop

        self.images = open_examples("image_folder", "train", folder)
        self.view = random_resized_crop(SIZE, draft=draft)
        self.workers, self.done = Workers(processes, threads), 0

    def turn(self, batches: int) -> float:
        """Seconds for so many batches, once the workers are under way; then they end."""
        from convjax.data.stream import train_batches

        warm = warm_up(self.workers.processes)
        start, self.done = self.done, self.done + warm + batches
        options: dict[str, Any] = {"seed": 0, "batch_size": BATCH, "workers": self.workers}
        with train_batches(
            self.images, self.view, start=start, stop=self.done, **options
        ) as stream:
            return timed(stream, warm)


class Torch:
    """PyTorch's DataLoader over torchvision's transforms of PIL images, in a form without it."""

    def __init__(self, folder: Path, processes: int, uint8: bool):
        self.photos, self.processes = _Photos(folder, uint8), processes

    def turn(self, batches: int) -> float:
        """Seconds for so many batches, once the workers are under way; then they end."""
        import torch

        warm = warm_up(self.processes)
        order = torch.randint(len(self.photos), ((warm + batches) * BATCH,)).tolist()
        loader = torch.utils.data.DataLoader(
            self.photos,  # type: ignore[arg-type]
            BATCH,
            sampler=order,
            num_workers=self.processes,
        )
        return timed(loader, warm)


class _Photos:
    """A data set of PyTorch's kind: image by image, cropped, mirrored, as a tensor."""

    def __init__(self, folder: Path, uint8: bool):
        self.files, self.uint8 = sorted(folder.glob("train/*/*.jpg")), uint8

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        import torch
        from PIL import Image

        with open(self.files[index], "rb") as file:  # as ImageFolder's pil_loader does
            image = Image.open(file).convert("RGB")
        upper, left, height, width = _crop_of(*image.size)
        image = image.crop((left, upper, left + width, upper + height))
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        if torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        tensor = torch.from_numpy(np.array(image, np.uint8, copy=True))
        tensor = tensor.permute(2, 0, 1).contiguous()
        label = index % 10
        return (tensor if self.uint8 else tensor.to(torch.float32).div(255)), label


def _crop_of(width: int, height: int) -> tuple[int, int, int, int]:
    """RandomResizedCrop.get_params of torchvision, with its defaults."""
    import torch

    area, log_ratio = width * height, torch.log(torch.tensor((3 / 4, 4 / 3)))
    for _ in range(10):
        target = area * torch.empty(1).uniform_(0.08, 1.0).item()
        aspect = torch.exp(torch.empty(1).uniform_(float(log_ratio[0]), float(log_ratio[1]))).item()
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            upper = int(torch.randint(0, height - h + 1, (1,)).item())
            left = int(torch.randint(0, width - w + 1, (1,)).item())
            return upper, left, h, w
    return 0, 0, height, width  # of square images, the fallback


def warm_up(processes: int) -> int:
    """Batches before the clock starts: two, and more than either has ready by itself."""
    return 2 + 4 * processes


def timed(batches: Any, warm: int) -> float:
    """Seconds from the batch of that number to the last; ending the workers does not count."""
    moments = []
    for batch in batches:
        assert len(batch[0]) == BATCH
        moments.append(time.perf_counter())
    return moments[-1] - moments[warm - 1]


# -- The files -------------------------------------------------------------------------------------


def make_photos(folder: Path, count: int, side: int) -> float:
    """Writes `folder/train/CLASS/*.jpg` at quality 90; returns the mean of their bytes.

    They are pieces of noise whose amplitude falls with the frequency, as that of photographs does
    (Field, "Relations between the statistics of natural images and the response properties of
    cortical cells", 1987), mostly grey with some colour, all different and always the same.
    """
    from PIL import Image

    rng = np.random.default_rng(0)
    extent = 2 * side
    grey, *colours = (_natural_noise(rng, extent) for _ in range(4))
    size = 0
    for number in range(count):
        pieces = []
        for _ in range(4):
            y, x = rng.integers(0, extent - side, 2)
            pieces.append((y, x))
        (y, x), *places = pieces
        light = 45 * grey[y : y + side, x : x + side]
        colour = [15 * noise[v : v + side, u : u + side] for noise, (v, u) in zip(colours, places)]
        pixels = 120 + light[..., np.newaxis] + np.stack(colour, -1)
        path = folder / f"train/{number % 10}/{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        size += path.stat().st_size
    return size / count


def _natural_noise(rng: np.random.Generator, extent: int) -> np.ndarray:
    """Noise `[extent, extent]` of mean 0 and deviation 1 with an amplitude of 1 / frequency."""
    frequency = np.hypot(np.fft.fftfreq(extent)[:, np.newaxis], np.fft.rfftfreq(extent))
    frequency[0, 0] = np.inf
    shape = frequency.shape
    spectrum = (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / frequency
    noise = np.fft.irfft2(spectrum, (extent, extent))
    return (noise / noise.std()).astype(np.float32)


if __name__ == "__main__":
    sys.exit(guard(main, sys.argv))
