"""Learning-rate schedules: pure functions from the step to a share of the peak, from 0 to 1.

    share = make("cosine", steps=1000, warmup=100)
    share(0), share(99), share(550)                      # 0.01, 1.0, 0.5

Steps count from 0. Over the `warmup` first steps the share rises in a straight line to 1; the rest
of the steps belong to the schedule itself. As nothing but the step is asked for, a run that is
resumed goes on with the rates that it would have had.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from convjax import config
from convjax.config import ConfigError
from convjax.names import nearest

Schedule = Callable[[ArrayLike], Array]


def from_config(chosen: config.Optimizer, steps: int, epoch: int) -> Schedule:
    """The schedule of a config, over `steps` steps with `epoch` steps in an epoch.

    Raises:
        ConfigError: if nothing but warm-up would be left of the run, and for all that `make`
            refuses.
    """
    warmup = chosen.warmup_steps or round(chosen.warmup_epochs * epoch)
    if warmup >= steps:
        key = "warmup_steps" if chosen.warmup_steps else "warmup_epochs"
        raise ConfigError(
            f"config.optimizer.{key} is {getattr(chosen, key)}, which is {warmup} steps: config."
            f"epochs asks for a run of {steps}, so give a warm-up of fewer steps, or more epochs"
        )
    return make(
        chosen.schedule,
        steps=steps,
        warmup=warmup,
        warmup_start=chosen.warmup_start,
        final=chosen.final_factor,
        epoch=epoch,
        args=chosen.schedule_args,
    )


def make(
    name: str,
    *,
    steps: int,
    warmup: int = 0,
    warmup_start: float | None = None,
    final: float = 0.0,
    epoch: int = 1,
    args: Mapping[str, Any] = {},
) -> Schedule:
    """The schedule of that name over that many steps, the linear warm-up included.

    warmup_start: the share of the first step; the last step of the warm-up has the share 1. None
        begins at `1 / warmup`, on a line from 0 that wastes no step at 0. Of `one_cycle`, its
        start, 1/25.
    final: the share at the end, for those that fall to one.
    epoch: steps in an epoch, for arguments that end in `_epochs`.
    args: keywords of the function in `SCHEDULES`.

    Raises:
        ConfigError: for a name or a keyword that does not exist, with the nearest right one, for a
            value that the schedule cannot take, and for a `final` that it does not fall to.
    """
    if name not in SCHEDULES:
        raise ConfigError(f"config.optimizer.schedule is {name!r}: {nearest(name, SCHEDULES)}")
    function = SCHEDULES[name]
    keywords = [*inspect.signature(function).parameters][1:]
    elsewhere = {"final": "final_factor", "start": "warmup_start"}
    own = set(keywords) - set(elsewhere)
    for each in args:
        if each not in own:
            key = elsewhere.get(each)
            advice = f"set config.optimizer.{key} instead" if key else nearest(each, own)
            raise ConfigError(
                f"config.optimizer.schedule_args has {each!r}, which the schedule {name!r} does "
                f"not take: {advice}"
            )
    if final and "final" not in keywords:
        raise ConfigError(
            f"config.optimizer.final_factor is {final}: the schedule {name!r} falls to no such "
            "share; leave it at 0"
        )
    given = dict(args) | ({"final": final} if final else {})
    rises_itself = "start" in keywords
    if rises_itself and warmup_start is not None:
        given["start"] = warmup_start
    try:
        share = function(Span(steps, warmup, epoch), **given)
        jax.eval_shape(share, jnp.float32(0))
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"config.optimizer.schedule_args are {dict(args)}: {reason}") from error
    if warmup and not rises_itself:
        start = 1 / warmup if warmup_start is None else warmup_start
        rise = optax.linear_schedule(start, 1.0, max(warmup - 1, 1))
        share = optax.join_schedules([rise, share], [warmup])
    return lambda step: jnp.asarray(share(jnp.asarray(step, jnp.float32)), jnp.float32)


class Span(NamedTuple):
    """The length of a run, of its warm-up and of an epoch, all in steps."""

    steps: int
    warmup: int = 0
    epoch: int = 1

    @property
    def rest(self) -> int:
        """The steps after the warm-up, at least 1."""
        return max(self.steps - self.warmup, 1)


def constant(span: Span) -> optax.Schedule:
    """1 throughout."""
    return optax.constant_schedule(1.0)


def linear(span: Span, final: float = 0.0) -> optax.Schedule:
    """From 1 to `final` in a straight line, as `torch.optim.lr_scheduler.LinearLR`."""
    return optax.linear_schedule(1.0, final, span.rest)


def cosine(span: Span, final: float = 0.0) -> optax.Schedule:
    """From 1 to `final` along half a cosine (Loshchilov and Hutter, SGDR, 2017).

    As `torch.optim.lr_scheduler.CosineAnnealingLR`.
    """
    return optax.cosine_decay_schedule(1.0, span.rest, final)


def polynomial(span: Span, final: float = 0.0, power: float = 2.0) -> optax.Schedule:
    """From 1 to `final` along `(1 - progress) ** power`, as `PolynomialLR` of PyTorch."""
    _check("power", power, most=float("inf"))
    return optax.polynomial_schedule(1.0, final, power, span.rest)


def exponential(
    span: Span,
    final: float | None = None,
    gamma: float | None = None,
    every_epochs: float | None = None,
    every_steps: int | None = None,
    staircase: bool = False,
) -> optax.Schedule:
    """From 1 down to `final`, by default 0.01, by the same share at every step.

    gamma: in place of `final`, the share that is left after each epoch (`every_epochs` or
        `every_steps` say otherwise), as `ExponentialLR` and `StepLR` of PyTorch have it.
        EfficientNet has 0.97 every 2.4 epochs.
    staircase: falls at once, at the end of each such period.
    """
    every = _length(span, "every", every_epochs, every_steps)
    if gamma is None:
        if every or staircase:
            raise ValueError("the period is that of gamma: give gamma, too, such as 0.97")
        return optax.exponential_decay(1.0, span.rest, 0.01 if final is None else final)
    if final is not None:
        raise ValueError(
            f"gamma is {gamma} and config.optimizer.final_factor is {final}: give one of them"
        )
    _check("gamma", gamma)
    return optax.exponential_decay(1.0, every or span.epoch, gamma, staircase=staircase)


def step(
    span: Span,
    gamma: float = 0.1,
    milestone_epochs: Sequence[float] | None = None,
    milestone_steps: Sequence[int] | None = None,
) -> optax.Schedule:
    """Multiplied by `gamma` at each milestone, as `torch.optim.lr_scheduler.MultiStepLR`.

    milestone_epochs, milestone_steps: counted from the beginning of the run, the warm-up included.
        Without either they lie at one half and at three quarters of what follows the warm-up (He
        et al. 2016, on CIFAR-10).
    """
    _check("gamma", gamma)
    _one_of("milestone", milestone_epochs, milestone_steps)
    places: list[Any] = [span.warmup + share * span.rest for share in (0.5, 0.75)]
    given = milestone_steps if milestone_epochs is None else milestone_epochs
    if given is not None:
        if not (isinstance(given, Sequence) and all(isinstance(x, int | float) for x in given)):
            raise ValueError(f"the milestones are {given!r}: give numbers, such as (30, 60)")
        length = 1 if milestone_epochs is None else span.epoch
        places = [round(each * length) for each in given]
        within = {each for each in places if span.warmup <= each < span.steps}
        if not places or sorted(within) != places:
            raise ValueError(
                f"the milestones lie at the steps {places}: give some that rise, from the "
                f"{span.warmup} of the warm-up to less than the {span.steps} of config.epochs"
            )
    return optax.piecewise_constant_schedule(1.0, {each - span.warmup: gamma for each in places})


def trapezoid(
    span: Span,
    final: float = 0.0,
    fall_epochs: float | None = None,
    fall_steps: int | None = None,
) -> optax.Schedule:
    """1, and at the end down to `final` in a straight line; by default over the last fifth.

    Zhai et al., Scaling vision transformers, 2022 (cooldown); Hägele et al. 2024.
    """
    given = _length(span, "fall", fall_epochs, fall_steps)
    if given and given > span.rest:
        raise ValueError(
            f"the fall takes {given} steps: the warm-up of {span.warmup} leaves {span.rest} "
            f"of the {span.steps} of config.epochs"
        )
    fall = given or max(min(round(0.2 * span.steps), span.rest), 1)
    return optax.linear_schedule(1.0, final, fall, span.rest - fall)


def one_cycle(span: Span, final: float = 1 / 25e4, start: float = 1 / 25) -> optax.Schedule:
    """From `start` up to 1 and down to `final`, along half cosines; over the whole run.

    As `torch.optim.lr_scheduler.OneCycleLR`, which has 1 at the last step of the warm-up, 30 % of
    the run if there is none, and `final` at the last step of all. (Smith and Topin,
    Super-convergence, 2018, with the shape that fastai gave it.)
    """
    top = max((span.warmup or 0.3 * span.steps) - 1, 0)

    def share(step: Any) -> Array:
        up = _along_cosine(start, 1.0, step / max(top, 1))
        down = _along_cosine(1.0, final, (step - top) / max(span.steps - 1 - top, 1))
        return jnp.where(step <= top, up, down)

    return share


SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "exponential": exponential,
    "linear": linear,
    "one_cycle": one_cycle,
    "polynomial": polynomial,
    "step": step,
    "trapezoid": trapezoid,
}


def _along_cosine(first: float, last: float, progress: Array) -> Array:
    return last + (first - last) * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1))) / 2


def _length(span: Span, what: str, epochs: float | None, steps: int | None) -> int | None:
    """A length in steps that is given in epochs or in steps; None if in neither."""
    _one_of(what, epochs, steps)
    if epochs is None and steps is None:
        return None
    unit, given = ("epochs", epochs) if steps is None else ("steps", steps)
    length = round((given or 0) * (span.epoch if unit == "epochs" else 1))
    if length < 1:
        raise ValueError(f"{what}_{unit} is {given}: give at least one step")
    return length


def _one_of(what: str, epochs: Any, steps: Any) -> None:
    if epochs is not None and steps is not None:
        raise ValueError(f"{what}_epochs is {epochs} and {what}_steps is {steps}: give one of them")


def _check(name: str, value: float, most: float = 1.0) -> None:
    if not 0 < value <= most:
        limit = "" if most == float("inf") else f" and at most {most:g}"
        raise ValueError(f"{name} is {value}: give more than 0{limit}")
