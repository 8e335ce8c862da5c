"""What a network computes: the multiply-adds of each of its layers, counted in its program.

    program = traced(net, jax.ShapeDtypeStruct((1, 224, 224, 3), "float32"))
    sum(of_parts(program).values())                             # 4,089,184,256 for a ResNet-50

One multiply-add is one product that is added to a sum. Those of convolutions and of dense layers
are counted, and of products of two arrays that both depend on image or parameters, such as
attention; all places of the output count, also where the window lies in the padding, as in the
figures that papers give. Norms, activations, pools and resampling by fixed weights count nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from jax.extend.core import ClosedJaxpr, JaxprEqn

from convjax.insight.inspection.program import Equation, Program, equations


def of_parts(program: Program) -> dict[str, int]:
    """The multiply-adds of every part of a network, in that part itself and not in inner ones.

    They are those of the whole batch that the program was traced for. What the network computes
    outside of its parts has the path "".

    >>> import jax
    >>> from convjax import conv, dense, flatten, serial
    >>> from convjax.insight.inspection.program import traced
    >>> net = serial(conv(4, 3), flatten, dense(10))
    >>> of_parts(traced(net, jax.ShapeDtypeStruct((1, 8, 8, 2), "float32")))
    {'conv1': 4608, 'dense1': 2560}
    """
    found: Counter[str] = Counter()
    for each in program.equations():
        if count := _of(each):
            found[each.path] += count
    return dict(found)


def multiply_adds(jaxpr: ClosedJaxpr) -> int:
    """Those of any program, as `jax.make_jaxpr` gives it, such as a step of training.

    Gradients of convolutions count as the convolutions that they are. The body of a `while` loop
    counts once, since nobody knows how often it turns.

    >>> import jax, jax.numpy as jnp
    >>> multiply_adds(jax.make_jaxpr(jnp.matmul)(jnp.ones((2, 3)), jnp.ones((3, 5))))
    30
    """
    return sum(map(_of, equations(jaxpr)))


def _of(each: Equation) -> int:
    """The multiply-adds of one equation, in all its turns."""
    rule = _RULES.get(each.equation.primitive.name)
    return 0 if rule is None or any(each.constant) else each.times * rule(each.equation)


def _dot_general(equation: JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    summed = math.prod(_shape(equation.invars[0])[axis] for axis in contracted)
    return summed * math.prod(_shape(equation.outvars[0]))


def _conv_general_dilated(equation: JaxprEqn) -> int:
    kernel, numbers = _shape(equation.invars[1]), equation.params["dimension_numbers"]
    each = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
    places = math.prod(_shape(equation.outvars[0]))
    # Zeros that are put between the pixels, as a transposed convolution has them, are no work.
    return each * places // math.prod(equation.params["lhs_dilation"])


def _correlate(equation: JaxprEqn) -> int:
    """Our own convolution: the whole window and the channels of a group for each number made."""
    kernel = _shape(equation.invars[1])
    return math.prod(kernel[-2 - _rank(equation) : -1]) * math.prod(_shape(equation.outvars[0]))


def _paint(equation: JaxprEqn) -> int:
    """Its transpose: every number paints the whole window in the channels of its group."""
    kernel = _shape(equation.invars[1])
    return math.prod(kernel[-2 - _rank(equation) : -1]) * math.prod(_shape(equation.invars[0]))


def _weigh(equation: JaxprEqn) -> int:
    """The gradient of its kernel: every number of `g` with all that its window sees."""
    kernel = _shape(equation.outvars[0])
    return math.prod(kernel[-2 - _rank(equation) : -1]) * math.prod(_shape(equation.invars[1]))


def _rank(equation: JaxprEqn) -> int:
    return len(equation.params["geometry"].size)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _tangent(equation: JaxprEqn) -> int:
    """Two convolutions: of the one tangent with the other operand, and the other way round."""
    return 2 * _correlate(equation)


_RULES = {
    "dot_general": _dot_general,
    "conv_general_dilated": _conv_general_dilated,
    "convjax_conv": _correlate,
    "convjax_conv_tangent": _tangent,
    "convjax_conv_input": _paint,
    "convjax_conv_weight": _weigh,
}
