"""Measures sweeps: trials an hour by each engine, and by Optuna around a loop of PyTorch.

  python -m benchmarks.sweep
  python -m benchmarks.sweep --widths=8 --stages=2 --batch=64 --rates=8 --rounds=3

All train the same small ConvNet on the bundled images, of 8 and 16 features and of 32 and 64 unless
asked otherwise, without augmentation, with the same learning rates and seeds, on the same cores. An
hour has all that a person waits for: imports, data, compilation, trials, evaluations, checkpoints
and the record; PyTorch's loop keeps nothing. Each takes its turn in every round, and ratios are
those of the medians.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks import machine
from benchmarks import record as results
from benchmarks.worker import alone
from convjax.config import Experiment, Model, UserError
from convjax.flags import guard

# What a person writes for each; the first is what the others are compared with.
ENGINES = {
    "one after another": ["--engine=processes", "--workers=1"],
    "processes": ["--engine=processes", "--workers={cores}"],
    "vectorised": ["--engine=vectorised"],
    "vectorised=8": ["--engine=vectorised=8"],
    "auto": ["--engine=auto"],
}
TORCH = {"Optuna + PyTorch": False, "Optuna + PyTorch channels-last": True}


def main(argv: list[str]) -> None:
    """Measures what `argv` asks for; raises UserError for what a person can put right."""
    options = flags.FlagValues()
    at_least_one: dict[str, Any] = {"lower_bound": 1, "flag_values": options}
    widths = flags.DEFINE_list("widths", ["8", "32"], "of the stem", flag_values=options)
    stages = flags.DEFINE_integer("stages", 1, "after the stem", **at_least_one)
    batch = flags.DEFINE_integer("batch", 32, "images a step", **at_least_one)
    rates = flags.DEFINE_integer("rates", 32, "learning rates", **at_least_one)
    seeds = flags.DEFINE_integer("seeds", 2, "runs of each", **at_least_one)
    epochs = flags.DEFINE_float("epochs", 1.0, "of each run", flag_values=options)
    rounds = flags.DEFINE_integer("rounds", 1, "turns of each", **at_least_one)
    names = [*ENGINES, *TORCH]
    only = flags.DEFINE_list("only", names, "who takes part", flag_values=options)
    threads = flags.DEFINE_integer("threads", None, "cores to use; all by default", **at_least_one)
    out = flags.DEFINE_string("out", None, "the file of results", flag_values=options)
    options(argv)
    chosen = results.known("only", only.value, names)
    if not all(each.isdecimal() and int(each) > 0 for each in widths.value):
        raise UserError(f"--widths={','.join(widths.value)}: give whole numbers, such as 8,32")
    small = Experiment(epochs=epochs.value, batch_size=batch.value)
    configs = [
        dataclasses.replace(small, model=Model("small", {"width": width, "stages": stages.value}))
        for width in map(int, widths.value)
    ]
    measure(
        *(configs, rates.value, seeds.value, rounds.value, chosen),
        *(results.cores_for(threads.value), results.path_for(out.value)),
    )


def measure(
    configs: Sequence[Experiment],
    rates: int,
    seeds: int,
    rounds: int,
    names: Sequence[str],
    cores: Sequence[int],
    out: Path,
) -> None:
    """Has each take its turns, prints them, and writes what is known so far."""
    record = results.about("sweep", cores) | {"rates": rates, "seeds": seeds}
    record["runs"] = []
    values = [float(f"{1e-4 * 1000 ** (n / max(rates - 1, 1)):.3g}") for n in range(rates)]
    for config in configs:
        about = {**config.model.args, "batch": config.batch_size, "epochs": config.epochs}
        for turn in range(rounds):
            for name in names if turn % 2 == 0 else reversed(names):
                with machine.watched(cores, [os.getpid()]) as seen:
                    run = _run(name, config, values, range(seeds), cores)
                trials = rates * seeds
                run |= {"with": name, "trials_an_hour": 3600 * trials / run["seconds"]}
                record["runs"].append(about | run | {"others": seen.others})
                print(
                    f"width {about['width']}, {name}: {run['trials_an_hour']:.0f} trials an hour, "
                    f"best accuracy {max(run['accuracies']):.4f}",
                    flush=True,
                )
                results.write(record, out)
        for line in ratios([run for run in record["runs"] if run["width"] == about["width"]]):
            print(line, flush=True)
    print(f"written: {out}")


def ratios(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Each by how many times it is as fast as the first, by medians; lines for people.

    >>> ratios([{"with": "a", "trials_an_hour": 100.0}, {"with": "b", "trials_an_hour": 250.0}])
    ['  1.00 times: a, 100 an hour (n = 1)', '  2.50 times: b, 250 an hour (n = 1)']
    """
    by_name: dict[str, list[float]] = {}
    for run in runs:
        by_name.setdefault(run["with"], []).append(run["trials_an_hour"])
    medians = {name: statistics.median(values) for name, values in by_name.items()}
    first = next(iter(medians.values()))
    return [
        f"  {value / first:.2f} times: {name}, {value:.0f} an hour (n = {len(by_name[name])})"
        for name, value in medians.items()
    ]


def _run(
    name: str,
    config: Experiment,
    rates: Sequence[float],
    seeds: Sequence[int],
    cores: Sequence[int],
) -> dict[str, Any]:
    """One sweep: how long it took, and the test accuracies."""
    if name in TORCH:
        target = "benchmarks.rivals.torch_sweep:sweep"
        begun = time.perf_counter()
        found = alone(target, config, rates, seeds, TORCH[name], cores=cores)
        return found | {"seconds": time.perf_counter() - begun}
    with tempfile.TemporaryDirectory() as folder:
        words = [
            *(sys.executable, "-m", "experiments.sweep", f"--workdir={folder}/sweep"),
            f"--vary=optimizer.learning_rate={','.join(map(str, rates))}",
            *("--sampler=grid", f"--seeds={len(seeds)}"),
            *(each.format(cores=len(cores)) for each in ENGINES[name]),
            *(f"--config.epochs={config.epochs}", f"--config.batch_size={config.batch_size}"),
            *("--config.optimizer.schedule=cosine", "--config.optimizer.weight_decay=0"),
            *(f"--config.model.args.{each}={value}" for each, value in config.model.args.items()),
        ]
        # Nothing compiled for others is found.
        environment = os.environ | {"CONVJAX_CACHE": f"{folder}/programs"}
        begun = time.perf_counter()
        done = subprocess.run(
            ["taskset", "-c", ",".join(map(str, cores)), *words],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - begun
        if done.returncode:
            raise UserError(f"{name} ended with status {done.returncode}: {done.stderr[-2000:]}")
        text = Path(folder, "sweep", "results.csv").read_text("utf-8")
    header, *lines = [line.split(",") for line in text.splitlines()]
    place = header.index("max test accuracy")
    return {"seconds": seconds, "accuracies": [float(line[place]) for line in lines]}


if __name__ == "__main__":
    sys.exit(guard(main, sys.argv))
