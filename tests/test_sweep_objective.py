"""Objectives: how they are written, where they are found in a run, and what several seeds say."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from convjax.config import Average, Checkpoint, Data, Experiment, UserError
from convjax.sweep.objective import Objective, parse, summary

LINES = [
    {"step": 10, "split": "train", "loss": 2.0, "accuracy": 0.2},
    {"step": 20, "split": "test", "loss": 1.0, "accuracy": 0.6},
    {"step": 20, "split": "valid", "loss": 1.1, "accuracy": 0.5},
    {"step": 40, "split": "test", "loss": 0.8, "accuracy": 0.7},
    {"step": 40, "split": "valid", "loss": None, "accuracy": 0.4},
]
RECORD = {
    "final": {"step": 40, "loss": 0.75, "accuracy": 0.72},
    "final_average": {"step": 40, "loss": 0.5, "accuracy": 0.8},
}


def test_an_objective_says_direction_split_and_metric():
    assert parse("max test accuracy") == Objective("max", "test", "accuracy")
    assert parse(" min  valid_average loss ") == Objective("min", "valid_average", "loss")
    assert str(parse("max test_best accuracy")) == "max test_best accuracy"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("accuracy", "direction, split and metric: did you mean 'max test accuracy'"),
        ("min valid", "did you mean 'min valid loss'"),
        ("", "write direction, split and metric"),
        ("maxi test accuracy", "has the direction 'maxi': did you mean 'max'?"),
        ("max tset accuracy", "has the split 'tset': did you mean 'test'?"),
        ("max test_avrage accuracy", "did you mean 'test_average'?"),
        ("max test acuracy", "has the metric 'acuracy': did you mean 'accuracy'?"),
        ("max valid loss", "looks for the worst: did you mean 'min valid loss'?"),
        ("min test accuracy", "looks for the worst: did you mean 'max test accuracy'?"),
    ],
)
def test_a_wrong_objective_is_refused_with_the_next_step(text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("max test accuracy", 0.72),
        ("min test loss", 0.75),
        ("max test_average accuracy", 0.8),
        ("max valid accuracy", 0.4),
        ("min valid loss", None),  # It was not finite at the end.
        ("min train loss", 2.0),
        ("max test_best accuracy", None),
    ],
)
def test_the_value_is_that_of_the_end_of_the_run(text, value):
    assert parse(text).value(RECORD, LINES) == value


def test_a_run_without_a_record_has_the_value_of_its_last_line():
    assert parse("max test accuracy").value({}, LINES) == 0.7
    assert parse("max test accuracy").value({}, []) is None


def test_the_curve_has_every_evaluation():
    assert parse("min valid loss").curve(LINES) == [(20, 1.1), (40, None)]


def test_what_a_run_does_not_evaluate_is_no_objective():
    parse("max test accuracy").check(Experiment())
    valid = Data(train="train[:90%]", valid="train[90%:]")
    for text, without, having in (
        ("max valid accuracy", "config.data.valid", Experiment(data=valid)),
        ("min test_average loss", "config.average.decay", Experiment(average=Average(0.9))),
        ("max test_views accuracy", "config.test_time", Experiment(test_time="flip")),
        (
            "max test_average_reestimated accuracy",
            "config.average.reestimate",
            Experiment(average=Average(0.9, reestimate=True)),
        ),
        (
            "max test_best accuracy",
            "config.checkpoint.best",
            Experiment(data=valid, checkpoint=Checkpoint(best="loss")),
        ),
    ):
        parse(text).check(having)
        lacking = Experiment(average=Average(0.9)) if "reest" in text else Experiment()
        with pytest.raises(UserError, match=re.escape(without)):
            parse(text).check(lacking)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30))
def test_a_summary_is_mean_and_interval_of_students_t(values):
    mean, half = summary(values)
    assert mean == pytest.approx(np.mean(values), abs=1e-9)
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    assert half == pytest.approx(stats.t.ppf(0.975, len(values) - 1) * error, abs=1e-9)


def test_one_value_has_no_interval_and_none_no_summary():
    assert summary([0.5]) == (0.5, None)
    with pytest.raises(ValueError, match="no values"):
        summary([])
