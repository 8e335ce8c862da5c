"""An evaluation of any number of images, in batches of any size, is the count one by one."""

import jax.numpy as jnp
import numpy as np
import pytest

from convjax import ops
from convjax.combine import serial
from convjax.layers import conv, dense
from convjax.training import parallel
from convjax.training.evaluate import batch_size_for, evaluate
from convjax.training.feed import Images, Split, evaluation
from convjax.training.loss import cross_entropy
from convjax.training.step import make_eval_step

NET = serial(conv(3, 3, padding="VALID"), ops.relu, ops.flatten, dense(4))
MOST = 257

# Whole numbers, of which float32 holds every sum in any order: two logits that are equal, as many
# are, stay equal, and the first of them counts.
draw = np.random.default_rng(5)
IMAGES = draw.integers(0, 4, (MOST, 5, 5, 2), np.uint8)
PARAMS = {
    "conv1": {"kernel": draw.integers(-1, 2, (3, 3, 2, 3)), "bias": draw.integers(-2, 3, 3)},
    "dense1": {"kernel": draw.integers(-1, 2, (27, 4)), "bias": draw.integers(-2, 3, 4)},
}


def one_by_one():
    """Labels, whether each image is classified so, and its loss: NumPy, an image at a time."""
    labels, hits, losses, ties = [], [], [], []
    for image in IMAGES.astype(np.int64):
        windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), axis=(0, 1))
        seen = np.einsum("ijchw,hwco->ijo", windows, PARAMS["conv1"]["kernel"])
        seen = np.maximum(seen + PARAMS["conv1"]["bias"], 0).reshape(-1)
        logits = seen @ PARAMS["dense1"]["kernel"] + PARAMS["dense1"]["bias"]
        # Half of the labels are what the network says. So is the first, which a batch that is
        # filled up has again.
        label = logits.argmax() if len(labels) % 2 == 0 else draw.integers(4)
        labels.append(label)
        hits.append(logits.argmax() == label)
        ties.append((logits == logits.max()).sum() > 1)
        losses.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label])
    assert sum(ties) > 3
    return np.array(labels, np.int32), np.array(hits), np.array(losses)


LABELS, HITS, LOSSES = one_by_one()


@pytest.mark.parametrize(("name", "sizes"), [("jit", (1, 7, 64)), ("sharded", (8, 64))])
def test_evaluation_is_the_count_one_by_one(repeats, observed, name, sizes):
    mapper = parallel.make(name)
    step = mapper.compile(
        make_eval_step(
            NET, cross_entropy, prepare=lambda images: images.astype(jnp.float32), axis=mapper.axis
        )
    )
    params = {
        part: {leaf: np.float32(value) for leaf, value in leaves.items()}
        for part, leaves in PARAMS.items()
    }
    model = mapper.place((params, {}))
    counts = repeats((1, 2, 7, 8, 9, 63, 64, 65, 127, 256, 257), tuple(range(1, MOST + 1)))
    assert 0.3 < HITS.mean() < 0.8
    for size in sizes:
        batch = batch_size_for(size, len(mapper.devices), MOST)
        for count in counts:
            split = Split(Images(IMAGES[:count], LABELS[:count]), tuple("abcd"))
            found = evaluate(step, model, evaluation(split, batch, mapper))
            expected = (HITS[:count].sum(), count)
            assert (found.correct, found.count) == expected, f"{count} images at batch {batch}"
            np.testing.assert_allclose(found.loss, LOSSES[:count].sum(), rtol=1e-5)
    devices = f" on {len(mapper.devices)} devices" if len(mapper.devices) > 1 else ""
    what = f"an evaluation of 1 to {MOST} images at batch {', '.join(map(str, sizes))}{devices}"
    observed(what, len(sizes) * len(counts), "the count one by one")
