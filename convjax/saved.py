"""The models that a run has saved, their export, and fine-tuning, which starts from one of them.

leaves = saved_model("runs/imagenet", "average")           # by path, "params/..." and "state/..."
print(export("runs/imagenet", "mine.safetensors"))         # such leaves as a file
model = begin_from(Start("runs/imagenet", fresh=("head/*",)), model)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convjax import tree
from convjax.config import Start, UserError, read_json
from convjax.exchange.weights import load_weights, read_header, save_weights
from convjax.layer import Params, State
from convjax.names import nearest
from convjax.runlog import RunLog

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
    with Checkpoints(folder, reads=True) as checkpoints:
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


def export(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    name: str = "newest",
    *,
    overwrite: bool = False,
) -> str:
    """Writes a model of a run as safetensors, for which see `convjax.exchange.weights`.

    Beside its arrays the file says what a stranger needs to use them: the function that made the
    network and its keywords, the classes, and mean and standard deviation of the pixels that
    training subtracted and divided by. It names no folder of this machine.

    name: as for `saved_model`.

    Returns: one line that tells what was written.

    Raises:
        UserError: if the folder holds no run with that model, or the file cannot be written.
    """
    log = RunLog(run)
    config, record = read_json(log.config_file), log.record()
    leaves = saved_model(run, name)
    about = {
        "model": config.model.name,
        "args": config.model.args,
        "classes": record.get("classes"),
        "pixels": record.get("pixels"),
        "saved": name,
        "convjax": metadata.version("convjax"),
        "digest": tree.digest(leaves),
    }
    save_weights(out, leaves, about, overwrite=overwrite)
    size = Path(out).stat().st_size
    return f"{out}: {len(leaves)} arrays, {tree.count(leaves)} numbers, {size} bytes"


def begin_from(start: Start, model: Model) -> Model:
    """The model with parameters and batch statistics of another run, or of a file of weights.

    Of a run they are those of the newest checkpoint. A file without any `state/` leaves the batch
    statistics as they are.

    start: which run or file, and patterns of the paths whose leaves stay as they are.
    model: as it is, or its shapes, for which the result has the same and no file is read but for
        its header.

    Raises:
        UserError: if the run has no checkpoint or no average, the file is no safetensors file, a
            pattern matches nothing, or leaves that no pattern names differ: each with the path,
            both shapes and what to write.
    """
    key, source = ("run", start.run) if start.weights is None else ("weights", start.weights)
    assert source is not None
    try:
        if start.weights is not None:
            saved = read_header(source).arrays
        else:
            saved = saved_model(source, "average" if start.average else "newest")
    except UserError as error:
        raise UserError(f"config.start.{key}: {error}") from error
    except OSError as error:
        raise UserError(f"config.start.{key} is {source!r}: {error.strerror}") from error
    both = {"params": model[0], "state": model[1]}
    own = tree.leaves(both)
    _check_fresh(start, own)
    taken, problems = _fitting(start, own, saved)
    if problems:
        raise UserError(
            f"config.start.{key} is {source!r}, another network: {', '.join(problems)}; "
            "name what is to be drawn anew in config.start.fresh"
        )
    if own and not taken:
        raise UserError(
            f"config.start.fresh is {start.fresh!r}, which names every path: nothing would be "
            f"taken from {source!r}; name fewer, or leave config.start out"
        )
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in own.values()):
        return model
    arrays = saved if start.weights is None else load_weights(source)
    leaves = [jnp.asarray(arrays[path]) if path in taken else leaf for path, leaf in own.items()]
    begun = jax.tree.unflatten(jax.tree.structure(both), leaves)
    return begun["params"], begun["state"]


def _fitting(
    start: Start, own: Mapping[str, Any], saved: Mapping[str, Any]
) -> tuple[set[str], list[str]]:
    """The paths of the leaves that are taken, and what differs of those that no pattern names."""
    no_state = start.weights is not None and not any(each.startswith("state/") for each in saved)
    taken, problems = set(), []
    for path, leaf in own.items():
        bare, there = path.partition("/")[2], saved.get(path)
        if tree.matches(bare, start.fresh) or (no_state and path.startswith("state/")):
            continue
        if there is None:
            problems.append(f"{bare} is not in it")
        elif (there.shape, there.dtype) != (leaf.shape, leaf.dtype):
            shown = (f"{each.dtype}{list(each.shape)}" for each in (there, leaf))
            problems.append("{} is {} there and {} here".format(bare, *shown))
        else:
            taken.add(path)
    for path in (path for path in saved if path not in own):
        bare = path.partition("/")[2]
        if not tree.matches(bare, start.fresh):
            # A file of somebody else has any names.
            problems.append(f"{bare if start.weights is None else ascii(path)[1:-1]} is not here")
    return taken, problems


def _moved(path: str, places: dict[str, str]) -> str:
    _, first, rest = path.split("/", 2)
    return f"{places[first]}/{rest}"


def _check_fresh(start: Start, own: dict[str, object]) -> None:
    paths = [path.partition("/")[2] for path in own]
    for pattern in start.fresh:
        if not any(tree.matches(path, pattern) for path in paths):
            hint = nearest(pattern, paths)
            raise UserError(f"config.start.fresh {pattern!r} matches nothing: {hint}")
