"""How far the trials of a sweep have come: its objective at every evaluation of each.

    store.reports.add(sweep, digest, step=100, value=0.9)   # on the disk, when it returns
    news = store.reports.news(sweep)                        # of all processes, and since a mark:
    later = store.reports.news(sweep, news.mark)

They belong to trials and an objective, and so to every sweep that has both.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from convjax.sweep.database import Database

Curve = list[tuple[int, float | None]]  # (step, value) in order of steps; None if it is not finite


class News(NamedTuple):
    """What was reported in a sweep, and which trials have finished, since a mark.

    reports: (place, step, value) in the order in which they came. finished: places.
    mark: to ask for what comes after these.
    """

    reports: list[tuple[int, int, float | None]]
    finished: list[int]
    mark: tuple[int, int, int]


class Reports:
    """What was reported in a sweep's record."""

    def __init__(self, database: Database):
        self._database = database

    def add(self, sweep: int, digest: str, step: int, value: float | None) -> None:
        """Writes down what the sweep's objective is of a trial after that many steps.

        What was reported of this step and of later ones is forgotten: the run was taken up before
        them. value: None if it is not finite.
        """
        with self._database.writing() as write:
            [[objective]] = write(f"SELECT {_OBJECTIVE}", sweep).fetchall()
            write(
                "DELETE FROM report WHERE trial = ? AND objective = ? AND step >= ?",
                *(digest, objective, step),
            )
            write(
                "INSERT INTO report (trial, objective, step, value) VALUES (?, ?, ?, ?)",
                *(digest, objective, step, value),
            )

    def curves(self, sweep: int) -> dict[str, Curve]:
        """What was reported of the trials of a sweep, by digest, whichever sweep they ran in."""
        query = (
            "SELECT DISTINCT report.trial, step, value "
            "FROM report JOIN asked ON asked.trial = report.trial "
            f"WHERE sweep = ?1 AND objective = {_OBJECTIVE} ORDER BY report.trial, step"
        )
        lines = self._database.read(query, sweep)
        by_trial = itertools.groupby(lines, key=lambda line: line["trial"])
        return {trial: [(step, value) for _, step, value in each] for trial, each in by_trial}

    def news(self, sweep: int, mark: tuple[int, int, int] = (0, 0, 0)) -> News:
        """What came after a mark: reports, also of trials that were asked for since, and ends.

        A trial that is at several places of the sweep is given by the first.
        """
        place = "(SELECT min(number) FROM asked WHERE sweep = ?1 AND trial = {}.trial) AS place"
        # Ends first: whatever has finished has made its reports.
        [[changed]] = self._database.read("SELECT coalesce(max(id), 0) FROM change")
        finished = self._database.read(
            f"SELECT {place.format('change')} FROM change CROSS JOIN trial ON digest = trial "
            "WHERE change.id > ?2 AND change.id <= ?3 AND state = 'finished' AND place IS NOT NULL",
            *(sweep, mark[1], changed),
        )
        [[asked]] = self._database.read("SELECT coalesce(max(rowid), 0) FROM asked")
        [[reported]] = self._database.read("SELECT coalesce(max(id), 0) FROM report")
        columns = f"SELECT id, {place.format('report')}, step, value"
        reports = self._database.read(
            f"{columns} FROM report "
            f"WHERE id > ?2 AND id <= ?3 AND objective = {_OBJECTIVE} AND place IS NOT NULL UNION "
            f"{columns} FROM asked NOT INDEXED CROSS JOIN report ON report.trial = asked.trial "
            "WHERE asked.rowid > ?4 AND asked.rowid <= ?5 AND sweep = ?1 "
            f"AND id <= ?3 AND objective = {_OBJECTIVE} ORDER BY id",
            *(sweep, mark[0], reported, mark[2], asked),
        )
        found = [(line["place"], line["step"], line["value"]) for line in reports]
        return News(found, [each for [each] in finished], (reported, changed, asked))


_OBJECTIVE = "(SELECT json_extract(definition, '$.objective') FROM sweep WHERE id = ?1)"
