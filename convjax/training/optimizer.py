"""Optimizers by name, built inside the step from numbers that are arrays.

    optimizer = make("sgd", schedule, args={"momentum": 0.9})
    hyper = hyper_of(learning_rate=0.1, weight_decay=5e-4, args={"momentum": 0.9})
    transform = optimizer(hyper, step)                       # an optax.GradientTransformation

So a new learning rate compiles nothing, and `jax.vmap` trains many members with their own.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from convjax import tree
from convjax.config import ConfigError
from convjax.layer import Params
from convjax.names import nearest
from convjax.training.algorithms import find, names
from convjax.training.groups import (
    Factors,
    Group,
    all_but_frozen,
    by_group,
    factors_of,
    labels,
)
from convjax.training.rules import Rule
from convjax.training.schedule import Schedule
from convjax.training.transforms import adaptive_clip as clip_by_unit
from convjax.training.transforms import lookahead

__all__ = [
    "Hyper",
    "Optimizer",
    "check_step",
    "decayed",
    "hyper_of",
    "make",
    "names",
]

Optimizer = Callable[["Hyper", Array], optax.GradientTransformationExtraArgs]


class Hyper(NamedTuple):
    """The numbers of a step that a sweep may vary, each float32 and mostly a scalar.

    learning_rate: the schedule's peak.
    weight_decay, label_smoothing: as the config has them.
    args: those keywords of the optimizer that are floats, such as momentum.
    loss: the keywords of the loss, such as gamma.
    rules: the factors of the rules about parameters.
    layer_decay: by how much the learning rate falls with each layer before the last.
    sam_rho: the radius of sharpness-aware minimisation.
    """

    learning_rate: Array
    weight_decay: Array
    label_smoothing: Array
    args: dict[str, Array]
    loss: dict[str, Array]
    rules: Factors
    layer_decay: Array
    sam_rho: Array


def hyper_of(
    learning_rate: float,
    weight_decay: float = 0.0,
    label_smoothing: float = 0.0,
    args: Mapping[str, Any] = {},
    *,
    loss: Mapping[str, Any] = {},
    rules: Sequence[Rule] = (),
    layer_decay: float = 1.0,
    sam_rho: float = 0.0,
) -> Hyper:
    """The numbers as arrays; of the optimizer's keywords, those that are floats."""
    floats = {name: value for name, value in args.items() if isinstance(value, float)}

    def array(number: Any) -> Array:
        return jnp.asarray(np.asarray(number), jnp.float32)

    return Hyper(
        *map(array, (learning_rate, weight_decay, label_smoothing)),
        args={name: array(value) for name, value in floats.items()},
        loss={name: array(value) for name, value in loss.items()},
        rules=factors_of(rules),
        layer_decay=array(layer_decay),
        sam_rho=array(sam_rho),
    )


def make(
    name: str,
    schedule: Schedule,
    *,
    decay: Sequence[str] = ("*/kernel",),
    clip_norm: float | None = None,
    adaptive_clip: float | None = None,
    adaptive_clip_skips: Sequence[str] = (),
    rules: Sequence[Rule] = (),
    depths: Mapping[str, int] = {},
    lookahead_steps: int = 0,
    lookahead_share: float = 0.5,
    epoch: int = 1,
    args: Mapping[str, Any] = {},
) -> Optimizer:
    """An optimizer of `convjax.training.algorithms`: `(hyper, step) -> GradientTransformation`.

    The structure of its state depends on none of the numbers in `hyper`.

    schedule: from the step to a share of `hyper.learning_rate`.
    decay: patterns of the paths of the parameters that decay. An optimizer with a weight decay of
        its own and a mask for it (adamw, lion, lamb, lars, muon, ...) uses these; for any other
        (sgd, rmsprop, adam, ...) `weight_decay * parameter` is added to the gradient first, which
        is L2 regularisation and what `torch.optim.SGD` does.
    clip_norm: the global norm that the gradient is scaled down to, before anything is added to it.
        Only what is trained counts.
    adaptive_clip, adaptive_clip_skips: as in `transforms.adaptive_clip`, before `clip_norm`.
    rules: factors of learning rate and decay by path, and what is frozen; of the rules that match a
        path the first holds. Their factors are taken from `hyper`. Each group is trained as though
        by an optimizer of its own, as with the parameter groups of PyTorch.
    depths: how many layers lie between each parameter and the end, by path (`depth.depths`): its
        learning rate is multiplied by `hyper.layer_decay` as many times.
    lookahead_steps, lookahead_share: as `every` and `share` of `transforms.lookahead`; 0 is none.
    epoch: the steps of an epoch, for rules that end.
    args: further keywords of the function; the floats among them are taken from `hyper`.

    Raises:
        ConfigError: for a name or a keyword that does not exist, with the nearest right one, and
            for a momentum of 1 or more, or none where Nesterov's is asked for.
    """
    function = find(name)
    keywords = inspect.signature(function).parameters
    _check_args(name, keywords, args)
    mask = next((each for each in ("mask", "weight_decay_mask") if each in keywords), None)
    decouples = mask is not None and "weight_decay" in keywords
    static = {each: value for each, value in args.items() if not isinstance(value, float)}
    chosen = functools.partial(decayed, patterns=decay)

    def optimizer(hyper: Hyper, step: Array) -> optax.GradientTransformationExtraArgs:
        peak = hyper.learning_rate * schedule(step)

        def of_group(group: Group) -> optax.GradientTransformation:
            rate, weight_decay = peak, hyper.weight_decay
            if group.rule is not None:
                rate = rate * hyper.rules.learning_rate[group.rule]
                if until := rules[group.rule].until_epoch:
                    rate = jnp.where(step < round(until * epoch), rate, 0.0)
                weight_decay = weight_decay * hyper.rules.weight_decay[group.rule]
            if group.depth:
                rate = rate * hyper.layer_decay**group.depth
            with _loose_types():
                if decouples:
                    native = {"weight_decay": weight_decay, mask: chosen}
                    return function(rate, **static, **hyper.args, **native)
                return optax.chain(
                    optax.add_decayed_weights(weight_decay, chosen),
                    function(rate, **static, **hyper.args),
                )

        parts: list[Any] = []
        if adaptive_clip is not None:
            parts.append(clip_by_unit(adaptive_clip, adaptive_clip_skips))
        if clip_norm is not None:
            parts.append(optax.clip_by_global_norm(clip_norm))
        inner = by_group(of_group, rules, depths)
        if lookahead_steps:
            inner = lookahead(inner, every=lookahead_steps, share=lookahead_share)
        return _in_loose_types(all_but_frozen(optax.chain(*parts, inner), rules))

    return optimizer


def decayed(params: Params, patterns: Sequence[str]) -> Any:
    """A tree of bools: which parameters decay."""
    return labels(params, lambda path, _: tree.matches(path, patterns))


def check_step(optimizer: Optimizer, hyper: Hyper, params: Params, args: Mapping[str, Any]) -> None:
    """Raises ConfigError if the optimizer cannot take a step on parameters of these shapes.

    Nothing is computed. So a keyword of the wrong type is found before training begins.

    args: what `make` was given, for the message.
    """

    def step(hyper: Hyper, params: Params) -> Any:
        transform = optimizer(hyper, jnp.zeros((), jnp.int32))
        return transform.update(params, transform.init(params), params, value=jnp.zeros(()))

    try:
        jax.eval_shape(step, hyper, params)
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"config.optimizer.args are {dict(args)}, of which one is not what it takes: {reason}"
        ) from error


def _check_args(name: str, keywords: Mapping[str, Any], args: Mapping[str, Any]) -> None:
    """Raises ConfigError for a keyword that the optimizer does not take, or an odd momentum."""
    ours = {"learning_rate", "weight_decay", "mask", "weight_decay_mask"}
    for each, value in args.items():
        if each not in keywords or each in ours:
            raise ConfigError(
                f"config.optimizer.args has {each!r}, which {name} does not take: "
                f"{nearest(each, set(keywords) - ours)}"
            )
        if each in _SHARES and not (isinstance(value, int | float) and 0 <= value < 1):
            raise ConfigError(
                f"config.optimizer.args.{each} is {value!r}: give 0 or more and less than 1"
            )
    momentum = keywords.get("momentum")
    if args.get("nesterov") and momentum and not args.get("momentum", momentum.default):
        raise ConfigError(
            "config.optimizer.args has nesterov without a momentum: give one, such as 0.9"
        )


# The keywords that say how much of an average is kept.
_SHARES = ("b1", "b2", "b3", "beta", "decay", "decay_rate", "momentum")


def _in_loose_types(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """The same transformation, also where a user has JAX refuse to promote types and ranks."""
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> Any:
        with _loose_types():
            return inner.init(params)

    def update(updates: Any, state: Any, params: Any = None, **more: Any) -> tuple[Any, Any]:
        with _loose_types():
            return inner.update(updates, state, params, **more)

    return optax.GradientTransformationExtraArgs(init, update)


@contextlib.contextmanager
def _loose_types() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
