"""What is told of a sweep while it runs: a table that stays in its place, or a line a trial.

with display_on(None) as display:           # the terminal, or else standard output
    display.show(progress, total=60, workers=2, ended=rows)
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from convjax.sweep.objective import Objective
from convjax.sweep.progress import Progress
from convjax.sweep.space import shown
from convjax.sweep.table import value_of
from convjax.sweep.trial import Outcome, Row

BAD = [
    str(each)
    for each in Outcome
    if each not in (Outcome.FINISHED, Outcome.PRUNED, Outcome.INTERRUPTED)
]
_FEW = 5  # of the newest trials, and of those that went wrong
_PAUSE = 0.5  # seconds between two pictures


class Display(Protocol):
    """What tells how a sweep goes."""

    def show(self, progress: Progress, total: int, workers: int, ended: Sequence[Row]) -> None:
        """Tells how it stands; `ended` are the trials that have ended since the last time.

        total: how many there will be. workers: how many work at once.
        """
        ...

    def note(self, text: str) -> None:
        """Tells something else, in one line."""
        ...


@contextlib.contextmanager
def display_on(out: TextIO | None) -> Iterator[Display]:
    """Lines on `out`; without one a table on the terminal, and lines where there is none.

    Where standard error alone is a terminal, the table is there, and the lines are on the output.
    """
    if out is not None:
        yield Lines(out)
    elif _is_screen(sys.stdout):
        with _OnScreen(sys.stdout) as table:
            yield table
    elif _is_screen(sys.stderr):
        with _OnScreen(sys.stderr) as table:
            yield _Both(Lines(sys.stdout), table)
    else:
        yield Lines(sys.stdout)


class Lines:
    """A line for each trial that ends."""

    def __init__(self, out: TextIO):
        self._out = out

    def show(self, progress: Progress, total: int, workers: int, ended: Sequence[Row]) -> None:
        """Tells of those that have ended."""
        over = progress.over() - len(ended)
        for number, row in enumerate(ended, over + 1):
            self.note(f"{number}/{total} {row.trial.name} {told_of(row, progress.objective)}")

    def note(self, text: str) -> None:
        """Tells something else, in one line."""
        print(text, file=self._out, flush=True)


def told_of(row: Row, objective: Objective) -> str:
    """What came of a trial, and where.

    Its figure if it has finished; else how it ended, with the cause.
    """
    return f"{outcome_of(row, objective)} at {shown(row.trial.point)}, seed {row.trial.seed}"


def outcome_of(row: Row, objective: Objective) -> str:
    """What came of a trial: its figure if it has finished; else how it ended, with the cause."""
    value = value_of(row, objective)
    if row.state == "finished" and value is not None:
        return f"{objective.split} {objective.metric} {value:.4f}"
    cause = row.attempts[-1].cause if row.attempts else None
    return f"{row.state}: {cause}" if cause else row.state


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(42), duration(600), duration(7500)
    ('42 s', '10 min', '2 h 05 min')
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


class _Both:
    """Lines on one stream, and a table on the other."""

    def __init__(self, lines: Lines, table: _OnScreen):
        self._lines, self._table = lines, table

    def show(self, progress: Progress, total: int, workers: int, ended: Sequence[Row]) -> None:
        for display in (self._lines, self._table):
            display.show(progress, total, workers, ended)

    def note(self, text: str) -> None:
        self._lines.note(text)


class _OnScreen:
    """A table on a terminal, which may be gone any time: then nothing more is shown."""

    def __init__(self, stream: TextIO):
        self._console = Console(file=stream, highlight=False)
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            # What else is printed there comes to stand above; the other one leads elsewhere.
            redirect_stdout=stream is sys.stdout,
        )
        self._gone = False
        self._drawn = 0.0
        self._newest: deque[Row] = deque(maxlen=_FEW)
        self._bad: deque[Row] = deque(maxlen=_FEW)

    def __enter__(self) -> _OnScreen:
        self._try(self._live.start)
        # A second Ctrl-C ends the process at once: nobody would bring the cursor back.
        self._try(self._console.show_cursor)
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):
            self._live.stop()

    def show(self, progress: Progress, total: int, workers: int, ended: Sequence[Row]) -> None:
        """Draws the table anew, once enough time has passed or a trial has ended."""
        self._newest.extend(ended)
        self._bad.extend(row for row in ended if row.state in BAD)
        now = time.monotonic()
        if ended or now - self._drawn > _PAUSE:
            self._drawn = now
            picture = self._picture(progress, total, workers)
            self._try(lambda: self._live.update(picture, refresh=True))

    def note(self, text: str) -> None:
        """Tells something else, above the table."""
        self._try(lambda: self._console.print(_line(text)))

    def _try(self, draw: Callable[[], object]) -> None:
        if not self._gone:
            try:
                draw()
            except OSError:
                self._gone = True

    def _picture(self, progress: Progress, total: int, workers: int) -> RenderableType:
        objective, over, best = progress.objective, progress.over(), progress.best()
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="bold")
        rows.add_column()
        rows.add_row("best", Text(f"{objective} {_plain(str(best or 'of no trial yet'))}"))
        rows.add_row("trials", Text(_counted(progress, total, workers)))
        rows.add_row(
            "", ProgressBar(total, over, 40, complete_style="green", finished_style="green")
        )
        for name, some in (("newest", self._newest), ("bad", self._bad)):
            for number, row in enumerate(reversed(some)):
                text = f"{row.trial.name} {told_of(row, objective)}"
                rows.add_row("" if number else name, _line(text))
        return Group(rows)


def _counted(progress: Progress, total: int, workers: int) -> str:
    """How many trials are in which state, of all, and how long the rest will take."""
    counts, over = progress.counts(), progress.over()
    states = ["running", *sorted(set(counts) - {"running", "waiting", *BAD}), *BAD]
    listed = ", ".join(f"{counts[state]} {state}" for state in states if counts[state])
    left = progress.seconds_left(total, workers)
    rest = f", about {duration(left)} left" if left is not None and over < total else ""
    return f"{over} of {total} done: {listed}{rest}" if listed else f"0 of {total} done{rest}"


def _line(text: str) -> Text:
    """One line, cut where the terminal ends."""
    return Text(_plain(text), no_wrap=True, overflow="ellipsis")


def _plain(text: str) -> str:
    """A text without signs that would move the cursor: causes are what strangers' code says."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def _is_screen(stream: TextIO) -> bool:
    """Whether a table can stay in its place there; FORCE_COLOR makes no terminal of a file."""
    return stream.isatty() and Console(file=stream).is_interactive
