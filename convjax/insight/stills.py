"""Still pictures by Matplotlib, as PNG: for a run's folder, a paper, a talk.

    figure, axes = subplots((6.4, 4.0))
    axes.plot(steps, losses, color=BLUE)
    content = png(figure)

Colours are of the palette of Okabe and Ito, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#666666"


def subplots(size: tuple[float, float], nrows: int = 1, ncols: int = 1, **choices: Any) -> Any:
    """A figure of that size in inches, and its axes, as `matplotlib.pyplot.subplots` gives them."""
    from matplotlib.figure import Figure

    # Not by pyplot, which keeps figures and asks for a screen.
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr]
    return figure, figure.subplots(nrows, ncols, **choices)


def png(figure: Any) -> bytes:
    """The figure as a file, 150 dots an inch."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        # Of names in signs that the font lacks: these show as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(content, format="png", dpi=150)
    return content.getvalue()


def plain(text: str) -> str:
    """Text without what Matplotlib takes for mathematics."""
    return text.replace("$", r"\$")
