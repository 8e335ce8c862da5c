"""What is doubtful about the images of a config, told or refused before anything is trained.

check_classes(config, train)                          # every class has an image to learn it from
tell_shared(config, {"train": train, "test": test})   # what is tested was not trained on
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping

import numpy as np

from convjax import distributed
from convjax.config import ConfigError, Experiment
from convjax.data import fake
from convjax.data.checks import missing_classes
from convjax.data.dataset import Faults
from convjax.data.image_folder import Folder
from convjax.data.shared import Shared, shared_files, shared_images
from convjax.training.feed import Images, OnDisk, Split


def tell_faults(config: Experiment, split: str, faults: Faults) -> None:
    """Warns of images that cannot be read and are left out of a split."""
    if faults.errors:
        from convjax.data.readable import told

        _warn(told(faults, f"{config.data.name} ({split})"))


def check_classes(config: Experiment, train: Split) -> None:
    """Raises ConfigError for classes without an image to train on; of a part of a split, warns.

    A network cannot learn such a class, and would be tested on it all the same: labels are wrong,
    or classes are named that are not there. A part may lack one because it is small.
    """
    source, chosen = train.source, config.data
    labels = source.examples.labels if isinstance(source, OnDisk) else np.asarray(source.labels)
    if labels is None or _is_noise(config):
        return
    missing = missing_classes(labels, train.classes)
    if not missing:
        return
    more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    text = (
        f"config.data.train is {chosen.train!r}, in which {len(missing)} of {len(train.classes)} "
        f"classes have no image: {', '.join(map(repr, missing[:_SHOWN]))}{more}"
    )
    if "[" in chosen.train:
        _warn(f"{text}; take a larger part, unless that is what you mean")
        return
    raise ConfigError(
        f"{text}; number labels from 0 and name only the classes that there are, or give "
        f"config.data.train={chosen.train + '[:100%]'!r} if that is what you mean"
    )


def tell_shared(config: Experiment, splits: Mapping[str, Split]) -> None:
    """Warns of images that two splits share: a result on them would be too good.

    splits: by what the config calls them.
    """
    if _is_noise(config):
        return
    for (name, one), (other_name, other) in itertools.combinations(splits.items(), 2):
        found = _shared(one, other)
        if found.first is not None:
            first, second = (_named(*each) for each in zip((one, other), found.first, strict=True))
            _warn(
                f"{found.count} of {found.of} images of config.data.{other_name} are in "
                f"config.data.{name}, too, such as {second}, which is {first}: a result on them "
                "is too good; take them out of one of the two"
            )


_SHOWN = 5  # classes that a message names


def _is_noise(config: Experiment) -> bool:
    return config.data.name.partition(":")[0] == fake.NAME


def _shared(one: Split, other: Split) -> Shared:
    match one.source, other.source:
        case Images(images, _), Images(others, _):
            return shared_images(np.asarray(images), np.asarray(others))
        case OnDisk(Folder() as folder), OnDisk(Folder() as others):
            return shared_files(folder, others)
    return Shared(0, 0)


def _named(split: Split, number: int) -> str:
    source = split.source
    if isinstance(source, OnDisk) and isinstance(source.examples, Folder):
        return source.examples.path(number)
    return f"number {number}"


def _warn(text: str) -> None:
    if distributed.leads():
        line = "".join(sign if sign.isprintable() else " " for sign in text)
        print(f"warning: {line}", file=sys.stderr)
