"""Leaves by path: named, chosen by rules, merged, counted, hashed."""

import hashlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from convjax import tree

NET = {
    "stem": {"conv1": {"kernel": np.ones((3, 3, 1, 4), np.float32)}},
    "head": {"kernel": np.ones((4, 2), np.float32), "bias": np.zeros(2, np.float32)},
}


def test_leaves_have_the_path_of_keys_fields_and_positions():
    given = {"b": [1, (2, 3)], "a": {"c": 4}}
    assert tree.leaves(given) == {"a/c": 4, "b/0": 1, "b/1/0": 2, "b/1/1": 3}
    assert list(tree.leaves(given)) == ["a/c", "b/0", "b/1/0", "b/1/1"]


@pytest.mark.parametrize(
    ("path", "pattern", "expected"),
    [
        ("stage1/conv1/kernel", "*/kernel", True),
        ("kernel", "*/kernel", True),
        ("stage1/conv1/my_kernel", "*/kernel", False),
        ("stage1/conv1/kernel", "stage1/*", True),
        ("stage10/conv1/kernel", "stage1/*", False),
        ("stage1/conv1/kernel", "stage?/conv1/*", True),
        ("stage1/conv1/kernel", "stage[23]/*", False),
        ("stage1/conv1/kernel", "conv1/*", False),
        ("stage1/conv1/kernel", "Stage1/*", False),
        ("stage1/conv1/kernel", ["*/bias", "*/kernel"], True),
        ("stage1/conv1/kernel", [], False),
    ],
)
def test_a_pattern_is_a_glob_over_the_whole_path(path, pattern, expected):
    assert tree.matches(path, pattern) is expected


# -- match -----------------------------------------------------------------------------------------


def test_the_first_rule_that_matches_wins():
    rules = [("head/bias", "a"), ("head/*", "b"), ("*", "c")]
    assert tree.match(NET, rules) == {
        "stem": {"conv1": {"kernel": "c"}},
        "head": {"kernel": "b", "bias": "a"},
    }


def test_a_leaf_without_a_rule_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"head/bias matches no rule: add one, or end with") as e:
        tree.match(NET, [("*/kernel", 1)])
    assert "kernel matches" not in str(e.value)


def test_a_rule_without_a_leaf_is_an_error_that_names_the_nearest():
    with pytest.raises(ValueError, match=r"'head/kernal' matches no leaf; did you mean 'head/ker"):
        tree.match(NET, [("head/kernal", 1), ("*", 2)])


def test_a_rule_behind_one_that_takes_its_leaves_is_an_error():
    with pytest.raises(ValueError, match=r"'head/\*' is never reached: the rules before it take"):
        tree.match(NET, [("*", 1), ("head/*", 2)])


def test_every_misfit_is_told_at_once():
    with pytest.raises(ValueError, match="rules and leaves do not fit") as caught:
        tree.match(NET, [("head/bias", 1), ("body/*", 2), ("*/bias", 3)])
    assert str(caught.value).splitlines()[1:] == [
        "  head/kernel matches no rule: add one, or end with ('*', ...)",
        "  stem/conv1/kernel matches no rule: add one, or end with ('*', ...)",
        "  rule 'body/*' matches no leaf; "
        "choose from 'head/bias', 'head/kernel', 'stem/conv1/kernel'",
        "  rule '*/bias' is never reached: the rules before it take every leaf that it matches",
    ]


# -- merge -----------------------------------------------------------------------------------------


def full(value, like=NET):
    return jax.tree.map(lambda leaf: np.full_like(leaf, value), like)


def test_merge_takes_every_leaf_from_what_was_given():
    merged = tree.merge(full(1), full(2))
    assert jax.tree.structure(merged) == jax.tree.structure(NET)
    assert all((leaf == 2).all() for leaf in jax.tree.leaves(merged))


def test_merge_keeps_ours_and_drops_theirs_where_told():
    given = {"stem": full(2)["stem"], "fc": full(2)["head"], "head": {"bias": np.ones(7)}}
    merged = tree.merge(full(1), given, keep="head/*", drop=["fc/*"])
    assert (merged["stem"]["conv1"]["kernel"] == 2).all()
    assert (merged["head"]["kernel"] == 1).all()
    assert merged["head"]["bias"].shape == (2,)
    assert merged["head"]["bias"][0] == 1


def test_merge_lists_what_only_one_side_has_and_what_differs():
    given = {
        "stem": {"conv1": {"kernel": np.ones((5, 5, 1, 4), np.float32)}},
        "head": {"bias": np.zeros(2, np.float16)},
        "fc": {"kernel": np.zeros((4, 2), np.float32)},
    }
    with pytest.raises(ValueError, match="the two trees do not fit") as caught:
        tree.merge(NET, given)
    assert str(caught.value).splitlines()[1:] == [
        "  only in the tree: head/kernel float32[4,2]",
        "  only in what was given: fc/kernel float32[4,2]",
        "  head/bias: float32[2] in the tree, float16[2] given",
        "  stem/conv1/kernel: float32[3,3,1,4] in the tree, float32[5,5,1,4] given",
    ]


def test_a_keep_or_drop_that_fits_no_leaf_is_an_error():
    with pytest.raises(ValueError, match="do not fit") as caught:
        tree.merge(NET, NET, keep="haed/bias", drop=["head/bias", "fc/*"])
    assert str(caught.value).splitlines()[1:] == [
        "  keep='haed/bias' matches no leaf of the tree; did you mean 'head/bias'?",
        "  drop='fc/*' matches no leaf of what was given; "
        "choose from 'head/bias', 'head/kernel', 'stem/conv1/kernel'",
    ]


# -- count and digest ------------------------------------------------------------------------------


def test_count_is_the_number_of_numbers():
    assert tree.count(NET) == 3 * 3 * 1 * 4 + 4 * 2 + 2
    assert tree.count({"scalar": np.float32(1), "none": np.ones((0, 3))}) == 1
    assert tree.count({}) == 0
    assert tree.count(jax.ShapeDtypeStruct((10**6, 10**6, 10**6), jnp.float32)) == 10**18


def test_digest_is_sha256_over_paths_dtypes_shapes_and_bytes_in_the_order_of_paths():
    given = {
        "b": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)},
        "a": {"mean": np.array(7, np.int32)},
    }
    told = b"a/mean\0int32\0()\0" + (7).to_bytes(4, "little")
    told += b"b/kernel\0float32\0(2, 3)\0" + np.arange(6, dtype="<f4").tobytes()
    assert tree.digest(given) == hashlib.sha256(told).hexdigest()
    assert tree.digest(jax.tree.map(jnp.asarray, given)) == tree.digest(given)


def test_digest_does_not_depend_on_the_order_of_insertion_or_the_layout_in_memory():
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    forward = {"a": {"x": kernel, "y": kernel + 1}, "b": kernel}
    backward = {"b": np.asfortranarray(kernel), "a": {"y": kernel + 1, "x": kernel}}
    assert tree.digest(forward) == tree.digest(backward)


def test_digest_changes_with_path_dtype_shape_and_a_single_bit():
    kernel = np.zeros((2, 3), np.float32)
    one_bit = kernel.copy()
    one_bit.view(np.uint32)[1, 2] ^= 1
    given = [
        {"a": {"kernel": kernel}},
        {"b": {"kernel": kernel}},
        {"a": {"bias": kernel}},
        {"a/kerne": {"l": kernel}},
        {"a": {"kernel": kernel.reshape(3, 2)}},
        {"a": {"kernel": kernel.reshape(6)}},
        {"a": {"kernel": kernel.view(np.int32)}},
        {"a": {"kernel": kernel.astype(np.float16)}},
        {"a": {"kernel": kernel.astype(ml_dtypes.bfloat16)}},
        {"a": {"kernel": one_bit}},
        {"a": {"kernel": -kernel}},
        {"a": {"kernel": kernel}, "b": {"kernel": kernel}},
        {},
    ]
    assert len({tree.digest(each) for each in given}) == len(given)
