"""An evaluation as text: what a terminal shows of the result of `evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convjax.insight.columns import short, table

Result = Mapping[str, Any]
_CLASSES = 20  # of more, the worst alone are shown
_WORST = 10


def text(result: Result) -> str:
    """The result as tables."""
    parts = [_by_class(result), _confused(result), _scores(result)]
    if "corruptions" in result:
        parts.append(_corruptions(result))
    return "\n\n".join(part for part in parts if part)


def _by_class(result: Result) -> str:
    rows = result["by_class"]
    note = ""
    if len(rows) > _CLASSES:
        note = f"\nthe {_WORST} classes of lowest F1, of {len(rows)}"
        rows = sorted((row for row in rows if row["images"]), key=lambda row: row["f1"])[:_WORST]
    lines = [("class", "precision", "recall", "F1", "images")]
    lines += [
        (
            short(row["class"]),
            *(f"{row[name]:.4f}" for name in ("precision", "recall", "f1")),
            str(row["images"]),
        )
        for row in rows
    ]
    return table(lines) + note


def _confused(result: Result) -> str:
    names = result["classes"]
    lines = [("most often mistaken", "for", "images")]
    lines += [
        (short(names[each["label"]]), short(names[each["predicted"]]), str(each["count"]))
        for each in result["most_confused"][:5]
    ]
    return table(lines, left=2) if len(lines) > 1 else ""


def _scores(result: Result) -> str:
    names = {
        "accuracy": "accuracy",
        "top5": "top-5 accuracy",
        "macro_f1": "macro F1",
        "loss": "loss (negative log-likelihood)",
        "calibration_error": f"calibration error (bins: {len(result['reliability']['count'])})",
    }
    level = f"{result['intervals']['level']:.0%} interval"
    lines = [("", "value", level)]
    for name, title in names.items():
        if name in result:
            found = result[name]
            interval = f"{found['low']:.4f} to {found['high']:.4f}" if "low" in found else ""
            lines.append((title, f"{found['value']:.4f}", interval))
    parts = [table(lines)]
    if (scaled := result["temperature"]) is not None:
        before, after = scaled["before"], scaled["after"]
        parts.append(
            f"temperature {scaled['temperature']:.4f}, fitted on {scaled['fitted_images']} images "
            f"({scaled['fitted_on']}); on {scaled['judged_images']} others\n"
            f"  calibration error {before['error']:.4f} to {after['error']:.4f}, "
            f"loss {before['loss']:.4f} to {after['loss']:.4f}"
        )
    if "features" in result:
        found = result["features"]
        probe, neighbours = found["probe"], found["neighbours"]
        read = "" if probe is None else f", of a linear probe {probe['accuracy']:.4f}"
        parts.append(
            f"features before {found['layer']} ({found['size']} numbers), against "
            f"{found['bank_images']} images of {found['bank']}\n"
            f"  accuracy of the {neighbours['k']} nearest neighbours "
            f"{neighbours['accuracy']:.4f}{read}"
        )
        if probe is not None and not probe["converged"]:
            parts.append(f"  the probe has not converged in its {probe['steps']} steps")
    return "\n".join(parts)


def _corruptions(result: Result) -> str:
    found = result["corruptions"]
    lines: list[Sequence[str]] = [("accuracy at severity", "1", "2", "3", "4", "5", "mean")]
    means = []
    for name, row in found.items():
        accuracies = [each["accuracy"] for each in row]
        means.append(sum(accuracies) / len(accuracies))
        lines.append((name, *(f"{each:.4f}" for each in (*accuracies, means[-1]))))
    mean = sum(means) / len(means)
    lines.append(("mean", *[""] * 5, f"{mean:.4f}"))
    shown = table(lines)
    if broken := sum(each["not_finite"] for row in found.values() for each in row):
        shown += (
            f"\n{broken} corrupted images had logits that are not finite, and count as mistakes"
        )
    return shown
