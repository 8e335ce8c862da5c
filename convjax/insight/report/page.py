"""The page of a run, or of several side by side: `report.html`, one file that opens offline.

    write_report(["runs/mine"])                                 # runs/mine/report.html
    write_report(["runs/one", "runs/two"], out="both.html")

The folder `html` holds the page without its numbers; `gather` says what these are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from convjax import durable
from convjax.config import UserError
from convjax.html.page import render
from convjax.insight.report.gather import gathered, labels

NAME = "report.html"
_SCRIPTS = ("charts.js", "curves.js", "spreads.js", "confusion.js", "start.js")

Folder = str | os.PathLike[str]


def write_report(
    folders: Sequence[Folder], out: Folder | None = None, *, looks: bool = True
) -> Path:
    """Writes the report of runs, and returns its path.

    out: the file; by default `report.html` in the folder of the run, if it is one.
    looks: whether the networks are opened, with their data, for what they do with images.

    Raises:
        UserError: for no folder, one that is given twice or holds no run, several without `out`, or
            a file that cannot be written.
    """
    if not folders:
        raise UserError("--workdir is missing: give --workdir=DIR, the folder of a run")
    places = [Path(folder).resolve() for folder in folders]
    for folder, place in zip(folders, places):
        if places.count(place) > 1:
            raise UserError(f"--workdir={folder} is given twice: give each run once")
    if out is None and len(folders) > 1:
        raise UserError(
            f"a report of {len(folders)} runs belongs into none of their folders: give --out=FILE"
        )
    out = Path(folders[0]) / NAME if out is None else Path(out)
    if out.is_dir() or not out.parent.is_dir():
        why = (
            "is a folder" if out.is_dir() else f"is in a folder that does not exist ({out.parent})"
        )
        raise UserError(f"--out={out} {why}: give the path of a file")
    text = page_of(folders, looks=looks)
    try:
        durable.replace(out, text.encode())
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror}): give another --out"
        ) from error
    return out


def page_of(folders: Sequence[Folder], *, looks: bool = True) -> str:
    """The page of runs, as one text."""
    runs = [gathered(folder, looks=looks) for folder in folders]
    for run, label in zip(runs, labels(folders)):
        run["name"] = label
    paths = dict.fromkeys(each["path"] for run in runs for each in run["differs"])
    data = {
        "runs": [
            {
                "name": run["name"],
                "curves": run["curves"],
                "spreads": run["spreads"],
                "confusion": run["seen"] and run["seen"]["confusion"],
                "classes": run["seen"] and run["seen"]["classes"],
            }
            for run in runs
        ]
    }
    return render(
        "convjax.insight.report",
        "report.html",
        data=data,
        scripts=_SCRIPTS,
        plotly=True,
        runs=runs,
        title=runs[0]["name"] if len(runs) == 1 else f"{len(runs)} runs",
        paths=list(paths),
        defaults={each["path"]: each["default"] for run in runs for each in run["differs"]},
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
