"""Measures the algorithms of convolutions on this machine, and writes the table of the fastest.

    python -m benchmarks.choose --out=algorithms.txt
    CONVJAX_ALGORITHMS=algorithms.txt python -m experiments.train

Each band of shapes is measured on one sample of it, with every algorithm that applies, in turns. An
image is made by an activation first, as in a network. Plain `lax` stays where nothing beats it by a
tenth. What other processes disturb to the end is left out and told; the table is written after each
band.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import machine, record
from benchmarks.timing import Plan, Series, interleaved
from convjax.allocator import keep_freed_memory
from convjax.compiler import compiler_options
from convjax.config import UserError
from convjax.flags import guard, parse
from convjax.ops import choice
from convjax.ops.correlation import FUNCTIONS, applies
from convjax.ops.geometry import Geometry

MARGIN = 1.1


class Sample(NamedTuple):
    """A band of shapes as the table writes it, and the shape that stands for it."""

    kind: str
    window: str
    stride: str
    inputs: str
    features: str
    size: str
    places: str
    geometry: Geometry
    batch: int
    channels: int
    out: int  # features


def sample(band: str, batch: int, channels: int, features: int, size: int) -> Sample:
    """The sample of a band: square images and windows, padded to keep `size / stride`."""
    kind, window, stride, *rest = band.split()
    w, s = int(window), int(stride)
    groups = channels if kind == "depthwise" else 32 if kind == "grouped" else 1
    pads = ((w // 2, w // 2),) * 2 if w != s else ((0, 0),) * 2
    geometry = Geometry((size,) * 2, (w,) * 2, (s,) * 2, (1, 1), pads, groups)
    inputs, feature_range, sizes, places = rest
    return Sample(
        kind,
        window,
        stride,
        inputs,
        feature_range,
        sizes,
        places,
        geometry,
        batch,
        channels,
        features,
    )


SAMPLES = [
    sample("dense 1 1 any any any any", 8, 64, 256, 56),
    sample("dense 1 2 any any any any", 8, 256, 512, 56),
    sample("dense 3 1 1-2 any any any", 128, 1, 32, 28),
    sample("dense 3 1 3-4 any any any", 128, 3, 64, 32),
    sample("dense 3 1 5-31 any any any", 128, 16, 16, 32),
    sample("dense 3 1 32-63 32+ 4+ any", 128, 32, 32, 32),
    sample("dense 3 1 64-127 64+ 16+ any", 128, 64, 64, 32),
    sample("dense 3 1 64-127 64+ 4-15 any", 128, 64, 64, 8),
    sample("dense 3 1 128+ 128+ 8+ any", 128, 128, 128, 16),
    sample("dense 3 1 128+ 128+ 4-7 1024+", 128, 512, 512, 4),
    sample("dense 3 1 128+ 128+ 4-7 0-1023", 8, 512, 512, 7),
    sample("dense 3 2 3-4 any any any", 64, 3, 32, 96),
    sample("dense 3 2 5+ any any any", 128, 64, 128, 32),
    sample("dense 5 1 1-2 any any any", 128, 1, 32, 28),
    sample("dense 5 1 5+ any any any", 128, 32, 64, 14),
    sample("dense 7 2 3-4 any any any", 8, 3, 64, 224),
    sample("dense 4 4 3-4 any any any", 8, 3, 96, 224),
    sample("dense 2 2 5+ any any any", 8, 96, 192, 56),
    sample("depthwise 3 1 any any any any", 32, 144, 144, 56),
    sample("depthwise 3 2 any any any any", 32, 144, 144, 56),
    sample("depthwise 7 1 any any any any", 8, 96, 96, 56),
    sample("grouped 3 1 any any any any", 8, 128, 128, 56),
]


def main(argv: list[str]) -> None:
    """Measures what `argv` asks for; raises UserError for what a person can put right."""
    options = flags.FlagValues()
    out = flags.DEFINE_string("out", "algorithms.txt", "the table to write", flag_values=options)
    rounds = flags.DEFINE_integer(
        "rounds", 5, "turns of each algorithm", lower_bound=1, flag_values=options
    )
    only = flags.DEFINE_string(
        "only", None, "measure only bands that begin so, as in 'dense 3'", flag_values=options
    )
    parse(options, argv, __doc__)
    keep_freed_memory()
    chosen = [each for each in SAMPLES if " ".join(each[:7]).startswith(only.value or "")]
    if not chosen:
        bands = ", ".join(" ".join(each[:7]) for each in SAMPLES)
        raise UserError(f"--only={only.value!r} begins no band: the bands are {bands}")
    if not Path(out.value).absolute().parent.is_dir():
        raise UserError(f"--out={out.value}: there is no such folder")
    lines = ["  ".join(choice.Row._fields)]
    for each in chosen:
        for operation in FUNCTIONS:
            band = "  ".join((operation, *each[:7]))
            series = measured(operation, each, rounds.value)
            results = {name: one.result() for name, one in sorted(series.items())}
            times = {name: one["median"] for name, one in results.items() if "error" not in one}
            best = fastest(times, series)
            told = ", ".join(f"{name} {1e3 * t:.1f}" for name, t in times.items())
            print(f"{band}  {best or 'is left out'}   (ms: {told})", flush=True)
            for name, one in results.items():
                if "error" in one:
                    print(f"  {name} has no figure: {one['error']}", flush=True)
            if best is not None:
                lines.append(f"{band}  {best}")
        choice.read_table("\n".join(lines), out.value)
        record.write_text(Path(out.value), "\n".join(lines) + "\n")
    print(f"written: {out.value}; use it with CONVJAX_ALGORITHMS={out.value}")


def fastest(times: dict[str, float], series: dict[str, Series]) -> str | None:
    """The algorithm for the table; None where what is known decides nothing.

    times: the medians of those that have one.

    >>> fastest({"lax": 1.0, "taps": 0.95, "dot": 0.97}, {})
    'lax'
    >>> fastest({"lax": 1.0, "taps": 0.5}, {"winograd": Series(dropped=6)})
    'taps'
    >>> fastest({"taps": 0.5}, {"lax": Series(dropped=6)}) is None
    True
    """
    lax = series.get("lax")
    disturbed = lax is not None and lax.error is None and not lax.kept
    if not times or ("lax" not in times and disturbed):
        return None
    best = min(times, key=times.__getitem__)
    return "lax" if times.get("lax", math.inf) < MARGIN * times[best] else best


def measured(operation: str, each: Sample, rounds: int) -> dict[str, Series]:
    """The turns of every algorithm that applies."""
    geometry, random = each.geometry, np.random.default_rng(0)
    x = (each.batch, *geometry.size, each.channels)
    kernel = (*geometry.window, each.channels // geometry.groups, each.out)
    y = (each.batch, *geometry.out, each.out)
    shapes = {"conv": (x, kernel), "conv_input": (y, kernel), "conv_weight": (x, y)}[operation]
    operands = [jnp.asarray(random.standard_normal(shape, np.float32)) for shape in shapes]
    players = {}
    for name, function in FUNCTIONS[operation].items():
        slow = name == "lax" and each.kind != "dense"  # seconds, and never the best
        if applies(operation, name, geometry, each.channels) and not slow:
            players[name] = player(lambda a, b, f=function: f(a, b, geometry), *operands)
    watch = partial(machine.watched, machine.cores(), [])
    return interleaved(players, Plan(rounds, 20.0), watch)


def player(function: Callable[..., jax.Array], *operands: jax.Array) -> Callable[[], float]:
    """A turn: the seconds of one call, compiled in the first."""

    @partial(jax.jit, compiler_options=compiler_options("cpu"))
    def compute(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
        a = jnp.maximum(a, 0)
        return function(a, b), a

    def turn() -> float:
        nonlocal warm
        if not warm:
            jax.block_until_ready(compute(*operands))
            warm = True
        begin = time.perf_counter()
        jax.block_until_ready(compute(*operands))
        return time.perf_counter() - begin

    warm = False
    return turn


if __name__ == "__main__":
    sys.exit(guard(main, sys.argv))
