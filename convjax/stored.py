"""The leaves of a tree as a checkpoint holds them: NumPy arrays, and keys as their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from convjax.manifest import Manifest


def on_host(leaf: Any) -> Any:
    """A copy of an array that no later step overwrites; of one of several processes, itself."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return leaf
    return np.array(leaf)


def shapes(known: Manifest) -> dict[str, Any]:
    """The shapes and dtypes of what was saved, by path."""
    return {
        path: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
        for path, (dtype, shape) in known.leaves.items()
    }


def check_like(found: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Raises ValueError where arrays have not the shapes and dtypes of the manifest."""
    for name, leaf in found.items():
        here = (tuple(leaf.shape), jnp.dtype(leaf.dtype)) if leaf is not None else None
        if here != (saved[name].shape, saved[name].dtype):
            raise ValueError(f"{name} has another shape or dtype than {saved[name]}")


def how_to_restore(leaf: Any) -> ocp.RestoreArgs:
    """How a leaf is to come back."""
    if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is not None:
        return ocp.ArrayRestoreArgs(sharding=leaf.sharding)
    return ocp.RestoreArgs(restore_type=np.ndarray)


def without_key(leaf: Any) -> Any:
    """A typed key, or its shape, as the numbers that it is made of; anything else as it is."""
    if not _is_key(leaf):
        return leaf
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.random.key_data(leaf)
    numbers = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return jax.ShapeDtypeStruct(numbers.shape, numbers.dtype, sharding=leaf.sharding)


def with_key(like: Any, leaf: Any) -> Any:
    """Of the numbers of a key the key again, where `like` is one; anything else as it is."""
    if not _is_key(like):
        return leaf
    impl = jax.random.key_impl(jnp.empty((), like.dtype))
    return jax.random.wrap_key_data(jnp.asarray(leaf), impl=impl)


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
