"""Receptive fields are what gradients say, place by place, and what the literature says."""

import functools

import catalogue
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import convjax
from convjax import (
    avg_pool,
    branch,
    compose,
    conv,
    dense,
    depthwise_conv,
    flatten,
    layer_norm,
    max_pool,
    models,
    ops,
    parallel,
    relu,
    residual,
    serial,
    shaped,
    stack,
)
from convjax.combine import loop, remat
from convjax.insight.inspection.intervals import lookups, moving, sums, windows
from convjax.insight.inspection.program import MARK, traced
from convjax.insight.inspection.receptive import receptive_fields
from convjax.layer import Context

CHANNELS = 4


def spec(*size):
    return jax.ShapeDtypeStruct((1, *size, CHANNELS), jnp.float32)


def depended_on(net, size, place):
    """First and last row and column that the gradient of one output place reaches.

    Each image of a batch has one row, or one column, that is far brighter than all else, so that
    maxima pick it wherever it is seen. All weights are positive: nothing cancels.
    """
    rng = np.random.default_rng(0)
    params, state = net.init(jax.random.key(0), spec(*size))
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape) / leaf.size, jnp.float32), params
    )
    images = np.ones((sum(size), *size, CHANNELS), np.float32)
    for row in range(size[0]):
        images[row, row] = 1e6
    for column in range(size[1]):
        images[size[0] + column, :, column] = 1e6

    def at_place(images):
        y = net.apply(params, state, images, Context())[0]
        return y[:, *place].sum()

    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    gradient = jax.jit(jax.grad(at_place), compiler_options=options)(images)
    reached = np.abs(np.asarray(gradient)).sum((0, 3)) > 0
    ends = [np.flatnonzero(reached.any(axis)) for axis in (1, 0)]
    return tuple((int(each[0]), int(each[-1])) if each.size else (0, -1) for each in ends)


# -- The gradient's support ------------------------------------------------------------------------

WINDOWS = st.sampled_from([1, 2, 3, (1, 3), (4, 2)])
STRIDES = st.sampled_from([1, 2, (2, 1), 3])
PADDINGS = st.sampled_from(
    ["SAME", "SAME_LOWER", "CIRCULAR", "REFLECT", "EDGE", 2, ((1, 0), (0, 2))]
)

convolutions = st.builds(
    lambda window, stride, padding, dilation, groups: conv(
        *(CHANNELS, window), stride=stride, padding=padding, dilation=dilation, groups=groups
    ),
    WINDOWS,
    STRIDES,
    PADDINGS,
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2]),
)
parts = st.one_of(
    convolutions,
    st.builds(depthwise_conv, WINDOWS, stride=STRIDES, padding=PADDINGS),
    st.builds(max_pool, st.sampled_from([2, 3]), stride=STRIDES, padding=st.just("SAME")),
    st.builds(avg_pool, st.sampled_from([2, 3]), stride=STRIDES, padding=st.just("SAME")),
    st.builds(convjax.conv_transpose, st.just(CHANNELS), WINDOWS, stride=st.sampled_from([1, 2])),
    st.builds(
        lambda window, other: residual(
            conv(CHANNELS, window), relu, shortcut=conv(CHANNELS, other)
        ),
        WINDOWS,
        WINDOWS,
    ),
    st.builds(
        lambda window, gap: branch(conv(2, window), conv(2, 2, dilation=gap)),
        WINDOWS,
        st.sampled_from([1, 3]),
    ),
    st.builds(convjax.resize, st.tuples(st.integers(3, 9), st.integers(3, 9))),
    st.builds(convjax.adaptive_avg_pool, st.tuples(st.integers(1, 5), st.integers(1, 5))),
    st.builds(convjax.adaptive_max_pool, st.tuples(st.integers(1, 5), st.integers(1, 5))),
    st.just(convjax.resize((7, 4), method="nearest")),
    st.just(functools.partial(ops.max_pool, window=2, stride=1, dilation=2, padding=1)),
    st.just(convjax.blur_pool()),
    st.just(serial(conv(4 * CHANNELS, 1), convjax.pixel_shuffle(2))),
)


@settings(max_examples=14, deadline=None, derandomize=True)
@given(st.lists(parts, min_size=1, max_size=4), st.data())
def test_gradient_of_a_place_reaches_the_edges_of_its_field_and_nothing_outside(layers, data):
    size = 11, 8
    net = serial(*layers)
    try:
        jax.eval_shape(net.init, jax.random.key(0), spec(*size))
    except ValueError:
        assume(False)  # A window that does not fit what the layers before have left.
    field = receptive_fields(net, spec(*size))[""]
    place = tuple(data.draw(st.integers(0, n - 1)) for n in field.places)
    assert field.at(*place) == depended_on(net, size, place)


# -- What the literature says ----------------------------------------------------------------------


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(*(st.integers(1, high) for high in (5, 3, 3)), st.integers(0, 3)),
        min_size=1,
        max_size=5,
    )
)
def test_chains_have_the_field_of_the_formula(layers):
    """Araujo, Norris and Sim, Computing Receptive Fields of CNNs (Distill 2019), eqs. 2 to 5."""
    net = serial(
        *(conv(2, w, stride=s, dilation=d, padding=(w - 1) * d + p) for w, s, d, p in layers)
    )
    size, stride, offset = 1, 1, 0
    for w, s, d, p in layers:
        size += (w - 1) * d * stride
        offset -= ((w - 1) * d + p) * stride
        stride *= s
    field = receptive_fields(net, spec(9, 6))[""]
    assert (field.size, field.stride, field.offset) == ((size,) * 2, (stride,) * 2, (offset,) * 2)


@pytest.mark.parametrize(
    ("name", "path", "size", "stride"),
    [
        ("vgg16", "stage5", 212, 32),  # table 1 of Araujo et al.
        ("resnet18", "stage4", 435, 32),
        # 483 there, where the stride of a block lies in its first 1x1 convolution; in torchvision's
        # it lies in the 3x3 one, which sees less of a finer grid: 2 * (4 + 8 + 16) = 56 less.
        ("resnet50", "stage4", 483 - 56, 32),
        ("resnet20", "stage3", 1 + 2 * (7 + (1 + 5 * 2) + (2 + 5 * 4)), 4),
    ],
)
def test_networks_of_papers_have_the_published_fields(name, path, size, stride):
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    fields = receptive_fields(models.create(name, classes=10), x)
    assert (fields[path].size, fields[path].stride) == ((size, size), (stride, stride))
    assert fields["head"].sees_all


# -- Parts of all kinds ----------------------------------------------------------------------------


def field_of(net, *size):
    return receptive_fields(net, spec(*size))[""]


def test_branches_see_what_any_of_them_sees():
    net = branch(conv(2, 3, padding=1), conv(2, (1, 5), padding=((0, 0), (4, 0))))
    field = field_of(serial(net), 9, 9)
    assert (field.size, field.stride, field.offset) == ((3, 6), (1, 1), (-1, -4))
    assert field.at(0, 3) == ((0, 1), (0, 4))


def test_a_group_sees_what_its_own_channels_see():
    wide = branch(conv(2, 1), conv(2, 5))

    def pick(x):
        return x[..., :2]

    net = serial(wide, conv(4, 1, groups=2), pick)
    fields = receptive_fields(net, spec(9, 9))
    assert fields["conv1"].size == (5, 5)
    assert fields["pick1"].size == (1, 1)


@pytest.mark.parametrize("pool", [ops.global_avg_pool, ops.global_max_pool, flatten])
def test_what_pools_everything_sees_all_and_so_does_what_comes_after(pool):
    fields = receptive_fields(serial(conv(2, 3), pool, dense(3)), spec(7, 5))
    assert not fields["conv1"].sees_all
    assert fields["dense1"].sees_all
    assert (fields["dense1"].size, fields["dense1"].stride) == ((7, 5), (0, 0))
    assert fields["dense1"].at() == ((0, 6), (0, 4))


def test_squeeze_excite_sees_all_at_every_place():
    field = field_of(serial(conv(4, 3), convjax.squeeze_excite(0.5)), 6, 6)
    assert field.sees_all
    assert field.at(0, 5) == ((0, 5), (0, 5))


def test_pixels_that_no_window_reaches_are_not_seen():
    net = serial(conv(2, 2, stride=3, padding="VALID"), flatten, dense(2))
    field = field_of(net, 9, 8)
    assert field.at() == ((0, 7), (0, 7))
    assert not field.sees_all


def test_places_of_a_transposed_convolution_lie_half_a_pixel_apart():
    net = serial(convjax.conv_transpose(2, 4, stride=2, padding=1))
    field = field_of(net, 6, 6)
    assert field.stride == (0.5, 0.5)
    assert [field.at(i, 0)[0] for i in range(4)] == [(0, 0), (0, 1), (0, 1), (1, 2)]


def test_padding_with_own_pixels_reaches_the_far_side_at_the_border_alone():
    field = field_of(serial(conv(2, 3, padding="CIRCULAR")), 8, 8)
    assert (field.size, field.offset) == ((3, 3), (-1, -1))
    assert field.at(0, 4) == ((0, 7), (3, 5))


@pytest.mark.parametrize("padding", ["CIRCULAR", "REFLECT", "EDGE"])
def test_windows_of_five_reach_as_far_into_padding_with_own_pixels_as_gradients_do(padding):
    net = serial(conv(CHANNELS, 5, padding=padding))
    field = field_of(net, 9, 8)
    assert (field.size, field.offset) == ((5, 5), (-2, -2))
    assert field.at(0, 7) == depended_on(net, (9, 8), (0, 7))


def test_places_that_are_put_beside_others_keep_what_they_see():
    def beside(x):
        return jnp.concatenate([x, x[:, 1:4]], 1)

    field = field_of(serial(conv(2, 3), beside), 9, 6)
    assert [field.at(i, 2)[0] for i in (0, 8, 9, 11)] == [(0, 1), (7, 8), (0, 2), (2, 4)]


@pytest.mark.parametrize(
    "net",
    [
        stack(3, conv(CHANNELS, 3)),
        loop(3, conv(CHANNELS, 3)),
        serial(*[remat(conv(CHANNELS, 3))] * 3),
        serial(*[shaped(lambda x: conv(x.shape[-1], 3))] * 3),
        serial(layer_norm(), conv(CHANNELS, 3), jax.jit(relu), conv(CHANNELS, 5)),
    ],
)
def test_what_is_scanned_shared_made_by_shape_or_compiled_is_seen_through(net):
    field = field_of(serial(net), 9, 9)
    assert (field.size, field.stride, field.offset) == ((7, 7), (1, 1), (-3, -3))


@pytest.mark.parametrize("size", [(9,), (5, 6, 7)])
def test_images_of_one_and_of_three_dimensions_have_fields(size):
    field = field_of(serial(conv(2, 3), max_pool(2)), *size)
    rank = len(size)
    assert (field.size, field.stride, field.offset) == ((4,) * rank, (2,) * rank, (-1,) * rank)


def test_several_images_are_one_where_they_are_of_one_size():
    def both(net, x):
        image, mask, vector = x
        return net.mix(net.first(image) + net.second(mask)) + vector.reshape(1, 1, 1, 2)

    net = compose(both, first=conv(2, 3), second=conv(2, 5), mix=conv(2, 1))
    specs = spec(7, 7), spec(7, 7), jax.ShapeDtypeStruct((2,), jnp.float32)
    fields = receptive_fields(net, specs)
    assert fields["first"].size == (3, 3)
    assert fields["mix"].size == (5, 5)
    outputs = receptive_fields(parallel(conv(2, 3), conv(2, 7)), specs[:2])
    assert outputs["conv2"].size == (7, 7)


def test_attention_over_places_sees_all():
    def attend(x):
        rows = x.reshape(x.shape[0], -1, x.shape[-1])
        weights = jax.nn.softmax(jnp.einsum("bqc,bkc->bqk", rows, rows))
        return jnp.einsum("bqk,bkc->bqc", weights, rows).reshape(x.shape)

    assert field_of(serial(conv(2, 3), attend), 4, 4).sees_all


def test_a_branch_that_the_image_chooses_depends_on_all_of_it():
    def choose(x):
        return jax.lax.cond(x.sum() > 0, lambda x: x, lambda x: -x, x)

    def repeat(x):
        return jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: x / 2, x)

    assert field_of(serial(conv(2, 3), choose), 6, 6).sees_all
    assert field_of(serial(conv(2, 3), repeat), 6, 6).sees_all


def test_reductions_by_a_function_see_what_they_reduce():
    def largest(a, b):
        return jnp.where(a > b, a, b)

    def rows(x):
        return jax.lax.reduce(x, np.float32(-1), largest, (2,))

    def windows(x):
        window, stride = (1, 3, 2, 1), (1, 2, 1, 1)
        return jax.lax.reduce_window(x, np.float32(-1), largest, window, stride, "VALID")

    assert field_of(serial(rows), 5, 6).at(2) == ((2, 2), (0, 5))
    field = field_of(serial(windows), 7, 7)
    assert (field.size, field.stride) == ((3, 2), (2, 1))


def test_places_of_padding_alone_see_nothing():
    def frame(x):
        return jnp.pad(x, ((0, 0), (2, 0), (0, 0), (0, 0)))

    field = field_of(serial(frame), 4, 4)
    assert (field.at(0, 1), field.at(1, 1)) == (((0, -1), (0, -1)),) * 2
    assert field.at(2, 1) == ((0, 0), (1, 1))
    assert (field.size, field.offset) == ((1, 1), (-2, 0))


def test_patches_of_a_reshape_are_as_wide_as_they_are():
    def patches(x):
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 4, 4, width // 4, 4, channels)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // 4, width // 4, -1)

    field = field_of(serial(patches), 8, 12)
    assert (field.size, field.stride, field.offset) == ((4, 4), (4, 4), (0, 0))
    assert [field.at(1, j)[1] for j in range(3)] == [(0, 3), (4, 7), (8, 11)]


def test_vectors_have_no_field():
    assert receptive_fields(serial(dense(2)), jax.ShapeDtypeStruct((1, 3), jnp.float32)) == {}


def test_a_place_has_as_many_numbers_as_the_output_has_dimensions():
    field = field_of(serial(conv(2, 3)), 5, 5)
    with pytest.raises(ValueError, match="an output place has 2 numbers, got \\(1,\\)"):
        field.at(1)


def test_every_operation_of_every_layer_has_a_rule_of_its_own():
    """So that no field is wider than it is because a rule is missing."""
    known = {*moving.RULES, *lookups.RULES, *windows.RULES, *sums.RULES, MARK.name}
    used = {
        each.equation.primitive.name: entry.name
        for entry in catalogue.entries()
        for each in traced(entry.layer, entry.spec).equations()
        if not all(each.constant)
    }
    missing = {name: layer for name, layer in used.items() if name not in known}
    assert not missing
    assert len(used) > 30
