"""The models that a run has saved, and fine-tuning, which starts from one of them.

leaves = saved_model("runs/imagenet", "average")           # by path, "params/..." and "state/..."
model = begin_from(Start("runs/imagenet", fresh=("head/*",)), model)
"""

from __future__ import annotations

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from convjax import tree
from convjax.config import Start, UserError
from convjax.layer import Params, State
from convjax.names import nearest

Model = tuple[Params, State]
MODELS = ("newest", "average", "best")


def saved_model(run: str | os.PathLike[str], name: str = "newest") -> dict[str, np.ndarray]:
    """Parameters and batch statistics of a run by path, each beginning with `params/` or `state/`.

    name: `newest` or `average` of the newest checkpoint, or the `best` that the run has kept. Of a
        run that looks ahead the newest are the slow weights.

    Raises:
        UserError: if the folder holds no run with that model.
    """
    # It loads Orbax, which takes a second or two.
    from convjax.checkpoint import Checkpoints

    if name not in MODELS:
        raise UserError(f"there is no model {name!r} of a run: {nearest(name, MODELS)}")
    folder = Path(run) / ("best" if name == "best" else "checkpoints")
    if not folder.is_dir():
        instead = "set config.checkpoint.best, and train it" if name == "best" else "train it first"
        raise UserError(f"{run} has no {folder.name} yet: {instead}")
    with Checkpoints(folder) as checkpoints:
        if name == "average":
            leaves = checkpoints.read("average/*")
            if not leaves:
                raise UserError(f"{run} followed no average: its config.average.decay is None")
            places = {"0": "params", "1": "state"}  # a pair
            return {_moved(path, places): leaf for path, leaf in leaves.items()}
        leaves = checkpoints.read(("params/*", "state/*"))
        if name == "newest":
            for path, leaf in checkpoints.read("opt/*/slow/*").items():
                leaves[f"params/{path.partition('/slow/')[2]}"] = leaf
    return leaves


def begin_from(start: Start, model: Model) -> Model:
    """The model with parameters and batch statistics of the newest checkpoint of another run.

    start: which run, and patterns of the paths whose leaves stay as they are.
    model: as it is, or its shapes, for which the result has the same.

    Raises:
        UserError: if the run has no checkpoint or no average, a pattern matches nothing, or leaves
            that no pattern names differ: each with the path, both shapes and what to write.
    """
    assert start.run is not None
    try:
        saved = saved_model(start.run, "average" if start.average else "newest")
    except UserError as error:
        raise UserError(f"config.start: {error}") from error
    both = {"params": model[0], "state": model[1]}
    own = tree.leaves(both)
    _check_fresh(start, own)
    taken, problems = [], []
    for path, leaf in own.items():
        bare, there = path.partition("/")[2], saved.get(path)
        if tree.matches(bare, start.fresh):
            taken.append(leaf)
        elif there is None:
            problems.append(f"{bare} is not in it")
        elif (there.shape, there.dtype) != (leaf.shape, leaf.dtype):
            shown = (f"{each.dtype}{list(each.shape)}" for each in (there, leaf))
            problems.append("{} is {} there and {} here".format(bare, *shown))
        else:
            shape_only = isinstance(leaf, jax.ShapeDtypeStruct)
            taken.append(leaf if shape_only else jnp.asarray(there))
    left = (path.partition("/")[2] for path in saved if path not in own)
    problems += [f"{path} is not here" for path in left if not tree.matches(path, start.fresh)]
    if problems:
        raise UserError(
            f"config.start.run is {start.run!r}, another network: {', '.join(problems)}; "
            "name what is to be drawn anew in config.start.fresh"
        )
    begun = jax.tree.unflatten(jax.tree.structure(both), taken)
    return begun["params"], begun["state"]


def _moved(path: str, places: dict[str, str]) -> str:
    _, first, rest = path.split("/", 2)
    return f"{places[first]}/{rest}"


def _check_fresh(start: Start, own: dict[str, object]) -> None:
    paths = [path.partition("/")[2] for path in own]
    for pattern in start.fresh:
        if not any(tree.matches(path, pattern) for path in paths):
            hint = nearest(pattern, paths)
            raise UserError(f"config.start.fresh {pattern!r} matches nothing: {hint}")
