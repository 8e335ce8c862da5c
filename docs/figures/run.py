"""Draws the figure of the README, a run's loss and accuracy over time, from the run's folder.

python docs/figures/run.py runs/mine docs/figures/run.png        (needs matplotlib)
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

TRAIN, TEST = "#0072b2", "#d55e00"  # Okabe and Ito's blue and vermilion, for every kind of eye


def main(workdir: Path, target: Path) -> None:
    """Draws `target` from the metric log in `workdir`."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    record = json.loads((workdir / "run.json").read_text())
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
        for split, colour in (("train", TRAIN), ("test", TEST)):
            points = [(line["seconds"], line[name]) for line in lines if line["split"] == split]
            axis.plot(*zip(*points, strict=True), ".-", color=colour, lw=1.5, ms=5)
            seconds, value = points[-1]
            axis.annotate(
                f" {split} {value:.3f}", (seconds, value), color=colour, va="center", fontsize=9
            )
        axis.set(xlabel="seconds", title=name, xlim=(0, lines[-1]["seconds"] * 1.2))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
    final = record["final"]
    title = f"{final['correct']} of {final['count']} test images after {record['seconds']:.0f} s"
    figure.suptitle(title, fontsize=10)
    figure.savefig(target, dpi=160)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
