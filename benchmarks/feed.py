"""Measures what the input costs a step: gathering in memory, and augmentation inside the step.

    python -m benchmarks.feed
    python -m benchmarks.feed --config=configs/cifar10.py:small --rounds=21

The step is that of the page, with and without its augmentation, on images of its shape; the three
take turns. Gathering goes on while the device computes, so that its share is an upper bound.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import flags

from convjax.allocator import keep_freed_memory
from convjax.assemble import Assembled, assemble
from convjax.flags import guard, parse_experiment
from convjax.pages import CONFIGS
from convjax.training import feed as feeds
from convjax.training.loss import LOSSES
from convjax.training.state import init_state
from convjax.training.step import make_step, normalise


def main(argv: list[str]) -> None:
    """Measures what `argv` asks for; raises UserError for what a person can put right."""
    options = flags.FlagValues()
    rounds = flags.DEFINE_integer("rounds", 11, "turns of each", lower_bound=3, flag_values=options)
    page = CONFIGS / "cifar10.py:small"
    config = parse_experiment(options, argv, __doc__, default=str(page))
    keep_freed_memory()
    experiment = assemble(config)
    taking, plain, changed = times(experiment, rounds.value)
    step = statistics.median(changed)
    for name, seconds in (("gathering", taking), ("step, not augmented", plain), ("step", changed)):
        quartiles = statistics.quantiles(seconds, n=4)
        spread = f"{1e3 * quartiles[0]:.2f} to {1e3 * quartiles[2]:.2f}"
        median = 1e3 * statistics.median(seconds)
        print(f"{name:22} {median:9.2f} ms   {spread} ms   n = {len(seconds)}")
    pairs = zip(plain, changed, strict=True)
    augmenting = statistics.median(after - before for before, after in pairs)
    print(f"gathering takes {statistics.median(taking) / step:.2%} of the step, ", end="")
    print(f"augmentation {augmenting / step:.2%}")


def times(experiment: Assembled, rounds: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds of gathering, of the step without its augmentation and with it, in turns."""
    config, mapper, train = experiment.config, experiment.mapper, experiment.train
    order = feeds.Order(config.seed, train.size, config.batch_size)
    feed = feeds.training(train, order, mapper)
    first = init_state(
        *(experiment.net, experiment.optimizer, jax.random.key(config.seed)),
        *(experiment.spec, experiment.hyper),
    )
    hyper = mapper.replicate(experiment.hyper)

    def stepper(change: Any) -> Callable[[Any], None]:
        step = make_step(
            *(experiment.net, experiment.optimizer, LOSSES[config.loss.name]),
            prepare=normalise(*train.statistics()),
            change=change,
            epoch=experiment.plan.epoch,
            axis=mapper.axis,
        )
        compiled = mapper.compile(feed.program(step), donate=True)
        state = mapper.place(first)

        def take(taken: Any) -> None:
            nonlocal state
            batch, *rest = taken
            state, _ = compiled(state, batch, hyper, *rest)
            jax.block_until_ready(state)

        take(feed.take(0, 1))
        return take

    plain, changed = stepper(None), stepper(experiment.change)
    seconds: tuple[list[float], ...] = ([], [], [])
    for number in range(rounds):
        begun = time.perf_counter()
        taken = jax.block_until_ready(feed.take(number, 1))
        seconds[0].append(time.perf_counter() - begun)
        for step, kept in ((plain, seconds[1]), (changed, seconds[2])):
            begun = time.perf_counter()
            step(taken)
            kept.append(time.perf_counter() - begun)
    return seconds[0], seconds[1], seconds[2]


if __name__ == "__main__":
    sys.exit(guard(main, sys.argv))
