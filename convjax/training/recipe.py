"""What a config says about optimizer and loss, made and checked for one network.

optimizer, hyper = make(config, schedule, net, params, classes=10)
print(table(config.optimizer, net, params))       # every parameter, and how it is trained
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import Array, lax

from convjax import config, tree
from convjax.config import ConfigError, Experiment
from convjax.layer import Layer, Params
from convjax.surgery import walk
from convjax.training import depth, groups, loss
from convjax.training import optimizer as optimizers
from convjax.training.algorithms import find
from convjax.training.average import Average, moving_average
from convjax.training.optimizer import Hyper, Optimizer
from convjax.training.rules import parse
from convjax.training.schedule import Schedule
from convjax.training.state import TrainState
from convjax.training.transforms import sharpness_aware, slow_weights


def make(
    config: Experiment,
    schedule: Schedule,
    net: Layer,
    params: Params,
    classes: int,
    epoch: int = 1,
    *,
    tries: bool = True,
) -> tuple[Optimizer, Hyper]:
    """The optimizer of a config, and the numbers of its steps.

    params: of `net`, or their shapes. epoch: the steps of an epoch.
    tries: whether a step is traced; not needed where one of the same structure has been.

    Raises:
        ConfigError: if optimizer or loss do not take what they are given, or do not fit the
            parameters. Nothing is computed.
    """
    chosen = config.optimizer
    rules = [parse(text) for text in chosen.rules]
    for key, patterns in (
        ("decay", chosen.decay),
        ("adaptive_clip_skips", chosen.adaptive_clip_skips),
        ("args.adam_paths", chosen.args.get("adam_paths", ())),
    ):
        groups.check_patterns(params, patterns, f"config.optimizer.{key}")
    groups.check_rules(params, rules, _decays(chosen, params))
    _check_use(chosen)
    _check_stacks(net, chosen)
    args = _with_ends(chosen, net, params)
    optimizer = optimizers.make(
        chosen.name,
        schedule,
        decay=chosen.decay,
        clip_norm=chosen.clip_norm,
        adaptive_clip=chosen.adaptive_clip,
        adaptive_clip_skips=chosen.adaptive_clip_skips,
        rules=rules,
        depths=_depths(chosen, net, params),
        lookahead_steps=chosen.lookahead_steps,
        lookahead_share=chosen.lookahead_share,
        epoch=epoch,
        args=args,
    )
    hyper = optimizers.hyper_of(
        chosen.learning_rate,
        chosen.weight_decay,
        config.loss.label_smoothing,
        args,
        loss=loss.numbers(config.loss, classes),
        rules=rules,
        layer_decay=chosen.layer_decay,
        sam_rho=chosen.sam_rho or 0.0,
    )
    if tries:
        optimizers.check_step(optimizer, hyper, params, chosen.args)
    return optimizer, hyper


def held(chosen: config.Optimizer) -> Callable[[Params], Params] | None:
    """What stops the gradient of the parameters that the rules freeze; None where none is."""
    rules = [parse(text) for text in chosen.rules]
    if not any(rule.frozen for rule in rules):
        return None

    def hold(params: Params) -> Params:
        groups_of = groups.assign(params, rules)
        leaves = tree.leaves(params).items()
        kept = (
            lax.stop_gradient(leaf) if groups_of[path].frozen else leaf for path, leaf in leaves
        )
        return jax.tree.unflatten(jax.tree.structure(params), list(kept))

    return hold


def sharpened(chosen: config.Optimizer) -> Callable[[Any, Array], Any] | None:
    """What makes the gradient of a step sharpness-aware: `(gradient, rho) -> gradient`, or None."""
    if chosen.sam_rho is None:
        return None
    return functools.partial(sharpness_aware, rules=[parse(text) for text in chosen.rules])


def evaluated(chosen: config.Optimizer, state: TrainState) -> Params:
    """The parameters to evaluate and to keep: the slow weights of an optimizer that looks ahead.

    Zhang et al., Lookahead optimizer, 2019, evaluate the slow weights. Any other optimizer's are
    those of the state.
    """
    return slow_weights(state.opt, state.params) if chosen.lookahead_steps else state.params


def followed(chosen: config.Average, steps: int, epoch: int) -> Average | None:
    """What follows the parameters from step to step; None where nothing does.

    steps: of the whole run. epoch: the steps of one.
    """
    if chosen.decay is None:
        return None
    return moving_average(
        chosen.decay,
        chosen.every,
        power=chosen.power,
        start=round(chosen.from_epoch * epoch),
        steps=steps,
        write_back=chosen.write_back,
    )


def table(chosen: config.Optimizer, net: Layer, params: Params) -> str:
    """Every parameter once, in groups that are trained alike, as text."""
    return groups.table(
        params,
        [parse(text) for text in chosen.rules],
        _decays(chosen, params),
        learning_rate=chosen.learning_rate,
        weight_decay=chosen.weight_decay,
        layer_decay=chosen.layer_decay,
        depths=_depths(chosen, net, params),
    )


def _decays(chosen: config.Optimizer, params: Params) -> dict[str, bool]:
    return {path: tree.matches(path, chosen.decay) for path in tree.leaves(params)}


def _depths(chosen: config.Optimizer, net: Layer, params: Params) -> Mapping[str, int]:
    """How deep each parameter lies, where the learning rate asks for it."""
    return {} if chosen.layer_decay == 1 else depth.depths(net, params)


def _with_ends(chosen: config.Optimizer, net: Layer, params: Params) -> dict[str, Any]:
    """The keywords of the optimizer; of muon, the first and the last kernel are for Adam."""
    takes = inspect.signature(find(chosen.name)).parameters
    if "adam_paths" not in takes or "adam_paths" in chosen.args:
        return chosen.args
    return chosen.args | {"adam_paths": tuple(depth.ends(net, params))}


def _check_use(chosen: config.Optimizer) -> None:
    """Raises ConfigError where one key is given and another, without which it does nothing, not."""
    if chosen.adaptive_clip_skips and chosen.adaptive_clip is None:
        raise ConfigError(
            f"config.optimizer.adaptive_clip_skips is {chosen.adaptive_clip_skips}: nothing is "
            "clipped without config.optimizer.adaptive_clip; give it, such as 0.01"
        )


def _check_stacks(net: Layer, chosen: config.Optimizer) -> None:
    """Raises ConfigError where norms of kernels are asked for and one array holds several."""
    stacks = [path for path, part in walk(net) if part.kind == "stack"]
    name = chosen.name.rpartition(":")[-1]
    if stacks and (name in _WHOLE_KERNELS or chosen.adaptive_clip is not None):
        key = "name" if chosen.adaptive_clip is None else "adaptive_clip"
        raise ConfigError(
            f"config.optimizer.{key} is {getattr(chosen, key)!r}, which takes each kernel by "
            f"itself: the stack {stacks[0]!r} keeps those of its copies in one array; build it by "
            "repeat"
        )


# They take norms, or singular values, of a whole kernel.
_WHOLE_KERNELS = ("adafactor", "fromage", "lamb", "lars", "muon", "novograd")
