"""How one and the same step is spread over devices: each mapper compiles `fn(whole, batch, ...)`.

    mapper = make("shard_map")                                # or "jit", "sharded", "pmap"
    step = mapper.compile(make_step(net, optimizer, loss, axis=mapper.axis), donate=True)
    state = mapper.replicate(state)
    state, metrics = step(state, mapper.shard(batch), hyper)

The first argument and all after the second are whole on every device; the second is a batch whose
leading axis is split; what comes back is whole again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from convjax.compiler import compiler_options
from convjax.config import ConfigError
from convjax.names import nearest

AXIS = "batch"


class Mapper(NamedTuple):
    """One way to spread a step over devices.

    axis: the name that the step's collectives need; None where the compiler inserts them itself.
    devices: what it runs on; a batch is split into as many equal parts.
    compile: `(fn, donate=False) -> fn`, compiled; `donate` gives the first argument's memory back.
    replicate: places what is to be whole on every device, in memory of its own.
    shard: places a batch, split along its leading axis.
    whole, split: the shardings of what these two have placed.
    """

    axis: str | None
    devices: Sequence[Any]
    compile: Callable[..., Callable[..., Any]]
    replicate: Callable[[Any], Any]
    shard: Callable[[Any], Any]
    whole: NamedSharding
    split: NamedSharding


def make(name: str, devices: Sequence[Any] | None = None) -> Mapper:
    """The mapper of that name over these devices, by default all (`jit`: the first).

    jit: one device.
    sharded: `jit` over a mesh; the compiler splits the work and inserts what devices must exchange.
    shard_map: the step is written for one device's part and says itself what is exchanged.
    pmap: as shard_map, by the older name (in maintenance since JAX 0.8).

    Raises:
        ConfigError: for a name that is not in `MAPPERS`.
    """
    if name not in MAPPERS:
        raise ConfigError(f"config.parallel is {name!r}: {nearest(name, MAPPERS)}")
    devices = list(devices or jax.devices())
    if name == "jit":
        devices = devices[:1]
    mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (AXIS,)))
    axis, mapped = MAPPERS[name]

    def compile(fn: Callable[..., Any], donate: bool = False) -> Callable[..., Any]:
        return jax.jit(
            mapped(fn, mesh),
            donate_argnums=(0,) if donate else (),
            out_shardings=whole,
            compiler_options=compiler_options(devices[0].platform),
        )

    def replicate(tree: Any) -> Any:
        # A step that donates its state must not give away memory that the caller still holds.
        return jax.device_put(tree, whole, may_alias=False)

    def shard(batch: Any) -> Any:
        return jax.device_put(batch, split)

    return Mapper(axis, devices, compile, replicate, shard, whole, split)


def _whole(fn: Callable[..., Any], mesh: jax.sharding.Mesh) -> Callable[..., Any]:
    return fn


def _shard_map(fn: Callable[..., Any], mesh: jax.sharding.Mesh) -> Callable[..., Any]:
    whole, split = PartitionSpec(), PartitionSpec(AXIS)

    @functools.wraps(fn)
    def mapped(first: Any, batch: Any, *rest: Any) -> Any:
        # With check_vma the gradient of what is whole comes out summed over devices already, and
        # the step's own sum would count it once more for each device.
        specs = (whole, split, *(whole for _ in rest))
        over = jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False)
        return over(first, batch, *rest)

    return mapped


def _pmap(fn: Callable[..., Any], mesh: jax.sharding.Mesh) -> Callable[..., Any]:
    devices = list(mesh.devices.flat)

    @functools.wraps(fn)
    def mapped(first: Any, batch: Any, *rest: Any) -> Any:
        parts = jax.tree.map(lambda x: x.reshape(len(devices), -1, *x.shape[1:]), batch)
        axes = (None, 0, *(None for _ in rest))
        over = jax.pmap(fn, AXIS, in_axes=axes, out_axes=None, devices=devices)
        return over(first, parts, *rest)

    return mapped


# name -> the axis that the step sees, and what is made of the step before `jit` compiles it
MAPPERS = {
    "jit": (None, _whole),
    "sharded": (None, _whole),
    "pmap": (AXIS, _pmap),
    "shard_map": (AXIS, _shard_map),
}
