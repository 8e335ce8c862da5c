"""What a recipe adds to a run: averages, the best model, early ends, views, other starts."""

import io
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image
from test_run import Stop as Stopped
from test_run import experiment, pictures, stopping, timeless

from convjax import run, tree
from convjax.checkpoint import Checkpoints
from convjax.config import Augment, Average, Checkpoint, Data, Model, Norm, Start, Stop, UserError
from convjax.exchange.weights import save_weights
from convjax.runlog import RunLog
from convjax.saved import export

VALID = Data("test_run:pictures", train="train", valid="valid", test="test")


def train(folder, **changes):
    out = io.StringIO()
    run.train(experiment(**changes), folder, out=out)
    return RunLog(folder), out.getvalue()


def lines(log, split):
    return [line for line in log.metrics() if line["split"] == split]


def saved(log, patterns):
    with Checkpoints(log.checkpoints) as checkpoints:
        return checkpoints.read(patterns)


RECIPE = {
    "data": VALID,
    "augment": Augment(("crop(1)", "alternating_flip"), "mixup(0.2)"),
    "average": Average(0.9, reestimate=True),
    "checkpoint": Checkpoint(every_steps=5, best="loss"),
    "test_time": "flip",
    "eval_every_steps": 4,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "whole", **RECIPE)


def test_every_model_of_a_run_is_tested_and_reported_apart(whole):
    log, out = whole
    record = log.record()
    finals = {key for key in record if key.startswith("final")}
    models = ("", "_average", "_average_reestimated", "_best")
    assert finals == {f"final{name}{views}" for name in models for views in ("", "_views")}
    # The best model may be the last.
    different = finals - {"final_best", "final_best_views"}
    assert len({record[key]["loss"] for key in different}) == len(different)
    for name in ("valid", "test", "valid_average", "test_average"):
        assert [line["step"] for line in lines(log, name)][:4] == [4, 8, 12, 16]
    assert "test best views accuracy" in out
    with open(log.config_file) as file:
        assert json.load(file)["average"]["decay"] == 0.9


def test_the_best_model_is_that_of_the_best_evaluation(whole):
    log, _ = whole
    best = min(lines(log, "valid"), key=lambda line: line["loss"])
    with Checkpoints(log.best) as checkpoints:
        assert checkpoints.newest() == best["step"]
    assert run.evaluate(log.folder, "valid", "best").startswith(
        f"valid best accuracy {best['accuracy']:.4f}"
    )


def test_an_average_is_evaluated_as_it_was(whole):
    log, _ = whole
    last = [line for line in lines(log, "test_average") if not line.get("final")][-1]
    found = run.evaluate(log.folder, "test", "average")
    assert f"accuracy {last['accuracy']:.4f}" in found
    assert f"loss {last['loss']:.4f}" in found


@pytest.mark.parametrize("stop", [7, 13])
def test_a_run_that_is_stopped_between_best_models_keeps_the_right_one(tmp_path, monkeypatch, stop):
    recipe = RECIPE | {"eval_every_steps": 1}
    expected, _ = train(tmp_path / "whole", **recipe)
    with monkeypatch.context() as patch:
        stopping(patch, stop, Stopped())
        with pytest.raises(Stopped):
            train(tmp_path / "stopped", **recipe)
    log, _ = train(tmp_path / "stopped", **recipe)
    assert timeless(log) == timeless(expected)
    kept = [path.name for path in log.best.iterdir() if path.is_dir()]
    assert kept == [path.name for path in expected.best.iterdir() if path.is_dir()]
    assert len(kept) == 1


@pytest.mark.parametrize("stop", [3, 6, 11, 15])
def test_a_recipe_that_was_stopped_goes_on_as_though_it_had_not(whole, tmp_path, monkeypatch, stop):
    with monkeypatch.context() as patch:
        stopping(patch, stop, Stopped())
        with pytest.raises(Stopped):
            train(tmp_path, **RECIPE)
    log, _ = train(tmp_path, **RECIPE)
    assert timeless(log) == timeless(whole[0])
    assert log.record()["digest"] == whole[0].record()["digest"]
    for name in ("final_best", "final_average_views"):
        assert log.record()[name] == whole[0].record()[name]


def test_a_run_that_ended_but_was_not_declared_so_tells_its_end_once(whole, tmp_path):
    log, _ = train(tmp_path, **RECIPE)
    log.note(status="running", final=None)
    train(tmp_path, **RECIPE)
    assert timeless(log) == timeless(whole[0])


def test_training_ends_when_evaluations_get_no_better(tmp_path):
    changes = {"data": VALID, "eval_every_steps": 2, "stop": Stop(2, "loss", min_delta=10.0)}
    log, _ = train(tmp_path, **changes)
    # The first is the best, by ten at least, and two more are waited for.
    assert [line["step"] for line in lines(log, "valid")] == [2, 4, 6]
    assert log.record()["final"]["step"] == 6
    assert lines(log, "train")[-1]["step"] == 6
    before = log.record()["digest"]
    log.note(status="running", final=None)
    train(tmp_path, **changes)  # It was to end there, and does not train on.
    assert log.record()["digest"] == before
    assert log.record()["final"]["step"] == 6


def test_many_steps_a_call_end_where_single_steps_do(tmp_path):
    one, _ = train(tmp_path / "one", data=VALID, augment=RECIPE["augment"])
    many, _ = train(tmp_path / "many", data=VALID, augment=RECIPE["augment"], steps_per_call=3)
    for a, b in zip(one.metrics(), many.metrics(), strict=True):
        assert (a["step"], a["split"], a["count"]) == (b["step"], b["split"], b["count"])
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)


def test_the_weights_that_look_ahead_are_evaluated(tmp_path):
    config = experiment()
    config.optimizer.lookahead_steps = 5
    log, _ = train(tmp_path, optimizer=config.optimizer)
    slow = saved(log, "opt/*/slow/*")
    fast = saved(log, "params/*")
    assert len(slow) == len(fast)
    ends = {path.partition("/slow/")[2]: leaf for path, leaf in slow.items()}
    assert any((ends[path.removeprefix("params/")] != leaf).any() for path, leaf in fast.items())
    final = log.record()["final"]
    assert f"loss {final['loss']:.4f}" in run.evaluate(log.folder)


# -- Fine-tuning -----------------------------------------------------------------------------------


def wider(classes):
    from test_run import tiny

    return tiny(classes + 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "trained", epochs=1)[0]


def first_leaves(log):
    """What a run had after its first step, with a learning rate of 0: what it started from."""
    return saved(log, ("params/*", "state/*"))


def still():
    config = experiment()
    config.optimizer.learning_rate = config.optimizer.warmup_epochs = 0.0
    return {"optimizer": config.optimizer, "epochs": 0.1, "norm": Norm(("*",))}


def test_a_run_starts_from_the_parameters_of_another(trained, tmp_path):
    log, _ = train(tmp_path, start=Start(str(trained.folder)), **still())
    for path, leaf in first_leaves(log).items():
        np.testing.assert_array_equal(leaf, saved(trained, path)[path], err_msg=path)


def test_the_head_of_another_run_is_replaced(trained, tmp_path):
    start = Start(str(trained.folder), fresh=("dense1/*",))
    log, _ = train(tmp_path / "tuned", start=start, **still())
    scratch, _ = train(tmp_path / "scratch", **still())
    for path, leaf in first_leaves(log).items():
        source = scratch if path.startswith("params/dense1/") else trained
        np.testing.assert_array_equal(leaf, saved(source, path)[path], err_msg=path)


def test_weights_that_look_ahead_start_from_the_other_run_too(trained, tmp_path):
    settings = still()
    settings["optimizer"].lookahead_steps = 1
    log, _ = train(tmp_path, start=Start(str(trained.folder)), **settings)
    for path, leaf in saved(log, "opt/*/slow/*").items():
        source = f"params/{path.partition('/slow/')[2]}"
        np.testing.assert_array_equal(leaf, saved(trained, source)[source], err_msg=path)


@pytest.mark.parametrize(
    ("start", "model", "message"),
    [
        (Start("nowhere"), "tiny", r"config\.start\.run: nowhere has no checkpoints yet"),
        (Start("", ("haed/*",)), "tiny", r"config\.start\.fresh 'haed/\*' matches nothing"),
        (Start("", average=True), "tiny", r"config\.start\.run: .* followed no av"),
        (Start(""), "other", r"another network: conv1/kernel is float32\[3, 3, 1, 3\] there and "),
    ],
)
def test_a_start_that_cannot_be_is_told_before_the_first_step(
    trained, tmp_path, start, model, message
):
    start.run = start.run or str(trained.folder)
    with pytest.raises(UserError, match=message):
        train(
            tmp_path,
            start=start,
            model=Model("test_run:tiny", {"width": 5 if model == "other" else 3}),
        )
    assert not any(tmp_path.iterdir())


def test_a_run_starts_from_what_another_exported(trained, tmp_path):
    file = tmp_path / "trained.safetensors"
    export(trained.folder, file)
    log, _ = train(tmp_path / "tuned", start=Start(weights=str(file)), **still())
    assert first_leaves(log).keys() == first_leaves(trained).keys()
    for path, leaf in first_leaves(log).items():
        np.testing.assert_array_equal(leaf, saved(trained, path)[path], err_msg=path)


def test_a_file_of_weights_gives_all_but_the_head_and_what_it_lacks(trained, tmp_path):
    file = tmp_path / "parameters.safetensors"
    save_weights(file, saved(trained, "params/*"))
    start = Start(weights=str(file), fresh=("dense1/*",))
    log, _ = train(tmp_path / "tuned", start=start, **still())
    scratch, _ = train(tmp_path / "scratch", **still())
    for path, leaf in first_leaves(log).items():
        drawn = path.startswith(("params/dense1/", "state/"))
        source = scratch if drawn else trained
        np.testing.assert_array_equal(leaf, saved(source, path)[path], err_msg=path)


def test_a_file_of_weights_that_does_not_fit_is_told_before_anything_is_written(trained, tmp_path):
    file = tmp_path / "trained.safetensors"
    export(trained.folder, file)
    model = Model("test_run:tiny", {"width": 5})
    with pytest.raises(
        UserError, match=r"start\.weights is '.*', another network: conv1/kernel is"
    ):
        train(tmp_path / "run", start=Start(weights=str(file)), model=model)
    with pytest.raises(
        UserError, match=r"config\.start\.weights: nowhere\.safetensors does not exist"
    ):
        train(tmp_path / "run", start=Start(weights="nowhere.safetensors"))
    assert not (tmp_path / "run").exists()


def brighter(params, images):
    return params | {
        "dense1": params["dense1"] | {"bias": images.mean() + params["dense1"]["bias"]}
    }


def test_first_parameters_may_be_made_of_training_images(tmp_path):
    settings = still()
    log, _ = train(tmp_path / "made", start=Start(images="test_run_recipe:brighter"), **settings)
    plain, _ = train(tmp_path / "plain", **settings)
    path = "params/dense1/bias"
    # The mean of normalised images is 0: all forty are the sample.
    np.testing.assert_allclose(saved(log, path)[path], saved(plain, path)[path], atol=1e-5)
    with pytest.raises(UserError, match=r"config\.start\.images"):
        train(tmp_path / "wrong", start=Start(images="test_run_recipe:nothing"), **settings)


# -- Off the disk ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("images")
    for split in ("train", "test"):
        images, labels, classes = pictures(split, None)
        for number, (image, label) in enumerate(zip(images, labels)):
            file = place / split / classes[label] / f"{number:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(file)
    return str(place)


def test_a_run_off_the_disk_is_that_of_images_in_memory(folder, tmp_path):
    view = "whole(6, 6, channels=1)"
    in_memory = Data("image_folder:6x6x1", folder)
    on_disk = Data("image_folder", folder, view=view, eval_view=view)
    one, _ = train(tmp_path / "memory", data=in_memory)
    other, _ = train(tmp_path / "disk", data=on_disk)
    assert one.record()["digest"] == other.record()["digest"]
    assert timeless(one) == timeless(other)
    assert re.match("test accuracy", run.evaluate(other.folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"view": "random_crop(6)", "eval_view": "whole(6, 6)"},
            r"config\.data\.view: .*there is no",
        ),
        ({"view": "whole(6, 6)", "eval_view": "centre_crop(5)"}, "do not fit"),
        ({"view": "whole(6, 6, channels=1)", "eval_view": "centre_crop()"}, "missing a required"),
    ],
)
def test_a_view_that_cannot_be_is_told(folder, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(tmp_path, data=Data("image_folder", folder, **changes))


def test_precision_and_norms_of_a_run(tmp_path):
    log, _ = train(tmp_path, precision="float16", norm=Norm(ghost=5), accumulate=1)
    assert np.isfinite(log.record()["final"]["loss"])
    assert {"scale/scale", "scale/good_steps"} == set(saved(log, "scale/*"))
    run.evaluate(log.folder)
    with pytest.raises(UserError, match=r"config\.norm\.ghost is 2: it is to divide the 5 images"):
        train(tmp_path / "wrong", norm=Norm(ghost=2))
    with pytest.raises(UserError, match=r"config\.norm\.frozen: no norm of the network matches"):
        train(tmp_path / "wrong", norm=Norm(("batch9",)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": Data("test_run:pictures", valid="train")}, "has images of config.data.train"),
        (
            {"data": Data("fashion_mini", train="train[:90%]", valid="train[80%:]")},
            r"config\.data\.valid is 'train\[80%:\]'",
        ),
        ({"test_time": "flop"}, r"config\.test_time: there are no views 'flop'"),
        ({"test_time": "os:getcwd"}, r"config\.test_time"),
        ({"accumulate": 2}, r"config\.accumulate is 2: it is to divide the 5 images"),
    ],
)
def test_a_recipe_that_cannot_be_is_told_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(tmp_path, **changes)
    assert not any(tmp_path.iterdir())


def test_the_digest_is_that_of_what_was_saved(whole):
    log, _ = whole
    found = saved(log, ("params/*", "state/*"))
    nested: dict = {}
    for path, leaf in found.items():
        *parents, name = path.split("/")
        at = nested
        for parent in parents:
            at = at.setdefault(parent, {})
        at[name] = leaf
    assert tree.digest(jax.tree.map(np.asarray, nested)) == log.record()["digest"]
