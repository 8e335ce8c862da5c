"""Numbers that trials of one program may differ in: which they are, and that nothing else changes.

What a program with arrays gives is compared with what one with the Python numbers gives, of which
other tests say that they are right.
"""

import copy
import typing
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from augment_oracle import unoptimised_programs  # noqa: F401

from convjax import models
from convjax.augment import Draw
from convjax.augment.named import mix_of, parts_of
from convjax.combine import serial
from convjax.config import Augment, Experiment, Loss, Model, Norm, Optimizer, flatten
from convjax.layer import Context
from convjax.layers import batch_norm, conv, dense, dropout
from convjax.ops import global_avg_pool, relu
from convjax.sweep import numbers
from convjax.sweep.distributions import with_values
from convjax.training.feed import Images, Split
from convjax.training.loss import targets
from convjax.typed import field_types

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)
SPLIT = Split(Images(PIXELS, np.array([0, 1, 2, 0, 1, 2], np.int32)), ("a", "b", "c"))
KEY = jax.random.key(7)


def config_of(model="small", args: Mapping[str, Any] = {}, parts=(), mix=None, **more):
    return Experiment(model=Model(model, dict(args)), augment=Augment(tuple(parts), mix), **more)


def liftable(*args, **more):
    return set(numbers.liftable(config_of(*args, **more), SPLIT))


def path_of(config, value):
    """Where the one number of that value stands."""
    (path,) = (path for path, each in numbers.numbers_of(config).items() if each == value)
    return path


# -- Networks of this module, by "test_sweep_numbers:NAME" -----------------------------------------


def careless(classes, rate=0.5, times=1.0, sizes=(), more=None):
    """Takes `rate` for a Python number; the rest it does not mind."""
    if rate > 0.9:
        raise ValueError("too much")
    return serial(conv(2, 3), lambda x: x * times, dropout(0.5), global_avg_pool, dense(classes))


def branching(classes, slope=0.0, threshold=0.3):
    """Has another program, without an error, for what is no Python number."""
    steep = isinstance(slope, float) and slope == 0.0
    wide = isinstance(threshold, float) and threshold > 0.5
    slow = [lambda x: x * x] if wide else []
    return serial(conv(4 if steep else 5, 3), relu, *slow, global_avg_pool, dense(classes))


def stateful(classes, rate=0.2):
    return serial(conv(2, 3), batch_norm(), dropout(rate), global_avg_pool, dense(classes))


# -- Which numbers there are -----------------------------------------------------------------------


def test_numbers_are_the_floats_of_model_and_augmentation_by_path():
    args = {"rate": 0.5, "width": 3, "bias": True, "inner": {"deep": 0.25, "list": [1, (2.0,)]}}
    parts = ("crop(4)", "sometimes(0.5, gaussian_blur(5, sigma=(0.1, 2.0)))")
    found = numbers.numbers_of(config_of("any", args, parts, "mixup(0.2, p=-0.5)"))
    assert found == {
        "model.args.rate": 0.5,
        "model.args.inner.deep": 0.25,
        "model.args.inner.list[1][0]": 2.0,
        "augment.parts[1](0)": 0.5,
        "augment.parts[1](1)(sigma)[0]": 0.1,
        "augment.parts[1](1)(sigma)[1]": 2.0,
        "augment.mix(0)": 0.2,
        "augment.mix(p)": -0.5,
    }


def test_numbers_of_the_optimizer_are_not_among_them():
    config = config_of(optimizer=Optimizer(learning_rate=0.3, args={"b1": 0.8}))
    assert numbers.numbers_of(config) == {}
    assert numbers.refused(config, SPLIT) == {}


# -- Which may be arrays ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "args"),
    [
        ("small", {"dropout_rate": 0.3, "stages": 1}),
        ("vgg11_bn", {"dropout_rate": 0.3, "depths": (1, 1), "width": 2, "hidden": 4}),
        ("resnet20", {"drop_path_rate": 0.3, "width": 2, "depths": (1, 1)}),
        ("wrn_16_4", {"dropout_rate": 0.3, "depths": (1, 1), "widening": 1}),
        ("mobilenet_v2", {"dropout_rate": 0.3, "stages": ((1, 8, 1),), "strides": (2, 1)}),
        ("test_sweep_numbers:stateful", {"rate": 0.3}),
    ],
)
def test_rates_of_models_are_liftable(model, args):
    config = config_of(model, args)
    assert numbers.liftable(config, SPLIT) == numbers.numbers_of(config).keys()
    assert len(numbers.liftable(config, SPLIT)) == 1


CONVNEXT = {"width": 2, "depths": (1, 1), "patch": 2}


@pytest.mark.parametrize(
    ("model", "args"),
    [
        ("convnext_tiny", {"drop_path_rate": 0.3, "first_scale": 0.1, **CONVNEXT}),
        ("airbench94", {"scaling": 0.1, "widths": (2,)}),
    ],
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_scales_of_models_are_liftable_in_every_precision(model, args, precision):
    config = config_of(model, args, precision=precision)
    assert numbers.refused(config, SPLIT) == {}
    assert numbers.liftable(config, SPLIT) == numbers.numbers_of(config).keys()


def test_a_number_that_is_refused_spoils_none_of_the_rest():
    args = {"rate": 0.5, "times": 0.7, "sizes": (0.1,), "more": {"unused": 1.5}}
    config = config_of("test_sweep_numbers:careless", args, ("flip(0.3)",), "mixup(0.2)")
    refused = numbers.refused(config, SPLIT)
    assert refused.keys() == {"model.args.rate"}
    assert refused["model.args.rate"].startswith("TracerBoolConversionError: ")
    assert numbers.liftable(config, SPLIT) == numbers.numbers_of(config).keys() - refused.keys()


def test_a_number_that_decides_on_a_shape_or_on_operations_is_refused():
    name = "test_sweep_numbers:branching"
    # As an array: another shape of a kernel, and an operation less.
    assert liftable(name, {"slope": 0.0, "threshold": 0.7}) == set()
    assert liftable(name, {"slope": 0.1, "threshold": 0.7}) == {"model.args.slope"}
    assert liftable(name, {"slope": 0.0, "threshold": 0.2}) == {"model.args.threshold"}


def test_a_rate_of_0_that_leaves_out_a_layer_is_a_program_of_its_own():
    assert liftable("small", {"dropout_rate": 0.1}) == {"model.args.dropout_rate"}
    assert liftable("small", {"dropout_rate": 0.0}) == set()
    parts = ("color_jitter(0.4, hue={})", "shear(0.2, {})")
    for value, lifted in (0.1, {"[0](hue)", "[1](1)"}), (0.0, set()):
        found = liftable(parts=[text.format(value) for text in parts])
        always = {"augment.parts[0](0)", "augment.parts[1](0)"}
        assert found == always | {f"augment.parts{each}" for each in lifted}


PARTS = (
    *("flip(0.2)", "vertical_flip(0.2)", "translate(0.1)", "rotate(20.0, fill=3.0)", "invert(0.2)"),
    *("shear(0.2, 0.1)", "random_resized_crop(8, scale=(0.5, 1.0), ratio=(0.8, 1.2))"),
    *("color_jitter(0.4, contrast=(0.5, 1.5), hue=0.1)", "grayscale(0.2)", "autocontrast(0.2)"),
    *("gaussian_blur(3, (0.1, 2.0))", "solarize(128.0, 0.3)", "posterize(4.0, p=0.3)"),
    *("sharpness(2.0, 0.3)", "equalize(0.2)", "rand_augment(1, 9.0)", "cutout(4.0, value=7.0)"),
    *("random_erasing(0.3, scale=(0.1, 0.3), value=9.0)", "sometimes(0.5, crop(2), flip(0.2))"),
)


def test_every_float_of_the_augmentations_is_liftable():
    config = config_of(parts=PARTS)
    assert numbers.refused(config, SPLIT) == {}
    found = numbers.liftable(config, SPLIT)
    assert all(any(f"[{number}](" in path for path in found) for number in range(len(PARTS)))
    assert len(found) == 36


@pytest.mark.parametrize(
    "text",
    ["mixup(0.2, p=0.9)", "cutmix(1.0)", "mixup_or_cutmix(0.2, 1.0, p=0.9, switch=0.3)"],
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_float_of_the_mixtures_is_liftable(text, precision):
    config = config_of(mix=text, precision=precision)
    assert numbers.refused(config, SPLIT) == {}
    assert numbers.liftable(config, SPLIT)


def test_a_policy_of_one_s_own_becomes_a_table_and_is_refused():
    text = "auto_augment([(('invert', 0.5, 0), ('rotate', 0.5, 3.0))])"
    refused = numbers.refused(config_of(parts=[text, "flip(0.3)"]), SPLIT)
    place = "augment.parts[0](0)[0]"
    assert refused.keys() == {f"{place}[0][1]", f"{place}[1][1]", f"{place}[1][2]"}


# -- What they give --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "args", "name", "values"),
    [
        ("small", {"width": 2, "stages": 1}, "dropout_rate", (0.1, 0.5, 0.9)),
        ("resnet20", {"width": 2, "depths": (2,)}, "drop_path_rate", (0.1, 0.5, 0.9)),
    ],
)
def test_a_network_of_many_members_gives_what_each_gives_alone(model, args, name, values):
    config, path = config_of(model, args | {name: values[0]}), f"model.args.{name}"
    x = jnp.asarray(PIXELS, jnp.float32) / 255
    params, state = jax.jit(models.create(model, classes=3, **args).init)(KEY, x)

    def results(net):
        return net.apply(params, state, x, Context(KEY, train=True))

    def member(value):
        return results(numbers.network(config, SPLIT, {path: value}))

    together = jax.jit(jax.vmap(member))(jnp.asarray(values, jnp.float32))
    logits = []
    for number, value in enumerate(values):
        net = models.create(model, classes=3, **args, **{name: value})
        alone = jax.jit(lambda net=net: results(net))()
        mine = jax.tree.map(lambda leaf, number=number: leaf[number], together)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6), mine, alone)
        logits.append(np.asarray(alone[0]))
    assert not np.allclose(logits[0], logits[1], atol=1e-3)
    assert not np.allclose(logits[1], logits[2], atol=1e-3)


def test_members_have_the_first_parameters_that_their_numbers_ask_for():
    config = config_of("convnext_tiny", {"first_scale": 0.1, **CONVNEXT})
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)

    def member(value):
        net = numbers.network(config, SPLIT, {"model.args.first_scale": value})
        return net.init(KEY, x)[0]["stage1"]["block1"]["layer_scale"]["scale"]

    scales = jax.vmap(member)(jnp.asarray([0.1, 0.5], jnp.float32))
    np.testing.assert_array_equal(scales, np.array([[0.1, 0.1], [0.5, 0.5]], np.float32))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("random_erasing({}, value=9.0)", (0.1, 0.5, 1.0)),
        ("random_erasing(1.0, scale=(0.02, {}))", (0.1, 0.3, 0.9)),
        ("color_jitter({}, 0.2, 0.15)", (0.1, 0.5, 0.9)),
        ("color_jitter(hue={})", (0.1, 0.25, 0.5)),
        ("sometimes({}, invert(1.0))", (0.1, 0.5, 0.9)),
        ("translate({})", (0.1, 0.3, 0.9)),
    ],
)
def test_an_augmentation_of_many_members_gives_what_each_gives_alone(text, values):
    config = config_of(parts=[text.format(value) for value in values[:1]])
    path = path_of(config, values[0])
    draw = Draw(KEY, KEY, np.arange(len(PIXELS)), 0)

    def member(value):
        change, _ = numbers.augmentation(config, SPLIT, {path: value})
        assert change is not None
        return change(draw, jnp.asarray(PIXELS))

    together = jax.jit(jax.vmap(member))(jnp.asarray(values, jnp.float32))
    for number, value in enumerate(values):
        change = parts_of([text.format(value)])
        assert change is not None
        alone = np.asarray(jax.jit(change)(draw, PIXELS)).astype(int)
        # Where rounding puts a number on the other side of a whole one, it is the next level.
        assert np.abs(alone - np.asarray(together[number])).max() <= 1
        assert (alone == np.asarray(together[number])).mean() > 0.999
    assert (together[0] != together[1]).any()
    assert (together[1] != together[2]).any()


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("mixup({})", (0.1, 0.5, 2.0)),
        ("cutmix({}, every=True)", (0.02, 1.0, 50.0)),
        ("mixup_or_cutmix(0.2, 1.0, every=True, switch={})", (0.1, 0.5, 0.9)),
    ],
)
def test_a_mixture_of_many_members_gives_what_each_gives_alone(text, values):
    config = config_of(mix=text.format(values[0]))
    path = path_of(config, values[0])
    x, labels = jnp.asarray(PIXELS, jnp.float32) / 255, jnp.asarray([0, 1, 2, 0, 1, 2])

    def member(value):
        _, mix = numbers.augmentation(config, SPLIT, {path: value})
        assert mix is not None
        return mix(KEY, x, labels)

    together = jax.jit(jax.vmap(member))(jnp.asarray(values, jnp.float32))
    for number, value in enumerate(values):
        mix = mix_of(text.format(value))
        assert mix is not None
        images, probabilities = jax.jit(mix)(KEY, x, targets(labels, 3))
        np.testing.assert_allclose(together[0][number], images, 1e-5, 1e-6)
        np.testing.assert_allclose(together[1][number], probabilities, 1e-5, 1e-6)
    assert not np.allclose(together[1][0], together[1][1], atol=1e-3)
    assert not np.allclose(together[1][1], together[1][2], atol=1e-3)


def test_norms_are_those_of_the_config():
    config = config_of("test_sweep_numbers:stateful", norm=Norm(frozen=("*",)))
    x = jnp.asarray(PIXELS, jnp.float32)

    def moved(config):
        net = numbers.network(config, SPLIT, {"model.args.rate": jnp.float32(0.1)})
        params, state = net.init(KEY, x)
        _, after = net.apply(params, state, x, Context(KEY, train=True))
        return float(jnp.abs(after["norm1"]["mean"] - state["norm1"]["mean"]).max())

    assert moved(config) == 0
    config.norm.frozen = ()
    assert moved(config) > 0


# -- Which configs share a program -----------------------------------------------------------------

BASE = config_of(
    *("small", {"dropout_rate": 0.3}, ("crop(4)", "flip(0.5)"), "mixup(0.2)"),
    optimizer=Optimizer(
        "sgd",
        args={"momentum": 0.9, "nesterov": True},
        rules=("stem/*: learning_rate=2", "head/*: freeze"),
        layer_decay=0.9,
        sam_rho=0.1,
    ),
    loss=Loss("focal", class_weights=(1.0, 2.0, 1.0), args={"gamma": 2.0}),
)


def shares(**values):
    """Whether BASE and a copy with these values, by path, train in one program."""
    other = with_values(BASE, {path.replace("__", "."): value for path, value in values.items()})
    digests = {
        numbers.structure(each, numbers.liftable(each, SPLIT))
        for each in (copy.deepcopy(BASE), other)
    }
    return len(digests) == 1


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 4),
        ("name", "another"),
        ("stop__patience", 2),
        ("stop__metric", "loss"),
        ("stop__min_delta", 0.1),
        ("checkpoint__keep", 9),
        ("checkpoint__best", "loss"),
        ("optimizer__learning_rate", 0.5),
        ("optimizer__weight_decay", 0.1),
        ("optimizer__args__momentum", 0.8),
        ("optimizer__layer_decay", 0.8),
        ("optimizer__sam_rho", 0.2),
        ("optimizer__rules", ("stem/*: learning_rate=3, weight_decay=0", "head/*: freeze")),
        ("loss__label_smoothing", 0.1),
        ("loss__args__gamma", 1.0),
        ("loss__class_weights", (3.0, 2.0, 1.0)),
        ("model__args__dropout_rate", 0.4),
        ("augment__parts", ("crop(4)", "flip( 0.25 )")),
        ("augment__mix", "mixup(0.7)"),
    ],
)
def test_configs_that_differ_in_a_number_of_a_step_share_a_program(path, value):
    assert shares(**{path: value})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("epochs", 6.0),
        ("batch_size", 64),
        ("precision", "bfloat16"),
        ("eval_every_steps", 3),
        ("log_every_steps", 3),
        ("checkpoint__every_steps", 3),
        ("stop__bad_steps", 3),
        ("optimizer__name", "rmsprop"),
        ("optimizer__args__momentum", 0),
        ("optimizer__args__nesterov", False),
        ("optimizer__args__accumulator_dtype", "bfloat16"),
        ("optimizer__layer_decay", 1.0),
        ("optimizer__sam_rho", None),
        ("optimizer__clip_norm", 1.0),
        ("optimizer__final_factor", 0.1),
        ("optimizer__rules", ("stem/*: learning_rate=2, until_epoch=1", "head/*: freeze")),
        ("optimizer__rules", ("stem/*: learning_rate=2", "head/*: learning_rate=2")),
        ("loss__name", "sigmoid_focal"),
        ("loss__args__alpha", 0.5),
        ("loss__class_weights", ()),
        ("average__decay", 0.99),
        ("model__name", "lenet5"),
        ("model__args__dropout_rate", 0.0),
        ("model__args__width", 8),
        ("augment__parts", ("crop(3)", "flip(0.5)")),
        ("augment__parts", ("crop(4)", "flip")),
        ("augment__mix", "cutmix(0.2)"),
        ("augment__mix", None),
    ],
)
def test_configs_that_differ_in_the_program_or_the_plan_share_none(path, value):
    assert not shares(**{path: value})


def test_every_key_is_in_the_structure_or_in_the_table_of_those_that_are_not():
    free = {"name", "seed", "stop.patience", "stop.metric", "stop.min_delta"}
    free |= {"checkpoint.keep", "checkpoint.best", "loss.label_smoothing"}
    free |= {"optimizer.learning_rate", "optimizer.weight_decay"}
    others = {bool: True, int: 7, float: 0.77, str: "other"}
    texts = {"augment.parts": "flip(0.7)", "optimizer.rules": "stem/*: freeze"}
    found = set()
    for path, value in flatten(Experiment()).items():
        changed, (*section, key) = Experiment(), path.split(".")
        owner = getattr(changed, *section) if section else changed
        kind = field_types(type(owner))[key]
        first = next((each for each in typing.get_args(kind) if each in others), kind)
        if kind is bool:
            setattr(owner, key, not value)
        elif typing.get_origin(kind) is tuple:
            setattr(owner, key, (0.5,) if first is float else (texts.get(path, "other"),))
        elif typing.get_origin(kind) is dict:
            setattr(owner, key, {"other": 7})
        else:
            setattr(owner, key, others[first])
        assert flatten(changed) != flatten(Experiment())
        if numbers.structure(changed, []) == numbers.structure(Experiment(), []):
            found.add(path)
    assert found == free
