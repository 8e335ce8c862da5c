"""Still pictures of an evaluation, as PNG: for the run's folder, a paper, a talk.

Colours are of the palettes cividis and Okabe-Ito, which colour-blind readers can tell apart, and
nothing is said by colour alone.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np

from convjax.insight.columns import short
from convjax.insight.stills import BLUE, GREY, ORANGE, plain, png, subplots

Result = Mapping[str, Any]


def confusion_matrix(result: Result) -> bytes:
    """Each class's images by what they were taken for, as shares of its row.

    Colours go by the root of the share, so that a few mistakes among many images show.
    """
    from matplotlib.colors import PowerNorm

    matrix = np.array(result["confusion"])
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    classes, few = len(matrix), len(matrix) <= 20
    named = classes <= 130  # Of more there is no room for their names.
    inner = min(max(2.8, 0.45 * classes), 6.5) if few else 0.15 * classes if named else 9.0
    figure, axes = subplots((inner + 2.6, inner + 1.6))
    norm = PowerNorm(0.5, 0, 1)
    shown = axes.imshow(shares, cmap="cividis", norm=norm, interpolation="nearest")
    ticks = np.arange(0, classes, 1 if named else 10 ** int(np.log10(classes / 3)) // 2)
    words = [_label(result["classes"][tick], 22) if named else str(tick) for tick in ticks]
    size = 9 if few or not named else 6
    axes.set_xticks(ticks, words, rotation=90 if classes > 4 else 0, fontsize=size)
    axes.set_yticks(ticks, words, fontsize=size)
    axes.set(xlabel="taken for", ylabel="label")
    if few:
        width = 72 * inner / classes  # of a cell, in points
        size = min(10.0, 1.4 * width / len(f"{matrix.max():,}"))
        for row, column in np.argwhere(matrix):
            axes.text(
                *(column, row, f"{matrix[row, column]:,}"),
                **{"ha": "center", "va": "center", "fontsize": size},
                color="black" if norm(shares[row, column]) > 0.55 else "white",
            )
    axes.set_title(_title(result, f"accuracy {result['accuracy']['value']:.4f}"), fontsize=10)
    bar = figure.colorbar(shown, ax=axes, aspect=30, pad=0.02, ticks=[0, 0.01, 0.1, 0.3, 0.6, 1])
    bar.ax.set_yticklabels(["0", "1 %", "10 %", "30 %", "60 %", "100 %"])
    bar.set_label("share of the label's images")
    return png(figure)


def reliability_diagram(result: Result) -> bytes:
    """Accuracy by confidence against the line of a network that knows what it knows."""
    found = result["reliability"]
    edges, count = np.array(found["edges"]), np.array(found["count"])
    there = count > 0
    left, width = edges[:-1][there], np.diff(edges)[there]
    accuracy, confidence = (np.array(found[name])[there] for name in ("accuracy", "confidence"))
    figure, (axes, below) = subplots((5.2, 6.0), nrows=2, sharex=True, height_ratios=[3, 1])
    style = {"width": width, "align": "edge", "edgecolor": "white", "linewidth": 0.8}
    over = {"clip_on": False, "zorder": 3}
    axes.bar(left, accuracy, color=BLUE, label="accuracy of the bin", **style)
    axes.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="as sure as right")
    axes.plot(
        confidence,
        accuracy,
        "o",
        color=ORANGE,
        markersize=4,
        label="at its mean confidence",
        **over,
    )
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    told = f"calibration error {found['error']:.4f} in {len(count)} bins"
    if result["temperature"] is not None:
        told += f"; temperature {result['temperature']['temperature']:.3f}"
    axes.set_title(_title(result, told), fontsize=10)
    below.bar(left, count[there] / count.sum(), color=GREY, **style)
    below.set(xlabel="confidence", ylabel="share of images")
    for each in (axes, below):
        each.spines[["top", "right"]].set_visible(False)
    return png(figure)


def mistakes(result: Result, images: np.ndarray) -> bytes:
    """The mistakes that the network is surest of: the images, uint8, with what it says of them."""
    names, found = result["classes"], result["mistakes"]
    columns = min(6, len(found))
    rows = -(-len(found) // columns)
    tall = 1.75 * min(images.shape[1] / images.shape[2], 3)
    size = (max(1.75 * columns + 0.3, 3.2), (tall + 0.65) * rows + 0.5)
    figure, grid = subplots(size, rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    captions = [_caption(mistake, names) for mistake in found]
    longest = max(map(len, captions))
    for axes, caption, image in zip(grid.flat, captions, images):
        kind = {"cmap": "gray", "vmin": 0, "vmax": 255} if image.shape[-1] == 1 else {}
        axes.imshow(image if image.shape[-1] in (3, 4) else image[..., 0], **kind)
        # They stand on the image: empty lines below bring the first ones to one height.
        lines = caption + [""] * (longest - len(caption))
        axes.set_title("\n".join(lines), fontsize=7.5, loc="left")
    figure.suptitle(_title(result, "the mistakes that it is surest of"), fontsize=10)
    return png(figure)


def corruptions(result: Result) -> bytes:
    """Accuracy through each corruption at each severity, and without any."""
    found = result["corruptions"]
    accuracy = np.array([[each["accuracy"] for each in row] for row in found.values()])
    clean = result["accuracy"]["value"]
    order = np.argsort(-accuracy.mean(1), kind="stable")
    table = np.concatenate([np.full((len(found), 1), clean), accuracy], 1)[order]
    names = [list(found)[number].replace("_", " ") for number in order]
    figure, axes = subplots((6.2, 1.7 + 0.32 * len(names)))
    shown = axes.imshow(table, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(table.shape):
        axes.text(
            *(column, row, f"{table[row, column]:.3f}"),
            **{"ha": "center", "va": "center", "fontsize": 8},
            color="black" if table[row, column] > 0.55 else "white",
        )
    axes.set_xticks(range(6), ["clean", *"12345"])
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="severity")
    mean = f"mean accuracy through corruptions {accuracy.mean():.4f}"
    axes.set_title(_title(result, mean), fontsize=10)
    figure.colorbar(shown, ax=axes, label="accuracy", fraction=0.046, pad=0.03)
    return png(figure)


def _caption(mistake: Mapping[str, Any], names: list[str]) -> list[str]:
    lines = (
        f"image {mistake['number']}, {mistake['confidence']:.1%} sure",
        f"is {_label(names[mistake['label']], 34)}",
        f"taken for {_label(names[mistake['predicted']], 34)}",
    )
    return [part for line in lines for part in textwrap.wrap(line, 24)]


def _title(result: Result, told: str) -> str:
    which = "" if result["model"] == "newest" else f", {result['model']} model"
    name = f"{result['split']}{which}, {result['images']:,} images"
    return f"{name}\n{told}"


def _label(name: str, width: int) -> str:
    """A class's name without what Matplotlib takes for mathematics."""
    return plain(short(name, width))
