import jax.numpy as jnp

from metajax import tree

PARAMS = {"layers": {"qkv": {"kernel": jnp.ones(2), "bias": jnp.ones(1)}}, "heads": [jnp.ones(1)]}


def test_mask_names_leaves_by_their_path():
    seen = []
    tree.mask(PARAMS, lambda name: bool(seen.append(name)))
    assert sorted(seen) == ["heads/0", "layers/qkv/bias", "layers/qkv/kernel"]


def test_mask_marks_the_chosen_leaves():
    chosen = tree.mask(PARAMS, lambda name: name.endswith("kernel"))
    assert chosen == {"layers": {"qkv": {"kernel": True, "bias": False}}, "heads": [False]}
