"""Weights as safetensors, the format of Hugging Face: arrays behind a header of JSON, and no code.

    save_weights("mine.safetensors", {"params": params, "state": state}, {"about": "cats"})
    load_weights("mine.safetensors")["params/conv1/kernel"]  # a NumPy array

A file may come from anyone. The library `safetensors` checks that arrays cover it without gap or
overlap; before it is asked, and before memory is taken, this checks what the library leaves open:
how long a header may be, names that come twice, dtypes and shapes that NumPy cannot hold.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from convjax import durable, tree
from convjax.config import UserError

# By the names of the format; its packed and 8-bit floats are for no network here.
DTYPES = {
    "BOOL": np.dtype(bool),
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    "BF16": jnp.dtype(jnp.bfloat16),
    "C64": np.dtype("complex64"),
}
LONGEST_HEADER = 2**24
"""Bytes, of some hundred thousand arrays; the format itself allows 100 MB."""
_ABOUT = "convjax"
_MOST_AXES = 32  # of an array of NumPy 1


class WeightsError(UserError, ValueError):
    """A file of weights that cannot be written, or is not what it says that it is."""


class Header(NamedTuple):
    """What a file says that it holds.

    arrays: path to shape and dtype of each.
    about: the metadata that `save_weights` was given; empty in a file of somebody else.
    """

    arrays: dict[str, jax.ShapeDtypeStruct]
    about: dict[str, Any]


def save_weights(
    path: str | os.PathLike[str],
    model: tree.Tree,
    metadata: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Writes the arrays of a model by their path, such as `params/conv1/kernel`.

    The file is there as a whole or not at all. Equal models and metadata give equal bytes.

    model: `{"params": params, "state": state}`, the latter as far as there is one; or its leaves
        by path already.
    metadata: whatever JSON holds; it is written as one text, named `convjax`.

    Raises:
        WeightsError: if there is such a file already, it cannot be written, JSON cannot hold the
            metadata, or an array is not of `params` or `state` or has no dtype of `DTYPES`.
    """
    path = Path(path)
    if os.path.lexists(path) and not (overwrite and path.is_file()):
        advice = "give another name, or ask to overwrite it" if path.is_file() else "it is no file"
        raise WeightsError(f"{path} is there already: {advice}")
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in tree.leaves(model).items()}
    if len(arrays) < len(jax.tree.leaves(model)):
        raise WeightsError(f"{path}: two arrays of the model have the same path: rename a part")
    for name, array in arrays.items():
        if not name.startswith(("params/", "state/")):
            raise WeightsError(
                f"{path}: {name!r} is neither in params/ nor in state/: leave it out"
            )
        if array.dtype.newbyteorder("=") not in DTYPES.values():
            known = ", ".join(sorted(map(str, DTYPES.values())))
            raise WeightsError(f"{path}: {name!r} is {array.dtype}: cast it to one of {known}")
    # The library writes several texts in an order of chance.
    try:
        texts = {_ABOUT: json.dumps(dict(metadata or {}), sort_keys=True, allow_nan=False)}
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: JSON cannot hold the metadata ({error}): mend them") from error
    unfinished = durable.unfinished_of(path)
    try:
        save_file(arrays, unfinished, texts)
        durable.sync(unfinished)
        os.replace(unfinished, path)
        durable.sync(path.parent)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise WeightsError(f"{path} cannot be written ({error}): give another place") from error


def load_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of a file by path, in the order of its header.

    Raises:
        WeightsError: naming the file, and the array, if it is not what its header says, or takes
            more memory than there is.
    """
    names = read_header(path).arrays
    try:
        # Not mapped: to cut a file short while it is read would kill the process.
        with safe_open(path, "numpy", backend="pread") as file:
            arrays = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, MemoryError) as error:
        raise _refused(path, error) from error
    for name, array in arrays.items():
        if array.dtype == bool and array.view(np.uint8).max(initial=0) > 1:
            raise _wrong(path, f"array {name!a} has other bytes than those of 0 and 1")
    return arrays


def read_header(path: str | os.PathLike[str]) -> Header:
    """What a file holds, once its header is known to be right; no array is read.

    Raises:
        WeightsError: as `load_weights`.
    """
    names, texts = {}, {}
    for name, about in _pairs(path, _header_bytes(path)):
        if name == "__metadata__":
            texts = about
        else:
            names[name] = _spec(path, name, about)
    try:
        with safe_open(path, "numpy", backend="pread") as file:
            if set(file.keys()) != set(names):
                raise _wrong(path, "was replaced while it was read", "wait until it is whole")
    except (OSError, SafetensorError, MemoryError) as error:
        raise _refused(path, error) from error
    about = {}
    with contextlib.suppress(ValueError, RecursionError, TypeError, KeyError):
        about = json.loads(texts[_ABOUT])  # Somebody else may have written anything.
    return Header(names, about if isinstance(about, dict) else {})


# -- What these are made of ------------------------------------------------------------------------


def _header_bytes(path: str | os.PathLike[str]) -> bytes:
    try:
        if not Path(path).is_file():
            kind = "is no file" if os.path.lexists(path) else "does not exist"
            raise WeightsError(f"{path} {kind}: give a file of weights, FILE.safetensors")
        with open(path, "rb") as file:
            size, begin = os.fstat(file.fileno()).st_size, file.read(8)
            length = int.from_bytes(begin, "little")
            # Not before the length was found wrong: a header may be of 0x80 or of 0x4B50 bytes.
            if length > size - 8 and begin.startswith((b"PK", b"\x80", b"\x93NUMPY")):
                advice = "save its arrays by safetensors.numpy.save_file, or that of .torch"
                raise _wrong(path, "is a file of NumPy or PyTorch, which may hold code", advice)
            if length > size - 8:
                raise _wrong(path, f"has {size} bytes and claims a header of {length}")
            if length > LONGEST_HEADER:
                raise _wrong(path, f"has a header of {length} bytes, more than {LONGEST_HEADER}")
            return file.read(length)
    except OSError as error:
        raise _refused(path, error) from error


def _pairs(path: str | os.PathLike[str], header: bytes) -> list[tuple[str, Any]]:
    """The names of a header, each of which it has once, with what it says of them."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = {}
        for name, value in pairs:
            if name in found:
                raise _wrong(path, f"has {ascii(name)[:200]} more than once in its header")
            found[name] = value
        return found

    try:
        found = json.loads(header.decode("utf-8"), object_pairs_hook=once)
    except WeightsError:
        raise
    except (ValueError, RecursionError) as error:
        raise _refused(path, error) from error
    if not isinstance(found, dict):
        raise _wrong(path, f"has a header that is no object of JSON but {type(found).__name__}")
    return list(found.items())


def _spec(path: str | os.PathLike[str], name: str, about: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an array, which NumPy can hold and which fit its place in the file."""
    where = f"array {ascii(name)[:200]}"
    match about:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [begin, end]}:
            pass
        case _:
            raise _wrong(path, f"does not say dtype, shape and offsets of {where}")
    if kind not in DTYPES:
        known = ", ".join(DTYPES)
        raise _wrong(
            path, f"{where} has the dtype {ascii(kind)[:40]}", f"cast it to one of {known}"
        )
    if any(type(number) is not int or number < 0 for number in (*shape, begin, end)):
        raise _wrong(path, f"{where} has numbers in its header that are not whole, from 0 on")
    size = DTYPES[kind].itemsize
    if len(shape) > _MOST_AXES or size * math.prod(max(1, axis) for axis in shape) >= 2**63:
        raise _wrong(path, f"{where} has a shape that no array has")
    if size * math.prod(shape) != end - begin:
        needs = f"{size * math.prod(shape)} bytes for {kind}{shape}"
        raise _wrong(path, f"{where} needs {needs}, and has {end - begin}")
    return jax.ShapeDtypeStruct(tuple(shape), DTYPES[kind])


def _refused(path: str | os.PathLike[str], error: Exception) -> WeightsError:
    if isinstance(error, OSError) and error.strerror:
        return WeightsError(f"{path} cannot be read ({error.strerror}): give a file of weights")
    if isinstance(error, MemoryError):
        return _wrong(path, "takes more memory than there is", "ask for a smaller one")
    # It may quote what stands in the file.
    return _wrong(path, f"is no safetensors file ({ascii(str(error))[1:-1][:300]})")


def _wrong(
    path: str | os.PathLike[str], what: str, next_step: str = "get it again, it is damaged"
) -> WeightsError:
    return WeightsError(f"{path}: {what}: {next_step}")
