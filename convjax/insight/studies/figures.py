"""Still pictures of studies, as PNG. Colours are those that colour-blind readers can tell apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from convjax.insight.columns import short
from convjax.insight.stills import BLUE, GREEN, GREY, ORANGE, plain, png, subplots

if TYPE_CHECKING:
    from convjax.insight.studies.dead import Census
    from convjax.insight.studies.effective_field import EffectiveField
    from convjax.insight.studies.filters import Similarity
    from convjax.insight.studies.hessian import Spectrum
    from convjax.insight.studies.landscape import Landscape
    from convjax.insight.studies.noise_scale import NoiseScale
    from convjax.insight.studies.rates import Rates


def spectrum(found: Spectrum, title: str) -> bytes:
    """The density of the Hessian's eigenvalues, on a logarithmic axis, and the largest of them."""
    from convjax.insight.studies.hessian import density

    span = float(found.nodes[-1] - found.nodes[0]) or 1.0
    places = np.linspace(found.nodes[0] - 0.05 * span, found.nodes[-1] + 0.05 * span, 2000)
    shown = density(found, places, span / 150)
    figure, axes = _figure((6.4, 3.8))
    axes.semilogy(places, np.maximum(shown, 1e-300), color=BLUE, label="density")
    top = float(shown.max()) * 3
    axes.set_ylim(max(top * 1e-9, float(found.weights[found.weights > 0].min()) / span / 3), top)
    axes.plot(
        found.values,
        np.full(len(found.values), 0.03),
        "v",
        color=ORANGE,
        transform=axes.get_xaxis_transform(),
        label=f"the {len(found.values)} largest",
    )
    axes.axvline(0, color=GREY, linewidth=0.8, linestyle=":")
    axes.set(xlabel="eigenvalue of the Hessian", ylabel="density")
    axes.legend(frameon=False, fontsize=9)
    _titled(axes, title, f"largest {found.values[0]:.4g}, smallest {found.least:.4g}")
    return png(figure)


def landscapes(line: Landscape, over: Landscape, title: str) -> bytes:
    """The loss along one direction, and over the plane of it and another."""
    figure, (left, right) = _figure((10.4, 4.4), 1, 2)
    left.plot(line.shares, line.loss, color=BLUE, marker="o", markersize=3)
    left.axvline(0, color=GREY, linewidth=0.8, linestyle=":")
    finite = line.loss[np.isfinite(line.loss) & (line.loss > 0)]
    if len(finite) and finite.max() > 20 * finite.min():
        left.set_yscale("log")
        _plain(left.yaxis)
    left.set(xlabel="share of the first direction", ylabel="loss")
    left.set_xticks(np.linspace(line.shares[0], line.shares[-1], 5))
    _titled(left, title, f"in the middle {line.centre:.4f}")
    _contours(figure, right, over)
    _titled(right, "two directions, filter by filter as long", "as the network's own")
    return png(figure)


def similarities(found: Mapping[str, Similarity], title: str) -> bytes:
    """Of every layer, how alike each filter is to its nearest, and how many there are in effect."""
    names = list(found)
    figure, (left, right) = _figure((9.6, 1.5 + 0.34 * len(names)), 1, 2, sharey=True)
    places = np.arange(len(names))
    for place, each in zip(places, found.values()):
        spread = np.sort(each.nearest)
        jitter = 0.32 * (np.arange(len(spread)) / max(len(spread) - 1, 1) - 0.5)
        left.plot(spread, place + jitter, ".", color=BLUE, markersize=3, alpha=0.6)
        left.plot(each.nearest.mean(), place, "|", color=ORANGE, markersize=14, markeredgewidth=2)
    left.plot([], [], ".", color=BLUE, label="a filter")
    left.plot([], [], "|", color=ORANGE, markersize=10, markeredgewidth=2, label="their mean")
    left.set_yticks(places, [short(name, 30) for name in names])
    left.set(xlim=(-0.02, 1.02), xlabel="|cosine| with the nearest other filter")
    left.set_ylim(len(names) - 0.5, -0.5)
    left.legend(frameon=False, fontsize=8, loc="lower center", ncols=2, bbox_to_anchor=(0.5, 1.0))
    shares = [each.rank / max(each.full, 1) for each in found.values()]
    right.barh(places, shares, color=BLUE, height=0.6)
    for place, each, share in zip(places, found.values(), shares):
        inside = share > 0.3
        right.text(
            *(share - 0.02 if inside else share + 0.02, place, f"{each.rank:.1f} of {each.full}"),
            **{"va": "center", "ha": "right" if inside else "left", "fontsize": 8},
            color="white" if inside else "black",
        )
    right.set(xlim=(0, 1.02), xlabel="effective rank, as a share of the largest that it could be")
    figure.suptitle(plain(title), fontsize=10)
    return png(figure)


def dead(found: Sequence[Census], title: str) -> bytes:
    """The shares of channels and units that are never active, by layer."""
    figure, axes = _figure((7.6, 1.9 + 0.42 * len(found)))
    places = np.arange(len(found))
    channels = np.array([len(each.dead_channels) / each.channels for each in found])
    units = np.array([each.dead_units / each.units for each in found])
    axes.barh(places - 0.19, channels, 0.36, color=ORANGE, label="dead channels")
    axes.barh(places + 0.19, units, 0.36, color=BLUE, label="dead units (channel and place)")
    highest = max(float(units.max()), float(channels.max()), 1e-3)
    for place, each in zip(places, found):
        told = (
            (-0.19, len(each.dead_channels), each.channels),
            (0.19, each.dead_units, each.units),
        )
        for shift, count, total in told:
            axes.text(
                *(count / total + 0.01 * highest, place + shift, f"{count:,} of {total:,}"),
                **{"va": "center", "fontsize": 7.5},
            )
    axes.set_yticks(places, [short(each.path, 30) for each in found])
    axes.set(ylim=(len(found) - 0.5, -0.5), xlim=(0, 1.3 * highest), xlabel="share that is dead")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3%}".rstrip("0%").rstrip(".") + " %")
    axes.legend(frameon=False, fontsize=8, loc="lower center", ncols=2, bbox_to_anchor=(0.5, 1.0))
    told = f"never active, of {found[0].images:,} images"
    figure.suptitle(plain(f"{title}\n{told}"), fontsize=10)
    return png(figure)


def fields(found: Mapping[str, EffectiveField], title: str) -> bytes:
    """The effective receptive field of each layer, as a picture as large as the image."""
    columns = min(4, math.ceil(math.sqrt(len(found))))
    rows = math.ceil(len(found) / columns)
    figure, grid = _figure((2.4 * columns + 0.3, 2.75 * rows + 0.5), rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, (path, each) in zip(grid.flat, found.items()):
        flat = each.map if each.map.ndim == 2 else _flat(each.map)
        # The square root: what lies far out is much weaker, and is there all the same.
        axes.imshow(np.sqrt(flat / (flat.max() or 1)), cmap="viridis", vmin=0, vmax=1)
        spread = " x ".join(f"{deviation:.1f}" for deviation in each.deviation)
        size = " x ".join(map(str, each.size))
        told = f"field {size}, {each.share:.0%} in use\ndeviation {spread} pixels"
        axes.set_title(plain(f"{short(path, 28)}\n{told}"), fontsize=8)
    told = "square root of the mean |gradient| of the middle place by each pixel"
    figure.suptitle(plain(f"{title}\n{told}"), fontsize=10)
    return png(figure)


def noise(found: NoiseScale, batch_size: int, title: str) -> bytes:
    """What a batch size costs by the noise scale: steps, and images, beside the fewest."""
    figure, axes = _figure((6.0, 4.0))
    middle = found.scale if math.isfinite(found.scale) and found.scale > 0 else float(batch_size)
    sizes = np.geomspace(min(middle, batch_size) / 30, max(middle, batch_size) * 30, 300)
    if math.isfinite(found.scale) and found.scale > 0:
        # McCandlish et al., equations 2.11 and 2.12.
        axes.loglog(sizes, 1 + found.scale / sizes, color=BLUE, label="steps, beside the fewest")
        axes.loglog(
            *(sizes, 1 + sizes / found.scale),
            **{"color": ORANGE, "linestyle": "--", "label": "images, beside the fewest"},
        )
        axes.axvline(found.scale, color=GREY, linewidth=0.8)
        low = max(found.scale - found.error, sizes[0])
        if math.isfinite(found.error):
            axes.axvspan(low, found.scale + found.error, color=GREY, alpha=0.15, linewidth=0)
        told = f"noise scale {found.scale:.4g} ± {found.error:.2g} images"
    else:
        told = "the gradient is not told from noise: give more images"
    axes.axvline(batch_size, color=GREEN, linestyle=":", label=f"the run's batch of {batch_size}")
    axes.set(xscale="log", xlim=(sizes[0], sizes[-1]), xlabel="images in a batch", ylabel="times")
    for axis in (axes.xaxis, axes.yaxis):
        _plain(axis)
    axes.legend(frameon=False, fontsize=8, loc="lower center", ncols=3, bbox_to_anchor=(0.5, 1.0))
    figure.suptitle(f"{plain(title)}\n{told}", fontsize=10)
    return png(figure)


def rates(found: Rates, title: str) -> bytes:
    """The loss by the learning rate, with what is suggested."""
    figure, axes = _figure((6.4, 4.0))
    axes.semilogx(found.rates, found.losses, ".", color=GREY, markersize=4, label="a batch")
    axes.semilogx(found.rates, found.smoothed, color=BLUE, label="smoothed")
    low, high = float(found.smoothed.min()), float(found.smoothed.max())
    room = 0.1 * (high - low) or 1.0
    axes.set_ylim(min(low, float(found.losses.min())) - room, high + 2 * room)
    for name, rate, colour, style in (
        ("steepest", found.steepest, ORANGE, "-"),
        ("a tenth of the least", found.tenth, GREEN, "--"),
    ):
        if rate is not None:
            axes.axvline(rate, color=colour, linestyle=style, label=f"{name}: {rate:.2g}")
    axes.set(xlabel="learning rate", ylabel="loss")
    axes.legend(frameon=False, fontsize=9, loc="best")
    _titled(axes, title, f"learning rates, {len(found.rates)} steps")
    return png(figure)


def _contours(figure: Any, axes: Any, found: Landscape) -> None:
    from matplotlib.colors import LogNorm

    good = np.isfinite(found.loss) & (found.loss > 0)
    shown = np.ma.masked_where(~good, found.loss)
    low, high = (
        (float(found.loss[good].min()), float(found.loss[good].max())) if good.any() else (1, 2)
    )
    low, high = (low, high) if high > low * (1 + 1e-9) else (low / 2, low * 2)
    levels = np.geomspace(low, high, 17)
    options = {"levels": levels, "norm": LogNorm(low, high)}
    # The first direction lies along x.
    filled = axes.contourf(found.shares, found.shares, shown.T, cmap="viridis", **options)
    lines = axes.contour(
        *(found.shares, found.shares, shown.T),
        **{"levels": levels[1::2], "colors": "white", "linewidths": 0.6},
    )
    axes.clabel(lines, fontsize=7, fmt=_short)
    axes.plot(0, 0, "+", color="white", markersize=9, markeredgewidth=1.8)
    axes.set(xlabel="share of the first direction", ylabel="share of the second", aspect="equal")
    ticks = np.linspace(found.shares[0], found.shares[-1], 5)
    axes.set(xticks=ticks, yticks=ticks)
    bar = figure.colorbar(filled, ax=axes, label="loss", fraction=0.046, pad=0.03)
    bar.set_ticks(levels[::4])
    bar.ax.yaxis.set_major_formatter(lambda value, _: _short(value))
    bar.ax.yaxis.set_minor_locator(_no_ticks())


def _short(value: float) -> str:
    """A loss in three digits, or without a fraction."""
    return f"{value:,.0f}" if 1000 <= value < 1e6 else f"{value:.3g}"


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _plain(axis: Any) -> None:
    """Numbers as one writes them, not as powers of ten."""
    axis.set_major_formatter(lambda value, _: f"{value:g}")


def _flat(field: np.ndarray) -> np.ndarray:
    """A map of one dimension as a strip; of three, what lies behind one another summed."""
    if field.ndim == 1:
        return np.tile(field, (max(len(field) // 6, 1), 1))
    return field.sum(tuple(range(field.ndim - 2)))


def _titled(axes: Any, title: str, told: str) -> None:
    axes.set_title(f"{plain(title)}\n{told}", fontsize=10)


def _figure(size: tuple[float, float], nrows: int = 1, ncols: int = 1, **choices: Any) -> Any:
    figure, axes = subplots(size, nrows, ncols, **choices)
    for each in np.ravel(axes):
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes
