"""Names the layer in which numbers of a step of training stop being finite, forward or backward.

    def program(net, loss):
        return make_step(net, optimizer, loss, prepare=prepare, ...)

    print(blame(program, net, loss, state, batch, hyper))

The step is taken once more, with every layer told to say whether what goes in and what comes out is
finite. A layer is to blame if only the latter is not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from convjax import tree
from convjax.compiler import compiler_options
from convjax.layer import Context, Layer, Params, State
from convjax.surgery import rewrite
from convjax.training import watch
from convjax.training.loss import Loss


class Summary(NamedTuple):
    """What numbers are: how many NaN and infinities, of how many, and the range of the others."""

    nans: int
    infinities: int
    count: int
    low: float
    high: float

    @property
    def is_finite(self) -> bool:
        """Whether all of them are."""
        return not (self.nans or self.infinities)

    def __str__(self) -> str:
        found = [(self.nans, "NaN"), (self.infinities, "infinite")]
        bad = " and ".join(f"{count} {what}" for count, what in found if count)
        return f"{bad} of {self.count}" if bad else f"from {self.low:.3g} to {self.high:.3g}"


class Call(NamedTuple):
    """One call of a layer, forward or backward.

    given, made: what went in and what came out, by name.
    """

    path: str
    kind: str
    backward: bool
    given: Mapping[str, Summary]
    made: Mapping[str, Summary]

    def is_to_blame(self) -> bool:
        """Whether what it was called with is finite and what it made is not.

        Its own parameters and statistics may be bad going forward, and nothing going backward.
        """
        good = not _bad(self.given) if self.backward else self.given[_INPUT].is_finite
        return good and bool(_bad(self.made))


def blame(
    program: Callable[[Layer, Loss], Callable[..., Any]],
    net: Layer,
    loss: Loss,
    state: Any,
    batch: Any,
    *rest: Any,
) -> str:
    """One sentence: the first layer of a step whose numbers are not finite, and what they are.

    That is the layer nearest to the images whose output is not finite; if there is none, the one
    nearest to the loss whose gradients are not; else what the optimizer has made of good gradients.
    A layer is not to blame where its input is not finite already.

    program: of a network and its loss, the function `(state, batch, *rest) -> (state, metrics)`
        that takes the step: that of `make_step` with axis=None, also in the form of a feed.
    state: the `TrainState` before the step. After a skipped one it is the same, but for `step`,
        which is to be set back.
    batch, rest: as for the step that is to be looked at.

    It runs on one device. Where the step ran on several, sums may round otherwise.
    """
    calls: list[Call] = []
    places: dict[str, int] = {}
    told = program(_telling(net, calls, places), _telling_loss(loss, calls, places))
    names = watch.names(state.params, state.state)
    state = state._replace(watch=watch.start())
    device = jax.local_devices()[0]
    step = jax.jit(told, compiler_options=compiler_options(device.platform))
    after, _ = step(*jax.device_put((state, batch, *rest), device))
    jax.block_until_ready(after)
    jax.effects_barrier()
    where = f"step {int(state.step)}"
    culprit = int(after.watch.culprit)
    if culprit < 0:
        return f"{where}: every number is finite when the step is taken once more"
    name = names[culprit]
    for call in calls:
        if not call.path and not call.backward and not call.given[_INPUT].is_finite:
            return f"{where}: the images that the network is given are {call.given[_INPUT]}"
    forward = name == "loss" or name.startswith("batch statistic")
    if not forward and not name.startswith("gradient"):
        return (
            f"{where}: all gradients are finite, and the {name} is not after the optimizer's "
            "update: is the learning rate too large?"
        )
    # Of two passes over a batch, the second may begin with what the first has spoiled.
    for backward in (not forward, forward):
        if call := _first_to_blame(calls, places, backward):
            return f"{where}: {_told(call)}"
    return f"{where}: the {name} is not finite, but every layer makes finite numbers of finite ones"


# -- What is told ----------------------------------------------------------------------------------

_INPUT = "input"
_LOSS = "the loss"  # as a path; no part can be called so


def _told(call: Call) -> str:
    """Why this call is to blame."""
    made = ", ".join(f"{name}: {summary}" for name, summary in _bad(call.made).items())
    if call.path == _LOSS:
        who = "the gradient of the loss" if call.backward else _LOSS
        given = ", ".join(f"{name} {summary}" for name, summary in call.given.items())
        return f"{who} is the first that is not finite ({made}), of {given}"
    who = f"{call.path} ({call.kind})" if call.path else "the network"
    of = call.given[_INPUT]
    if call.backward:
        return (
            f"{who} is the first in the backward pass whose gradients are not finite ({made}); "
            f"the gradient of its output is {of}"
        )
    own = {name: each for name, each in call.given.items() if name != _INPUT}
    why = "".join(f"; its {name} is {summary}" for name, summary in _bad(own).items())
    return f"{who} is the first whose output is not finite ({made}); its input is {of}{why}"


def _first_to_blame(calls: list[Call], places: Mapping[str, int], backward: bool) -> Call | None:
    """The one that came first in that direction; of a layer and its parts, the part."""
    guilty = [call for call in calls if call.backward is backward and call.is_to_blame()]
    inner = [call for call in guilty if not any(_inside(one, call) for one in guilty)]
    first = max if backward else min
    return first(inner, key=lambda call: places[call.path], default=None)


def _inside(call: Call, other: Call) -> bool:
    """Whether the one is a call of a part of what the other calls."""
    if not other.path:
        return call.path not in ("", _LOSS)
    return call.path.startswith(f"{other.path}/")


def _bad(summaries: Mapping[str, Summary]) -> dict[str, Summary]:
    return {name: each for name, each in summaries.items() if not each.is_finite}


# -- A network that tells --------------------------------------------------------------------------


def _telling(net: Layer, calls: list[Call], places: dict[str, int]) -> Layer:
    """The same network, each of whose parts tells of its calls, and notes its place in them."""

    def tells(path: str, part: Layer) -> Layer:
        def apply(params: Params, state: State, x: Any, ctx: Context = Context()):
            def called(params: Params, state: State, key: Array | None, x: Any) -> Any:
                return part.apply(params, state, x, replace(ctx, key=key))

            places.setdefault(ctx.path, len(places))
            tell = functools.partial(_tell, calls, ctx.path, part.kind)
            return _observed(called, tell)(params, state, ctx.key, x)

        return part._replace(apply=apply)

    return tells("", rewrite(net, tells))


def _telling_loss(loss: Loss, calls: list[Call], places: dict[str, int]) -> Loss:
    """The same loss, which tells of its call."""

    def telling(logits: Array, labels: Array, *rest: Any, **numbers: Any) -> tuple[Array, Array]:
        def called(_: Params, labels: State, key: None, logits: Array) -> Any:
            return loss(logits, labels["labels"], *rest, **numbers)

        places.setdefault(_LOSS, len(places))
        tell = functools.partial(_tell, calls, _LOSS, "loss")
        return _observed(called, tell)({}, {"labels": labels}, None, logits)

    return telling


def _observed(
    called: Callable[[Params, State, Any, Any], Any], tell: Callable[..., None]
) -> Callable[..., Any]:
    """The same function, whose calls and whose backward passes are told."""

    def plain(params: Params, state: State, key: Any, x: Any) -> Any:
        y = called(params, state, key, x)
        given = {_INPUT: x, **tree.leaves(params), **tree.leaves(state)}
        made = {"output": y[0], **tree.leaves(y[1])}
        jax.debug.callback(tell, False, *_numbers((given, made)))
        return y

    def forward(params: Params, state: State, key: Any, x: Any) -> Any:
        y, pull = jax.vjp(plain, params, state, key, x)
        return y, (pull, params, x)

    def backward(kept: Any, gradient: Any) -> Any:
        pull, params, x = kept
        made = pull(gradient)
        of_params = {f"of its {path}": leaf for path, leaf in tree.leaves(made[0]).items()}
        given = {_INPUT: gradient, "forward": (params, x)}
        told = given, {"of its input": made[3], **of_params}
        jax.debug.callback(tell, True, *_numbers(told))
        return made

    observed = jax.custom_vjp(plain)
    observed.defvjp(forward, backward)
    return observed


def _tell(calls: list[Call], path: str, kind: str, backward: Any, given: Any, made: Any) -> None:
    """Notes a call; all arrays are of the host."""
    of_given, of_made = (
        {name: _summary(numbers) for name, numbers in each.items()} for each in (given, made)
    )
    calls.append(Call(path, kind, bool(backward), of_given, of_made))


def _summary(numbers: Any) -> Summary:
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(numbers)]
    every = np.concatenate([np.empty(0), *leaves])
    good = every[np.isfinite(every)]
    ends = (good.min(), good.max()) if good.size else (np.nan, np.nan)
    return Summary(int(np.isnan(every).sum()), int(np.isinf(every).sum()), every.size, *ends)


def _numbers(values: Any) -> Any:
    """A tree without what is no number: keys, and the gradients that integers have not."""

    def kept(leaf: Any) -> Any:
        dtype = jnp.result_type(leaf)
        return leaf if jnp.issubdtype(dtype, np.number) else None

    return jax.tree.map(kept, values)
