"""How long each layer of a network takes, and how much of what the device can do that is.

    timing = measure(net, spec)
    summarize(net, spec, timing=timing)

The network runs layer by layer. Each layer is compiled as a program of its own, and timed on the
numbers that reach it. In the same run the device shows what it can do at most: products of large
matrices, and copies of arrays of all sizes, since what fits into a cache moves faster. The roofline
(Williams, Waterman and Patterson 2009) is the shortest time in which a layer's multiply-adds can be
computed, and its input, parameters and output be moved, whichever is longer.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from convjax import tree
from convjax.combine import serial
from convjax.compiler import compiler_options
from convjax.insight.inspection import cost
from convjax.layer import Context, Layer, Params, Spec, State
from convjax.surgery import rewrite

ENOUGH = 0.01
SAMPLES = 5
Clock = Callable[[Callable[[], Any]], float]


class Timing(NamedTuple):
    """What was measured; times in seconds, of a whole batch.

    layers: how long each layer takes in all of its calls, by path.
    shortest: how long it would take at the peak, by path.
    whole: how long the network takes as one program.
    idle: how long a program takes that does next to nothing: no layer can be faster.
    multiply_adds_per_second: of products of large matrices, the peak of the device.
    bytes_per_second: read and written when an array is copied that no cache holds.
    device: its name. batch: how many examples there were.
    """

    layers: dict[str, float]
    shortest: dict[str, float]
    whole: float
    idle: float
    multiply_adds_per_second: float
    bytes_per_second: float
    device: str
    batch: int


def measure(net: Layer, spec: Spec, *, seed: int = 0, enough: float = ENOUGH) -> Timing:
    """Times every layer of a network in evaluation, with parameters and images drawn at random.

    A layer whose calls are traced, as in a `stack`, which is one program for all of its copies, is
    timed as part of the layer around it. What a network computes between its layers, such as the
    sum at the end of a residual block, is in `whole` alone; where layers follow one another in one
    program, their numbers need not be stored, so `whole` may well be less than the sum.

    enough: seconds that a sample takes at least, in as many calls as it needs; see `seconds_of`.
    """
    if not net.parts:  # It is the only layer itself, as in a summary.
        net = serial(net)
    params, state = net.init(jax.random.key(seed), spec)
    images = _images(spec, seed)
    device = jax.devices()[0]
    options = compiler_options(device.platform)
    clock = functools.partial(seconds_of, enough=enough)
    work = _peak_multiply_adds(jax.tree.leaves(spec)[0].dtype, options, clock)
    copies = _copies(options, clock)
    watch = _Watch(work, copies, options, clock)
    rewrite(net, watch.timing).apply(params, state, images, Context())
    whole = jax.jit(lambda *of: net.apply(*of, Context())[0], compiler_options=options)
    nothing = jax.jit(lambda x: x + 1, compiler_options=options)
    return Timing(
        watch.layers,
        watch.shortest,
        clock(functools.partial(whole, params, state, images)),
        clock(functools.partial(nothing, jnp.float32(0))),
        work,
        copies[-1][0] / copies[-1][1],
        device.device_kind,
        jax.tree.leaves(spec)[0].shape[0],
    )


def seconds_of(call: Callable[[], Any], enough: float = ENOUGH, samples: int = SAMPLES) -> float:
    """The median time of a call that returns arrays, once it is compiled.

    A sample is as many calls in a row as take `enough` seconds together, of which the last is
    waited for.
    """

    def sample(count: int) -> float:
        begun = time.perf_counter()
        for _ in range(count - 1):
            call()
        jax.block_until_ready(call())
        return time.perf_counter() - begun

    jax.block_until_ready(call())
    count, took = 1, sample(1)
    while took < enough and count < 1000:
        count = min(max(2 * count, int(count * enough / max(took, 1e-9))), 1000)
        took = sample(count)
    return statistics.median(sample(count) / count for _ in range(samples))


def seconds_of_copy(count: int, copies: Sequence[tuple[int, float]]) -> float:
    """How long it takes to read and write so many bytes in all, between and beyond measured ones.

    copies: (bytes, seconds), the fewest first.

    >>> copies = [(1000, 1e-5), (1_000_000, 1e-4)]
    >>> [f"{seconds_of_copy(count, copies):.3g}" for count in (10, 1000, 100_000, 2_000_000)]
    ['1e-05', '1e-05', '4.64e-05', '0.0002']
    """
    sizes, times = zip(*copies)
    if count > sizes[-1]:
        return times[-1] * count / sizes[-1]
    return float(np.exp(np.interp(np.log(max(count, 1)), np.log(sizes), np.log(times))))


class _Watch:
    """Times layers while the network runs, one program a layer."""

    def __init__(
        self,
        work: float,
        copies: Sequence[tuple[int, float]],
        options: dict[str, str],
        clock: Clock,
    ):
        self.work, self.copies, self.options, self.clock = work, copies, options, clock
        self.layers: dict[str, float] = {}
        self.shortest: dict[str, float] = {}
        self.programs: dict[str, Callable[..., Any]] = {}  # alike layers share one
        self.notes = 0
        self.traced = False  # whether a layer was met whose calls are traced

    def timing(self, path: str, part: Layer) -> Layer:
        """The same part, which is timed when it is called."""

        def apply(params: Params, state: State, x: Any, ctx: Context = Context()):
            if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((params, x))):
                self.traced = True
                return part.apply(params, state, x, ctx)
            if part.kind == "identity":
                return x, state
            if part.wire is None:
                return self._note(part, params, state, x, ctx)
            before, notes, self.traced = self.traced, self.notes, False
            result = part.apply(params, state, x, ctx)
            # Of what `shaped` makes a layer without parts is no part of its own.
            if self.traced or self.notes == notes:
                result = self._note(part, params, state, x, ctx)
            self.traced = before
            return result

        return part._replace(apply=apply)

    def _note(self, part: Layer, params: Params, state: State, x: Any, ctx: Context) -> Any:
        def run(params: Params, state: State, x: Any) -> Any:
            return part.apply(params, state, x, ctx)

        jaxpr = jax.make_jaxpr(run)(params, state, x)
        program = self.programs.get(str(jaxpr))
        if program is None:
            program = jax.jit(run, compiler_options=self.options)
            if not jaxpr.consts:
                self.programs[str(jaxpr)] = program
        call = functools.partial(program, params, state, x)
        y = call()
        took = self.clock(call)
        moved = seconds_of_copy(_bytes((params, state, x, y[0])), self.copies)
        least = max(cost.multiply_adds(jaxpr) / self.work, moved)
        self.notes += 1
        self.layers[ctx.path] = self.layers.get(ctx.path, 0.0) + took
        self.shortest[ctx.path] = self.shortest.get(ctx.path, 0.0) + least
        return y


def _peak_multiply_adds(dtype: Any, options: dict[str, str], clock: Clock) -> float:
    """Multiply-adds a second of products of square matrices, as large as take a while."""
    product = jax.jit(jnp.matmul, compiler_options=options)
    best, length = 0.0, 512
    while length <= 8192:
        matrix = jnp.ones((length, length), dtype)
        took = clock(functools.partial(product, matrix, matrix))
        best, length = max(best, length**3 / took), 2 * length
        if took > 0.01:
            break
    return best


def _copies(options: dict[str, str], clock: Clock) -> list[tuple[int, float]]:
    """Bytes that are read and written by copies of arrays, with the seconds that it takes."""
    copy = jax.jit(lambda x: x + 1, compiler_options=options)
    found = []
    for power in range(12, 29, 2):
        x = jnp.zeros(2**power // 8, jnp.float32)
        found.append((2 * x.nbytes, clock(functools.partial(copy, x))))
    return found


def _images(spec: Spec, seed: int) -> Any:
    rng = np.random.default_rng(seed)

    def one(leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.asarray(rng.standard_normal(leaf.shape, np.float32), leaf.dtype)
        return jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree.map(one, spec)


def _bytes(arrays: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in tree.leaves(arrays).values())
