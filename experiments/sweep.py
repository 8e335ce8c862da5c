"""Trains many ConvNets, one for each choice of hyperparameters and each seed, and tells the best.

  python -m experiments.sweep --vary='optimizer.learning_rate=log(1e-4, 1e-1)' --trials=20
  python -m experiments.sweep --sweep=configs/sweeps/learning_rate.py --config.epochs=2
  python -m experiments.sweep --vary='optimizer.learning_rate=log(1e-4, 1e-1)' --population=16

The same command on the same --workdir goes on where it stopped.
"""

import functools
import sys
from typing import Any

from absl import flags

from convjax.flags import guard, leave, parse_experiment
from convjax.sweep.pages import FIELDS, asked_for, changed, evolve, folder_of, trust_values
from convjax.sweep.space import space_of

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
        return print(report(given.workdir))
    if given.population is not None or given.exploit_every is not None:
        return print(evolve(given, page(), config))
    sweep = changed(page(), config, {name: given[name].value for name in FIELDS})
    trust_values(space_of(sweep.vary))
    elsewhere = {"slurm": options(given.slurm), "cpus": given.cpus, "gpus": given.gpus}
    engine = Engine(given.engine, given.workers, given.hang_after, given.address, **elsewhere)
    if given.dry_run:
        return print(plan(sweep, engine))
    folder, again = given.workdir or folder_of(given.sweep, config), outcomes(given.retry)
    try:
        print(launch(sweep, folder, engine=engine, fail_fast=given.fail_fast, retry=again))
    except NothingFinished as error:
        print(error)
        raise SystemExit(1) from None


if __name__ == "__main__":
    leave(guard(main, sys.argv))
