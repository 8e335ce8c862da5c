"""Studies the trained network of a run folder: what it sees, and how its loss lies.

  python -m experiments.study --workdir=runs/resnet20
  python -m experiments.study --workdir=runs/resnet20 --study=hessian,noise --images=1000
  python -m experiments.study --workdir=runs/resnet20 --study=dead --split=test

The studies are hessian, landscape, dead, filters, field and noise. Each prints a table, and writes
figures and a picture into DIR/studies; nothing is trained. docs/studies.md says what they tell.
"""

import sys

from absl import flags

from convjax.allocator import keep_freed_memory
from convjax.config import UserError, read_json
from convjax.flags import guard, leave, parse, run_folder
from convjax.names import trust_only


def main(argv: list[str]) -> None:
    """Does the studies that `argv` asks for; raises UserError for what a person can put right."""
    options = flags.FlagValues()
    workdir = flags.DEFINE_string("workdir", None, "the run's folder", flag_values=options)
    text = "names of studies, such as hessian,dead, or all"
    names = flags.DEFINE_string("study", "all", text, flag_values=options)
    text = "the split of the data; without it, that which the run was trained on"
    split = flags.DEFINE_string("split", None, text, flag_values=options)
    text = "newest or average of the newest checkpoint, or best, as the run was configured"
    model = flags.DEFINE_string("model", "newest", text, flag_values=options)
    text = "how many images most studies go by"
    images = flags.DEFINE_integer("images", 500, text, flag_values=options)
    text = "by which images and random directions are drawn"
    seed = flags.DEFINE_integer("seed", 0, text, flag_values=options)
    text = "call functions of other packages that the run's config names"
    trust = flags.DEFINE_bool("trust", False, text, flag_values=options)
    parse(options, argv, __doc__)
    folder = run_folder(workdir.value)
    for flag, least in ((images, 1), (seed, 0)):
        if flag.value < least:
            raise UserError(f"--{flag.name} is {flag.value}: give {least} or more")

    if not trust.value:
        trust_only(())
    keep_freed_memory()
    # They import JAX: not before all that can be checked without it is right.
    from convjax import compiler
    from convjax.insight.studies import told
    from convjax.trained import trained

    chosen = told.names_of(names.value)
    compiler.keep_programs()
    seen = split.value or read_json(f"{folder}/config.json").data.train
    found = trained(folder, model.value, seen)
    for each in told.study(found, chosen, told.Wanted(seen, images.value, seed.value)):
        print(f"{each.text}\n({each.name}, {each.values['seconds']:.1f} s)\n", flush=True)
    print(f"written to {found.log.folder / 'studies'}, with pictures")


if __name__ == "__main__":
    leave(guard(main, sys.argv))
