"""Bytes as chance damages them: the same for the same seed."""

import json

import numpy as np


def mutated(content, seed):
    """The bytes with one to three changes, more often near the beginning, where headers are."""
    rng, content = np.random.default_rng(seed), bytearray(content)
    for _ in range(rng.integers(1, 4)):
        size = len(content)
        at = int(rng.integers(0, min(size, 64) if rng.random() < 0.5 else size)) if size else 0
        span = int(rng.integers(1, 17))
        match rng.integers(0, 8):
            case 0:
                content[at : at + 1] = bytes([int(rng.integers(256))])
            case 1:
                content[at : at + span] = rng.bytes(span)
            case 2:
                del content[at:]
            case 3:
                del content[at : at + span]
            case 4:
                content[at:at] = rng.bytes(span)
            case 5:
                content[at:at] = content[at : at + 16 * span]
            case 6:
                content[at : at + span] = bytes([255 * int(rng.integers(2))]) * span
            case 7:
                if size:
                    content[at % size] ^= 1 << int(rng.integers(8))
    return bytes(content)


def mutated_json(content, seed):
    """JSON in which one value, wherever it is, has become another one."""
    rng, whole = np.random.default_rng(seed), json.loads(content)
    places = list(_places(whole))
    parent, key = places[rng.integers(len(places))]
    values = (None, -1, 0, 2**63, 1e400, "", "x" * 10_000, "../../x", [], {}, [[]], {"x": None})
    value = values[rng.integers(len(values))]
    if rng.random() < 0.2:
        del parent[key]
    else:
        parent[key] = value
    return json.dumps(whole).encode()


def _places(value):
    """Where the values within a value are: what holds each, and under which key."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])
