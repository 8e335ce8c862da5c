"""Rules by path: groups against parameter groups of PyTorch, frozen ones, layers in their order."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from optimization import PARAMS, TREE, assert_same, constant, gradients, ours

from convjax import models, ops, tree
from convjax.combine import residual, serial, stack
from convjax.config import ConfigError, Experiment, Optimizer
from convjax.layers import batch_norm, conv, dense
from convjax.training import depth, recipe, schedule
from convjax.training.groups import check_rules, table
from convjax.training.optimizer import hyper_of, make
from convjax.training.rules import Rule, parse
from convjax.training.transforms import slow_weights

DECAYS = {path: path.endswith("kernel") for path in tree.leaves(PARAMS)}
RULES = [
    parse("conv1/kernel: learning_rate=0.5, weight_decay=3"),
    parse("norm1/*: learning_rate=10"),
]


def by_torch(make_optimizer, rate, decay, groups, steps=5, clip=None):
    """The same steps with a parameter group for each path: (factor of the rate, of the decay)."""
    params = {
        path: torch.tensor(leaf, dtype=torch.float64, requires_grad=path in groups)
        for path, leaf in tree.leaves(PARAMS).items()
    }
    optimizer = make_optimizer(
        [
            {"params": [params[path]], "lr": rate * times, "weight_decay": decay * more}
            for path, (times, more) in groups.items()
        ]
    )
    for step in range(steps):
        for path, grad in tree.leaves(gradients(step)).items():
            params[path].grad = torch.tensor(grad) if path in groups else None
        if clip:
            torch.nn.utils.clip_grad_norm_(list(params.values()), clip)
        optimizer.step()
    return {path: leaf.detach().numpy() for path, leaf in params.items()}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_rules_train_as_parameter_groups_of_torch_do(name):
    args: dict[str, Any] = {"momentum": 0.9} if name == "sgd" else {}
    optimizer = make(name, constant, rules=RULES, clip_norm=2.0, args=args)
    found = ours(optimizer, hyper_of(0.02, 0.1, args=args, rules=RULES))
    kind: Any = torch.optim.SGD if name == "sgd" else torch.optim.AdamW
    groups = {
        "conv1/bias": (1, 0),
        "conv1/kernel": (0.5, 3),
        "norm1/bias": (10, 0),
        "norm1/scale": (10, 0),
    }
    expected = by_torch(lambda each: kind(each, lr=0.02, **args), 0.02, 0.1, groups, clip=2.0)
    assert_same(found, expected)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_rule_may_end_and_what_it_is_about_then_stays(name):
    args: dict[str, Any] = {"momentum": 0.9} if name == "sgd" else {}
    rules = [parse("conv1/*: until_epoch=1.5")]
    hyper = hyper_of(0.1, 0.1, args=args, rules=rules)
    optimizer = make(name, constant, rules=rules, epoch=2, args=args)
    plain = make(name, constant, args=args)
    # Three steps of an epoch and a half, and two more.
    after_three: Any = ours(plain, hyper_of(0.1, 0.1, args=args), steps=3)
    after_five: Any = ours(plain, hyper_of(0.1, 0.1, args=args), steps=5)
    found: Any = ours(optimizer, hyper, steps=5)
    assert_same(found["conv1"], after_three["conv1"])
    assert_same(found["norm1"], after_five["norm1"])


@pytest.mark.parametrize("name", ["adam", "muon", "sgd"])
def test_frozen_parameters_keep_their_bits_and_count_for_nothing(name):
    args: dict[str, Any] = {"momentum": 0.9} if name == "sgd" else {}
    rules = [parse("conv1/kernel: freeze")]
    start = {**TREE, "conv1": {**TREE["conv1"], "kernel": TREE["conv1"]["kernel"].at[0].set(-0.0)}}
    settings = {"clip_norm": 0.5, "adaptive_clip": 1.0, "lookahead_steps": 2, "rules": rules}
    optimizer = make(name, constant, decay=("*",), args=args, **settings)
    hyper = hyper_of(0.1, 0.1, args=args, rules=rules)
    params: Any = start
    opt = optimizer(hyper, jnp.int32(0)).init(params)

    @jax.jit
    def take(step, params, opt, grads):
        updates, opt = optimizer(hyper, step).update(grads, opt, params)
        return optax.apply_updates(params, updates), opt

    for step in range(3):
        grads: Any = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), gradients(step))
        grads["conv1"]["kernel"] = jnp.full_like(grads["conv1"]["kernel"], jnp.nan)
        params, opt = take(jnp.int32(step), params, opt, grads)
    frozen = params["conv1"]["kernel"]
    assert np.asarray(frozen).tobytes() == np.asarray(start["conv1"]["kernel"]).tobytes()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert (params["norm1"]["scale"] != start["norm1"]["scale"]).all()
    assert frozen.shape not in {leaf.shape for leaf in jax.tree.leaves(opt)}
    np.testing.assert_array_equal(slow_weights(opt, params)["conv1"]["kernel"], frozen)


def test_what_is_frozen_does_not_count_in_the_norm_of_the_gradient():
    rules = [parse("conv1/*: freeze")]
    found = ours(make("sgd", constant, clip_norm=0.5, rules=rules), hyper_of(0.1, rules=rules))
    groups = {"norm1/bias": (1, 0), "norm1/scale": (1, 0)}
    expected = by_torch(lambda each: torch.optim.SGD(each, lr=0.1), 0.1, 0.0, groups, clip=0.5)
    assert_same(found, expected)


def test_the_first_rule_that_matches_holds_alone():
    rules = [parse("conv1/bias: as all"), parse("conv1/*: learning_rate=0"), parse("*: freeze")]
    found = ours(make("sgd", constant, rules=rules), hyper_of(0.1, 0.1, rules=rules))
    groups = {"conv1/bias": (1, 0), "conv1/kernel": (0, 1)}
    assert_same(found, by_torch(lambda each: torch.optim.SGD(each, lr=0.1), 0.1, 0.1, groups))


def test_the_learning_rate_falls_layer_by_layer():
    depths = {"conv1/bias": 2, "conv1/kernel": 2, "norm1/bias": 1, "norm1/scale": 0}
    rules = [parse("norm1/bias: learning_rate=3")]
    optimizer = make("sgd", constant, depths=depths, rules=rules)
    found = ours(optimizer, hyper_of(0.1, rules=rules, layer_decay=0.5))
    groups = {
        "conv1/bias": (0.25, 0),
        "conv1/kernel": (0.25, 0),
        "norm1/bias": (1.5, 0),
        "norm1/scale": (1, 0),
    }
    assert_same(found, by_torch(lambda each: torch.optim.SGD(each, lr=0.1), 0.1, 0.0, groups))


def test_other_factors_compile_nothing_and_members_train_as_they_would_alone():
    traces = []
    depths = {"conv1/bias": 1, "conv1/kernel": 1, "norm1/bias": 0, "norm1/scale": 0}
    optimizer = make("adamw", constant, rules=RULES, depths=depths)

    def two_steps(hyper):
        traces.append(1)
        params, opt = TREE, optimizer(hyper, jnp.int32(0)).init(TREE)
        for step in range(2):
            grads = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), gradients(step))
            updates, opt = optimizer(hyper, jnp.int32(step)).update(grads, opt, params)
            params = optax.apply_updates(params, updates)
        return params

    hypers = [
        hyper_of(0.1, 0.1, rules=rules, layer_decay=decay)
        for rules, decay in (
            (RULES, 0.5),
            ([rule._replace(learning_rate=2.0, weight_decay=0.0) for rule in RULES], 0.9),
        )
    ]
    alone = jax.jit(two_steps)
    lone = [alone(hyper) for hyper in hypers]
    assert len(traces) == 1
    together = jax.jit(jax.vmap(two_steps))(jax.tree.map(lambda *x: jnp.stack(x), *hypers))
    for member, expected in enumerate(lone):
        found = jax.tree.map(lambda leaf, member=member: leaf[member], together)
        assert_same(found, tree.leaves(expected), rtol=1e-5)
    assert not np.allclose(lone[0]["conv1"]["kernel"], lone[1]["conv1"]["kernel"])


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("stem/*: freeze", Rule("stem/*", frozen=True)),
        (" head/* :learning_rate = 1e1", Rule("head/*", 10.0)),
        ("*/a:b/*: weight_decay=0, learning_rate=.5", Rule("*/a:b/*", 0.5, 0.0)),
        ("*: as all", Rule("*")),
    ],
)
def test_a_rule_is_read_as_it_is_written(text, rule):
    assert parse(text) == rule
    assert parse(rule.text) == rule


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stem/*", "is no rule: write"),
        (": freeze", "is no rule: write"),
        ("stem/*:", "is no rule: write"),
        ("stem/*: freez", "did you mean 'freeze'"),
        ("stem/*: freeze, learning_rate=2", "write freeze alone|did you mean"),
        ("stem/*: momentum=2", "write freeze alone, or"),
        ("stem/*: learning_rate", "did you mean 'learning_rate'"),
        ("stem/*: learning_rate=1, learning_rate=2", "says learning_rate twice"),
        ("stem/*: learning_rate=inf", "factor 'inf': give a number of 0 or more"),
        ("stem/*: weight_decay=none", "factor 'none': give a number"),
    ],
)
def test_a_rule_that_cannot_be_read_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (["conv2/*: freeze"], r"'conv2/\*' matches no leaf; choose from 'conv1/bias'"),
        (["*/kernel: freeze", "conv1/kernel: learning_rate=2"], r"'conv1/kernel' is never reached"),
        (["*: freeze"], "freeze every parameter: leave some"),
        (["*/bias: weight_decay=2"], r"none of its parameters decays; add '\*/bias' to config"),
    ],
)
def test_a_rule_that_does_nothing_is_refused(rules, message):
    with pytest.raises(ConfigError, match=message) as error:
        check_rules(PARAMS, [parse(text) for text in rules], DECAYS)
    assert str(error.value).startswith("config.optimizer.rules")


def test_rules_that_do_something_pass():
    for rules in ([], ["*/kernel: freeze", "*: learning_rate=2"], ["*/bias: weight_decay=0"]):
        check_rules(PARAMS, [parse(text) for text in rules], DECAYS)


def test_the_table_counts_every_parameter_once():
    rules = [parse("norm1/*: freeze"), parse("conv1/bias: learning_rate=10")]
    depths = {"conv1/bias": 1, "conv1/kernel": 1, "norm1/bias": 0, "norm1/scale": 0}
    text = table(
        TREE, rules, DECAYS, learning_rate=0.1, weight_decay=0.01, layer_decay=0.5, depths=depths
    )
    assert [line.split("  ")[0] for line in text.splitlines()] == [
        "trained by",
        "norm1/*: freeze",
        "conv1/bias: learning_rate=10, 1 layer before the last",
        "no rule, 1 layer before the last",
        "all",
    ]
    assert [line.split()[-4:] for line in text.splitlines()[2:4]] == [
        ["1", "4", "0.5", "0"],
        ["1", "72", "0.05", "0.01"],
    ]
    assert text.splitlines()[1].split()[-3:] == ["2", "8", "frozen"]
    assert text.splitlines()[-1].split() == ["all", "4", "84"]


def shapes(net, spec=(2, 32, 32, 3)):
    return jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct(spec, jnp.float32))[0]


RESNET20 = models.create("resnet20", classes=10)
BLOCKS = [f"stage{stage}/block{block}" for stage in (1, 2, 3) for block in (1, 2, 3)]


def test_the_layers_of_a_residual_network_are_stem_blocks_and_head_in_order():
    assert depth.layers(RESNET20, shapes(RESNET20)) == [["stem"], *([b] for b in BLOCKS), ["head"]]
    wide = models.create("wrn_16_4", classes=10)
    assert depth.layers(wide, shapes(wide))[-2:] == [["stage3/block2"], ["norm", "head"]]


def test_what_has_no_kernel_belongs_to_the_convolution_before_it():
    net = serial(
        *(conv(4, 3), ops.relu, batch_norm(), conv(4, 3), batch_norm(), ops.relu),
        block=residual(conv(4, 3), batch_norm()),
        norm=batch_norm(),
        pool=ops.global_avg_pool,
        head=dense(3),
    )
    params = shapes(net)
    assert depth.layers(net, params) == [
        ["conv1", "norm1"],
        ["conv2", "norm2"],
        ["block"],
        ["norm", "head"],
    ]
    assert depth.ends(net, params) == ["conv1/kernel", "head/kernel"]
    depths = depth.depths(net, params)
    assert depths.keys() == tree.leaves(params).keys()
    assert depths["norm1/scale"] == 3
    assert depths["block/conv1/kernel"] == 1
    assert depths["norm/scale"] == depths["head/bias"] == 0


def made(net=RESNET20, **settings):
    config = Experiment(optimizer=Optimizer(**settings))
    return recipe.make(config, schedule.make("constant", steps=5), net, shapes(net), 10)


def test_what_takes_each_kernel_by_itself_refuses_a_stack_of_them():
    net = serial(deep=stack(3, conv(3, 3)), pool=ops.global_avg_pool, head=dense(10))
    for settings in {"name": "muon"}, {"name": "optax:lars"}, {"adaptive_clip": 0.01}:
        with pytest.raises(ConfigError, match=r"the stack 'deep' keeps .* build it by repeat"):
            made(net, **settings)
    made(net, name="sgd")


def step_of(net, optimizer, hyper, gradient=1.0):
    """How far one step moves each parameter of 1, by path."""

    def step(params, hyper):
        transform = optimizer(hyper, jnp.int32(0))
        grads = jax.tree.map(lambda x: jnp.full(x.shape, gradient), params)
        return transform.update(grads, transform.init(params), params)[0]

    params = jax.tree.map(lambda x: jnp.ones(x.shape), shapes(net))
    return tree.leaves(jax.jit(step)(params, hyper))


def test_a_config_trains_the_blocks_of_a_network_with_falling_rates():
    rules = ("stem/*: freeze", "head/*: learning_rate=10")
    found = step_of(RESNET20, *made(name="sgd", learning_rate=0.1, layer_decay=0.7, rules=rules))
    for path, change in found.items():
        block = path.rpartition("/conv")[0] or path.rpartition("/norm")[0]
        if path.startswith("stem"):
            expected = 0.0
        elif path.startswith("head"):
            expected = -1.0
        else:
            expected = -0.1 * 0.7 ** (len(BLOCKS) - BLOCKS.index(block))
        np.testing.assert_allclose(change, np.full(change.shape, expected), rtol=1e-5, err_msg=path)


def test_muon_of_a_config_leaves_the_first_and_the_last_kernel_to_adam():
    net = models.create("small", classes=10, width=4)
    params = shapes(net, (2, 28, 28, 1))
    config = Experiment(optimizer=Optimizer("muon", 0.5, args={"adam_share": 0.1}))
    optimizer, hyper = recipe.make(config, schedule.make("constant", steps=5), net, params, 10)
    opt = jax.eval_shape(lambda hyper: optimizer(hyper, jnp.int32(0)).init(params), hyper)
    second_moments = {path for path in tree.leaves(opt) if "/nu/" in path}
    assert {path.partition("/nu/")[2] for path in second_moments} == {
        path
        for path in tree.leaves(params)
        if not path.endswith("kernel") or path.startswith(("stem", "head"))
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rules": ("stm/*: freeze",)}, r"config\.optimizer\.rules: .*'stm/\*' matches no leaf"),
        ({"adaptive_clip_skips": ("head/*",)}, r"nothing is clipped without .*adaptive_clip"),
        (
            {"adaptive_clip": 0.1, "adaptive_clip_skips": ("haed/*",)},
            r"adaptive_clip_skips: .*'haed/\*' matches no leaf",
        ),
        ({"decay": ("*/kernle",)}, r"config\.optimizer\.decay: .*'\*/kernle' matches no leaf"),
        (
            {"name": "muon", "args": {"adam_paths": ("haed/*",)}},
            r"config\.optimizer\.args\.adam_paths: .*'haed/\*' matches no leaf",
        ),
        ({"name": "muon", "args": {"ns_steps": "five"}}, r"args are .*five.* not what it takes"),
    ],
)
def test_a_config_that_does_not_fit_the_network_is_refused(settings, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        made(**settings)
