"""The page of a sweep: what it shows is what the record holds, whatever texts are in that."""

import json
import math
import re
import shlex
import shutil
from typing import Any

import numpy as np
import optuna
import pytest
from absl import flags
from browser import Scripts, needs_browser, opened
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convjax.config import (
    Augment,
    ConfigError,
    Data,
    Experiment,
    Loss,
    Model,
    Optimizer,
    Start,
    UserError,
    digest,
    to_dict,
)
from convjax.flags import parse_experiment
from convjax.sweep.axes import axes, distributions_of
from convjax.sweep.command import command
from convjax.sweep.distributions import integers, log, of, uniform
from convjax.sweep.importance import importances
from convjax.sweep.report import CURVES, write_page
from convjax.sweep.space import described, resolve
from convjax.sweep.store import Store
from convjax.sweep.trial import Outcome, Trial

HOSTILE = "</script ><script>alert(1)</script><!--"
RATE = "optimizer.learning_rate"


def rates(choose):
    choose.log(RATE, 1e-4, 1e-1)
    choose.of("model.args.width", 4, 8)


def record(folder, space, points, outcome, *, seeds=1, base=None, change=None):
    """A sweep of these points; outcome(claim) ends each trial, and `change` its config."""
    base, change = base or Experiment(name="mine"), change or dict
    with Store(folder) as store:
        definition = {"config": change(to_dict(base)), "space": described(space), "seeds": seeds}
        number = store.sweep(
            definition | {"sampler": "random", "objective": "max test accuracy", "pruner": None}
        )
        trials = []
        for place, point in enumerate(points):
            for seed in range(seeds):
                config = resolve(base, point, seed)
                where = place * seeds + seed
                trials.append(Trial(digest(config), point, seed, change(to_dict(config)), where))
        store.add(number, trials)
        while claim := store.claim(number, "me"):
            with claim:
                outcome(claim)
    return trials


def finish(claim, accuracy, loss=0.5):
    claim.finish({"final": {"accuracy": accuracy, "loss": loss}, "last": {}})


def metrics(claim, lines):
    (claim.folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))


def none_of_these(word):
    raise ValueError(f"{word} is no JSON")


def data_of(page):
    return json.loads(Scripts(page.read_text()).scripts[0], parse_constant=none_of_these)


# What the page says.


def test_the_best_point_stands_with_its_mean_and_interval_and_what_reproduces_it(tmp_path):
    points = [{RATE: 0.01, "model.args.width": 4}, {RATE: 0.02, "model.args.width": 8}]
    figures = iter([0.8, 0.9, 0.7, 0.71])
    trials = record(tmp_path, rates, points, lambda claim: finish(claim, next(figures)), seeds=2)
    data = data_of(write_page(tmp_path))
    best = data["best"]
    assert best["mean"] == pytest.approx(0.85)
    # Student's t of one degree of freedom, tan(0.475 pi), times 0.1 / sqrt(2) / sqrt(2).
    assert best["half"] == pytest.approx(math.tan(0.475 * math.pi) * 0.05)
    assert best["point"] == {RATE: "0.01", "model.args.width": "4"}
    assert (best["seed"], best["others"], best["finished"]) == (0, [1], 2)
    assert to_dict(read(best["command"])) == trials[0].config
    assert data["counts"] == {"finished": 4}


def test_every_trial_is_in_the_table_with_its_state_cause_log_and_folder(tmp_path):
    def outcome(claim):
        if claim.trial.number == 0:
            finish(claim, 0.5)
        elif claim.trial.number == 1:
            claim.fail(Outcome.DIVERGED, "diverged: 10 steps in a row")
        else:
            claim.log.write_text("told")
            claim.fail(Outcome.PRUNED, "worse than half", {"final": {"accuracy": 0.25}})

    points = [{RATE: rate, "model.args.width": 4} for rate in (0.01, 0.02, 0.03)]
    trials = record(tmp_path, rates, points, outcome)
    shutil.rmtree(tmp_path / "trials" / trials[1].name)
    rows = data_of(write_page(tmp_path))["table"]["rows"]
    assert [(row["state"], row["value"], row["causes"]) for row in rows] == [
        ("finished", 0.5, []),
        ("diverged", None, ["diverged: 10 steps in a row"]),
        ("pruned", 0.25, ["worse than half"]),
    ]
    assert [row["point"] for row in rows] == [[0.01, 4], [0.02, 4], [0.03, 4]]
    assert rows[0]["folder"] == f"trials/{trials[0].name}/"
    assert rows[1]["folder"] is None
    assert rows[2]["logs"] == [f"logs/{trials[2].name}-1.txt"]
    assert (tmp_path / rows[2]["logs"][0]).read_text() == "told"


def test_curves_are_the_lines_of_the_metrics_without_what_is_torn_or_not_finite(tmp_path):
    lines = [
        '{"step": 5, "epoch": 0.5, "split": "train", "loss": 2.0, "accuracy": 0.1}',
        '{"step": 10, "epoch": 1.0, "split": "test", "loss": 1.5, "accuracy": 0.4}',
        '{"step": 20, "epoch": 2.0, "split": "test", "loss": NaN, "accuracy": 0.6}',
        '{"step": 30, "epoch": 3.0, "split": "test", "loss": 1e999, "accuracy": null}',
        '{"step": 30, "epoch": 3.0, "spl',
        '["step", "split"]',
        '{"step": 40, "epoch": 4.0, "split": "valid", "loss": 1.0, "accuracy": 0.9}',
    ]

    def outcome(claim):
        if claim.trial.number == 0:
            metrics(claim, lines)
        finish(claim, 0.6)

    points = [{RATE: 0.01, "model.args.width": width} for width in (4, 8)]
    record(tmp_path, rates, points, outcome)
    data = data_of(write_page(tmp_path))
    [curve] = data["curves"]
    assert curve["splits"] == {
        "test": {
            "step": [10, 20, 30],
            "epoch": [1.0, 2.0, 3.0],
            "loss": [1.5, None, None],
            "accuracy": [0.4, 0.6, None],
        },
        "train": {"step": [5], "epoch": [0.5], "loss": [2.0], "accuracy": [0.1]},
    }
    assert data["unread"] == 2


def test_many_curves_are_thinned_out_and_keep_the_best_trials_and_the_ends(tmp_path):
    def outcome(claim):
        number = claim.trial.number
        metrics(
            claim,
            [
                json.dumps({"step": step, "split": "test", "accuracy": step / 1e4, "loss": 1.0})
                for step in range(250 if number == 7 else 2)
            ],
        )
        finish(claim, number / 1000 if number % 2 else -number / 1000)

    count = CURVES + 30
    points = [{RATE: 1e-3 * (1 + n / count), "model.args.width": 4} for n in range(count)]
    record(tmp_path, rates, points, outcome)
    curves = {curve["number"]: curve for curve in data_of(write_page(tmp_path))["curves"]}
    assert len(curves) == CURVES
    odd = [number for number in range(count) if number % 2]
    assert set(odd[-50:]) <= set(curves), "the best 50"
    assert len([n for n in curves if n % 2 == 0]) > 60, "and others"
    steps = curves[7]["splits"]["test"]["step"]
    assert (len(steps), steps[0], steps[-1]) == (100, 0, 249)
    assert max(np.diff(steps)) <= 3


# Importances.


def conditional(choose):
    choose.log(RATE, 1e-4, 1e-1)
    choose.uniform("loss.label_smoothing", 0.0, 0.2)
    if choose.of("model.name", "small", "lenet5") == "small":
        choose.integers("batch_size", 32, 256, 32)


def drawn_points(count):
    """Points of `conditional`, of which the rate matters most."""
    draw = np.random.default_rng(0)
    for _ in range(count):
        point: dict[str, Any] = {RATE: float(10 ** draw.uniform(-4, -1))}
        point["loss.label_smoothing"] = float(draw.uniform(0, 0.2))
        point["model.name"] = str(draw.choice(["small", "lenet5"]))
        if point["model.name"] == "small":
            point["batch_size"] = int(draw.integers(1, 9)) * 32
        value = -((math.log10(point[RATE]) + 2) ** 2) + 0.1 * point["loss.label_smoothing"]
        yield point, value


def asked_of_optuna(points):
    """The importances of a study to which Optuna itself suggests these points."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for point, value in points:
        study.enqueue_trial(point)
        trial = study.ask()
        trial.suggest_float(RATE, 1e-4, 1e-1, log=True)
        trial.suggest_float("loss.label_smoothing", 0.0, 0.2)
        if trial.suggest_categorical("model.name", ["small", "lenet5"]) == "small":
            trial.suggest_int("batch_size", 32, 256, step=32)
        assert trial.params == point
        study.tell(trial, value)
    return optuna.importance.get_param_importances(study)


def test_importances_are_optunas_own_of_means_over_seeds(tmp_path):
    points = list(drawn_points(60))
    known = {json.dumps(point): value for point, value in points}

    def outcome(claim):
        value = known[json.dumps(claim.trial.point)]
        finish(claim, value + (0.25 if claim.trial.seed else -0.25))

    record(tmp_path, conditional, [point for point, _ in points], outcome, seeds=2)
    shares = data_of(write_page(tmp_path))["importance"]["shares"]
    expected = asked_of_optuna(points)
    assert shares == pytest.approx(expected, rel=1e-6)
    assert next(iter(shares)) == RATE
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_points_that_failed_or_of_which_a_seed_was_pruned_change_no_importance(tmp_path):
    points = list(drawn_points(30))
    known = {json.dumps(point): value for point, value in points[:20]}

    def outcome(claim):
        value = known.get(json.dumps(claim.trial.point))
        if value is not None:
            finish(claim, value)
        elif claim.trial.number < 50:
            claim.fail(Outcome.FAILED, "an error", {"final": {"accuracy": 9.0}})
        elif claim.trial.seed:
            claim.fail(Outcome.PRUNED, "worse", {"final": {"accuracy": 9.0}})
        else:
            finish(claim, 9.0)

    record(tmp_path, conditional, [point for point, _ in points], outcome, seeds=2)
    data = data_of(write_page(tmp_path))
    assert data["importance"]["points"] == 20
    assert data["importance"]["shares"] == pytest.approx(asked_of_optuna(points[:20]), rel=1e-6)


def test_no_importance_is_told_of_nine_points(tmp_path):
    points = [{RATE: 0.01 + n / 1000, "model.args.width": 4} for n in range(9)]
    record(tmp_path, rates, points, lambda claim: finish(claim, 0.5))
    found = data_of(write_page(tmp_path))["importance"]
    assert (found["shares"], found["points"], found["fewest"]) == ({}, 9, 10)


def test_of_a_path_whose_distribution_is_unknown_no_importance_is_told():
    points = [{RATE: 10**-n, "epochs": float(n)} for n in np.linspace(1, 4, 12).tolist()]
    values = [float(n) for n in range(12)]
    assert importances(points, values, {RATE: [log(1e-4, 1e-1)]}, "max").keys() == {RATE}


# Axes.


def test_an_axis_has_logarithms_choices_and_a_place_for_no_value():
    points = [{RATE: 0.01, "model.name": "small", "batch_size": 64}, {RATE: 0.1}]
    varied = {RATE: [log(1e-3, 1e-1)], "model.name": [of("lenet5", "small")]}
    rate, name, size = axes(points, varied | {"batch_size": [integers(32, 128, 32)]})
    assert rate.places == pytest.approx([-2, -1])
    assert (rate.low, rate.high) == pytest.approx((-3, -1))
    assert rate.ticks == [
        (pytest.approx(n), text) for n, text in ((-3, "0.001"), (-2, "0.01"), (-1, "0.1"))
    ]
    assert name.ticks[1:] == [(0.0, "lenet5"), (1.0, "small")]
    assert name.ticks[0] == (name.places[1], "unset")
    assert name.places[0] == 1.0
    assert name.low < name.places[1] < name.start == -0.5
    assert [text for _, text in size.ticks] == ["unset", "32", "64", "96", "128"]
    assert (size.start, size.size, size.high) == (16, 32, 144)
    assert [rate.label, name.label, size.label] == ["learning_rate", "model.name", "batch_size"]


def test_a_definition_gives_back_the_distributions_that_a_space_has():
    def space(choose):
        choose.log(RATE, 1e-4, 1e-1)
        choose.integers("batch_size", 32, 100, 32)
        choose.of("model.args.x", None, True, "none", "a,b", "'\"", (1, ("2",)), 0.5)

    found = distributions_of({"space": json.loads(json.dumps(described(space)))})
    assert found[RATE] == [log(1e-4, 1e-1)]
    assert found["batch_size"] == [integers(32, 96, 32)]
    assert repr(found["model.args.x"]) == repr(
        [of(None, True, "none", "a,b", "'\"", (1, ("2",)), 0.5)]
    )
    assert distributions_of({"space": {"varied": {"no.such": ["log(1, 2)"]}}}) == {"no.such": []}


def test_values_without_a_known_distribution_are_a_range_or_choices():
    points = [{"a.x": 1.0, "b.x": True, "c": "t"}, {"a.x": 3.0, "b.x": 1, "c": float("nan")}]
    number, mixed, text = axes(points, {})
    assert (number.places, number.low, number.high) == ([1.0, 3.0], 1.0, 3.0)
    assert mixed.places == [0.0, 1.0], "to Python, 1 is True"
    assert text.ticks == [(0.0, "t"), (1.0, "nan")]
    assert [number.label, mixed.label] == ["a.x", "b.x"]


@pytest.mark.parametrize(
    ("distribution", "texts"),
    [
        (uniform(0.0, 0.2), ["0", "0.05", "0.1", "0.15", "0.2"]),
        (uniform(-3, 11), ["0", "5", "10"]),
        (log(1e-5, 1.0), ["1e-05", "0.0001", "0.001", "0.01", "0.1", "1"]),
        (log(0.01, 0.1), ["0.01", "0.02", "0.05", "0.1"]),
        (log(0.011, 0.012), ["0.011", "0.012"]),
    ],
)
def test_ticks_are_round_numbers_within_the_range(distribution, texts):
    [axis] = axes([{"path": distribution.low}], {"path": [distribution]})
    assert [text for _, text in axis.ticks] == texts
    known = [float(text) for text in texts]
    places = np.log10(known) if distribution.log else known
    np.testing.assert_allclose([place for place, _ in axis.ticks], places, atol=1e-12)


# The command.


def read(line):
    """The config that `experiments.train` makes of a command line."""
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "experiments.train"]
    return parse_experiment(flags.FlagValues(), words[2:], None)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**31), 2**31 - 1) | st.floats(-1e30, 1e30) | texts,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.from_regex("[a-z]{1,3}", fullmatch=True), inner, max_size=2)
    ),
    max_leaves=5,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.from_regex("[a-z]{1,5}", fullmatch=True), values, max_size=3))
def test_any_arguments_of_a_model_come_back_from_the_command_line(arguments):
    config = Experiment(model=Model("package.module:function", args=arguments))
    assert repr(read(command(config))) == repr(config)


@pytest.mark.parametrize(
    "config",
    [
        Experiment(seed=2**32 - 1, epochs=0.1 + 0.2, batch_size=7),
        Experiment(augment=Augment(parts=("crop(4, mode='edge')", "flip"), mix="mixup(0.2)")),
        Experiment(optimizer=Optimizer("sgd", 1e-7, decay=(), args={"momentum": 0.9})),
        Experiment(loss=Loss(class_weights=(1.0, 0.5), label_smoothing=-0.0)),
        Experiment(
            data=Data("fashion_mini", valid="train[90%:]"), start=Start(weights="a b.safetensors")
        ),
        Experiment(model=Model("lenet5", args={"some": "</script>", "t": "None", "u": "'q\""})),
    ],
)
def test_a_command_reproduces_the_config_to_the_digest(config):
    assert digest(read(command(config))) == digest(config)


def test_a_config_of_the_defaults_is_a_command_without_flags():
    assert command(read("python -m experiments.train")) == "python -m experiments.train"


def test_what_no_flag_spells_is_told_by_its_path():
    with pytest.raises(ConfigError, match=r"config\.test_time is 'None': no flag spells it"):
        command(Experiment(test_time="None"))


# What must not break it.


def hostile(choose):
    choose.of("model.args.text", HOSTILE, "a'b\"c")
    choose.log(RATE, 1e-4, 1e-1)


def hostile_record(folder):
    def outcome(claim):
        metrics(claim, ['{"step": 1, "epoch": 1, "split": "test", "loss": 1, "accuracy": 0.5}'])
        if claim.trial.number % 2:
            claim.fail(Outcome.FAILED, f"RuntimeError: {HOSTILE}")
        else:
            finish(claim, 0.5 + claim.trial.number / 100)

    points = [
        {"model.args.text": (HOSTILE, "a'b\"c")[n % 3 == 0], RATE: 0.01 * (1 + n / 24)}
        for n in range(24)
    ]

    def change(config):
        return config | {"name": HOSTILE, "model": config["model"] | {"name": HOSTILE}}

    record(folder, hostile, points, outcome, change=change)


def test_hostile_texts_end_no_script_and_stay_as_they_are(tmp_path):
    hostile_record(tmp_path)
    page = write_page(tmp_path)
    found = Scripts(page.read_text())
    assert len(found.scripts) == 3, "data, Plotly and our own"
    assert not set("<>&") & set(found.scripts[0])
    data = data_of(page)
    assert data["table"]["rows"][1]["causes"] == [f"RuntimeError: {HOSTILE}"]
    assert HOSTILE in {row["point"][0] for row in data["table"]["rows"]}
    assert data["title"] == HOSTILE
    assert data["best"]["point"]["model.args.text"] == HOSTILE
    assert f"--config.model.name={HOSTILE}" in shlex.split(data["best"]["command"])


def test_the_page_loads_nothing_and_may_not(tmp_path):
    record(tmp_path, rates, [], finish)
    tags = Scripts(write_page(tmp_path).read_text()).tags
    assert not [attrs for _, attrs in tags if {"src", "href", "action"} & attrs.keys()]
    [policy] = [attrs["content"] for tag, attrs in tags if attrs.get("http-equiv")]
    assert "default-src 'none'" in policy
    assert not re.search(r"https?:|\*", policy)


def test_the_newest_sweep_of_a_folder_is_shown_unless_another_is_asked_for(tmp_path):
    for epochs in (1, 2):
        base = Experiment(name=f"epochs_{epochs}", epochs=epochs)
        record(tmp_path, rates, [], finish, base=base)
    assert data_of(write_page(tmp_path))["title"] == "epochs_2"
    assert data_of(write_page(tmp_path, 1))["title"] == "epochs_1"
    with pytest.raises(UserError, match="holds no sweep 3: there are 1, 2"):
        write_page(tmp_path, 3)


def test_a_folder_without_a_sweep_is_refused_and_left_as_it_is(tmp_path):
    with pytest.raises(UserError, match=r"holds no sweep \(no sweep.db\)"):
        write_page(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_page_that_cannot_be_written_is_told_in_one_line(tmp_path):
    record(tmp_path, rates, [], finish)
    (tmp_path / "sweep.html").mkdir()
    with pytest.raises(UserError, match=r"sweep\.html.*: Is a directory: give another"):
        write_page(tmp_path)


# In a browser.


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What pages of sweeps that hold little, or much, tell in a browser; and one with errors."""
    folder = tmp_path_factory.mktemp("browser")

    def page_of(case, points, outcome):
        record(folder / case, rates, points, outcome)
        return write_page(folder / case)

    def fail(claim):
        claim.fail(Outcome.FAILED, "an error")

    def succeed(claim):
        metrics(claim, ['{"step": 1, "split": "test", "accuracy": 0.5}'])
        finish(claim, 0.5)

    hostile_record(folder / "hostile")
    wrong = folder / "wrong.html"
    wrong.write_text("<body><script>Promise.reject(Error('one'))</script><script>two()</script>")
    point = {RATE: 0.01, "model.args.width": 4}
    pages = {
        "none": page_of("none", [], succeed),
        "one": page_of("one", [point], succeed),
        "failed": page_of("failed", [point], fail),
        "hostile": write_page(folder / "hostile"),
    }
    script = """
      const ids = ["best", "importance-note", "table-note", "parallel"];
      return [...ids.map((id) => byId(id).textContent), document.body.innerText];
    """
    found = opened(folder, {wrong: "return 3", **dict.fromkeys(pages.values(), script)})
    return {"wrong": found[wrong], **{case: found[page] for case, page in pages.items()}}


@needs_browser
def test_the_browser_finds_errors_on_a_page_that_has_some(seen):
    console, told, _ = seen["wrong"]
    assert told == 3
    assert len(console) == 2
    assert any("Uncaught (in promise) Error: one" in line for line in console)
    assert any("two is not defined" in line for line in console)


@needs_browser
@pytest.mark.parametrize("case", ["none", "one", "failed", "hostile"])
def test_the_page_opens_without_an_error_whatever_the_sweep_holds(seen, case):
    console, told, requests = seen[case]
    assert requests == []
    best, importance, table, parallel, everything = told
    assert console == []
    assert "&lt;" not in everything
    assert (HOSTILE[:20] in parallel) == (case == "hostile")
    finished = {"none": 0, "one": 1, "failed": 0, "hostile": 12}[case]
    assert best == {"one": "test accuracy 0.5000", "hostile": "test accuracy 0.7200"}.get(
        case, "no result yet"
    )
    if case != "hostile":
        assert f"Too few to tell: {finished} point" in importance
    count = {"none": "0 trials", "hostile": "24 trials"}.get(case, "1 trial;")
    assert table.startswith(count)


@needs_browser
def test_the_pictures_show_the_record_and_the_table_sorts_and_follows_the_brush(tmp_path):
    points = [*drawn_points(40)]
    known = {json.dumps(point): value for point, value in points}

    def outcome(claim):
        value = known[json.dumps(claim.trial.point)]
        lines = [
            {
                "step": step,
                "epoch": step / 10,
                "split": "test",
                "accuracy": value * step,
                "loss": 1.0,
            }
            for step in (1, 2, 3)
        ]
        metrics(claim, map(json.dumps, lines))
        finish(claim, value)

    record(tmp_path, conditional, [point for point, _ in points], outcome)
    script = """
      const told = { lines: byId("curves").data.filter((each) => each.mode === "lines")
        .map((each) => [each.x, each.y, each.hovertext[0], each.line.dash]) };
      byId("across").value = data.axes.findIndex((axis) => axis.path === "batch_size");
      byId("up").value = data.axes.findIndex((axis) => axis.path === "model.name");
      drawMap();
      told.map = byId("map").data[0].z;
      told.bars = byId("importance").data[0].x;
      told.brushable = byId("parallel").data[0].dimensions.map((each) => each.label);
      const cells = (at) => [...byId("rows").rows].map((row) => row.cells[at].textContent);
      document.querySelectorAll("#head button")[2].click();
      told.up = cells(2);
      document.querySelectorAll("#head button")[2].click();
      told.down = cells(2);
      await Plotly.restyle("parallel", "dimensions[0].constraintrange", [[-2.5, -1.5]]);
      told.brushed = cells(0);
      byId("copy").click();
      told.selected = getSelection().toString();
      told.command = data.best.command;
      told.buttons = [...document.querySelectorAll(".modebar-btn")]
        .map((each) => each.dataset.title);
      told.width = [document.documentElement.scrollWidth, innerWidth];
      return told;
    """
    page = write_page(tmp_path)
    console, told, _ = opened(tmp_path, {page: script})[page]
    assert console == []
    for point, value in points:
        [line] = [each for each in told["lines"] if each[1][0] == pytest.approx(value)]
        assert line[0] == [0.1, 0.2, 0.3]
        assert line[1] == pytest.approx([value, value * 2, value * 3])
        assert f"{RATE}={point[RATE]:.4g}" in line[2]
        assert "seed 0" in line[2]
        assert "finished" in line[2]
        assert line[3] == "solid"
    # Rows small and lenet5; columns unset, which is that of lenet5, a gap, and 32 to 256.
    means = {
        size: np.mean([value for point, value in points if point.get("batch_size") == size])
        for size in (None, *{point["batch_size"] for point, _ in points if "batch_size" in point})
    }
    columns = [None, 0, *range(32, 257, 32)]
    small, lenet = told["map"]
    assert small == [
        pytest.approx(means[size]) if size and size in means else None for size in columns
    ]
    assert lenet == [pytest.approx(means[None]), *([None] * 9)]
    assert sum(told["bars"]) == pytest.approx(1)
    labels = ["learning_rate", "label_smoothing", "model.name", "batch_size", "test accuracy"]
    assert told["brushable"] == labels
    figures = sorted(value for _, value in points)
    assert [float(text) for text in told["up"]] == pytest.approx(figures, abs=1e-4)
    assert [float(text) for text in told["down"]] == pytest.approx(figures[::-1], abs=1e-4)
    kept = [n for n, (point, _) in enumerate(points) if -2.5 <= math.log10(point[RATE]) <= -1.5]
    assert sorted(map(int, told["brushed"])) == kept
    assert " ".join(told["selected"].split()) == told["command"]
    assert not [title for title in told["buttons"] if re.search("cloud|plotly", title, re.I)]
    assert told["width"][0] <= told["width"][1], "nothing sticks out"
