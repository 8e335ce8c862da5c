"""Populations: the worst go on from the best, as a few lines of NumPy say, and none is lost."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import jax
import numpy as np
import pytest
from population_models import EPOCH, VARY, experiment

from convjax import run, tree
from convjax.assemble import assemble
from convjax.checkpoint import Checkpoints
from convjax.config import (
    Augment,
    Average,
    Checkpoint,
    Data,
    Loss,
    Model,
    Optimizer,
    Stop,
    UserError,
    read_json,
)
from convjax.flags import guard
from convjax.layer import fold
from convjax.runlog import RunLog
from convjax.saved import saved_model
from convjax.sitting import Diverged
from convjax.sweep import evolution
from convjax.sweep.distributions import integers, log, of, uniform
from convjax.sweep.group import Group
from convjax.sweep.levers import Levers, distributions_of, middle
from convjax.sweep.lineage import lineage
from convjax.sweep.lockstep import Places
from convjax.sweep.numbers import liftable
from convjax.sweep.population import Population, launch, plan
from convjax.sweep.space import resolve, space_of
from convjax.training.state import init_state
from experiments import sweep

HERE = Path(__file__).parent
drawn = jax.jit(evolution.drawn, static_argnums=(1, 2))
DISTRIBUTIONS = [log(1e-3, 1.0), uniform(0.0, 0.5), of(0.5, 0.8, 0.9), uniform(-2.0, 1.0)]


# -- The rules, beside NumPy -----------------------------------------------------------------------


def sampled(share, distribution):
    """A value of a distribution, or the place of one in its list."""
    if hasattr(distribution, "choices"):
        return int(share * len(distribution.choices))
    low, high = distribution.low, distribution.high
    return low * (high / low) ** share if distribution.log else low + share * (high - low)


def evolved(scores, values, draws, distributions):
    """Truncation selection and exploration, one member and number after another."""
    count = max(len(scores) // 5, 1)
    healthy = sorted(
        (m for m in range(len(scores)) if np.isfinite(scores[m])), key=lambda m: -scores[m]
    )
    ill = [m for m in range(len(scores)) if m not in healthy]
    best, worst = healthy[:count], (healthy + ill)[-count:]
    parents, new = list(range(len(scores))), [list(row) for row in values]
    for member in set(worst) | set(ill):
        parent = best[int(draws.parent[member] * len(best))]
        parents[member] = parent
        for path, each in enumerate(distributions):
            value, up = values[parent][path], draws.up[member][path]
            ends = (0, len(each.choices) - 1) if hasattr(each, "choices") else (each.low, each.high)
            if draws.fresh[member][path]:
                value = sampled(float(draws.share[member][path]), each)
            elif hasattr(each, "choices"):
                value += 1 if up else -1
            else:
                value *= 1.2 if up else 0.8
            new[member][path] = min(max(value, ends[0]), ends[1])
    return parents, new


@pytest.mark.parametrize("members", [2, 9, 16])
def test_who_goes_on_from_whom_and_with_which_numbers_is_as_numpy_has_it(members):
    ranges = evolution.ranges_of(DISTRIBUTIONS)
    draw = np.random.default_rng(members)
    evolve = jax.jit(lambda scores, values, draws: evolution.evolve(scores, values, draws, ranges))
    values = evolution.first(jax.random.key(members), members, ranges)
    for generation in range(30):
        scores = draw.normal(size=members).astype(np.float32)
        scores[draw.random(members) < 0.2 * (generation % 4)] = np.nan
        scores[draw.integers(members)] = 0.5
        draws = drawn(jax.random.key(generation), members, len(DISTRIBUTIONS))
        expected = evolved(
            scores, np.asarray(values).tolist(), jax.device_get(draws), DISTRIBUTIONS
        )
        parents, values = evolve(scores, values, draws)
        assert parents.tolist() == expected[0]
        np.testing.assert_allclose(values, expected[1], rtol=1e-5, atol=1e-7)


def test_a_population_climbs_a_hill_that_none_of_its_members_sees():
    # The toy of the paper (figure 2): the number is a share of a step toward the top at 0, and only
    # how high a member has come is known.
    distributions = [log(1e-3, 1.0)]
    ranges = evolution.ranges_of(distributions)
    key, members = jax.random.key(1), 10
    evolve = jax.jit(lambda scores, rates, draws: evolution.evolve(scores, rates, draws, ranges))
    rates = np.asarray(evolution.first(key, members, ranges))
    heights, alone = (np.full(members, 0.9, np.float32) for _ in range(2))
    slowest = rates.min()
    for generation in range(40):
        heights = heights - 0.1 * rates[:, 0] * heights
        alone = alone - 0.1 * slowest * alone
        draws = drawn(jax.random.fold_in(key, generation), members, 1)
        scores = (1.2 - heights**2).astype(np.float32)
        parents, new = evolve(scores, rates, draws)
        expected = evolved(scores, rates.tolist(), jax.device_get(draws), distributions)
        assert parents.tolist() == expected[0]
        heights, rates = heights[np.asarray(parents)], np.asarray(new)
    assert heights.max() < 0.1 < alone.min(), "the slowest have gone on from others"


def test_draws_are_as_likely_as_the_paper_says():
    draws = drawn(jax.random.key(0), 4000, 5)
    # Five standard deviations of a mean of 20,000 are 0.018 and 0.015.
    assert abs(np.mean(draws.up) - 0.5) < 0.018
    assert abs(np.mean(draws.fresh) - 0.25) < 0.015
    for each in (draws.parent, draws.share):
        counts, _ = np.histogram(each, 10, (0, 1))
        np.testing.assert_allclose(counts / np.size(each), 0.1, atol=0.025)


def test_a_population_begins_with_a_member_in_each_share_of_each_range():
    members = 12
    values = np.asarray(
        evolution.first(jax.random.key(5), members, evolution.ranges_of(DISTRIBUTIONS))
    )
    for shares in (np.log10(values[:, 0]) / 3 + 1, values[:, 1] / 0.5, (values[:, 3] + 2) / 3):
        assert sorted(np.floor(shares * members).astype(int)) == list(range(members))
    assert np.bincount(values[:, 2].astype(int)).tolist() == [4, 4, 4]
    assert not np.array_equal(np.argsort(values[:, 0]), np.argsort(values[:, 1]))


# -- The numbers of a step -------------------------------------------------------------------------


def rich(**given):
    return experiment(
        loss=Loss("focal", args={"gamma": 2.0}, label_smoothing=0.1),
        augment=Augment(("crop(1)", "random_erasing(0.25)"), "mixup(0.2)"),
        optimizer=Optimizer("sgd", weight_decay=1e-3, rules=("dense1/*: learning_rate=2",)),
        **given,
    )


def levers_of(config, vary, devices=1):
    distributions = distributions_of(space_of(vary))
    assembled = assemble(middle(config, distributions))
    lifted = liftable(assembled.config, assembled.train)
    group = Group(assembled, lifted, jax.devices()[:devices])
    return group, Levers(group, distributions)


def test_each_path_is_the_number_of_a_step_that_it_names_and_no_other():
    vary = [
        *("optimizer.learning_rate=log(1e-3, 1)", "optimizer.weight_decay=uniform(0, 0.01)"),
        *("optimizer.args.momentum=uniform(0, 0.9)", "loss.args.gamma=1.0,2.0,4.0"),
        *("loss.label_smoothing=uniform(0, 0.3)", "model.args.dropout_rate=uniform(0, 0.5)"),
        "augment.mix='mixup(0.1)','mixup(0.4)'",
    ]
    _, levers = levers_of(rich(), vary)
    values = np.array([0.1, 0.0, 0.7, 2, 0.3, 0.25, 1], np.float32)
    knobs = jax.jit(levers.knobs)(values)
    found = {
        "rate": knobs.hyper.learning_rate,
        "decay": knobs.hyper.weight_decay,
        "momentum": knobs.hyper.args["momentum"],
        "gamma": knobs.hyper.loss["gamma"],
        "smoothing": knobs.hyper.label_smoothing,
        **knobs.numbers,
    }
    expected = {"rate": 0.1, "decay": 0.0, "momentum": 0.7, "gamma": 4.0, "smoothing": 0.3}
    expected |= {"model.args.dropout_rate": 0.25, "augment.mix(0)": 0.4}
    expected |= {"augment.parts[1](0)": 0.25}
    assert {name: float(each) for name, each in found.items()} == {
        name: float(np.float32(each)) for name, each in expected.items()
    }
    assert levers.point(values) == {
        "optimizer.learning_rate": 0.1,
        "optimizer.weight_decay": 0.0,
        "optimizer.args.momentum": 0.7,
        "loss.args.gamma": 4.0,
        "loss.label_smoothing": 0.3,
        "model.args.dropout_rate": 0.25,
        "augment.mix": "mixup(0.4)",
    }


def test_the_config_of_a_member_has_the_very_numbers_that_it_trained_with():
    _, levers = levers_of(experiment(), VARY)
    draw = np.random.default_rng(0)
    for _ in range(20):
        share = draw.random(2)
        values = np.array([10 ** (-3 * share[0]), share[1] / 2, draw.integers(3)], np.float32)
        config = resolve(experiment(), levers.point(values), seed=0)
        assert np.float32(config.optimizer.learning_rate) == values[0]
        assert np.float32(config.model.args["dropout_rate"]) == values[1]
        assert config.optimizer.args["momentum"] == [0.5, 0.8, 0.9][int(values[2])]


@pytest.mark.parametrize(
    ("vary", "error"),
    [
        ("model.args.width=4,8", "model.args.width: .* cannot take 4 as an array: .*--sampler"),
        ("model.args.dropout_rate=0,0.1", "dropout_rate.* cannot take 0 .*write 1.0 in place of 1"),
        ("batch_size=8,20", "batch_size: .* decides on the program, or on what all members"),
        ("epochs=uniform(1, 2)", "epochs: .* cannot take 1.0 as an array"),
        ("optimizer.layer_decay=uniform(0.5, 1)", "layer_decay: .* cannot take 1.0 as an array"),
        ("checkpoint.keep=1,2", "no step of sgd or of the network asks for it"),
        ("optimizer.momentum=uniform(0, 1)", "config.optimizer has no 'momentum'"),
        ("optimizer.args.momentum=uniform(0, 1)", "momentum is 1.0: give 0 or more and less"),
        ("loss.label_smoothing=uniform(0, 2)", "cannot be run: config.loss.label_smoothing"),
    ],
)
def test_what_no_step_takes_as_an_array_is_refused_with_its_path_and_a_reason(
    vary, error, tmp_path
):
    with pytest.raises(UserError, match=error):
        launch(Population([vary], experiment(), members=2), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def conditional(choose):
    if choose.of("optimizer.name", "sgd", "adam") == "sgd":
        choose.uniform("optimizer.args.momentum", 0.0, 0.9)


@pytest.mark.parametrize(
    ("asked", "given", "error"),
    [
        ({"members": 1}, {}, "--population=1: give 2 members or more"),
        ({"exploit_every": 0.0}, {}, "--exploit_every=0: give more than 0 epochs"),
        ({"objective": "max valid_best accuracy"}, {}, "--objective"),
        ({"objective": "max test_views accuracy"}, {}, "while they train: give one of valid, "),
        (
            {"objective": "max valid_average accuracy"},
            {"average": Average()},
            "config.average.decay",
        ),
        ({}, {"data": Data("population_models:pictures")}, "not for test images: hold some back"),
        ({}, {"stop": Stop(patience=2)}, "config.stop.patience is 2: it is about one run"),
        ({}, {"checkpoint": Checkpoint(best="loss")}, "config.checkpoint.best is 'loss'"),
        ({}, {"parallel": "sharded"}, "leave out config.parallel and config.data.view"),
        ({"vary": conditional}, {}, "a sweep's page without conditions"),
    ],
)
def test_what_no_population_can_be_is_refused_before_anything_is_written(
    asked, given, error, tmp_path
):
    wanted = dataclasses.replace(Population(VARY, experiment(**given)), **asked)
    with pytest.raises(UserError, match=error):
        launch(wanted, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_integers_of_a_range_are_values_in_their_order():
    assert evolution.ranges_of([integers(2, 8, 2)]).high.tolist() == [[3]]
    _, levers = levers_of(experiment(), ["optimizer.learning_rate=integers(1, 4)"])
    assert float(levers.knobs(jax.numpy.float32([2])).hyper.learning_rate) == 3
    assert levers.point([2]) == {"optimizer.learning_rate": 3}


# -- In one program --------------------------------------------------------------------------------


def places_of(devices, members=8):
    group, levers = levers_of(experiment(), VARY, devices)
    each = group.experiment
    states = [
        init_state(
            each.net, each.optimizer, jax.random.key(n), each.spec, each.hyper, averaged=True
        )
        for n in range(members)
    ]
    values = evolution.first(jax.random.key(9), members, levers.ranges)
    return Places(group, levers, states, values)


@pytest.mark.parametrize("devices", [1, 8])
def test_a_member_has_every_bit_of_whom_it_goes_on_from_but_the_key(devices):
    places, scores = places_of(devices), np.array([0.1, 0.9, 0.2, np.nan, 0.8, 0.3, 0.4, 0.5])
    before, values = [places.state(each) for each in range(8)], places.values
    assert len(places.content()["states"].step.sharding.device_set) == devices
    parents = places.evolve(scores, jax.random.key(4))
    draws = jax.device_get(drawn(jax.random.key(4), 8, 3))
    distributions = list(distributions_of(space_of(VARY)).values())
    expected = evolved(scores, values.tolist(), draws, distributions)
    # Of eight one is the worst, which is the one without a score; 1 is the only best.
    assert parents.tolist() == expected[0] == [0, 1, 2, 1, 4, 5, 6, 7]
    np.testing.assert_allclose(places.values, expected[1], rtol=1e-6)
    for member, parent in enumerate(parents):
        after = places.state(member)
        pairs = zip(
            jax.tree.leaves(after._replace(key=None)),
            jax.tree.leaves(before[parent]._replace(key=None)),
        )
        assert all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)
        assert (
            jax.random.key_data(after.key).tolist()
            == jax.random.key_data(before[member].key).tolist()
        )
    assert len(places.content()["states"].step.sharding.device_set) == devices


# -- From the first step to the last ---------------------------------------------------------------


def population(members=8):
    return Population(VARY, experiment(), members=members, exploit_every=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A population of eight on eight devices, left alone; and its closing line."""
    folder, told = tmp_path_factory.mktemp("population") / "trained", StringIO()
    line = launch(population(), folder, out=told)
    return folder, line, told.getvalue()


def history(folder):
    """The lines of a population, but for their times."""
    with open(folder / "population.jsonl") as lines:
        found = [json.loads(line) for line in lines]
    for line in found:
        del line["seconds"]
    return found


def test_what_a_population_did_is_what_numpy_makes_of_its_scores(trained):
    folder, _, _ = trained
    lines = history(folder)
    distributions = distributions_of(space_of(VARY))
    key = fold(jax.random.key(3), "population")
    assert [line["step"] for line in lines[::8]] == [10, 20, 30, 40]
    for now, then in zip((10, 20, 30), (20, 30, 40)):
        before, after = ([line for line in lines if line["step"] == step] for step in (now, then))
        values = [
            [
                [0.5, 0.8, 0.9].index(value) if "momentum" in path else value
                for path, value in line["numbers"].items()
            ]
            for line in before
        ]
        draws = jax.device_get(drawn(jax.random.fold_in(key, now), 8, 3))
        scores = np.array([line["accuracy"] for line in before])
        parents, expected = evolved(scores, values, draws, list(distributions.values()))
        assert [line["parent"] for line in before] == [
            None if parent == member else parent for member, parent in enumerate(parents)
        ]
        assert [line["score"] for line in before] == scores.tolist()
        for line, (rate, dropout, momentum) in zip(after, expected):
            found = line["numbers"]
            np.testing.assert_allclose(found["optimizer.learning_rate"], rate, rtol=1e-5)
            np.testing.assert_allclose(found["model.args.dropout_rate"], dropout, rtol=1e-5)
            assert found["optimizer.args.momentum"] == [0.5, 0.8, 0.9][momentum]
    assert any(line["parent"] is not None for line in lines)
    assert all(line["parent"] is None for line in lines[-8:]), "nobody trains after the last"


def test_the_way_of_the_best_is_that_of_its_forebears(trained):
    folder, _, _ = trained
    lines = history(folder)
    # Forward: whose parts each member has, and with which numbers they were trained.
    ways = {member: [] for member in range(8)}
    for step in (10, 20, 30, 40):
        now = {line["member"]: line for line in lines if line["step"] == step}
        ways = {member: [*ways[member], (member, now[member]["numbers"])] for member in range(8)}
        ways = {
            member: ways[m if (m := now[member]["parent"]) is not None else member]
            for member in range(8)
        }
    last = [line for line in lines if line["step"] == 40]
    best = max(last, key=lambda line: line["accuracy"])["member"]
    told = json.loads((folder / "best" / "schedule.json").read_text())
    assert [(part["member"], part["numbers"]) for part in told["parts"]] == ways[best]
    assert [(part["from"], part["to"]) for part in told["parts"]] == [
        (0, 10),
        (10, 20),
        (20, 30),
        (30, 40),
    ]
    # Of every member, as the best one may have trained by itself all the way.
    for member in range(8):
        assert [(part["member"], part["numbers"]) for part in lineage(lines, member)] == ways[
            member
        ]


def test_the_best_member_is_a_run_that_can_be_evaluated_and_is_as_it_was_judged(trained):
    folder, line, told = trained
    result = json.loads((folder / "population.json").read_text())["result"]
    config = read_json(folder / "best" / "config.json")
    best = max(history(folder)[-8:], key=lambda each: each["accuracy"])
    assert (config.seed, result["member"]) == (3 + best["member"], best["member"])
    assert config.optimizer.learning_rate == best["numbers"]["optimizer.learning_rate"]
    assert config.model.args == {"dropout_rate": best["numbers"]["model.args.dropout_rate"]}
    evaluated = run.evaluate(folder / "best", "valid")
    assert f"valid accuracy {best['accuracy']:.4f} ({best['correct']}/199)" in evaluated
    tested = run.evaluate(folder / "best").split(", loss")[0]
    assert tested in line
    assert f"max valid accuracy {best['accuracy']:.4f} of 8 members" in line
    assert "accuracy" in run.evaluate(folder / "best", model="average")
    assert run.train(config, folder / "best").startswith(tested), "it is a finished run"
    assert len(told.splitlines()) == 4
    with Checkpoints(folder / "checkpoints", reads=True) as checkpoints:
        saved = checkpoints.read("states/params/*")
    mine = saved_model(folder / "best")
    for path, leaf in saved.items():
        np.testing.assert_array_equal(mine[path.removeprefix("states/")], leaf[best["member"]])


def test_results_csv_has_a_line_for_each_member(trained):
    folder, _, _ = trained
    with open(folder / "results.csv") as file:
        rows = list(csv.DictReader(file))
    lines = history(folder)
    assert [float(row["max valid accuracy"]) for row in rows] == [
        line["score"] for line in lines[-8:]
    ]
    assert [int(row["seed"]) for row in rows] == list(range(3, 11))
    for member, row in enumerate(rows):
        times = sum(line["parent"] is not None for line in lines if line["member"] == member)
        assert int(row["replaced"]) == times


def test_a_finished_population_is_not_trained_again_and_another_is_refused(trained, tmp_path):
    folder, line, _ = trained
    before = (folder / "population.jsonl").stat().st_mtime_ns
    assert launch(population(), folder) == line
    assert (folder / "population.jsonl").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="another population \\(another members\\): give another"):
        launch(population(members=4), folder)
    (tmp_path / "something").touch()
    with pytest.raises(UserError, match="is no population and not empty: give another --workdir"):
        launch(population(), tmp_path)


def test_members_that_never_evolve_are_lone_runs(tmp_path):
    config = experiment(epochs=4.0)
    together = Population(VARY, config, members=2, exploit_every=100)
    assert "nobody goes on from another" in plan(together)
    launch(together, tmp_path / "together", out=StringIO())
    lines = history(tmp_path / "together")
    with Checkpoints(tmp_path / "together" / "checkpoints", reads=True) as checkpoints:
        saved = checkpoints.read(("states/params/*", "states/state/*", "states/opt/*"))
    for member, line in enumerate(lines):
        alone = tmp_path / str(member)
        run.train(resolve(config, line["numbers"], 3 + member), alone, out=StringIO())
        with Checkpoints(alone / "checkpoints", reads=True) as checkpoints:
            for path, leaf in checkpoints.read(("params/*", "state/*", "opt/*")).items():
                np.testing.assert_allclose(
                    saved[f"states/{path}"][member], leaf, rtol=2e-4, atol=2e-5, err_msg=path
                )
        last = [each for each in RunLog(alone).metrics() if each["split"] == "valid"][-1]
        np.testing.assert_allclose(line["loss"], last["loss"], rtol=1e-4)
        first = [each for each in RunLog(alone).metrics() if each["split"] == "train"]
        np.testing.assert_allclose(
            line["train_loss"], np.mean([each["loss"] for each in first]), rtol=1e-4
        )


def test_a_member_that_diverges_is_replaced_and_harms_no_other(tmp_path):
    config = experiment(
        model=Model("population_models:breaking"), epochs=6.0, stop=Stop(bad_steps=3)
    )
    vary = ["model.args.strength=1.0,2.0,20.0"]
    launch(Population(vary, config, members=6, exploit_every=2), tmp_path / "some", out=StringIO())
    lines = history(tmp_path / "some")
    first = [line for line in lines if line["step"] == 2 * EPOCH]
    ill = [line["member"] for line in first if line["numbers"]["model.args.strength"] == 20]
    assert len(ill) == 2
    healthy = [line for line in first if line["member"] not in ill]
    assert all(
        line["score"] is None and line["parent"] is not None for line in map(first.__getitem__, ill)
    )
    assert all(first[member]["skipped"] >= 3 for member in ill)
    assert all(np.isfinite(line["train_loss"]) and line["skipped"] == 0 for line in healthy)
    assert all(
        first[line["parent"]]["score"] is not None for line in first if line["parent"] is not None
    )
    bad = Population(["model.args.strength=20.0,30.0"], config, members=2)
    with pytest.raises(Diverged, match="all 2 members have diverged: narrow --vary"):
        launch(bad, tmp_path / "all", out=StringIO())
    assert json.loads((tmp_path / "all" / "population.json").read_text())["status"] == "failed"


# -- As a person starts it ------------------------------------------------------------------------

RATES = "--vary=optimizer.learning_rate=log(1e-3, 1)"
HELD = ("--config.data.train=train[:90%]", "--config.data.valid=train[90%:]")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ((RATES, "--population=4"), "hold some back, --config.data.train='train[:90%]'"),
        ((RATES, "--population=4", *HELD, "--trials=3"), "--trials is for trials by themselves"),
        ((RATES, "--population=4", *HELD, "--engine=processes"), "trains by --engine=vectorised"),
        ((RATES, "--exploit_every=2"), "give --population=16"),
        (("--population=4", *HELD), "what is varied is missing"),
    ],
)
def test_the_launcher_refuses_what_a_population_has_not(words, error, tmp_path, capsys):
    folder = tmp_path / "new"
    assert guard(sweep.main, ["launcher", *words, f"--workdir={folder}"]) == 2
    assert error in capsys.readouterr().err
    assert not folder.exists()


def test_a_dry_run_tells_how_often_how_many_go_on_from_others(tmp_path, capsys):
    words = (RATES, "--population=10", "--exploit_every=0.5", "--dry_run", *HELD)
    assert guard(sweep.main, ["launcher", *words, "--config.epochs=3"]) == 0
    # Of 10,000 bundled pictures 9,000 in 70 batches; every 35 steps of 210, but not at the last.
    out = capsys.readouterr().out
    assert "10 members, 210 steps each in one program, on 5 cpu" in out
    assert "5 times, every 0.5 epochs, 2 of them go on from the best 2 by max valid accuracy" in out
    chosen = "--objective=max test accuracy"
    assert guard(sweep.main, ["launcher", *words[:-2], chosen, "--config.epochs=3"]) == 0
    assert "the best are chosen by test images, 6 times" in capsys.readouterr().out


# -- Killed and started again ----------------------------------------------------------------------


def start(folder, seconds=0.0):
    paths = f"{HERE.parent}{os.pathsep}{HERE}"
    return subprocess.Popen(
        [sys.executable, HERE / "population_models.py", folder, str(seconds)],
        env=os.environ | {"PYTHONPATH": paths, "CONVJAX_CACHE": str(folder.parent / "programs")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process, path):
    end = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_population_that_was_killed_and_interrupted_ends_as_one_that_was_left_alone(
    trained, tmp_path
):
    folder = tmp_path / "population"
    killed = start(folder, seconds=0.05)
    wait_for(killed, folder / "checkpoints" / "10")
    time.sleep(0.13)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    ended = start(folder, seconds=0.05)
    wait_for(ended, folder / "checkpoints" / "20")
    time.sleep(0.13)
    ended.send_signal(signal.SIGTERM)
    _, errors = ended.communicate(timeout=60)
    assert ended.returncode == 143
    assert "the same command goes on" in errors
    assert json.loads((folder / "population.json").read_text())["status"] == "interrupted"
    last = start(folder)
    out, errors = last.communicate(timeout=60)
    assert last.returncode == 0, errors
    assert "going on at step 2" in out
    check_same(folder, trained[0])


def check_same(folder, other):
    """Asserts that two populations came to the same, to the bit."""
    assert history(folder) == history(other)
    for name in ("results.csv", "best/schedule.json", "best/config.json"):
        assert (folder / name).read_bytes() == (other / name).read_bytes()
    leaves = []
    for each in (folder, other):
        with Checkpoints(each / "checkpoints", reads=True) as checkpoints:
            leaves.append(tree.leaves(checkpoints.read("*")))
    assert leaves[0].keys() == leaves[1].keys()
    for path, leaf in leaves[0].items():
        assert leaf.tobytes() == leaves[1][path].tobytes(), path
    digests = [RunLog(each / "best").record()["digest"] for each in (folder, other)]
    assert digests[0] == digests[1]
