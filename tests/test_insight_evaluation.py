"""The evaluation of a run from all sides: on any devices, in any batches, as the files have it."""

import dataclasses
import io
import json
import re
import shutil
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from PIL import Image

import convjax
from convjax import models, ops, run
from convjax.combine import identity, serial
from convjax.config import Data, Experiment, Model, Optimizer, UserError
from convjax.data import Dataset
from convjax.flags import guard
from convjax.insight.evaluation import evaluate as evaluation
from convjax.insight.evaluation import figures, neighbours
from convjax.insight.evaluation import text as evaluation_text
from convjax.insight.evaluation.evaluate import Wanted
from convjax.insight.evaluation.predictions import Predictor, last_layer, predictions
from convjax.layer import compose
from convjax.layers import batch_norm, conv, dense
from convjax.saved import saved_model
from convjax.trained import trained
from convjax.training.feed import Images
from experiments import evaluate

metrics: Any = sklearn.metrics  # It says nothing of types, and what is guessed is wrong.
CLASSES = (
    "dark",
    "grey",
    "light",
    "$\\frac{1$",
    "<b>",
    "a name that is longer than a line may be",
    "空",
)


def pictures(split, data_dir):
    """Pictures whose light tells their class, and so little else that there are mistakes."""
    sizes = {"train": 60, "test": 37, "valid": 30}
    if split not in sizes:
        raise ValueError(f"there is no split {split!r}")
    draw = np.random.default_rng(sizes[split])
    labels = draw.integers(0, len(CLASSES), sizes[split]).astype(np.int32)
    light = labels[:, None, None, None] * 20 + draw.integers(0, 100, (sizes[split], 8, 8, 3))
    return Dataset(light.astype(np.uint8), labels, CLASSES)


def tiny(classes):
    return serial(
        conv(4, 3, bias=False), batch_norm(), ops.relu, ops.global_avg_pool, dense(classes)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that has a valid split."""
    config = Experiment(
        epochs=4,
        batch_size=10,
        eval_batch_size=16,
        model=Model("test_insight_evaluation:tiny"),
        data=Data("test_insight_evaluation:pictures", valid="valid"),
        optimizer=Optimizer("sgd", 0.2),
    )
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    run.train(config, folder, out=io.StringIO())
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return trained(folder)


@pytest.fixture(scope="module")
def found(model):
    return predictions(model, features=True)


@pytest.fixture(scope="module")
def deep(folder, tmp_path_factory):
    """What `--features --corruptions` has told and written, in a copy of the run."""
    copy = shutil.copytree(folder, tmp_path_factory.mktemp("deep") / "run")
    out = io.StringIO()
    wanted = Wanted(features=True, corruptions="contrast,gaussian_noise")
    line = run.evaluate_deeply(copy, wanted, out=out)
    return copy, line, out.getvalue()


# -- A trained run ---------------------------------------------------------------------------------


def test_a_trained_run_has_what_its_checkpoint_has(folder, model):
    leaves = saved_model(folder)
    np.testing.assert_array_equal(model.params["dense1"]["kernel"], leaves["params/dense1/kernel"])
    np.testing.assert_array_equal(model.state["norm1"]["mean"], leaves["state/norm1/mean"])
    assert (model.classes, model.shape, model.which) == (CLASSES, (8, 8, 3), "newest")
    pixels = pictures("train", None).images / 255
    prepared = model.prepare(jnp.asarray(pictures("test", None).images))
    expected = (pictures("test", None).images / 255 - pixels.mean((0, 1, 2))) / pixels.std(
        (0, 1, 2)
    )
    np.testing.assert_allclose(prepared, expected, atol=1e-4)


def test_images_come_by_their_numbers(model):
    expected = pictures("valid", None).images[[4, 0, 29]]
    np.testing.assert_array_equal(model.images([4, 0, 29], "valid"), expected)
    assert model.images([]).shape == (0, 8, 8, 3)


def test_images_of_the_disk_are_those_of_an_evaluation(tmp_path):
    draw = np.random.default_rng(0)
    for split, label in ((split, label) for split in ("train", "test") for label in ("a", "b")):
        (tmp_path / "data" / split / label).mkdir(parents=True)
        for number in range(6):
            pixels = draw.integers(0, 256, (9, 11, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / split / label / f"{number}.png")
    view = "whole(8, 8)"
    config = Experiment(
        epochs=1,
        batch_size=4,
        eval_batch_size=8,
        model=Model("test_insight_evaluation:tiny"),
        data=Data("image_folder", str(tmp_path / "data"), view=view, eval_view=view),
    )
    line = run.train(config, tmp_path / "run", out=io.StringIO())
    model = trained(tmp_path / "run")
    found = predictions(model)
    assert found.labels.tolist() == [0] * 6 + [1] * 6
    # Each image by itself, decoded by its number.
    alone = model.logits(model.images(range(12)))
    np.testing.assert_allclose(found.logits, alone, atol=1e-5)
    assert f"({(found.logits.argmax(1) == found.labels).sum()}/12)" in line


@pytest.mark.parametrize("which", ["best", "average", "bst"])
def test_a_model_that_the_run_has_not_kept_is_refused(folder, which):
    with pytest.raises(UserError, match=r"no best yet|followed no average|did you mean 'best'"):
        trained(folder, which)


# -- Predictions -----------------------------------------------------------------------------------


def test_features_times_the_last_kernel_are_the_logits(model, found):
    assert found.features.shape == (37, 4)
    head = model.params["dense1"]
    expected = found.features @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    np.testing.assert_allclose(found.logits, expected, atol=1e-5)
    np.testing.assert_array_equal(found.labels, pictures("test", None).labels)


@pytest.mark.parametrize("parallel", ["jit", "sharded", "pmap", "shard_map", "fsdp"])
@pytest.mark.parametrize("batch", [5, 37])
def test_predictions_are_the_same_in_any_batches_on_any_devices(model, found, parallel, batch):
    config = dataclasses.replace(model.config, parallel=parallel, eval_batch_size=batch)
    again = predictions(dataclasses.replace(model, config=config), features=True)
    np.testing.assert_allclose(again.logits, found.logits, atol=1e-5)
    assert again.features is not None
    np.testing.assert_allclose(again.features, found.features, atol=1e-5)
    np.testing.assert_array_equal(again.labels, found.labels)
    # Images that fill up the last batch are none.
    assert len(again.labels) == 37


def test_a_change_is_given_the_numbers_of_the_images(model):
    seen = []

    def change(numbers, images):
        seen.append(np.asarray(numbers))
        return jnp.zeros_like(images)

    black = Predictor(model).predict(model.split(), change)
    assert np.concatenate(seen)[:37].tolist() == [*range(37)]
    np.testing.assert_allclose(black.logits, np.broadcast_to(black.logits[:1], (37, 7)), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lenet5", "dense3"),
        ("resnet20", "head"),
        ("convnext_tiny", "head"),
        ("all_cnn_c", "conv9"),
        ("airbench94", "head"),
    ],
)
def test_the_last_layer_of_a_network_is_the_one_that_votes(name, expected):
    size = (32, 32, 1) if name == "lenet5" else (32, 32, 3)
    spec = jax.ShapeDtypeStruct((1, *size), jnp.float32)
    assert last_layer(models.create(name, classes=10), spec)[0] == expected


def test_the_last_layer_is_the_last_that_is_called_whatever_dense_ones_lie_before():
    def gated(net, x):
        return net.votes(x * ops.sigmoid(net.gate(ops.global_avg_pool(x)))[:, None, None])

    net = compose(gated, gate=dense(3), votes=conv(10, 1))
    assert last_layer(net, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)) == ("votes", 3)


def test_a_network_without_weights_has_no_features():
    spec = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    with pytest.raises(UserError, match="no dense layer and no convolution"):
        last_layer(serial(identity, ops.global_avg_pool), spec)


def test_logits_that_are_not_finite_are_told_and_not_scored(model):
    head = {**model.params["dense1"], "bias": jnp.full(7, jnp.nan)}
    broken = dataclasses.replace(model, params={**model.params, "dense1": head})
    with pytest.raises(UserError, match=r"37 of the 37 images of test have logits .* image 0\)"):
        evaluation.evaluate(broken)


# -- The whole of it -------------------------------------------------------------------------------


def test_the_closing_line_is_that_of_the_plain_evaluation(folder, deep):
    plain = run.evaluate(folder)
    assert deep[1].split(", ")[:2] == plain.split(", ")[:2]
    assert deep[1].endswith(str(deep[0]))


def test_the_files_tell_all_in_full(deep):
    copy, _, out = deep
    result = json.loads((copy / "evaluation/test.json").read_text())
    with np.load(copy / "evaluation/test.npz") as arrays:
        logits, labels = arrays["logits"], arrays["labels"]
    predicted = logits.argmax(1)
    np.testing.assert_array_equal(labels, pictures("test", None).labels)
    np.testing.assert_allclose(
        result["accuracy"]["value"], metrics.accuracy_score(labels, predicted), rtol=1e-12
    )
    np.testing.assert_array_equal(
        result["confusion"], metrics.confusion_matrix(labels, predicted, labels=range(7))
    )
    f1 = metrics.f1_score(labels, predicted, labels=range(7), average=None, zero_division=0)
    np.testing.assert_allclose([row["f1"] for row in result["by_class"]], f1, rtol=1e-12)
    top5 = metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(7))
    np.testing.assert_allclose(result["top5"]["value"], top5)
    for name in ("accuracy", "loss", "macro_f1", "top5"):
        assert result[name]["low"] <= result[name]["value"] <= result[name]["high"]
    assert len(result["mistakes"]) == min(24, 37 - result["correct"])
    assert f"accuracy                        {result['accuracy']['value']:.4f}" in out
    assert str(copy / "evaluation/test.json") in out


def test_the_temperature_is_fitted_on_other_images_than_it_is_judged_by(model, deep):
    scaled = json.loads((deep[0] / "evaluation/test.json").read_text())["temperature"]
    assert (scaled["fitted_on"], scaled["fitted_images"]) == ("valid", 30)
    assert scaled["judged_images"] == 37
    # The valid split itself has no other: one half is judged by the temperature of the other.
    scaled = evaluation.evaluate(model, Wanted("valid")).result["temperature"]
    assert (scaled["fitted_on"], scaled["fitted_images"]) == ("half of valid", 15)
    assert scaled["judged_images"] == 15


@pytest.mark.parametrize("valid", ["test[:50%]", "test[5:]"])
def test_a_temperature_is_not_fitted_on_images_that_may_be_judged(model, valid):
    data = dataclasses.replace(model.config.data, valid=valid)
    config = dataclasses.replace(model.config, data=data)
    part = model.split()._replace(source=Images(*(each[:20] for each in model.split().source)))
    splits = {valid: part, "test[:20]": part}
    other = dataclasses.replace(model, config=config, _splits=splits)
    scaled = evaluation.evaluate(other, Wanted("test[:20]")).result["temperature"]
    assert (scaled["fitted_on"], scaled["fitted_images"]) == ("half of test[:20]", 10)
    with pytest.raises(UserError, match="which has, or may have, images of the split 'test"):
        evaluation.evaluate(other, Wanted("test[:20]", features=True, bank=valid))


def test_a_valid_split_that_is_not_there_is_told_before_anything_is_computed(model, monkeypatch):
    monkeypatch.setattr(Predictor, "predict", None)
    data = dataclasses.replace(model.config.data, valid="vald")
    gone = dataclasses.replace(model, config=dataclasses.replace(model.config, data=data))
    with pytest.raises(UserError, match="there is no split 'vald'"):
        evaluation.evaluate(gone)


def test_features_are_looked_up_in_the_train_split(deep, model):
    result = json.loads((deep[0] / "evaluation/test.json").read_text())["features"]
    assert (result["layer"], result["size"]) == ("dense1", 4)
    assert (result["bank"], result["bank_images"], result["neighbours"]["k"]) == ("train", 60, 60)
    assert result["probe"]["converged"]
    for name in ("neighbours", "probe"):
        assert 1 / 7 < result[name]["accuracy"] <= 1


def test_features_that_memory_does_not_hold_go_by_in_parts_and_have_no_probe(
    model, deep, monkeypatch
):
    monkeypatch.setattr(evaluation, "MEMORY", 4 * 4 * 59)  # Four numbers of 60 images are more.
    monkeypatch.setattr(neighbours, "_PART", 25)
    out = io.StringIO()
    result = evaluation.evaluate(model, Wanted(features=True), out).result
    whole = json.loads((deep[0] / "evaluation/test.json").read_text())["features"]
    assert result["features"] == whole | {"probe": None}
    assert "features of train; no probe" in out.getvalue()
    assert "linear probe" not in evaluation_text.text(result)
    monkeypatch.setattr(evaluation, "MEMORY", 4 * 4 * 36)
    with pytest.raises(UserError, match=r"evaluate a part, as in --split='test\[:10%\]'"):
        evaluation.evaluate(model, Wanted(features=True))


def test_corruptions_are_told_at_five_severities(deep, model, found):
    result = json.loads((deep[0] / "evaluation/test.json").read_text())["corruptions"]
    assert list(result) == ["contrast", "gaussian_noise"]
    assert [each["severity"] for each in result["contrast"]] == [1, 2, 3, 4, 5]
    # Contrast takes no chance: what it leaves of each image can be told here.
    images = pictures("test", None).images / 255
    mean = images.mean((1, 2), keepdims=True)
    worse = np.floor(((images - mean) * 0.15 + mean) * 255 + 1e-3).astype(np.uint8)
    hit = np.asarray(model.logits(worse)).argmax(1) == found.labels
    np.testing.assert_allclose(result["contrast"][4]["accuracy"], hit.mean(), atol=1.5 / 37)
    assert re.search(r"\ncontrast +0\.\d{4} ", deep[2])


def test_images_whose_logits_break_through_a_corruption_are_mistakes_and_counted(
    model, found, monkeypatch
):
    plain = Predictor.predict

    def predict(self, split, change=None):
        seen = plain(self, split)
        if change is not None:
            seen.logits[:5, 2] = np.nan
        return seen

    monkeypatch.setattr(Predictor, "predict", predict)
    result = evaluation.evaluate(model, Wanted(corruptions="contrast")).result
    first = result["corruptions"]["contrast"][0]
    hits = found.logits.argmax(1)[5:] == found.labels[5:]
    assert (first["not_finite"], first["accuracy"]) == (5, hits.sum() / 37)
    assert np.isfinite(first["loss"])
    assert "25 corrupted images had logits that are not finite" in evaluation_text.text(result)


def test_pictures_are_there_and_can_be_opened(deep):
    for name in ("confusion", "reliability", "mistakes", "corruptions"):
        with Image.open(deep[0] / f"evaluation/test-{name}.png") as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 200
            assert np.asarray(picture.convert("L")).std() > 5


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures that take no time."""
    for name in ("confusion_matrix", "reliability_diagram", "mistakes"):
        monkeypatch.setattr(figures, name, lambda *_: b"")


def test_names_of_files_tell_splits_and_models_apart(folder, tmp_path, undrawn):
    copy = shutil.copytree(folder, tmp_path / "run")
    model = trained(copy)
    seen = evaluation.evaluate(model)
    names = set()
    (copy / "evaluation").mkdir()
    stale = copy / "evaluation" / "test_:10%_-corruptions.png"
    stale.write_bytes(b"of an earlier evaluation")
    for split, which in (("test[:10%]", "newest"), ("test[10%:]", "newest"), ("a/b", "best")):
        other = dataclasses.replace(model, which=which, _splits={split: model.split()})
        told = seen._replace(result={**seen.result, "split": split})
        names.add(evaluation.write(other, told).name)
    assert names == {"test_:10%_.json", "test_10%:_.json", "a_b-best.json"}
    assert not stale.exists()


def test_a_folder_that_cannot_be_written_says_so(folder, tmp_path, undrawn):
    copy = shutil.copytree(folder, tmp_path / "run")
    (copy / "evaluation").write_text("years of work")
    model = trained(copy)
    with pytest.raises(UserError, match="evaluation cannot be written"):
        evaluation.write(model, evaluation.evaluate(model))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wanted(bins=0), "--bins is 0: give 1 to 1000"),
        (Wanted(bins=10**10), "--bins is 10000000000: give 1 to 1000"),
        (Wanted(bank="valid"), "--bank is where features are looked up: give --features"),
        (
            Wanted("train", features=True),
            "--bank is 'train', which has, or may have, images of the split 'train'",
        ),
        (Wanted(features=True, bank="vald"), "there is no split 'vald'"),
        (Wanted("tset"), "there is no split 'tset'"),
        (Wanted(corruptions="fogg"), "no corruption 'fogg'; did you mean 'fog'"),
    ],
)
def test_what_cannot_be_had_is_refused_before_anything_is_computed(
    model, monkeypatch, wanted, expected
):
    monkeypatch.setattr(Predictor, "predict", None)
    with pytest.raises(UserError, match=re.escape(expected)):
        evaluation.evaluate(model, wanted)


def test_a_hundred_classes_of_any_names_fit_the_pictures_and_the_table():
    draw = np.random.default_rng(0)
    names = [f"{CLASSES[number % 7]} {number}" for number in range(100)]
    matrix = draw.integers(0, 5, (100, 100)) + 40 * np.eye(100, dtype=int)
    rows = [
        {"class": name, "precision": 0.5, "recall": 0.5, "f1": number / 100, "images": 50}
        for number, name in enumerate(names)
    ]
    half: dict[str, Any] = {"value": 0.5, "low": 0.4, "high": 0.6}
    scores = dict.fromkeys(("accuracy", "loss", "macro_f1", "calibration_error"), half)
    result = {
        **scores,
        **{"split": "test", "model": "newest", "images": 5000, "classes": names},
        **{"confusion": matrix.tolist(), "by_class": rows, "temperature": None},
        "most_confused": [{"label": 3, "predicted": 4, "count": 4}],
        "intervals": {"level": 0.95},
        "reliability": {"count": [0] * 15},
    }
    with Image.open(io.BytesIO(figures.confusion_matrix(result))) as picture:
        assert min(picture.size) > 1500
    text = evaluation_text.text(result)
    assert "the 10 classes of lowest F1, of 100" in text
    assert text.count("0.5000  0.5000") == 10
    assert max(map(len, text.splitlines())) < 100


# -- The launcher ----------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What the launcher asked of `run`, which here only takes notes."""
    calls = []

    def note(workdir, *how):
        calls.append(how)
        return "closing line"

    noting = types.SimpleNamespace(evaluate=note, evaluate_deeply=note)
    monkeypatch.setattr(convjax, "run", noting, raising=False)
    (tmp_path / "config.json").write_text("{}", "utf-8")

    def call(*words):
        return guard(evaluate.main, ["launcher", f"--workdir={tmp_path}", *words]), calls

    return call


def test_flags_say_how_deep_it_looks(calls, capsys):
    assert calls()[0] == 0
    assert calls("--deep", "--bins=20")[0] == 0
    assert calls("--features", "--bank=train[:10%]", "--model=best")[0] == 0
    assert calls("--corruptions=all", "--split=valid")[1] == [
        (None, "newest"),
        (Wanted(bins=20), "newest"),
        (Wanted(features=True, bank="train[:10%]"), "best"),
        (Wanted("valid", corruptions="all"), "newest"),
    ]
    assert capsys.readouterr().out == "closing line\n" * 4


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--bins=20"], "--bins is part of --deep: give --deep"),
        (["--bank=train"], "--bank is part of --deep: give --deep"),
        (["--deep", "--bins=0"], "--bins is 0: give 1 to 1000"),
        (["--deep", "--bins=many"], "--bins=many"),
        (["--corruption=fog"], "did you mean '--corruptions'"),
        (["--corruptions="], "--corruptions is empty"),
    ],
)
def test_wrong_flags_are_told_in_one_line(calls, capsys, words, expected):
    assert calls(*words) == (2, [])
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
