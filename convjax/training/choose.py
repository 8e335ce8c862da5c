"""The best evaluation of a run so far, and how long ago it was."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from convjax.config import Stop


class Best(NamedTuple):
    """What early stopping and the best checkpoint go by.

    step: after how many steps the best model was evaluated; -1 before the first evaluation.
    value: its metric.
    waited: evaluations in a row that `Stop` did not count as better.
    mark: the metric that they would have had to better.
    """

    step: int = -1
    value: float | None = None
    waited: int = 0
    mark: float | None = None


def better(best: Best, step: int, result: Mapping[str, Any], stop: Stop, kept: str | None) -> Best:
    """The best after one more evaluation.

    result: means, by the name of the metric; one that is no number betters nothing.
    kept: the metric of the model that is kept, which may be another than that of `stop`.

    >>> best = better(Best(), 10, {"accuracy": 0.5}, Stop(patience=2), "accuracy")
    >>> better(best, 20, {"accuracy": 0.4}, Stop(patience=2), "accuracy")
    Best(step=10, value=0.5, waited=1, mark=0.5)
    """
    name = kept or stop.metric
    if _is_better(name, result[name], best.value, 0.0):
        best = best._replace(step=step, value=result[name])
    mark = result[stop.metric]
    if _is_better(stop.metric, mark, best.mark, stop.min_delta):
        return best._replace(mark=mark, waited=0)
    return best._replace(waited=best.waited + 1)


def _is_better(metric: str, value: float, than: float | None, by: float) -> bool:
    if math.isnan(value):
        return False
    if than is None:
        return True
    gain = value - than if metric == "accuracy" else than - value
    return gain > by
