"""How one and the same step is spread over devices: each mapper compiles `fn(first, batch, ...)`.

    mapper = make("shard_map")                      # or "jit", "sharded", "pmap", "fsdp"
    step = mapper.compile(make_step(net, optimizer, loss, axis=mapper.axis), donate=True)
    state = mapper.place(state)
    state, metrics = step(state, mapper.shard(batch), hyper)

The first argument, and what comes back, lies where `place` puts it: whole on every device, but for
the big leaves of `fsdp`. The second is a batch whose leading axis is split; the others are whole.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from convjax.compiler import compiler_options, spec_on
from convjax.config import ConfigError
from convjax.names import nearest

AXIS = "batch"
WHOLE_BELOW = 2**16


class Mapper(NamedTuple):
    """One way to spread a step over devices.

    axis: the name that the step's collectives need; None where the compiler inserts them itself.
    devices: what it runs on, those of a process side by side; a batch is split into as many equal
        parts.
    compile: `(fn, donate=False) -> fn`, compiled; `donate` gives the first argument's memory back.
    replicate: places what is to be whole on every device, in memory of its own.
    shard: places a batch, split along its leading axis. Of several processes each gives its own
        rows, the part `part` of the whole batch.
    place: places a state or a model where it is kept between steps, in memory of its own.
    spec: shapes, dtypes and shardings of what `place` would give, of arrays or of their shapes.
    whole, split: the shardings of what `replicate` and `shard` have placed.
    part: this process's number among those that the devices belong to, and how many there are.
    """

    axis: str | None
    devices: Sequence[Any]
    compile: Callable[..., Callable[..., Any]]
    replicate: Callable[[Any], Any]
    shard: Callable[[Any], Any]
    place: Callable[[Any], Any]
    spec: Callable[[Any], Any]
    whole: NamedSharding
    split: NamedSharding
    part: tuple[int, int]


def make(
    name: str, devices: Sequence[Any] | None = None, *, whole_below: int = WHOLE_BELOW
) -> Mapper:
    """The mapper of that name over these devices, by default all of all processes (`jit`: one).

    jit: one device.
    sharded: `jit` over a mesh; the compiler splits the work and inserts what devices must exchange.
    fsdp: as sharded, and every leaf of the state with `whole_below` numbers or more is split over
        the devices, along the largest axis that divides by their number (Rajbhandari et al., ZeRO,
        2020, stage 3). A kernel is gathered where it is used.
    shard_map: the step is written for one device's part and says itself what is exchanged.
    pmap: as shard_map, by the older name (in maintenance since JAX 0.8).

    Raises:
        ConfigError: for a name that is not in `MAPPERS`; for `jit` and `pmap` where there are
            several processes.
    """
    if name not in MAPPERS:
        raise ConfigError(f"config.parallel is {name!r}: {nearest(name, MAPPERS)}")
    axis, mapped, over_processes = MAPPERS[name]
    # Not `make_mesh`, which may order the devices of a TPU otherwise: the rows of a batch that a
    # process has are to be those of its devices.
    devices = sorted(devices or jax.devices(), key=lambda device: device.process_index)
    processes = sorted({device.process_index for device in devices})
    if len(processes) > 1 and not over_processes:
        raise ConfigError(
            f"config.parallel is {name!r}, which runs in one process, and there are "
            f"{len(processes)}: choose 'sharded', 'shard_map' or 'fsdp'"
        )
    if name == "jit":
        devices = devices[:1]
    here = jax.process_index()
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (AXIS,)))

    def layout(leaf: Any) -> NamedSharding:
        if name != "fsdp":
            return whole
        return NamedSharding(mesh, split_largest(leaf.shape, len(devices), whole_below))

    def compile(fn: Callable[..., Any], donate: bool = False) -> Callable[..., Any]:
        compiled = jax.jit(
            mapped(fn, mesh, layout),
            donate_argnums=(0,) if donate else (),
            out_shardings=None if name == "fsdp" else whole,
            compiler_options=compiler_options(devices[0].platform),
        )
        waits = devices[0].platform == "cpu" and len(processes) > 1
        return Waiting(compiled) if waits else compiled

    def replicate(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: _put(leaf, whole), tree)

    def place(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: _put(leaf, layout(leaf)), tree)

    def shard(batch: Any) -> Any:
        if len(processes) == 1:
            return jax.device_put(batch, split)
        rows = functools.partial(jax.make_array_from_process_local_data, split)
        return jax.tree.map(rows, batch)

    def spec(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: spec_on(leaf, layout(leaf)), tree)

    part = (processes.index(here), len(processes))
    placing = (compile, replicate, shard, place, spec)
    return Mapper(axis, devices, *placing, whole, split, part)


def split_largest(shape: Sequence[int], count: int, whole_below: int) -> PartitionSpec:
    """How `fsdp` splits an array into `count` parts: along its largest axis that divides by it.

    >>> tuple(split_largest((3, 3, 256, 512), 8, whole_below=2**16))
    (None, None, None, 'batch')
    >>> tuple(split_largest((3, 3, 3, 64), 8, whole_below=2**16))
    ()
    """
    axes = [axis for axis, size in enumerate(shape) if size % count == 0]
    if math.prod(shape) < whole_below or not axes:
        return PartitionSpec()
    largest = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*(None,) * largest, AXIS)


class Waiting:
    """A function that `jax.jit` has made, or a stage of it, whose calls wait for their results.

    For several processes on the CPU: steps that are dispatched without waiting hang, when those of
    one device occupy the threads that another needs to meet its neighbours in an earlier step.
    """

    def __init__(self, stage: Any):
        self._stage = stage

    def __call__(self, *arguments: Any) -> Any:
        """What the function gives, once it is there."""
        return jax.block_until_ready(self._stage(*arguments))

    def lower(self, *specs: Any) -> Waiting:
        """The function, traced for arguments like these."""
        return Waiting(self._stage.lower(*specs))

    def compile(self) -> Waiting:
        """What `lower` has traced, compiled."""
        return Waiting(self._stage.compile())

    def as_text(self) -> str:
        """What `compile` has made, as the compiler writes it."""
        return self._stage.as_text()

    def memory_analysis(self) -> Any:
        """The memory that what `compile` has made takes."""
        return self._stage.memory_analysis()


def _put(leaf: Any, sharding: NamedSharding) -> Any:
    """A copy of an array, of the host or of any devices, that is spread like this.

    Of several processes each gives the same one. A step that donates its state must not give away
    memory that the caller still holds.
    """
    if isinstance(leaf, jax.Array):
        if not leaf.is_fully_addressable:
            return jax.jit(jnp.copy, out_shardings=sharding)(leaf)
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = _put(jax.random.key_data(leaf), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    # From one device to several, `device_put` shares memory whatever it is told (`may_alias`); and
    # several processes would first compare their values.
    array = np.asarray(leaf)
    return jax.make_array_from_callback(
        array.shape, sharding, lambda index: np.array(array[index]), dtype=array.dtype
    )


Layout = Callable[[Any], NamedSharding]


def _whole(fn: Callable[..., Any], mesh: Mesh, layout: Layout) -> Callable[..., Any]:
    return fn


def _fsdp(fn: Callable[..., Any], mesh: Mesh, layout: Layout) -> Callable[..., Any]:
    @functools.wraps(fn)
    def mapped(first: Any, batch: Any, *rest: Any) -> Any:
        def keep(leaf: jax.Array) -> jax.Array:
            return jax.lax.with_sharding_constraint(leaf, layout(leaf))

        return jax.tree.map(keep, fn(first, batch, *rest))

    return mapped


def _shard_map(fn: Callable[..., Any], mesh: Mesh, layout: Layout) -> Callable[..., Any]:
    whole, split = PartitionSpec(), PartitionSpec(AXIS)

    @functools.wraps(fn)
    def mapped(first: Any, batch: Any, *rest: Any) -> Any:
        # With check_vma the gradient of what is whole comes out summed over devices already, and
        # the step's own sum would count it once more for each device.
        specs = (whole, split, *(whole for _ in rest))
        over = jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False)
        return over(first, batch, *rest)

    return mapped


def _pmap(fn: Callable[..., Any], mesh: Mesh, layout: Layout) -> Callable[..., Any]:
    devices = list(mesh.devices.flat)

    @functools.wraps(fn)
    def mapped(first: Any, batch: Any, *rest: Any) -> Any:
        parts = jax.tree.map(lambda x: x.reshape(len(devices), -1, *x.shape[1:]), batch)
        axes = (None, 0, *(None for _ in rest))
        over = jax.pmap(fn, AXIS, in_axes=axes, out_axes=None, devices=devices)
        return over(first, parts, *rest)

    return mapped


# name -> the axis that the step sees, what is made of the step before `jit` compiles it, and
# whether it runs over several processes: pmap wants each one's own arrays there, outside of `jit`
MAPPERS = {
    "jit": (None, _whole, False),
    "sharded": (None, _whole, True),
    "pmap": (AXIS, _pmap, False),
    "shard_map": (AXIS, _shard_map, True),
    "fsdp": (None, _fsdp, True),
}
