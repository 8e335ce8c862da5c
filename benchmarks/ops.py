"""Measures single operations in convjax, plain JAX and PyTorch, interleaved, on this machine.

    python -m benchmarks.ops
    python -m benchmarks.ops --only=depthwise --rounds=9 --out=ops.json

Every result is first checked to be equal to plain JAX's. Convolutions are given as GFLOP/s of the
direct method, 2 per multiply-add, whatever the algorithm; the rest in ms. "plain" is JAX as it
comes, without compile options; PyTorch has its images with channels last.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import lax

from benchmarks import machine, record
from benchmarks.timing import Plan, interleaved
from convjax import ops
from convjax.allocator import keep_freed_memory
from convjax.combine import serial
from convjax.compiler import compiler_options
from convjax.config import UserError
from convjax.flags import guard, parse
from convjax.layers import conv, dense
from convjax.ops.geometry import Geometry

TOLERANCE = 1e-4  # root of the mean square of the difference, as a share of the result's
SECONDS = 30.0  # after which a player takes no more turns
PLAYERS = ("convjax", "plain", "PyTorch")
HEAD = ["", *PLAYERS, "quartiles of convjax", "n"]
Function = Callable[..., Any]


class Measurement(NamedTuple):
    """What is measured: functions of the same arrays, by the name of who computes them.

    flop: of one call; None if it is given in ms. inner: calls that a call stands for.
    """

    name: str
    arrays: list[np.ndarray]
    players: dict[str, Function]
    flop: float | None = None
    inner: int = 1


def main(argv: list[str]) -> None:
    """Measures what `argv` asks for; raises UserError for what a person can put right."""
    options = flags.FlagValues()
    only = flags.DEFINE_string(
        "only", None, "measure what has this in its name", flag_values=options
    )
    rounds = flags.DEFINE_integer(
        "rounds", 9, "turns of each player", lower_bound=1, flag_values=options
    )
    out = flags.DEFINE_string(
        "out", None, "the file of results; by default a new one", flag_values=options
    )
    parse(options, argv, __doc__)
    keep_freed_memory()
    chosen = [each for each in measurements() if (only.value or "") in each.name]
    if not chosen:
        names = ", ".join(each.name for each in measurements())
        raise UserError(f"--only={only.value!r} is in no name: {names}")
    path = record.path_for(out.value)
    about = record.about("ops", machine.cores(), Plan(rounds.value, SECONDS))
    rows = []
    print(line(HEAD))
    for each in chosen:
        row = measured(each, rounds.value)
        rows.append(row)
        print(line(cells(row)), flush=True)
        for name, figures in row["players"].items():
            if "error" in figures:
                print(f"  {name}: {figures['error']}", flush=True)
        table = {"head": HEAD, "rows": list(map(cells, rows))}
        record.write(about | {"rows": rows, "table": table}, path)
    print(f"written: {path}")


def measured(each: Measurement, rounds: int) -> dict[str, Any]:
    """The name, what it is given in, and for each player median, quartiles, n, or its error."""
    expected = None
    turns = {}
    for name, player in each.players.items():
        result, turns[name] = player(*each.arrays)
        expected = result if expected is None else expected
        for a, b in zip(result, expected, strict=True):
            error = float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))
            if not error < TOLERANCE:
                raise UserError(f"{each.name}: {name} differs by {error:.1e} from the first")
    watch = partial(machine.watched, machine.cores(), [])
    series = interleaved(turns, Plan(rounds, SECONDS), watch)
    figures = {name: one.result() for name, one in series.items()}
    return {"name": each.name, "flop": each.flop, "inner": each.inner, "players": figures}


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table: "-" where a player has no figure, nothing where there is no player."""

    def told(figures: dict[str, Any] | None) -> str:
        if figures is None:
            return ""
        return "-" if "error" in figures else value(row, figures["median"])

    ours = row["players"]["convjax"]
    spread = " to ".join(value(row, each) for each in ours.get("quartiles", ())) or "-"
    medians = [told(row["players"].get(name)) for name in PLAYERS]
    return [row["name"], *medians, spread, str(ours.get("n", 0))]


def line(cells: list[str]) -> str:
    """A row of the table as text."""
    return (
        f"{cells[0]:46}"
        + "".join(f"{cell:>12}" for cell in cells[1:4])
        + "   ".join(["", *cells[4:]])
    )


def value(row: dict[str, Any], seconds: float) -> str:
    """GFLOP/s or ms, as the row has it."""
    if row["flop"]:
        return f"{row['flop'] / seconds / 1e9:.0f} GFLOP/s"
    return f"{1e3 * seconds / row['inner']:.2f} ms"


# -- What is measured ------------------------------------------------------------------------------


def measurements() -> Iterator[Measurement]:
    """All of it."""
    shapes = [
        (32, 32, 64, 64, 3, 1),
        (32, 16, 128, 128, 3, 1),
        (32, 8, 256, 256, 3, 1),
        (32, 4, 512, 512, 3, 1),
        (32, 32, 64, 128, 3, 2),
        (8, 56, 64, 256, 1, 1),
        (8, 56, 256, 64, 1, 1),
        (8, 56, 256, 512, 1, 2),
        (128, 28, 1, 32, 5, 1),
        (128, 14, 32, 64, 5, 1),
    ]
    for shape in shapes:
        yield from convolutions(*shape)
    yield from convolutions(32, 56, 144, 144, 3, 1, groups=144)
    yield from convolutions(32, 28, 192, 192, 7, 1, groups=192)
    yield pool()
    yield normalisation()
    yield members(1)
    yield members(8)
    yield in_scan()


def convolutions(
    batch: int, size: int, channels: int, features: int, window: int, stride: int, groups: int = 1
) -> Iterator[Measurement]:
    """The forward convolution and its two gradients; those of a depthwise one all together."""
    low = window // 2
    geometry = Geometry(
        (size,) * 2, (window,) * 2, (stride,) * 2, (1, 1), ((low, low),) * 2, groups
    )
    x = normal(batch, size, size, channels)
    kernel = normal(window, window, channels // groups, features)
    g = normal(batch, *geometry.out, features)
    flop = 2.0 * g.size * kernel.size / features
    what = f"{window}x{window}" + (f" stride {stride}" if stride > 1 else "")
    shape = f"{batch}x{size}x{size}x{channels}->{features}"

    def forward(x: Any, kernel: Any) -> Any:
        return ops.conv(x, kernel, stride=stride, padding=low, groups=groups)

    def both(x: Any, kernel: Any, g: Any) -> Any:
        return jax.vjp(forward, x, kernel)[1](g)

    def one(x: Any, kernel: Any, g: Any, at: int) -> Any:
        # In one of the two alone: our input gradient waits for a weight gradient that is there.
        if at:
            return jax.vjp(lambda kernel: forward(x, kernel), kernel)[1](g)
        return jax.vjp(lambda x: forward(x, kernel), x)[1](g)

    def torch_both(x: Any, kernel: Any, g: Any, mask: tuple[bool, bool, bool]) -> Any:
        import torch

        dx, dk, _ = torch.ops.aten.convolution_backward(
            g, x, kernel, None, [stride] * 2, [low] * 2, [1, 1], False, [0, 0], groups, mask
        )
        return [each for each in (dx, dk) if each is not None]

    def torch_forward(x: Any, kernel: Any) -> Any:
        import torch

        return torch.nn.functional.conv2d(x, kernel, None, stride, low, 1, groups)

    kinds = ["image", "kernel", "image"]
    if groups > 1:
        players = of_jax(lambda x, k, g: (forward(x, k), *both(x, k, g)))
        players["PyTorch"] = of_torch(
            lambda x, k, g: [torch_forward(x, k), *torch_both(x, k, g, (True, True, False))],
            kinds,
            ["image", "image", "kernel"],
        )
        yield Measurement(f"depthwise {what} {shape}, all three", [x, kernel, g], players)
        return
    players = of_jax(lambda x, k, g: (forward(x, k),))
    players["PyTorch"] = of_torch(lambda x, k, g: [torch_forward(x, k)], kinds, ["image"])
    yield Measurement(f"{what} {shape} forward", [x, kernel, g], players, flop)
    for at, name, mask in (
        (1, "weight gradient", (False, True)),
        (0, "input gradient", (True, False)),
    ):
        players = of_jax(lambda x, k, g, at=at: one(x, k, g, at))
        players["PyTorch"] = of_torch(
            lambda x, k, g, mask=mask: torch_both(x, k, g, (*mask, False)),
            kinds,
            ["kernel" if at else "image"],
        )
        yield Measurement(f"{what} {shape} {name}", [x, kernel, g], players, flop)


def pool() -> Measurement:
    """Max pool 2x2, forward and backward."""

    def both(x: Any, g: Any) -> Any:
        y, back = jax.vjp(lambda x: ops.max_pool(x, 2), x)
        return y, *back(g)

    def torch_both(x: Any, g: Any) -> Any:
        import torch

        x = x.detach().requires_grad_()
        y = torch.nn.functional.max_pool2d(x, 2)
        return [y.detach(), *torch.autograd.grad(y, x, g)]

    players = of_jax(both) | {"PyTorch": of_torch(torch_both, ["image"] * 2, ["image"] * 2)}
    arrays = [normal(128, 32, 32, 64), normal(128, 16, 16, 64)]
    return Measurement("max pool 2x2 128x32x32x64, both ways", arrays, players)


def normalisation() -> Measurement:
    """Batch norm of the batch and ReLU, forward and backward."""

    def apply(x: Any, scale: Any, bias: Any) -> Any:
        mean, var = ops.moments(x, (0, 1, 2))
        return ops.relu(ops.batch_norm(x, mean, var, scale, bias))

    def both(x: Any, scale: Any, bias: Any, g: Any) -> Any:
        y, back = jax.vjp(apply, x, scale, bias)
        return y, *back(g)

    def torch_both(x: Any, scale: Any, bias: Any, g: Any) -> Any:
        import torch

        x, scale, bias = (each.detach().requires_grad_() for each in (x, scale, bias))
        y = torch.nn.functional.batch_norm(x, None, None, scale, bias, training=True).relu()
        return [y.detach(), *torch.autograd.grad(y, (x, scale, bias), g)]

    kinds = ["image", "vector", "vector"]
    players = of_jax(both) | {"PyTorch": of_torch(torch_both, [*kinds, "image"], ["image", *kinds])}
    x, scale, bias, g = (
        normal(*shape) for shape in ((128, 32, 32, 64), (64,), (64,), (128, 32, 32, 64))
    )
    y = (x - x.mean((0, 1, 2))) / x.std((0, 1, 2)) * scale + bias
    # Next to zero rounding decides on which side of the ReLU a number is: nothing comes back there.
    arrays = [x, scale, bias, np.where(np.abs(y) < 1e-3, np.float32(0), g)]
    return Measurement("batch norm + ReLU 128x32x32x64, both ways", arrays, players)


def small_net(number: int = 1) -> tuple[Function, list[np.ndarray]]:
    """A step of plain SGD of a small ConvNet, and its arrays, each with `number` members."""
    net = serial(
        conv(16, 3), ops.relu, conv(32, 3, stride=2), ops.relu, ops.global_avg_pool, dense(10)
    )
    x = normal(32, 28, 28, 8)
    params, _ = net.init(jax.random.key(0), jnp.asarray(x))
    leaves, structure = jax.tree.flatten(params)

    def step(x: Any, *leaves: Any) -> Any:
        def loss(params: Any) -> Any:
            y, _ = net.apply(params, {}, x)
            return jnp.square(y).mean()

        params = jax.tree.unflatten(structure, leaves)
        slopes = jax.tree.leaves(jax.grad(loss)(params))
        return tuple(leaf - 0.1 * slope for leaf, slope in zip(leaves, slopes, strict=True))

    many = [
        np.stack([np.asarray(leaf) * (1 + 0.01 * at) for at in range(number)]) for leaf in leaves
    ]
    return step, [x, *(many if number > 1 else map(np.asarray, leaves))]


def members(number: int) -> Measurement:
    """Steps of several members at once, in ms a member."""
    step, arrays = small_net(number)
    if number > 1:
        step = jax.vmap(step, (None, *(0,) * (len(arrays) - 1)))
    what = f"{number} members under vmap" if number > 1 else "a lone member"
    return Measurement(f"step of a small ConvNet, {what}, each", arrays, of_jax(step), inner=number)


def in_scan() -> Measurement:
    """Eight steps in a scan, in ms a step."""
    step, arrays = small_net()

    def eight(x: Any, *leaves: Any) -> Any:
        return lax.scan(lambda leaves, _: (step(x, *leaves), None), leaves, length=8)[0]

    return Measurement("step of a small ConvNet, in a scan, each", arrays, of_jax(eight), inner=8)


# -- Who computes it -------------------------------------------------------------------------------


def of_jax(function: Function) -> dict[str, Function]:
    """Plain JAX and convjax as players: `(*arrays) -> (results, turn)`."""

    def player(plain: bool, *arrays: np.ndarray) -> tuple[list[np.ndarray], Callable[[], float]]:
        def traced(*arrays: Any) -> Any:
            if not plain:
                return function(*arrays)
            with ops.algorithm("lax"):
                return function(*arrays)

        compiled = jax.jit(traced, compiler_options={} if plain else compiler_options("cpu"))
        given = [jnp.asarray(array) for array in arrays]
        results = [np.asarray(each) for each in compiled(*given)]
        return results, lambda: seconds(lambda: jax.block_until_ready(compiled(*given)))

    return {"plain": partial(player, True), "convjax": partial(player, False)}


def of_torch(function: Function, kinds: list[str], made: list[str]) -> Function:
    """PyTorch as a player.

    kinds, made: whether each array, and each result, is an "image", a "kernel" or a "vector".
    """

    def player(*arrays: np.ndarray) -> tuple[list[np.ndarray], Callable[[], float]]:
        import torch

        torch.set_num_threads(len(machine.cores()))
        there = {"image": (0, 3, 1, 2), "kernel": (3, 2, 0, 1)}
        back = {"image": (0, 2, 3, 1), "kernel": (2, 3, 1, 0)}
        given = []
        for array, kind in zip(arrays, kinds, strict=True):
            one = torch.from_numpy(array)
            if kind in there:
                one = one.permute(there[kind]).contiguous(memory_format=torch.channels_last)
            given.append(one)
        results = [
            (one.permute(back[kind]) if kind in back else one).detach().numpy()
            for one, kind in zip(function(*given), made, strict=True)
        ]
        return results, lambda: seconds(lambda: function(*given))

    return player


def seconds(function: Callable[[], Any]) -> float:
    """How long a call takes."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def normal(*shape: int) -> np.ndarray:
    """Numbers that are normally distributed, float32."""
    return np.random.default_rng(len(shape)).standard_normal(shape, np.float32)


if __name__ == "__main__":
    sys.exit(guard(main, sys.argv))
