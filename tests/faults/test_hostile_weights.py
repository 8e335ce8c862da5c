"""Whatever bytes a .safetensors file has: it is refused in words, or gives the arrays it says."""

import json
import math
import os
import pickle
import random
import struct
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch

from convjax.config import Start, UserError
from convjax.exchange import weights
from convjax.exchange.weights import WeightsError, load_weights, read_header
from convjax.saved import begin_from

REPO = Path(__file__).resolve().parent.parent.parent
# Bytes of a number, by hand.
SIZES = {"F32": 4, "BF16": 2, "I64": 8, "U8": 1, "BOOL": 1}
HOSTILE_NUMBERS = [
    *(-1, -(2**63), 2**31, 2**32 - 1, 2**53 + 1, 2**62, 2**63, 2**64 - 1, 2**64, 10**30, 10**400),
    *(0, 1, 1.5, 1e400, True, None, "8", [], {}, [8]),
]
HOSTILE_NAMES = [
    *("", " ", "../../x", "/etc/passwd", "params/../x", "__metadata__", "__class__", "a\0b", "\n"),
    *("\x1b]0;x\x07", "\u202eabc", "\ud800", "a" * 70_000, "params/conv1/kernel/kernel"),
]
HOSTILE_DTYPES = [
    "F64",
    "F16",
    "F8_E4M3",
    "F4",
    "C64",
    "f32",
    "float32",
    "object",
    "O",
    "",
    4,
    None,
]
OTHER_JSON = [
    *("[]", "null", "0", '"x"', "{}", "", "{", '{"a":}', "NaN", "[" * 200_000, '{"a":' * 50_000),
    *('\ufeff{"a":1}', "{}{}", "'a'", '{"__metadata__":[]}', '{"__metadata__":{"a":1}}'),
]


def small_file():
    """Arrays of five dtypes, a matrix of no numbers and a single number among them."""
    arrays = {
        "params/conv1/kernel": np.arange(18, dtype=np.float32).reshape(3, 3, 1, 2),
        "params/dense1/kernel": np.ones((2, 3), jnp.bfloat16),
        "state/norm1/mean": np.arange(3, dtype=np.int64),
        "state/norm1/seen": np.array([True, False]),
        "params/none": np.zeros((0, 4), np.uint8),
        "params/number": np.array(7, np.uint8),
    }
    return safetensors.numpy.save(arrays, {"format": "np", "about": "a small file"})


def parts(content):
    """The text of the header, and what follows it."""
    (length,) = struct.unpack("<Q", content[:8])
    return content[8 : 8 + length].decode(), content[8 + length :]


def joined(header, data):
    """The file of a header, as text or as what JSON makes of it."""
    text = header if isinstance(header, str) else json.dumps(header)
    header = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(header)) + header + data


# -- Ways to mutate: (draw, content) -> content ----------------------------------------------------


def flip_bits(draw, content):
    content = bytearray(content)
    # Two of three in the header, where a bit means most.
    most = 8 + content[0] + 256 * content[1] if draw.random() < 0.67 else len(content)
    most = min(most, len(content))
    for _ in range(draw.choice([1, 1, 1, 2, 8])):
        content[draw.randrange(most)] ^= 1 << draw.randrange(8)
    return bytes(content)


def cut_or_extend(draw, content):
    if draw.random() < 0.7:
        return content[: draw.randrange(len(content))]
    return content + bytes(draw.choice([1, 7, 8, 4096]))


def overwrite_bytes(draw, content):
    first = draw.randrange(len(content))
    filling = draw.choice([bytes(16), b"\xff" * 16, draw.randbytes(16)])[: draw.randint(1, 16)]
    return content[:first] + filling + content[first + len(filling) :]


def move_bytes(draw, content):
    first, last = sorted(draw.randrange(len(content)) for _ in range(2))
    place = draw.randrange(len(content))
    return content[:place] + content[first:last] + content[place:]


def another_length(draw, content):
    (length,) = struct.unpack("<Q", content[:8])
    near = [length + n for n in (-9, -1, 1, 8)]
    chosen = draw.choice([*near, 0, 1, len(content), 10**8, 10**8 + 1, 2**31, 2**63, 2**64 - 1])
    return struct.pack("<Q", chosen) + content[8:]


def another_number(draw, content):
    header, data = parts(content)
    header = json.loads(header)
    about = header[draw.choice([name for name in header if name != "__metadata__"])]
    numbers = about[draw.choice(["shape", "data_offsets"])]
    value = draw.choice([*HOSTILE_NUMBERS, *(sum(numbers) + n for n in (-8, -1, 1, 8))])
    match draw.randrange(4):
        case 0 if numbers:
            numbers[draw.randrange(len(numbers))] = value
        case 1 if numbers:
            numbers.pop(draw.randrange(len(numbers)))
        case 2:
            numbers.insert(0, draw.choice([value, *[0] * 9]))
        case _:
            numbers[:] = [*numbers, *[draw.choice([0, 1])] * draw.choice([1, 63, 65, 1000])]
    return joined(header, data)


def another_entry(draw, content):
    header, data = parts(content)
    header = json.loads(header)
    names = [name for name in header if name != "__metadata__"]
    name, other = draw.sample(names, 2)
    match draw.randrange(9):
        case 0:
            header[name] = header[other]
        case 1:
            header[name], header[other] = header[other], header[name]
        case 2:
            del header[name]
        case 3:
            header[name]["data_offsets"] = header[other]["data_offsets"]
        case 4:
            header[name]["dtype"] = draw.choice([*HOSTILE_DTYPES, *SIZES])
        case 5:
            header[draw.choice(HOSTILE_NAMES)] = header.pop(name)
        case 6:
            header[name].pop(draw.choice([*header[name]]))
        case 7:
            header[name] = draw.choice([*HOSTILE_NUMBERS, ["F32", [2], [0, 8]]])
        case _:
            header[name][draw.choice([*HOSTILE_NAMES, "dtype"])] = draw.choice(HOSTILE_NUMBERS)
    return joined(header, data)


def another_text(draw, content):
    header, data = parts(content)
    names = [name for name in json.loads(header) if name != "__metadata__"]
    name, other = draw.sample(names, 2)
    match draw.randrange(6):
        case 0:  # A name twice: the other array is never seen.
            return joined(header.replace(json.dumps(name), json.dumps(other)), data)
        case 1:  # The same array twice.
            entry = json.dumps({name: json.loads(header)[name]})
            return joined(entry[:-1] + "," + header.lstrip()[1:], data)
        case 2:
            field = draw.choice(["dtype", "shape", "data_offsets"])
            return joined(header.replace(f'"{field}":', f'"{field}":0,"{field}":', 1), data)
        case 3:
            return joined(draw.choice(OTHER_JSON), draw.choice([b"", data]))
        case 4:
            place, what = draw.randrange(len(header)), draw.choice(['"', "}", "]", ",", "9", "\\"])
            return joined(header[:place] + what + header[place + draw.randrange(2) :], data)
        case _:
            return joined(" " * draw.choice([1, 8]) + header + draw.choice([" ", "\0", "x"]), data)


WAYS = [
    *(flip_bits, flip_bits, cut_or_extend, overwrite_bytes, move_bytes, another_length),
    *(another_number, another_number, another_entry, another_entry, another_text),
]


def is_what_it_says(content, found):
    """Whether these arrays are those of a file, by a reading of the format apart from the code.

    Each has the dtype, shape and bytes that the header gives it; the file has no other byte.
    """
    header, data = parts(content)
    entries = json.loads(header)
    entries.pop("__metadata__", None)
    covered = []
    for name, array in found.items():
        kind, shape = entries[name]["dtype"], entries[name]["shape"]
        first, last = entries[name]["data_offsets"]
        dtype = weights.DTYPES[kind]
        if (array.dtype, list(array.shape)) != (dtype, shape):
            return False
        if array.tobytes() != data[first:last] or last - first != dtype.itemsize * math.prod(shape):
            return False
        covered += range(first, last)
    return entries.keys() == found.keys() and sorted(covered) == [*range(len(data))]


def test_a_mutated_file_is_refused_or_gives_the_arrays_that_it_says(tmp_path, repeats, observed):
    path, whole = tmp_path / "x.safetensors", small_file()
    path.write_bytes(whole)
    assert is_what_it_says(whole, load_weights(path))
    count, refused = repeats(200, 4000), []
    for number in range(count):
        draw = random.Random(number)
        content = draw.choice(WAYS)(draw, whole)
        if draw.random() < 0.2 and len(content) > 8 and content[:8] == whole[:8]:
            content = flip_bits(draw, content)
        path.write_bytes(content)
        try:
            found = load_weights(path)
        except WeightsError as error:
            refused.append(str(error))
        else:
            assert is_what_it_says(content, found), number
    # Bits of numbers and of names may change without anybody knowing.
    assert 0.5 * count < len(refused) < 0.95 * count
    for text in refused:
        assert text.startswith(f"{path}: ")
        assert text.isprintable()
        assert len(text) < len(str(path)) + 600
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    observed("a .safetensors file mutated", count, "refused, or the arrays that its header says")


def test_what_the_library_lets_pass_is_refused(tmp_path):
    # A name that comes twice hides an array; safetensors takes the last of them.
    entry = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
    path = tmp_path / "x.safetensors"
    path.write_bytes(joined(f'{{"a":{entry},"a":{entry}}}', bytes(8)))
    assert safetensors.numpy.load_file(path).keys() == {"a"}
    with pytest.raises(WeightsError, match="has 'a' more than once in its header"):
        load_weights(path)
    path.write_bytes(
        joined({"a": {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]}}, b"\1\2")
    )
    with pytest.raises(WeightsError, match="array 'a' has other bytes than those of 0 and 1"):
        load_weights(path)


@pytest.mark.parametrize(
    ("entry", "size", "message"),
    [
        ({"shape": [3]}, 8, r"array 'a' needs 12 bytes for F32\[3\], and has 8"),
        ({"shape": [2**40]}, 8, "array 'a' needs 4398046511104 bytes for F32"),
        ({"shape": [1] * 65 + [2]}, 8, "array 'a' has a shape that no array has"),
        ({"shape": [0, 2**62], "data_offsets": [0, 0]}, 0, "'a' has a shape that no array has"),
        ({"shape": [-2]}, 8, "array 'a' has numbers in its header that are not whole, from 0 on"),
        ({"shape": [2.0]}, 8, "not whole"),
        ({"shape": [True, 2]}, 8, "not whole"),
        ({"dtype": "F8_E4M3"}, 8, "array 'a' has the dtype 'F8_E4M3': cast it to one of BOOL, I8"),
        ({"dtype": None}, 8, "does not say dtype, shape and offsets of array 'a'"),
        ({"data_offsets": [0, 8, 16]}, 8, "does not say dtype, shape and offsets of array 'a'"),
        ({"data_offsets": [4, 12]}, 12, "invalid offset for tensor `a`"),
        ({}, 9, "file not fully covered"),
        ({}, 7, "file not fully covered"),
    ],
)
def test_a_header_that_cannot_be_names_the_array(tmp_path, entry, size, message):
    path = tmp_path / "x.safetensors"
    about = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | entry
    path.write_bytes(joined({"a": about}, bytes(size)))
    with pytest.raises(WeightsError, match=message):
        read_header(path)


BOUNDED = """
import resource, sys
from convjax.exchange.weights import WeightsError, load_weights
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**28, taken + 2**28))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        load_weights(path)
    except WeightsError as error:
        print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_what_a_file_claims_takes_no_memory(tmp_path, observed):
    def claiming(name, header, size):
        """A file of that many bytes after its header, none of which is on the disk."""
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(header if isinstance(header, bytes) else joined(header, b""))
        os.truncate(path, path.stat().st_size + size)
        return str(path)

    huge = {"dtype": "U8", "shape": [2**42], "data_offsets": [0, 2**42]}
    files = {
        claiming("shape", {"a": huge}, 8): "file not fully covered",
        claiming(
            "product", {"a": huge | {"shape": [2**20] * 3}}, 8
        ): "needs 1152921504606846976 by",
        claiming("terabytes", {"a": huge}, 2**42): "takes more memory than there is",
        claiming("header", struct.pack("<Q", 2**40), 8): "claims a header of 1099511627776",
        claiming("zeros", struct.pack("<Q", 2**40), 2**40): "more than 16777216",
        claiming("long", struct.pack("<Q", 10**8), 10**8): "more than 16777216",
        claiming("open", joined("[" * 2**20, b""), 0): "maximum recursion depth exceeded",
        claiming("digits", joined('{"a":' + "9" * 10**6, b""), 0): "is no safetensors file",
    }
    command = [sys.executable, "-c", BOUNDED, *files]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPO)
    *lines, kilobytes = done.stdout.splitlines()
    for line, (file, message) in zip(lines, files.items(), strict=True):
        assert line.startswith(file)
        assert message in line
    assert int(kilobytes) < 50_000
    observed("a .safetensors file that claims gigabytes", len(files), "refused in less than 50 MB")


class Canary:
    """Makes a file where it is unpickled."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return open, (self.place, "w")


def test_code_in_a_file_never_runs(tmp_path, observed):
    canary = tmp_path / "canary"
    payload = Canary(canary)
    files = []

    def file(name):
        files.append(tmp_path / f"{name}.safetensors")
        return files[-1]

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        file(f"pickle{protocol}").write_bytes(pickle.dumps(payload, protocol))
    torch.save({"a": payload}, file("torch"))
    torch.save({"a": payload}, file("torch_legacy"), _use_new_zipfile_serialization=False)
    objects = np.array([payload], object)
    with open(file("npy"), "wb") as out:
        np.save(out, objects, allow_pickle=True)
    with open(file("npz"), "wb") as out:
        np.savez(out, a=objects)
    # Behind a header that is right.
    pickled = pickle.dumps(payload)
    hidden = {"a": {"dtype": "U8", "shape": [len(pickled)], "data_offsets": [0, len(pickled)]}}
    file("text").write_text(f"open({str(canary)!r}, 'w')")
    for each in files:
        with pytest.raises(WeightsError) as error:
            load_weights(each)
        assert str(error.value).startswith(str(each))
        with pytest.raises(UserError, match=r"config\.start\.weights: "):
            begin_from(Start(weights=str(each)), ({}, {}))
    file("hidden").write_bytes(joined(hidden, pickled))
    assert load_weights(files[-1])["a"].tobytes() == pickled
    assert not canary.exists()
    pickle.loads(pickled).close()
    assert canary.exists(), "it would have been made"
    observed("a pickle, .pt, .npy or .npz named .safetensors", len(files), "no code ran")


def test_names_stay_names(tmp_path, monkeypatch):
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    names = [name for name in HOSTILE_NAMES if name not in ("__metadata__", "\ud800")]
    arrays = {name: np.full(1, number, np.float32) for number, name in enumerate(names)}
    safetensors.numpy.save_file(arrays, "x.safetensors")
    found = load_weights("x.safetensors")
    assert {name: float(leaf[0]) for name, leaf in found.items()} == {
        name: float(number) for number, name in enumerate(names)
    }
    with pytest.raises(UserError, match="another network: ") as error:
        begin_from(Start(weights="x.safetensors"), ({}, {}))
    assert str(error.value).isprintable()
    assert str(error.value).count("is not here") == len(names)
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}
    for name in names:
        Path("x.safetensors").write_bytes(joined({name: entry}, bytes(8)))
        with pytest.raises(WeightsError, match="invalid offset for tensor") as wrong:
            load_weights("x.safetensors")
        assert str(wrong.value).isprintable()
        assert len(str(wrong.value)) < 500
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == [
        "place",
        "place/x.safetensors",
    ]


WHILE_READ = """
import os, resource, sys
from convjax.exchange import weights

path, what, when = sys.argv[1:]
header_of, opened = weights.read_header, weights.safe_open

def happen():
    if what.isdigit():
        os.truncate(path, int(what))
    else:
        taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + 2**24, taken + 2**24))

class Happening:
    def __init__(self, *args, **options):
        self.file = opened(*args, **options)
    def __enter__(self):
        return self
    def __exit__(self, *error):
        pass
    def keys(self):
        return self.file.keys()
    def get_tensor(self, name):
        happen()
        return self.file.get_tensor(name)

def then_happens(path):
    header = header_of(path)
    happen()
    return header

if when == "checked":
    weights.read_header = then_happens
else:
    weights.safe_open = Happening
try:
    weights.load_weights(path)
except weights.WeightsError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("what", "when", "message"),
    [
        ("20000000", "checked", "file not fully covered"),
        ("0", "checked", "is no safetensors file"),
        ("20000000", "opened", "is no safetensors file"),
        ("0", "opened", "is no safetensors file"),
        ("no memory left", "opened", "takes more memory than there is: ask for a smaller one"),
    ],
)
def test_what_happens_to_a_file_while_it_is_read_is_told(tmp_path, what, when, message):
    # In a process of its own: were the file mapped, cutting it short would end that by SIGBUS.
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(10**7, np.float32)}, path)
    command = [sys.executable, "-c", WHILE_READ, str(path), what, when]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPO)
    assert done.stdout.startswith(f"{path}: ")
    assert message in done.stdout


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # To open it would wait for a writer.
    os.symlink("loop", tmp_path / "loop")
    os.symlink("nowhere", tmp_path / "broken")
    for name in ("pipe", "loop", "broken", ".", "missing", "pipe/x"):
        with pytest.raises(WeightsError, match=r"is no file|does not exist|cannot be read"):
            load_weights(tmp_path / name)
    with pytest.raises(WeightsError, match="is no file"):
        load_weights("/dev/zero")
