"""The report of a run: what training records for it, what it says, and how it opens."""

import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from browser import Scripts, needs_browser, opened
from jax.experimental.compilation_cache import compilation_cache

from convjax import ops, run, tree
from convjax.checkpoint import Checkpoints, shapes
from convjax.combine import serial
from convjax.config import Checkpoint, Data, Experiment, Model, Optimizer, Stop, UserError
from convjax.data import Dataset
from convjax.flags import guard
from convjax.insight.report import look
from convjax.insight.report.ending import try_report, try_report_apart
from convjax.insight.report.gather import gathered, labels
from convjax.insight.report.lines import curves, read_lines, spreads, thinned
from convjax.insight.report.page import page_of, write_report
from convjax.interrupts import Interrupted
from convjax.layer import fold
from convjax.layers import batch_norm, conv, dense, dropout, max_pool
from convjax.runlog import RunLog
from convjax.sitting import Diverged
from convjax.trained import trained as opened_run
from convjax.training import seen
from convjax.training.feed import Images, Split
from experiments import report as launcher

IMAGE, SCRIPT = "<img src=x onerror=alert(1)>", "</script ><script>alert(1)</script>"
RATE = 0.05


def pictures(split, data_dir):
    """Forty coloured pictures of three classes with hostile names, and twelve to test."""
    size = {"train": 40, "test": 12}[split]
    draw = np.random.default_rng(size)
    labels = (np.arange(size) % 3).astype(np.int32)
    images = draw.integers(0, 100, (size, 8, 8, 3))
    images[np.arange(size), :, :, labels] += 90
    return Dataset(images.astype(np.uint8), labels, (IMAGE, SCRIPT, "light"))


def net(classes):
    return serial(
        stem=serial(conv(4, 3), ops.relu, max_pool(2)),
        body=serial(conv(6, 3, bias=False), batch_norm(), ops.relu, dropout(0.2)),
        flatten=ops.flatten,
        head=dense(classes),
    )


def experiment(**changes):
    """Eight steps of plain gradient descent, saved and evaluated after every other one."""
    config = Experiment(
        name="tiny",
        epochs=1,
        batch_size=5,
        eval_batch_size=6,
        log_every_steps=1,
        eval_every_steps=2,
        model=Model("test_insight_report:net"),
        data=Data("test_insight_report:pictures"),
        optimizer=Optimizer("sgd", RATE, schedule="constant"),
        checkpoint=Checkpoint(every_steps=1, keep=20),
    )
    for name, value in changes.items():
        setattr(config, name, value)
    return config


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """The same few programs are run again and again here: JAX may keep them on disk."""
    chosen = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in chosen}
    for name, value in chosen.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, compiled_once):
    """A run that was left alone."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    run.train(experiment(), folder, out=io.StringIO())
    return RunLog(folder)


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of it, to be damaged."""
    return RunLog(shutil.copytree(trained.folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def weights(trained):
    """The parameters after each step by path, on the disk; at step 0 those that the seed says."""
    params, _ = net(3).init(fold(jax.random.key(0), "params"), jnp.zeros((5, 8, 8, 3)))
    found = [{path: np.asarray(leaf) for path, leaf in tree.leaves(params).items()}]
    with Checkpoints(trained.checkpoints, reads=True) as checkpoints:
        for step in range(1, 9):
            saved = shapes(checkpoints.manifest(step))
            wanted = {path: leaf for path, leaf in saved.items() if path.startswith("params/")}
            others = [path for path in saved if path not in wanted]
            leaves, _ = checkpoints.restore(wanted, step, drop=others)
            found.append({path.removeprefix("params/"): leaf for path, leaf in leaves.items()})
    return found


# What training records.


def test_the_norm_of_the_gradient_is_how_far_plain_descent_went_by_its_rate(trained, weights):
    lines = [line for line in trained.metrics() if line["split"] == "train"]
    assert [line["step"] for line in lines] == list(range(1, 9))
    for line in lines:
        before, after = weights[line["step"] - 1], weights[line["step"]]
        squares = sum(np.sum((before[path] - after[path]).astype(float) ** 2) for path in before)
        assert line["gradient_norm"] == pytest.approx(math.sqrt(squares) / RATE, rel=1e-3)


def test_weights_and_gradients_are_described_by_layer_at_evaluations(trained, weights):
    lines, torn = read_lines(trained.distributions_file)
    assert ([line["step"] for line in lines], torn) == ([0, 2, 4, 6, 8], 0)
    assert next(iter(lines[0]["leaves"])).startswith("stem/conv1/"), "in the order of the network"
    assert list(lines[0]["leaves"])[-1].startswith("head/")
    for line in lines:
        step, after = line["step"], weights[line["step"]]
        assert line["leaves"].keys() == after.keys()
        for path, leaf in after.items():
            row = line["leaves"][path]["weights"]
            expected = np.percentile(leaf.astype(float), [1, 7, 16, 31, 50, 69, 84, 93, 99])
            assert row[0] == pytest.approx(np.sqrt(np.mean(leaf.astype(float) ** 2)), rel=1e-3)
            assert row[1:] == pytest.approx(expected, rel=1e-3, abs=1e-6)
            if step == 0:
                assert "gradients" not in line["leaves"][path]
                continue
            grads = (weights[step - 1][path] - leaf).astype(float) / RATE
            norm, mean, root, most, zeros = line["leaves"][path]["gradients"]
            assert norm == pytest.approx(np.linalg.norm(grads), rel=2e-3, abs=1e-5)
            assert mean == pytest.approx(np.abs(grads).mean(), rel=2e-3, abs=1e-5)
            assert root == pytest.approx(np.sqrt((grads**2).mean()), rel=2e-3, abs=1e-5)
            assert most == pytest.approx(np.abs(grads).max(), rel=2e-3, abs=1e-5)
            assert zeros == pytest.approx((grads == 0).mean(), abs=0.02)


def test_what_is_recorded_changes_no_bit_of_the_training(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(seen, "show", lambda grads, factor: seen.none(grads))
    run.train(experiment(), tmp_path / "blind", out=io.StringIO())
    assert RunLog(tmp_path / "blind").record()["digest"] == trained.record()["digest"]


def test_many_steps_a_call_show_the_gradient_of_the_last_one(trained, tmp_path):
    config = experiment(steps_per_call=4, log_every_steps=4, eval_every_steps=4)
    config.checkpoint.every_steps = 4
    run.train(config, tmp_path / "four", out=io.StringIO())
    lines = [line for line in RunLog(tmp_path / "four").metrics() if line["split"] == "train"]
    one_by_one = [line for line in trained.metrics() if line["split"] == "train"]
    assert [line["gradient_norm"] for line in lines] == pytest.approx(
        [one_by_one[3]["gradient_norm"], one_by_one[7]["gradient_norm"]], rel=1e-4
    )


def test_a_run_that_died_and_goes_on_records_what_it_would_have_recorded(trained, tmp_path):
    class Died(Exception):
        pass

    def report(step, results):
        if step == 6:
            raise Died

    with pytest.raises(Died):
        run.train(experiment(), tmp_path / "run", out=io.StringIO(), report=report)
    log = RunLog(tmp_path / "run")
    with open(log.distributions_file, "a") as file:
        file.write('{"step": 7, "ep')
    assert read_lines(log.distributions_file)[1] == 1
    run.train(experiment(), tmp_path / "run", out=io.StringIO())
    assert log.distributions_file.read_bytes() == trained.distributions_file.read_bytes()
    norms = [[line.get("gradient_norm") for line in each.metrics()] for each in (log, trained)]
    assert norms[0] == norms[1]


def test_distributions_that_cannot_be_read_or_written_stop_no_run(tmp_path, capsys):
    line = {"step": 4, "epoch": 1.0, "leaves": {}}
    log = RunLog(tmp_path)
    log.distributions_file.write_text(f'{json.dumps(line)}\nno line\n{{"step": 9}}\n')
    log.cut(4)
    assert log.distributions_file.read_text() == json.dumps(line) + "\n"
    assert "distributions.jsonl: 1 line cannot be read" in capsys.readouterr().err
    log.distributions_file.unlink()
    log.distributions_file.mkdir()
    log.beginning_file.mkdir()
    for _ in range(2):
        log.log_distributions(line)
        log.note_beginning({"conv1.kernel": np.zeros(2)})
        log.cut(4)
        log.sync()
    told = capsys.readouterr().err.splitlines()
    assert [text.partition(" cannot be written")[0] for text in told] == [
        f"warning: {log.distributions_file}",
        f"warning: {log.beginning_file}",
    ]


def test_the_first_convolution_is_kept_as_it_was_before_training(trained, weights):
    with np.load(trained.beginning_file) as kept:
        [name] = kept.files
        assert name == "stem.conv1.kernel"
        np.testing.assert_array_equal(kept[name], weights[0]["stem/conv1/kernel"])


# What it says.


def test_curves_are_the_lines_and_what_is_torn_or_not_finite_is_left_out(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(
        '{"step": 5, "epoch": 0.5, "split": "train", "loss": 2.0, "gradient_norm": 3.5}\n'
        '{"step": 10, "epoch": 1.0, "split": "test", "loss": NaN, "accuracy": 0.4}\n'
        '{"step": 10, "epoch": 1.0, "split": "test_views", "accuracy": 0.5, "final": true}\n'
        '["step"]\n{"step": "ten", "split": "test"}\n{"step": 20, "spl'
    )
    lines, torn = read_lines(file)
    assert torn == 3
    found = curves(lines)
    assert list(found) == ["train", "test"]
    assert (found["train"]["step"], found["train"]["gradient_norm"]) == ([5], [3.5])
    assert (found["test"]["loss"], found["test"]["accuracy"]) == ([None], [0.4])
    assert read_lines(tmp_path / "none.jsonl") == ([], 0)


def test_many_lines_are_thinned_out_evenly_with_both_ends():
    kept = thinned(range(5000), 100)
    assert (len(kept), kept[0], kept[-1]) == (100, 0, 4999)
    assert max(np.diff(kept)) <= 51
    found = spreads([{"step": n, "leaves": {"a": {"weights": [n]}}} for n in range(1000)])
    assert (len(found["step"]), found["leaves"]["a"]["weights"][-1]) == (200, [999])


def test_a_report_tells_result_config_cost_and_environment(trained):
    found = gathered(trained.folder)
    record = trained.record()
    assert found["status"] == "finished"
    assert found["result"]["accuracy"] == record["final"]["accuracy"]
    differs = {each["path"]: each["value"] for each in found["differs"]}
    assert differs["optimizer.name"] == "sgd"
    assert differs["epochs"] == "1.0"
    assert "seed" not in differs
    assert found["config"]["seed"] == "0"
    cost = dict(found["cost"])
    # Kernels 3*3*3*4 and 3*3*4*6, biases 4, norms 12, and 96*3 + 3 of the head.
    assert cost["parameters"] == f"{108 + 4 + 216 + 12 + 291:,}"
    assert cost["multiply-adds an image"] == f"{64 * 108 + 16 * 216 + 288:,}"
    environment = dict(found["environment"])
    assert environment["jax"] == jax.__version__
    assert environment["started"] == record["start"]
    assert found["left_out"] == []


def test_what_the_network_takes_for_what_is_counted_from_its_own_logits(trained):
    found = gathered(trained.folder)["seen"]
    model = opened_run(trained.folder)
    test = pictures("test", None)
    logits = np.asarray(model.logits(test.images))
    matrix = np.zeros((3, 3), int)
    np.add.at(matrix, (test.labels, logits.argmax(1)), 1)
    assert found["confusion"] == matrix.tolist()
    assert found["correct"] == np.trace(matrix) == trained.record()["final"]["correct"]
    wrong = [n for n in range(12) if logits[n].argmax() != test.labels[n]]
    assert {each["number"] for each in found["mistakes"]} == set(wrong)
    assert len(found["features"]["before"]) == len(found["features"]["now"]) == 4
    assert [(each["path"], each["shape"]) for each in found["stages"]] == [
        ("stem/conv1", [8, 8, 4]),
        ("stem/relu1", [8, 8, 4]),
        ("body/dropout1", [4, 4, 6]),
    ]


def test_many_images_are_spread_evenly_over_a_split():
    images = np.arange(30, dtype=np.uint8).reshape(30, 1, 1, 1)
    split = Split(Images(images, np.arange(30, dtype=np.int32)), ("a",) * 30)
    few = look.chosen(split, 10)
    assert isinstance(few.source, Images)
    assert few.source.labels.tolist() == list(range(0, 30, 3))
    assert look.images_of(few, [9, 0]).ravel().tolist() == [27, 0]
    assert look.chosen(split, 30) is split


def test_a_run_without_its_data_shows_all_but_what_needs_images(copied):
    text = copied.config_file.read_text()
    copied.config_file.write_text(text.replace("test_insight_report:pictures", "fake:8x8x3/3/40x"))
    found = gathered(copied.folder)
    assert found["seen"] is None
    assert any("fake:8x8x3/3/40x" in each for each in found["left_out"])
    assert found["curves"]["test"]["step"] == [2, 4, 6, 8]
    assert IMAGE not in page_of([copied.folder])


def test_a_run_that_has_just_begun_or_was_trained_before_this_can_be_reported(copied):
    for name in ("metrics.jsonl", "distributions.jsonl", "run.json", "beginning.npz"):
        (copied.folder / name).unlink()
    shutil.rmtree(copied.checkpoints)
    found = gathered(copied.folder)
    assert (found["status"], found["result"], found["curves"]) == ("unknown", None, {})
    assert "no evaluation yet</p>" in page_of([copied.folder])
    copied.note(status="diverged")
    assert "no evaluation</p>" in page_of([copied.folder], looks=False)


def test_a_torn_file_of_the_first_features_is_as_none(copied):
    content = copied.beginning_file.read_bytes()
    copied.beginning_file.write_bytes(content[: len(content) // 2])
    found = gathered(copied.folder)["seen"]["features"]
    assert (found["before"], len(found["now"])) == (None, 4)


def test_runs_are_called_by_what_tells_them_apart(tmp_path):
    folders = [tmp_path / each for each in ("a/run", "b/run", "b/other")]
    assert labels(folders) == ["a/run", "b/run", "b/other"]


# How it is made.


def test_a_report_is_made_at_the_end_and_its_failure_fails_no_run(trained, copied, capsys):
    told = io.StringIO()
    run.train(experiment(), copied.folder, out=told, page=True)
    assert told.getvalue() == "", "it was finished already"
    try_report(copied.folder, told)
    assert told.getvalue() == f"report: {copied.folder / 'report.html'}\n"
    copied.config_file.write_text("{")
    try_report(copied.folder, told)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: there is no report of {copied.folder}: ")


REPO = Path(__file__).resolve().parent.parent


def test_a_run_that_diverges_ends_with_its_page_and_its_error(tmp_path):
    told = io.StringIO()
    config = experiment(stop=Stop(bad_steps=3))
    config.optimizer = Optimizer("sgd", 1e38, schedule="constant")
    with pytest.raises(Diverged, match="3 steps in a row were skipped"):
        run.train(config, tmp_path, out=told, page=True)
    assert told.getvalue().endswith(f"report: {tmp_path / 'report.html'}\n")
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "<li>diverged</li>" in text
    assert "3 steps in a row were skipped" in text


def test_a_run_that_diverges_ends_with_its_error_though_its_page_is_not_waited_for(
    tmp_path, monkeypatch
):
    def interrupted(*given, **how):
        raise KeyboardInterrupt

    monkeypatch.setattr("convjax.insight.report.page.write_report", interrupted)
    config = experiment(stop=Stop(bad_steps=3))
    config.optimizer = Optimizer("sgd", 1e38, schedule="constant")
    with pytest.raises(Diverged, match="3 steps in a row were skipped"):
        run.train(config, tmp_path, out=io.StringIO(), page=True)
    assert not (tmp_path / "report.html").exists()


def test_an_interrupted_run_does_not_wait_for_its_page_and_says_how_to_make_it(tmp_path):
    told = io.StringIO()

    def interrupt(step, results):
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        run.train(experiment(), tmp_path, out=told, page=True, report=interrupt)
    command = f"python -m experiments.report --workdir={tmp_path}"
    assert told.getvalue().endswith(f"for its page: {command}\n")
    assert not (tmp_path / "report.html").exists()


def test_a_page_that_takes_too_long_is_made_without_the_network(copied):
    told = io.StringIO()
    try_report_apart(copied.folder, told, seconds=0.01)
    first, second = told.getvalue().splitlines()
    assert first == f"report: {copied.folder / 'report.html'}"
    assert "(more than 0.01 s)" in second
    assert second.endswith(f": python -m experiments.report --workdir={copied.folder}")
    text = (copied.folder / "report.html").read_text("utf-8")
    assert "What is taken for what" not in text
    assert "Curves" in text


def test_a_page_that_cannot_be_made_apart_says_why_and_knows_no_cluster(copied, monkeypatch):
    asked = {}

    def failing(command, env, **how):
        asked.update(env)
        return subprocess.CompletedProcess(command, 1, "", "Traceback\nMemoryError: too little\n")

    monkeypatch.setattr(subprocess, "run", failing)
    for name in (
        "JAX_PROCESS_ID",
        "JAX_COORDINATOR_ADDRESS",
        "SLURM_PROCID",
        "OMPI_COMM_WORLD_SIZE",
    ):
        monkeypatch.setenv(name, "1")
    told = io.StringIO()
    try_report_apart(copied.folder, told)
    assert not [name for name in asked if re.match("JAX_PROCESS|JAX_COORD|SLURM|OMPI", name)]
    assert (asked["JAX_PLATFORMS"], asked["PATH"]) == ("cpu", os.environ["PATH"])
    assert "is not in it (MemoryError: too little): python" in told.getvalue()
    assert (copied.folder / "report.html").exists()


def test_a_process_that_makes_a_page_ends_with_the_one_that_asked_for_it(copied):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    command = [sys.executable, "-m", "convjax.insight.report.ending", copied.folder, str(gone.pid)]
    done = subprocess.run(command, check=False, cwd=REPO, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    assert not (copied.folder / "report.html").exists()


def test_what_cannot_be_reported_is_refused_in_one_line(trained, tmp_path, capsys):
    def refused(*words):
        assert guard(launcher.main, ["report", *words]) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error.count("\n") == 1
        return error

    first = f"--workdir={trained.folder}"
    assert "--workdir is missing" in refused()
    assert "holds no run" in refused(f"--workdir={tmp_path}")
    assert "is given twice" in refused(first, f"{first}/.", f"--out={tmp_path / 'x.html'}")
    assert "--out is missing" in refused(first, f"--workdir={trained.folder / '..' / 'first'}")
    assert "does not exist" in refused(first, f"--out={tmp_path / 'no' / 'x.html'}")
    assert "is a folder" in refused(first, f"--out={tmp_path}")


def test_metrics_that_cannot_be_opened_are_told_by_their_path(copied):
    copied.metrics_file.unlink()
    copied.metrics_file.mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be read: Is a directory"):
        write_report([copied.folder])


def test_hostile_texts_end_no_script_and_become_no_element(trained, copied):
    record = json.loads(copied.run_file.read_text())
    record |= {"status": IMAGE, "error": SCRIPT, "machine": IMAGE}
    copied.run_file.write_text(json.dumps(record))
    text = page_of([copied.folder])
    found = Scripts(text)
    assert IMAGE in json.loads(found.scripts[0])["runs"][0]["classes"]
    assert not [attrs for tag, attrs in found.tags if "onerror" in attrs]
    assert len([tag for tag, _ in found.tags if tag == "script"]) == 3
    assert all(
        attrs["src"].startswith("data:image/png") for tag, attrs in found.tags if tag == "img"
    )


# How it opens.


@pytest.fixture(scope="module")
def pages(trained, tmp_path_factory):
    """The page of one run, and of it beside one that diverged."""
    folder = tmp_path_factory.mktemp("pages")
    other = RunLog(shutil.copytree(trained.folder, folder / "second"))
    record = json.loads(other.run_file.read_text())
    del record["final"]
    record |= {"status": "diverged", "error": f"diverged {IMAGE}"}
    other.run_file.write_text(json.dumps(record))
    one = write_report([trained.folder], folder / "one.html")
    two = write_report([trained.folder, other.folder], folder / "two.html")
    return folder, one, two


SCRIPT_OF_PAGE = """
  const charts = [...document.querySelectorAll(".js-plotly-plot")];
  const loss = document.querySelector("[data-metric=loss] .js-plotly-plot");
  const run = byId("run");
  if (run) { run.value = "1"; run.dispatchEvent(new Event("change")); }
  return {
    charts: charts.length,
    steps: loss.data.map((each) => [each.name, each.x.length]),
    matrix: document.querySelector(".confusion .js-plotly-plot, .confusion").data[0].z,
    width: [document.documentElement.scrollWidth, innerWidth],
    loaded: [...document.images].every((each) => each.naturalWidth > 0),
    handlers: document.querySelectorAll("[onerror]").length,
    text: document.body.innerText,
    back: getComputedStyle(document.body).backgroundColor,
    shown: [...document.querySelectorAll(".run")].map((each) => !each.hidden),
  };
"""


@needs_browser
@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_opens_on_a_phone_and_on_a_desk_by_day_and_by_night(pages, tmp_path, width, dark):
    _, one, two = pages
    found = opened(tmp_path, {one: SCRIPT_OF_PAGE, two: SCRIPT_OF_PAGE}, width=width, dark=dark)
    for page in (one, two):
        assert found[page].console == []
        assert found[page].requests == [], "to anywhere"
        told = found[page].told
        assert told["width"][0] <= told["width"][1] <= width, "nothing sticks out"
        assert told["loaded"]
        assert told["handlers"] == 0
        assert IMAGE in told["text"]
        assert told["back"] == ("rgb(16, 19, 23)" if dark else "rgb(244, 245, 247)")
    # Five curves, three charts of layers, a matrix.
    assert found[one].told["charts"] == 9
    assert found[one].told["steps"] == [["test", 4], ["train", 8]]
    matrix = np.array(found[one].told["matrix"])
    np.testing.assert_allclose(matrix.sum(1), 1)
    assert [name for name, _ in found[two].told["steps"]] == [
        *("first, test", "first, train", "second, test", "second, train")
    ]
    assert found[two].told["shown"] == [False, True]
