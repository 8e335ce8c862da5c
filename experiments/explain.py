"""Explains what the network of a run sees in an image, as a page that opens in any browser.

  python -m experiments.explain --workdir=runs/mine --index=3,7
  python -m experiments.explain --workdir=runs/mine --images=shoe.png,coat.jpg --labels=Sneaker,Coat
  python -m experiments.explain --workdir=runs/mine --layers='stage2/*' --paint

It prints the path of each page: features and where they match, votes, error and attributions.
"""

import sys
from typing import Any

from absl import flags

from convjax.allocator import keep_freed_memory
from convjax.config import UserError
from convjax.flags import guard, leave, parse, run_folder
from convjax.names import trust_only

TEXT, LIST = flags.DEFINE_string, flags.DEFINE_list
FLAGS: tuple[tuple[Any, str, Any, str], ...] = (
    (TEXT, "workdir", None, "the run's folder"),
    (LIST, "index", [], "numbers of images of the split, such as 3,7; 0 if there are no --images"),
    (LIST, "images", [], "files of images, FILE,FILE"),
    (LIST, "labels", [], "the classes of the files, in their order"),
    (TEXT, "split", None, "the split of the data; without it, that which the run was tested on"),
    (TEXT, "model", "newest", "newest or average of the newest checkpoint, or best"),
    (TEXT, "out", None, "the folder of the pages; without it, explain in the run's"),
    (TEXT, "layers", None, "a pattern of the convolutions to tell of, such as 'stage1/*'"),
    (flags.DEFINE_integer, "among", None, "images that are looked through for what excites"),
    (flags.DEFINE_bool, "paint", False, "paint what each feature looks for, by gradient ascent"),
    (flags.DEFINE_bool, "trust", False, "call functions of other packages that the config names"),
)


def main(argv: list[str]) -> None:
    """Explains what `argv` asks for; raises UserError for what a person can put right."""
    given = flags.FlagValues()
    for define, name, default, text in FLAGS:
        define(name, default, text, flag_values=given)
    parse(given, argv, __doc__)
    folder = run_folder(given.workdir)
    if not all(each.strip().isdecimal() for each in given.index):
        raise UserError(f"--index={','.join(given.index)}: give whole numbers of 0 or more")
    if given.among is not None and given.among < 0:
        raise UserError(f"--among={given.among}: give 0 or more images")
    if given.labels and not given.images:
        raise UserError("--labels are those of --images: give files, or leave it out")

    if not given.trust:
        trust_only(())
    keep_freed_memory()
    # They import JAX: not before all that can be checked without it is right.
    from convjax import compiler
    from convjax.insight.explanation.story.explain import Options, explain

    compiler.keep_programs()
    for page in explain(
        folder,
        indices=list(map(int, given.index)),
        files=given.images,
        labels=given.labels,
        split=given.split,
        which=given.model,
        out=given.out,
        options=Options(given.layers, given.among, given.paint),
    ):
        print(page)


if __name__ == "__main__":
    leave(guard(main, sys.argv))
