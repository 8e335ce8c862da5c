"""Evaluates a model of a run folder and prints one closing line.

  python -m experiments.evaluate --workdir=runs/resnet20
  python -m experiments.evaluate --workdir=runs/resnet20 --split=train
  python -m experiments.evaluate --workdir=runs/resnet20 --model=average
  python -m experiments.evaluate --workdir=runs/resnet20 --deep
  python -m experiments.evaluate --workdir=runs/resnet20 --features --corruptions=all

Nothing is trained. The first three write nothing; --deep, and all that goes with it, writes figures
and pictures into DIR/evaluation. docs/evaluate.md says what they tell.
"""

import sys

from absl import flags

from convjax.allocator import keep_freed_memory
from convjax.config import UserError
from convjax.flags import guard, leave, parse, run_folder
from convjax.names import trust_only


def main(argv: list[str]) -> None:
    """Evaluates what `argv` asks for; raises UserError for what a person can put right."""
    options = flags.FlagValues()
    workdir = flags.DEFINE_string("workdir", None, "the run's folder", flag_values=options)
    text = "the split of the data; without it, that which the run was tested on"
    split = flags.DEFINE_string("split", None, text, flag_values=options)
    text = "newest or average of the newest checkpoint, or best, as the run was configured"
    model = flags.DEFINE_string("model", "newest", text, flag_values=options)
    text = "call functions of other packages that the run's config names"
    trust = flags.DEFINE_bool("trust", False, text, flag_values=options)
    text = "scores by class, intervals, calibration and mistakes, with pictures"
    deep = flags.DEFINE_bool("deep", False, text, flag_values=options)
    text = "all of --deep, and a k-NN and a linear probe on the features"
    features = flags.DEFINE_bool("features", False, text, flag_values=options)
    text = "the split that features are looked up in; without it, that which the run was trained on"
    bank = flags.DEFINE_string("bank", None, text, flag_values=options)
    text = "all of --deep, and accuracy through corruptions: all, or names such as fog,snow"
    corruptions = flags.DEFINE_string("corruptions", None, text, flag_values=options)
    text = "how many bins of confidence the calibration error has"
    bins = flags.DEFINE_integer("bins", 15, text, flag_values=options)
    parse(options, argv, __doc__)
    folder = run_folder(workdir.value)
    more = features.value or corruptions.value is not None
    if not 1 <= bins.value <= 1000:
        raise UserError(f"--bins is {bins.value}: give 1 to 1000")
    for name in ("bank", "bins"):
        if options[name].present and not (deep.value or more):
            raise UserError(f"--{name} is part of --deep: give --deep, too, or leave it out")

    if not trust.value:
        trust_only(())
    keep_freed_memory()
    # They import JAX: not before all that can be checked without it is right.
    from convjax import compiler, run

    compiler.keep_programs()
    if not (deep.value or more):
        print(run.evaluate(folder, split.value, model.value))
        return
    from convjax.insight.evaluation.evaluate import Wanted

    wanted = Wanted(split.value, bins.value, features.value, bank.value, corruptions.value)
    print(run.evaluate_deeply(folder, wanted, model.value))


if __name__ == "__main__":
    leave(guard(main, sys.argv))
