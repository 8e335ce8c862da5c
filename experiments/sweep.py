r"""Trains many ConvNets, one for each choice of hyperparameters and each seed, and tells the best.

  python -m experiments.sweep --vary='optimizer.learning_rate=log(1e-4, 1e-1)' --trials=20
  python -m experiments.sweep --vary=model.args.width=8,16 --sampler=grid --seeds=3
  python -m experiments.sweep --sweep=configs/sweeps/learning_rate.py --config.epochs=2
  python -m experiments.sweep --workdir=sweeps/learning_rate --report
  python -m experiments.sweep --vary='optimizer.learning_rate=log(1e-4, 1e-1)' --population=16 \
      --config.data.train='train[:90%]' --config.data.valid='train[90%:]'

The same command on the same --workdir goes on where it stopped.
"""

import functools
import sys
from typing import Any

from absl import flags

from convjax.config import Experiment, UserError
from convjax.flags import guard, leave, parse_experiment
from convjax.sweep.pages import asked_for, changed, folder_of, trust_values
from convjax.sweep.space import Sweep, space_of

TEXT, NUMBER, YES = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_bool
SEVERAL, REAL, LIST = flags.DEFINE_multi_string, flags.DEFINE_float, flags.DEFINE_list
FLAGS: tuple[tuple[Any, str, Any, str], ...] = (
    (TEXT, "sweep", None, "a page that makes a sweep, FILE.py or FILE.py:ARGUMENT, for --vary"),
    (TEXT, "workdir", None, "the folder of the record and of all runs; sweeps/NAME without it"),
    (SEVERAL, "vary", [], "PATH=log(a, b), uniform(a, b), integers(a, b) or values; repeatable"),
    (NUMBER, "seeds", None, "runs of each point, of seeds config.seed, config.seed + 1, ...; 1"),
    (NUMBER, "trials", None, "the number of points; without it, all of a grid"),
    (TEXT, "sampler", None, "grid, random, halton, tpe (without it), cmaes or gp"),
    (NUMBER, "population", None, "members that train at once, the worst going on from the best"),
    (REAL, "exploit_every", None, "epochs after which they do; without it, at each evaluation"),
    (TEXT, "pruner", None, "halving, hyperband or median: ends trials early that fall behind"),
    (TEXT, "objective", None, "such as 'min valid loss'; without it 'max test accuracy'"),
    (TEXT, "engine", "auto", "auto, vectorised or processes, on this machine; ray or slurm"),
    (NUMBER, "workers", None, "processes; on a cluster, trials at once"),
    (TEXT, "address", None, "of a Ray cluster; without it Ray is started on this machine"),
    (SEVERAL, "slurm", [], "KEY=VALUE of its jobs, such as partition=gpu; repeatable"),
    (NUMBER, "cpus", 1, "cores of each trial on a cluster"),
    (NUMBER, "gpus", 0, "GPUs of each trial on a cluster"),
    (REAL, "hang_after", 3600.0, "seconds without metrics after which a trial is taken to hang"),
    (YES, "fail_fast", False, "end at the first trial that fails or diverges"),
    (LIST, "retry", [], "outcomes of trials that are run once more, such as failed,killed"),
    (YES, "dry_run", False, "print what would be run, and run nothing"),
    (YES, "report", False, "write sweep.html of what is in --workdir, and run nothing"),
)

# About trials, of which a population has none.
ALONE = (
    *("seeds", "trials", "sampler", "pruner", "workers", "address", "slurm", "cpus", "gpus"),
    *("hang_after", "fail_fast", "retry"),
)


def main(argv: list[str]) -> None:
    """Sweeps what `argv` asks for; raises UserError for what a person can put right."""
    given = flags.FlagValues()
    for define, name, default, text in FLAGS:
        define(name, default, text, flag_values=given)
    page = functools.cache(lambda: asked_for(given.sweep, given.vary))
    base = lambda: page().config if given.sweep else None  # noqa: E731
    config = parse_experiment(given, argv, __doc__, base=base)
    # They load NumPy and Optuna: not before all that can be checked without it is right.
    from convjax.sweep.engines import Engine, options
    from convjax.sweep.launch import NothingFinished, launch, plan, report
    from convjax.sweep.trial import outcomes

    if given.report:
        print(report(given.workdir))
        return
    if given.population is not None or given.exploit_every is not None:
        print(evolve(given, page(), config))
        return
    fields = ("seeds", "trials", "sampler", "pruner", "objective")
    sweep = changed(page(), config, {name: given[name].value for name in fields})
    trust_values(space_of(sweep.vary))
    elsewhere = {"slurm": options(given.slurm), "cpus": given.cpus, "gpus": given.gpus}
    engine = Engine(given.engine, given.workers, given.hang_after, given.address, **elsewhere)
    if given.dry_run:
        print(plan(sweep, engine))
        return
    folder, again = given.workdir or folder_of(given.sweep, config), outcomes(given.retry)
    try:
        print(launch(sweep, folder, engine=engine, fail_fast=given.fail_fast, retry=again))
    except NothingFinished as error:
        print(error)
        raise SystemExit(1) from None


def evolve(given: flags.FlagValues, page: Sweep, config: Experiment) -> str:
    """Trains a population of what a sweep varies; returns the closing line, or the plan."""
    from convjax.sweep.population import Population, launch, plan

    if given.population is None:
        raise UserError("--exploit_every is for a population: give --population=16")
    for name in ALONE:
        if given[name].present:
            raise UserError(f"--{name} is for trials by themselves, not for --population")
    if given.engine not in ("auto", "vectorised"):
        raise UserError(f"--engine={given.engine}: a population trains by --engine=vectorised")
    trust_values(space_of(page.vary))
    population = Population(page.vary, config, given.population, given.exploit_every)
    # That of a sweep for which none is given looks at test images.
    objective = given.objective or (page.objective if page.objective != Sweep.objective else None)
    population.objective = objective or population.objective
    if given.dry_run:
        return plan(population)
    return launch(population, given.workdir or folder_of(given.sweep, config))


if __name__ == "__main__":
    leave(guard(main, sys.argv))
