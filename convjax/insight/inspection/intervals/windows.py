"""Rules for windows that go over an image: padding, pools and convolutions."""

from __future__ import annotations

import functools
import math

import numpy as np

from convjax.insight.inspection.intervals.calls import Call, Rule, everything, first_of, whole
from convjax.insight.inspection.intervals.span import EMPTY, Span, join, replaced


def _pad(call: Call) -> Span | None:
    span = call.spans[0]
    if span is None:
        return everything(call)
    for axis, padding in enumerate(call.params["padding_config"]):
        span = _padded(span, axis, call.shapes[0][axis], padding)
    return join([span, whole(call.operands[1:], call.shape)])


def _padded(span: Span, axis: int, length: int, padding: tuple[int, int, int]) -> Span:
    """What is padded sees nothing; and if the image went on, what is next on the border."""
    low, high, between = padding
    step = span.steps[axis] / (between + 1)
    if padding == (0, 0, 0) or (not span.changes(axis) and not step):
        return span
    bounds = np.moveaxis(span.full(axis, length).bounds, axis + 1, -1)
    spread = np.full((*bounds.shape[:-1], max((length - 1) * (between + 1) + 1, 0)), EMPTY)
    spread[..., :: between + 1] = bounds

    def beyond(edge: np.ndarray, places: range) -> np.ndarray:
        made = np.full((*edge.shape[:-1], len(places)), EMPTY)
        made[2] = edge[2] + np.array([math.floor(place * step) for place in places], np.int64)
        made[3] = edge[3] + np.array([math.floor(-place * step) for place in places], np.int64)
        return made

    before = beyond(spread[..., :1], range(-low, 0))
    after = beyond(spread[..., -1:], range(1, high + 1))
    cut = slice(max(-low, 0), spread.shape[-1] - max(-high, 0))
    grown = np.concatenate([before, spread[..., cut], after], -1)
    return Span(np.moveaxis(grown, -1, axis + 1), replaced(span.steps, axis, step))


def _window(
    span: Span,
    axis: int,
    length: int,
    *,
    size: int,
    stride: int,
    dilation: int,
    padding: tuple[int, int],
    spread: int = 1,
) -> Span:
    """What a window sees that goes over an axis, whose places lie `spread` apart."""
    span = _padded(span, axis, length, (*padding, spread - 1))
    if span.changes(axis):
        rows = np.moveaxis(span.bounds, axis + 1, -1)
        count = (rows.shape[-1] - (size - 1) * dilation - 1) // stride + 1
        taps = [
            rows[..., tap * dilation : tap * dilation + (count - 1) * stride + 1 : stride]
            for tap in range(size)
        ]
        span = span._replace(bounds=np.moveaxis(functools.reduce(np.minimum, taps), -1, axis + 1))
    return Span(span.bounds, replaced(span.steps, axis, span.steps[axis] * stride))


def _reduce_window(call: Call) -> Span | None:
    span, params = join(call.spans[: max(len(call.operands) // 2, 1)]), call.params
    if span is None:
        return everything(call)
    for axis, length in enumerate(call.shapes[0]):
        span = _window(
            *(span, axis, length),
            size=params["window_dimensions"][axis],
            stride=params["window_strides"][axis],
            dilation=params["window_dilation"][axis],
            padding=params["padding"][axis],
            spread=params["base_dilation"][axis],
        )
    return span


def _grouped(span: Span, axis: int, channels: int, groups: int, features: int) -> Span:
    """Every feature of a group depends on all channels of that group."""
    if not span.changes(axis):
        return span
    shape = span.bounds.shape
    parts = span.bounds.reshape(*shape[: axis + 1], groups, channels // groups, *shape[axis + 2 :])
    of_groups = parts.min(axis + 2)
    return Span(np.repeat(of_groups, features // groups, axis + 1), span.steps).short()


def _conv_general_dilated(call: Call) -> Span | None:
    x, kernel = call.spans
    params, numbers = call.params, call.params["dimension_numbers"]
    if x is not None:
        batch, channel, *places = numbers.lhs_spec
        lengths = [call.shapes[0][axis] for axis in numbers.lhs_spec]
        window = [call.shapes[1][axis] for axis in numbers.rhs_spec[2:]]
        for number, axis in enumerate(places):
            x = _window(
                *(x, axis, lengths[2 + number]),
                size=window[number],
                stride=params["window_strides"][number],
                dilation=params["rhs_dilation"][number],
                padding=params["padding"][number],
                spread=params["lhs_dilation"][number],
            )
        features = call.shapes[1][numbers.rhs_spec[0]]
        x = _grouped(x, channel, lengths[1], params["feature_group_count"], features)
        x = x.over([batch]) if params["batch_group_count"] > 1 else x
        order = dict(zip(numbers.out_spec, numbers.lhs_spec))
        x = x.arranged([order[axis] for axis in range(len(call.shape))])
    return join([x, whole([kernel], call.shape)])


def _correlate(call: Call) -> Span | None:
    """Our own convolution; see `convjax.ops.correlation`."""
    geometry, ahead = call.params["geometry"], 1 + call.params["members"]
    x, kernel = call.spans
    if x is not None:
        for number, length in enumerate(geometry.size):
            x = _window(
                *(x, ahead + number, length),
                size=geometry.window[number],
                stride=geometry.stride[number],
                dilation=geometry.dilation[number],
                padding=geometry.pads[number],
            )
        x = _grouped(x, x.rank - 1, call.shapes[0][-1], geometry.groups, call.shape[-1])
    return join([x, whole([kernel], call.shape)])


def _paint(call: Call) -> Span | None:
    """Its transpose: a window over an image whose pixels lie a stride apart."""
    geometry, ahead = call.params["geometry"], 1 + call.params["members"]
    g, kernel = call.spans
    if g is not None:
        for number, size in enumerate(geometry.size):
            length, stride = geometry.out[number], geometry.stride[number]
            gap = geometry.dilation[number]
            reach = (geometry.window[number] - 1) * gap
            before = reach - geometry.pads[number][0]
            after = size + reach - before - (length - 1) * stride - 1
            g = _window(
                *(g, ahead + number, length),
                size=geometry.window[number],
                stride=1,
                dilation=gap,
                padding=(before, after),
                spread=stride,
            )
        g = _grouped(g, g.rank - 1, call.shapes[0][-1], geometry.groups, call.shape[-1])
    return join([g, whole([kernel], call.shape)])


def _window_max(call: Call) -> Span:
    span, geometry = first_of(call), call.params["geometry"]
    for number, length in enumerate(geometry.size):
        span = _window(
            *(span, 1 + number, length),
            size=geometry.window[number],
            stride=geometry.stride[number],
            dilation=geometry.dilation[number],
            padding=geometry.pads[number],
        )
    return span


RULES: dict[str, Rule] = {
    **{f"reduce_window{how}": _reduce_window for how in ("", "_sum", "_max", "_min")},
    "conv_general_dilated": _conv_general_dilated,
    "convjax_conv": _correlate,
    "convjax_conv_input": _paint,
    "convjax_max": _window_max,
    "pad": _pad,
}
