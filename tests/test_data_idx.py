"""IDX files: what is written is read again, and a damaged file is an error that names it."""

import gzip
import re
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from convjax.data import IdxError, read_idx, write_idx

# Pencil and paper: the format's own description, one element of each type.
BY_HAND = {
    0x08: ("uint8", b"\xff", 255),
    0x09: ("int8", b"\xfe", -2),
    0x0B: ("int16", b"\xff\xfe", -2),
    0x0C: ("int32", b"\x01\x02\x03\x04", 16909060),
    0x0D: ("float32", b"\xc0\x20\x00\x00", -2.5),
    0x0E: ("float64", b"\x3f\xb9\x99\x99\x99\x99\x99\x9a", 0.1),
}
DTYPES = [name for name, _, _ in BY_HAND.values()]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("code", BY_HAND)
def test_bytes_written_by_hand_are_read(tmp_path, code, zipped):
    dtype, element, value = BY_HAND[code]
    content = bytes([0, 0, code, 2]) + struct.pack(">II", 1, 2) + element * 2
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(content) if zipped else content)
    array = read_idx(path)
    assert array.dtype == np.dtype(dtype)
    assert array.dtype.isnative
    assert array.tolist() == [[value, value]]


@pytest.mark.parametrize("code", BY_HAND)
def test_an_array_is_written_to_the_byte(tmp_path, code):
    dtype, element, value = BY_HAND[code]
    write_idx(tmp_path / "file", np.full((2, 1), value, dtype))
    expected = bytes([0, 0, code, 2]) + struct.pack(">II", 2, 1) + element * 2
    assert (tmp_path / "file").read_bytes() == expected


@pytest.mark.parametrize("name", ["plain", "zipped.gz"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (0, 4), (2, 3), (2, 3, 4), (1, 2, 1, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_is_read_again(tmp_path, dtype, shape, name):
    array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    write_idx(tmp_path / name, array)
    again = read_idx(tmp_path / name)
    assert again.dtype == array.dtype
    assert again.shape == shape
    np.testing.assert_array_equal(again, array)
    again[...] = 0  # Writable, as an array of one's own is.


def test_a_byte_swapped_and_strided_array_is_written_by_value(tmp_path):
    array = np.arange(12, dtype="<i4").reshape(3, 4).T[::2].astype(">i4")
    write_idx(tmp_path / "file", array)
    np.testing.assert_array_equal(read_idx(tmp_path / "file"), array)


def test_the_same_array_gives_the_same_compressed_bytes_without_name_and_time(tmp_path):
    array = np.arange(100, dtype=np.uint8)
    write_idx(tmp_path / "one.gz", array)
    write_idx(tmp_path / "another.gz", array)
    content = (tmp_path / "one.gz").read_bytes()
    assert content == (tmp_path / "another.gz").read_bytes()
    # RFC 1952: magic, deflate, no flags (so neither name nor comment), time 0.
    assert content[:8] == b"\x1f\x8b\x08\x00" + bytes(4)
    assert gzip.decompress(content) == b"\0\0\x08\x01" + struct.pack(">I", 100) + array.tobytes()


@pytest.mark.parametrize("dtype", ["int64", "uint16", "bool", "complex64", "U3"])
def test_a_type_that_idx_has_no_code_for_is_refused(tmp_path, dtype):
    with pytest.raises(IdxError, match=rf"file: IDX holds uint8, .*, not {np.dtype(dtype)}"):
        write_idx(tmp_path / "file", np.zeros(2, dtype))


HEADER = b"\0\0\x08\x02" + struct.pack(">II", 2, 3)
DAMAGED = {
    "empty": (b"", "begins with 0x(nothing), expected 0x0000"),
    "no magic": (b"\0\1\x08\x01" + bytes(5), "begins with 0x00010801, expected 0x0000"),
    "text": (b"<html>404</html>", "begins with 0x3c68746d, expected 0x0000"),
    "short magic": (b"\0\0\x08", "begins with 0x000008"),
    "type": (b"\0\0\x0a\x01" + bytes(5), "unknown type code 0x0a, expected one of 0x08 uint8"),
    "dimensions": (b"\0\0\x08\xff" + bytes(2000), "255 dimensions, expected at most 32"),
    "sizes": (HEADER[:9], "cut short: 5 bytes of sizes, expected 8 for 2 dimensions"),
    "data": (HEADER + bytes(5), "cut short: 5 bytes of data, expected 6 for uint8[2, 3]"),
    "trailing": (HEADER + bytes(7), "more bytes than the 6 of uint8[2, 3]"),
    "overflow": (
        b"\0\0\x08\x04" + b"\0\0\0\0" + b"\xff" * 12,
        "no array has the shape [0, 4294967295, 4294967295, 4294967295]",
    ),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("fault", DAMAGED)
def test_a_malformed_file_is_an_error_with_file_found_and_expected(tmp_path, fault, zipped):
    content, message = DAMAGED[fault]
    path = tmp_path / "broken-idx"
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(IdxError, match=f"broken-idx: .*{re.escape(message)}"):
        read_idx(path)


@pytest.mark.parametrize("cut", range(2, 60, 3))
def test_a_cut_gzip_file_is_an_error_that_names_it(tmp_path, cut):
    whole = gzip.compress(HEADER + bytes(range(6)), mtime=0)
    (tmp_path / "broken-idx").write_bytes(whole[: min(cut, len(whole) - 1)])
    with pytest.raises(IdxError, match=r"broken-idx: damaged gzip data"):
        read_idx(tmp_path / "broken-idx")


@pytest.mark.parametrize("fault", ["checksum", "length", "garbage behind it"])
def test_a_damaged_gzip_trailer_is_an_error(tmp_path, fault):
    whole = bytearray(gzip.compress(HEADER + bytes(range(6)), mtime=0))
    if fault == "garbage behind it":
        whole += b"garbage"
    else:
        whole[-8 if fault == "checksum" else -4] ^= 1
    (tmp_path / "broken-idx").write_bytes(whole)
    with pytest.raises(IdxError, match=r"broken-idx: damaged gzip data"):
        read_idx(tmp_path / "broken-idx")


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("sizes", [(0xFFFFFFFF,), (0xFFFFFFFF,) * 4, (60000, 28, 28)])
def test_a_header_that_claims_gigabytes_takes_no_memory(tmp_path, sizes, zipped):
    content = bytes([0, 0, 0x0E, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes) + bytes(99)
    (tmp_path / "file").write_bytes(gzip.compress(content) if zipped else content)
    tracemalloc.start()
    try:
        with pytest.raises(IdxError, match=r"cut short: 99 bytes of data|takes \d+ bytes"):
            read_idx(tmp_path / "file")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4e6


@pytest.mark.parametrize("zipped", [False, True])
def test_any_changed_byte_gives_an_error_or_an_array_of_the_size_of_the_file(tmp_path, zipped):
    content = HEADER + bytes(range(6))
    whole = gzip.compress(content, mtime=0) if zipped else content
    path = tmp_path / "file"
    outcomes = set()
    for position in range(len(whole)):
        for flip in (0x01, 0x04, 0x80, 0xFF):
            changed = bytearray(whole)
            changed[position] ^= flip
            path.write_bytes(changed)
            try:
                array = read_idx(path)
            except IdxError as error:
                outcomes.add("error" if str(error).startswith(str(path)) else str(error))
            else:
                outcomes.add("array" if array.size <= 6 else f"array of {array.shape}")
    assert outcomes == {"error", "array"}


def test_a_missing_file_is_the_systems_own_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_idx(Path(tmp_path / "nowhere"))
