"""What a sweep looks for: which figure of a run, and what it is over several seeds.

objective = parse("max valid accuracy")
objective.value(record, lines)              # of a run's run.json and metrics.jsonl
summary([0.91, 0.92, 0.90])                 # mean, and half of its 95 % confidence interval
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from convjax.config import Experiment, UserError
from convjax.names import closest, nearest
from convjax.ranges import METRICS

DIRECTIONS = {"max": "accuracy", "min": "loss"}
SPLITS = (
    *("test", "test_average", "test_average_reestimated", "test_average_views"),
    *("test_average_reestimated_views", "test_best", "test_best_views", "test_views"),
    *("valid", "valid_average", "train"),
)


class Objective(NamedTuple):
    """The figure that is to be greatest ("max") or least ("min").

    split: as `split` in metrics.jsonl. metric: accuracy or loss.
    """

    direction: str
    split: str
    metric: str

    def __str__(self) -> str:
        return " ".join(self)

    def value(
        self, record: Mapping[str, Any], lines: Iterable[Mapping[str, Any]] = ()
    ) -> float | None:
        """The figure at the end of a run; None if there is none, or it is not finite.

        record: what run.json holds. lines: those of metrics.jsonl.
        """
        # An evaluation of the end is in the record, and may be in no line.
        final = record.get("final" + self.split.removeprefix("test"))
        if self.split.startswith("test") and final is not None:
            return _finite(final.get(self.metric))
        found = self.curve(lines)
        return found[-1][1] if found else None

    def curve(self, lines: Iterable[Mapping[str, Any]]) -> list[tuple[int, float | None]]:
        """(step, figure) of each line about it; None for one that is not finite."""
        return [
            (line["step"], _finite(line.get(self.metric)))
            for line in lines
            if line["split"] == self.split
        ]

    def check(self, config: Experiment) -> None:
        """Raises UserError if runs of `config` have no such figure."""
        for part, there, missing in (
            ("valid", config.data.valid, "config.data.valid, such as 'train[90%:]'"),
            ("average", config.average.decay is not None, "config.average.decay, such as 0.999"),
            ("reestimated", config.average.reestimate, "config.average.reestimate=True"),
            ("best", config.checkpoint.best, "config.checkpoint.best, such as 'accuracy'"),
            ("views", config.test_time, "config.test_time, such as 'flip'"),
        ):
            if part in self.split.split("_") and not there:
                raise UserError(
                    f"--objective={str(self)!r}: runs have no such figure: set {missing}"
                )


def parse(text: str) -> Objective:
    """The objective of a text such as 'max test accuracy' or 'min valid_average loss'.

    Raises: UserError with the nearest right word, or for what would look for the worst.

    >>> parse("min valid loss")
    Objective(direction='min', split='valid', metric='loss')
    """
    words = text.split()
    if len(words) != len(Objective._fields):
        right = [
            " ".join((way, split, metric)) for way, metric in DIRECTIONS.items() for split in SPLITS
        ]
        hint = closest(text, right) or "max test accuracy"
        raise UserError(
            f"--objective={text!r}: write direction, split and metric: did you mean {hint!r}?"
        )
    for name, word, choices in zip(Objective._fields, words, (DIRECTIONS, SPLITS, METRICS)):
        if word not in choices:
            hint = nearest(word, choices)
            raise UserError(f"--objective={text!r} has the {name} {word!r}: {hint}")
    found = Objective(*words)
    if DIRECTIONS[found.direction] != found.metric:
        right = next(each for each, metric in DIRECTIONS.items() if metric == found.metric)
        better = str(found._replace(direction=right))
        raise UserError(f"--objective={text!r} looks for the worst: did you mean {better!r}?")
    return found


def summary(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half of its 95 % confidence interval by Student's t; None for one value.

    >>> mean, half = summary([1.0, 2.0, 3.0])       # 4.303 standard errors, at 2 degrees of freedom
    >>> f"{mean:g} ± {half:.3f}"
    '2 ± 2.484'

    Raises: ValueError without a value.
    """
    if not values:
        raise ValueError("no values: there is nothing to sum up")
    mean, n = math.fsum(values) / len(values), len(values)
    if n == 1:
        return mean, None
    from scipy.special import stdtrit  # It takes a while to load.

    return mean, float(stdtrit(n - 1, 0.975)) * statistics.stdev(values) / math.sqrt(n)


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
