"""Prints a network as a table: what each layer puts out, learns, computes, holds and sees.

  python -m experiments.inspect --model=resnet50
  python -m experiments.inspect --config=configs/cifar10.py:resnet20 --config.model.args.width=32
  python -m experiments.inspect --model=vgg16 --input=64,64,3 --batch=8 --deep --time
  python -m experiments.inspect --diff resnet18 resnet50

Only --time computes anything; --diff takes pages of configs, too.
"""

import os
import sys

if __name__ == "inspect":  # Python takes it for its own: a launcher was started by its path.
    name = os.path.basename(sys.argv[0]).removesuffix(".py")
    print(f"error: start it from the folder above: python -m experiments.{name}", file=sys.stderr)
    sys.exit(2)

from absl import flags

from convjax.allocator import keep_freed_memory
from convjax.config import UserError
from convjax.flags import guard, leave, parse_experiment
from convjax.names import trust_only


def main(argv: list[str]) -> None:
    """Prints what `argv` asks for; raises UserError for what a person can put right."""
    options = flags.FlagValues()
    model = flags.DEFINE_string("model", None, "a name, or MODULE:FUNCTION", flag_values=options)
    text = "two models or pages, as --diff A B or --diff=A,B: only what differs between them"
    diff = flags.DEFINE_list("diff", [], text, flag_values=options)
    text = "HEIGHT,WIDTH,CHANNELS; without it, what the model was published for, or the data"
    size = flags.DEFINE_list("input", [], text, flag_values=options)
    text = "how many classes; without it, those of the data, or 10 or 1,000 as it was published"
    classes = flags.DEFINE_integer("classes", None, text, flag_values=options)
    batch = flags.DEFINE_integer("batch", 1, "images at once", flag_values=options)
    deep = flags.DEFINE_bool("deep", False, "layers inside of blocks, too", flag_values=options)
    timed = flags.DEFINE_bool("time", False, "how long each takes, here", flag_values=options)
    form = flags.DEFINE_string("format", "text", "or json, or markdown", flag_values=options)
    words = list(argv)
    if "--diff" in words[:-2]:
        at = words.index("--diff")
        words[at : at + 3] = [f"--diff={','.join(words[at + 1 : at + 3])}"]
    config = parse_experiment(options, words, __doc__)
    has_config = any(word.lstrip("-").startswith("config") for word in words[1:])
    if sum((model.value is not None, bool(diff.value), has_config)) > 1:
        raise UserError("give only one of --model, --config and --diff")
    if diff.value and (len(diff.value) != 2 or timed.value):
        raise UserError("--diff takes two models or pages, and no --time: give --diff A B")
    if form.value not in ("text", "json", "markdown"):
        raise UserError(f"--format={form.value}: give text, json or markdown")
    if min(batch.value, 1 if classes.value is None else classes.value) < 1:
        raise UserError("--batch and --classes are at least 1: there is nothing to look at")
    if any(not each.isdecimal() or int(each) < 1 for each in size.value):
        raise UserError(f"--input={','.join(size.value)}: give HEIGHT,WIDTH,CHANNELS")
    if any(".json" in each for each in diff.value) and not options["trust"].value:
        trust_only(each for each in diff.value if ".json" not in each)

    keep_freed_memory()
    if not timed.value:  # Nothing is computed: accelerators are left to those who train.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # They import JAX: not before all that can be checked without it is right.
    from convjax import compiler
    from convjax.insight.inspection import inspect as inspection

    compiler.keep_programs()
    wanted = inspection.Wanted([*map(int, size.value)] or None, classes.value, batch.value)
    how = {"deep": deep.value, "form": form.value}
    if diff.value:
        print(inspection.compare(*(inspection.of_text(each, wanted) for each in diff.value), **how))
        return
    named = model.value
    subject = inspection.of_model(named, wanted) if named else inspection.of_config(config, wanted)
    print(inspection.inspect(subject, timed=timed.value, **how))


if __name__ == "__main__":
    leave(guard(main, sys.argv))
