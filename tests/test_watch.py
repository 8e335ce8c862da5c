"""Steps whose numbers are not finite: found, told of, and skipped to the bit, however they run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convjax import ops, tree
from convjax.assemble import augmentation
from convjax.combine import serial
from convjax.config import Augment, Experiment
from convjax.layer import Context, Layer
from convjax.layers import batch_norm, conv, dense, dropout
from convjax.training import optimizer as optimizers
from convjax.training import parallel, schedule, watch
from convjax.training.average import moving_average
from convjax.training.feed import Images, Split
from convjax.training.loss import LOSSES, cross_entropy
from convjax.training.metrics import Metrics, add, to_host
from convjax.training.optimizer import hyper_of
from convjax.training.state import TrainState, init_state
from convjax.training.step import Batch, make_eval_step, make_step
from convjax.training.transforms import sharpness_aware
from convjax.training.watch import Watch

ARGS = {"momentum": 0.9}
SGD = optimizers.make("sgd", schedule.make("constant", steps=10), args=ARGS)
SPEC = jax.ShapeDtypeStruct((16, 4, 4, 2), jnp.float32)


@pytest.fixture(autouse=True, scope="module")
def compile_in_half_the_time():
    options = {"xla_backend_optimization_level": "0"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "compiler_options", lambda platform: options)
        yield


def length(x):
    """Adds the length of each picture, whose slope is 0 / 0 for a blank one."""
    return x + jnp.sqrt(jnp.square(x).sum((1, 2, 3), keepdims=True))


NET = serial(
    *(conv(4, 3, bias=False), length, batch_norm(), ops.relu, dropout(0.1)),
    *(ops.flatten, dense(5)),
)


def hyper(rate=0.1):
    return hyper_of(rate, 0.01, 0.1, ARGS, sam_rho=0.05)


def batch(number, **changes):
    draw = np.random.default_rng(number)
    images = draw.standard_normal(SPEC.shape, np.float32)
    return Batch(images, draw.integers(0, 5, len(images)).astype(np.int32))._replace(**changes)


def with_picture(pixels, number=0):
    """A batch of whose pictures one, of the last device, is full of that."""
    images = batch(number).images.copy()
    images[15] = pixels
    return batch(number, images=images)


def begin(**how):
    return init_state(NET, SGD, jax.random.key(3), SPEC, hyper(), **how)


def compiled(mapper=None, patience=10, **how):
    mapper = mapper or parallel.make("jit")
    step = make_step(NET, SGD, cross_entropy, patience=patience, axis=mapper.axis, **how)
    return mapper.compile(step)


@pytest.fixture(scope="module")
def step():
    return compiled(patience=3)


@pytest.fixture(scope="module")
def trained(step):
    """The state after two good steps."""
    state = begin()
    for number in range(2):
        state, _ = step(state, batch(number), hyper())
    return state


def kept(state):
    """All that a bad step leaves alone, as one digest."""
    return tree.digest((state.params, state.state, state.opt, state.average))


def seen(state):
    return Watch(*map(int, state.watch))


def culprit(state):
    return watch.names(state.params, state.state)[int(state.watch.culprit)]


NONE = Metrics(0.0, 0, 0, 1)
# What is bad in the batch, the learning rate, and what is computed first of all that is bad then.
BAD = {
    "a NaN in a picture": (with_picture(np.nan), 0.1, "batch statistic norm1/mean"),
    "a picture that overflows": (with_picture(np.inf), 0.1, "batch statistic norm1/mean"),
    "pixels whose squares overflow": (with_picture(1e25), 0.1, "batch statistic norm1/mean"),
    "a label beyond the classes": (
        batch(0, labels=np.full(16, 5, np.int32)),
        0.1,
        "loss",
    ),
    "a negative label": (batch(0, labels=np.full(16, -1, np.int32)), 0.1, "loss"),
    "a blank picture": (with_picture(0), 0.1, "gradient of conv1/kernel"),
    "an infinite learning rate": (batch(0), np.inf, "parameter conv1/kernel"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_step_is_skipped_to_the_bit_and_told_of(step, trained, what):
    bad, rate, name = BAD[what]
    state, metrics = step(trained, bad, hyper(rate))
    assert kept(state) == kept(trained)
    assert to_host(metrics) == NONE
    assert culprit(state).startswith(name)
    assert seen(state)._replace(culprit=0) == (1, 1, 2, 0)
    assert int(state.step) == 3
    after, metrics = step(state, batch(3), hyper())
    expected, same = step(trained._replace(step=jnp.int32(3)), batch(3), hyper())
    assert kept(after) == kept(expected)
    assert to_host(metrics) == to_host(same)
    assert seen(after)._replace(culprit=0) == (1, 0, -1, 0)
    assert culprit(after) == culprit(state)


def test_a_good_step_is_that_of_a_state_without_a_watch():
    state = begin()
    plain = state._replace(watch=None)
    once = jax.jit(make_step(NET, SGD, cross_entropy))  # optimized as usual
    for number in range(4):
        state, metrics = once(state, batch(number), hyper())
        plain, same = once(plain, batch(number), hyper())
        assert kept(state) == kept(plain)
        assert to_host(metrics) == to_host(same)
    assert seen(state) == (0, 0, -1, -1)
    assert plain.watch is None


def test_after_its_patience_nothing_changes_but_the_count_of_steps(step, trained):
    state = trained
    for number in range(3):
        assert not watch.diverged(state.watch, 3)
        state, _ = step(state, with_picture(np.nan, number), hyper())
    names = watch.names(state.params, state.state)
    for number in range(4):  # Good batches, too, and bad ones: the host may come late.
        assert watch.diverged(state.watch, 3)
        assert watch.report(state.watch, names) == (
            "diverged: 3 steps in a row were skipped, the first is step 2, where the batch "
            "statistic norm1/mean was not finite"
        )
        state, metrics = step(
            state, batch(number) if number % 2 else BAD["a label beyond the classes"][0], hyper()
        )
        assert to_host(metrics) == Metrics(0.0, 0, 0, 0)
        assert kept(state) == kept(trained)
        assert int(state.step) == 6 + number
        assert seen(state)[:3] == (3, 3, 2)


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_counted_as_by_hand(seed):
    """Against the rule in plain Python, of 60 steps that are good, bad or excused by chance."""
    draw = np.random.default_rng(seed)
    bad = draw.random((60, 3)) < 0.3
    excused = draw.random(60) < 0.2
    order, patience = [2, 0, 1], 7

    @jax.jit
    def run(bad, excused):
        def one(state, each):
            step, bad, excused = each
            good, state = watch.follow(state, bad, order, step, patience, excused)
            return state, (good, state)

        return jax.lax.scan(one, watch.start(), (jnp.arange(60), bad, excused))[1]

    good, states = run(bad, excused)
    skipped, row, told = 0, [], -1
    for step in range(60):
        over = len(row) >= patience
        fine = not bad[step].any()
        if not over and fine:
            row = []
        elif not over:
            skipped += 1
            if not row:
                told = next(thing for thing in order if bad[step][thing])
            row += [] if excused[step] else [step]
        expected = Watch(skipped, len(row), row[0] if row else -1, told)
        assert Watch(*(int(each[step]) for each in states)) == expected
        assert bool(good[step]) == (fine and not over)
    assert skipped > 10


def test_the_scale_of_a_loss_comes_down_before_bad_steps_are_counted_as_a_row():
    """From 65,536 to 1 in 16 steps, of which none is of the row, as with torch's GradScaler."""
    step, state = compiled(patience=2), begin(scaled=True)
    first = kept(state)
    for number in range(20):
        assert state.scale is not None
        assert float(state.scale.scale) == max(2.0 ** (16 - number), 1)
        assert watch.diverged(seen(state), 2) == (number >= 18)
        state, _ = step(state, with_picture(np.nan), hyper())
    assert seen(state)[:3] == (18, 2, 16)
    assert kept(state) == first


def test_the_gradient_that_is_told_of_is_of_the_last_layer_that_the_fault_reaches():
    """Backward, all layers before the fault are bad; the names are in no order of the alphabet."""
    net = serial(
        c=conv(2, 1),
        a=conv(2, 1),
        b=conv(2, 1),
        at=length,
        d=conv(2, 1),
        head=serial(ops.flatten, dense(5)),
    )
    state = init_state(net, SGD, jax.random.key(3), SPEC, hyper())
    zero = jax.tree.map(jnp.zeros_like, state.params["b"])
    state = state._replace(params={**state.params, "b": zero})  # What comes out of b is 0.
    state, _ = jax.jit(make_step(net, SGD, cross_entropy))(state, batch(0), hyper())
    assert culprit(state) == "gradient of b/kernel"


def test_the_statistic_that_is_told_of_is_of_the_first_norm_that_the_fault_reaches():
    net = serial(
        z=batch_norm(),
        b=conv(2, 1),
        y=batch_norm(),
        bad=jnp.log,
        x=batch_norm(),
        a=batch_norm(),
        head=serial(ops.flatten, dense(5)),
    )
    state = init_state(net, SGD, jax.random.key(3), SPEC, hyper())
    state, _ = jax.jit(make_step(net, SGD, cross_entropy))(state, batch(0), hyper())
    assert culprit(state) == "batch statistic x/mean"


def test_what_the_optimizer_remembers_is_watched():
    """A gradient of 1e25 is finite, and so is Adam's step; the square that it remembers is not."""
    net = serial(ops.flatten, dense(5))
    adam = optimizers.make("adam", schedule.make("constant", steps=10))
    state = init_state(net, adam, jax.random.key(3), SPEC, hyper_of(0.1))
    bad = batch(0, images=np.full(SPEC.shape, 1e25, np.float32))
    after, _ = jax.jit(make_step(net, adam, cross_entropy))(state, bad, hyper_of(0.1))
    assert culprit(after) == "memory of the optimizer"
    assert kept(after) == kept(state)


@pytest.mark.parametrize(("memory", "bad"), [(np.full(2, np.inf), True), (np.inf, False)])
def test_a_single_number_of_the_memory_may_be_infinite(memory, bad):
    nothing: dict = {}
    memory = {"best": jnp.asarray(memory, jnp.float32), "count": jnp.int32(2)}
    assert watch.look(jnp.float32(0), nothing, nothing, nothing, memory).tolist() == [False, bad]


@pytest.mark.parametrize("name", sorted(parallel.MAPPERS))
def test_every_mapper_skips_what_one_device_alone_has_seen(name):
    mapper = parallel.make(name, whole_below=16)
    step = compiled(mapper)
    state = mapper.place(begin(averaged=True))
    first = kept(state)
    numbers = mapper.replicate(hyper())
    state, metrics = step(state, mapper.shard(with_picture(np.nan)), numbers)
    assert to_host(metrics) == NONE
    assert kept(state) == first
    assert culprit(state) == "batch statistic norm1/mean"
    for leaf in jax.tree.leaves(state.watch):
        assert {int(shard.data) for shard in leaf.addressable_shards} == {int(leaf)}
    state, metrics = step(state, mapper.shard(batch(1)), numbers)
    assert to_host(metrics).count == 16
    assert kept(state) != first


def test_devices_agree_even_where_a_layer_keeps_what_it_has_seen_to_itself():
    def apply(params, state, x, ctx=Context()):
        return x, {"mean": jax.lax.stop_gradient(jnp.where(jnp.isfinite(x), 1, x).mean())}

    lonely = Layer(lambda key, spec: ({}, {"mean": jnp.float32(0)}), apply, "lonely")
    hide = lambda x: jnp.where(jnp.isfinite(x), x, 0)  # noqa: E731
    net = serial(lonely, hide, ops.flatten, dense(5))
    mapper = parallel.make("shard_map")
    step = mapper.compile(make_step(net, SGD, cross_entropy, axis=mapper.axis))
    state = mapper.place(init_state(net, SGD, jax.random.key(3), SPEC, hyper()))
    after, metrics = step(state, mapper.shard(with_picture(np.inf)), hyper())
    assert int(metrics.skipped) == 1
    for leaf in jax.tree.leaves(after.params):
        assert len({np.asarray(shard.data).tobytes() for shard in leaf.addressable_shards}) == 1
    assert kept(after) == kept(state)


def test_a_bad_member_of_a_sweep_harms_no_other():
    members = [init_state(NET, SGD, jax.random.key(seed), SPEC, hyper()) for seed in range(3)]
    first: TrainState = jax.tree.map(lambda *each: jnp.stack(each), *members)
    step = jax.jit(jax.vmap(make_step(NET, SGD, cross_entropy, patience=2), (0, None, 0)))

    def trained(*rates):
        numbers = jax.tree.map(lambda *each: jnp.stack(each), *map(hyper, rates))
        state, total = first, Metrics(np.zeros(3), np.zeros(3), np.zeros(3), np.zeros(3))
        for number in range(4):
            state, metrics = step(state, batch(number), numbers)
            total = add(total, jax.device_get(metrics))
        return state, total

    (state, total), (good, _) = trained(0.1, np.inf, 0.1), trained(0.1, 0.1, 0.1)
    for member in (0, 1, 2):
        one, other, begun = (
            kept(jax.tree.map(lambda leaf, member=member: leaf[member], each))
            for each in (state, good, first)
        )
        assert (one == other, one == begun) == ((False, True) if member == 1 else (True, False))
    assert total.skipped.tolist() == [0, 2, 0]
    assert total.count.tolist() == [64, 0, 64]
    assert state.watch is not None
    assert state.watch.in_a_row.tolist() == [0, 2, 0]


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_a_label_that_is_no_class_is_bad_mixed_too(loss):
    classes = ("a", "b", "c", "d", "e")
    pixels = np.zeros((2, 4, 4, 2), np.uint8)
    split = Split(Images(pixels, np.zeros(2, np.int32)), classes)
    _, mix = augmentation(Experiment(augment=Augment(mix="mixup(0.2)")), split)
    assert mix is not None
    for label in (-1, 5):
        labels = jnp.asarray([label, *range(5)], jnp.int32)
        _, targets = mix(jax.random.key(0), jnp.zeros((6, 4, 4, 2)), labels)
        assert not np.isfinite(LOSSES[loss](jnp.zeros((6, 5)), targets)[0])


def test_parts_mixing_sharpness_and_an_average_that_is_written_back_are_skipped_too():
    def mix(key, images, labels):
        return images, jax.nn.one_hot(labels, 5)

    average = moving_average(0.9, write_back=True)
    step = compiled(parts=2, mix=mix, sharpen=sharpness_aware, average=average, patience=2)
    state, _ = step(begin(averaged=True), batch(0), hyper())
    good = kept(state)
    for number, bad in enumerate((with_picture(np.nan), with_picture(0))):
        state, metrics = step(state, bad, hyper())
        assert to_host(metrics) == NONE
        assert kept(state) == good
        assert seen(state)[:3] == (number + 1, number + 1, 1)


def test_an_evaluation_skips_nothing():
    state = begin()
    metrics = make_eval_step(NET)((state.params, state.state), batch(0))
    assert to_host(metrics).skipped == 0
    assert add(to_host(metrics), NONE) == to_host(metrics)._replace(skipped=1)


def test_no_patience_and_a_scale_without_a_watch_are_refused():
    with pytest.raises(ValueError, match="patience is 0: give 1 or more steps"):
        make_step(NET, SGD, cross_entropy, patience=0)
    state = begin(scaled=True)._replace(watch=None)
    with pytest.raises(ValueError, match="a state with a loss scale needs a watch, too"):
        make_step(NET, SGD, cross_entropy)(state, batch(0), hyper())
