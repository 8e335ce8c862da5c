"""The learning-rate finder takes the config's own steps, and leaves no run behind."""

import io
import json

import jax
import numpy as np
import pytest

from convjax.assemble import assemble
from convjax.config import Experiment, UserError, from_dict, to_dict
from convjax.insight.studies.rates import find_rate, suggest, text
from convjax.runlog import RunLog
from convjax.training.feed import Order
from experiments import train

STEPS = 24


def linear(classes):
    from convjax import dense, flatten, serial

    return serial(flatten, dense(classes))


def a_config(**optimizer):
    config = Experiment(name="rates", batch_size=64)
    config.model.name = f"{__name__}:linear"
    config.data.train = "train[:320]"
    config.data.test = "test[:64]"
    config.optimizer.name = "sgd"
    config.optimizer.weight_decay = 0.0
    config.optimizer.schedule = "cosine"
    for name, value in optimizer.items():
        setattr(config.optimizer, name, value)
    return config


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rates") / "run"
    out = io.StringIO()
    return (
        find_rate(a_config(), folder, lowest=1e-5, highest=1e3, steps=STEPS, out=out),
        folder,
        out,
    )


def test_losses_are_those_of_gradient_descent_by_hand(found):
    config = a_config()
    experiment = assemble(config)
    pixels, labels = (np.asarray(each) for each in experiment.train.source)
    images = (pixels.reshape(len(pixels), -1) / 255.0).astype(np.float64)
    images = (images - images.mean()) / images.std()
    order = Order(config.seed, len(labels), config.batch_size)
    key = jax.random.key(config.seed)
    from convjax.layer import fold

    params, _ = experiment.net.init(fold(key, "params"), experiment.spec)
    kernel, bias = (np.asarray(params["dense1"][name], np.float64) for name in ("kernel", "bias"))
    rates, losses = found[0].rates, []
    for number, rate in enumerate(rates):
        chosen = order.batch(number)
        x, onehot = images[chosen], np.eye(10)[labels[chosen]]
        logits = x @ kernel + bias
        logs = logits - logits.max(1, keepdims=True)
        logs -= np.log(np.exp(logs).sum(1, keepdims=True))
        losses.append(-(onehot * logs).sum(1).mean())
        error = (np.exp(logs) - onehot) / len(x)
        kernel, bias = kernel - rate * x.T @ error, bias - rate * error.sum(0)
    # Once it has diverged, rounding is blown up with all else.
    np.testing.assert_allclose(found[0].losses[:12], losses[:12], rtol=1e-4)


def test_rates_rise_by_the_same_factor_and_end_where_the_loss_diverges(found):
    rates, losses = found[0].rates, found[0].losses
    assert rates[0] == pytest.approx(1e-5)
    np.testing.assert_allclose(rates[1:] / rates[:-1], (1e8) ** (1 / (STEPS - 1)))
    assert found[0].diverged
    assert len(rates) == len(losses) < STEPS
    assert losses[-1] > 2 * losses.min()


def test_it_writes_a_curve_and_no_run(found):
    result, folder, out = found
    assert sorted(each.name for each in folder.iterdir()) == ["find_lr.json", "find_lr.png"]
    assert not RunLog(folder).exists()
    assert RunLog(folder).is_free()
    told = json.loads((folder / "find_lr.json").read_text())
    assert told["losses"] == pytest.approx(result.losses.tolist())
    assert from_dict(told["config"]) == a_config()
    assert (folder / "find_lr.png").read_bytes().startswith(b"\x89PNG")
    assert f"--config.optimizer.learning_rate={result.steepest:.2g}" in out.getvalue()


def test_steepest_and_tenth_of_a_curve_known_by_pencil():
    rates = np.geomspace(1e-6, 10, 141)  # twenty a decade
    places = np.log10(rates)
    # Level to 1e-5, then a cosine: steepest at 1e-3, least at 1e-1.
    losses = 1.5 + np.cos(np.pi * np.maximum(places + 5, 0) / 4)
    found = suggest(rates, losses)
    assert found.steepest == pytest.approx(1e-3, rel=0.15)
    assert found.tenth == pytest.approx(1e-2, rel=0.3)


def test_nothing_is_suggested_where_the_loss_does_not_fall():
    rates = np.geomspace(1e-6, 10, 60)
    noise = np.random.default_rng(0).normal(0, 0.1, 60)
    rising = suggest(rates, 2.3 + np.linspace(0, 3, 60))
    flat = suggest(rates, 2.3 + noise)
    assert (rising.steepest, rising.tenth) == (None, None)
    assert (flat.steepest, flat.tenth) == (None, None)
    assert "nothing is suggested" in text(rising)


def test_a_folder_of_another_config_and_of_other_things_is_refused(tmp_path):
    log = RunLog(tmp_path / "run")
    other = a_config()
    other.batch_size = 32
    log.create(to_dict(other))
    with pytest.raises(UserError, match="run of another config, which differs in batch_size"):
        find_rate(a_config(), log.folder)
    (tmp_path / "things").mkdir()
    (tmp_path / "things" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="is not a run and not empty"):
        find_rate(a_config(), tmp_path / "things")


@pytest.mark.parametrize("wrong", ["--dry_run", "--override", "--debug_nans", "--num_processes=2"])
def test_flags_that_say_nothing_with_find_lr_are_refused(wrong):
    with pytest.raises(UserError, match=f"{wrong.partition('=')[0]} says nothing"):
        train.main(["train", "--find_lr", wrong])


def test_rates_that_do_not_rise_are_refused():
    with pytest.raises(ValueError, match="give 0 < lowest < highest"):
        find_rate(a_config(), lowest=1.0, highest=0.1)
