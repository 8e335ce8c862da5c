"""Writes a model of a run folder as safetensors, which any framework reads, and prints one line.

  python -m experiments.export --workdir=runs/resnet20 --out=resnet20.safetensors
  python -m experiments.export --workdir=runs/resnet20 --out=resnet20.safetensors --model=best

A run starts from such a file with --config.start.weights=resnet20.safetensors.
"""

import os
import sys

from absl import flags

from convjax.config import UserError
from convjax.flags import guard, leave, parse, run_folder


def main(argv: list[str]) -> None:
    """Exports what `argv` asks for; raises UserError for what a person can put right."""
    options = flags.FlagValues()
    workdir = flags.DEFINE_string("workdir", None, "the run's folder", flag_values=options)
    text = "the file to write, FILE.safetensors"
    out = flags.DEFINE_string("out", None, text, flag_values=options)
    text = "newest or average of the newest checkpoint, or best, as the run was configured"
    model = flags.DEFINE_string("model", "newest", text, flag_values=options)
    text = "replace the file where it is there already"
    overwrite = flags.DEFINE_bool("overwrite", False, text, flag_values=options)
    parse(options, argv, __doc__)
    folder, file = run_folder(workdir.value), out.value
    if file is None or not file.endswith(".safetensors"):
        given = "is missing" if file is None else f"is {file!r}"
        raise UserError(f"--out {given}: give --out=FILE.safetensors")
    if os.path.lexists(file) and not overwrite.value:
        raise UserError(f"{file} is there already: give another --out, or --overwrite")

    # Nothing is computed: accelerators are left to those who train.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # It imports JAX: not before all that can be checked without it is right.
    from convjax import saved

    print(saved.export(folder, file, model.value, overwrite=overwrite.value))


if __name__ == "__main__":
    leave(guard(main, sys.argv))
