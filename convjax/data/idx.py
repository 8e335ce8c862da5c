"""IDX files, the format of MNIST: four bytes that say what, the sizes, then the numbers.

    write_idx("labels-idx1-ubyte.gz", labels)
    labels = read_idx("labels-idx1-ubyte.gz")

The format is big endian: `0 0 type dimensions`, one uint32 a dimension, then the elements in C
order (LeCun, Cortes and Burges, "The MNIST database of handwritten digits").
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from convjax.data.checks import memory
from convjax.data.dataset import DataError


class IdxError(DataError):
    """The file is no IDX file: the message says which, what was found and what was expected."""


def read_idx(path: str | os.PathLike[str], at_most: int | None = None) -> np.ndarray:
    """Read an IDX file, gzip or plain, into a writable array of the machine's byte order.

    No more memory is taken than the file fills, whatever sizes its header claims.

    at_most: the most bytes that the array may take; by default half of the machine's memory.

    Raises IdxError where the file is not what its header says, to the byte, or is larger.
    """
    limit = memory() // 2 if at_most is None else at_most
    path = Path(path)
    with open(path, "rb") as file:
        zipped = file.read(2) == _GZIP_MAGIC
    try:
        with gzip.open(path, "rb") if zipped else open(path, "rb") as file:
            return _read(path, file.read, limit)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise IdxError(f"{path}: damaged gzip data ({error}); copy or download it again") from error


def write_idx(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write an array as an IDX file, compressed if the name ends in `.gz`.

    The bytes depend on the array and the version of zlib alone: no name, no time.
    Raises IdxError for a dtype or a shape that IDX has no room for.
    """
    array = np.asarray(array)
    codes = {t.newbyteorder("="): code for code, t in _TYPES.items()}
    code = codes.get(array.dtype.newbyteorder("="))
    if code is None:
        known = ", ".join(t.name for t in codes)
        raise IdxError(f"{path}: IDX holds {known}, not {array.dtype}; convert the array first")
    if array.ndim > _MAX_DIMENSIONS or any(size >= 2**32 for size in array.shape):
        raise IdxError(f"{path}: IDX holds no array of shape {array.shape}")
    header = bytes([0, 0, code, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    content = header + array.astype(_TYPES[code]).tobytes()
    if str(path).endswith(".gz"):
        # The gzip header that zlib writes itself (wbits=31) has no name and the time 0.
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        content = packer.compress(content) + packer.flush()
    Path(path).write_bytes(content)


_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 1 << 20
_MAX_DIMENSIONS = 32  # what every NumPy holds
_TYPES = {
    0x08: np.dtype("u1"),
    0x09: np.dtype("i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}


def _read(path: Path, read: Callable[[int], bytes], limit: int) -> np.ndarray:
    magic = _take(read, 4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise IdxError(
            f"{path}: no IDX file: it begins with 0x{magic.hex() or '(nothing)'}, "
            "expected 0x0000, a type code and the number of dimensions"
        )
    code, dimensions = magic[2], magic[3]
    if code not in _TYPES:
        known = ", ".join(f"0x{c:02x} {t.newbyteorder('=').name}" for c, t in _TYPES.items())
        raise IdxError(f"{path}: unknown type code 0x{code:02x}, expected one of {known}")
    if dimensions > _MAX_DIMENSIONS:
        raise IdxError(f"{path}: {dimensions} dimensions, expected at most {_MAX_DIMENSIONS}")
    sizes = _take(read, 4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise IdxError(
            f"{path}: cut short: {len(sizes)} bytes of sizes, "
            f"expected {4 * dimensions} for {dimensions} dimensions"
        )
    shape = tuple(int(size) for size in np.frombuffer(sizes, ">u4"))
    dtype = _TYPES[code]
    expected = math.prod(shape) * dtype.itemsize
    if expected > limit:
        raise IdxError(
            f"{path}: {dtype.name}{list(shape)} takes {expected} bytes, expected at most {limit}: "
            "it is no file of this data set, or too large for this machine"
        )
    content = _take(read, expected)
    if len(content) < expected:
        raise IdxError(
            f"{path}: cut short: {len(content)} bytes of data, "
            f"expected {expected} for {dtype.name}{list(shape)}"
        )
    if read(1):  # At the end of the data this also makes gzip compare its checksum.
        raise IdxError(f"{path}: more bytes than the {expected} of {dtype.name}{list(shape)}")
    try:
        array = np.frombuffer(content, dtype).reshape(shape)
    except ValueError as error:  # No element, but sizes whose product overflows.
        raise IdxError(f"{path}: no array has the shape {list(shape)}: {error}") from error
    return array.astype(dtype.newbyteorder("="), copy=False)


def _take(read: Callable[[int], bytes], count: int) -> bytearray:
    """Up to `count` bytes, in a buffer that grows with what is really there."""
    taken = bytearray()
    while len(taken) < count and (chunk := read(min(_CHUNK, count - len(taken)))):
        taken += chunk
    return taken
