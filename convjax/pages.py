"""From `FILE.py`, `FILE.py:ARGUMENT` or `FILE.json` to an experiment.

    load("configs/fashion_mnist.py:lenet")      # runs the file: it is Python
    load("runs/mine/config.json")               # runs nothing

Whatever is wrong with the file, its argument or its code becomes a ConfigError of one line.
"""

import importlib.util
import inspect
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from convjax.config import ConfigError, Experiment, UserError, read_json
from convjax.names import nearest

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def load(source: str) -> Experiment:
    """The experiment that a page of Python makes, or that a JSON file holds.

    Raises: ConfigError if there is no such file or argument, or if the page fails.
    """
    name, colon, argument = source.partition(":")
    path = Path(name)
    if not path.is_file():
        raise ConfigError(_missing(path))
    if path.suffix == ".json" and not colon:
        return _call(path, read_json, path)
    if path.suffix != ".py":
        raise ConfigError(f"{source!r} is no config: give FILE.py, FILE.py:ARGUMENT or FILE.json")
    page = _call(path, _run, path)
    make = getattr(page, "get_config", None)
    if not callable(make):
        raise ConfigError(f"{name} has no get_config: define get_config() -> Experiment in it")
    if colon and not inspect.signature(make).parameters:
        raise ConfigError(f"{name} takes no argument: leave out {':' + argument!r}")
    config = _call(path, make, *([argument] if colon else []))
    if not isinstance(config, Experiment):
        kind = type(config).__name__
        raise ConfigError(f"{name}: get_config returns {kind}: let it return an Experiment")
    return config


def listed() -> dict[str, str]:
    """The pages that come with the repository: path, from here, to the first line of its text."""
    pages = sorted(CONFIGS.glob("[!_]*.py"))
    return {_shown(page): page.read_text("utf-8").lstrip('"').split("\n")[0] for page in pages}


def _missing(path: Path) -> str:
    """Says which file of the folder, or of our own pages, was meant."""
    kind = "is a folder" if path.is_dir() else "does not exist"
    here = path if path.is_dir() else path.parent
    files = sorted(page.name for page in here.glob("[!_]*.*") if page.suffix in (".py", ".json"))
    folder = str(here) if files else _shown(CONFIGS)
    files = files or sorted(page.name for page in CONFIGS.glob("[!_]*.py"))
    choices = [os.path.join(folder, name) for name in files]
    hint = nearest(os.path.join(folder, path.name), choices)
    return f"config file {str(path)!r} {kind}: {hint}"


def _shown(path: Path) -> str:
    """A path as one would type it here."""
    return min(os.path.relpath(path), str(path), key=len)


def _run(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("config_page", path)
    assert spec is not None
    assert spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    return page


def _call(path: Path, function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`; a failure names the line of the file instead of showing a traceback."""
    try:
        return function(*args)
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        if isinstance(error, SyntaxError) and error.filename == str(path):
            lines.append(error.lineno)
        place = f"{path}:{lines[-1]}" if lines else str(path)
        raise ConfigError(f"{place}: {type(error).__name__}: {error}") from error
