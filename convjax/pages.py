"""From `FILE.py`, `FILE.py:ARGUMENT` or `FILE.json` to an experiment, or to what else a page makes.

    load("configs/fashion_mnist.py:lenet")      # runs the file: it is Python
    load("runs/mine/config.json")               # runs nothing
    made("configs/sweeps/learning_rate.py", "get_sweep", Sweep, SWEEPS)

Whatever is wrong with the file, its argument or its code becomes a ConfigError of one line.
"""

import importlib.util
import inspect
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from convjax.config import ConfigError, Experiment, UserError, read_json
from convjax.names import nearest

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SWEEPS = CONFIGS / "sweeps"
T = TypeVar("T")


def load(source: str) -> Experiment:
    """The experiment that a page of Python makes, or that a JSON file holds.

    Raises: ConfigError if there is no such file or argument, or if the page fails.
    """
    path = Path(source)
    if path.suffix == ".json" and path.is_file():
        return _call(path, read_json, path)
    return made(source, "get_config", Experiment, CONFIGS)


def made(source: str, function: str, kind: type[T], pages: Path) -> T:
    """What a page of Python makes: its function, called with the argument if there is one.

    kind: what that has to be. pages: the folder of our own ones.

    Raises: ConfigError if there is no such file or argument, or if the page fails.
    """
    name, colon, argument = source.partition(":")
    path, suffixes = Path(name), (".py", ".json") if kind is Experiment else (".py",)
    if not path.is_file():
        raise ConfigError(_missing(path, pages, suffixes))
    if path.suffix != ".py":
        forms = " or ".join(["FILE.py, FILE.py:ARGUMENT", "FILE.json"][: len(suffixes)])
        raise ConfigError(f"{source!r} is no page: give {forms}")
    page = _call(path, _run, path)
    make = getattr(page, function, None)
    if not callable(make):
        raise ConfigError(f"{name} has no {function}: define {function}() -> {kind.__name__} in it")
    if colon and not inspect.signature(make).parameters:
        raise ConfigError(f"{name} takes no argument: leave out {':' + argument!r}")
    found = _call(path, make, *([argument] if colon else []))
    if not isinstance(found, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise ConfigError(
            f"{name}: {function} returns {type(found).__name__}: let it return {article} "
            f"{kind.__name__}"
        )
    return found


def listed(pages: Path = CONFIGS) -> dict[str, str]:
    """The pages that come with the repository: path, from here, to the first line of its text."""
    found = sorted(pages.glob("[!_]*.py"))
    return {_shown(page): page.read_text("utf-8").lstrip('"').split("\n")[0] for page in found}


def _missing(path: Path, pages: Path, suffixes: tuple[str, ...]) -> str:
    """Says which file of the folder, or of our own pages, was meant."""
    kind = "is a folder" if path.is_dir() else "does not exist"
    here = path if path.is_dir() else path.parent
    files = sorted(page.name for page in here.glob("[!_]*.*") if page.suffix in suffixes)
    folder = str(here) if files else _shown(pages)
    files = files or sorted(page.name for page in pages.glob("[!_]*.py"))
    choices = [os.path.join(folder, name) for name in files]
    hint = nearest(os.path.join(folder, path.name), choices)
    what = "config file" if ".json" in suffixes else "page"
    return f"{what} {str(path)!r} {kind}: {hint}"


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
