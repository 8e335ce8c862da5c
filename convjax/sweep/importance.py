"""How much each path of a sweep matters to reach its best tenth, by Optuna's PED-ANOVA.

importances(points, values, varied, "max")      # {"optimizer.learning_rate": 0.8, ...}
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convjax.sweep.distributions import contains, quiet
from convjax.typed import build

if TYPE_CHECKING:
    from convjax.sweep.distributions import Distribution

FEWEST = 10  # points: the best tenth of fewer is one, or none to compare it with
ENOUGH = 50  # points: Optuna advises five in the best tenth


def importances(
    points: Sequence[Mapping[str, Any]],
    values: Sequence[float],
    varied: Mapping[str, Sequence[Distribution]],
    direction: str,
) -> dict[str, float]:
    """The share of each path in what tells the best tenth of the points from all; greatest first.

    That is PED-ANOVA (Watanabe, Bansal, Hutter, 2023), also of paths that only some points have;
    Optuna's other measures need scikit-learn and pass over such paths. All are equal where the best
    tenth is spread as all points are.

    values: of each point, which has finished. varied: the distributions of each path; of one that
        lacks that of a point's value, nothing is said.
    """
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import create_trial

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        # What it warns of, too few points of a kind, is told beside the picture.
        with quiet(), warnings.catch_warnings(action="ignore", category=UserWarning):
            ways = optuna.study.StudyDirection
            study = optuna.create_study(
                direction=ways.MAXIMIZE if direction == "max" else ways.MINIMIZE
            )
            unknown: set[str] = set()
            for point, value in zip(points, values, strict=True):
                known: dict[str, tuple[Any, Distribution]] = {}
                for path, listed in point.items():
                    plain = build(listed, Any)
                    of = next(
                        (each for each in varied.get(path, ()) if contains(each, plain)), None
                    )
                    if of is None:
                        unknown.add(path)
                    else:
                        known[path] = plain, of
                trial = create_trial(
                    value=value,
                    params={path: plain for path, (plain, _) in known.items()},
                    distributions={path: of for path, (_, of) in known.items()},
                )
                study.add_trial(trial)
            found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    finally:
        optuna.logging.set_verbosity(before)
    known_shares = [(path, share) for path, share in found.items() if path not in unknown]
    return dict(sorted(known_shares, key=lambda item: (-item[1], item[0])))
