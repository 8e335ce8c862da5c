"""The record of a sweep: which trials there are, who works on which, and what came of each.

    with Store("sweeps/mine") as store:                     # in each process, and thread, its own
        sweep = store.sweep({"space": ..., "seeds": 3})     # equal definitions are one sweep
        store.add(sweep, trials)                            # what is there already stays as it is
        while claim := store.claim(sweep, worker):          # nobody else has this trial
            with claim:                                     # an error is written down, and goes on
                claim.finish(train(claim.trial))            # committed once, or a StoreError

    sweep.db                SQLite: sweeps, trials, and every attempt at one
    trials/NAME/            the run of a trial, named by the first 16 digits of its digest
    leases/NAME/            locked while somebody has the trial: the kernel frees it if he dies
    logs/NAME-2.txt         what the second attempt at it told, if whoever made it writes it down

All that is written is on the disk, and seen by every other process, when the call returns. The
folder has to lie on a disk of this machine: over a network file system neither SQLite's log nor the
locks can be relied on. Work for other machines is claimed here, by the process that sends it there.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from convjax.ownership import Owned, owned
from convjax.sweep.database import Database, StoreError, told
from convjax.sweep.reports import Reports
from convjax.sweep.trial import AGAIN, NO_FAULT, Attempt, Outcome, Row, Trial, cause_of


class Store:
    """The trials in a folder, which is made.

    reports: how far trials have come, see `convjax.sweep.reports`.
    tries: how many attempts at a trial are made that were killed, ran out of memory or hung. One
        that failed or diverged is not made again, one that was interrupted or found the disk full
        always is.
    patience: seconds to wait for another process that writes.

    Raises:
        StoreError: here and in all that it does; see `convjax.sweep.database`.
    """

    def __init__(self, folder: str | os.PathLike[str], tries: int = 3, patience: float = 60):
        self.folder, self.tries = Path(folder), tries
        with told(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._database = Database(self.folder / "sweep.db", patience)
        self._read, self._writing = self._database.read, self._database.writing
        self.reports = Reports(self._database)
        self._broken: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    # What is asked for.

    def sweep(self, definition: Mapping[str, Any]) -> int:
        """The number of the sweep with this definition, which JSON can hold; a new one if need be.

        definition: all that its trials depend on: base config, space, sampler, seeds, objective.
        """
        text = json.dumps(definition, sort_keys=True)
        with self._writing() as write:
            write("INSERT INTO sweep (definition) VALUES (?) ON CONFLICT DO NOTHING", text)
            [[number]] = write("SELECT id FROM sweep WHERE definition = ?", text).fetchall()
        return number

    def sweeps(self) -> dict[int, dict[str, Any]]:
        """The definitions of all sweeps, by number."""
        found = self._read("SELECT id, definition FROM sweep ORDER BY id")
        return {number: json.loads(text) for number, text in found}

    def definition(self, sweep: int) -> dict[str, Any]:
        """What a sweep was made with; StoreError if there is none of this number."""
        for [text] in self._read("SELECT definition FROM sweep WHERE id = ?", sweep):
            return json.loads(text)
        raise StoreError(f"there is no sweep {sweep} in {self.folder}: give another --workdir")

    def add(self, sweep: int, trials: Iterable[Trial]) -> int:
        """Adds trials to a sweep, all or none; returns how many no sweep had asked for before.

        Raises:
            StoreError: if the sweep has another trial at the place of one of these.
        """
        new = 0
        with self._writing() as write:
            for trial in trials:
                new += write(
                    "INSERT INTO trial (digest, seed, config) VALUES (?, ?, ?) "
                    "ON CONFLICT DO NOTHING",
                    *(trial.digest, trial.seed, json.dumps(trial.config)),
                ).rowcount
                write(
                    "INSERT INTO asked VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    *(sweep, trial.number, trial.digest, json.dumps(trial.point)),
                )
                query = "SELECT trial FROM asked WHERE sweep = ? AND number = ?"
                [[there]] = write(query, sweep, trial.number).fetchall()
                if there != trial.digest:
                    raise StoreError(
                        f"trial {trial.number} of sweep {sweep} in {self.folder} is {there[:16]}, "
                        f"not {trial.name}: configs are made in another way now, or two processes "
                        "add to it; end the other one, or give another --workdir"
                    )
        return new

    def retry(self, sweep: int, outcomes: Collection[Outcome]) -> int:
        """Has trials that ended so tried again, as though they never were; returns how many."""
        if Outcome.FINISHED in outcomes:
            raise ValueError("a finished trial is not tried again: its result is there")
        with self._writing() as write:
            return write(
                "UPDATE trial SET state = 'waiting', tries = 0 "
                "WHERE state IN (SELECT value FROM json_each(?)) "
                "AND digest IN (SELECT trial FROM asked WHERE sweep = ?)",
                *(json.dumps([Outcome(each) for each in outcomes]), sweep),
            ).rowcount

    # Who works on what.

    def claim(
        self,
        sweep: int,
        worker: str,
        among: Collection[str] | None = None,
        *,
        closes: bool = True,
    ) -> Claim | None:
        """The next trial of a sweep that waits and that nobody has; None if there is none now.

        There may be one later, while `counts` says that others are running.

        worker: a name that no other has, nor has had. among: digests, if only these will do.
        closes: whether attempts of workers that are gone are closed for it; False where somebody
            else does, who knows why they ended.

        Raises:
            StoreError: also once the disk was full for a claim of this store, or the record could
                not be written: the next trial would meet the same.
        """
        if self._broken:
            raise StoreError(self._broken)
        claim = self._claim(sweep, worker, among)
        again = not claim and closes and self.close_killed()
        return self._claim(sweep, worker, among) if again else claim

    def close_killed(self, outcome: Outcome = Outcome.KILLED, *, but: Collection[str] = ()) -> int:
        """Closes all attempts whose worker is gone; returns how many.

        Until somebody does, they count as running; `claim` does once nothing else waits.

        but: names of workers whose attempts are left alone.
        """
        closed = 0
        opened = self._read(
            "SELECT id, trial, host, process FROM attempt WHERE outcome IS NULL "
            "AND worker NOT IN (SELECT value FROM json_each(?))",
            json.dumps(list(but)),
        )
        for attempt, digest, host, process in opened:
            with contextlib.suppress(Owned), self._lease(digest):
                closed += self._close(attempt, outcome, f"process {process} on {host} is gone")
        return closed

    def lost(self, worker: str, outcome: Outcome, cause: str) -> int:
        """Closes the attempts of a worker that has ended, for one who knows; returns how many.

        Those that it has closed itself, as it was interrupted, are such attempts too and count,
        unless the outcome is INTERRUPTED: give that if the sweep had asked it to end, and what
        `cause_of(status, asked=False)` says if not. Else what ends workers by SIGTERM, as daemons
        do that free memory, would have the same trial tried for ever.
        """
        query = "SELECT id FROM attempt WHERE outcome IS NULL AND worker = ?"
        closed = sum(self._close(each, outcome, cause) for [each] in self._read(query, worker))
        return closed if outcome in NO_FAULT else closed + self._count(worker, outcome)

    def check_room(self, since: float) -> None:
        """Raises StoreError if an attempt has found the disk full since that time, as of 1970."""
        query = (
            "SELECT trial, cause FROM attempt WHERE outcome = 'disk_full' AND ended >= ? LIMIT 1"
        )
        for digest, cause in self._read(query, since):
            raise StoreError(_full(self.folder_of(digest), cause))

    # What people look at.

    def counts(self, sweep: int) -> dict[str, int]:
        """How many trials of a sweep are in each state, of those in which any is."""
        query = (
            "SELECT state, count(DISTINCT digest) AS trials "
            "FROM asked JOIN trial ON digest = trial WHERE sweep = ? GROUP BY state"
        )
        return {line["state"]: line["trials"] for line in self._read(query, sweep)}

    def rows(self, sweep: int) -> list[Row]:
        """The trials of a sweep in their order, with every attempt."""
        return self.changes(sweep)[0]

    def changes(self, sweep: int, mark: int | None = None) -> tuple[list[Row], int]:
        """The rows of trials of a sweep that have changed, in their order; and the next mark.

        mark: what the last call gave; None for all trials.
        """
        seen, [[now]] = mark or 0, self._read("SELECT coalesce(max(id), 0) FROM change")
        query = (
            "SELECT asked.number AS place, digest, point, seed, config, state, attempt.* "
            # In this order, though a few changes may be fewer than there are trials.
            "FROM change CROSS JOIN asked ON asked.trial = change.trial "
            "JOIN trial ON digest = asked.trial "
            "LEFT JOIN attempt ON attempt.trial = digest "
            "WHERE change.id > ? AND change.id <= ? AND sweep = ? ORDER BY place, attempt.number"
        )
        lines = self._read(query, seen, now, sweep) if now > seen else []
        by_place = itertools.groupby(lines, key=lambda line: line["place"])
        return [self._row(list(each)) for _, each in by_place], now

    def folder_of(self, digest: str) -> Path:
        """Where the run of a trial lies."""
        return self.folder / "trials" / digest[:16]

    def log_of(self, digest: str, attempt: int) -> Path:
        """The file for what an attempt tells; its folder is there once a trial was claimed."""
        return self.folder / "logs" / f"{digest[:16]}-{attempt}.txt"

    # What these are made of.

    def _claim(self, sweep: int, worker: str, among: Collection[str] | None) -> Claim | None:
        wanted = None if among is None else json.dumps(list(among))
        # The lease is taken within the transaction, and given back after the attempt is closed:
        # so an open attempt without a lease is that of a worker that died.
        with contextlib.ExitStack() as lease:
            with self._writing() as write:
                waiting = write(
                    # Those that wait first: of thousands, they may be few.
                    "SELECT trial, number FROM trial CROSS JOIN asked ON trial = digest "
                    "WHERE sweep = ?1 AND state = 'waiting' "
                    "AND (?2 IS NULL OR digest IN (SELECT value FROM json_each(?2))) "
                    "ORDER BY number",
                    *(sweep, wanted),
                )
                with contextlib.closing(waiting):
                    free = (each for each in waiting if self._take(each["trial"], lease))
                    digest, place = next(free, (None, None))
                if digest is None:
                    return None
                [[attempt, number]] = write(
                    "INSERT INTO attempt (trial, number, worker, host, process, began) "
                    "SELECT ?1, 1 + count(*), ?2, ?3, ?4, ?5 FROM attempt WHERE trial = ?1 "
                    "RETURNING id, number",
                    *(digest, worker, socket.gethostname(), os.getpid(), time.time()),
                ).fetchall()
                write("UPDATE trial SET state = 'running' WHERE digest = ?", digest)
                [line] = write(
                    "SELECT number AS place, digest, point, seed, config "
                    "FROM asked JOIN trial ON digest = trial WHERE sweep = ? AND number = ?",
                    *(sweep, place),
                ).fetchall()
            return Claim(self, _trial(line), attempt, number, lease.pop_all())

    def _take(self, digest: str, lease: contextlib.ExitStack) -> bool:
        with contextlib.suppress(Owned):
            lease.enter_context(self._lease(digest))
            return True
        return False

    @contextlib.contextmanager
    def _lease(self, digest: str) -> Iterator[None]:
        """Has a trial; raises Owned if somebody has it, or if what he left behind still trains.

        Not by the lock of the run's folder, which is the run's own, maybe in another process.
        """
        lease, run = self.folder / "leases" / digest[:16], self.folder_of(digest)
        with contextlib.ExitStack() as held:
            with told(lease):
                for folder in (lease, run, self.folder / "logs"):
                    folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(owned(lease))
                with owned(run):
                    pass
            yield

    def _close(
        self, attempt: int, outcome: Outcome, cause: str | None = None, result: Any = None
    ) -> bool:
        """Closes an attempt; False if it was closed before, which then stays as it is."""
        text = None if result is None else json.dumps(result)
        counts, again = outcome not in NO_FAULT, outcome in AGAIN
        with self._writing() as write:
            query = "SELECT trial FROM attempt WHERE id = ? AND outcome IS NULL"
            opened = write(query, attempt).fetchall()
            for [digest] in opened:
                write(
                    "UPDATE attempt SET ended = ?, heartbeat = ?, outcome = ?, cause = ?, "
                    "result = ? WHERE id = ?",
                    *(time.time(), self._heartbeat(digest), outcome, cause, text, attempt),
                )
                write(
                    "UPDATE trial SET tries = tries + ?1, state = CASE "
                    "WHEN NOT ?1 OR (?2 AND tries + ?1 < ?3) THEN 'waiting' ELSE ?4 END "
                    "WHERE digest = ?5",
                    *(counts, again, self.tries, outcome, digest),
                )
        return bool(opened)

    def _count(self, worker: str, outcome: Outcome) -> int:
        """Has the interrupted attempts of a worker count, as ones of that outcome."""
        with self._writing() as write:
            interrupted = write(
                "UPDATE attempt SET outcome = ? WHERE worker = ? AND outcome = 'interrupted' "
                "RETURNING trial",
                *(outcome, worker),
            ).fetchall()
            for [digest] in interrupted:
                # Somebody may have it again already: that attempt is the last one, then.
                write(
                    "UPDATE trial SET tries = tries + 1, state = CASE "
                    "WHEN state = 'waiting' AND tries + 1 >= ? THEN ? ELSE state END "
                    "WHERE digest = ?",
                    *(self.tries, outcome, digest),
                )
        return len(interrupted)

    def _heartbeat(self, digest: str) -> float | None:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder_of(digest) / "metrics.jsonl").stat().st_mtime
        return None

    def _row(self, lines: list[sqlite3.Row]) -> Row:
        """A trial, of one line for each attempt, or of one without any."""
        *_, last = lines
        attempts = [self._attempt(line) for line in lines if line["id"] is not None]
        result = None if last["result"] is None else json.loads(last["result"])
        return Row(_trial(last), last["state"], result, attempts)

    def _attempt(self, line: sqlite3.Row) -> Attempt:
        known = {name: line[name] for name in Attempt._fields if name != "log"}
        known["outcome"] = line["outcome"] and Outcome(line["outcome"])
        return Attempt(**known, log=self.log_of(line["digest"], line["number"]))


def _full(folder: Path, cause: str | None) -> str:
    return f"{folder} has no room ({cause}): free some space and start again: nothing is lost"


def _trial(line: sqlite3.Row) -> Trial:
    point, config = json.loads(line["point"]), json.loads(line["config"])
    return Trial(line["digest"], point, line["seed"], config, line["place"])


class Claim:
    """A trial that nobody else has until this context is left.

    An error that leaves the context is written down as the cause, and goes on.

    folder: for the run. log: the file for what this attempt tells. attempt: 1 for the first.
    """

    def __init__(
        self, store: Store, trial: Trial, row: int, attempt: int, lease: contextlib.ExitStack
    ):
        self.trial, self.attempt = trial, attempt
        self.folder, self.log = store.folder_of(trial.digest), store.log_of(trial.digest, attempt)
        self._store, self._row, self._lease, self._open = store, row, lease, True

    def finish(self, result: Any) -> None:
        """Commits the result, which JSON can hold; no attempt at this trial is made after that.

        Raises:
            StoreError: if this attempt was closed before, by anyone; then nothing changes.
        """
        self._end(Outcome.FINISHED, None, result)

    def fail(self, outcome: Outcome, cause: str, result: Any = None) -> None:
        """Closes the attempt without being finished; raises StoreError as `finish` does.

        result: what there is of one, such as how far a trial was when it was pruned.
        """
        if outcome == Outcome.FINISHED:
            raise ValueError("a trial that has finished has not failed: call finish")
        self._end(outcome, cause, result)

    def _end(self, outcome: Outcome, cause: str | None, result: Any) -> None:
        if not self._store._close(self._row, outcome, cause, result):
            raise StoreError(
                f"attempt {self.attempt} at trial {self.trial.name} in {self._store.folder} is "
                f"closed already, and {outcome!s} is not taken: look for who ends what others have "
                "claimed, or removes locks"
            )
        self._open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        with self._lease:
            if self._open and isinstance(error, StoreError):
                # Whoever comes next finds the attempt open, and closes it.
                self._store._broken = str(error)
            elif self._open:
                ended = (Outcome.FAILED, "it left no result") if error is None else cause_of(error)
                if ended[0] == Outcome.DISK_FULL:
                    self._store._broken = _full(self.folder, ended[1])
                self.fail(*ended)
