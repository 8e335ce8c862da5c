"""The file of a sweep's record: its tables, and transactions that other processes wait for.

    with closing(Database(folder / "sweep.db", patience=60)) as database:
        with database.writing() as write:           # BEGIN IMMEDIATE ... COMMIT, or nothing of it
            write("UPDATE trial SET state = ?", "waiting")
        rows = database.read("SELECT * FROM trial")

SQLite keeps its log beside it (WAL), by which readers never wait. What goes wrong is a StoreError.
"""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from convjax.config import UserError

_APPLICATION = 0x636A7377  # "cjsw", by which SQLite tells our files from those of others
Write = Callable[..., sqlite3.Cursor]

# A trial belongs to no sweep: what one has finished, the next one finds. Its state is 'waiting',
# 'running', or the outcome with which it ended; `tries` counts attempts that ended so that they are
# to count.
_FIRST = """
CREATE TABLE sweep (
  id INTEGER PRIMARY KEY,
  definition TEXT NOT NULL UNIQUE
) STRICT;
CREATE TABLE trial (
  digest TEXT PRIMARY KEY,
  seed INTEGER NOT NULL,
  state TEXT NOT NULL DEFAULT 'waiting',
  tries INTEGER NOT NULL DEFAULT 0,
  config TEXT NOT NULL  -- last, as it is long: who looks for a state need not read it
) STRICT;
CREATE TABLE asked (
  sweep INTEGER NOT NULL REFERENCES sweep,
  number INTEGER NOT NULL,
  trial TEXT NOT NULL REFERENCES trial,
  point TEXT NOT NULL,
  PRIMARY KEY (sweep, number)
) STRICT;
CREATE TABLE attempt (
  id INTEGER PRIMARY KEY,
  trial TEXT NOT NULL REFERENCES trial,
  number INTEGER NOT NULL,
  worker TEXT NOT NULL,
  host TEXT NOT NULL,
  process INTEGER NOT NULL,
  began REAL NOT NULL,
  ended REAL,
  heartbeat REAL,
  outcome TEXT,
  cause TEXT,
  result TEXT,
  UNIQUE (trial, number),
  CHECK ((outcome IS NULL) = (ended IS NULL))
) STRICT;
CREATE UNIQUE INDEX one_works ON attempt (trial) WHERE outcome IS NULL;
CREATE UNIQUE INDEX one_result ON attempt (trial) WHERE outcome = 'finished';
"""
# A number in `report` and in `change` is greater than all before it: who has seen some asks for
# what came later. A trial is in `change` once, where it was last asked for or its state written.
_SECOND = """
CREATE TABLE report (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  trial TEXT NOT NULL REFERENCES trial,
  objective TEXT NOT NULL,
  step INTEGER NOT NULL,
  value REAL,
  UNIQUE (trial, objective, step)
) STRICT;
CREATE TABLE change (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  trial TEXT NOT NULL UNIQUE REFERENCES trial
) STRICT;
INSERT INTO change (trial) SELECT digest FROM trial;
CREATE TRIGGER is_asked AFTER INSERT ON asked BEGIN
  DELETE FROM change WHERE trial = new.trial;
  INSERT INTO change (trial) VALUES (new.trial);
END;
CREATE TRIGGER is_changed AFTER UPDATE ON trial BEGIN
  DELETE FROM change WHERE trial = new.digest;
  INSERT INTO change (trial) VALUES (new.digest);
END;
CREATE INDEX asked_by ON asked (trial, sweep, number);
CREATE INDEX waits ON trial (digest) WHERE state = 'waiting';
CREATE INDEX no_room ON attempt (ended) WHERE outcome = 'disk_full';
"""
_VERSIONS = (_FIRST, _SECOND)  # each what the one before it lacks


class StoreError(UserError):
    """A record that cannot be read or written, or that says otherwise."""


class Database:
    """The file, which is made with its tables if it is not there, and given those it lacks.

    patience: seconds to wait for another process that writes.

    Raises:
        StoreError: here and in all that it does, if the file is damaged, of another program or of
            a later version, if the disk is full, or if another process holds it for too long.
    """

    def __init__(self, path: Path, patience: float):
        self.path = path
        with contextlib.ExitStack() as undo, told(self.path):
            self._db = sqlite3.connect(path, timeout=patience, isolation_level=None)
            undo.callback(self._db.close)
            self._db.row_factory = sqlite3.Row
            self._open(patience)
            undo.pop_all()

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def read(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """The rows that a query gives, as they were at one moment."""
        with told(self.path):
            return self._db.execute(query, values).fetchall()

    @contextlib.contextmanager
    def writing(self) -> Iterator[Write]:
        """A transaction, which waits for those of others, and comes to the disk whole or not.

        Gives a function that runs a statement, of which `rowcount` says how many rows it changed.
        """
        with told(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield lambda statement, *values: self._db.execute(statement, values)
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def _open(self, patience: float) -> None:
        """Makes the tables, or checks that they are ours, and whole."""
        db = self._db
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        # Who switches a new file to WAL does not wait for others who do.
        with FileLock(self.path.with_name(".sweep.lock"), timeout=patience):
            [[application]] = db.execute("PRAGMA application_id").fetchall()
            [[version]] = db.execute("PRAGMA user_version").fetchall()
            [[tables]] = db.execute("SELECT count(*) FROM sqlite_master").fetchall()
            if (application, version, tables) == (0, 0, 0):
                db.execute("PRAGMA journal_mode = WAL")
            elif application != _APPLICATION:
                raise StoreError(
                    f"{self.path} is a database of another program: give another --workdir"
                )
            elif not 1 <= version <= len(_VERSIONS):
                raise StoreError(
                    f"{self.path} is of version {version}, and this convjax reads versions up to "
                    f"{len(_VERSIONS)}: use the one that wrote it, or give another --workdir"
                )
            if missing := _VERSIONS[version:]:
                self._check()
                marks = (
                    f"PRAGMA application_id = {_APPLICATION}; "
                    f"PRAGMA user_version = {len(_VERSIONS)};"
                )
                db.executescript(f"BEGIN IMMEDIATE; {''.join(missing)} {marks} COMMIT;")
        self._check()

    def _check(self) -> None:
        """Raises StoreError for a file that is not whole."""
        [[verdict], *_] = self._db.execute("PRAGMA quick_check(1)").fetchall()
        if verdict != "ok":
            raise StoreError(f"{self.path} is damaged ({verdict.splitlines()[-1]}): {_DAMAGED}")


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Turns what goes wrong with a file of the record into a line that says what to do."""
    try:
        yield
    except Timeout:
        raise StoreError(f"{path} is held by another process: {_HELD}") from None
    except OSError as error:
        step = _FULL if error.errno in FULL else _DISK if error.errno in _FAILING else _PLACE
        raise StoreError(f"{error.filename or path}: {error.strerror}: {step}") from error
    except sqlite3.DatabaseError as error:
        # Of SQLite's codes the last byte is the kind; what it raises by itself has none.
        step = _STEPS.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
        if step is None:
            raise
        raise StoreError(f"{path}: {error}: {step}") from error


_HELD = "end that one, or wait until it has ended"
_FULL = "free some space and start again: nothing is lost"
_DISK = "see whether the disk fails or may not be written to, and start again"
_PLACE = "give another --workdir, which can be made and written to"
_DAMAGED = (
    "put it aside and start the sweep again: what runs have finished lies in trials, and is found"
)
FULL = (errno.ENOSPC, errno.EDQUOT)  # of an OSError
_FAILING = (errno.EIO, errno.EROFS)
_STEPS = {
    sqlite3.SQLITE_BUSY: f"another process writes to it for too long: {_HELD}",
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_IOERR: _DISK,
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_READONLY: _DISK,
    sqlite3.SQLITE_CANTOPEN: _DISK,
}
