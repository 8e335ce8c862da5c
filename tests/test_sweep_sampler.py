"""Samplers: their proposals are Optuna's, SciPy's and those of pencil and paper, after any stop."""

import importlib.util
import itertools
import json
import math
import pickle
import re
import sys
from collections.abc import Sequence

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from convjax.config import Experiment, UserError
from convjax.sweep import distributions
from convjax.sweep.sampler import NAMES, Told, joined, make, seed_of
from convjax.sweep.space import SpaceError, grid, resolve, space_of, trace

RATE, DECAY, WIDTH = "optimizer.learning_rate", "optimizer.weight_decay", "model.args.width"
TEXTS = [f"{WIDTH}=integers(8, 64, 8)", f"{RATE}=log(1e-4, 1)", f"{DECAY}=uniform(0, 0.1)"]
NAMED = "model.name=small,lenet5,resnet20"


@pytest.fixture(autouse=True)
def few_words():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def score(point):
    """Greatest, 0, at a rate of 0.01, a decay of 0.05 and a width of 32."""
    rate, decay, width = point[RATE], point[DECAY], point[WIDTH]
    return -((np.log10(rate) + 2) ** 2) - (20 * decay - 1) ** 2 - ((width - 32) / 32) ** 2


def ask(sampler, number, told=()):
    """A point that there is."""
    point = sampler.ask(number, told)
    assert point is not None
    return point


def run(name, texts, points, seed=0, told: Sequence[Told] = ()):
    """What a sweep tells that is asked for so many points, one after the other."""
    told, sampler = list(told), make(name, space_of(texts), seed)
    while len(told) < points:
        point = ask(sampler, len(told), told)
        told.append(Told(point, score(point), "finished"))
    return told


def test_a_grid_proposes_products_in_order_and_ends():
    texts = ["batch_size=16,32", "epochs=1,2,3"]
    sampler = make("grid", space_of(texts), 0)
    told: list[Told] = []
    while (point := sampler.ask(len(told), told)) is not None:
        told.append(Told(point))
    expected = itertools.product((16, 32), (1.0, 2.0, 3.0))
    assert [tuple(each.point.values()) for each in told] == list(expected)


def test_a_larger_grid_proposes_only_what_is_new():
    told = [Told({"batch_size": size, "epochs": 1.0}, 0.5, "finished") for size in (16, 32)]
    sampler = make("grid", space_of(["batch_size=16,32,64", "epochs=1,2"]), 0)
    found = []
    while (point := sampler.ask(len(told), told)) is not None:
        told.append(Told(point))
        found.append((point["batch_size"], point["epochs"]))
    assert sorted(found) == [(16, 2.0), (32, 2.0), (64, 1.0), (64, 2.0)]


def test_a_grid_of_real_numbers_is_refused():
    with pytest.raises(SpaceError, match="range of real numbers"):
        make("grid", space_of(TEXTS), 0)


@pytest.mark.parametrize("name", ["random", "halton"])
def test_a_point_depends_on_seed_and_number_alone(name):
    told = run(name, TEXTS, 12)
    later = make(name, space_of(TEXTS), 0).ask(7, told[:3])
    assert later == told[7].point
    other = run(name, TEXTS, 12, seed=1)
    assert all(one.point[RATE] != two.point[RATE] for one, two in zip(told, other))


def test_another_path_changes_no_value_of_a_random_point():
    alone, beside = run("random", TEXTS, 5), run("random", [NAMED, *TEXTS], 5)
    assert [one.point.items() <= two.point.items() for one, two in zip(alone, beside)] == [True] * 5


def test_random_points_are_uniform_and_independent():
    sampler = make("random", space_of([*TEXTS, NAMED]), 0)
    points = [ask(sampler, number) for number in range(1000)]
    rates = np.array([(np.log10(point[RATE]) + 4) / 4 for point in points])
    decays = np.array([10 * point[DECAY] for point in points])
    assert stats.kstest(rates, "uniform").pvalue > 0.01
    assert stats.kstest(decays, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(rates, decays)[0, 1]) < 0.1
    for path, count in ((WIDTH, 8), ("model.name", 3)):
        _, found = np.unique([point[path] for point in points], return_counts=True)
        assert len(found) == count
        assert stats.chisquare(found).pvalue > 0.01


def test_halton_points_are_scipys_sequence():
    texts = [f"{RATE}=log(1e-4, 1)", f"{DECAY}=uniform(0, 0.1)", NAMED]
    sequence = stats.qmc.Halton(3, scramble=True, rng=np.random.default_rng(5)).random(20)
    sampler = make("halton", space_of(texts), 5)
    for number, shares in enumerate(sequence):
        point = ask(sampler, number)
        assert point[RATE] == pytest.approx(10 ** (4 * shares[0] - 4))
        assert point[DECAY] == pytest.approx(0.1 * shares[1])
        assert point["model.name"] == ("small", "lenet5", "resnet20")[int(3 * shares[2])]


def by_optuna(trial):
    return {
        WIDTH: trial.suggest_int(WIDTH, 8, 64, step=8),
        RATE: trial.suggest_float(RATE, 1e-4, 1, log=True),
        DECAY: trial.suggest_float(DECAY, 0, 0.1),
        "model.name": trial.suggest_categorical("model.name", ("small", "lenet5", "resnet20")),
    }


@pytest.mark.parametrize(
    ("name", "direction", "sampler"),
    [
        ("tpe", "max", optuna.samplers.TPESampler(seed=seed_of(7, 14), constant_liar=True)),
        ("tpe", "min", optuna.samplers.TPESampler(seed=seed_of(7, 14), constant_liar=True)),
        ("gp", "min", optuna.samplers.GPSampler(seed=seed_of(7, 14))),
    ],
)
def test_proposals_are_optunas_after_the_same_trials(name, direction, sampler):
    sign = 1 if direction == "max" else -1
    # A study that has lived through all of it, as Optuna's own users have it.
    study = optuna.create_study(
        direction="maximize" if direction == "max" else "minimize",
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    told = []
    for number in range(14):
        trial = study.ask()
        point = by_optuna(trial)
        if number == 3:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            told.append(Told(point, None, "killed"))
        elif number in (9, 12) and name == "tpe":  # It takes the other one ten seconds.
            told.append(Told(point))  # still running
        else:
            study.tell(trial, sign * score(point))
            told.append(Told(point, sign * score(point), "finished"))
    study.sampler = sampler
    found = make(name, space_of([*TEXTS, NAMED]), 7, direction).ask(14, told)
    assert found == by_optuna(study.ask())


def test_cmaes_is_where_optunas_is_after_two_generations():
    sampler = optuna.samplers.CmaEsSampler(seed=3)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    told = []
    for _ in range(1 + 2 * 7 + 1):  # one at random, two generations of 4 + floor(3 ln 3), one more
        trial = study.ask()
        point = {
            WIDTH: trial.suggest_int(WIDTH, 8, 64, step=8),
            RATE: trial.suggest_float(RATE, 1e-4, 1, log=True),
            DECAY: trial.suggest_float(DECAY, 0, 0.1),
        }
        study.tell(trial, score(point))
        told.append(Told(point, score(point), "finished"))
    kept = study.trials[-1].system_attrs
    parts = [kept[f"cma:optimizer:{n}"] for n in range(sum("cma:optimizer" in key for key in kept))]
    theirs = pickle.loads(bytes.fromhex("".join(parts)))
    assert theirs.generation == 2
    theirs.reseed_rng(seed_of(0, 14))
    width, rate, decay = theirs.ask()  # Its paths are in alphabetical order, and so are ours.
    point = ask(make("cmaes", space_of(TEXTS), 0), 14, told[1:15])
    assert point[WIDTH] == 8 + 8 * int(8 * width)
    assert point[RATE] == pytest.approx(10 ** (4 * rate - 4))
    assert point[DECAY] == pytest.approx(0.1 * decay)


@pytest.mark.parametrize("name", ["tpe", "cmaes"])
def test_what_was_told_leads_to_better_points_than_chance(name):
    def late(name):
        values = [each.value for seed in range(2) for each in run(name, TEXTS, 40, seed)[25:]]
        return np.mean(np.array(values, np.float64))

    assert late(name) > late("random") / 2


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("grid", "gp")])
def test_a_sweep_that_was_stopped_proposes_what_it_would_have(name):
    texts = [*TEXTS, "model.args.sizes=(1, 2),(3, 4)"]
    whole = run(name, texts, 24)
    # What is kept in between is JSON.
    kept = [Told(*each) for each in json.loads(json.dumps(whole[:15]))]
    assert run(name, texts, 24, told=kept)[15:] == whole[15:]


@pytest.mark.parametrize("name", ["tpe", "cmaes", "gp"])
def test_a_sampler_that_has_seen_all_of_it_proposes_what_a_new_one_does(name):
    """While points end in any order, in any way, some are tried again and some are left out."""
    space, draw = space_of([*TEXTS, NAMED]), np.random.default_rng(0)
    kept, told = make(name, space, 0), list[Told]()
    for _ in range(12 if name == "gp" else 60):
        point = ask(kept, len(told), told)
        assert point == make(name, space, 0).ask(len(told), told)
        told.append(Told(point))
        for index, each in enumerate(told):
            if each.state == "running" and draw.random() < 0.3:
                states = ["finished"] * 5 + ["pruned", "diverged", "killed"]
                state = str(draw.choice(states))
                known = score(each.point) if state in ("finished", "pruned") else None
                told[index] = Told(each.point, known, state, float(draw.integers(1, 9)))
            elif each.state == "killed" and draw.random() < 0.1:
                told[index] = Told(each.point)
        if draw.random() < 0.05:
            del told[int(draw.integers(len(told)))]


def test_each_question_makes_few_trials_of_optunas_however_many_there_are(monkeypatch):
    storage, made = optuna.storages.InMemoryStorage, []
    real = storage.create_new_trial

    def counted(*args):
        made.append(args)
        return real(*args)

    monkeypatch.setattr(storage, "create_new_trial", counted)
    run("tpe", TEXTS, 60)
    assert len(made) == 2 * 60 - 1, "one that is asked, and one that is told, but for the last"


@pytest.mark.parametrize("name", NAMES)
def test_a_finite_space_gives_each_point_once_and_then_none(name):
    space = space_of(["batch_size=integers(1, 3)", "model.args.sizes=(1, 2),(3, 4)"])
    sampler = make(name, space, 0)
    told: list[Told] = []
    while (point := sampler.ask(len(told), told)) is not None:
        told.append(Told(point, 0.5, "finished"))
        assert len(told) <= 6
    found = [each.point for each in told]
    assert sorted(map(str, found)) == sorted(map(str, grid(space)))


@pytest.mark.parametrize("name", ["tpe", "random", "halton"])
def test_a_space_of_endless_points_always_has_a_new_one(name):
    def space(choose):
        if choose.of("optimizer.name", "sgd", "adamw") == "adamw":
            choose.log(RATE, 1e-4, 1.0)

    sampler = make(name, space, 0)
    told: list[Told] = [Told({"optimizer.name": "sgd"}, 1.0, "finished")]
    for number in range(1, 25):
        point = ask(sampler, number, told)
        assert point not in [each.point for each in told]
        told.append(Told(point, 0.0, "finished"))


@pytest.mark.parametrize("name", ["random", "halton", "tpe", "cmaes"])
def test_workers_that_ask_at_once_are_given_different_points(name):
    told = run(name, TEXTS, 16)
    sampler = make(name, space_of(TEXTS), 0)
    for _ in range(4):
        told.append(Told(ask(sampler, len(told), told)))
    rates = [each.point[RATE] for each in told[16:]]
    assert len(set(rates)) == 4


def test_points_that_diverge_count_as_the_worst():
    points = [each.point for each in run("random", TEXTS, 20)]
    told: list[Told] = []
    as_worst: list[Told] = []
    worst = min(score(point) for point in points if point[RATE] < 0.01)
    for point in points:
        fits = point[RATE] < 0.01
        told.append(Told(point, *((score(point), "finished") if fits else (None, "diverged"))))
        as_worst.append(Told(point, score(point) if fits else worst, "finished"))
    assert 3 < sum(each.state == "diverged" for each in told) < 17
    without = [each for each in told if each.state == "finished"]
    for name in ("tpe", "cmaes"):
        sampler = make(name, space_of(TEXTS), 0)
        assert sampler.ask(20, told) == sampler.ask(20, as_worst) != sampler.ask(20, without)


def test_before_any_has_finished_diverged_points_say_nothing():
    points = [each.point for each in run("random", TEXTS, 12)]
    for name in ("tpe", "cmaes"):
        sampler = make(name, space_of(TEXTS), 0)
        diverged = [Told(point, None, "diverged") for point in points]
        assert sampler.ask(12, diverged) == sampler.ask(12, [])


def test_points_of_another_space_are_passed_over():
    told = run("tpe", TEXTS, 14)
    others = [
        Told({RATE: 5.0, DECAY: 0.0, WIDTH: 8}, 9.0, "finished"),
        Told({RATE: 0.1}, 9.0, "finished"),
        Told({"epochs": 2.0}, 9.0, "finished"),
    ]
    for name in ("tpe", "cmaes"):
        sampler = make(name, space_of(TEXTS), 0)
        assert sampler.ask(17, [*others, *told]) == sampler.ask(17, told)


def test_pruned_points_guide_tpe_as_optunas_do():
    points = [each.point for each in run("random", TEXTS, 15)]
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed_of(0, 15))
    )
    told = []
    for number, point in enumerate(points):
        epochs = 1 + number % 4
        study.enqueue_trial(dict(point))
        trial = study.ask()
        trial.suggest_int(WIDTH, 8, 64, step=8)
        trial.suggest_float(RATE, 1e-4, 1, log=True)
        trial.suggest_float(DECAY, 0, 0.1)
        if number % 3 == 0:
            study.tell(trial, score(point))
            told.append(Told(point, score(point), "finished"))
        else:
            trial.report(score(point), step=epochs)
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            told.append(Told(point, score(point), "pruned", epochs))
    study.sampler = optuna.samplers.TPESampler(seed=seed_of(0, 15), constant_liar=True)
    expected = study.ask({**(trace(space_of(TEXTS), points[0]) or {})}).params
    assert make("tpe", space_of(TEXTS), 0).ask(15, told) == expected


def test_several_seeds_are_told_as_their_mean():
    point = {RATE: 0.1}
    done, killed, waiting = (0.5, "finished"), (None, "killed"), (None, "waiting")
    assert joined(point, [done, (0.75, "finished")]) == Told(point, 0.625, "finished")
    assert joined(point, [done, killed]) == Told(point, 0.5, "finished")
    assert joined(point, [done, waiting]) == Told(point, None, "running")
    assert joined(point, [(None, "diverged"), (None, "running")]) == Told(point, None, "running")
    assert joined(point, [done, (None, "diverged")]) == Told(point, None, "diverged")
    assert joined(point, [(0.25, "pruned"), killed]) == Told(point, 0.25, "pruned")
    assert joined(point, [(None, "pruned"), killed]) == Told(point, None, "pruned")
    # The seeds that are left are those that were good.
    mixed = joined(point, [done, (0.75, "finished"), (0.1, "pruned")], [5, 5, 1])
    assert mixed == Told(point, 0.45, "pruned", 11)
    assert joined(point, [(0.1, "pruned"), (None, "diverged")]) == Told(point, None, "diverged")
    assert joined(point, [(0.1, "pruned"), waiting]) == Told(point, None, "running")
    assert joined(point, [killed, (None, "failed")]) == Told(point, None, "killed")
    assert joined(point, []) == Told(point, None, "running")


def conditional(choose):
    choose.log(RATE, 1e-4, 1.0)
    if choose.of("optimizer.name", "sgd", "adamw") == "sgd":
        choose.uniform("optimizer.args.momentum", 0.0, 0.99)
    elif choose.of("optimizer.schedule", "cosine", "constant") == "cosine":
        choose.integers("optimizer.warmup_steps", 1, 9)


@pytest.mark.parametrize("name", ["random", "halton", "tpe", "cmaes", "gp"])
def test_points_of_a_conditional_space_keep_its_conditions(name):
    sampler = make(name, conditional, 0)
    told: list[Told] = []
    for number in range(11):
        point = ask(sampler, number, told)
        assert trace(conditional, point) is not None
        told.append(Told(point, -abs(np.log10(point[RATE]) + 2), "finished"))
    assert {each.point["optimizer.name"] for each in told} == {"sgd", "adamw"}


def differing(choose):
    """One path has other choices, another kind of range or another scale, by the network."""
    if choose.of("model.name", "small", "resnet20") == "small":
        choose.of(WIDTH, 8, 16)
        choose.log(RATE, 1e-4, 1.0)
        choose.integers("epochs", 1, 4)
    else:
        choose.of(WIDTH, 4, 8)
        choose.uniform(RATE, 0.0, 1.0)
        choose.uniform("epochs", 1.0, 4.0)


def differing_by_optuna(trial):
    if trial.suggest_categorical("model.name", ("small", "resnet20")) == "small":
        names = [WIDTH, RATE, "epochs"]
        values = [
            trial.suggest_categorical("width of small", (8, 16)),
            trial.suggest_float("rate of small", 1e-4, 1.0, log=True),
            trial.suggest_int("epochs of small", 1, 4),
        ]
        return {"model.name": "small", **dict(zip(names, values))}
    return {
        "model.name": "resnet20",
        WIDTH: trial.suggest_categorical("width of resnet20", (4, 8)),
        RATE: trial.suggest_float("rate of resnet20", 0.0, 1.0),
        "epochs": trial.suggest_float("epochs of resnet20", 1.0, 4.0),
    }


@pytest.mark.parametrize(
    ("name", "sampler"),
    [("tpe", optuna.samplers.TPESampler), ("gp", optuna.samplers.GPSampler)],
)
def test_what_a_condition_changes_about_a_path_is_to_optuna_a_parameter_of_its_own(name, sampler):
    kept, told, study = make(name, differing, 3, "min"), list[Told](), optuna.create_study()
    for number in range(24 if name == "tpe" else 12):
        study.sampler = sampler(seed=seed_of(3, number))
        trial = study.ask()
        expected = differing_by_optuna(trial)
        assert ask(kept, number, told) == expected
        value = expected[WIDTH] * (1 + expected[RATE]) + expected["epochs"]
        study.tell(trial, value)
        told.append(Told(expected, value, "finished"))
    assert len({(each.point["model.name"], each.point[WIDTH]) for each in told}) == 4


def test_ranges_of_one_kind_are_to_optuna_one_parameter_whatever_their_ends():
    def space(choose):
        small = choose.of("model.name", "small", "resnet20") == "small"
        choose.log(RATE, 1e-4, 1e-1 if small else 1e-2)

    told, study = list[Told](), optuna.create_study()
    for number in range(20):
        study.sampler = optuna.samplers.TPESampler(seed=seed_of(3, number))
        trial = study.ask()
        network = trial.suggest_categorical("model.name", ("small", "resnet20"))
        rate = trial.suggest_float(RATE, 1e-4, 1e-1 if network == "small" else 1e-2, log=True)
        point = {"model.name": network, RATE: rate}
        assert ask(make("tpe", space, 3, "min"), number, told) == point
        study.tell(trial, abs(math.log10(rate) + 2))
        told.append(Told(point, abs(math.log10(rate) + 2), "finished"))


ranges = st.tuples(st.floats(1e-3, 1.0), st.floats(1e-3, 1.0)).filter(lambda two: two[0] != two[1])
items = {
    RATE: ranges.map(lambda two: distributions.log(*sorted(two))),
    DECAY: ranges.map(lambda two: distributions.uniform(*sorted(two))),
    "batch_size": st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4)).map(
        lambda three: distributions.integers(three[0], three[0] + three[1], three[2])
    ),
    "average.decay": st.lists(
        st.none() | st.floats(0, 0.9), min_size=1, max_size=3, unique=True
    ).map(lambda values: distributions.of(*values)),
    "model.args.sizes": st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3, unique=True
    ).map(lambda values: distributions.of(*values)),
}
results = st.lists(
    st.sampled_from(["finished", "diverged", "running", "killed", "pruned"]), max_size=14
)


@settings(max_examples=25, deadline=None)
@given(
    st.fixed_dictionaries({RATE: items.pop(RATE)}, optional=items),
    st.sampled_from(["random", "halton", "tpe", "cmaes"]),
    results,
    st.integers(0, 2**32 - 1),
)
def test_every_point_lies_in_its_space_and_makes_a_valid_config(varied, name, states, seed):
    space = space_of(varied)
    sampler = make(name, space, seed, "min")
    told: list[Told] = []
    for number, state in enumerate([*states, "running"]):
        point = ask(sampler, number, told)
        assert trace(space, point) == varied
        resolve(Experiment(), point, seed=number)
        value = float(number % 5) if state in ("finished", "pruned") else None
        told.append(Told(point, value, state))


def test_a_sampler_that_there_is_not_is_refused():
    with pytest.raises(UserError, match=re.escape("--sampler=randm: did you mean 'random'?")):
        make("randm", space_of(TEXTS), 0)
    with pytest.raises(UserError, match="always varied by a range: take tpe"):
        make("cmaes", space_of([NAMED]), 0)
    with pytest.raises(ValueError, match="direction is 'maximum'"):
        make("tpe", space_of(TEXTS), 0, "maximum")


@pytest.mark.parametrize(
    ("name", "missing", "message"),
    [
        ("tpe", "optuna.samplers", r"needs optuna: pip install 'convjax\[sweep\]'"),
        ("cmaes", "cmaes", r"needs cmaes: pip install 'convjax\[sweep\]'"),
        ("gp", "torch", "--sampler=gp needs torch, as Optuna's has it: pip install torch, or tpe"),
    ],
)
def test_a_missing_library_is_named_before_anything_runs(monkeypatch, name, missing, message):
    space = space_of(TEXTS)
    monkeypatch.setitem(sys.modules, missing, None)
    assert name != "gp" or importlib.util.find_spec("torch") is None
    with pytest.raises(UserError, match=message):
        make(name, space, 0)


def test_the_users_word_on_what_optuna_tells_is_left_as_it_is(capfd):
    optuna.logging.set_verbosity(optuna.logging.INFO)
    run("tpe", TEXTS, 12)
    assert optuna.logging.get_verbosity() == optuna.logging.INFO
    assert capfd.readouterr().err == ""
