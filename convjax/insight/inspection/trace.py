"""What a profile of JAX says of a network: the seconds of each layer, forward and backward.

    times = times_of(file, operations(compiled.as_text()), frozenset(paths), steps=10)
    times.dearest()                                 # ["stage1/conv1", ...]

The compiler writes with every operation from which named scope it comes, and every layer is called
in a scope of its own.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from convjax.insight.inspection.layout import Table, large, seconds, shown, size
from convjax.insight.inspection.operations import Operations

DEAREST = 10


class Times(NamedTuple):
    """Seconds of one step, by path of the layer: forward and backward.

    rest: what is of no layer: preparing images, the loss, the optimizer, and what devices exchange.
    """

    forward: Mapping[str, float]
    backward: Mapping[str, float]
    rest: float

    @property
    def whole(self) -> float:
        """All of it; operations that ran at the same time count one by one."""
        return sum(self.forward.values()) + sum(self.backward.values()) + self.rest

    def dearest(self, count: int = DEAREST) -> list[str]:
        """The layers that take most of it, the dearest first."""
        total = Counter(self.forward) + Counter(self.backward)
        return [path for path, _ in total.most_common(count)]


def times_of(file: Path, program: Operations, paths: frozenset[str], steps: int) -> Times:
    """The times of a profile of so many steps of a compiled program.

    file: of the profile, NAME.xplane.pb. paths: of the layers that there are.
    """
    found: dict[bool, dict[str, float]] = {False: defaultdict(float), True: defaultdict(float)}
    rest = 0.0
    data = jax.profiler.ProfileData.from_file(str(file))
    for plane in data.planes:
        for line in plane.lines:
            for name, nanoseconds in _own_times(line.events, program):
                each = nanoseconds / 1e9 / steps
                path, backward = program.layer(name, paths)
                if path:
                    found[backward][path] += each
                else:
                    rest += each
    return Times(found[False], found[True], rest)


def told(found: Mapping[str, Any], folder: str) -> str:
    """What a profile has found, as text."""
    layers, rest = found["layers"], found["rest"]
    whole = sum(map(sum, layers.values())) + rest
    last = found["first"] + found["steps"] - 1
    lines = []
    for path in [*layers][:DEAREST]:
        forward, backward = layers[path]
        cells = [seconds(each) if each else "" for each in (forward, backward)]
        lines.append([path, *cells, f"{(forward + backward) / whole:.1%}"])
    others = [*layers.values()][DEAREST:]
    if others:
        sums = [sum(each) for each in zip(*others)]
        cells = [seconds(each) if each else "" for each in sums]
        lines.append([f"{len(others)} other layers", *cells, f"{sum(sums) / whole:.1%}"])
    if rest:
        lines.append(["outside of layers", seconds(rest), "", f"{rest / whole:.1%}"])
    head = ["dearest layers", "forward", "backward", "share"]
    work, rate = found["multiply_adds_per_step"], found["multiply_adds_per_second"]
    return "\n".join(
        (
            f"profile of steps {found['first']} to {last}: "
            f"{seconds(found['seconds_per_step'])} a step, "
            f"of which it waits for images {found['waiting_share']:.1%}",
            f"{large(work)} multiply-adds a step, {large(rate)} a second; "
            f"memory of a step {size(found['memory_bytes'])}",
            shown(Table(head, [False, True, True, True], lines), "text"),
            f"the profile is in {folder}: open it with TensorBoard, XProf or ui.perfetto.dev",
        )
    )


def _own_times(events: Iterable[Any], program: Operations) -> Iterable[tuple[str, float]]:
    """The operations of the program on one line, each with its time less what lies within it."""
    stack: list[list[Any]] = []  # name, end, own time
    ordered = sorted(events, key=lambda event: (event.start_ns, -event.duration_ns))
    for event in ordered:
        stats = dict(event.stats)
        name = stats.get("hlo_op", event.name)
        if name not in program.names or stats.get("hlo_module", program.module) != program.module:
            continue
        while stack and stack[-1][1] <= event.start_ns:
            done, _, own = stack.pop()
            yield done, own
        if stack:
            # What a loop takes is told by the operations in it, be it in another thread.
            outer = stack[-1]
            outer[2] = max(outer[2] - event.duration_ns, 0.0)
        stack.append([name, event.end_ns, 0.0 if program.is_loop(name) else event.duration_ns])
    yield from ((name, own) for name, _, own in stack)
