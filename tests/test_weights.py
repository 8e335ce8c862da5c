"""Weights are a file of safetensors that any framework reads, to the bit; and a start for a run."""

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from convjax import tree
from convjax.checkpoint import Checkpoints
from convjax.config import Average, Checkpoint, Data, Experiment, Model, Start, UserError, to_dict
from convjax.exchange.weights import DTYPES, WeightsError, load_weights, read_header, save_weights
from convjax.flags import guard
from convjax.runlog import RunLog
from convjax.saved import begin_from
from experiments import export

REPO = Path(__file__).resolve().parent.parent
# Written by hand: what the format and NumPy both have.
NAMES = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "complex64"),
]


def drawn(name, shape):
    """An array of any bits, not numbers and infinities among them; of bool 0 and 1."""
    dtype = jnp.dtype(name)
    draw = np.random.default_rng([len(shape), *name.encode()])
    most = 2 if name == "bool" else 256
    bits = draw.integers(0, most, int(np.prod(shape)) * dtype.itemsize, np.uint8)
    return np.frombuffer(bits.tobytes(), dtype).reshape(shape)


def every_dtype():
    """A model with an array of each dtype, in four shapes."""
    shapes = {"matrix": (3, 5), "kernel": (3, 3, 2, 4), "none": (0, 7), "number": ()}
    leaves = {
        f"{name}/{each}": drawn(name, shape) for name in NAMES for each, shape in shapes.items()
    }
    return {f"params/{path}": leaf for path, leaf in leaves.items()}


def same(one, other):
    """Whether two arrays have the same dtype, shape and bits."""
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_weights(path, every_dtype())
    return path


def test_the_dtypes_are_all_that_numpy_and_the_format_share():
    assert sorted(dtype.name for dtype in DTYPES.values()) == sorted(NAMES)


def test_numpy_reads_what_was_written_to_the_bit(written):
    theirs = safetensors.numpy.load_file(written)
    assert theirs.keys() == every_dtype().keys()
    assert all(same(theirs[path], leaf) for path, leaf in every_dtype().items())


def test_torch_reads_what_was_written_to_the_bit(written):
    theirs = safetensors.torch.load_file(written)
    assert theirs.keys() == every_dtype().keys()
    for path, leaf in every_dtype().items():
        assert str(theirs[path].dtype) == f"torch.{leaf.dtype.name}"
        assert theirs[path].shape == leaf.shape
        bits = theirs[path].reshape(-1).view(torch.uint8).numpy()
        assert bits.tobytes() == leaf.tobytes()


def test_what_numpy_and_torch_write_is_read_to_the_bit(tmp_path):
    leaves = every_dtype()
    safetensors.numpy.save_file(leaves, tmp_path / "numpy.safetensors")
    tensors = {
        path: torch.frombuffer(bytearray(leaf.tobytes()), dtype=getattr(torch, leaf.dtype.name))
        .reshape(leaf.shape)
        .clone()
        for path, leaf in leaves.items()
        if leaf.size  # Of no bytes torch makes no tensor.
    }
    safetensors.torch.save_file(tensors, tmp_path / "torch.safetensors", {"format": "pt"})
    for file in ("numpy", "torch"):
        found = load_weights(tmp_path / f"{file}.safetensors")
        assert found.keys() == (leaves if file == "numpy" else tensors).keys()
        assert all(same(leaf, leaves[path]) for path, leaf in found.items())


def test_what_was_written_is_read_to_the_bit(written):
    found = load_weights(written)
    assert found.keys() == every_dtype().keys()
    assert all(same(found[path], leaf) for path, leaf in every_dtype().items())


def test_the_header_tells_shapes_and_dtypes(written):
    arrays = read_header(written).arrays
    assert {path: (leaf.shape, leaf.dtype) for path, leaf in arrays.items()} == {
        path: (leaf.shape, leaf.dtype) for path, leaf in every_dtype().items()
    }


@pytest.mark.parametrize("length", [0x80, 0x180, 0x4B50])
def test_a_header_of_any_length_is_one(tmp_path, length):
    # As numbers of eight bytes these begin like a pickle and an archive.
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"params/a": np.array([1, 2], np.float32)}, path)
    content = path.read_bytes()
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    path.write_bytes(length.to_bytes(8, "little") + header.ljust(length) + content[-8:])
    np.testing.assert_array_equal(load_weights(path)["params/a"], [1, 2])


def test_arrays_are_written_by_their_numbers_and_not_as_they_lie_in_memory(tmp_path):
    numbers = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    views = {
        "turned": numbers.transpose(2, 0, 1),
        "steps": numbers[:, ::2, ::-1],
        "big_endian": numbers.astype(">f4"),
        "jax": jnp.asarray(numbers, jnp.bfloat16),
    }
    save_weights(tmp_path / "views.safetensors", {"params": views})
    found = load_weights(tmp_path / "views.safetensors")
    for name, view in views.items():
        np.testing.assert_array_equal(found[f"params/{name}"], np.asarray(view))


def test_parameters_and_state_may_be_trees(tmp_path):
    params = {"conv1": {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}}
    state = {"norm1": {"mean": jnp.zeros(2)}}
    save_weights(tmp_path / "a.safetensors", {"params": params, "state": state})
    names = {"params/conv1/kernel", "params/conv1/bias", "state/norm1/mean"}
    assert set(load_weights(tmp_path / "a.safetensors")) == names
    save_weights(tmp_path / "b.safetensors", {"params": params, "state": {}})
    assert set(load_weights(tmp_path / "b.safetensors")) == names - {"state/norm1/mean"}


def test_equal_models_give_equal_files(tmp_path):
    leaves, about = every_dtype(), {"model": "small", "args": {"b": 1, "a": 2}, "classes": ["x"]}
    contents = set()
    for number in range(6):
        leaves, about = (dict(reversed(each.items())) for each in (leaves, about))
        save_weights(tmp_path / f"{number}.safetensors", leaves, about)
        contents.add((tmp_path / f"{number}.safetensors").read_bytes())
    assert len(contents) == 1


def test_metadata_come_back_and_those_of_others_are_passed_over(tmp_path):
    mine, theirs = tmp_path / "mine.safetensors", tmp_path / "theirs.safetensors"
    about = {"model": "resnet20", "args": {"width": 16}, "pixels": {"mean": [0.5]}, "none": None}
    array = np.zeros(1, np.float32)
    save_weights(mine, {"params": {"a": array}}, about)
    assert read_header(mine).about == about
    with safetensors.safe_open(mine, "numpy") as file:
        assert json.loads(file.metadata()["convjax"]) == about
    for texts in (None, {}, {"format": "pt"}, {"convjax": "no JSON"}, {"convjax": "[1]"}):
        safetensors.numpy.save_file({"params/a": array}, theirs, texts)
        assert read_header(theirs).about == {}
        assert same(load_weights(theirs)["params/a"], array)


@pytest.mark.parametrize(
    ("model", "metadata", "message"),
    [
        ({"params": {"a": np.zeros(2, complex)}}, {}, "'params/a' is complex128: cast it to one"),
        ({"params": {"a": np.array([None])}}, {}, "'params/a' is object: cast it to one of"),
        ({"opt": {"a": np.zeros(2)}}, {}, "'opt/a' is neither in params/ nor in state/"),
        ({"params/a": np.zeros(2), "params": {"a": np.ones(2)}}, {}, "two arrays .* the same path"),
        ({"params": {"a": np.zeros(2)}}, {"f": print}, "JSON cannot hold the metadata"),
        ({"params": {"a": np.zeros(2)}}, {"f": float("nan")}, "JSON cannot hold the metadata"),
    ],
)
def test_what_is_no_model_is_not_written(tmp_path, model, metadata, message):
    with pytest.raises(WeightsError, match=message):
        save_weights(tmp_path / "x.safetensors", model, metadata)
    assert not any(tmp_path.iterdir())


def test_a_file_that_is_there_is_replaced_only_where_that_is_asked_for(tmp_path):
    file, zero, one = tmp_path / "x.safetensors", np.zeros(1), np.ones(1)
    save_weights(file, {"params": {"a": zero}})
    with pytest.raises(WeightsError, match="is there already: give another name, or ask to over"):
        save_weights(file, {"params": {"a": one}})
    assert load_weights(file)["params/a"] == zero
    save_weights(file, {"params": {"a": one}}, overwrite=True)
    assert load_weights(file)["params/a"] == one
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(WeightsError, match="is there already: it is no file"):
            save_weights(tmp_path / name, {"params": {"a": one}}, overwrite=True)
    with pytest.raises(WeightsError, match=r"cannot be written .*: give another place"):
        save_weights(tmp_path / "missing/x.safetensors", {"params": {"a": one}})


def test_a_file_that_cannot_be_written_whole_leaves_the_older_one(tmp_path):
    file = tmp_path / "x.safetensors"
    save_weights(file, {"params": {"a": np.arange(3)}})
    before = file.read_bytes()
    code = (
        "import resource, sys, numpy as np; "
        "from convjax.exchange.weights import WeightsError, save_weights\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    save_weights(sys.argv[1], {'params': {'a': np.ones(10**6)}}, overwrite=True)\n"
        "except WeightsError as error:\n    print(error)"
    )
    command = [sys.executable, "-c", code, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPO)
    assert re.match(rf"{re.escape(str(file))} cannot be written \(.*File too large", done.stdout)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_file_that_does_not_get_its_name_leaves_the_older_one(tmp_path, monkeypatch):
    file = tmp_path / "x.safetensors"
    save_weights(file, {"params": {"a": np.zeros(1)}})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("os.replace", "os.fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(name, full)
            with pytest.raises(WeightsError, match=r"cannot be written .*No space left on device"):
                save_weights(file, {"params": {"a": np.ones(1)}}, overwrite=True)
        assert load_weights(file)["params/a"] == 0
        assert [path.name for path in tmp_path.iterdir()] == [file.name]


# -- To start from ---------------------------------------------------------------------------------

PARAMS = {
    "conv1": {"kernel": np.full((3, 3, 1, 2), 2, np.float32)},
    "dense1": {"kernel": np.full((2, 4), 3, np.float32), "bias": np.full(4, 4, np.float32)},
}
STATE = {"norm1": {"mean": np.full(2, 5, np.float32), "var": np.full(2, 6, np.float32)}}


def own(fill=0.0):
    """Parameters and state of the network that is to start."""
    return jax.tree.map(lambda leaf: jnp.full(leaf.shape, fill, leaf.dtype), (PARAMS, STATE))


def started(file, model=None, **start):
    model = begin_from(Start(weights=str(file), **start), own() if model is None else model)
    return {path: float(leaf.max()) for path, leaf in tree.leaves(model).items()}


EACH = {
    "0/conv1/kernel": 2.0,
    "0/dense1/bias": 4.0,
    "0/dense1/kernel": 3.0,
    "1/norm1/mean": 5.0,
    "1/norm1/var": 6.0,
}


def test_a_network_starts_from_a_file(tmp_path):
    file = tmp_path / "x.safetensors"
    save_weights(file, {"params": PARAMS, "state": STATE})
    assert started(file) == EACH
    head = {"0/dense1/bias": 0.0, "0/dense1/kernel": 0.0}
    assert started(file, fresh=("dense1/*",)) == EACH | head


def test_a_start_of_which_nothing_is_taken_is_refused(tmp_path):
    file = tmp_path / "x.safetensors"
    save_weights(file, {"params": PARAMS, "state": STATE})
    with pytest.raises(
        UserError, match=r"config\.start\.fresh is \('\*',\), which names every path"
    ):
        started(file, fresh=("*",))


def test_a_file_of_parameters_alone_leaves_the_statistics_as_they_are(tmp_path):
    file = tmp_path / "x.safetensors"
    save_weights(file, {"params": PARAMS})
    assert started(file, own(7.0)) == EACH | {"1/norm1/mean": 7.0, "1/norm1/var": 7.0}


def test_of_shapes_nothing_but_the_header_of_a_file_is_read(tmp_path, monkeypatch):
    file = tmp_path / "x.safetensors"
    save_weights(file, {"params": PARAMS, "state": STATE})
    monkeypatch.setattr("convjax.saved.load_weights", None)
    shapes = jax.eval_shape(own)
    assert begin_from(Start(weights=str(file)), shapes) == shapes


def test_every_difference_between_a_file_and_a_network_is_told(tmp_path):
    file = tmp_path / "x.safetensors"
    theirs = {
        "params/conv1/kernel": np.zeros((3, 3, 1, 5), np.float32),
        "params/dense1/bias": np.zeros(4, np.float16),
        "state/norm1/mean": np.zeros(2, np.float32),
        "state/norm1/var": np.zeros(2, np.float32),
        "bn1.\x1b[31m": np.zeros(2, np.float32),
    }
    safetensors.numpy.save_file(theirs, file)
    with pytest.raises(UserError) as error:
        started(file)
    assert str(error.value) == (
        f"config.start.weights is {str(file)!r}, another network: "
        "conv1/kernel is float32[3, 3, 1, 5] there and float32[3, 3, 1, 2] here, "
        "dense1/bias is float16[4] there and float32[4] here, dense1/kernel is not in it, "
        "bn1.\\x1b[31m is not here; name what is to be drawn anew in config.start.fresh"
    )


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (
            Start(weights="no.safetensors"),
            r"config\.start\.weights: no\.safetensors does not exist: give",
        ),
        (Start(weights="."), r"config\.start\.weights: \. is no file: give a file of weights"),
        (
            Start(weights="x" * 5000),
            r"config\.start\.weights: x{5000} cannot be read \(File name too long",
        ),
        (Start(run="x" * 5000), r"config\.start\.run is 'x{5000}': File name too long"),
    ],
)
def test_a_file_that_cannot_be_read_is_told(start, message):
    with pytest.raises(UserError, match=message):
        begin_from(start, own())


# -- Export ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a run leaves, by hand: its newest model, an average of 10s, and a best of 20s."""
    log = RunLog(tmp_path_factory.mktemp("runs") / "mine")
    config = Experiment(
        model=Model("resnet20", {"width": 8}),
        data=Data(dir="a/secret/place"),
        average=Average(0.9),
        checkpoint=Checkpoint(best="accuracy"),
    )
    log.create(to_dict(config))
    log.note(classes=["cat", "dog"], pixels={"mean": [0.5], "std": [0.25]}, status="finished")
    with Checkpoints(log.checkpoints) as checkpoints:
        checkpoints.save(3, {"params": PARAMS, "state": STATE, "average": own(10.0)})
    with Checkpoints(log.best) as best:
        params, state = own(20.0)
        best.save(2, {"params": params, "state": state})
    return log.folder


def exported(capsys, *words):
    """Exit status, standard output and standard error of the launcher."""
    return guard(export.main, ["export", *words]), *capsys.readouterr()


def test_a_model_of_a_run_is_exported(folder, tmp_path, capsys):
    out = tmp_path / "mine.safetensors"
    line = f"{out}: 5 arrays, 34 numbers, "
    for words, expected in (
        ((), EACH),
        (("--model=average", "--overwrite"), dict.fromkeys(EACH, 10.0)),
        (("--model=best", "--overwrite"), dict.fromkeys(EACH, 20.0)),
    ):
        status, said, wrong = exported(capsys, f"--workdir={folder}", f"--out={out}", *words)
        assert (status, wrong) == (0, "")
        assert said == f"{line}{out.stat().st_size} bytes\n"
        assert started(out) == expected


def test_an_export_says_how_its_arrays_are_used_and_names_no_place(folder, tmp_path, capsys):
    out = tmp_path / "mine.safetensors"
    exported(capsys, f"--workdir={folder}", f"--out={out}")
    about = read_header(out).about
    digest = about.pop("digest")
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", about.pop("convjax"))
    assert about == {
        "model": "resnet20",
        "args": {"width": 8},
        "classes": ["cat", "dog"],
        "pixels": {"mean": [0.5], "std": [0.25]},
        "saved": "newest",
    }
    sha = hashlib.sha256()
    for path, leaf in sorted(load_weights(out).items()):
        sha.update(f"{path}\0{leaf.dtype.name}\0{leaf.shape}\0".encode() + leaf.tobytes())
    assert digest == sha.hexdigest()
    assert b"secret" not in out.read_bytes()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--out=x.safetensors", "--workdir is missing: give --workdir=DIR"),
        ("--workdir={run}", "--out is missing: give --out=FILE.safetensors"),
        ("--workdir={run} --out=x.pt", "--out is 'x.pt': give --out=FILE.safetensors"),
        ("--workdir={run} --out=there.safetensors", "is there already: give another --out, or --o"),
        (
            "--workdir={run} --out=x.safetensors --model=bset",
            "there is no model 'bset' of a run: d",
        ),
        ("--workdir={run} --out=no/x.safetensors", "no/x.safetensors cannot be written ("),
        ("--workdir={run} --otu=x", "unknown flag --otu; did you mean '--out'?"),
        ("--workdir={run} --out=folder.safetensors --overwrite", "there already: it is no file"),
    ],
)
def test_an_export_that_cannot_be_is_one_line(
    folder, tmp_path, monkeypatch, capsys, words, expected
):
    monkeypatch.chdir(tmp_path)
    Path("there.safetensors").write_text("mine")
    Path("folder.safetensors").mkdir()
    status, said, wrong = exported(capsys, *words.format(run=folder).split())
    assert (status, said, wrong.count("\n")) == (2, "", 1)
    assert wrong.startswith("error: ")
    assert expected in wrong
    assert Path("there.safetensors").read_text() == "mine"
    assert sorted(path.name for path in Path().iterdir()) == [
        "folder.safetensors",
        "there.safetensors",
    ]
