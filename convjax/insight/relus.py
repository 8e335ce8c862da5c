"""The ReLUs of a function, wherever it calls them: as a layer, in a wire, or inside another layer.

    def clipped(scopes, relu, x):               # in the place of every ReLU
        return jnp.minimum(relu(x), 1.0), None

    y, _ = with_relus(forward, clipped)(params, images)

They are found in the program that the function is: `jax.nn.relu`, `jax.nn.relu6`, and the maximum
of something and zero. What `jax.nn` makes of them otherwise, such as `hard_swish`, counts as an
activation of its own and is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from convjax.insight.inspection.program import innermost
from convjax.layer import Context, Layer, plan, spec_of

Change = Callable[[str, Callable[[Array], Array], Array], tuple[Array, Any]]


class Kept(NamedTuple):
    """What was kept at a ReLU.

    scopes: the named scopes around it, "stage1/block2/relu1".
    value: an array; each scan around it has given it a leading axis. scans: how many these are.
    """

    scopes: str
    value: Array
    scans: int = 0


def with_relus(
    function: Callable[..., Any], change: Change
) -> Callable[..., tuple[Any, list[Kept]]]:
    """A function that computes the same but for its ReLUs, and gives what is kept of these, too.

    change: of the named scopes of a ReLU, the ReLU as a function, and what it is given; it returns
        what stands in its place, of the same shape and dtype, and an array to be kept or None.

    It may be differentiated and compiled as the function may. In a branch of `lax.cond` ReLUs are
    changed, but what is kept of them is lost. In functions with a gradient of their own
    (`jax.custom_jvp`, `jax.custom_vjp`) and in a `lax.while_loop` they stay as they are.

    >>> def doubled(scopes, relu, x):
    ...     return 2 * relu(x), x
    >>> y, kept = with_relus(lambda x: jax.nn.relu(x) + 1, doubled)(jnp.array([-1.0, 1.0]))
    >>> y.tolist(), [each.value.tolist() for each in kept]
    ([1.0, 3.0], [[-1.0, 1.0]])
    """

    def changed(*arguments: Any) -> tuple[Any, list[Kept]]:
        closed, made = jax.make_jaxpr(function, return_shape=True)(*arguments)
        leaves = jax.tree.leaves(arguments)
        zero = [False] * len(leaves)
        outputs, kept = _evaluate(closed.jaxpr, closed.consts, leaves, zero, "", change)
        return jax.tree.unflatten(jax.tree.structure(made), outputs), kept

    return changed


class Place(NamedTuple):
    """The innermost part of a network that a ReLU is called in."""

    path: str
    kind: str


def places(net: Layer, images: Any) -> Callable[[str], Place | None]:
    """A function from the named scopes of a ReLU to the part of the network that calls it.

    It gives None for what is no activation: the maximum with zero inside a norm, whose variance
    is kept from rounding below it.

    images: an array, or its shape.
    """
    kinds = {path: made.layer.kind for path, made in plan(net, spec_of(images)).makers.items()}
    outer = {"": net.kind}
    for path in kinds:
        names = path.split("/")
        for depth in range(1, len(names)):
            outer.setdefault("/".join(names[:depth]), _kind_at(net, names[:depth]))
    paths = frozenset((*kinds, *outer))

    def place(scopes: str) -> Place | None:
        path = innermost(scopes, paths)
        kind = kinds.get(path) or outer.get(path, "")
        return None if kind == "norm" else Place(path, kind)

    return place


def called(net: Layer, images: Any) -> list[Place]:
    """Where a network calls ReLUs, in the order of the calls; nothing is computed but shapes."""
    place_of, found = places(net, images), []
    params, state = jax.eval_shape(net.init, jax.random.key(0), spec_of(images))

    def noted(scopes: str, relu: Callable[[Array], Array], x: Array) -> tuple[Array, None]:
        found.append(place_of(scopes))
        return relu(x), None

    def run(*arguments: Any) -> Any:
        return with_relus(lambda *of: net.apply(*of, Context())[0], noted)(*arguments)[0]

    jax.eval_shape(run, params, state, spec_of(images))
    return [place for place in found if place is not None]


def _kind_at(net: Layer, names: Sequence[str]) -> str:
    """The kind of a part, or "" of what is known only when a `shaped` part is called."""
    for name in names:
        if name not in net.parts:
            return ""
        net = net.parts[name]
    return net.kind


# -- The program, equation by equation -------------------------------------------------------------

_RELUS = ("relu", "relu6")  # of `jax.nn`


def _evaluate(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    arguments: Sequence[Any],
    zero: Sequence[bool],
    scopes: str,
    change: Change,
) -> tuple[list[Any], list[Kept]]:
    """What a program gives; zero: which of its arguments are known to be 0."""
    values: dict[Var, Any] = dict(zip(jaxpr.constvars, consts)) | dict(zip(jaxpr.invars, arguments))
    zeros = {variable for variable, is_zero in zip(jaxpr.invars, zero) if is_zero}
    kept: list[Kept] = []

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    def is_zero(atom: Any) -> bool:
        if isinstance(atom, Literal):
            return jnp.ndim(atom.val) == 0 and bool(atom.val == 0)
        return atom in zeros

    for equation in jaxpr.eqns:
        here = "/".join(filter(None, (scopes, str(equation.source_info.name_stack))))
        given = [read(atom) for atom in equation.invars]
        known = [is_zero(atom) for atom in equation.invars]
        if equation.primitive.name in ("convert_element_type", "broadcast_in_dim") and known[0]:
            zeros.update(equation.outvars)
        if (relu := _relu(equation, given, known)) is not None:
            y, value = change(here, *relu)
            kept += [] if value is None else [Kept(here, value)]
            made = [y]
        else:
            made, more = _called(equation, given, known, here, change)
            kept += more
        values |= dict(zip(equation.outvars, made))
    return [read(atom) for atom in jaxpr.outvars], kept


def _relu(
    equation: JaxprEqn, given: Sequence[Any], zero: Sequence[bool]
) -> tuple[Callable[[Array], Array], Array] | None:
    """The ReLU that an equation is, and what it is of; None if it is none."""
    name = equation.primitive.name
    if name == "custom_jvp_call":
        inner = equation.params["call_jaxpr"].eqns
        if len(inner) != 1 or inner[0].params.get("name") not in _RELUS:
            return None
        return (lambda x: _bound(equation, [x])[0]), given[0]
    if name == "max" and any(zero):
        return (lambda x: lax.max(x, lax.full_like(x, 0))), given[1 - zero.index(True)]
    return None


def _called(
    equation: JaxprEqn, given: list[Any], zero: list[bool], scopes: str, change: Change
) -> tuple[list[Any], list[Kept]]:
    """What an equation gives that is no ReLU, but may call programs that have some."""
    name, params = equation.primitive.name, equation.params
    if name in ("jit", "pjit") and (
        params["name"] in _RELUS or not hasattr(jax.nn, params["name"])
    ):
        inner = params["jaxpr"]
        return _evaluate(inner.jaxpr, inner.consts, given, zero, scopes, change)
    if name in ("remat2", "checkpoint"):
        about = {each: params[each] for each in ("prevent_cse", "policy")}
        return _carried(
            lambda *given: _evaluate(params["jaxpr"], (), given, zero, scopes, change),
            lambda run: jax.checkpoint(run, **about)(*given),
        )
    if name == "cond":
        branches = [
            lambda *given, of=each: tuple(
                _evaluate(of.jaxpr, of.consts, given, zero[1:], scopes, change)[0]
            )
            for each in params["branches"]
        ]
        return list(lax.switch(given[0], branches, *given[1:])), []
    if name == "scan":
        return _scanned(equation, given, zero, scopes, change)
    return _bound(equation, given), []


def _scanned(
    equation: JaxprEqn, given: list[Any], zero: list[bool], scopes: str, change: Change
) -> tuple[list[Any], list[Kept]]:
    """A scan, each of whose turns keeps something."""
    body = equation.params["jaxpr"]
    about = {name: equation.params[name] for name in ("length", "reverse", "unroll")}
    # What goes over the turns has one axis more outside than inside.
    still = sum(map(_same_shape, equation.invars, body.jaxpr.invars))
    carried = sum(map(_same_shape, equation.outvars, body.jaxpr.outvars))
    consts, known = given[: still - carried], zero[: still - carried]
    known = known + [False] * (len(given) - len(known))

    def run(function: Callable[..., Any]) -> Any:
        def turn(carry: tuple[Any, ...], each: tuple[Any, ...]) -> Any:
            made, kept = function(*consts, *carry, *each)
            return tuple(made[:carried]), (tuple(made[carried:]), kept)

        carry, over = tuple(given[still - carried : still]), tuple(given[still:])
        carry, (each, kept) = lax.scan(turn, carry, over, **about)
        return [*carry, *each], kept

    made, kept = _carried(
        lambda *given: _evaluate(body.jaxpr, body.consts, given, known, scopes, change), run
    )
    return made, [each._replace(scans=each.scans + 1) for each in kept]


def _carried(
    inner: Callable[..., tuple[list[Any], list[Kept]]], run: Callable[..., Any]
) -> tuple[list[Any], list[Kept]]:
    """What is kept inside a transformed program leaves it as arrays, and keeps its names."""
    names: list[Kept] = []

    def arrays(*given: Any) -> tuple[list[Any], list[Array]]:
        made, kept = inner(*given)
        names[:] = [each._replace(value=jnp.zeros(())) for each in kept]
        return made, [each.value for each in kept]

    made, values = run(arrays)
    return list(made), [name._replace(value=value) for name, value in zip(names, values)]


def _bound(equation: JaxprEqn, given: Sequence[Any]) -> list[Any]:
    """What an equation gives, just as it stands."""
    params = equation.primitive.get_bind_params(equation.params)
    made = equation.primitive.bind(*given, **params)
    return list(made) if equation.primitive.multiple_results else [made]


def _same_shape(outside: Any, inside: Any) -> bool:
    return outside.aval.shape == inside.aval.shape
