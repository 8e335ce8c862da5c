"""What of a network its story tells: which convolutions, what follows them, and who votes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from convjax import tree
from convjax.config import UserError
from convjax.insight import relus
from convjax.insight.explanation.attribution import last_maps
from convjax.insight.explanation.votes import last_dense
from convjax.insight.inspection.receptive import ReceptiveField, receptive_fields
from convjax.insight.passes import Called, called, with_inputs
from convjax.insight.unrolled import unrolled
from convjax.layer import Layer, Params, State
from convjax.names import nearest
from convjax.trained import Trained


class Followed(NamedTuple):
    """A convolution that is told of, and the parts that its maps go through after it."""

    conv: Called
    after: tuple[Called, ...]


class Plan(NamedTuple):
    """What of a network is told.

    network: with its parameters and state, where each call of a part is a part (`unrolled`).
    seeing: the same, where what goes into `inputs` is an activation: `PATH/input`.
    repeated: whether parts of the network are called several times.
    calls: all of its parts, in the order of the calls.
    convs: those that are told of. left_out: the paths of the others.
    fields: receptive fields by path.
    relus: whether it calls any, for guided backpropagation.
    final: the last maps before the head, whose places vote, if there are any.
    seen: the last maps of all, which Grad-CAM looks at, if there are any.
    head: the last dense layer, or why there is none.
    """

    network: tuple[Layer, Params, State]
    seeing: tuple[Layer, Params, State]
    inputs: tuple[str, ...]
    repeated: bool
    calls: list[Called]
    convs: list[Followed]
    left_out: list[str]
    fields: dict[str, ReceptiveField]
    relus: bool
    final: str | None
    seen: str | None
    head: Called | str


def planned(model: Trained, layers: str | None = None, most: int = 6) -> Plan:
    """What is told of a network: `most` convolutions spread over its depth, or those asked for.

    Of a network with many, those whose windows have several places are told of.

    layers: a pattern of their paths.

    Raises:
        UserError: if the pattern matches no convolution that could be told of, or there is but one
            class, for which nothing can be voted.
    """
    if len(model.classes) < 2:
        raise UserError(f"{model.log.folder} knows one class only: there is no vote to explain")
    spec = jax.ShapeDtypeStruct((1, *model.shape), jnp.float32)
    network = unrolled(model.net, model.params, model.state, spec)
    net, params, state = network
    calls, fields = called(net, spec), receptive_fields(net, spec)
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
        leaves = tree.leaves(params)
        wide = [call for call in convs if _has_window(leaves.get(f"{call.path}/kernel"))]
        among = wide if len(wide) >= most else convs
        picked = np.unique(np.round(np.linspace(0, len(among) - 1, most)).astype(int))
        chosen = [among[number] for number in picked]
    told = {call.path for call in chosen}
    head: Called | str
    try:
        head = last_dense(net, spec)
    except ValueError as error:
        head = str(error)
    paths = [call.path for call in calls]
    stop = paths.index(head.path) if isinstance(head, Called) else len(paths)
    finals = [call.path for call in calls[:stop] if len(call.made.shape) == 4]
    try:
        seen = last_maps(net, spec)
    except ValueError:
        seen = None
    followed = [Followed(call, _after(calls, call)) for call in chosen]
    owners = [*tree.leaves(params), *tree.leaves(state)]
    inputs = [
        call.path
        for each in followed
        for call in each.after
        if not any(name.startswith(f"{call.path}/") for name in owners)
    ]
    if isinstance(head, Called):
        inputs.append(head.path)
    return Plan(
        network,
        with_inputs(net, params, state, inputs),
        tuple(inputs),
        net is not model.net,
        calls,
        followed,
        [call.path for call in convs if call.path not in told],
        fields,
        bool(relus.called(model.net, spec)),
        finals[-1] if finals else None,
        seen,
        head,
    )


# What changes nothing when a network is evaluated.
STILL = ("identity", "dropout", "spatial_dropout", "drop_path")


def _after(calls: Sequence[Called], conv: Called) -> tuple[Called, ...]:
    """What the maps of a convolution go through, feature by feature, up to the next one."""
    found, maps = [], conv.made.shape
    for call in calls[calls.index(conv) + 1 :]:
        if call.part.parts or call.kind in STILL:
            continue
        shape = call.made.shape
        if call.kind == "conv" or len(shape) != 4 or shape[-1] != conv.made.shape[-1]:
            break
        if getattr(call.given, "shape", None) != maps:
            continue  # It is given something else, as the shortcut of a block is.
        found.append(call)
        maps = shape
    return tuple(found)


def _has_window(kernel: Any) -> bool:
    """Whether a kernel sees several places; of one that is not known it is taken to be so."""
    return kernel is None or max(kernel.shape[:-2]) > 1
