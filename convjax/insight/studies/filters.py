"""How alike the filters of a layer are: which are copies, and how many are there in effect.

    found = filters(net, params, spec)["conv1"]
    found.nearest.mean(), found.rank, found.copies

Each filter is taken as one vector of all that makes an output channel; two are compared by the
cosine between them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from convjax import tree
from convjax.layer import Layer, Params, Spec, plan

COPIES = 0.95  # from this cosine on, of either sign, two filters are taken for copies


class Similarity(NamedTuple):
    """What is alike among the filters of one kernel.

    cosine: `[filters, filters]`, from -1 to 1; of a filter of zeros all are 0, its own too.
    nearest: `[filters]`, of each filter the largest |cosine| with another.
    copies: int `[pairs, 2]`, the pairs of |cosine| `COPIES` or more, the most alike first.
    zeros: int, the filters that are nothing but zeros.
    rank: how many directions there are in effect, from 1: the exponential of the entropy of the
        singular values of the filters (Roy and Vetterli, The effective rank, 2007).
    full: the largest that this could be: the number of filters, or of their numbers.
    """

    cosine: np.ndarray
    nearest: np.ndarray
    copies: np.ndarray
    zeros: np.ndarray
    rank: float
    full: int


def filters(net: Layer, params: Params, spec: Spec) -> dict[str, Similarity]:
    """The similarity of the filters of every convolution and dense layer, by the layer's path.

    A layer in a `stack` is there once for each copy: `stack1/body/conv1[0]`. Those with one filter
    are left out.

    spec: of a batch of images as the network sees them.
    """
    found: dict[str, Similarity] = {}
    for path, maker in plan(net, spec).makers.items():
        own: Any = params
        for name in path.split("/") if path else ():
            own = own.get(name, {})
        for name, leaf in tree.leaves(own).items():
            if name.rpartition("/")[2] != "kernel":
                continue
            kernels, counts = np.asarray(leaf, np.float64), maker.counts
            inner = name.rpartition("/")[0]
            shown = "/".join(part for part in (path, inner) if part) or maker.layer.kind
            for copy in np.ndindex(*counts):
                if kernels[copy].ndim >= 2 and kernels.shape[-1] > 1:
                    place = "".join(f"[{number}]" for number in copy)
                    found[shown + place] = similarity(kernels[copy])
    return found


def similarity(kernel: Any) -> Similarity:
    """The similarity of the filters of one kernel `[..., filters]`.

    >>> found = similarity(np.array([[1.0, 0.0, -2.0], [0.0, 1.0, 0.0]]))
    >>> found.copies.tolist(), found.nearest.tolist(), round(found.rank, 2), found.full
    ([[0, 2]], [1.0, 0.0, 1.0], 1.86, 2)

    Raises:
        ValueError: for a kernel of one filter, or with numbers that are not finite.
    """
    kernel = np.asarray(kernel, np.float64)
    count = kernel.shape[-1]
    if kernel.ndim < 2 or count < 2:
        raise ValueError(f"a kernel [..., filters] of 2 filters or more is needed: {kernel.shape}")
    if not np.isfinite(kernel).all():
        raise ValueError("the kernel has numbers that are not finite")
    rows = kernel.reshape(-1, count).T
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(lengths > 0, lengths, 1)
    cosine = np.clip(unit @ unit.T, -1, 1)
    others = np.abs(cosine) - 2 * np.eye(count)
    pairs = np.argwhere(np.triu(others, 1) >= COPIES)
    pairs = pairs[np.argsort(-others[tuple(pairs.T)], kind="stable")]
    return Similarity(
        *(cosine, others.max(1), pairs, np.flatnonzero(lengths[:, 0] == 0)),
        *(_effective_rank(rows), min(rows.shape)),
    )


def _effective_rank(rows: np.ndarray) -> float:
    """The exponential of the entropy of the singular values; 0 of nothing but zeros."""
    values = np.linalg.svd(rows, compute_uv=False)
    if not values.sum():
        return 0.0
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))
