"""How deep each parameter lies in a network: its layers in the order of the computation.

    layers(net, params)            # [["stem"], ["stage1/block1"], ["stage1/block2"], ..., ["head"]]
    ends(net, params)              # ["stem/conv1/kernel", "head/kernel"]

Parameters themselves are dicts in alphabetical order, which says nothing of first and last. They
may be arrays or `jax.ShapeDtypeStruct`s.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from convjax import tree
from convjax.layer import Layer, Params
from convjax.surgery import walk


def layers(net: Layer, params: Params) -> list[list[str]]:
    """The paths of the parts that make up each layer, for learning rates that fall layer by layer.

    A layer is a block, or a convolution or dense layer that stands by itself. A chain of blocks
    (`serial`, `repeat`) is as many layers; one of plain layers only, such as a stem or a stage of
    VGG, is one, and so is a `stack`. What has no kernel, such as a norm, belongs to a convolution
    or dense layer before it, or else to what follows it, as the norm between last block and head.
    """
    leaves = tree.leaves(params)
    found: list[list[str]] = []
    waiting: list[str] = []
    after_plain = False
    for path, part in _units(net, ""):
        inside = _below(leaves, path)
        if not inside:
            continue
        if max(len(leaf.shape) for leaf in inside.values()) > 1:
            found.append([*waiting, path])
            waiting, after_plain = [], not part.parts
        elif after_plain:
            found[-1].append(path)
        else:
            waiting.append(path)
    return [*found, waiting] if waiting else found


def ends(net: Layer, params: Params) -> list[str]:
    """The paths of the first and of the last kernel of a network.

    A kernel is a parameter of two axes or more.
    """
    kernels = [path for path, leaf in tree.leaves(params).items() if len(leaf.shape) > 1]
    order = {path: place for place, (path, _) in enumerate(walk(net))}
    kernels.sort(key=lambda path: order.get(path.rpartition("/")[0], len(order)))
    return [*dict.fromkeys((kernels[0], kernels[-1]))] if kernels else []


def depths(net: Layer, params: Params) -> dict[str, int]:
    """How many layers lie between each parameter and the end, by its path; 0 in the last layer.

    Raises:
        ValueError: if a parameter belongs to no part of the network.
    """
    leaves = tree.leaves(params)
    found = {
        path: depth
        for depth, parts in enumerate(reversed(layers(net, params)))
        for part in parts
        for path in _below(leaves, part)
    }
    lost = [path for path in leaves if path not in found]
    if lost:
        raise ValueError(f"no part of the network has the parameters {', '.join(lost)}")
    return {path: found[path] for path in leaves}


def _units(net: Layer, path: str) -> Iterator[tuple[str, Layer]]:
    """The parts that are layers, or that stand beside them, in order."""
    for name, part in net.parts.items():
        inner = f"{path}/{name}" if path else name
        chain = part.kind in ("serial", "repeat")
        if chain and any(each.parts for each in part.parts.values()):
            yield from _units(part, inner)
        else:
            yield inner, part


def _below(leaves: dict[str, Any], path: str) -> dict[str, Any]:
    return {name: leaf for name, leaf in leaves.items() if name.startswith(f"{path}/")}
