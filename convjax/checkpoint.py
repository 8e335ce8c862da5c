"""Checkpoints of a run: the leaves of a pytree by path, written by Orbax, and known by a manifest.

    with Checkpoints("runs/mine/checkpoints", keep=3) as checkpoints:
        checkpoints.save(100, state, {"seconds": 12.5})
        state, extra = checkpoints.restore(mapper.spec(state))    # onto any devices

    5/                one a step: `state`, which is Orbax's, and `manifest.json`
    .7.unfinished/    one that is being saved; it gets its name once it is on the disk as a whole
    damaged-5/        one that was found not to be what was saved

What is restored has the paths, shapes and dtypes that were asked for, or is refused with a list of
all differences: nothing is cast, left out or made up. Of several processes each makes the same
calls, on a folder that all of them see.
"""

from __future__ import annotations

import errno
import functools
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from convjax import distributed, durable, manifest, tree
from convjax.config import UserError
from convjax.manifest import Damaged, Manifest
from convjax.stored import check_like, how_to_restore, on_host, shapes, with_key, without_key


class CheckpointError(UserError):
    """A checkpoint that cannot be written, read, or made to fit."""


class Checkpoints:
    """The checkpoints in a folder, one a step, of which the newest `keep` stay.

    A checkpoint becomes visible all at once, when it is on the disk, and older ones go after that:
    a save that is cut short leaves the others as they were. Close it, or use it in a `with`.

    keep: how many; None keeps all.
    config: the digest of the config that is trained, which the manifests note.
    reads: whether the folder is another's, and only read: nothing in it is touched.
    background: whether `save` returns once the arrays are copied, and a thread does the rest; what
        it fails at is raised by the next `save`, `check` or `wait`. Not for several processes.
    tell: is told what is wrong with a checkpoint that is passed over, in one line.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep: int | None = None,
        config: str | None = None,
        reads: bool = False,
        background: bool = False,
        tell: Callable[[str], None] | None = None,
    ):
        self.folder = Path(folder).absolute()
        if self.folder.exists() and not self.folder.is_dir():
            raise CheckpointError(f"{self.folder} is not a folder: move it, or train elsewhere")
        self.keep, self.config, self.reads = keep, config, reads
        self._tell = tell or (lambda text: print(f"warning: {text}", file=sys.stderr))
        self._orbax = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        self._good: dict[int, Manifest] = {}
        self._saver = ThreadPoolExecutor(1, "saver") if background else None
        self._saving: Future[None] | None = None
        if not reads:
            distributed.lead(self._clear, f"prepare {self.folder}")

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        try:
            self.wait()
        except CheckpointError:
            if kind is None:  # Else there is an error on its way already.
                raise
        finally:
            self.close()

    def close(self) -> None:
        """Waits for what is under way and lets go of the folder."""
        if self._saver is not None:
            self._saver.shutdown()
        self._orbax.close()

    def steps(self) -> list[int]:
        """The steps that are there, from the oldest on; whether they are good is not looked at."""
        if not self.folder.is_dir():
            return []
        return sorted(step for step, path in self._numbered() if (path / manifest.NAME).is_file())

    def newest(self) -> int | None:
        """The newest step whose every file is as it was written, None where there is none.

        A newer one that is damaged is told, and put aside (or, in another's folder, passed over).

        Raises:
            CheckpointError: if a file is there and cannot be read.
        """
        return self._agreed(self._newest_here)

    def delete(self, step: int) -> None:
        """Takes a checkpoint away."""
        self._good.pop(step, None)
        path = self.folder / str(step)
        distributed.lead(lambda: durable.remove_tree(path), f"delete {path}")

    def save(self, step: int, state: Any, extra: dict[str, Any] | None = None) -> None:
        """Saves a pytree of arrays, typed PRNG keys among them, under the number of a step.

        The arrays may be spread over any devices, also over those of several processes: of what
        lies on its own, each process writes its share.

        extra: anything that JSON holds; of several processes that of the first is written.

        Raises:
            CheckpointError: if the step, or a newer one, is there already, or it cannot be written.
        """
        self.wait()
        newest = max(self.steps(), default=-1)
        if step <= newest:
            raise CheckpointError(
                f"checkpoint {step} was not saved: {self.folder} has step {newest} already; "
                "give a later step or another folder"
            )
        leaves = tree.leaves(jax.tree.map(without_key, state))
        copied = {path: on_host(leaf) for path, leaf in leaves.items()}
        if self._saver is None:
            self._save(step, copied, extra or {})
        else:
            self._saving = self._saver.submit(self._save, step, copied, extra or {})

    def check(self) -> bool:
        """Whether no save is under way; raises the CheckpointError of one that has failed."""
        if self._saving is not None and not self._saving.done():
            return False
        self.wait()
        return True

    def wait(self) -> None:
        """Waits until the last save is on the disk; CheckpointError if it has failed."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def restore(
        self, like: Any, step: int | None = None, *, drop: str | Iterable[str] = ()
    ) -> tuple[Any, dict[str, Any]]:
        """The pytree that was saved, in the structure of `like`, and the extra.

        like: a pytree of arrays or of `jax.ShapeDtypeStruct`. A leaf of the latter with a sharding
            comes back as an array that is spread like this, whatever it was spread like when it
            was saved, and is read by each process as far as it lies there; any other as a NumPy
            array.
        step: which one; by default the newest good one.
        drop: patterns of saved paths that are not wanted; they are not read.

        Raises:
            CheckpointError: if there is none, if it is damaged or cannot be read, or listing every
                path, shape and dtype that differs.
        """
        step, known = self._known(step)
        wanted = jax.tree.map(without_key, like)
        saved = shapes(known)
        try:
            tree.merge(wanted, saved, drop=drop)
        except ValueError as error:
            _, *differences = str(error).splitlines()
            raise CheckpointError(
                f"checkpoint {step} in {self.folder} is of another network or optimizer; 'tree' is "
                "what was asked for, 'given' is the checkpoint:\n" + "\n".join(differences) + "\n"
                "give the config that it is of, or another folder"
            ) from error
        how = {path: how_to_restore(leaf) for path, leaf in tree.leaves(wanted).items()}
        found = self._read(step, how, saved) if how else {}
        leaves = [found[path] for path in how]
        plain = jax.tree.unflatten(jax.tree.structure(wanted), leaves)
        return jax.tree.map(with_key, like, plain), known.extra

    def manifest(self, step: int | None = None) -> Manifest:
        """What is known of a checkpoint, by default of the newest; CheckpointError as `restore`."""
        return self._known(step)[1]

    def read(self, patterns: str | Iterable[str]) -> dict[str, np.ndarray]:
        """The leaves of the newest checkpoint whose paths match, by path.

        Raises:
            CheckpointError: if there is none, or it cannot be read.
        """
        step, known = self._known(None)
        saved = shapes(known)
        wanted = {path: leaf for path, leaf in saved.items() if tree.matches(path, patterns)}
        others = [path for path in saved if path not in wanted]
        return self.restore(wanted, step, drop=others)[0]

    # -- What is there -----------------------------------------------------------------------------

    def _numbered(self) -> Iterator[tuple[int, Path]]:
        """What has the name of a step, whatever it holds."""
        for path in self.folder.iterdir():
            if path.name.isascii() and path.name.isdecimal() and path.name == str(int(path.name)):
                yield int(path.name), path

    def _clear(self) -> None:
        """Makes the folder, and takes away what was cut short or has no manifest."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            durable.remove_leftovers(self.folder)
            for step, path in sorted(self._numbered()):
                if not (path / manifest.NAME).is_file():
                    self._put_aside(step, f"it has no {manifest.NAME}")
        except OSError as error:
            raise CheckpointError(_unwritable(self.folder, error)) from error

    def _newest_here(self) -> int | None:
        passed: set[int] = set()
        # Looked at anew each time: whoever owns the folder may save and delete meanwhile.
        while steps := [step for step in self.steps() if step not in passed]:
            step = steps[-1]
            try:
                self._verified(step)
                return step
            except Damaged as error:
                passed.add(step)
                if (self.folder / str(step)).exists():
                    self._put_aside(step, str(error))
        return None

    def _known(self, step: int | None) -> tuple[int, Manifest]:
        """A step, by default the newest good one, and its manifest."""
        chosen = self.newest() if step is None else step
        if chosen is None or chosen not in self.steps():
            raise CheckpointError(
                f"{self.folder} has no checkpoint{'' if chosen is None else f' {chosen}'}: "
                f"it has {', '.join(map(str, self.steps())) or 'none'}"
            )
        try:
            # Of several processes one has read all files; the others trust it.
            return chosen, self._verified(chosen, files=distributed.leads())
        except Damaged as error:
            raise CheckpointError(
                f"checkpoint {chosen} in {self.folder} is damaged: {error}; take another"
            ) from error

    def _verified(self, step: int, files: bool = True) -> Manifest:
        """The manifest of a step whose files are as they were written; Damaged if they are not."""
        if step not in self._good:
            folder = self.folder / str(step)
            try:
                found = manifest.read(folder)
                if found.step != step:
                    raise Damaged(f"its {manifest.NAME} is of step {found.step}")
                if files:
                    manifest.check_files(folder, found)
            except OSError as error:
                raise CheckpointError(
                    f"checkpoint {step} cannot be read: {error.filename or folder}: "
                    f"{error.strerror}; mend that, or move {folder} away to go on from an older one"
                ) from error
            self._good[step] = found
        return self._good[step]

    def _put_aside(self, step: int, why: str) -> None:
        path = self.folder / str(step)
        if self.reads:
            self._tell(f"checkpoint {path} is damaged and passed over: {why}")
            return
        aside = self.folder / f"damaged-{step}"
        number = 1
        while aside.exists():
            number += 1
            aside = self.folder / f"damaged-{step}-{number}"
        path.rename(aside)
        durable.sync(self.folder)
        self._tell(f"checkpoint {path} is damaged ({why}): it is {aside.name} now")

    # -- Writing and reading -----------------------------------------------------------------------

    def _save(self, step: int, leaves: Mapping[str, Any], extra: dict[str, Any]) -> None:
        path = self.folder / str(step)
        unfinished = durable.unfinished_of(path)
        try:
            distributed.lead(lambda: self._make(unfinished, leaves), f"make {unfinished}")
            self._orbax.save(unfinished / "state", args=ocp.args.PyTreeSave(dict(leaves)))
            finish = functools.partial(self._finish, step, unfinished, leaves, extra)
            distributed.lead(finish, f"save {path}")
            distributed.lead(self._remove_old, f"remove what is older than {path}")
        except Exception as error:  # Orbax and TensorStore raise many kinds where a disk fails.
            shutil.rmtree(unfinished, ignore_errors=True)  # For the room that it takes.
            if isinstance(error, UserError):
                raise
            raise CheckpointError(_unwritable(path, error)) from error

    def _make(self, unfinished: Path, leaves: Mapping[str, Any]) -> None:
        need = sum(leaf.nbytes for leaf in leaves.values())
        there = shutil.disk_usage(self.folder).free
        # Threads of Orbax that meet a full disk write hundreds of lines about it.
        if there < need:
            raise OSError(
                errno.ENOSPC, f"it takes {need / 2**20:.1f} MiB, and {there / 2**20:.1f} are free"
            )
        unfinished.mkdir()

    def _finish(
        self, step: int, unfinished: Path, leaves: Mapping[str, Any], extra: dict[str, Any]
    ) -> None:
        manifest.write(unfinished, step=step, leaves=leaves, extra=extra, config=self.config)
        os.rename(unfinished, self.folder / str(step))
        durable.sync(self.folder)

    def _remove_old(self) -> None:
        for old in self.steps()[: -self.keep] if self.keep else []:
            self._good.pop(old, None)
            path = self.folder / str(old)
            try:
                durable.remove_tree(path)
            except OSError as error:
                raise CheckpointError(
                    f"{path}, which is not needed any more, cannot be removed ({error.strerror}): "
                    "mend that, and give the same command"
                ) from error

    def _read(self, step: int, how: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
        chosen = {path: saved[path] for path in how}
        items = ocp.args.PyTreeRestore(item=chosen, restore_args=how, partial_restore=True)
        path = self.folder / str(step) / "state"
        try:
            # What Orbax would make of the files, before it takes memory for it, and what it made.
            about: Any = self._orbax.metadata(path).item_metadata
            check_like({name: about.tree.get(name) for name in how}, saved)
            found = self._orbax.restore(path, args=items)
            check_like(found, saved)
            return found
        except Exception as error:  # Likewise.
            raise CheckpointError(
                f"checkpoint {step} in {self.folder} cannot be read ({_first_line(error)}), though "
                f"its files are as they were written: move {path.parent} away to go on from an "
                "older one"
            ) from error

    # -- Several processes -------------------------------------------------------------------------

    def _agreed(self, find: Callable[[], int | None]) -> int | None:
        """What the first process finds."""
        if jax.process_count() == 1:
            return find()
        found: list[int | None] = [None]
        distributed.lead(lambda: found.append(find()), f"look through {self.folder}")
        here = -1 if found[-1] is None else found[-1]
        step = int(multihost_utils.broadcast_one_to_all(np.int32(here)))
        return None if step < 0 else step


def _unwritable(path: Path, error: Exception) -> str:
    why = error.strerror if isinstance(error, OSError) and error.strerror else _first_line(error)
    return f"{path} cannot be written ({why}): make room, or mend that, and give the same command"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]
