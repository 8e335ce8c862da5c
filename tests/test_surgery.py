"""Surgery: walking, rewriting, replacing and capturing parts of a built network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convjax import (
    Context,
    Layer,
    after,
    batch_norm,
    branch,
    capture,
    compose,
    conv,
    dense,
    flatten,
    frozen_norm,
    gelu,
    ghost_norm,
    group_norm,
    identity,
    loop,
    models,
    relu,
    remat,
    replace,
    replace_norms,
    residual,
    rewrite,
    serial,
    shaped,
    squeeze_excite,
    stack,
    tanh,
    tree,
    walk,
)

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (2, 3))
IMAGES = jax.random.normal(KEY, (2, 4, 4, 3))


def assert_close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), a, b)


def run(net, x, ctx=Context()):
    return net.apply(*net.init(KEY, x), x, ctx)


# -- walk and rewrite ------------------------------------------------------------------------------


def test_walk_gives_every_part_outer_before_inner_in_order():
    net = serial(conv(2, 3), residual(relu, conv(2, 1)), stack(2, serial(relu)), head=dense(3))
    assert [path for path, _ in walk(net)] == [
        *("conv1", "residual1", "residual1/relu1", "residual1/conv1"),
        *("residual1/shortcut", "residual1/then", "stack1", "stack1/body", "stack1/body/relu1"),
        "head",
    ]
    assert dict(walk(net))["residual1/conv1"].kind == "conv"


def test_rewrite_changes_inner_parts_first_and_what_shaped_makes():
    seen = []

    def change(path, part):
        seen.append(path)
        return part

    net = serial(serial(relu, tanh), shaped(lambda x: serial(dense(2))))
    rewritten = rewrite(net, change)
    assert seen == ["serial1/relu1", "serial1/tanh1", "serial1", "shaped1"]
    rewritten.init(KEY, X)
    assert set(seen[4:]) == {"shaped1/dense1"}


def test_a_rewrite_that_changes_nothing_is_the_very_network():
    net = serial(serial(relu, dense(3)), residual(dense(3)))
    assert rewrite(net, lambda path, part: part) is net


def test_a_rewritten_network_leaves_the_old_one_as_it_was():
    net = serial(dense(3), relu)
    before = run(net, X)[0]
    assert (np.asarray(run(replace(net, "relu1", tanh), X)[0]) < 0).any()
    np.testing.assert_array_equal(run(net, X)[0], before)


# -- replace ---------------------------------------------------------------------------------------


def test_replacing_every_norm_keeps_every_path_and_every_other_weight():
    net = serial(conv(4, 3), batch_norm(), residual(conv(4, 3), batch_norm()), flatten, dense(2))
    other = replace(net, "*/norm?", group_norm(2))
    params, state = net.init(KEY, IMAGES)
    new_params, new_state = other.init(KEY, IMAGES)
    assert set(tree.leaves(state)) == {
        f"{path}/{leaf}" for path in ("norm1", "residual1/norm1") for leaf in ("mean", "var")
    }
    assert new_state == {}
    assert tree.digest(new_params) == tree.digest(params)


def test_replacing_an_activation_computes_with_the_new_one():
    net = replace(serial(dense(3), relu, serial(relu)), ["*/relu?"], tanh)
    kernel = np.asarray(net.init(KEY, X)[0]["dense1"]["kernel"])
    np.testing.assert_allclose(run(net, X)[0], np.tanh(np.tanh(X @ kernel)), rtol=1e-4, atol=1e-6)


def test_parts_of_a_stack_a_remat_a_loop_and_of_shaped_are_replaced():
    def nest(activation):
        block = serial(dense(3), activation)
        return serial(
            *(stack(2, block), remat(block), loop(2, block), shaped(lambda x: block)),
            *(branch(block, join=sum), remat(stack(2, remat(block)))),
        )

    changed, expected = replace(nest(relu), "*/relu1", gelu), nest(gelu)
    params, state = expected.init(KEY, X)
    assert tree.digest(changed.init(KEY, X)[0]) == tree.digest(params)
    assert_close(changed.apply(params, state, X), expected.apply(params, state, X))


def test_a_pattern_that_fits_no_part_is_an_error_that_names_the_nearest():
    net = serial(stage1=serial(conv(4, 3), relu))
    for surgery in (lambda pattern: replace(net, pattern, gelu), lambda p: capture(net, ["*", p])):
        with pytest.raises(ValueError, match="matches 'stage1/rleu1'; did you mean 'stage1/relu1'"):
            surgery("stage1/rleu1")


def test_a_replaced_model_has_the_new_part_alone():
    net = models.create("resnet20", classes=10)
    swapped = replace(net, "head", dense(3))
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    before, after = (tree.leaves(jax.eval_shape(each.init, KEY, x)[0]) for each in (net, swapped))
    assert before.keys() == after.keys()
    changed = {path for path in before if before[path].shape != after[path].shape}
    assert changed == {"head/kernel", "head/bias"}


# -- replace_norms ---------------------------------------------------------------------------------


def test_freezing_the_norms_of_a_stage_leaves_their_statistics_and_trains_all_others():
    stage = serial(conv(3, 1), batch_norm(), relu, residual(conv(3, 1), batch_norm()))
    net = serial(stem=serial(conv(3, 1), batch_norm()), stage1=stage, stage2=stage, head=dense(2))
    frozen = replace_norms(net, ["stem/*", "stage1/*"], frozen_norm)
    params, state = net.init(KEY, IMAGES)
    assert tree.digest(frozen.init(KEY, IMAGES)) == tree.digest((params, state))
    _, new = frozen.apply(params, state, IMAGES, Context(train=True))
    before, after = tree.leaves(state), tree.leaves(new)
    assert before.keys() == after.keys()
    same = {path for path in before if np.array_equal(before[path], after[path])}
    assert same == {path for path in before if path.startswith(("stem", "stage1"))}
    assert len(same) == 6


def test_norms_of_a_stack_a_remat_a_loop_and_of_shaped_are_replaced():
    def nest(norm):
        block = serial(dense(3), norm)
        return serial(
            *(stack(2, block), remat(block), loop(2, block), shaped(lambda x: block)),
            *(branch(block, join=sum), remat(stack(2, remat(block)))),
        )

    changed = replace_norms(nest(batch_norm()), "*", lambda norm: ghost_norm(norm, 1))
    expected = nest(ghost_norm(batch_norm(), 1))
    params, state = expected.init(KEY, X)
    assert tree.digest(changed.init(KEY, X)) == tree.digest((params, state))
    ctx = Context(train=True)
    assert_close(changed.apply(params, state, X, ctx), expected.apply(params, state, X, ctx))


def test_what_replaces_a_norm_may_be_another_norm_or_a_function():
    net = serial(dense(3), batch_norm(), shaped(lambda x: batch_norm()))
    plain = replace_norms(net, "*", lambda norm: identity)
    kernel = np.asarray(plain.init(KEY, X)[0]["dense1"]["kernel"])
    assert_close(run(plain, X)[0], np.asarray(X) @ kernel)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("stage1/nrom1", "no norm of the network matches 'stage1/nrom1'; did you mean 'stage1/nor"),
        ("conv1", "no norm of the network matches 'conv1'; choose from 'stage1/norm1'"),
        ("stage?", r"matches 'stage\?'; write 'stage\?/\*' for the norms inside"),
    ],
)
def test_a_pattern_that_fits_no_norm_is_an_error_with_the_next_step(pattern, message):
    net = serial(conv(3, 3), stage1=serial(conv(4, 3), batch_norm()))
    with pytest.raises(ValueError, match=message):
        replace_norms(net, ["*", pattern], frozen_norm)


def test_a_network_without_norms_says_so():
    with pytest.raises(ValueError, match=r"no norm of the network matches '\*'; there is none"):
        replace_norms(serial(conv(3, 3), relu), "*", frozen_norm)


def test_a_pattern_that_fits_no_norm_even_inside_shaped_parts_is_an_error_of_init():
    net = serial(
        norm=serial(batch_norm()).named("norm"),
        head=shaped(lambda x: serial(dense(2), batch_norm())),
    )
    for patterns in ("head/norm1", ["norm", "norm/*", "head/*"], "*"):
        replace_norms(net, patterns, frozen_norm).init(KEY, X)
    with pytest.raises(ValueError, match="matches 'head/norm2'; did you mean 'head/norm1'"):
        replace_norms(net, ["norm", "head/norm2"], frozen_norm).init(KEY, X)


def test_a_norm_without_statistics_is_not_frozen_silently():
    net = serial(block=serial(dense(3), group_norm(1)))
    with pytest.raises(ValueError, match="this norm keeps none: leave it as it is") as caught:
        replace_norms(net, "*", frozen_norm).init(KEY, X)
    assert "in block/norm1 (norm), called with float32[2,3]" in caught.value.__notes__


# -- capture ---------------------------------------------------------------------------------------


def test_captured_values_are_those_computed_by_hand():
    net = serial(dense(4), relu, head=serial(dense(2), tanh))
    params, state = net.init(KEY, X)
    (y, seen), _ = capture(net, ["relu1", "head", "head/dense1"]).apply(params, state, X)
    hidden = np.maximum(np.asarray(X) @ np.asarray(params["dense1"]["kernel"]), 0)
    logits = hidden @ np.asarray(params["head"]["dense1"]["kernel"])
    assert_close(seen, {"relu1": hidden, "head": np.tanh(logits), "head/dense1": logits})
    assert_close(y, np.tanh(logits))


def test_capture_has_the_parameters_and_state_of_the_network_bit_for_bit():
    net = serial(dense(3), batch_norm(), stack(2, serial(dense(3), batch_norm())))
    captured = capture(net, "*")
    assert tree.digest(captured.init(KEY, X)) == tree.digest(net.init(KEY, X))
    params, state = net.init(KEY, X)
    y, plain = net.apply(params, state, X, Context(train=True))
    (same, _), after = captured.apply(params, state, X, Context(train=True))
    assert jax.tree.structure(after) == jax.tree.structure(plain)
    assert_close((same, after), (y, plain))


def test_what_a_loop_calls_is_a_tuple_of_activations_in_order():
    (_, seen), _ = capture(loop(3, lambda x: 2 * x), "body").apply({}, {}, X)
    assert isinstance(seen["body"], tuple)
    assert_close(seen["body"], (2 * X, 4 * X, 8 * X))


def test_what_a_stack_calls_has_a_leading_axis():
    def double(x):
        return 2 * x

    net = capture(loop(2, stack(3, serial(double))), ["*/double1", "body"])
    (_, seen), _ = net.apply({}, {}, X)
    first, second = seen["body/body/double1"]
    assert_close(first, np.stack([2 * X, 4 * X, 8 * X]))
    assert_close(second, np.stack([16 * X, 32 * X, 64 * X]))
    assert_close(seen["body"], (8 * X, 64 * X))


def test_what_remat_and_shaped_call_is_captured():
    net = serial(remat(serial(lambda x: 2 * x)), shaped(lambda x: serial(tanh)), remat(relu))
    (_, seen), _ = capture(net, "*").apply({}, {}, X)
    assert_close(
        seen,
        {
            "serial1": 2 * X,
            "serial1/function1": 2 * X,
            "shaped1": np.tanh(2 * X),
            "shaped1/tanh1": np.tanh(2 * X),
            "relu1": np.maximum(np.tanh(2 * X), 0),
        },
    )


def test_capture_runs_under_jit_vmap_and_grad():
    net = capture(serial(dense(3), tanh, remat(serial(dense(3), relu))), "tanh1")
    params, state = net.init(KEY, X)
    (_, expected), _ = net.apply(params, state, X)

    def activation(x):
        return net.apply(params, state, x)[0][1]["tanh1"]

    assert_close(jax.jit(activation)(X), expected["tanh1"])
    assert_close(jax.vmap(activation)(X[:, None])[:, 0], expected["tanh1"])
    # The derivative of the sum of tanh(x @ kernel).
    kernel = np.asarray(params["dense1"]["kernel"])
    assert_close(
        jax.grad(lambda x: activation(x).sum())(X),
        (1 - np.tanh(np.asarray(X) @ kernel) ** 2) @ kernel.T,
    )


def test_the_output_of_several_arrays_is_captured_as_it_is():
    net = serial(branch(relu, tanh, join=tuple), lambda pair: pair[0] + pair[1])
    (_, seen), _ = capture(net, "branch1").apply({}, {}, X)
    assert_close(seen["branch1"], (np.maximum(X, 0), np.tanh(X)))


def test_capture_is_a_part_like_any_other():
    backbone = capture(serial(conv(4, 3), relu, flatten, dense(2)), "relu1")

    def wire(net, x):
        y, seen = net.backbone(x)
        return y + net.side(seen["relu1"].mean((1, 2)))

    net = compose(wire, backbone=backbone, side=dense(2))
    params, state = net.init(KEY, IMAGES)
    plain = serial(backbone=serial(conv(4, 3), relu, flatten, dense(2)))
    assert list(params) == ["backbone", "side"]
    assert tree.digest(params["backbone"]) == tree.digest(plain.init(KEY, IMAGES)[0]["backbone"])
    hidden = capture(plain, "backbone/relu1").apply({"backbone": params["backbone"]}, {}, IMAGES)
    (logits, seen), _ = hidden
    means = np.asarray(seen["backbone/relu1"]).mean((1, 2))
    assert_close(
        net.apply(params, state, IMAGES)[0], logits + means @ np.asarray(params["side"]["kernel"])
    )


def test_capturing_changes_no_randomness():
    def apply(params, state, x, ctx=Context()):
        return x + jax.random.key_data(ctx.rng()), state  # The sum of all the keys that were used.

    noise = Layer(lambda key, spec: ({}, {}), apply, "noise")
    net = serial(noise, loop(2, serial(noise)), remat(stack(2, serial(noise))))
    ctx = Context(KEY, train=True)
    plain, _ = net.apply({}, {}, jnp.zeros(2, jnp.uint32), ctx)
    (same, _), _ = capture(net, "*").apply({}, {}, jnp.zeros(2, jnp.uint32), ctx)
    np.testing.assert_array_equal(same, plain)


def test_a_pattern_that_finds_nothing_even_inside_shaped_parts_is_an_error():
    net = serial(conv(16, 3), squeeze_excite(0.25), relu)
    (_, seen), _ = run(capture(net, "*/gate"), IMAGES)
    assert {path: leaf.shape for path, leaf in seen.items()} == {"squeeze_excite1/gate": (2, 16)}
    with pytest.raises(ValueError, match=r"no part of the network matches '\*/gaet'"):
        run(capture(net, "*/gaet"), IMAGES)


def test_a_layer_that_is_shaped_itself_can_be_operated_on():
    net = shaped(lambda x: serial(dense(x.shape[-1], bias=False), relu))
    swapped = replace(net, "relu1", identity)
    kernel = np.asarray(swapped.init(KEY, X)[0]["dense1"]["kernel"])
    assert_close(run(swapped, X)[0], np.asarray(X) @ kernel)


@pytest.mark.parametrize("path", ["conv1", "block", "shaped1"])
def test_after_changes_the_output_of_a_part_and_no_path(path):
    parts = {
        "conv1": conv(3, 3),
        "block": serial(conv(3, 3), relu),
        "shaped1": shaped(lambda x: conv(3, 1)),
    }
    net = serial(**parts)
    params, state = net.init(KEY, IMAGES)
    changed = after(net, path, lambda y: 2 * y + 1)
    assert tree.leaves(changed.init(KEY, IMAGES)[0]).keys() == tree.leaves(params).keys()
    x = IMAGES
    for name, part in net.parts.items():
        x, _ = part.apply(params.get(name, {}), {}, x)
        x = 2 * x + 1 if name == path else x
    np.testing.assert_allclose(changed.apply(params, state, IMAGES)[0], x, rtol=1e-5, atol=1e-6)


def test_further_surgery_keeps_what_after_and_around_changed():
    net = serial(block=serial(conv(3, 3), relu), conv1=conv(3, 3))
    params, state = net.init(KEY, IMAGES)
    changed = after(net, ["block", "conv1"], lambda y: 2 * y)
    again = replace(changed, "block/relu1", lambda x: x)
    linear = replace(net, "block/relu1", lambda x: x)
    inner, _ = linear.parts["block"].apply(params["block"], {}, IMAGES)
    expected, _ = linear.parts["conv1"].apply(params["conv1"], {}, 2 * inner)
    found, _ = again.apply(params, state, IMAGES)
    np.testing.assert_allclose(found, 2 * expected, rtol=1e-5, atol=1e-6)
