"""How the loss curves: the largest eigenvalues of its Hessian, its trace and its density.

    spectrum = top_eigenvalues(net, params, state, batches, top=5)
    spectrum.values, spectrum.bounds            # the five largest, and how far off each may be

The Hessian is never built. What it makes of a vector v is the derivative of the gradient along v,
`jax.jvp(jax.grad(loss), (params,), (v,))`, summed over all batches; Lanczos (1950) needs no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from convjax.config import UserError
from convjax.insight.compiled import compiled
from convjax.insight.studies.batches import added, summed
from convjax.layer import Layer, Params, State
from convjax.training.loss import Loss, cross_entropy
from convjax.training.step import Batch, Prepare

Product = Callable[[Array], Array]


class Spectrum(NamedTuple):
    """What Lanczos found of a symmetric matrix of `size` rows.

    values: the largest eigenvalues, the largest first. Of equal ones, one alone is found.
    bounds: float, like `values`: an eigenvalue lies no further from each than this.
    least, least_bound: the same of the smallest.
    nodes, weights: of the density of all eigenvalues, as seen from the first vector: the share of
        each node is its weight (stochastic Lanczos quadrature, Ghorbani et al. 2019).
    products: how many vectors were multiplied by the matrix.
    """

    values: np.ndarray
    bounds: np.ndarray
    least: float
    least_bound: float
    nodes: np.ndarray
    weights: np.ndarray
    products: int
    size: int


class Trace(NamedTuple):
    """An estimate of the trace, and its standard error (NaN of a single vector)."""

    value: float
    error: float


def top_eigenvalues(
    net: Layer,
    params: Params,
    state: State,
    batches: Sequence[Batch],
    *,
    prepare: Prepare = jnp.asarray,
    loss: Loss = cross_entropy,
    top: int = 5,
    most: int = 80,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> Spectrum:
    """The largest eigenvalues of the Hessian of the mean loss over all batches, in evaluation.

    It is that of the loss of the data: weight decay would add its factor to each. Batch norm is
    held at its running statistics. A kernel that feeds a ReLU has second derivatives that are not
    there at its kink, and are taken as 0, as `jax.grad` takes them.

    top: how many. most: the most products with the Hessian, each as long as two or three gradients
    of all batches. tolerance: an eigenvalue is found when it is known to this share of the largest.
    seed: of the first vector.

    Raises:
        ValueError, UserError: as `lanczos` does.
    """
    product, flat = hessian_product(net, params, state, batches, prepare=prepare, loss=loss)
    key = jax.random.key(seed)
    return lanczos(product, flat.size, top=top, most=most, tolerance=tolerance, key=key)


def hessian_trace(
    net: Layer,
    params: Params,
    state: State,
    batches: Sequence[Batch],
    *,
    prepare: Prepare = jnp.asarray,
    loss: Loss = cross_entropy,
    vectors: int = 10,
    seed: int = 0,
) -> Trace:
    """The trace of the same Hessian, by so many vectors of random signs (Hutchinson 1990)."""
    product, flat = hessian_product(net, params, state, batches, prepare=prepare, loss=loss)
    return hutchinson(product, flat.size, vectors=vectors, key=jax.random.key(seed))


def hessian_product(
    net: Layer,
    params: Params,
    state: State,
    batches: Sequence[Batch],
    *,
    prepare: Prepare = jnp.asarray,
    loss: Loss = cross_entropy,
) -> tuple[Product, Array]:
    """What the Hessian of the mean loss makes of a vector `[parameters]`; and the parameters so.

    Their order is that of `jax.flatten_util.ravel_pytree`.
    """
    flat, unravel = ravel_pytree(params)
    weight = sum(float(summed(net, prepare, loss, params, state, each)[1]) for each in batches)

    def product(vector: Array) -> Array:
        along = unravel(vector)
        parts = (_product(net, prepare, loss, params, state, along, each) for each in batches)
        return ravel_pytree(added(parts))[0] / np.float32(weight)

    return product, flat


def lanczos(
    product: Product,
    size: int,
    *,
    top: int = 5,
    most: int = 80,
    tolerance: float = 1e-3,
    key: Array | None = None,
) -> Spectrum:
    """The largest eigenvalues of a symmetric matrix, and its smallest, by products with vectors.

    Each new vector is made orthogonal to all before it, twice: no eigenvalue appears again as a
    ghost of rounding (Parlett, The symmetric eigenvalue problem, 1980). They are all kept, so that
    the memory is that of `products` times the parameters.

    >>> matrix = jnp.diag(jnp.array([1.0, 5.0, 3.0, -2.0]))
    >>> found = lanczos(lambda v: matrix @ v, 4, top=2)
    >>> found.values.round(3), round(found.least, 3)
    (array([5., 3.]), -2.0)

    Raises:
        ValueError: for a `top` that is not between 1 and the size, or a `most` below `top`.
        UserError: if a product is not finite.
    """
    if not 1 <= top <= size:
        raise ValueError(f"top is {top}: give 1 to {size}, the number of rows")
    if most < top:
        raise ValueError(f"most is {most}: give at least top, {top}")
    most, keys = min(most, size), _keys(jax.random.key(0) if key is None else key)
    first = _normal(next(keys), size)
    # Rows of zeros change nothing, and spare a program for every number of vectors.
    basis = _grown((first / jnp.linalg.norm(first))[None])
    alphas: list[float] = []
    betas: list[float] = []
    while True:
        newest = basis[len(alphas)]
        vector = product(newest)
        alphas.append(float(jnp.vdot(vector, newest, precision="highest")))
        rest, length = _orthogonal(basis, vector)
        beta = float(length)
        if not math.isfinite(alphas[-1] + beta):
            raise UserError("the curvature is not finite: look at the loss of the run")
        nodes, vectors = np.linalg.eigh(_tridiagonal(alphas, betas))
        scale = float(np.abs(nodes).max())
        # What is left is rounding: the vectors span all that this first one can reach.
        if beta <= 1e-6 * max(scale, np.finfo(np.float32).tiny):
            beta = 0.0
        bounds = beta * np.abs(vectors[-1]) + scale * float(np.finfo(np.float32).eps)
        done = len(nodes) >= top and bounds[[0, *range(-top, 0)]].max() <= tolerance * scale
        if done or len(nodes) == most:
            break
        if beta == 0.0:
            rest, length = _orthogonal(basis, _normal(next(keys), size))
        betas.append(beta)
        basis = basis if len(alphas) < len(basis) else _grown(basis)
        basis = basis.at[len(alphas)].set(rest / length)
    return Spectrum(
        *(nodes[::-1][:top], bounds[::-1][:top], float(nodes[0]), float(bounds[0])),
        *(nodes, np.square(vectors[0]), len(nodes), size),
    )


def hutchinson(product: Product, size: int, *, vectors: int = 10, key: Array) -> Trace:
    """The trace of a matrix by its products with random signs: the mean of `v @ product(v)`.

    >>> matrix = jnp.diag(jnp.array([1.0, 5.0, 3.0]))           # of which no sign can be wrong
    >>> hutchinson(lambda v: matrix @ v, 3, vectors=2, key=jax.random.key(0))
    Trace(value=9.0, error=0.0)
    """
    if vectors < 1:
        raise ValueError(f"vectors is {vectors}: give 1 or more")
    found = []
    for each in jax.random.split(key, vectors):
        signs = jax.random.rademacher(each, (size,), jnp.float32)
        found.append(float(jnp.vdot(signs, product(signs), precision="highest")))
    error = np.std(found, ddof=1) / math.sqrt(vectors) if vectors > 1 else math.nan
    return Trace(float(np.mean(found)), float(error))


def density(spectrum: Spectrum, places: np.ndarray, width: float) -> np.ndarray:
    """The density of eigenvalues at these places: a Gaussian of that width for every node."""
    apart = (places[:, None] - spectrum.nodes) / width
    return np.exp(-apart * apart / 2) @ spectrum.weights / (width * math.sqrt(2 * math.pi))


@compiled("net", "prepare", "loss")
def _product(
    net: Layer,
    prepare: Prepare,
    loss: Loss,
    params: Params,
    state: State,
    along: Params,
    batch: Batch,
) -> Params:
    """The derivative of the gradient of a batch's summed loss along a direction."""

    def gradient(params: Params) -> Params:
        return jax.grad(lambda params: summed(net, prepare, loss, params, state, batch)[0])(params)

    return jax.jvp(gradient, (params,), (along,))[1]


@jax.jit
def _orthogonal(basis: Array, vector: Array) -> tuple[Array, Array]:
    """What of a vector is orthogonal to the basis `[vectors, size]`, and its length."""
    for _ in range(2):
        shares = jnp.matmul(basis, vector, precision="highest")
        vector = vector - jnp.matmul(shares, basis, precision="highest")
    return vector, jnp.linalg.norm(vector)


def _grown(basis: Array) -> Array:
    """The basis with room for 16 vectors more."""
    return jnp.pad(basis, ((0, 16), (0, 0)))


def _tridiagonal(alphas: Sequence[float], betas: Sequence[float]) -> np.ndarray:
    return np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1)


def _normal(key: Array, size: int) -> Array:
    return jax.random.normal(key, (size,), jnp.float32)


def _keys(key: Array) -> Iterator[Array]:
    number = 0
    while True:
        yield jax.random.fold_in(key, number)
        number += 1
