"""What of a network its story tells: which convolutions, what follows them, and who votes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from convjax import tree
from convjax.config import UserError
from convjax.insight.explanation.attribution import last_maps
from convjax.insight.explanation.votes import last_dense
from convjax.insight.inspection.receptive import ReceptiveField, receptive_fields
from convjax.insight.passes import Called, called, with_inputs
from convjax.layer import Layer, Params, State
from convjax.names import nearest
from convjax.trained import Trained


class Followed(NamedTuple):
    """A convolution that is told of, and the parts that its maps go through after it."""

    conv: Called
    after: tuple[Called, ...]


class Plan(NamedTuple):
    """What of a network is told.

    network: with its parameters and state, so that what goes into `inputs` is an activation:
        `PATH/input`.
    calls: all of its parts that are called once, in the order of the calls.
    convs: those that are told of. left_out: the paths of the others.
    repeated: the paths of convolutions that are called several times, of which none is told.
    fields: receptive fields by path.
    final: the last maps before the head, whose places vote, if there are any.
    seen: the last maps of all, which Grad-CAM looks at, if there are any.
    head: the last dense layer, or why there is none.
    """

    network: tuple[Layer, Params, State]
    inputs: tuple[str, ...]
    calls: list[Called]
    convs: list[Followed]
    left_out: list[str]
    repeated: list[str]
    fields: dict[str, ReceptiveField]
    final: str | None
    seen: str | None
    head: Called | str


def planned(model: Trained, layers: str | None = None, most: int = 6) -> Plan:
    """What is told of a network: `most` convolutions spread over its depth, or those asked for.

    layers: a pattern of their paths.

    Raises:
        UserError: if the pattern matches no convolution that could be told of, or there is but one
            class, for which nothing can be voted.
    """
    if len(model.classes) < 2:
        raise UserError(f"{model.log.folder} knows one class only: there is no vote to explain")
    spec = jax.ShapeDtypeStruct((1, *model.shape), jnp.float32)
    calls, fields = called(model.net, spec), receptive_fields(model.net, spec)
    convs = [
        call
        for call in calls
        if call.kind == "conv" and len(call.made.shape) == 4 and call.path in fields
    ]
    chosen = convs
    if layers is not None:
        chosen = [call for call in convs if tree.matches(call.path, layers)]
        if not chosen:
            hint = nearest(layers, [call.path for call in convs])
            raise UserError(f"--layers={layers} matches no convolution: {hint}")
    elif len(convs) > most:
        picked = np.unique(np.round(np.linspace(0, len(convs) - 1, most)).astype(int))
        chosen = [convs[number] for number in picked]
    told = {call.path for call in chosen}
    head: Called | str
    try:
        head = last_dense(model.net, spec)
    except ValueError as error:
        head = str(error)
    paths = [call.path for call in calls]
    stop = paths.index(head.path) if isinstance(head, Called) else len(paths)
    finals = [call.path for call in calls[:stop] if len(call.made.shape) == 4]
    try:
        seen = last_maps(model.net, spec)
    except ValueError:
        seen = None
    followed = [Followed(call, _after(calls, call)) for call in chosen]
    inputs = [call.path for each in followed for call in each.after if not _owns(model, call.path)]
    if isinstance(head, Called):
        inputs.append(head.path)
    return Plan(
        with_inputs(model.net, model.params, model.state, inputs),
        tuple(inputs),
        calls,
        followed,
        [call.path for call in convs if call.path not in told],
        [path for path in _convolutions(model.params) if path not in paths],
        fields,
        finals[-1] if finals else None,
        seen,
        head,
    )


# What changes nothing when a network is evaluated.
_STILL = ("identity", "dropout", "spatial_dropout", "drop_path")


def _after(calls: Sequence[Called], conv: Called) -> tuple[Called, ...]:
    """What the maps of a convolution go through, feature by feature, up to the next one."""
    leaves, found = _leaves(calls), []
    for call in calls[calls.index(conv) + 1 :]:
        if call.path not in leaves or call.kind in _STILL:
            continue
        shape = call.made.shape
        if call.kind == "conv" or len(shape) != 4 or shape[-1] != conv.made.shape[-1]:
            break
        found.append(call)
    return tuple(found)


def _leaves(calls: Sequence[Called]) -> dict[str, Called]:
    """The calls of parts that have no parts."""
    return {call.path: call for call in calls if not call.part.parts}


def _convolutions(params: Params) -> list[str]:
    """The paths of kernels that have windows."""
    leaves = tree.leaves(params)
    return [
        path.removesuffix("/kernel")
        for path, leaf in leaves.items()
        if path.endswith("/kernel") and leaf.ndim >= 4
    ]


def _owns(model: Trained, path: str) -> bool:
    """Whether a part has parameters or state."""
    names = [*tree.leaves(model.params), *tree.leaves(model.state)]
    return any(name.startswith(f"{path}/") for name in names)
