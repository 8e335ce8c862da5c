"""Measures seconds to a test accuracy, and the last one: convjax, and PyTorch channels-last.

  python -m benchmarks.accuracy
  python -m benchmarks.accuracy --config=configs/cifar10.py:small --seeds=3
  python -m benchmarks.accuracy --seeds=3 --targets=0.9,0.91 --config.epochs=4

The recipe is that of a page, the same for both: first weights, order of images, learning rates,
augmentation (crop(N) and flip). By default it is configs/fashion_mnist.py:small. Seconds are those
of training, compilation included; evaluations are left out. Accuracy is measured several times an
epoch.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks import machine
from benchmarks import record as results
from benchmarks.timing import DISTURBED
from benchmarks.trainers import TRAINERS, Curve, Start
from benchmarks.worker import Worker, alone
from convjax.config import Experiment, UserError
from convjax.flags import guard, parse_experiment
from convjax.pages import CONFIGS


def main(argv: list[str]) -> None:
    """Measures what `argv` asks for; raises UserError for what a person can put right."""
    options = flags.FlagValues()
    at_least_one: dict[str, Any] = {"lower_bound": 1, "flag_values": options}
    seeds = flags.DEFINE_integer("seeds", 5, "runs of each", **at_least_one)
    text = "test images looked at so many times an epoch"
    evaluations = flags.DEFINE_integer("evaluations", 4, text, **at_least_one)
    text = "times that a run is done, as long as others disturb it"
    tries = flags.DEFINE_integer("tries", 2, text, **at_least_one)
    text = "accuracies to reach, from 0 to 1"
    targets = flags.DEFINE_list("targets", ["0.9", "0.92", "0.93"], text, flag_values=options)
    text = "cores to use; all by default"
    threads = flags.DEFINE_integer("threads", None, text, **at_least_one)
    out = flags.DEFINE_string("out", None, "the file of results", flag_values=options)
    page = CONFIGS / "fashion_mnist.py:small"
    config = parse_experiment(options, argv, __doc__, default=str(page))
    accuracies = sorted({_share(target) for target in targets.value})
    cores = results.cores_for(threads.value)
    path = results.path_for(out.value)
    measure(config, range(seeds.value), accuracies, evaluations.value, tries.value, cores, path)


def measure(
    config: Experiment,
    seeds: Sequence[int],
    targets: Sequence[float],
    evaluations: int,
    tries: int,
    cores: Sequence[int],
    out: Path,
) -> None:
    """Trains with every seed in turn, prints each run, and writes what is known so far."""
    chosen = config.optimizer
    changed = "".join(f", {part}" for part in config.augment.parts)
    record = results.about("accuracy", cores) | {
        "targets": list(targets),
        "recipe": (
            f"{config.data.name}, model {config.model.name}, {config.epochs:g} epochs of batches "
            f"of {config.batch_size}, {chosen.name} with learning rate {chosen.learning_rate:g} "
            f"({chosen.schedule}) and weight decay {chosen.weight_decay:g}, label smoothing "
            f"{config.loss.label_smoothing:g}{changed}. Seconds are "
            "medians over seeds of the time spent on training, compilation included and "
            f"evaluations left out; accuracy is measured {evaluations} times an epoch. Runs that "
            f"other processes disturbed are left out."
        ),
        "runs": [],
        "summary": {},
    }
    for seed in seeds:
        seeded = dataclasses.replace(config, seed=seed)
        begin = alone("benchmarks.trainers:start", seeded, cores=cores)
        names = list(TRAINERS)
        for name in names if seed % 2 == 0 else reversed(names):
            record["runs"].append(_run(name, seeded, begin, evaluations, tries, cores))
            print(_line(record["runs"][-1], targets), flush=True)
            record["summary"] = summary(record["runs"], targets)
            results.write(record, out)
    print(f"written: {out}")


def _run(
    name: str,
    config: Experiment,
    begin: Start,
    evaluations: int,
    tries: int,
    cores: Sequence[int],
) -> dict[str, Any]:
    """One run; one that others disturb is done anew."""
    target = f"benchmarks.trainers:{TRAINERS[name]}"
    for _ in range(tries):
        worker = Worker(target, config, begin, cores=cores)
        with machine.watched(cores, [worker.pid]) as seen:
            curve: Curve = worker.call("run", evaluations)
        worker.close()
        run = {"with": name, "seed": config.seed, "others": seen.others, **curve._asdict()}
        if seen.others <= DISTURBED:
            break
    return run


def summary(runs: Sequence[dict[str, Any]], targets: Sequence[float]) -> dict[str, Any]:
    """What the undisturbed runs of each gave: seconds to every target, and the last accuracy."""
    names = dict.fromkeys(run["with"] for run in runs)
    good = [run for run in runs if run["others"] <= DISTURBED]
    result = {}
    for name in names:
        mine = [run for run in good if run["with"] == name]
        if not mine:
            continue
        final = [run["accuracies"][-1] for run in mine]
        seconds = [run["seconds"][-1] for run in mine]
        step = [(run["seconds"][-1] - run["first_step"]) / max(run["steps"] - 1, 1) for run in mine]
        first = [run["first_step"] for run in mine]
        reached = {}
        for target in targets:
            times = [time for run in mine if (time := seconds_to(run, target)) is not None]
            reached[str(target)] = {"n": len(times)} | (_spread(times) if times else {})
        result[name] = {
            "n": len(mine),
            "disturbed": sum(run["with"] == name for run in runs) - len(mine),
            "reached": reached,
            "accuracy": statistics.mean(final),
            "deviation": statistics.stdev(final) if len(final) > 1 else None,
            "seconds": statistics.median(seconds),
            "compile_seconds": max(statistics.median(first) - statistics.median(step), 0.0),
        }
    return result


def seconds_to(run: dict[str, Any], target: float) -> float | None:
    """Seconds of training until an evaluation first gave that accuracy; None if none did.

    >>> seconds_to({"seconds": [1.0, 2.0, 3.0], "accuracies": [0.8, 0.91, 0.9]}, 0.9)
    2.0
    """
    pairs = zip(run["seconds"], run["accuracies"], strict=True)
    return next((seconds for seconds, accuracy in pairs if accuracy >= target), None)


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _line(run: dict[str, Any], targets: Sequence[float]) -> str:
    """A run in one line."""
    times = [seconds_to(run, target) for target in targets]
    reached = ", ".join(
        f"{target:.0%} {'never' if seconds is None else f'after {seconds:.0f} s'}"
        for target, seconds in zip(targets, times)
    )
    disturbed = ", disturbed by others" if run["others"] > DISTURBED else ""
    return (
        f"{run['with']}, seed {run['seed']}: {reached}; "
        f"{run['accuracies'][-1]:.4f} after {run['seconds'][-1]:.0f} s{disturbed}"
    )


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise UserError(f"--targets has {text!r}: give accuracies between 0 and 1, such as 0.92")
    return value


if __name__ == "__main__":
    sys.exit(guard(main, sys.argv))
