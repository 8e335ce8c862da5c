"""Sweeps as pages, and as flags: what the launcher makes of them."""

import itertools
import json
import re
import types
from pathlib import Path

import pytest

from convjax.config import Experiment, Model, to_dict
from convjax.flags import guard
from convjax.names import trust_as_before, trusted
from convjax.pages import SWEEPS
from convjax.sweep import launch
from convjax.sweep.distributions import ends
from convjax.sweep.pages import load_sweep, trust_values
from convjax.sweep.rehearsal import telling
from convjax.sweep.space import check, corners, grid, space_of, walk
from experiments import sweep

PAGE = """
from convjax.config import Experiment
from convjax.sweep.space import Sweep


def get_sweep(arg="1,2"):
    return Sweep([f"epochs={arg}"], Experiment(name="mine", batch_size=64), seeds=2, sampler="grid")
"""


@pytest.fixture
def page(tmp_path):
    """A page of two points."""
    file = tmp_path / "mine.py"
    file.write_text(PAGE)
    return str(file)


@pytest.fixture
def asked(monkeypatch):
    """asked(words): the sweep and the folder that the launcher hands on, or its exit status."""
    calls = []

    def note(sweep, folder, **how):
        calls.append(types.SimpleNamespace(sweep=sweep, folder=folder, trusted=trusted(), **how))
        return "closing line"

    monkeypatch.setattr(launch, "launch", note)

    def call(*words):
        status = guard(sweep.main, ["launcher", *words])
        return calls.pop() if calls else status

    return call


@pytest.mark.parametrize("file", sorted(SWEEPS.glob("*.py")), ids=lambda file: file.stem)
def test_every_page_makes_a_sweep_that_can_be_checked_and_says_how_to_run_it(file):
    found = load_sweep(str(file))
    space = space_of(found.vary)
    check(space, found.config, found.seeds)
    text = file.read_text("utf-8").split('"""')[1]
    assert f"python -m experiments.sweep --sweep=configs/sweeps/{file.name}" in text
    assert found.config.name == file.stem
    assert not re.search(r"0\\.\\d{3}", text), "no figure that was not measured"


def test_the_page_of_learning_rates_has_32_at_equal_ratios():
    found = load_sweep(str(SWEEPS / "learning_rate.py"))
    rates = [point["optimizer.learning_rate"] for point in grid(space_of(found.vary))]
    assert (len(rates), rates[0], rates[-1]) == (32, 1e-4, 0.1)
    for lower, higher in itertools.pairwise(rates):
        assert higher / lower == pytest.approx(1000 ** (1 / 31), rel=0.01)


def test_the_page_of_architectures_gives_each_network_its_own_values():
    space = load_sweep(str(SWEEPS / "architectures.py")).vary
    assert callable(space)
    paths = {
        name: set(walk(space, lambda path, each, name=name: _first(path, each, name)).point)
        for name in ("small", "lenet5", "resnet20")
    }
    always = {"model.name", "optimizer.learning_rate"}
    assert paths["lenet5"] == always
    assert paths["resnet20"] == always | {"model.args.width"}
    assert paths["small"] == always | {"model.args.width", "model.args.stages"}


def _first(path, each, name):
    return name if path == "model.name" else ends(each)[0]


def test_a_page_is_taken_as_it_is_and_flags_change_it(asked, page):
    found = asked(f"--sweep={page}")
    assert found.sweep == load_sweep(page)
    assert found.folder == "sweeps/mine"
    found = asked(
        *(f"--sweep={page}:1,2,3", "--seeds=5", "--trials=2", "--sampler=random"),
        *("--objective=min test loss", "--pruner=median", "--config.batch_size=32"),
        *("--config.optimizer.learning_rate=0.5", "--workdir=here"),
    )
    assert found.sweep.vary == ["epochs=1,2,3"]
    assert (found.sweep.seeds, found.sweep.trials, found.sweep.sampler) == (5, 2, "random")
    assert (found.sweep.objective, found.sweep.pruner) == ("min test loss", "median")
    assert (found.sweep.config.name, found.sweep.config.batch_size) == ("mine", 32)
    assert found.sweep.config.optimizer.learning_rate == 0.5
    assert found.folder == "here"


def test_another_config_takes_the_place_of_the_pages(asked, page):
    found = asked(f"--sweep={page}", "--config=configs/fashion_mini.py", "--config.epochs=3")
    assert (found.sweep.config.name, found.sweep.config.epochs) == ("fashion_mini", 3.0)
    assert found.sweep.vary == ["epochs=1,2"]


def test_without_a_page_the_flags_are_all_there_is(asked):
    found = asked("--vary=epochs=1,2", "--vary=batch_size=32,64", "--engine=processes")
    assert found.sweep.vary == ["epochs=1,2", "batch_size=32,64"]
    assert (found.sweep.seeds, found.sweep.trials, found.sweep.sampler) == (1, None, "tpe")
    assert (found.sweep.objective, found.sweep.pruner) == ("max test accuracy", None)
    assert (found.engine.name, found.engine.workers, found.folder) == (
        *("processes", None),
        "sweeps/fashion_mini",
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "what is varied is missing: give --vary="),
        (["--sweep=PAGE", "--vary=epochs=1,2"], "what is varied is told twice"),
        (["--sweep=configs/sweeps/learning_rat.py"], "did you mean 'configs/sweeps/learning_rate"),
        (["--sweep=configs/fashion_mini.py"], "no get_sweep: define get_sweep() -> Sweep in it"),
        (["--sweep=PAGE", "--config.epohcs=1"], "did you mean 'epochs'?"),
        (["--sweep=NONE"], "get_sweep returns NoneType: let it return a Sweep"),
        (["--sweep=FAILS"], ":2: ZeroDivisionError"),
        (["--vary=epochs=1,2", "--slurm=gpu"], "--slurm=gpu: give --slurm=KEY=VALUE"),
        (["--report"], "--report: give --workdir=DIR"),
        (["--report", "--workdir=nowhere"], "nowhere holds no sweep"),
        (["--vary=epochs=1,2", "--retry=faild"], "did you mean 'failed'?"),
    ],
)
def test_a_mistake_is_told_in_one_line(asked, page, tmp_path, capsys, words, message):
    (tmp_path / "none.py").write_text("def get_sweep():\n    pass\n")
    (tmp_path / "fails.py").write_text("def get_sweep():\n    return 1 / 0\n")
    files = {"PAGE": page, "NONE": tmp_path / "none.py", "FAILS": tmp_path / "fails.py"}
    for name, file in files.items():
        words = [word.replace(name, str(file)) for word in words]
    assert asked(*words) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_what_a_space_names_is_trusted_beside_a_strangers_config(asked, tmp_path):
    config = Experiment(model=Model("other.package:net"))
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    with trust_as_before():
        found = asked(f"--config={tmp_path / 'config.json'}", "--vary=model.name=small,my.own:net")
    assert found.trusted == {"my.own:net"}
    with trust_as_before():
        trust_values(space_of(["model.name=small,my.own:net"]))
        assert trusted() is None, "who trusts all goes on to do so"


def test_a_sweep_in_which_nothing_finished_exits_with_1_after_its_closing_line(
    asked, capsys, monkeypatch
):
    def fails(*args, **how):
        raise launch.NothingFinished("max test accuracy of no trial, 3 failed")

    monkeypatch.setattr(launch, "launch", fails)
    with pytest.raises(SystemExit) as found:
        asked("--vary=epochs=1,2", "--sampler=grid")
    assert found.value.code == 1
    assert capsys.readouterr() == ("max test accuracy of no trial, 3 failed\n", "")


def test_a_few_points_have_every_value_of_every_choice_and_the_ends_of_numbers():
    space = space_of(
        [
            "model.name=small,lenet5,resnet20",
            "batch_size=32,64",
            "epochs=1,2,3,4,5",
            "loss.name=a,b",
        ]
    )
    points = telling(corners(space))
    assert len(points) <= 4
    assert {point["model.name"] for point in points} == {"small", "lenet5", "resnet20"}
    assert {point["batch_size"] for point in points} == {32, 64}
    assert {1.0, 5.0} <= {point["epochs"] for point in points}


def test_keywords_are_looked_at_with_each_network_that_has_them():
    def space(choose):
        choose.of("model.name", "small", "resnet20")
        choose.of("model.args.width", 8, 16)

    points = telling(corners(space))
    assert {tuple(point.values()) for point in points} == {
        *(("small", 8), ("small", 16)),
        *(("resnet20", 8), ("resnet20", 16)),
    }


def test_no_more_points_are_looked_at_than_take_a_short_while():
    points = telling(corners(space_of([f"model.args.width={','.join(map(str, range(1, 100)))}"])))
    assert len(points) == 16


def test_the_help_lists_the_pages_of_sweeps(capsys):
    with pytest.raises(SystemExit):
        sweep.main(["launcher", "--help"])
    text = capsys.readouterr().out
    for file in SWEEPS.glob("*.py"):
        assert re.search(rf"configs/sweeps/{file.name}: \w", text)
    assert "configs/fashion_mini.py: " in text


def test_pages_are_read_from_wherever_one_is(tmp_path, monkeypatch, page):
    monkeypatch.chdir(tmp_path)
    assert load_sweep(Path(page).name).seeds == 2
