"""Checkpoints of a run, through Orbax: the leaves of a pytree by path, and a page of JSON.

    with Checkpoints("runs/mine/checkpoints", keep=3) as checkpoints:
        checkpoints.save(100, state, {"seconds": 12.5})
        state, extra = checkpoints.restore(mapper.spec(state))    # onto any devices

What is restored has the paths, shapes and dtypes that were asked for, or is refused with a list of
all differences: nothing is cast, left out or made up. Of several processes each makes the same
calls, on a folder that all of them see.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from convjax import tree
from convjax.config import UserError


class CheckpointError(UserError):
    """A checkpoint that cannot be written, read, or made to fit."""


class Checkpoints:
    """The checkpoints in a folder, one a step, of which the newest `keep` stay.

    A save is complete when `save` returns, and becomes visible all at once: one that is cut short
    leaves the others as they were. Close it, or use it in a `with`.
    """

    def __init__(self, folder: str | os.PathLike[str], *, keep: int | None = None):
        self.folder = Path(folder).absolute()
        if self.folder.exists() and not self.folder.is_dir():
            raise CheckpointError(f"{self.folder} is not a folder: move it, or train elsewhere")
        # Saving takes a few hundredths of a second; asynchronous saving would have to copy first.
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        handlers = {"state": ocp.PyTreeCheckpointHandler(), "extra": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for what is under way and lets go of the folder."""
        self._manager.close()

    def latest_step(self) -> int | None:
        """The newest step that was saved, None where there is none."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """The steps that are there, from the oldest on."""
        return sorted(self._manager.all_steps())

    def delete(self, step: int) -> None:
        """Takes a checkpoint away."""
        self._manager.delete(step)

    def save(self, step: int, state: Any, extra: dict[str, Any] | None = None) -> None:
        """Saves a pytree of arrays, typed PRNG keys among them, under the number of a step.

        The arrays may be spread over any devices, also over those of several processes: of what
        lies on its own, each process writes its share.

        extra: anything that JSON holds; of several processes that of the first is written.

        Raises:
            CheckpointError: if the step, or a newer one, is there already.
        """
        arrays = tree.leaves(jax.tree.map(_without_key, state))
        shared = {path: leaf for path, leaf in arrays.items() if not _is_here(leaf)}
        own = jax.device_get({path: arrays[path] for path in arrays.keys() - shared.keys()})
        items = {
            "state": ocp.args.PyTreeSave(
                {path: shared[path] if path in shared else np.asarray(own[path]) for path in arrays}
            ),
            "extra": ocp.args.JsonSave(extra or {}),
        }
        # Orbax passes over a save in silence where it has the step, or a newer one.
        if not self._manager.save(step, args=ocp.args.Composite(**items)):
            raise CheckpointError(
                f"checkpoint {step} was not saved: {self.folder} has step {self.latest_step()} "
                "already; give a later step or another folder"
            )

    def restore(
        self, like: Any, step: int | None = None, *, drop: str | Iterable[str] = ()
    ) -> tuple[Any, dict[str, Any]]:
        """The pytree that was saved, in the structure of `like`, and the extra.

        like: a pytree of arrays or of `jax.ShapeDtypeStruct`. A leaf of the latter with a sharding
            comes back as an array that is spread like this, whatever it was spread like when it
            was saved, and is read by each process as far as it lies there; any other as a NumPy
            array.
        step: which one; by default the newest.
        drop: patterns of saved paths that are not wanted; they are not read.

        Raises:
            CheckpointError: if there is none, if it cannot be read, or listing every path, shape
                and dtype that differs.
        """
        step = self.latest_step() if step is None else step
        if step is None or step not in self._manager.all_steps():
            raise CheckpointError(
                f"{self.folder} has no checkpoint{'' if step is None else f' {step}'}: "
                f"it has {', '.join(map(str, self._manager.all_steps())) or 'none'}"
            )
        wanted = jax.tree.map(_without_key, like)
        saved = self._read(step, lambda: self._shapes(step))
        try:
            tree.merge(wanted, saved, drop=drop)
        except ValueError as error:
            raise CheckpointError(
                f"checkpoint {step} in {self.folder} is not of this network and optimizer; "
                f"'tree' is what was asked for, 'given' is the checkpoint: {error}"
            ) from error
        how = {path: _how(leaf) for path, leaf in tree.leaves(wanted).items()}
        chosen = {path: saved[path] for path in how}
        items = ocp.args.Composite(
            state=ocp.args.PyTreeRestore(item=chosen, restore_args=how, partial_restore=True),
            extra=ocp.args.JsonRestore(),
        )
        found = self._read(step, lambda: self._manager.restore(step, args=items))
        leaves = [found["state"][path] for path in how]
        plain = jax.tree.unflatten(jax.tree.structure(wanted), leaves)
        return jax.tree.map(_with_key, like, plain), found["extra"]

    def paths(self) -> list[str]:
        """The paths of the leaves of the newest checkpoint; CheckpointError if there is none."""
        return list(self._read(self._newest(), lambda: self._shapes(self._newest())))

    def read(self, patterns: str | Iterable[str]) -> dict[str, np.ndarray]:
        """The leaves of the newest checkpoint whose paths match, by path.

        Raises:
            CheckpointError: if there is none, or it cannot be read.
        """
        step = self._newest()
        saved = self._read(step, lambda: self._shapes(step))
        wanted = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            for path, leaf in saved.items()
            if tree.matches(path, patterns)
        }
        others = [path for path in saved if path not in wanted]
        return self.restore(wanted, drop=others)[0] if wanted else {}

    def _newest(self) -> int:
        step = self.latest_step()
        if step is None:
            raise CheckpointError(f"{self.folder} has no checkpoint: it has none")
        return step

    def _shapes(self, step: int) -> dict[str, Any]:
        """Path to what is known of each saved leaf, shape and dtype among it."""
        about = self._manager.item_metadata(step)["state"]
        if about is None:
            raise ValueError("the description of its arrays is missing")
        return about.tree

    def _read(self, step: int, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise CheckpointError(
                f"checkpoint {step} in {self.folder} cannot be read ({_first_line(error)}): "
                f"remove {self.folder / str(step)} to go on from an older one"
            ) from error


def _is_here(leaf: Any) -> bool:
    """Whether this process has all of an array."""
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable


def _how(leaf: Any) -> ocp.RestoreArgs:
    """How a leaf is to come back."""
    if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is not None:
        return ocp.ArrayRestoreArgs(sharding=leaf.sharding)
    return ocp.RestoreArgs(restore_type=np.ndarray)


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _without_key(leaf: Any) -> Any:
    """A typed key, or its shape, as the numbers that it is made of; anything else as it is."""
    if not _is_key(leaf):
        return leaf
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.random.key_data(leaf)
    numbers = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return jax.ShapeDtypeStruct(numbers.shape, numbers.dtype, sharding=leaf.sharding)


def _with_key(like: Any, leaf: Any) -> Any:
    if not _is_key(like):
        return leaf
    impl = jax.random.key_impl(jnp.empty((), like.dtype))
    return jax.random.wrap_key_data(jnp.asarray(leaf), impl=impl)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]
