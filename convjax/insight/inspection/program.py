"""The program that a network is: its equations, each with the layer that it belongs to.

    program = traced(net, jax.ShapeDtypeStruct((1, 28, 28, 1), "float32"))
    for each in program.equations():
        print(each.path, each.equation.primitive, each.times)

What a layer costs and what it sees is read from there, so that it holds for any network, whatever
its layers are called. Nothing is computed but shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Primitive, Var
from jax.interpreters import ad, batching

from convjax.combine import Shaped, serial, shaped
from convjax.layer import Context, Layer, Params, Spec, State, as_layer
from convjax.surgery import rewrite


class Part(NamedTuple):
    """One part of a network, as it is called.

    kind: what it is; of what is `shaped` by its input, the kind of what is made.
    calls: how often it is called; in a `stack` and in a `loop` this is more than once.
    output: shapes of what the last call gave, a pytree.
    bytes: the memory of what all calls gave; calls may differ, as those for images of two sizes do.
    """

    kind: str
    calls: int
    output: Any
    bytes: int


class Equation(NamedTuple):
    """One equation, in the innermost part at `path`, which is run so many times.

    constant: of each operand, whether it depends on neither the input nor a parameter.
    """

    equation: JaxprEqn
    path: str
    times: int
    constant: Sequence[bool]


class Program(NamedTuple):
    """A network's evaluation, as a function of the leaves of parameters, state and input.

    images: which operands of `jaxpr` are leaves of the input.
    params: shapes of the parameters.
    parts: by path, in the order of their calls, outer parts before their inner ones; at last the
        network itself, whose path is "".
    """

    jaxpr: ClosedJaxpr
    images: range
    params: Params
    parts: dict[str, Part]

    def equations(self) -> Iterator[Equation]:
        """Every equation that computes something, those inside of calls and loops too."""
        paths = frozenset(self.parts)
        return (each._replace(path=innermost(each.path, paths)) for each in equations(self.jaxpr))

    def leaves(self) -> list[str]:
        """The paths of the parts that have no parts themselves, but for those that do nothing."""
        outer = {path.rpartition("/")[0] for path in self.parts}
        return [
            path
            for path, part in self.parts.items()
            if path not in outer and part.kind != "identity"
        ]


def traced(net: Layer, spec: Spec) -> Program:
    """The program of a network's evaluation for inputs of that spec.

    A network of a single layer is the only part of its program, conv1 for instance.
    """
    if not net.parts:
        net = serial(net)
    marked = _marking(rewrite(net, lambda path, part: _marking(part)))
    params, state = jax.eval_shape(net.init, jax.random.key(0), spec)

    def run(params: Params, state: State, x: Any) -> Any:
        return marked.apply(params, state, x, Context())[0]

    jaxpr = jax.make_jaxpr(run)(params, state, spec)
    before, images = len(jax.tree.leaves((params, state))), len(jax.tree.leaves(spec))
    calls: dict[str, Part] = {}
    for equation, _, times, _ in equations(jaxpr):
        if equation.primitive is MARK:
            path, kind, tree = (equation.params[name] for name in ("path", "kind", "tree"))
            specs = [_spec(v.aval) for v in equation.outvars]
            size = times * sum(spec.size * spec.dtype.itemsize for spec in specs)
            turns = times
            if path in calls:
                turns, size = turns + calls[path].calls, size + calls[path].bytes
            calls[path] = Part(kind, turns, jax.tree.unflatten(tree, specs), size)
    ends = {path: number for number, path in enumerate(calls)}

    def order(path: str) -> list[int]:
        names = path.split("/")
        return [ends["/".join(names[: depth + 1])] for depth in range(len(names))]

    parts = {path: calls[path] for path in sorted(calls, key=order)}
    return Program(jaxpr, range(before, before + images), params, parts)


def _spec(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def subprogram(equation: JaxprEqn) -> tuple[Jaxpr, Sequence[Any]] | None:
    """The program that an equation calls with its own operands, and that program's constants."""
    for value in equation.params.values():
        closed = isinstance(value, ClosedJaxpr)
        jaxpr = value.jaxpr if closed else value
        # What a reduction does with two numbers is a program too, but not of its operands.
        if isinstance(jaxpr, Jaxpr) and _shapes(jaxpr.invars) == _shapes(equation.invars):
            return jaxpr, value.consts if closed else ()
    return None


def _shapes(variables: Sequence[Any]) -> list[tuple[int, ...] | None]:
    return [getattr(each.aval, "shape", None) for each in variables]


def equations(jaxpr: ClosedJaxpr) -> Iterator[Equation]:
    """Every equation of any program that computes something; `path` holds all its scopes.

    The body of a `while` counts once, and of a `cond` its longest branch.
    """
    return _equations(jaxpr.jaxpr, [False] * len(jaxpr.jaxpr.invars), "", 1)


def innermost(scopes: str, paths: frozenset[str]) -> str:
    """The innermost part that has these named scopes, whatever transformations they went through.

    Other scopes may lie between its own.

    >>> paths = frozenset(("stem", "stem/conv1", "head"))
    >>> innermost("jit(step)/transpose(jvp(stem))/vmap(jit(pad))/conv1/dot", paths)
    'stem/conv1'
    """
    before = ""
    while before != scopes:
        before, scopes = scopes, _WRAPPED.sub(r"\1", scopes)
    path = ""
    for name in scopes.split("/"):
        inner = f"{path}/{name}" if path else name
        path = inner if inner in paths else path
    return path


_WRAPPED = re.compile(r"[\w\-]+\(([^()]*)\)")  # jvp(stage1), vmap(jit(_where))


def _equations(jaxpr: Jaxpr, flags: Sequence[bool], scopes: str, times: int) -> Iterator[Equation]:
    constant: dict[Var, bool] = dict(zip(jaxpr.invars, flags))
    constant |= dict.fromkeys(jaxpr.constvars, True)
    for equation in jaxpr.eqns:
        own = [isinstance(v, Literal) or constant[v] for v in equation.invars]
        constant |= dict.fromkeys(equation.outvars, all(own))
        here = "/".join(filter(None, (scopes, str(equation.source_info.name_stack))))
        name, params = equation.primitive.name, equation.params
        called = subprogram(equation)
        if name == "cond":
            longest = max((branch.jaxpr for branch in params["branches"]), key=_length)
            yield from _equations(longest, own[1:], here, times)
        elif name == "while":
            body = params["body_jaxpr"].jaxpr
            yield from _equations(body, [False] * len(body.invars), here, times)
        elif name == "scan":
            body = params["jaxpr"].jaxpr
            yield from _equations(body, [False] * len(body.invars), here, times * params["length"])
        elif called is not None:
            yield from _equations(called[0], own, here, times)
        else:
            yield Equation(equation, here, times, own)


def _length(jaxpr: Jaxpr) -> int:
    return sum(1 for _ in _equations(jaxpr, [False] * len(jaxpr.invars), "", 1))


# -- Marks: the outputs of the parts, wherever in the program they are -----------------------------

MARK = Primitive("convjax_mark")  # the identity, which says whose output its operands are
MARK.multiple_results = True
MARK.def_abstract_eval(lambda *leaves, **about: list(leaves))
batching.primitive_batchers[MARK] = lambda args, dims, **about: (MARK.bind(*args, **about), dims)
ad.primitive_jvps[MARK] = lambda primals, tangents, **about: (
    MARK.bind(*primals, **about),
    tangents,
)


def _marking(part: Layer) -> Layer:
    """The same part, whose output is marked with its path and kind."""
    kinds = [part.kind]
    if isinstance(part.wire, Shaped):
        make, own = part.wire.make, part.kind

        def noted(x: Any) -> Layer:
            made = as_layer(make(x))
            kinds[0] = made.kind if own == "shaped" else own
            return made

        part = shaped(noted).named(own)

    def apply(params: Params, state: State, x: Any, ctx: Context = Context()) -> tuple[Any, State]:
        y, state = part.apply(params, state, x, ctx)
        leaves, tree = jax.tree.flatten(y)
        marked = MARK.bind(*leaves, path=ctx.path, kind=kinds[0], tree=tree)
        return jax.tree.unflatten(tree, marked), state

    return part._replace(apply=apply)
