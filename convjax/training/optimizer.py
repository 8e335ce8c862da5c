"""Optimizers of optax by name, built inside the step from numbers that are arrays.

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
import optax
import optax.contrib
from jax import Array

from convjax import tree
from convjax.config import ConfigError
from convjax.layer import Params
from convjax.names import nearest
from convjax.training.schedule import Schedule

Optimizer = Callable[["Hyper", Array], optax.GradientTransformationExtraArgs]


class Hyper(NamedTuple):
    """The numbers of a step that a sweep may vary, each a float32 scalar.

    learning_rate: the schedule's peak.
    weight_decay, label_smoothing: as the config has them.
    args: those keywords of the optimizer that are floats, such as momentum.
    """

    learning_rate: Array
    weight_decay: Array
    label_smoothing: Array
    args: dict[str, Array]


def hyper_of(
    learning_rate: float,
    weight_decay: float = 0.0,
    label_smoothing: float = 0.0,
    args: Mapping[str, Any] = {},
) -> Hyper:
    """The numbers as arrays; of the optimizer's keywords, those that are floats."""
    floats = {name: value for name, value in args.items() if isinstance(value, float)}
    numbers: Any = (learning_rate, weight_decay, label_smoothing, floats)
    return Hyper(*jax.tree.map(lambda number: jnp.asarray(number, jnp.float32), numbers))


def make(
    name: str,
    schedule: Schedule,
    *,
    decay: Sequence[str] = ("*/kernel",),
    clip_norm: float | None = None,
    args: Mapping[str, Any] = {},
) -> Optimizer:
    """An optimizer of optax (or of `optax.contrib`): `(hyper, step) -> GradientTransformation`.

    The structure of its state depends on none of the numbers.

    schedule: from the step to a share of `hyper.learning_rate`.
    decay: patterns of the paths of the parameters that decay. An optimizer with a weight decay of
        its own and a mask for it (adamw, lion, lamb, lars, muon, ...) uses these; for any other
        (sgd, rmsprop, adam, ...) `weight_decay * parameter` is added to the gradient first, which
        is L2 regularisation and what `torch.optim.SGD` does.
    clip_norm: the global norm that the gradient is scaled down to, before anything is added to it.
    args: further keywords of the optax function; the floats among them are taken from `hyper`.

    Raises:
        ConfigError: for a name or a keyword that does not exist, with the nearest right one.
    """
    function = _function(name)
    keywords = inspect.signature(function).parameters
    ours = {"learning_rate", "weight_decay", "mask", "weight_decay_mask"}
    for each in args:
        if each not in keywords or each in ours:
            raise ConfigError(
                f"config.optimizer.args has {each!r}, which optax.{name} does not take: "
                f"{nearest(each, set(keywords) - ours)}"
            )
    mask = next((each for each in ("mask", "weight_decay_mask") if each in keywords), None)
    decouples = mask is not None and "weight_decay" in keywords
    static = {each: value for each, value in args.items() if not isinstance(value, float)}
    chosen = functools.partial(decayed, patterns=decay)

    def optimizer(hyper: Hyper, step: Array) -> optax.GradientTransformationExtraArgs:
        rate = hyper.learning_rate * schedule(step)
        native = {"weight_decay": hyper.weight_decay, mask: chosen} if decouples else {}
        parts = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
        if not decouples:
            parts.append(optax.add_decayed_weights(hyper.weight_decay, chosen))
        with _loose_types():
            parts.append(function(rate, **static, **hyper.args, **native))
        return _in_loose_types(optax.chain(*parts))

    return optimizer


def names() -> list[str]:
    """The optimizers that need no more than gradients, in alphabetical order."""
    return sorted(_functions())


def decayed(params: Params, patterns: Sequence[str]) -> Any:
    """A tree of bools: which parameters decay."""
    chosen = [tree.matches(path, patterns) for path in tree.leaves(params)]
    return jax.tree.unflatten(jax.tree.structure(params), chosen)


def check_decay(params: Params, patterns: Sequence[str]) -> None:
    """Raises ConfigError if a pattern of what decays matches no parameter."""
    rules = [(pattern, True) for pattern in patterns]
    if not all(jax.tree.leaves(decayed(params, patterns))):
        rules.append(("*", False))
    try:
        tree.match(params, rules)
    except ValueError as error:
        raise ConfigError(f"config.optimizer.decay: {error}") from None


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


# Deprecated, or in need of a key or of the loss as a function.
_LEFT_OUT = {"optimistic_adam", "noisy_sgd", "lbfgs", "sophia"}


@functools.cache
def _functions() -> dict[str, Callable[..., optax.GradientTransformationExtraArgs]]:
    """The functions that make an optimizer of a learning rate; optax's own win over contrib's."""
    return {
        name: value
        for module in (optax.contrib, optax)
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and not name.startswith(("_", "scale_by"))
        and name not in _LEFT_OUT
        and _needed(value) in ([], ["learning_rate"])
        and "learning_rate" in inspect.signature(value).parameters
    }


def _needed(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.default is each.empty]


def _function(name: str) -> Callable[..., optax.GradientTransformationExtraArgs]:
    known = _functions()
    if name not in known:
        raise ConfigError(f"config.optimizer.name is {name!r}: {nearest(name, known)}")
    return known[name]


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
