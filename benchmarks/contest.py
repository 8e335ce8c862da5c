"""Competitors on one network: who computes what convjax computes is timed, in turns with it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import machine
from benchmarks.cases import COMPETITORS, OURS, Case
from benchmarks.timing import Plan, Series, interleaved
from benchmarks.worker import Worker, WorkerError, alone


class Tolerance(NamedTuple):
    """What counts as equal to convjax.

    logits: difference of logits, as a share of the largest one.
    first_loss: difference of the first loss, as a share of it.
    change: difference of what two updates change of the loss, as a share of that.
    """

    logits: float
    first_loss: float
    change: float


# Seen in float32 are up to 3e-5, 1e-6 and 0.01, the last where batch norm magnifies rounding.
FLOAT32 = Tolerance(1e-3, 1e-4, 0.03)

INFERENCE = (1, 32)  # images at once
TURN = 0.4  # seconds of a turn, unless one step takes longer


def rows_of(
    case: Case,
    competitors: Sequence[str],
    modes: Sequence[str],
    plan: Plan,
    cores: Sequence[int],
    options: Mapping[str, Mapping[str, Any]] = {},
    tolerance: Tolerance = FLOAT32,
) -> list[dict[str, Any]]:
    """What was measured of one network: a row for each competitor and mode, or with its error.

    options: of the competitors' `build`, by competitor.
    """
    origin = alone("benchmarks.weights:draw", case.name, cores=cores)
    workers: dict[str, Worker] = {}
    opened: dict[str, dict[str, Any]] = {}
    errors: dict[str, str] = {}
    for name in competitors:
        try:
            workers[name] = _hire(name, case, cores, options.get(name, {}))
            opened[name] = _open(workers[name], origin.weights, modes)
            _agree(opened[name], opened.get(OURS, opened[name]), tolerance)
            first = sum(opened[name]["first"].values())
            _tell(case, name, f"logits agree, first calls took {first:.1f} s")
        except (WorkerError, Disagreement) as error:
            errors[name] = str(error)
            _tell(case, name, str(error))
            if name in workers:
                workers.pop(name).close()
            if name == OURS:
                break
    pids = [worker.pid for worker in workers.values()]
    watch = functools.partial(machine.watched, cores, pids)
    rows = []
    for mode, batch in _kinds(case, modes):
        calls = {
            name: functools.partial(worker.call, *_call(mode, batch))
            for name, worker in workers.items()
        }
        series = interleaved(calls, plan, watch)
        if mode == "train":
            _compare_losses(series, workers, tolerance)
        for name in competitors:
            row = {"network": case.name, "mode": mode, "batch": batch, "competitor": name}
            row["multiply_adds"] = origin.multiply_adds * batch * (3 if mode == "train" else 1)
            if name in errors:
                rows.append(row | {"error": errors[name]})
            elif name in series:
                rows.append(row | _result(series[name], opened[name], mode, batch, workers[name]))
    for worker in workers.values():
        worker.close()
    return rows


def _tell(case: Case, competitor: str, what: str) -> None:
    """Says how far it is: a network of all competitors takes minutes."""
    print(f"{case.title}, {COMPETITORS[competitor].title}: {what}", file=sys.stderr, flush=True)


class Disagreement(Exception):
    """A competitor computes something else than convjax: its times would say nothing."""


def _hire(name: str, case: Case, cores: Sequence[int], options: Mapping[str, Any]) -> Worker:
    competitor = COMPETITORS[name]
    if machine.version_of(competitor.needs) is None:
        raise WorkerError(f"{competitor.needs} is not installed: pip install -e '.[bench]'")
    target = "benchmarks.contestant:Contestant"
    arguments = (name, case.name, case.batch, dict(options))
    return Worker(target, *arguments, cores=cores, environment=competitor.environment)


def _open(worker: Worker, weights: Any, modes: Sequence[str]) -> dict[str, Any]:
    """First calls: what they return, to be compared, and how long they take, with compilation."""
    worker.call("build", weights)
    seen: dict[str, Any] = {"logits": {}, "first": {}}
    if "inference" in modes:
        for batch in INFERENCE:
            first, logits = worker.call("first_prediction", batch)
            seen["first"]["inference", batch] = first
            seen["logits"][f"inference of {batch}"] = logits
    if "train" in modes:
        seen["logits"]["training mode"] = worker.call("train_logits")
        seen["first"]["train", None] = worker.call("first_step")
    return seen


def _agree(seen: dict[str, Any], ours: dict[str, Any], tolerance: Tolerance = FLOAT32) -> None:
    """Compares logits with convjax's, and notes the largest deviation."""
    deviations = {
        what: deviation(logits, ours["logits"][what]) for what, logits in seen["logits"].items()
    }
    for what, value in deviations.items():
        if not value <= tolerance.logits:
            raise Disagreement(f"logits in {what} differ from convjax's by {value:.1e} of them")
    seen["logits_deviate"] = max(deviations.values())


def _compare_losses(
    series: dict[str, Series], workers: dict[str, Worker], tolerance: Tolerance
) -> None:
    """Compares the losses of the first steps with convjax's; who differs has no times."""
    losses = {
        name: worker.call("compared_losses")
        for name, worker in workers.items()
        if series[name].error is None
    }
    for name, values in losses.items():
        if not agree(values, losses.get(OURS, values), tolerance):
            both = _listed(values), _listed(losses[OURS])
            series[name].error = "losses of the first steps are {}, convjax's {}".format(*both)


def agree(
    losses: Sequence[float], expected: Sequence[float], tolerance: Tolerance = FLOAT32
) -> bool:
    """Whether the losses of the first steps are those expected: the first one, and their change.

    >>> agree([2.0, 1.8, 1.5], [2.0, 1.8, 1.51]), agree([2.0, 1.8, 1.6], [2.0, 1.8, 1.5])
    (True, False)
    """
    first, *later = np.array(losses)
    expected_first, *expected_later = np.array(expected)
    if not np.isfinite(losses).all() or len(losses) != len(expected):
        return False
    change, expected_change = np.array(later) - first, np.array(expected_later) - expected_first
    return bool(
        abs(first - expected_first) <= tolerance.first_loss * abs(expected_first)
        and (abs(change - expected_change) <= tolerance.change * abs(expected_change).max()).all()
    )


def deviation(values: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, as a share of the largest expected number; infinite for a NaN.

    >>> deviation(np.array([1.0, 3.0]), np.array([1.0, 4.0]))
    0.25
    """
    if values.shape != expected.shape or not np.isfinite(values).all():
        return float("inf")
    return float(np.abs(values - expected).max() / np.abs(expected).max())


def _result(
    series: Series, opened: dict[str, Any], mode: str, batch: int, worker: Worker
) -> dict[str, Any]:
    seconds = series.result()
    if "error" in seconds:
        return seconds
    first = opened["first"][mode, None if mode == "train" else batch]
    result = {
        "seconds": seconds,
        "images_per_second": batch / seconds["median"],
        "compile_seconds": max(first - seconds["median"], 0.0),
        "logits_deviate": opened["logits_deviate"],
    }
    if mode == "train":
        result["peak_memory"] = worker.call("peak_memory")
        result["losses"] = worker.call("compared_losses")
    return result


def _kinds(case: Case, modes: Sequence[str]) -> list[tuple[str, int]]:
    kinds = [("train", case.batch)] if "train" in modes else []
    return kinds + ([("inference", batch) for batch in INFERENCE] if "inference" in modes else [])


def _call(mode: str, batch: int) -> tuple[Any, ...]:
    return ("train", TURN) if mode == "train" else ("predict", batch, TURN)


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.5g}" for value in values)
