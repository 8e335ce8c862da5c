"""Pruners: their word is that of Optuna's own study, whoever asks, by what the record has."""

import binascii
import json
import math
import random
import re
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest

from convjax.config import Experiment, UserError, to_dict
from convjax.sweep.pruner import NAMES, Pruning, check, check_name, most_evaluations
from convjax.sweep.space import described, space_of
from convjax.sweep.store import Store
from convjax.sweep.trial import Outcome, Trial

ROOT = Path(__file__).parent.parent
RATE = "optimizer.learning_rate=log(1e-4, 1e-1)"


@pytest.fixture(autouse=True)
def few_words():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "sweep") as store:
        yield store


def defined(pruner, *vary, objective="max test accuracy", **config):
    """A definition as launches make it."""
    return {
        "config": to_dict(Experiment(**config)),
        "space": described(space_of(vary or [RATE])),
        "objective": objective,
        "pruner": pruner,
    }


def trial_of(number, definition):
    config = {**definition["config"], "seed": number}
    return Trial(f"{number:064x}"[::-1], {"optimizer.learning_rate": 0.1}, number, config, number)


class Sweep:
    """Trials that report, and a study of Optuna's that is told the same."""

    def __init__(self, store, count, definition, by_optuna: Any = None):
        self.store, self.definition = store, definition
        self.number = store.sweep(definition)
        store.add(self.number, [trial_of(number, definition) for number in range(count)])
        self.claims = [store.claim(self.number, "me") for _ in range(count)]
        self.pruning = Pruning(store, self.number, definition)
        self.study = optuna.create_study(
            study_name="sweep",
            direction="maximize" if definition["objective"].startswith("max") else "minimize",
            pruner=by_optuna or optuna.pruners.NopPruner(),
        )
        self.trials = [self.study.ask() for _ in range(count)]

    def report(self, place, step, value, pruning=None) -> str | None:
        _, split, metric = self.definition["objective"].split()
        results = {split: {"loss": math.nan, "accuracy": math.nan} | {metric: value}}
        return (pruning or self.pruning).report(self.claims[place], step, results)

    def optunas(self, place, evaluation, value) -> bool:
        self.trials[place].report(value, evaluation)
        with warnings.catch_warnings():
            # NumPy says so where a trial has no number yet.
            warnings.filterwarnings("ignore", "All-NaN slice encountered", RuntimeWarning)
            return self.trials[place].should_prune()

    def finish(self, place, value):
        with self.claims[place] as claim:
            claim.finish({"value": value})
        self.study.tell(place, value)

    def prune(self, place):
        with self.claims[place] as claim:
            claim.fail(Outcome.PRUNED, "it falls behind")
        self.study.tell(place, state=optuna.trial.TrialState.PRUNED)


def value_of(place, evaluation):
    """A curve that rises to a level of its own, with noise, and here and there no number."""
    draw = random.Random(1000 * place + evaluation)
    level = random.Random(place).random()
    return (
        math.nan
        if draw.random() < 0.03
        else level * evaluation / (evaluation + 3) + (0.1 * draw.random())
    )


ORACLES = {
    "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=1),
    "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=1, max_resource=12),
    "median": optuna.pruners.MedianPruner,
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("objective", ["max test accuracy", "min valid loss"])
def test_the_word_is_that_of_optunas_own_study_with_the_same_reports(store, name, objective):
    """Four trials at a time, of 30, each with its own speed; a step is 50 to 400 of training."""
    definition = defined(name, objective=objective, epochs=12)
    sweep = Sweep(store, 30, definition, ORACLES[name]())
    assert most_evaluations(definition) == 12
    draw, going, begun, words = random.Random(7), {}, 0, []
    while going or begun < 30:
        while len(going) < 4 and begun < 30:
            going[begun] = 0
            begun += 1
        place = draw.choice(list(going))
        going[place] += 1
        evaluation, value = going[place], value_of(place, going[place])
        found = sweep.report(place, evaluation * (50 + 10 * place), value)
        # Whoever begins now, and reads all of the record, is of the same mind.
        fresh = Pruning(store, sweep.number, definition)
        again = sweep.report(place, evaluation * (50 + 10 * place), value, fresh)
        expected = sweep.optunas(place, evaluation, value)
        assert found == again
        assert (found is not None) == (expected and evaluation < 12)
        words.append(found is not None)
        if found is not None:
            sweep.prune(place)
            del going[place]
        elif evaluation == 12:
            sweep.finish(place, 0.0 if math.isnan(value) else value)
            del going[place]
    assert 5 < sum(words) < 30, "some were pruned, and some were not"


def test_halving_keeps_the_best_quarter_at_evaluations_1_4_and_16(store):
    """Pencil and paper: of n at a rung, n // 4 go on, and of fewer than four the best."""
    sweep = Sweep(store, 8, defined("halving", epochs=64))
    words = [sweep.report(place, 100, value) for place, value in enumerate((0.5, 0.6, 0.4, 0.7))]
    # The best so far, the best so far, worse than both, the best of four.
    assert [bool(word) for word in words] == [False, False, True, False]
    assert words[2] == "halving: test accuracy 0.4000 at evaluation 1, step 100"
    assert not sweep.report(3, 200, 0.1), "no rung"
    assert not sweep.report(3, 300, 0.1), "no rung"
    assert not sweep.report(3, 400, 0.1), "it is the only one at this rung"
    assert not sweep.report(0, 200, 0.9)
    assert not sweep.report(0, 300, 0.9)
    assert not sweep.report(0, 400, 0.2), "better than 0.1, which was there before"
    assert sweep.report(4, 100, 0.65), "of five the best goes on: 0.7"
    assert not sweep.report(5, 100, 0.75)
    assert sweep.report(6, 100, 0.69), "of seven, one"
    assert not sweep.report(7, 100, 0.72), "of eight, two: 0.75 and 0.72"


def test_a_figure_that_is_no_number_ends_a_trial_at_its_next_rung(store):
    sweep = Sweep(store, 2, defined("halving", epochs=64))
    assert sweep.report(0, 100, math.nan) == "halving: test accuracy nan at evaluation 1, step 100"
    assert not sweep.report(1, 100, 0.0), "the other one is not compared with it"
    assert store.reports.curves(sweep.number) == {
        trial_of(0, sweep.definition).digest: [(100, None)],
        trial_of(1, sweep.definition).digest: [(100, 0.0)],
    }


def test_median_waits_for_five_trials_and_compares_the_best_so_far(store):
    sweep = Sweep(store, 7, defined("median", epochs=3))
    for place, value in enumerate((0.1, 0.2, 0.3, 0.4)):
        assert not sweep.report(place, 10, value)
        sweep.finish(place, value)
    assert not sweep.report(5, 10, 0.0), "four have finished"
    assert not sweep.report(4, 10, 0.5)
    sweep.finish(4, 0.5)
    assert sweep.report(6, 10, 0.29), "the median of 0.1 to 0.5 is 0.3"
    assert not sweep.report(6, 20, 0.0), "at the second evaluation there is none to compare with"


@pytest.mark.parametrize("epochs", [1.5, 2])
def test_the_last_evaluation_prunes_nothing(store, epochs):
    sweep = Sweep(store, 6, defined("median", epochs=epochs))
    for place in range(5):
        for evaluation in (1, 2):
            sweep.report(place, evaluation * 10, 0.9)
        sweep.finish(place, 0.9)
    assert sweep.report(5, 10, 0.1)
    assert not sweep.report(5, 20, 0.1)


def test_hyperbands_bracket_is_a_function_of_the_number_alone(store):
    """27 evaluations make brackets that begin to halve at 1, 3, 9 and 27."""
    sweep = Sweep(store, 60, defined("hyperband", epochs=28))
    # So many that all brackets have one that is far ahead; then each loses at its first rung.
    first = {}
    for evaluation in range(1, 28):
        for place in range(60):
            if place not in first and sweep.report(place, evaluation, 1.0 - place / 60):
                first[place] = evaluation
    assert set(first.values()) <= {1, 3, 9, 27}
    # Of 4 brackets, ceil(4 * 3^s / (s + 1)) trials each, s from 3 to 0, as in the paper.
    shares = [math.ceil(4 * 3**s / (s + 1)) for s in (3, 2, 1, 0)]
    for place, evaluation in first.items():
        lot = binascii.crc32(f"sweep_{place}".encode()) % sum(shares)
        bracket = next(n for n in range(4) if lot < sum(shares[: n + 1]))
        assert evaluation >= 3**bracket


@pytest.mark.parametrize("name", NAMES)
def test_a_trial_that_was_taken_up_again_is_judged_as_if_it_never_stopped(tmp_path, name):
    definition, words = defined(name, epochs=12), []
    for stops in (False, True):
        with Store(tmp_path / str(stops)) as store:
            sweep = Sweep(store, 12, definition)
            for place in range(12):
                for evaluation in range(1, 13):
                    word = sweep.report(place, evaluation, value_of(place, evaluation))
                    if stops and evaluation in (4, 9):
                        for other in (evaluation - 2, evaluation - 1, evaluation):
                            word = sweep.report(place, other, value_of(place, other))
                    words.append((stops, place, evaluation, word))
                sweep.finish(place, 0.5)
            assert all(len(curve) == 12 for curve in store.reports.curves(sweep.number).values())
    half = len(words) // 2
    assert [each[1:] for each in words[:half]] == [each[1:] for each in words[half:]]
    assert any(word for *_, word in words)


def test_a_later_sweep_over_the_same_trials_compares_with_their_curves(store):
    first = Sweep(store, 3, defined("halving", epochs=64))
    for place in range(3):
        first.report(place, 100, 0.9)
        first.finish(place, 0.9)
    second = defined("halving", epochs=64) | {"seeds": 2}
    sweep, pruning = store.sweep(second), None
    store.add(sweep, [trial_of(3, second)])
    claim = store.claim(sweep, "me")
    assert claim is not None
    pruning = Pruning(store, sweep, second)
    assert pruning.report(claim, 100, {"test": {"accuracy": 0.5}}) is None, "it is alone"
    store.add(sweep, [trial_of(number, second) for number in (0, 1, 2, 4)])
    assert len(store.reports.curves(sweep)) == 4
    claim = store.claim(sweep, "me")
    assert claim is not None
    for each in (pruning, Pruning(store, sweep, second)):
        assert each.report(claim, 100, {"test": {"accuracy": 0.8}}), "0.9 is better"


def test_a_sweep_with_another_objective_has_curves_of_its_own(store):
    one = Sweep(store, 1, defined("halving", epochs=64))
    one.report(0, 100, 0.9)
    other = store.sweep(defined("halving", objective="min valid loss", epochs=64))
    store.add(other, [trial_of(0, one.definition)])
    assert store.reports.curves(other) == {}
    store.reports.add(other, trial_of(0, one.definition).digest, 100, 2.5)
    assert list(store.reports.curves(other).values()) == [[(100, 2.5)]]
    assert list(store.reports.curves(one.number).values()) == [[(100, 0.9)]]


def test_without_a_pruner_evaluations_are_written_down_and_nothing_is_pruned(store):
    sweep = Sweep(store, 4, defined(None, epochs=4))
    for place in range(4):
        assert sweep.report(place, 10, -float(place)) is None
    assert list(store.reports.curves(sweep.number).values()) == [
        [(10, -float(place))] for place in range(4)
    ]
    only_valid: Mapping[str, Any] = {"valid": {"loss": 1.0, "accuracy": 0.5}}
    assert sweep.pruning.report(sweep.claims[0], 20, only_valid) is None
    assert store.reports.curves(sweep.number)[trial_of(0, sweep.definition).digest] == [(10, 0.0)]


REPORTER = """
import json, sys
from convjax.sweep.pruner import Pruning
from convjax.sweep.store import Store
from convjax.sweep.trial import Outcome
folder, name = sys.argv[1:]
with Store(folder) as store:
    definition = store.definition(1)
    pruning = Pruning(store, 1, definition)
    print("ready", flush=True)
    sys.stdin.readline()
    while claim := store.claim(1, name):
        with claim:
            for evaluation in range(1, 17):
                value = claim.trial.seed / 100 + evaluation / 1000
                why = pruning.report(claim, evaluation, {"test": {"accuracy": value}})
                if why:
                    claim.fail(Outcome.PRUNED, why, {"value": value})
                    break
            else:
                claim.finish({"value": value})
"""


def test_processes_that_report_and_prune_at_once_lose_no_report_and_keep_the_best(tmp_path):
    definition = defined("halving", epochs=16)
    with Store(tmp_path / "sweep") as store:
        sweep = store.sweep(definition)
        places = random.Random(0).sample(range(40), 40)
        trials = [trial_of(number, definition) for number in places]
        store.add(sweep, [trial._replace(number=n) for n, trial in enumerate(trials)])
        command = [sys.executable, "-c", REPORTER, str(tmp_path / "sweep")]
        pipe = subprocess.PIPE
        processes = [
            subprocess.Popen([*command, name], cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
            for name in ("one", "two", "three", "four")
        ]
        try:
            for process in processes:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
            for process in processes:
                assert process.wait(120) == 0
        finally:
            for process in processes:
                process.kill()
                process.communicate()
        rows, curves = store.rows(sweep), store.reports.curves(sweep)
    assert {row.state for row in rows} == {"finished", "pruned"}
    assert len({row.attempts[0].worker for row in rows}) > 1
    for row in rows:
        curve = curves[row.trial.digest]
        expected = [row.trial.seed / 100 + n / 1000 for n in range(1, len(curve) + 1)]
        assert [value for _, value in curve] == expected
        assert [step for step, _ in curve] == list(range(1, len(curve) + 1))
        assert (len(curve) == 16) == (row.state == "finished")
        assert len(curve) in (1, 4, 16), "rungs are at 1 and 4, and the last prunes nothing"
    # The best was the best at every rung, whoever else was there.
    assert {row.trial.seed: row.state for row in rows}[39] == "finished"


def test_a_pruner_that_there_is_not_is_refused():
    with pytest.raises(UserError, match=re.escape("--pruner=halvin: did you mean 'halving'?")):
        check_name("halvin")
    with pytest.raises(UserError, match="--pruner=medain: did you mean 'median'"):
        check(defined("medain"))


@pytest.mark.parametrize(
    "split", ["test_views", "test_best", "test_average_reestimated", "test_average_views", "train"]
)
def test_a_pruner_of_what_is_known_at_the_end_alone_is_refused(split):
    message = f"there is no {split} in them: give --objective='min test loss', or no --pruner"
    with pytest.raises(UserError, match=re.escape(message)):
        check(defined("median", objective=f"min {split} loss"))
    check(defined(None, objective=f"min {split} loss"))
    for good in ("test", "valid", "test_average", "valid_average"):
        check(defined("median", objective=f"min {good} loss"))


def test_a_pruner_of_runs_that_are_evaluated_once_is_refused():
    with pytest.raises(UserError, match=r"nothing to prune.*more --config\.epochs"):
        check(defined("halving", epochs=1))
    with pytest.raises(UserError, match="nothing to prune"):
        check(defined("median", epochs=4, eval_every_epochs=4))
    check(defined("median", epochs=1, eval_every_steps=50))
    check(defined("median", "epochs=1,2,4", epochs=1))
    with pytest.raises(UserError, match="--pruner=hyperband has to know how often"):
        check(defined("hyperband", epochs=8, eval_every_steps=50))


@pytest.mark.parametrize(
    ("vary", "config", "expected"),
    [
        (RATE, {"epochs": 5}, 5),
        (RATE, {"epochs": 2.5}, 3),
        (RATE, {"epochs": 9, "eval_every_epochs": 2}, 5),
        ("epochs=2,7,3", {"epochs": 1}, 7),
        ("epochs=uniform(2, 6.5)", {}, 7),
        ("eval_every_epochs=integers(2, 4)", {"epochs": 9}, 5),
        (RATE, {"eval_every_steps": 10}, None),
        ("eval_every_steps=0,10", {}, None),
    ],
)
def test_the_evaluations_of_the_longest_run_are_counted(vary, config, expected):
    assert most_evaluations(json.loads(json.dumps(defined("halving", vary, **config)))) == expected


def test_a_missing_library_is_named(monkeypatch, store):
    monkeypatch.setitem(sys.modules, "optuna.pruners", None)
    with pytest.raises(UserError, match=r"needs optuna: pip install 'convjax\[sweep\]'"):
        check(defined("halving"))
