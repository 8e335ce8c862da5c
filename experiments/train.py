"""Trains the ConvNet of a config, evaluates it on the test split and prints one closing line.

  python -m experiments.train
  python -m experiments.train --config=configs/fashion_mnist.py:resnet20 --workdir=runs/resnet20
  python -m experiments.train --config.optimizer.learning_rate=0.01 --config.model.args.width=32
  python -m experiments.train --config=runs/resnet20/config.json --dry_run
  python -m experiments.train --config=configs/fashion_mini.py --find_lr

The same command on the same --workdir goes on where it stopped. Several processes train together
where each is given --coordinator, --num_processes and its own --process_id; under Slurm, Open MPI
and on TPU pods none of these are needed.
"""

import sys

from absl import flags

from convjax.allocator import keep_freed_memory
from convjax.config import UserError
from convjax.flags import guard, leave, parse_experiment


def main(argv: list[str]) -> None:
    """Trains what `argv` asks for; raises UserError for what a person can put right."""
    options = flags.FlagValues()
    text = "the run's folder; without it, a new folder below runs"
    workdir = flags.DEFINE_string("workdir", None, text, flag_values=options)
    text = "print shapes, parameters, config and plan, and train nothing"
    dry_run = flags.DEFINE_bool("dry_run", False, text, flag_values=options)
    text = "go on with a run of another config, from its last checkpoint"
    override = flags.DEFINE_bool("override", False, text, flag_values=options)
    text = "end at the first number that is not finite, and name the layer that it is from"
    debug_nans = flags.DEFINE_bool("debug_nans", False, text, flag_values=options)
    text = "take some steps at rising learning rates, suggest one, and train nothing"
    find_lr = flags.DEFINE_bool("find_lr", False, text, flag_values=options)
    text = "profile so many steps, and print which layers are the dearest"
    profile = flags.DEFINE_integer("profile", 0, text, flag_values=options)
    text = "HOST:PORT of the first of several processes, where the port is free"
    coordinator = flags.DEFINE_string("coordinator", None, text, flag_values=options)
    text = "how many processes train together"
    processes = flags.DEFINE_integer("num_processes", None, text, flag_values=options)
    text = "the number of this one, from 0"
    process = flags.DEFINE_integer("process_id", None, text, flag_values=options)
    config = parse_experiment(options, argv, __doc__)
    for name in ("dry_run", "override", "debug_nans", "profile", "coordinator", "num_processes"):
        if find_lr.value and options[name].value:
            raise UserError(f"--find_lr trains no run, so that --{name} says nothing: leave it out")

    keep_freed_memory()
    # They import JAX: not before all that can be checked without it is right.
    from convjax import compiler, distributed, run

    with distributed.together(coordinator.value, processes.value, process.value):
        compiler.keep_programs()
        if find_lr.value:
            from convjax.insight.studies import rates

            rates.find_rate(config, workdir.value)
            return
        line = run.train(
            config,
            workdir.value,
            dry_run=dry_run.value,
            override=override.value,
            debug_nans=debug_nans.value,
            profile=profile.value,
            page=True,
        )
        if distributed.leads():
            print(line)


if __name__ == "__main__":
    leave(guard(main, sys.argv))
