"""Explains images to a reader: a page for each, in the run's folder `explain`.

    for page in explain("runs/mine", indices=[3, 7]):
        print(page)                                 # runs/mine/explain/explain-3.html

The numbers are those of `findings`, the pictures and sentences those of `chapters`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from convjax import durable
from convjax.config import UserError
from convjax.html.page import render
from convjax.insight.explanation.story import findings as told
from convjax.insight.explanation.story.asked import Asked, of_files, of_split
from convjax.insight.explanation.story.chapters import chapters
from convjax.insight.explanation.story.planned import Plan, planned
from convjax.runlog import cores
from convjax.trained import Trained, trained


class Options(NamedTuple):
    """What of the story may be chosen.

    layers: a pattern of the convolutions that are told of; by default a few, spread over the depth.
    among: how many images are looked through for what excites each feature; 0 for none. By default
        1,000, or as many as have a million pixels together.
    paint: whether features are painted by gradient ascent, too, and not only classes.
    steps: of gradient ascent; 0 paints nothing. By default 128, or for images of more than 2^15
        pixels as many as have 2^22 pixels together.
    """

    layers: str | None = None
    among: int | None = None
    paint: bool = False
    steps: int | None = None


def explain(
    workdir: str | os.PathLike[str],
    *,
    split: str | None = None,
    which: str = "newest",
    **chosen: Any,
) -> Iterator[Path]:
    """Writes the page of each image, and gives its path as soon as it stands.

    split: of the run's data, by default that which it was tested on.
    which: `newest`, `average` or `best`.
    chosen: as for `pages_of`.

    Raises:
        UserError: if the folder holds no run with that model; and as `pages_of` does.
    """
    yield from pages_of(trained(workdir, which, split), split=split, **chosen)


def pages_of(
    model: Trained,
    *,
    indices: Sequence[int] = (),
    files: Sequence[str] = (),
    labels: Sequence[str] = (),
    split: str | None = None,
    out: str | os.PathLike[str] | None = None,
    options: Options = Options(),
) -> Iterator[Path]:
    """As `explain`, for a model that is open already.

    indices: numbers of images of the split; by default the first, if there are no files.
    files: images to be decoded; they are given the size and the channels that the run's have.
    labels: the classes of the files, in their order; without them their error is not told.
    out: the folder of the pages, by default `explain` in the run's.

    Raises:
        UserError: for what a person can put right, all images before any page is begun.
    """
    images = model.split(split)
    asked = of_split(model, split, indices or ([] if files else [0]))
    asked += of_files(model, images, files, labels)
    folder = model.log.folder / "explain" if out is None else Path(out)
    plan = planned(model, options.layers)
    _ready(folder)
    pixels = int(np.prod(model.shape[:2]))
    count = min(1000, max(1, 2**20 // pixels)) if options.among is None else options.among
    steps = min(128, max(1, 2**22 // pixels)) if options.steps is None else options.steps
    with _workers() as workers:
        # It is compiled while the first image is told of.
        excited = workers.submit(told.excited, model, plan, images, count)
        for each in asked:
            found = told.findings(
                *(model, plan, each.pixels, each.label),
                workers=workers,
                steps=steps,
                paint_features=options.paint,
            )
            text = _page(model, plan, each, chapters(model, plan, found, excited.result()))
            page = folder / f"{each.name}.html"
            try:
                durable.replace(page, text.encode())
            except OSError as error:
                raise UserError(f"{page} cannot be written: {error.strerror}") from error
            yield page


@contextlib.contextmanager
def _workers() -> Iterator[Executor]:
    """A few threads: what one compiles, another does not wait for."""
    pool = ThreadPoolExecutor(min(4, cores()), "explain")
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _page(model: Trained, plan: Plan, asked: Asked, parts: dict[str, Any]) -> str:
    parts["picture_uri"], parts["seen_path"] = parts.pop("picture"), parts.pop("seen")
    return render(
        "convjax.insight.explanation.story",
        "page.html",
        title=f"{model.config.model.name}: {asked.source}",
        model=model.config.model.name,
        source=asked.source,
        resized=asked.resized,
        run=f"{model.log.folder}, {model.which} model",
        **parts,
    )


def _ready(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={folder}: {error.strerror}; give another folder") from error
