"""Writes the report of a run folder, one page that opens offline, and prints where it is.

  python -m experiments.report --workdir=runs/resnet20
  python -m experiments.report --workdir=runs/one --workdir=runs/two --out=both.html

A run may be at work, finished or broken off: the page shows what is there so far.
"""

import sys

from absl import flags

from convjax.allocator import keep_freed_memory
from convjax.config import UserError
from convjax.flags import guard, leave, parse, run_folder
from convjax.names import trust_only


def main(argv: list[str]) -> None:
    """Reports what `argv` asks for; raises UserError for what a person can put right."""
    options = flags.FlagValues()
    text = "the run's folder; given several times, the runs are shown side by side"
    workdirs = flags.DEFINE_multi_string("workdir", None, text, flag_values=options)
    text = "the file to write; without it, report.html in the folder of the one run"
    out = flags.DEFINE_string("out", None, text, flag_values=options)
    text = "open the networks and their data, for confusion, mistakes and features"
    looks = flags.DEFINE_bool("images", True, text, flag_values=options)
    text = "call functions of other packages that the runs' configs name"
    trust = flags.DEFINE_bool("trust", False, text, flag_values=options)
    parse(options, argv, __doc__)
    folders = [run_folder(each) for each in workdirs.value or [None]]
    if len(folders) > 1 and out.value is None:
        raise UserError(f"--out is missing: give --out=FILE for the report of {len(folders)} runs")

    if not trust.value:
        trust_only(())
    keep_freed_memory()
    # They import JAX: not before all that can be checked without it is right.
    from convjax import compiler
    from convjax.insight.report.page import write_report

    compiler.keep_programs()
    print(write_report(folders, out.value, looks=looks.value))


if __name__ == "__main__":
    leave(guard(main, sys.argv))
