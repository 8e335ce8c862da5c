"""What every competitor starts from, drawn by convjax, and how much there is to compute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import CASES, Weights
from benchmarks.rivals.convjax_ import NETWORKS
from convjax import Context, Layer, capture, walk


class Origin(NamedTuple):
    """The first weights of a network, and the multiply-adds of one image's forward pass."""

    weights: Weights
    multiply_adds: int


def draw(name: str) -> Origin:
    """The origin of the case of that name.

    Kernels are those of convjax's initialisation; scales, biases and running statistics are drawn
    too, so that none of them is a 0 or 1 whose misplacement would change nothing.
    """
    case = CASES[name]
    net = NETWORKS[name](classes=case.classes)
    spec = jax.ShapeDtypeStruct((1, *case.image), jnp.float32)
    params, state = net.init(jax.random.key(0), spec)
    rng = np.random.default_rng(0)
    weights: Weights = {}
    for path, leaf in (*leaves_in_order(params), *leaves_in_order(state)):
        layer, _, kind = path.rpartition("/")
        weights.setdefault(layer, {})[kind] = _drawn(kind, np.array(leaf), rng)
    return Origin(weights, multiply_adds(net, params, state, spec))


def multiply_adds(net: Layer, params: Any, state: Any, spec: jax.ShapeDtypeStruct) -> int:
    """Those of the convolutions and dense layers, for one image.

    A kernel of n numbers costs n for every place of its output, whatever its groups. No
    computation takes place.
    """
    kernels = dict(_kernels(params))
    layers = {path for path, part in walk(net) if not part.parts}
    if missing := kernels.keys() - layers:
        raise ValueError(f"no layer is known for the kernels of {', '.join(sorted(missing))}")

    def run(params: Any, state: Any, x: Any) -> Any:
        return capture(net, sorted(kernels)).apply(params, state, x, Context())[0]

    _, seen = jax.eval_shape(run, params, state, spec)
    return sum(
        size * int(np.prod(seen[path].shape[1:-1], dtype=int)) for path, size in kernels.items()
    )


def _drawn(kind: str, leaf: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noise = 0.1 * rng.standard_normal(leaf.shape, dtype=np.float32)
    if kind == "kernel":
        return leaf
    return noise if kind in ("bias", "mean") else 1 + noise


def leaves_in_order(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by path in the order of the dicts, which is that of the layers' calls."""
    for name, value in tree.items():
        path = f"{above}/{name}" if above else name
        if isinstance(value, Mapping):
            yield from leaves_in_order(value, path)
        else:
            yield path, value


def _kernels(params: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for path, leaf in leaves_in_order(params):
        if path.endswith("/kernel"):
            yield path.removesuffix("/kernel"), int(np.prod(leaf.shape))
