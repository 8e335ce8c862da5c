"""Evaluates a model of a run folder and prints one closing line.

  python -m experiments.evaluate --workdir=runs/resnet20
  python -m experiments.evaluate --workdir=runs/resnet20 --split=train
  python -m experiments.evaluate --workdir=runs/resnet20 --model=average

Nothing is trained or written.
"""

import sys

from absl import flags

from convjax.allocator import keep_freed_memory
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
    parse(options, argv, __doc__)
    folder = run_folder(workdir.value)

    if not trust.value:
        trust_only(())
    keep_freed_memory()
    # They import JAX: not before all that can be checked without it is right.
    from convjax import compiler, run

    compiler.keep_programs()
    print(run.evaluate(folder, split.value, model.value))


if __name__ == "__main__":
    leave(guard(main, sys.argv))
