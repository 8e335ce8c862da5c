"""The whole road from a config to a trained run: repeated, stopped, killed, refused."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from convjax import judge, ops, run, tree
from convjax.checkpoint import Checkpoints
from convjax.combine import serial
from convjax.config import (
    Checkpoint,
    Data,
    Experiment,
    Loss,
    Model,
    Optimizer,
    UserError,
    from_dict,
    to_dict,
)
from convjax.config import (
    Stop as Stopping,
)
from convjax.data import Dataset
from convjax.interrupts import Interrupted
from convjax.layers import batch_norm, conv, dense, dropout
from convjax.ranges import PARALLEL
from convjax.runlog import RunLog
from convjax.session import Diverged
from convjax.training import feed

REPOSITORY = Path(__file__).parent.parent
CLOSING = r"test accuracy (0\.\d{4}|1\.0000) \((\d+)/(\d+)\), loss (\d+\.\d{4}|nan), \d+\.\d s, "


def pictures(split, data_dir):
    """Forty bright or dark pictures to train on, seventeen to choose by, and thirteen to test."""
    sizes = {"train": 40, "test": 13, "valid": 17}
    if split not in sizes:
        raise ValueError(f"there is no split {split!r}")
    size = sizes[split]
    draw = np.random.default_rng(size)
    labels = draw.integers(0, 3, size).astype(np.int32)
    light = labels[:, None, None, None] * 60 + draw.integers(0, 100, (size, 6, 6, 1))
    if split == "train":
        light = light[CHANGED["left_out"] :] + CHANGED["light"]
        labels = labels[CHANGED["left_out"] :]
    return Dataset(light.astype(np.uint8), labels, ("dark", "grey", "light"))


CHANGED = {"left_out": 0, "light": 0}  # what becomes of the data while a run is away


def tiny(classes, width=3):
    return serial(
        conv(width, 3, bias=False),
        batch_norm(),
        ops.relu,
        dropout(0.2),
        ops.global_avg_pool,
        dense(classes),
    )


def flat(classes):
    """Forgets to forget the image's height and width."""
    return serial(conv(classes, 3))


def deep(classes):
    """Wants larger images."""
    return serial(conv(4, 7, padding="VALID"), ops.flatten, dense(classes))


def experiment(**changes):
    """Two epochs of eight steps of five pictures."""
    config = Experiment(
        name="tiny",
        epochs=2,
        batch_size=5,
        eval_batch_size=6,
        log_every_steps=3,
        model=Model("test_run:tiny"),
        data=Data("test_run:pictures"),
        optimizer=Optimizer("sgd", 0.1, 0.01, warmup_epochs=0.25, args={"momentum": 0.9}),
        loss=Loss(label_smoothing=0.1),
        checkpoint=Checkpoint(every_steps=5),
    )
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def timeless(log):
    """The lines of the metrics without what differs from run to run."""
    return [
        {key: value for key, value in line.items() if key not in ("seconds", "images_per_second")}
        for line in log.metrics()
    ]


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
    yield chosen
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was left alone."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    line = run.train(experiment(), folder, out=io.StringIO())
    return RunLog(folder), line


def test_a_finished_run_tells_all_about_itself(finished):
    log, line = finished
    assert re.fullmatch(CLOSING + re.escape(str(log.folder)), line)
    assert json.loads(log.config_file.read_text()) == to_dict(experiment())
    assert from_dict(json.loads(log.config_file.read_text())) == experiment()
    record = log.record()
    assert (record["status"], record["error"], record["resumed"]) == ("finished", None, [])
    assert record["start"] <= record["end"]
    assert record["classes"] == ["dark", "grey", "light"]
    assert record["final"]["count"] == 13
    assert re.fullmatch("[0-9a-f]{64}", record["digest"])
    lines = log.metrics()
    order = [(each["split"], each["step"]) for each in lines]
    trained = [("train", step) for step in (3, 6, 9, 12, 15, 16)]
    assert sorted(order) == sorted([*trained, ("test", 8), ("test", 16)])
    assert [step for _, step in order] == sorted(step for _, step in order)
    assert [each["count"] for each in lines if each["split"] == "train"] == [15] * 5 + [5]
    assert lines[-1] | {"split": "test"} == record["final"] | {
        key: lines[-1][key] for key in ("seconds", "images_per_second")
    }
    assert sorted(each.name for each in log.checkpoints.iterdir() if each.is_dir()) == [
        "10",
        "15",
        "16",
    ]


def test_a_run_tells_once_what_compiling_took_and_notes_it(tmp_path):
    out = io.StringIO()
    run.train(experiment(), tmp_path, out=out)
    compiled = RunLog(tmp_path).record()["compiled"]
    assert list(compiled) == ["train_step", "evaluation_step"]
    told = out.getvalue().splitlines()[:2]
    for line, (name, about) in zip(told, compiled.items(), strict=True):
        where = ", from the cache" if about["from_cache"] else ""
        expected = f"compiled the {name.replace('_', ' ')} in {about['seconds']:.1f} s{where}"
        assert line == expected
        assert 0 < about["seconds"] < 60
    assert out.getvalue().count("compiled the") == 2


def test_a_run_by_programs_from_the_cache_is_the_same_to_the_bit(finished, tmp_path):
    digests = []
    for name, kept in (("cold", False), ("warm", True)):
        jax.clear_caches()
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "programs"))
        compilation_cache.reset_cache()
        run.train(experiment(), tmp_path / name, out=io.StringIO())
        record = RunLog(tmp_path / name).record()
        assert [each["from_cache"] for each in record["compiled"].values()] == [kept, kept]
        digests.append(record["digest"])
    assert digests == [finished[0].record()["digest"]] * 2


def test_the_logged_learning_rate_is_that_of_warm_up_and_cosine(finished):
    rates = {
        each["step"]: each["learning_rate"]
        for each in finished[0].metrics()
        if "learning_rate" in each
    }
    for step, rate in rates.items():  # Warm-up over 2 of 16 steps; the rate of the last step taken.
        expected = 0.1 * (1 + np.cos(np.pi * (step - 1 - 2) / 14)) / 2
        np.testing.assert_allclose(rate, expected, rtol=1e-4, atol=1e-7)


def test_the_mean_and_deviation_of_the_train_split_are_kept(finished):
    pixels = pictures("train", None).images / 255
    found = finished[0].record()["pixels"]
    np.testing.assert_allclose(found["mean"], [pixels.mean()], rtol=1e-6)
    np.testing.assert_allclose(found["std"], [pixels.std()], rtol=1e-6)


def test_an_evaluation_of_the_checkpoint_closes_with_the_same_result(finished):
    log, line = finished
    again = run.evaluate(log.folder)
    assert re.fullmatch(CLOSING + re.escape(str(log.folder)), again)
    assert again.split(", ")[:2] == line.split(", ")[:2]
    assert run.evaluate(log.folder, "train").startswith("train accuracy ")


def test_the_digest_is_that_of_the_checkpoint(finished):
    log, _ = finished
    with Checkpoints(log.checkpoints) as checkpoints:
        net = tiny(3)
        spec = jax.ShapeDtypeStruct((1, 6, 6, 1), np.float32)
        params, state = jax.eval_shape(net.init, jax.random.key(0), spec)
        like = {"params": params, "state": state}
        found, _ = checkpoints.restore(like, drop=("opt/*", "step", "key", "watch/*"))
    assert tree.digest(found) == log.record()["digest"]


def test_the_same_config_gives_the_same_run_to_the_bit(finished, tmp_path):
    run.train(experiment(), tmp_path, out=io.StringIO())
    assert RunLog(tmp_path).record()["digest"] == finished[0].record()["digest"]
    assert timeless(RunLog(tmp_path)) == timeless(finished[0])


def test_another_seed_gives_another_run(finished, tmp_path):
    run.train(experiment(seed=2**32 - 1), tmp_path, out=io.StringIO())
    assert RunLog(tmp_path).record()["digest"] != finished[0].record()["digest"]


def test_a_finished_run_is_not_trained_again(finished, monkeypatch):
    log, line = finished
    monkeypatch.setattr(run, "assemble", None)
    before = log.run_file.read_bytes()
    assert run.train(experiment(), log.folder) == line
    assert log.run_file.read_bytes() == before


class Stop(Exception):
    """What stops a run in these tests."""


def stopping(monkeypatch, after, error):
    """Makes the next run end with that error in place of its step of that number."""
    steps = iter(range(1000))
    take = feed.batch_indices

    def batch_indices(*arguments):
        if next(steps) == after:
            raise error
        return take(*arguments)

    monkeypatch.setattr(feed, "batch_indices", batch_indices)


@pytest.mark.parametrize("stops", [(0,), (4,), (5,), (7, 3), (11,), (15,)])
def test_a_run_stopped_at_any_step_goes_on_as_though_it_had_not(
    finished, tmp_path, monkeypatch, stops
):
    out = io.StringIO()
    for stop in stops:
        with monkeypatch.context() as patch:
            stopping(patch, stop, Stop("here"))
            with pytest.raises(Stop):
                run.train(experiment(), tmp_path, out=out)
        record = RunLog(tmp_path).record()
        assert (record["status"], record["error"]) == ("failed", "Stop: here")
    run.train(experiment(), tmp_path, out=out)
    record = RunLog(tmp_path).record()
    assert record["digest"] == finished[0].record()["digest"]
    assert (record["status"], record["error"]) == ("finished", None)
    assert timeless(RunLog(tmp_path)) == timeless(finished[0])
    last = sum(stops) // 5 * 5 if len(stops) == 1 else 5
    assert f"going on at step {last} of 16" in out.getvalue() or last == 0


def test_an_interrupted_run_says_so(tmp_path, monkeypatch):
    stopping(monkeypatch, 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run.train(experiment(), tmp_path, out=io.StringIO())
    assert RunLog(tmp_path).record()["status"] == "interrupted"


def interrupting(monkeypatch, module, name, after):
    """Has the process send itself SIGTERM in that call of a function."""
    calls, function = iter(range(1000)), getattr(module, name)

    def call(*arguments, **keywords):
        if next(calls) == after:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments, **keywords)

    monkeypatch.setattr(module, name, call)


@pytest.mark.parametrize(
    ("module", "name", "after", "step"),
    [
        (feed, "batch_indices", 0, None),
        (feed, "batch_indices", 7, 7),
        (judge, "evaluate", 0, 8),
        (judge, "evaluate", 1, 16),
        (RunLog, "sync", 1, 10),  # which is in the middle of saving
        (RunLog, "log", 3, 9),
    ],
)
def test_a_signal_costs_nothing_wherever_it_comes(
    finished, tmp_path, monkeypatch, module, name, after, step
):
    interrupting(monkeypatch, module, name, after)
    with pytest.raises(Interrupted, match=r"SIGTERM: .*the same command goes on") as error:
        run.train(experiment(), tmp_path, out=io.StringIO())
    assert error.value.status == 143
    monkeypatch.undo()
    log = RunLog(tmp_path)
    assert log.record()["status"] == "interrupted"
    saved = [int(path.name) for path in log.checkpoints.iterdir()]
    assert max(saved, default=None) == step
    run.train(experiment(), tmp_path, out=io.StringIO())
    assert log.record()["digest"] == finished[0].record()["digest"]
    assert timeless(log) == timeless(finished[0])


def test_a_run_goes_on_with_another_config_when_it_is_told_to(tmp_path):
    run.train(experiment(), tmp_path, out=io.StringIO())
    out = io.StringIO()
    line = run.train(experiment(epochs=3), tmp_path, override=True, out=out)
    log = RunLog(tmp_path)
    assert "going on at step 16 of 24" in out.getvalue()
    assert json.loads(log.config_file.read_text()) == to_dict(experiment(epochs=3))
    assert log.metrics()[-1]["step"] == 24
    # From now on this is its config, though older checkpoints are of the other.
    shutil.rmtree(log.checkpoints / "24")
    log.note(status="running")
    assert run.train(experiment(epochs=3), tmp_path, out=io.StringIO())[:40] == line[:40]
    with pytest.raises(UserError, match="has taken 24 steps, and the config ends after 8"):
        run.train(experiment(epochs=1), tmp_path, override=True)
    assert json.loads(log.config_file.read_text())["epochs"] == 3


def test_a_run_may_be_told_another_config_and_the_first_one_again(tmp_path):
    """At each end the folder holds the config that it was trained by last, and its results."""
    configs = [experiment(), experiment(epochs=3), experiment(), experiment(epochs=3)]
    log = RunLog(tmp_path)
    for config in configs[:2]:
        run.train(config, tmp_path, override=True, out=io.StringIO())
    with pytest.raises(UserError, match="has taken 24 steps, and the config ends after 16"):
        run.train(configs[2], tmp_path, override=True, out=io.StringIO())
    assert json.loads(log.config_file.read_text()) == to_dict(configs[1])
    other = experiment(epochs=3)
    other.optimizer.weight_decay = 0.02
    for config in (other, configs[1], other):
        shutil.rmtree(log.checkpoints / "24")
        run.train(config, tmp_path, override=True, out=io.StringIO())
        assert json.loads(log.config_file.read_text()) == to_dict(config)
        assert log.record()["status"] == "finished"
    assert len(log.record()["configs"]) == 3


def test_a_finished_run_that_is_to_go_on_is_not_finished_before_it_is(tmp_path, monkeypatch):
    run.train(experiment(), tmp_path, out=io.StringIO())
    log = RunLog(tmp_path)
    for name in ("create", "cut"):
        with monkeypatch.context() as broken:
            broken.setattr(RunLog, name, lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run.train(experiment(epochs=3), tmp_path, override=True, out=io.StringIO())
        assert log.record()["status"] == "failed"
        assert not [key for key in log.record() if key.startswith("final")]


@pytest.mark.parametrize("loss", ["damaged", "missing"])
def test_a_run_of_which_no_good_checkpoint_is_left_does_not_begin_anew(tmp_path, loss):
    run.train(experiment(), tmp_path, out=io.StringIO())
    log = RunLog(tmp_path)
    log.note(status="running")
    lines = log.metrics_file.read_bytes()
    if loss == "missing":
        shutil.rmtree(log.checkpoints)
    else:
        for step in log.checkpoints.iterdir():
            (step / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"no good checkpoint is left in .* move .* away to begin"):
        run.train(experiment(), tmp_path, out=io.StringIO())
    assert log.metrics_file.read_bytes() == lines


def test_metrics_that_were_lost_are_told(finished, tmp_path, capsys):
    shutil.copytree(finished[0].folder, tmp_path, dirs_exist_ok=True)
    log = RunLog(tmp_path)
    log.note(status="running")
    lines = log.metrics_file.read_bytes().splitlines(keepends=True)
    log.metrics_file.write_bytes(b"".join(lines[:2]))
    run.train(experiment(), tmp_path, out=io.StringIO())
    assert (
        f"has 2 lines up to step 16, and had {len(lines)}: some are lost" in capsys.readouterr().err
    )


def test_a_run_that_another_process_works_on_is_left_alone(finished, tmp_path):
    shutil.copytree(finished[0].folder, tmp_path, dirs_exist_ok=True)
    RunLog(tmp_path).note(status="running")
    code = "import sys, time; from convjax.ownership import owned\nwith owned(sys.argv[1]):\n"
    code += "    print('mine', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, tmp_path]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        with pytest.raises(UserError, match=f"belongs to process {owner.pid} on "):
            run.train(experiment(), tmp_path, out=io.StringIO())
        owner.kill()
    assert RunLog(tmp_path).record()["status"] == "running"


def test_a_damaged_checkpoint_costs_steps_and_not_the_run(finished, tmp_path, capsys):
    shutil.copytree(finished[0].folder, tmp_path, dirs_exist_ok=True)
    log = RunLog(tmp_path)
    log.note(status="running", digest=None)
    newest = log.checkpoints / "16" / "state"
    largest = max(newest.rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 64
    largest.write_bytes(content)
    assert run.evaluate(tmp_path) != ""
    assert "is damaged and passed over" in capsys.readouterr().err
    out = io.StringIO()
    run.train(experiment(), tmp_path, out=out)
    assert "going on at step 15 of 16" in out.getvalue()
    assert "is damaged" in capsys.readouterr().err
    assert "it is damaged-16 now" in log.record()["damaged"][0]
    assert log.record()["digest"] == finished[0].record()["digest"]
    assert timeless(log) == timeless(finished[0])


def test_a_run_whose_data_have_changed_does_not_go_on(tmp_path, monkeypatch):
    interrupting(monkeypatch, feed, "batch_indices", 7)
    with pytest.raises(Interrupted):
        run.train(experiment(), tmp_path, out=io.StringIO())
    monkeypatch.undo()
    for left_out, light, changed in (
        (1, 0, "train had 40 images and has 39"),
        (0, 1, "the mean and deviation of the pixels of train are others"),
    ):
        monkeypatch.setitem(CHANGED, "left_out", left_out)
        monkeypatch.setitem(CHANGED, "light", light)
        with pytest.raises(UserError, match=f"changed since .* began: {changed}"):
            run.train(experiment(), tmp_path, out=io.StringIO())


def test_a_checkpoint_of_another_run_is_not_taken(finished, tmp_path):
    run.train(experiment(seed=7), tmp_path / "other", out=io.StringIO())
    shutil.copytree(finished[0].folder, tmp_path / "mine")
    log = RunLog(tmp_path / "mine")
    log.note(status="running")
    shutil.rmtree(log.checkpoints / "16")
    shutil.copytree(tmp_path / "other" / "checkpoints" / "16", log.checkpoints / "16")
    with pytest.raises(UserError, match=r"16 in .* is of a config that this run never had"):
        run.train(experiment(), log.folder, out=io.StringIO())


def test_a_run_stopped_before_it_was_declared_finished_is_declared_so(finished, tmp_path):
    run.train(experiment(), tmp_path, out=io.StringIO())
    log = RunLog(tmp_path)
    before = log.record()
    log.note(status="running", digest=None, final=None)
    run.train(experiment(), tmp_path, out=io.StringIO())
    assert log.record()["digest"] == before["digest"]
    assert log.record()["final"] == before["final"]
    assert timeless(log) == timeless(finished[0])


@pytest.mark.parametrize("name", sorted(set(PARALLEL) - {"jit"}))
def test_every_mapper_ends_where_jit_does(finished, tmp_path, name):
    """On eight devices; the batches are eight pictures, so that each device has one."""
    losses = []
    for parallel in ("jit", name):
        config = experiment(parallel=parallel, batch_size=8, epochs=0.6)
        run.train(config, tmp_path / parallel, out=io.StringIO())
        losses.append([each["loss"] for each in RunLog(tmp_path / parallel).metrics()])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_a_run_whose_numbers_are_not_finite_any_more_ends_as_diverged(tmp_path):
    config = experiment(stop=Stopping(bad_steps=4))
    config.optimizer = Optimizer("sgd", 1e38, schedule="constant")
    for _ in range(2):  # The same again ends the same way.
        with pytest.raises(Diverged) as error:
            run.train(config, tmp_path, out=io.StringIO())
        assert "4 steps in a row were skipped, the first is step 1" in str(error.value)
        assert re.search("where the batch statistic norm1/mean was not finite", str(error.value))
        assert f"nothing was saved yet in {tmp_path}" in str(error.value)
        assert RunLog(tmp_path).record()["status"] == "diverged"


def test_a_dry_run_prints_the_plan_and_makes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = io.StringIO()
    run.train(experiment(), dry_run=True, out=out)
    run.train(experiment(), tmp_path / "run", dry_run=True, out=out)
    text = out.getvalue()
    assert "plan: 16 steps, 2 epochs of 8 batches" in text
    assert "train: 40 images, 5 a batch, jit on 1 cpu" in text
    assert "test: 13 images in 3 batches of 6, every 8 steps and at the end" in text
    assert re.search(r"conv1 +conv 3x3 +6x6x3 +27 ", text)
    config = text[text.index("config: ") + len("config: ") : text.index("\n\nplan:")]
    assert json.loads(config) == to_dict(experiment())
    assert list(tmp_path.iterdir()) == []


def test_without_a_folder_each_run_gets_a_new_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = experiment(epochs=0.5)
    lines = [run.train(config, out=io.StringIO()) for _ in range(2)]
    folders = [line.split(", ")[-1] for line in lines]
    assert len(set(folders)) == 2
    for folder in folders:
        assert re.fullmatch(r"runs/tiny-\d{8}-\d{6}(-\d+)?", folder)
        assert RunLog(folder).record()["status"] == "finished"


def test_a_folder_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not a run and not empty"):
        run.train(experiment(), tmp_path)
    with pytest.raises(UserError, match="not a run and not empty"):
        run.train(experiment(), tmp_path / "thesis.tex")
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_of_another_config_is_left_alone_and_the_differences_are_listed(finished):
    log, _ = finished
    before = {each: each.read_bytes() for each in log.folder.rglob("*") if each.is_file()}
    other = experiment(epochs=3)
    other.optimizer.learning_rate = 0.2
    with pytest.raises(UserError) as error:
        run.train(other, log.folder)
    assert "epochs was 2.0, now 3.0" in str(error.value)
    assert "optimizer.learning_rate was 0.1, now 0.2" in str(error.value)
    assert before == {each: each.read_bytes() for each in log.folder.rglob("*") if each.is_file()}


def changed(path, value):
    config = experiment()
    *sections, name = path.split(".")
    place = config
    for section in sections:
        place = getattr(place, section)
    setattr(place, name, value)
    return config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("epochs", 0.0, "config.epochs is 0"),
        ("model.name", "smal", "config.model: .*'smal'.*did you mean 'small'"),
        ("model.args", {"widht": 3}, "config.model: .*'widht'.*did you mean 'width'"),
        ("model.name", "test_run:flat", r"float32\[2,6,6,3\] for images .* \[2,3\] is needed"),
        ("model.name", "test_run:deep", r"cannot take float32\[2,6,6,1\]: .*conv1 \(conv\)"),
        ("model.name", "math:sqrt", "'math:sqrt' does not take the keyword 'classes'"),
        ("model.args", {"classes": 5}, "config.model.args.classes is 5: leave it out"),
        ("model.args", {"width": -4}, "width must be a whole number of 1 or more, got -4"),
        ("data.name", "fashion_mino", "config.data: .*fashion_mini"),
        ("data.dir", "/there/is/none", "config.data: .*/there/is/none"),
        ("batch_size", 41, "config.batch_size: .*41 for 40 images"),
        ("parallel", "shard_map", "config.batch_size is 5: give a multiple of the 8 devices"),
        ("optimizer.name", "adamm", "config.optimizer.name is 'adamm': did you mean 'adam'"),
        ("optimizer.args", {"momentun": 0.9}, "'momentun'.*did you mean 'momentum'"),
        ("optimizer.args", {"momentum": "much"}, "optimizer.args.momentum is .much.: give"),
        (
            "optimizer.args",
            {"momentum": 0.9, "nesterov": 0.5},
            "optimizer.args are .*0.5.* not what",
        ),
        ("optimizer.decay", ("*/kernle",), r"config.optimizer.decay: (.|\n)*conv1/kernel"),
    ],
)
def test_a_mistake_is_told_before_anything_is_computed_or_written(tmp_path, path, value, message):
    with pytest.raises(UserError, match=message):
        run.train(changed(path, value), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_error_of_the_model_names_its_place_and_nothing_else(tmp_path):
    with pytest.raises(UserError) as error:
        run.train(changed("model.name", "test_run:deep"), tmp_path / "run")
    assert str(error.value).endswith("; in conv1 (conv), called with float32[2,6,6,1]")


def test_a_folder_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis.tex/run.* cannot be written .*another --workdir"):
        run.train(experiment(), tmp_path / "thesis.tex" / "run")


@pytest.mark.parametrize("text", ['{"status": ', "[]", "{}"])
def test_a_broken_record_is_named(finished, tmp_path, text):
    folder = tmp_path / "run"
    shutil.copytree(finished[0].folder, folder)
    (folder / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"run\.json (is not JSON|holds list|does not say)"):
        run.evaluate(folder)


def test_what_cannot_be_evaluated_says_why(finished, tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        run.evaluate(tmp_path / "nowhere")
    RunLog(tmp_path / "new").create(to_dict(experiment()))
    with pytest.raises(UserError, match="no checkpoint"):
        run.evaluate(tmp_path / "new")
    with pytest.raises(UserError, match=r"config\.data"):
        run.evaluate(finished[0].folder, "validation")


# -- As its own process ----------------------------------------------------------------------------


def start(*arguments, **variables):
    paths = (str(REPOSITORY), str(Path(__file__).parent))
    variables |= {"PYTHONPATH": os.pathsep.join(paths), "XLA_FLAGS": ""}
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )


def test_the_command_trains_on_the_bundled_data_and_evaluates(tmp_path):
    changes = ("model.args.width=4", "model.args.stages=1", "epochs=0.1", "batch_size=64")
    changes += ("optimizer.warmup_epochs=0",)
    flags = [f"--config.{change}" for change in changes]
    process = start("experiments.train", f"--workdir={tmp_path}/run", *flags)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    line = out.splitlines()[-1]
    found = re.fullmatch(CLOSING + re.escape(f"{tmp_path}/run"), line)
    assert found, out
    assert found[3] == "2000"
    assert "%|" not in errors  # The progress bar is silent where there is no terminal.
    process = start("experiments.evaluate", f"--workdir={tmp_path}/run")
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert out.splitlines()[-1].split(", ")[:2] == line.split(", ")[:2]


def test_a_killed_process_costs_nothing_but_the_steps_since_its_last_save(tmp_path, compiled_once):
    config = experiment(epochs=15, log_every_steps=5)
    programs = {name.upper(): str(value) for name, value in compiled_once.items()}
    page = tmp_path / "config.json"
    page.write_text(json.dumps(to_dict(config)))

    def command(folder):
        return start(
            *("experiments.train", f"--config={page}", "--trust"),
            f"--workdir={tmp_path / folder}",
            **programs,
        )

    killed = command("killed")
    log = RunLog(tmp_path / "killed")
    patience = time.monotonic() + 300
    while len(log.metrics()) < 8 and killed.poll() is None and time.monotonic() < patience:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert log.record()["status"] == "running"
    for folder in ("killed", "alone"):
        process = command(folder)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    alone = RunLog(tmp_path / "alone")
    assert log.record()["resumed"][0] > 0
    assert log.record()["digest"] == alone.record()["digest"]
    assert timeless(log) == timeless(alone)
