"""Sweeps as pages of Python, and what flags change of them.

page = load_sweep("configs/sweeps/learning_rate.py")
sweep = changed(page, config, {"seeds": 5, "trials": None})     # None: as the page has it
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convjax.config import Experiment, UserError
from convjax.names import trust_only, trusted
from convjax.pages import SWEEPS, made
from convjax.sweep.space import Space, Sweep, corners, space_of


def load_sweep(source: str) -> Sweep:
    """The sweep that `get_sweep` of FILE.py or FILE.py:ARGUMENT makes.

    Raises: ConfigError if there is no such page or argument, or if it fails.
    """
    return made(source, "get_sweep", Sweep, SWEEPS)


def asked_for(page: str | None, vary: Sequence[str]) -> Sweep:
    """The sweep of a page, or one that varies each path by itself.

    Raises: UserError for both, or for neither.
    """
    if bool(page) == bool(vary):
        told = "told twice" if page else "missing"
        text = "give --vary='optimizer.learning_rate=log(1e-4, 1e-1)', or --sweep=PAGE"
        raise UserError(f"what is varied is {told}: {text}")
    return load_sweep(page) if page else Sweep(vary)


def folder_of(page: str | None, config: Experiment) -> str:
    """The folder of a sweep for which none is given: it is called as its page, or as its config."""
    return f"sweeps/{Path(page.partition(':')[0]).stem if page else config.name}"


def changed(sweep: Sweep, config: Experiment, given: Mapping[str, Any]) -> Sweep:
    """A copy of a sweep with this config, and with the fields that are given and not None."""
    fields = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(sweep, config=config, **fields)


def trust_values(space: Space) -> None:
    """Has `convjax.names` trust the functions that a space names, where it does not trust all.

    Whoever gives a saved config of a stranger has written the space himself.
    """
    known = trusted()
    if known is not None:
        names = re.findall(r"[\w.]+:\w+", json.dumps(corners(space)))
        trust_only(known | set(names))


def evolve(given: Any, page: Sweep, config: Experiment) -> str:
    """Trains a population of what a sweep varies; returns the closing line, or the plan.

    given: the flags of `experiments.sweep`.

    Raises: UserError for flags of trials by themselves; what `population.launch` raises.
    """
    from convjax.sweep.population import Population, launch, plan

    if given.population is None:
        raise UserError("--exploit_every is for a population: give --population=16")
    for name in _ALONE:
        if given[name].present:
            raise UserError(f"--{name} is for trials by themselves, not for --population")
    if given.engine not in ("auto", "vectorised"):
        raise UserError(f"--engine={given.engine}: a population trains by --engine=vectorised")
    trust_values(space_of(page.vary))
    population = Population(page.vary, config, given.population, given.exploit_every)
    # That of a sweep for which none is given looks at test images.
    objective = given.objective or (page.objective if page.objective != Sweep.objective else None)
    population.objective = objective or population.objective
    if given.dry_run:
        return plan(population)
    return launch(population, given.workdir or folder_of(given.sweep, config))


# About trials, of which a population has none.
_ALONE = (
    *("seeds", "trials", "sampler", "pruner", "workers", "address", "slurm", "cpus", "gpus"),
    *("hang_after", "fail_fast", "retry"),
)
# Of a sweep, which flags beside a page change.
FIELDS = ("seeds", "trials", "sampler", "pruner", "objective")
