import jax.numpy as jnp
import pytest

from metajax import tree

PARAMS = {"layers": {"qkv": {"kernel": jnp.ones(2), "bias": jnp.ones(1)}}, "heads": [jnp.ones(1)]}


def test_mask_names_leaves_by_their_path():
    seen = []
    tree.mask(PARAMS, lambda name: bool(seen.append(name)))
    assert sorted(seen) == ["heads/0", "layers/qkv/bias", "layers/qkv/kernel"]


def test_mask_marks_the_chosen_leaves():
    chosen = tree.mask(PARAMS, lambda name: name.endswith("kernel"))
    assert chosen == {"layers": {"qkv": {"kernel": True, "bias": False}}, "heads": [False]}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("layers/qkv/kernel", False),
        ("embeddings/word", False),
        ("layers/qkv/bias", True),
        ("layers/attention_norm/scale", True),
        ("masked_lm/bias", True),
    ],
)
def test_norms_and_biases_are_told_by_their_names(path, expected):
    assert tree.is_norm_or_bias(path) is expected


def test_missing_keys_are_filled_in_at_any_depth():
    like = {"body": {"kernel": 0, "bias": 0}, "head": {"kernel": 0, "bias": 0}}
    found = tree.extend({"body": {"kernel": 1}}, like, 7)
    assert found == {"body": {"kernel": 1, "bias": 7}, "head": {"kernel": 7, "bias": 7}}


def test_falsy_leaves_are_leaves():
    ours, theirs = tree.select({"a": 0, "b": 0.0}, lambda path: path == "a")
    assert (ours, theirs) == ({"a": 0, "b": None}, {"a": None, "b": 0.0})
    assert tree.combine(ours, theirs) == {"a": 0, "b": 0.0}
