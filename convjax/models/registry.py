"""The registry: from a name, or "package.module:function", to the function that makes a network."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from convjax.layer import Layer
from convjax.models import (
    airbench,
    all_cnn,
    convnext,
    lenet,
    mobilenet,
    resnet,
    small,
    vgg,
    wide_resnet,
)
from convjax.names import imported, nearest

_FAMILIES = {
    lenet: ["lenet5"],
    small: ["small"],
    all_cnn: ["all_cnn_c"],
    vgg: [f"vgg{depth}{bn}" for depth in (11, 13, 16, 19) for bn in ("", "_bn")],
    resnet: [f"resnet{depth}" for depth in (18, 34, 50, 101, 152, 20, 32, 44, 56, 110)],
    wide_resnet: ["wrn_16_4", "wrn_28_10", "wrn_40_4"],
    mobilenet: ["mobilenet_v2"],
    convnext: ["convnext_tiny", "convnext_small", "convnext_base"],
    airbench: ["airbench94"],
}
_MODELS: dict[str, Callable[..., Layer]] = {
    name: getattr(family, name) for family, names in _FAMILIES.items() for name in names
}


def names() -> list[str]:
    """The names that `create` knows, in alphabetical order."""
    return sorted(_MODELS)


def create(name: str, *, classes: int, **changes: Any) -> Layer:
    """The network of that name, with its own keywords changed.

    name: one of `names()`, or "package.module:function" for any function of `classes` that returns
        a layer.
    changes: the model's own keywords. One that takes a function takes its name too, written as
        "package.module:function", so that a config can say `norm="convjax.layers:group_norm"`.

    >>> from convjax import models
    >>> net = models.create("resnet18", classes=10, width=32)

    Raises:
        ValueError: for a name or a keyword that does not exist, with the nearest right one.
    """
    make = function_of(name)
    parameters = inspect.signature(make).parameters
    own = [keyword for keyword in parameters if keyword != "classes"]
    open_ended = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    if "classes" not in parameters and not open_ended:
        raise ValueError(f"model {name!r} does not take the keyword 'classes', as a model does")
    for keyword, value in changes.items():
        if keyword not in own and not open_ended:
            raise ValueError(
                f"model {name!r} has no keyword {keyword!r}: {nearest(keyword, own)} "
                f"(its keywords: {', '.join(own)})"
            )
        if isinstance(value, str) and keyword in own and _takes_function(parameters[keyword]):
            changes[keyword] = imported(value, f"{keyword} of model {name!r}")
    net = make(classes=classes, **changes)
    if not isinstance(net, Layer):
        raise ValueError(f"model {name!r} returned {type(net).__name__}, not a convjax Layer")
    return net


def function_of(name: str) -> Callable[..., Layer]:
    """The function that makes the network of that name.

    Raises:
        ValueError: if there is none, with the nearest name.
    """
    if ":" in name:
        return imported(name, "model")
    if name not in _MODELS:
        raise ValueError(
            f"there is no model {name!r}: {nearest(name, names())} "
            "(or name a function of your own as package.module:function)"
        )
    return _MODELS[name]


def _takes_function(parameter: inspect.Parameter) -> bool:
    # What stands for "no default" is a class, and so may be called.
    return parameter.default is not parameter.empty and callable(parameter.default)
