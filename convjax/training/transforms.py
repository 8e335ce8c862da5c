"""What may stand around any optimizer: clipping by unit, look-ahead, sharpness-aware gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax import Array

from convjax import tree
from convjax.layer import Params
from convjax.training.groups import assign, labels
from convjax.training.rules import Rule

Aux = TypeVar("Aux")
Gradient = Callable[[Params], tuple[Params, Aux]]


def adaptive_clip(most: float | Array, skips: Sequence[str] = ()) -> optax.GradientTransformation:
    """Scales the gradient of each unit down to `most` times the norm of its weights.

    Brock et al., High-performance large-scale image recognition without normalization, 2021,
    equation 3, by `optax.adaptive_grad_clip`. A unit is what makes one output: a kernel
    `[*window, in, out]` has a unit for each index of its last axis; a vector, and a kernel of one
    weight for each output, is one unit, as in the authors' code.

    most: 0.01 in the paper for batches of 4096 images, more for smaller ones.
    skips: patterns of the paths that are left alone: the last dense layer, in the paper.
    """
    inner = optax.adaptive_grad_clip(most)

    def matrix(x: Array) -> Array:
        # By rank alone optax takes a kernel of one spatial dimension for heads of attention.
        return x.reshape(-1, x.shape[-1]) if x.ndim > 1 else x

    def clip(grads: Any, params: Any) -> Any:
        flat = jax.tree.map(matrix, (grads, params))
        clipped, _ = inner.update(flat[0], optax.EmptyState(), flat[1])
        return jax.tree.map(lambda x, grad: x.reshape(grad.shape), clipped, grads)

    def chosen(params: Any) -> Any:
        return labels(params, lambda path, _: not tree.matches(path, skips))

    return optax.masked(optax.stateless(clip), chosen)


class Lookahead(NamedTuple):
    """What `lookahead` remembers: the state of `optax.lookahead`, and the slow weights."""

    fast: Any
    slow: Any


def lookahead(
    inner: optax.GradientTransformation, *, every: int, share: float
) -> optax.GradientTransformationExtraArgs:
    """After each `every` steps, the weights go back to `share` of the way that they have gone.

    Zhang et al., Lookahead optimizer, 2019: the slow weights go that share of the way to the fast
    ones, which then begin anew from there; the state of `inner` goes on. The parameters are the
    fast weights, on which gradients are taken. The slow ones are what the paper evaluates and
    keeps: `slow_weights` has them. (`optax.lookahead`, with the slow weights in the state rather
    than beside the parameters, so that a step need not know of them.)
    """
    inner = optax.with_extra_args_support(inner)

    def of_pair(**more: Any) -> optax.GradientTransformation:
        update = functools.partial(inner.update, **more)
        return optax.lookahead(optax.GradientTransformation(inner.init, update), every, share)

    def init(params: Any) -> Lookahead:
        # Of their own: a step that gives away the memory of the parameters must not give it twice.
        slow = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
        return Lookahead(of_pair().init(optax.LookaheadParams(params, slow)), slow)

    def update(updates: Any, state: Any, params: Any = None, **more: Any) -> tuple[Any, Lookahead]:
        pair = optax.LookaheadParams(params, state.slow)
        changes: Any
        changes, fast = of_pair(**more).update(updates, state.fast, pair)
        return changes.fast, Lookahead(fast, optax.apply_updates(state.slow, changes.slow))

    return optax.GradientTransformationExtraArgs(init, update)


def slow_weights(opt: Any, params: Params) -> Params:
    """The weights to evaluate and to keep: those of `lookahead` in the state of an optimizer.

    Where nothing looks ahead they are the parameters, and so are those that are frozen.

    opt: the state of the optimizer.
    """
    states = jax.tree.leaves(opt, is_leaf=lambda each: isinstance(each, Lookahead))
    for state in states:
        if isinstance(state, Lookahead):
            return jax.tree.map(
                lambda param, slow: param if isinstance(slow, optax.MaskedNode) else slow,
                params,
                state.slow,
            )
    return params


def sharpness_aware(
    gradient: Gradient[Aux], rho: float | Array, rules: Sequence[Rule] = ()
) -> Gradient[Aux]:
    """The gradient at `params + rho * g / |g|`, where g is that at `params`; for any optimizer.

    Foret et al., Sharpness-aware minimization, 2021, equations 2 and 3. It takes the gradient of
    the same batch twice, with the same noise, and so twice the time. (`optax.contrib.sam` wraps the
    optimizer instead, and keeps nothing of what the loss gives beside its gradient.)

    gradient: `params -> (gradient, aux)`. Where the batch is spread over devices it has to be that
        of the whole batch, summed over them already; then the result is, too. (The paper lets each
        device climb by its own part.)
    rho: the radius, in the parameters' own units: 0.05 in the paper for ImageNet. At 0 the result
        is `gradient(params)`.
    rules: what they freeze does not climb, and counts for nothing in |g|.

    Of both passes, aux is that of the first: loss, metrics and batch statistics at `params`.

    >>> two_pass = sharpness_aware(lambda x: (2 * x, jnp.sum(x**2)), rho=0.5)
    >>> two_pass(jnp.array([3.0, 4.0]))            # at (3.3, 4.4), which is half a unit further up
    (Array([6.6, 8.8], dtype=float32), Array(25., dtype=float32))
    """

    def two_pass(params: Params) -> tuple[Params, Aux]:
        grads, aux = gradient(params)
        frozen = [group.frozen for group in assign(params, rules).values()]
        uphill = [g for g, held in zip(jax.tree.leaves(grads), frozen) if not held]
        # A gradient of 0 says nothing of where to climb: stay.
        share = rho / jnp.maximum(optax.tree.norm(uphill), jnp.finfo(jnp.float32).tiny)
        climbed = [
            param if held else param + (share * grad).astype(param.dtype)
            for param, grad, held in zip(jax.tree.leaves(params), jax.tree.leaves(grads), frozen)
        ]
        return gradient(jax.tree.unflatten(jax.tree.structure(params), climbed))[0], aux

    return two_pass
