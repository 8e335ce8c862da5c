"""Measures what watching for numbers that are not finite costs a step of training.

    python -m benchmarks.watch
    python -m benchmarks.watch --network=wrn_16_4 --batch=8 --optimizer=adamw --rounds=101

The same step of the same network, of a state with a watch and of one without, takes turns on random
images, 32x32 in colour; the figure is the median over all turns of the ratio of the two.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from convjax import models
from convjax.allocator import keep_freed_memory
from convjax.flags import guard, parse
from convjax.training import optimizer as optimizers
from convjax.training import parallel, schedule
from convjax.training.loss import cross_entropy
from convjax.training.state import init_state
from convjax.training.step import Batch, make_step

USUAL = ("lenet5:128", "resnet20:32", "wrn_16_4:8")
LEARNING_RATE = 1e-4  # So small that no number leaves its range in thousands of steps.
SHAPE = (32, 32, 3)


def main(argv: list[str]) -> None:
    """Measures what `argv` asks for; raises UserError for what a person can put right."""
    options = flags.FlagValues()
    network = flags.DEFINE_string("network", None, "only this one", flag_values=options)
    batch = flags.DEFINE_integer("batch", 8, "its images a step", 1, flag_values=options)
    rounds = flags.DEFINE_integer("rounds", 51, "turns of each", 3, flag_values=options)
    steps = flags.DEFINE_integer("steps", 1, "steps of a turn", 1, flag_values=options)
    optimizer = flags.DEFINE_string("optimizer", "sgd", "its name", flag_values=options)
    parse(options, argv, __doc__)
    keep_freed_memory()
    chosen = USUAL if network.value is None else (f"{network.value}:{batch.value}",)
    for name, images in (each.split(":") for each in chosen):
        plain, watched = times(name, int(images), optimizer.value, rounds.value, steps.value)
        ratios = [after / before for before, after in zip(plain, watched, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        print(
            f"{name:12} batch {images:>3}, {optimizer.value}: "
            f"{1e3 * statistics.median(plain):8.2f} ms without, "
            f"{1e3 * statistics.median(watched):8.2f} ms with a watch; "
            f"{median:.4f} times ({low:.4f} to {high:.4f}, n = {len(ratios)})",
            flush=True,
        )


def times(
    name: str, images: int, algorithm: str, rounds: int, steps: int
) -> tuple[list[float], list[float]]:
    """Seconds of a step without a watch and with one, in turns; whose comes first alternates."""
    plain = _stepper(name, images, algorithm, watched=False)
    watched = _stepper(name, images, algorithm, watched=True)
    seconds: tuple[list[float], list[float]] = ([], [])
    players = [(plain, seconds[0]), (watched, seconds[1])]
    for _ in range(rounds):
        players.reverse()
        for step, kept in players:
            begun = time.perf_counter()
            for _ in range(steps):
                step()
            kept.append((time.perf_counter() - begun) / steps)
    return seconds


def _stepper(name: str, images: int, algorithm: str, *, watched: bool) -> Callable[[], None]:
    """What takes one step and waits for it; it has taken three."""
    net, mapper = models.create(name, classes=10), parallel.make("jit")
    args = {"momentum": 0.9} if algorithm == "sgd" else {}
    optimizer = optimizers.make(algorithm, schedule.make("constant", steps=1), args=args)
    hyper = mapper.replicate(optimizers.hyper_of(LEARNING_RATE, args=args))
    spec = jax.ShapeDtypeStruct((images, *SHAPE), jnp.float32)
    state = init_state(net, optimizer, jax.random.key(0), spec, hyper)
    state = mapper.place(state if watched else state._replace(watch=None))
    draw = np.random.default_rng(0)
    batch = mapper.shard(
        Batch(draw.random(spec.shape, np.float32), draw.integers(10, size=images, dtype=np.int32))
    )
    compiled = mapper.compile(make_step(net, optimizer, cross_entropy), donate=True)

    def step() -> None:
        nonlocal state
        state, _ = compiled(state, batch, hyper)
        jax.block_until_ready(state)

    for _ in range(3):
        step()
    return step


if __name__ == "__main__":
    sys.exit(guard(main, sys.argv))
