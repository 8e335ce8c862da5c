"""Checkpoints of a run, through Orbax: the leaves of a pytree by path, and a page of JSON.

    with Checkpoints("runs/mine/checkpoints", keep=3) as checkpoints:
        checkpoints.save(100, state, {"seconds": 12.5})
        state, extra = checkpoints.restore(shape_of_state)

What is restored has the paths, shapes and dtypes that were asked for, or is refused with a list of
all differences: nothing is cast, left out or made up.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
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
        self._manager = ocp.CheckpointManager(self.folder, options=options)

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

    def save(self, step: int, state: Any, extra: dict[str, Any] | None = None) -> None:
        """Saves a pytree of arrays, typed PRNG keys among them, under the number of a step.

        extra: anything that JSON holds.

        Raises:
            CheckpointError: if the step, or a newer one, is there already.
        """
        arrays = jax.device_get(tree.leaves(jax.tree.map(_without_key, state)))
        items = {
            "state": ocp.args.PyTreeSave({path: np.asarray(leaf) for path, leaf in arrays.items()}),
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
        """The pytree that was saved, as NumPy arrays in the structure of `like`, and the extra.

        like: a pytree of arrays or of `jax.ShapeDtypeStruct`.
        step: which one; by default the newest.
        drop: patterns of saved paths that are not wanted.

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
        wanted = ocp.args.Composite(state=ocp.args.PyTreeRestore(), extra=ocp.args.JsonRestore())
        try:
            found = self._manager.restore(step, args=wanted)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise CheckpointError(
                f"checkpoint {step} in {self.folder} cannot be read ({_first_line(error)}): "
                f"remove {self.folder / str(step)} to go on from an older one"
            ) from error
        try:
            plain = tree.merge(jax.tree.map(_without_key, like), found["state"], drop=drop)
        except ValueError as error:
            raise CheckpointError(
                f"checkpoint {step} in {self.folder} is not of this network and optimizer; "
                f"'tree' is what was asked for, 'given' is the checkpoint: {error}"
            ) from error
        return jax.tree.map(_with_key, like, plain), found["extra"]


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _without_key(leaf: Any) -> Any:
    """A typed key, or its shape, as the numbers that it is made of; anything else as it is."""
    if not _is_key(leaf):
        return leaf
    abstract = isinstance(leaf, jax.ShapeDtypeStruct)
    return jax.eval_shape(jax.random.key_data, leaf) if abstract else jax.random.key_data(leaf)


def _with_key(like: Any, leaf: np.ndarray) -> Any:
    if not _is_key(like):
        return leaf
    impl = jax.random.key_impl(jnp.empty((), like.dtype))
    return jax.random.wrap_key_data(jnp.asarray(leaf), impl=impl)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]
