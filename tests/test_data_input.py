"""The benchmark of the input: both readers read the same files, to the last batch."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import input as bench


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    bench.make_photos(folder, count=bench.BATCH, side=64)
    return folder


def test_photos_are_different_and_made_again_the_same(folder, tmp_path):
    size = bench.make_photos(tmp_path, count=bench.BATCH, side=64)
    files = sorted(tmp_path.rglob("*.jpg"))
    contents = [path.read_bytes() for path in files]
    assert len(set(contents)) == bench.BATCH
    assert contents == [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))]
    assert size == np.mean([len(content) for content in contents])
    assert {Image.open(io.BytesIO(content)).size for content in contents} == {(64, 64)}


@pytest.mark.parametrize(
    "reader", [lambda folder: bench.Convjax(folder, 0, 1, False), lambda f: bench.Torch(f, 0, True)]
)
def test_a_turn_is_as_many_batches_as_are_asked_for(folder, reader, monkeypatch):
    seen = []
    monkeypatch.setattr(bench, "SIZE", 16)
    monkeypatch.setattr(bench, "timed", lambda batches, warm: seen.extend(batches))
    reader(folder).turn(2)
    assert len(seen) == bench.warm_up(0) + 2
    assert all(sorted(batch[0].shape[1:]) == [3, 16, 16] for batch in seen)


def test_pytorchs_images_are_those_of_torchvisions_formula(folder):
    import torch

    torch.manual_seed(0)
    pixels, _ = bench._Photos(Path(folder), uint8=True)[3]
    floats, _ = bench._Photos(Path(folder), uint8=False)[3]
    assert pixels.shape == (3, bench.SIZE, bench.SIZE)
    assert floats.dtype == torch.float32
    assert 0 <= float(floats.min()) <= float(floats.max()) <= 1
    areas = []
    for _ in range(500):
        upper, left, height, width = bench._crop_of(100, 80)
        assert upper + height <= 80
        assert left + width <= 100
        areas.append(height * width / 8000)
    assert 0.07 < min(areas) < 0.12
    assert 0.9 < max(areas) <= 1


def test_the_clock_runs_from_the_warm_batch_to_the_last(monkeypatch):
    moments = iter([1.0, 2.0, 4.0, 8.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(moments))
    assert bench.timed([[range(bench.BATCH)]] * 4, warm=2) == 6.0
