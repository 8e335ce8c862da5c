"""What each study finds in a trained network: a table, values, arrays and a picture.

subject = Subject(trained("runs/mine"), Wanted("train"), "mine", few)
STUDIES["hessian"](subject).text
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from convjax.config import UserError
from convjax.insight.columns import short, table
from convjax.insight.studies import (
    batches,
    dead,
    effective_field,
    figures,
    filters,
    hessian,
    landscape,
    noise_scale,
)
from convjax.layer import plan
from convjax.trained import Trained
from convjax.training import feed, parallel

_FIELDS = 12  # that are shown, of a deep network


@dataclass(frozen=True)
class Wanted:
    """What the studies go by.

    split: of the run's data. images: how many of it, but for `dead`, which sees all, and `noise`,
    which sees up to 16 times as many. seed: by which they, and random directions, are drawn.
    """

    split: str
    images: int = 500
    seed: int = 0


class Told(NamedTuple):
    """What a study has found: as text, as values for JSON, as arrays and as a picture."""

    name: str
    text: str
    values: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    picture: bytes


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained network with the images of a study."""

    model: Trained
    wanted: Wanted
    title: str
    few: Sequence[Any] = field(default_factory=list)

    @property
    def spec(self) -> Any:
        """One image as the network sees it."""
        shape = jax.ShapeDtypeStruct((1, *self.model.shape), jnp.uint8)
        return jax.eval_shape(self.model.prepare, shape)

    @property
    def of(self) -> tuple[Any, ...]:
        """What most studies take first."""
        return self.model.net, self.model.params, self.model.state, self.few


def _hessian(subject: Subject) -> Told:
    options = {"prepare": subject.model.prepare, "seed": subject.wanted.seed}
    found = hessian.top_eigenvalues(*subject.of, **options)
    trace = hessian.hessian_trace(*subject.of, **options)
    rows = [("eigenvalue of the Hessian", "value", "±")]
    rows += [
        (f"largest {number}", f"{value:.5g}", f"{bound:.1g}")
        for number, (value, bound) in enumerate(zip(found.values, found.bounds), 1)
    ]
    rows.append(("smallest", f"{found.least:.5g}", f"{found.least_bound:.1g}"))
    rows.append(("sum of all (trace)", f"{trace.value:.5g}", f"{trace.error:.2g}"))
    values = {
        **{name: getattr(found, name) for name in ("least", "least_bound", "products", "size")},
        **{"values": found.values.tolist(), "bounds": found.bounds.tolist()},
        **{"trace": trace._asdict(), "images": batches.counted(subject.few)},
    }
    text = f"{table(rows)}\nby {found.products} products of {found.size:,} parameters"
    picture = figures.spectrum(found, subject.title)
    return Told("hessian", text, values, {"nodes": found.nodes, "weights": found.weights}, picture)


def _landscape(subject: Subject) -> Told:
    net, params = subject.model.net, subject.model.params
    along = landscape.directions(net, params, subject.spec, seed=subject.wanted.seed)
    prepare = {"prepare": subject.model.prepare}
    line = landscape.landscape(*subject.of, along=along[:1], steps=51, **prepare)
    over = landscape.landscape(*subject.of, along=along, steps=21, **prepare)
    shown = range(0, 51, 5)
    rows = [("share of a direction", *(f"{line.shares[each]:+.1f}" for each in shown))]
    rows += [("loss", *(f"{line.loss[each]:.4g}" for each in shown))]
    values = {
        **{"centre": over.centre, "images": batches.counted(subject.few)},
        **{"least": float(np.nanmin(over.loss)), "most": float(np.nanmax(over.loss))},
    }
    arrays = {
        **{"line_shares": line.shares, "line_loss": line.loss},
        **{"plane_shares": over.shares, "plane_loss": over.loss},
    }
    picture = figures.landscapes(line, over, subject.title)
    return Told("landscape", table(rows), values, arrays, picture)


def _dead(subject: Subject) -> Told:
    model, mapper = subject.model, parallel.make("jit")
    split = model.split(subject.wanted.split)
    size = min(batches.BATCH, split.size)
    all_of_it = feed.evaluation(split, size, mapper)
    of = (model.net, model.params, model.state)
    found = dead.census(*of, all_of_it, prepare=model.prepare)
    rows = [("activation", "dead channels", "of", "dead units", "of", "active")]
    rows += [
        (
            *(short(each.path), str(len(each.dead_channels)), str(each.channels)),
            *(f"{each.dead_units:,}", f"{each.units:,}", f"{each.active:.1%}"),
        )
        for each in found
    ]
    layers = [
        {
            **{"path": each.path, "kind": each.kind, "channels": each.channels},
            **{"dead_channels": each.dead_channels.tolist(), "units": each.units},
            **{"dead_units": each.dead_units, "active": each.active},
        }
        for each in found
    ]
    arrays = {each.path.replace("/", "."): each.highest for each in found}
    values = {"layers": layers, "images": found[0].images}
    text = f"{table(rows)}\nof {found[0].images:,} images"
    return Told("dead", text, values, arrays, figures.dead(found, subject.title))


def _filters(subject: Subject) -> Told:
    found = filters.filters(subject.model.net, subject.model.params, subject.spec)
    if not found:
        raise UserError("the network has no kernel of two filters or more to compare")
    rows = [("layer", "filters", "mean |cos|", "copies", "zeros", "effective rank", "of")]
    rows += [
        (
            *(short(path), str(len(each.nearest)), f"{each.nearest.mean():.3f}"),
            *(str(len(each.copies)), str(len(each.zeros)), f"{each.rank:.1f}", str(each.full)),
        )
        for path, each in found.items()
    ]
    layers = [
        {
            **{"path": path, "nearest": float(each.nearest.mean()), "rank": each.rank},
            **{"copies": each.copies.tolist(), "zeros": each.zeros.tolist(), "full": each.full},
        }
        for path, each in found.items()
    ]
    arrays = {path.replace("/", "."): each.cosine for path, each in found.items()}
    picture = figures.similarities(found, subject.title)
    return Told("filters", table(rows), {"layers": layers}, arrays, picture)


def _field(subject: Subject) -> Told:
    model = subject.model
    kinds = {path: made.layer.kind for path, made in plan(model.net, subject.spec).makers.items()}
    known = effective_field.spatial(model.net, subject.spec)
    paths = [path for path in known if "conv" in kinds.get(path, "")] or known
    if not paths:
        raise UserError("the network has no layer with places in its output")
    chosen = np.linspace(0, len(paths) - 1, min(_FIELDS, len(paths))).round().astype(int)
    images = jnp.concatenate([model.prepare(each.images[each.mask]) for each in subject.few])
    of = (model.net, model.params, model.state, images)
    found = effective_field.effective_fields(*of, [paths[number] for number in chosen])
    rows = [("layer", "deviation in pixels", "receptive field", "share of it")]
    rows += [
        (
            *(short(path), " x ".join(f"{each:.2f}" for each in one.deviation)),
            *(" x ".join(map(str, one.size)), f"{one.share:.1%}"),
        )
        for path, one in found.items()
    ]
    layers = [
        {
            **{"path": path, "place": list(each.place), "centre": each.centre.tolist()},
            **{"deviation": each.deviation.tolist(), "size": each.size.tolist()},
            "share": each.share,
        }
        for path, each in found.items()
    ]
    values = {"layers": layers, "images": len(images)}
    arrays = {path.replace("/", "."): each.map for path, each in found.items()}
    return Told("field", table(rows), values, arrays, figures.fields(found, subject.title))


def _noise(subject: Subject) -> Told:
    model, wanted = subject.model, subject.wanted
    total = min(16 * wanted.images, model.split(wanted.split).size)
    small, group = 32, 8
    while total < 8 * small * group and small > 1:
        small //= 2
    if total < 2 * small * group:
        raise UserError(f"{total} images are too few for a noise scale: give {2 * group} or more")
    seed = {"seed": wanted.seed, "size": small}
    own = batches.sampled(model, wanted.split, total, **seed)
    of = (model.net, model.params, model.state, own)
    found = noise_scale.gradient_noise_scale(*of, group=group, prepare=model.prepare)
    rows = [
        ("gradient", "value", "±"),
        ("noise scale, images", f"{found.scale:.4g}", f"{found.error:.2g}"),
        ("tr(S), variance of an image's", f"{found.trace:.4g}", f"{found.trace_error:.2g}"),
        ("|G|^2, squared length of all", f"{found.square:.4g}", f"{found.square_error:.2g}"),
    ]
    counts = f"by {found.groups} batches of {found.large} images and {found.small}"
    text = f"{table(rows)}\n{counts}; the run's batch has {model.config.batch_size}"
    values = {**found._asdict(), "images": found.groups * found.large}
    picture = figures.noise(found, model.config.batch_size, subject.title)
    return Told("noise", text, values, {}, picture)


STUDIES: dict[str, Callable[[Subject], Told]] = {
    "hessian": _hessian,
    "landscape": _landscape,
    "dead": _dead,
    "filters": _filters,
    "field": _field,
    "noise": _noise,
}
