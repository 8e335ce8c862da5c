"""Mappers: the ten steps of a ResNet are the same ones, however they are spread over devices."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import run_together
from ten_steps import WHOLE_BELOW, assert_equal_here, begin, compiled, train

from convjax import tree
from convjax.checkpoint import Checkpoints
from convjax.compiler import Compiler
from convjax.config import ConfigError
from convjax.layer import Context
from convjax.layers import dropout
from convjax.training import parallel
from convjax.training.parallel import MAPPERS

SPREAD = sorted(set(MAPPERS) - {"jit"})
OVER_PROCESSES = ("sharded", "shard_map", "fsdp")


@pytest.fixture(autouse=True)
def compile_in_half_the_time(monkeypatch):
    options = {"xla_backend_optimization_level": "0"}
    monkeypatch.setattr(parallel, "compiler_options", lambda platform: options)


def mapper_of(name, devices=None):
    return parallel.make(name, jax.devices()[:devices], whole_below=WHOLE_BELOW)


@functools.cache
def alone():
    """What one device makes of the ten steps; and the step, compiled."""
    mapper = mapper_of("jit")
    step = compiled(mapper)
    return *train(mapper, step, begin()), step


def largest_difference(state, other):
    """The largest difference of parameters, statistics, memory and averages."""
    differences = {
        path: np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max()
        for (path, a), b in zip(
            tree.leaves(_numbers(state)).items(), jax.tree.leaves(_numbers(other))
        )
    }
    return max(differences.values())


def _numbers(state):
    return state.params, state.state, state.opt, state.average


# Sums in another order differ by float32's rounding, 6e-8 of numbers around 1: after ten steps by
# 4e-7 at most in parameters, statistics, memory and averages, and 1.3e-7 of the losses. Another
# mask of dropout changes them by 0.4 (see below).
TOLERANCE = 2e-6


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("name", SPREAD)
def test_ten_steps_of_a_resnet_are_those_of_one_device(name, devices):
    """With batch norm, dropout, augmentation, momentum, decay and an average."""
    mapper = mapper_of(name, devices)
    state, seen = train(mapper, compiled(mapper), begin())
    np.testing.assert_allclose(seen, alone()[1], rtol=TOLERANCE)
    assert largest_difference(state, alone()[0]) < TOLERANCE
    for spec, leaf in zip(jax.tree.leaves(mapper.spec(begin())), jax.tree.leaves(state)):
        assert leaf.sharding.is_equivalent_to(spec.sharding, leaf.ndim)


def test_another_mask_of_dropout_is_far_beyond_the_tolerance():
    state, _, step = alone()
    other = begin()
    other = other._replace(key=jax.random.fold_in(other.key, 1))
    changed, _ = train(mapper_of("jit"), step, other)
    assert largest_difference(changed, state) > 10_000 * TOLERANCE


@pytest.mark.parametrize("name", SPREAD)
def test_every_device_drops_other_numbers_and_together_those_of_one_device(name):
    layer, ones = dropout(0.5), np.ones((16, 64), np.float32)

    def masks(mapper):
        def fn(key, x):
            y, _ = layer.apply({}, {}, x, Context(key, train=True, axis=mapper.axis))
            return y if mapper.axis is None else jax.lax.all_gather(y, mapper.axis, tiled=True)

        return np.asarray(mapper.compile(fn)(mapper.place(jax.random.key(0)), mapper.shard(ones)))

    found = masks(mapper_of(name))
    assert len(np.unique(found, axis=0)) == 16
    np.testing.assert_array_equal(found, masks(mapper_of("jit")))


def test_fsdp_keeps_on_each_device_its_share_of_every_big_leaf():
    state = begin()
    placed = mapper_of("fsdp").place(state)
    on_first = total = 0
    for path, leaf in tree.leaves((placed.params, placed.opt, placed.average)).items():
        shards = {shard.data.shape for shard in leaf.addressable_shards}
        assert len(shards) == 1
        share = 8 if leaf.size >= WHOLE_BELOW else 1
        assert leaf.size == share * np.prod(*shards), path
        on_first, total = on_first + leaf.addressable_shards[0].data.nbytes, total + leaf.nbytes
    # The stem, the head and the norms are whole.
    assert on_first < total / 3
    for a, b in zip(jax.tree.leaves(_numbers(placed)), jax.tree.leaves(_numbers(state))):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("shape", "count", "axes"),
    [
        ((3, 3, 64, 128), 8, (None, None, None, "batch")),
        ((4096, 1000), 8, ("batch",)),
        ((7, 6, 512), 4, (None, None, "batch")),
        ((30, 7, 10), 6, ("batch",)),  # 30 is divisible, 10 is not
        ((127, 31), 2, ()),  # no axis is
        ((511,), 7, ()),  # too small
        ((), 1, ()),
    ],
)
def test_an_array_is_split_along_its_largest_axis_that_divides(shape, count, axes):
    found = parallel.split_largest(shape, count, whole_below=512)
    assert tuple(found) == axes


@pytest.mark.parametrize("name", sorted(MAPPERS))
def test_the_spec_of_a_state_is_that_of_what_is_placed(name):
    mapper = mapper_of(name)
    state = begin()
    shapes = jax.eval_shape(begin)
    for spec, same, leaf in zip(
        *map(jax.tree.leaves, (mapper.spec(state), mapper.spec(shapes), mapper.place(state)))
    ):
        assert (spec.shape, spec.dtype, spec.sharding) == (same.shape, same.dtype, same.sharding)
        assert (spec.shape, spec.dtype, spec.sharding) == (leaf.shape, leaf.dtype, leaf.sharding)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("name", ["sharded", "fsdp"])
def test_what_is_placed_has_memory_of_its_own_and_outlives_donation(name, devices):
    mapper, values = mapper_of(name, devices), np.arange(1024, dtype=np.float32)
    double = mapper.compile(lambda x, _: 2 * x, donate=True)
    zeros = mapper.shard(np.zeros(8))
    for given in (values.copy(), jnp.asarray(values), jax.device_put(values, mapper.whole)):
        placed = mapper.place(given)
        doubled = double(placed, zeros)
        assert placed.is_deleted()
        np.testing.assert_array_equal(given, values)
        np.testing.assert_array_equal(doubled, 2 * values)
        # Once more, as memory that is given away may be written to later only.
        np.testing.assert_array_equal(double(doubled, zeros), 4 * values)
        np.testing.assert_array_equal(given, values)


def test_a_program_of_fsdp_is_compiled_ahead_of_time():
    mapper = mapper_of("fsdp")
    fn = mapper.compile(lambda x, batch: x + batch.sum())
    x, batch = np.ones(512, np.float32), mapper.shard(np.arange(8, dtype=np.float32))
    with Compiler() as compiler:
        program = compiler.start(fn, mapper.spec(x), batch)
        np.testing.assert_array_equal(program(mapper.place(x), batch), np.full(512, 29))


@pytest.mark.parametrize(("before", "after"), [("fsdp", "jit"), ("jit", "fsdp"), ("fsdp", "fsdp")])
def test_a_state_is_restored_under_other_mappers_and_other_numbers_of_devices(
    tmp_path, before, after
):
    old, new = mapper_of(before, 8), mapper_of(after, 4)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, old.place(begin()))
        found, _ = checkpoints.restore(new.spec(jax.eval_shape(begin)))
    assert_equal_here(found, new.place(begin()))


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    run_together("tests/ten_steps.py", str(folder), *OVER_PROCESSES)
    return folder


@pytest.mark.parametrize("name", OVER_PROCESSES)
def test_two_processes_take_the_steps_of_one_and_their_state_is_restored_here(
    of_two_processes, name
):
    for process in (0, 1):
        seen = json.loads((of_two_processes / f"{name}-{process}.json").read_text())
        np.testing.assert_allclose(seen, alone()[1], rtol=TOLERANCE)
    mapper = mapper_of("fsdp", 8)
    with Checkpoints(of_two_processes / name) as checkpoints:
        state, _ = checkpoints.restore(mapper.spec(jax.eval_shape(begin)))
    assert len(state.params["stage1"]["block1"]["conv1"]["kernel"].sharding.device_set) == 8
    assert largest_difference(state, alone()[0]) < TOLERANCE
    assert jax.random.uniform(state.key) == jax.random.uniform(begin().key)


class Device:
    platform = "cpu"

    def __init__(self, process):
        self.process_index = process


@pytest.mark.parametrize("name", ["jit", "pmap"])
def test_what_runs_in_one_process_is_refused_for_several(name):
    devices = [Device(0), Device(1)]
    with pytest.raises(
        ConfigError, match=f"config.parallel is '{name}'.* there are 2: .*'sharded'"
    ):
        parallel.make(name, devices)


def test_one_process_is_the_only_part():
    assert mapper_of("sharded").part == (0, 1)
