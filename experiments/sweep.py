"""Trains many ConvNets, one for each choice of hyperparameters and each seed, and tells the best.

  python -m experiments.sweep --vary='optimizer.learning_rate=log(1e-4, 1e-1)' --trials=20
  python -m experiments.sweep --vary='model.args.width=8,16,32' --sampler=grid --seeds=3 --workers=2

The same command on the same --workdir goes on where it stopped.
"""

import sys

from absl import flags

from convjax.config import UserError
from convjax.flags import guard, leave, parse_experiment


def main(argv: list[str]) -> None:
    """Sweeps what `argv` asks for; raises UserError for what a person can put right."""
    options = flags.FlagValues()
    text = "the folder of the record and of all runs; without it, sweeps/NAME of --config.name"
    workdir = flags.DEFINE_string("workdir", None, text, flag_values=options)
    text = "PATH=log(a, b), uniform(a, b), integers(a, b) or values; may be given several times"
    vary = flags.DEFINE_multi_string("vary", [], text, flag_values=options)
    text = "runs of each point, of seeds config.seed, config.seed + 1, ..."
    seeds = flags.DEFINE_integer("seeds", 1, text, flag_values=options)
    text = "the number of points; without it, all of a grid"
    trials = flags.DEFINE_integer("trials", None, text, flag_values=options)
    text = "grid, random, halton, tpe, cmaes or gp"
    sampler = flags.DEFINE_string("sampler", "tpe", text, flag_values=options)
    text = "what is looked for, such as 'min valid loss'"
    objective = flags.DEFINE_string("objective", "max test accuracy", text, flag_values=options)
    text = "processes that train, each with its share of the cores or a GPU of its own"
    workers = flags.DEFINE_integer("workers", 1, text, flag_values=options)
    text = "seconds without a line of metrics after which a trial is taken to hang"
    hang_after = flags.DEFINE_float("hang_after", 3600.0, text, flag_values=options)
    text = "end at the first trial that fails or diverges"
    fail_fast = flags.DEFINE_bool("fail_fast", False, text, flag_values=options)
    text = "outcomes of trials that are run once more, such as failed,killed"
    retry = flags.DEFINE_list("retry", [], text, flag_values=options)
    text = "print what would be run, and run nothing"
    dry_run = flags.DEFINE_bool("dry_run", False, text, flag_values=options)
    config = parse_experiment(options, argv, __doc__)
    if not vary.value:
        raise UserError("--vary is missing: give --vary='optimizer.learning_rate=log(1e-4, 1e-1)'")
    for flag in (seeds, trials, workers, hang_after):
        if flag.value is not None and not flag.value >= 1:
            raise UserError(f"--{flag.name}={flag.value}: give 1 or more")

    # They load NumPy and Optuna: not before all that can be checked without it is right.
    from convjax.sweep.launch import launch, plan
    from convjax.sweep.space import Sweep
    from convjax.sweep.trial import outcomes

    sweep = Sweep(
        vary.value,
        config,
        seeds=seeds.value,
        trials=trials.value,
        sampler=sampler.value,
        objective=objective.value,
    )
    if dry_run.value:
        print(plan(sweep))
        return
    folder = workdir.value or f"sweeps/{config.name}"
    print(
        launch(
            sweep,
            folder,
            workers=workers.value,
            hang_after=hang_after.value,
            fail_fast=fail_fast.value,
            retry=outcomes(retry.value),
        )
    )


if __name__ == "__main__":
    leave(guard(main, sys.argv))
