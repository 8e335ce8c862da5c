"""Every layer is timed once for each call, on the numbers that reach it."""

import time

import jax
import jax.numpy as jnp
import pytest

from convjax import batch_norm, conv, dense, identity, ops, relu, residual, serial, shaped, stack
from convjax.combine import loop, remat
from convjax.insight.inspection import timing
from convjax.insight.inspection.summary import summarize

SPEC = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
NET = serial(
    stem=serial(conv(4, 3), batch_norm(), relu),
    block=residual(conv(4, 3), shortcut=identity),
    made=shaped(lambda x: conv(x.shape[-1], 1)),
    scanned=stack(2, conv(4, 3)),
    shared=loop(2, serial(conv(4, 1))),
    spared=remat(serial(conv(4, 3), relu)),
    pool=ops.global_avg_pool,
    head=dense(2),
)


@pytest.fixture(scope="module")
def measured():
    """What was measured of the network, with short samples."""
    return timing.measure(NET, SPEC, enough=0.001)


def test_layers_are_timed_and_what_is_traced_is_timed_as_a_whole(measured):
    assert [*measured.layers] == [
        *("stem/conv1", "stem/norm1", "stem/relu1", "block/conv1", "made", "scanned"),
        *("shared/body/conv1", "spared", "pool", "head"),
    ]
    assert measured.layers.keys() == measured.shortest.keys()
    assert min(measured.layers.values()) > 0
    assert measured.batch == 2


def test_rows_have_the_times_of_the_layers_in_them(measured):
    found = summarize(NET, SPEC, deep=False, timing=measured)
    rows = {row.path: row for row in found.rows}
    assert rows["block/conv1"].seconds == measured.layers["block/conv1"]
    assert rows["stem/norm1"].roofline == pytest.approx(
        measured.shortest["stem/norm1"] / measured.layers["stem/norm1"]
    )
    assert (rows["scanned"].seconds, rows["scanned"].calls) == (measured.layers["scanned"], 1)
    assert rows["spared"].layers == 2
    assert found.total.seconds == pytest.approx(sum(measured.layers.values()))


def test_seconds_are_those_of_one_call():
    def slow():
        time.sleep(0.004)
        return jnp.zeros(())

    assert 0.004 <= timing.seconds_of(slow, enough=0.01, samples=3) < 0.02


def test_no_layer_is_promised_less_than_its_products_or_its_bytes_take(measured):
    work = 64 * 2 * 27 * 4 / measured.multiply_adds_per_second
    assert measured.shortest["stem/conv1"] >= work
    slow = timing.seconds_of_copy(1 << 30, [(1024, 1e-6), (1 << 20, 1e-3)])
    assert slow == pytest.approx(1.024)
