"""The launcher `inspect`: tables of models and configs, and one line for each mistake."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from convjax.flags import guard
from convjax.insight.inspection import timing
from experiments import inspect

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture
def printed(capsys, monkeypatch):
    """What the launcher prints for these words."""
    monkeypatch.chdir(REPO)

    def call(*words):
        assert guard(inspect.main, ["launcher", *words]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return call


def cells(line):
    return re.split(r"\s{2,}", line.strip())


def test_a_model_is_described_for_the_images_that_it_was_published_for(printed):
    lines = printed("--model=lenet5").splitlines()
    assert cells(lines[2]) == ["input", "28x28x1"]
    assert cells(lines[-3])[:3] == ["total", "61,706", "416,520"]
    assert lines[-1] == "for float32[1,28,28,1]; parameters take 247 kB in float32"


def test_input_classes_and_batch_are_what_one_asks_for(printed):
    words = "--input=16,20,1", "--classes=3", "--batch=4", "--format=json"
    found = json.loads(printed("--model=small", *words))
    assert found["input"] == "float32[4,16,20,1]"
    assert found["layers"][-1]["output"] == "float32[4,3]"


def test_deep_shows_what_lies_inside_of_blocks(printed):
    flat = json.loads(printed("--model=resnet20", "--format=json"))
    deep = json.loads(printed("--model=resnet20", "--format=json", "--deep"))
    assert "stage1/block1" in [row["path"] for row in flat["layers"]]
    assert "stage1/block1/conv1" in [row["path"] for row in deep["layers"]]
    assert flat["total"] == deep["total"]
    assert flat["total"]["parameters"] == 269_722


def test_a_config_is_described_for_its_data_and_with_its_changes(printed):
    words = "--config=configs/fashion_mini.py", "--config.model.args.width=8", "--format=json"
    found = json.loads(printed(*words))
    assert found["input"] == "float32[1,28,28,1]"
    assert found["layers"][0]["output"] == "float32[1,28,28,8]"


def test_a_config_with_an_input_needs_no_data(printed):
    words = "--config=configs/cifar10.py:resnet20", "--input=32,32,3", "--classes=10"
    assert cells(printed(*words).splitlines()[-3])[1] == "269,722"


def test_a_config_says_which_parameters_its_rules_freeze(printed):
    words = "--config.model.name=lenet5", "--input=28,28,1", "--classes=10", "--format=json"
    found = json.loads(printed(*words, "--config.optimizer.rules=conv1/*: freeze"))
    assert {row["path"]: row["frozen_parameters"] for row in found["layers"]}["conv1"] == 156
    assert (found["total"]["frozen_parameters"], found["total"]["parameters"]) == (156, 61_706)


def test_a_config_is_described_in_its_precision(printed):
    words = "--config.precision=bfloat16", "--config.model.name=lenet5", "--format=json"
    first = json.loads(printed(*words))["layers"][0]
    assert (first["output"], first["activation_bytes"]) == ("bfloat16[1,28,28,6]", 28 * 28 * 6 * 2)


@pytest.mark.parametrize("words", [["--diff", "vgg11", "vgg13"], ["--diff=vgg11,vgg13"]])
def test_two_models_are_compared(printed, words):
    text = printed(*words, "--input=32,32,3", "--format=markdown")
    assert "| parameters | 132,863,336 | 133,047,848 | 1.001 |" in text
    assert "| stage1/conv2 | - → conv 3x3 | - → 32x32x64 | - → 36,928 |" in text


def test_times_come_with_their_share_and_with_what_the_device_can_do(printed, monkeypatch):
    quickly = functools.partial(timing.measure, enough=0.001)
    monkeypatch.setattr("convjax.insight.inspection.inspect.measure", quickly)
    found = json.loads(printed("--model=lenet5", "--time", "--format=json"))
    rows = {row["path"]: row for row in found["layers"]}
    assert all(row["seconds"] > 0 for row in rows.values())
    assert found["total"]["seconds"] == pytest.approx(sum(r["seconds"] for r in rows.values()))
    peak = found["timing"]["multiply_adds_per_second"]
    heaviest = max(found["layers"], key=lambda row: row["multiply_adds"])
    least = heaviest["multiply_adds"] / peak
    assert heaviest["roofline"] >= 0.99 * least / heaviest["seconds"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model=resnet5"], "--model: there is no model 'resnet5': did you mean 'resnet5"),
        (["--model=vgg16", "--input=8,8,3"], "vgg16 cannot take float32[1,8,8,3]: "),
        (["--model=vgg16", "--input=8,x,3"], "--input=8,x,3: give HEIGHT,WIDTH,CHANNELS"),
        (["--model=vgg16", "--input=0,8,3"], "--input=0,8,3: give HEIGHT,WIDTH,CHANNELS"),
        (["--model=vgg16", "--input=64,64"], "vgg16 takes images: give HEIGHT,WIDTH,CHANNELS"),
        (
            ["--model=lenet5", "--input=99999999,99999999,1"],
            "give sides and channels of at most 65,535",
        ),
        (["--model=vgg16", "--batch=0"], "--batch and --classes are at least 1"),
        (["--model=vgg16", "--format=html"], "--format=html: give text, json or markdown"),
        (["--model=vgg16", "--dep"], "unknown flag --dep; did you mean '--deep'?"),
        (["--model=vgg16", "--config.seed=1"], "give only one of --model, --config and --diff"),
        (["--diff", "vgg16"], "--diff takes two models or pages"),
        (["--diff=vgg16,vgg11,vgg13"], "--diff takes two models or pages"),
        (["--diff=vgg16,configs/fashion.py"], "did you mean 'configs/fashion_mini.py'?"),
        (
            ["--input=28,28,1", "--config.model.name=lenet5", "--config.optimizer.rules=x: freeze"],
            "config.optimizer.rules: ",
        ),
        (["--config=configs/cifar.py"], "did you mean 'configs/cifar10.py'?"),
    ],
)
def test_mistakes_are_told_in_one_line(capsys, monkeypatch, words, expected):
    monkeypatch.chdir(REPO)
    assert guard(inspect.main, ["launcher", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert expected in err


@pytest.mark.parametrize("launcher", ["train", "inspect"])
def test_a_launcher_that_is_started_by_its_path_says_how_it_is_to_be_started(launcher):
    command = [sys.executable, f"experiments/{launcher}.py", "--help"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 2
    assert done.stdout == ""
    text = "error: start it from the folder above"
    assert done.stderr == f"{text}: python -m experiments.{launcher}\n"


def test_help_answers_without_jax():
    command = [sys.executable, "-X", "importtime", "-m", "experiments.inspect", "--help"]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert "python -m experiments.inspect --model=resnet50" in done.stdout
    assert not re.search(r"\| +jax\n", done.stderr)


def test_the_launcher_is_short():
    assert len(Path(inspect.__file__).read_text("utf-8").splitlines()) < 80
