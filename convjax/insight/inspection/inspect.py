"""What `experiments.inspect` prints: a network by its name or by its config, as a table, or two.

print(inspect(of_model("resnet50", Wanted()), form="markdown"))
print(compare(of_model("resnet18", Wanted()), of_page("configs/cifar10.py:resnet20", Wanted())))
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from convjax import models
from convjax.config import Experiment, UserError
from convjax.insight.inspection import tables
from convjax.insight.inspection.difference import difference
from convjax.insight.inspection.summary import Summary, summarize
from convjax.insight.inspection.timing import Timing, measure
from convjax.layer import Layer, show
from convjax.pages import load
from convjax.training import groups
from convjax.training.rules import parse


class Wanted(NamedTuple):
    """What a network is to be described for; None is what suits it.

    input: height, width and channels of an image, or what else an example is.
    classes: how many it tells apart. batch: how many examples it is given at once.
    """

    input: Sequence[int] | None = None
    classes: int | None = None
    batch: int = 1


class Subject(NamedTuple):
    """A network to look at, for inputs of that spec; `frozen` are the paths of what stays as is."""

    name: str
    net: Layer
    spec: jax.ShapeDtypeStruct
    frozen: frozenset[str] = frozenset()


# Images and classes that the models were published for; all others are of ImageNet.
_PUBLISHED = {
    **dict.fromkeys(("lenet5", "small"), ((28, 28, 1), 10)),
    **{f"resnet{depth}": ((32, 32, 3), 10) for depth in (20, 32, 44, 56, 110)},
    **dict.fromkeys(("all_cnn_c", "airbench94"), ((32, 32, 3), 10)),
    **{f"wrn_{size}": ((32, 32, 3), 10) for size in ("16_4", "28_10", "40_4")},
}
_IMAGENET = (224, 224, 3), 1000


def of_text(text: str, wanted: Wanted) -> Subject:
    """The network that is meant: FILE.py, FILE.py:ARGUMENT or FILE.json is a page, else a model."""
    is_page = text.partition(":")[0].endswith((".py", ".json"))
    return of_config(load(text), wanted, text) if is_page else of_model(text, wanted)


def of_model(name: str, wanted: Wanted) -> Subject:
    """A model of the registry, or `package.module:function`.

    Raises:
        UserError: if there is no such model.
    """
    image, classes = _PUBLISHED.get(name, _IMAGENET)
    if wanted.input is not None and len(wanted.input) != 3 and name in models.names():
        given = ",".join(map(str, wanted.input))
        raise UserError(f"--input={given}: {name} takes images: give HEIGHT,WIDTH,CHANNELS")
    try:
        net = models.create(name, classes=wanted.classes or classes)
    except (ValueError, TypeError) as error:
        raise UserError(f"--model: {error}") from error
    return _subject(name, net, wanted.input or image, wanted.batch)


def of_config(config: Experiment, wanted: Wanted, name: str = "") -> Subject:
    """The network of a config, for the images of its data; or, with an input, without any data.

    Raises:
        UserError: if the data cannot be had, or the network cannot take them.
    """
    from convjax import assemble  # It imports all that trains.

    if wanted.input is None:
        images = assemble.load(config, config.data.train)
        net, image = assemble.network(config, images), images.shape
    else:
        image = wanted.input
        args = {"classes": wanted.classes or _IMAGENET[1], **config.model.args}
        try:
            net = assemble.with_norms(models.create(config.model.name, **args), config.norm)
        except (ValueError, TypeError) as error:
            raise UserError(f"config.model: {error}") from error
    subject = _subject(name or config.name, net, image, wanted.batch, config.precision)
    return subject._replace(frozen=_frozen(subject, config.optimizer.rules))


def inspect(
    subject: Subject, *, deep: bool = False, form: str = "text", timed: bool = False
) -> str:
    """The table of one network; see docs/inspect.md.

    deep: with the layers inside of blocks. form: text, json or markdown.
    timed: with the time of each layer, and its share of the roofline.

    Raises:
        UserError: if the network cannot take such an input.
    """
    with _explained(subject):
        timing = measure(subject.net, subject.spec) if timed else None
        found = _summary(subject, deep, timing)
    if form == "json":
        return tables.as_json(found)
    return tables.markdown(found) if form == "markdown" else tables.text(found)


def compare(one: Subject, other: Subject, *, deep: bool = False, form: str = "text") -> str:
    """What differs between two networks, row by row, and their totals; raises as `inspect` does."""
    found: list[Summary] = []
    for subject in (one, other):
        with _explained(subject):
            found.append(_summary(subject, deep))
    return difference(*found, form=form)


def _summary(subject: Subject, deep: bool, timing: Timing | None = None) -> Summary:
    name, net, spec, frozen = subject
    return summarize(net, spec, deep=deep, name=name, timing=timing, frozen=frozen)


def _frozen(subject: Subject, texts: Sequence[str]) -> frozenset[str]:
    """The paths of the parameters that the rules of a config freeze.

    Raises:
        ConfigError: if a rule matches no parameter.
    """
    rules = [parse(text) for text in texts]
    if not rules:
        return frozenset()
    with _explained(subject):
        params, _ = jax.eval_shape(subject.net.init, jax.random.key(0), subject.spec)
    groups.check_patterns(params, [rule.pattern for rule in rules], "config.optimizer.rules")
    of_path = groups.assign(params, rules)
    return frozenset(path for path, group in of_path.items() if group.frozen)


def _subject(
    name: str, net: Layer, example: Sequence[int], batch: int, precision: str = "float32"
) -> Subject:
    if max(example) > _LARGEST:
        text = ",".join(map(str, example))
        raise UserError(f"--input={text}: give sides and channels of at most {_LARGEST:,}")
    return Subject(name, net, jax.ShapeDtypeStruct((batch, *example), jnp.dtype(precision)))


_LARGEST = 65_535  # What is seen is known row by row.


@contextlib.contextmanager
def _explained(subject: Subject) -> Iterator[None]:
    """Makes a UserError of what a layer says to an input that it cannot take."""
    try:
        yield
    except (ValueError, TypeError) as error:
        where = [note for note in getattr(error, "__notes__", ()) if note.startswith("in ")]
        if not where:
            raise
        raise UserError(
            f"{subject.name} cannot take {show(subject.spec)}: {error}; {where[0]}; "
            "give --input=HEIGHT,WIDTH,CHANNELS"
        ) from error
