"""The optimizers that there are, by name: all of optax, and a few as convolutions need them.

    find("adamw")                             # optax.adamw
    find("lars")                              # of this file, whose names come first
    find("optax:lars"), find("mine:sgd")      # any function, as package.module:function

Each is a function of a learning rate and of keywords. Those of this file only put optax's parts
together; `mask`, from parameters to a tree of bools, says which of them decay. Any number may be
traced.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
import optax.contrib
from jax import Array

from convjax import tree
from convjax.config import ConfigError
from convjax.names import imported, nearest
from convjax.training.groups import labels

Algorithm = Callable[..., optax.GradientTransformationExtraArgs]
Number = float | Array
Mask = Callable[[Any], Any] | bool


def names() -> list[str]:
    """The optimizers that need no more than gradients, in alphabetical order."""
    return sorted(ALGORITHMS | _of_optax())


def find(name: str) -> Algorithm:
    """The function of that name: of this file, of optax, or any as `package.module:function`.

    Raises:
        ConfigError: if there is none, with the nearest right name.
    """
    if ":" in name:
        try:
            found = imported(name, "config.optimizer.name")
            keywords = inspect.signature(found).parameters
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if "learning_rate" not in keywords:
            raise ConfigError(
                f"config.optimizer.name is {name!r}, which takes no learning_rate: give a function "
                "that makes an optimizer of it, as those of optax do"
            )
        return found
    known = _of_optax() | ALGORITHMS
    if name not in known:
        raise ConfigError(f"config.optimizer.name is {name!r}: {nearest(name, known)}")
    return known[name]


def lamb(
    learning_rate: Number,
    weight_decay: Number = 0.0,
    mask: Mask = True,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-6,
) -> optax.GradientTransformationExtraArgs:
    """Adam whose step is as long as the norm of each parameter says.

    You et al., Large batch optimization for deep learning, 2020, algorithm 2: the step, decay
    included, is scaled to the norm of the parameter, and multiplied by the learning rate. What does
    not decay takes the steps of Adam, as in the authors' code and in timm, with which ResNet
    strikes back was trained; `optax.lamb` scales that, too.
    """
    adapted = optax.chain(optax.add_decayed_weights(weight_decay), optax.scale_by_trust_ratio())
    return optax.chain(
        optax.scale_by_adam(b1, b2, eps),
        optax.masked(adapted, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def lars(
    learning_rate: Number,
    weight_decay: Number = 0.0,
    mask: Mask = True,
    trust_coefficient: Number = 0.001,
    momentum: Number = 0.9,
    nesterov: bool = False,
    eps: Number = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """SGD whose step is a given share of the norm of each parameter.

    You et al., Large batch training of convolutional networks, 2017, in the form of SimCLR's code:
    `optax.lars`, with which a parameter's learning rate is multiplied by `trust_coefficient * |w| /
    |g + weight_decay * w|`. (The paper divides by `|g| + weight_decay * |w|`, which is more by a
    factor of at most the root of 2 where a norm follows, as g is orthogonal to w there.) What does
    not decay takes the steps of SGD.
    """
    return optax.lars(
        *(learning_rate, weight_decay, mask, trust_coefficient, eps),
        trust_ratio_mask=mask,
        momentum=momentum,
        nesterov=nesterov,
    )


def muon(
    learning_rate: Number,
    weight_decay: Number = 0.0,
    mask: Mask = True,
    momentum: Number = 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
    adam_paths: Sequence[str] = (),
    adam_share: Number = 0.015,
    b1: Number = 0.9,
    b2: Number = 0.95,
    eps: Number = 1e-10,
) -> optax.GradientTransformationExtraArgs:
    """Momentum whose matrices are made orthogonal; AdamW for all that is no kernel.

    Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024, by
    `optax.contrib.scale_by_muon`. A kernel `[*window, in, out]` counts as the matrix
    `[window * in, out]`, as in airbench, and its step is `sqrt(max(1, out / (window * in)))` times
    an orthogonal matrix. (`optax.contrib.muon` leaves convolutions to Adam unless it is told, and
    decays all that Adam has, or nothing.) At the first steps Nesterov's momentum is corrected for
    its beginning at 0, as optax does and the authors' code does not.

    adam_paths: patterns of kernels that Adam trains, too: the first and the last, say the authors.
    adam_share: the learning rate of Adam as a share of `learning_rate`: 3e-4 to 0.02.
    b1, b2, eps: of Adam.
    """

    def kind(path: str, leaf: Array) -> str:
        return "adam" if leaf.ndim < 2 or tree.matches(path, adam_paths) else "muon"

    def axes(kernel: Array) -> optax.contrib.MuonDimensionNumbers:
        return optax.contrib.MuonDimensionNumbers(tuple(range(kernel.ndim - 1)), kernel.ndim - 1)

    def widened(kernel: Array) -> Array:
        out = kernel.shape[-1]
        return kernel * max(1, out / (kernel.size / out)) ** 0.5

    orthogonal = optax.chain(
        optax.contrib.scale_by_muon(
            ns_steps=ns_steps,
            beta=momentum,
            nesterov=nesterov,
            weight_dimension_numbers=functools.partial(jax.tree.map, axes),
        ),
        optax.stateless(lambda updates, _: jax.tree.map(widened, updates)),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )
    adam = optax.adamw(
        learning_rate * adam_share, b1, b2, eps, weight_decay=weight_decay, mask=mask
    )
    return optax.partition({"muon": orthogonal, "adam": adam}, functools.partial(labels, of=kind))


def rmsprop_tf(
    learning_rate: Number,
    decay: Number = 0.9,
    momentum: Number = 0.0,
    eps: Number = 1e-10,
    centered: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """RMSProp as TensorFlow 1 has it, with which EfficientNet and MobileNet were trained.

    `optax.rmsprop` whose mean square begins with 1, as timm's `RMSpropTF`: `eps` is added inside of
    the square root, and the momentum is that of steps which were multiplied by the learning rate of
    their time. Tan and Le, 2019, have `decay` 0.9, `momentum` 0.9 and `eps` 1e-3.
    """
    return optax.rmsprop(
        learning_rate, decay, eps, initial_scale=1.0, centered=centered, momentum=momentum
    )


ALGORITHMS: dict[str, Algorithm] = {
    "lamb": lamb,
    "lars": lars,
    "muon": muon,
    "rmsprop_tf": rmsprop_tf,
}

# Of optax: deprecated, or in need of a key or of the loss as a function.
_LEFT_OUT = {"optimistic_adam", "noisy_sgd", "lbfgs", "sophia"}


@functools.cache
def _of_optax() -> dict[str, Algorithm]:
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


def _needed(function: Algorithm) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.default is each.empty]
