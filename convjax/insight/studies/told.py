"""Studies of a run, one after the other, each into files in the run's folder.

names = names_of("hessian,dead")
for told in study(trained("runs/mine"), names, Wanted("train")):
    print(told.text)                              # written to runs/mine/studies/ already
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterable, Iterator

import numpy as np

from convjax import durable
from convjax.config import UserError
from convjax.insight.studies import batches
from convjax.insight.studies.findings import STUDIES, Subject, Told, Wanted
from convjax.names import nearest
from convjax.runlog import RunError, write_json
from convjax.trained import Trained


def names_of(text: str) -> list[str]:
    """The names of studies, of a text such as "hessian,dead" or "all".

    >>> names_of("dead, noise")
    ['dead', 'noise']

    Raises:
        UserError: for a name that is none, with the nearest.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in (*STUDIES, "all"):
            raise UserError(f"--study={text}: {name!r} is no study; {nearest(name, STUDIES)}")
    return list(STUDIES) if "all" in names else list(dict.fromkeys(names))


def study(model: Trained, names: Iterable[str], wanted: Wanted) -> Iterator[Told]:
    """Does these studies one after the other, and writes each into the run's folder.

    There `studies/NAME-SPLIT.json` has the numbers, `.npz` the arrays and `.png` the picture. Each
    file is replaced as a whole.

    Raises:
        UserError: if there is no such split, too few images for a study, or the folder cannot be
            written.
    """
    seed = {"seed": wanted.seed}
    which = "" if model.which == "newest" else f", {model.which} model"
    title = f"{model.config.name}, {wanted.split}{which}"
    few = batches.sampled(model, wanted.split, wanted.images, **seed)
    subject = Subject(model, wanted, title, few)
    for name in names:
        begun = time.perf_counter()
        told = STUDIES[name](subject)
        common = {"study": name, "split": wanted.split, "model": model.which, **seed}
        seconds = {"seconds": time.perf_counter() - begun}
        told = told._replace(values={**common, **seconds, **told.values})
        _write(model, told, wanted.split)
        yield told


def _write(model: Trained, told: Told, split: str) -> None:
    """Puts what was found into the run's folder."""
    folder = model.log.folder / "studies"
    stem = re.sub(r"[^\w.%:-]", "_", f"{told.name}-{split}")
    stem += "" if model.which == "newest" else f"-{model.which}"
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **dict(told.arrays))
    try:
        folder.mkdir(exist_ok=True)
        durable.replace(folder / f"{stem}.png", told.picture)
        if told.arrays:
            durable.replace(folder / f"{stem}.npz", content.getvalue())
        write_json(folder / f"{stem}.json", told.values)
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error.strerror}): make room") from error
