"""The network by itself: derivatives, dropout, precision, pooling, padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from metajax.models import Transformer, bert
from metajax.models.bert import Block
from metajax.models.contracts import TransformerChanges
from metajax.models.heads import mean_pool, mean_pool_packed, rescale
from metajax.models.layers import ACTIVATION, LayerNorm, dropout, keep_mask
from metajax.models.parts import unused_parts
from tests.models.helpers import TINY, make_batch, make_params

MODEL = Transformer(TINY)
KEY = jax.random.key(5)


def energy(model, batch, rng=KEY):
    return lambda params: jnp.square(model(params, batch, rng).last_hidden_state).sum()


def assert_close(left, right, tolerance=1e-12):
    def check(a, b):
        assert np.abs(a - b).max() <= tolerance * max(1, np.abs(b).max())

    jax.tree.map(check, left, right)


def test_every_attribute_can_be_replaced():
    names = {field.name for field in dataclasses.fields(Transformer)}
    assert TransformerChanges.__annotations__.keys() == names


@pytest.mark.usefixtures("x64")
def test_remat_changes_nothing():
    params, batch = make_params(MODEL, dtype=jnp.float64), make_batch()
    plain = jax.jit(jax.value_and_grad(energy(MODEL, batch)))(params)
    remat = jax.jit(jax.value_and_grad(energy(MODEL.replace(remat=True), batch)))(params)
    assert plain[0].dtype == jnp.float64
    assert_close(remat, plain)


@pytest.mark.usefixtures("x64")
def test_rows_in_chunks_change_nothing(monkeypatch):
    params, batch = make_params(MODEL, dtype=jnp.float64), make_batch(batch=4)
    padding = batch["attention_mask"] == 0
    packed = {**batch, "example_ids": jnp.where(padding, -1, 0), "first_token": jnp.arange(4)}
    remat = MODEL.replace(remat=True)
    for tokens in (batch, packed):
        plain = jax.jit(jax.value_and_grad(energy(remat, tokens, rng=None)))(params)
        monkeypatch.setitem(bert._CHUNK_TOKENS, "cpu", 14)
        chunked = jax.jit(jax.value_and_grad(energy(remat, tokens, rng=None)))(params)
        monkeypatch.setitem(bert._CHUNK_TOKENS, "cpu", 256)
        assert_close(chunked, plain)
    # Dropout is that of the whole batch.
    plain = jax.jit(MODEL)(params, batch, KEY).pooled
    monkeypatch.setitem(bert._CHUNK_TOKENS, "cpu", 14)
    assert_close(jax.jit(remat)(params, batch, KEY).pooled, plain)


@pytest.mark.usefixtures("x64")
def test_scan_is_an_unrolled_loop():
    params, batch = make_params(MODEL, dtype=jnp.float64), make_batch()

    def unrolled(params):
        embed_key, layers_key = jax.random.split(jax.random.split(KEY)[0])
        keys = [embed_key, *jax.random.split(layers_key, TINY.num_hidden_layers)]
        table = params["embeddings"]
        x = table["word"][batch["input_ids"]] + table["token_type"][batch["token_type_ids"]]
        x = x + table["position"][: x.shape[1]]
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-12)
        x = dropout(x * table["norm"]["scale"] + table["norm"]["bias"], 0.1, keys[0])
        bias = jnp.where(batch["attention_mask"] > 0, 0.0, -1e9)[:, None, None, :]
        graph = nnx.graphdef(Block(TINY, rngs=nnx.Rngs(0)))
        for i in range(TINY.num_hidden_layers):
            layer = jax.tree.map(lambda stacked, i=i: stacked[i], params["layers"])
            x = nnx.merge(graph, layer)(x, bias, keys[i + 1])
        return jnp.square(x).sum()

    expected = jax.jit(jax.value_and_grad(unrolled))({k: params[k] for k in params})
    found = jax.jit(jax.value_and_grad(energy(MODEL, batch)))(params)
    assert_close(found, expected)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("remat", [False, True])
def test_hessian_vector_products_agree_in_both_modes(remat):
    model = MODEL.replace(remat=remat)
    params, batch = make_params(model, dtype=jnp.float64), make_batch(batch=2, length=4)
    direction = make_params(model, seed=9, dtype=jnp.float64)
    grad = jax.grad(energy(model, batch, rng=None))

    def along(params):
        products = jax.tree.map(lambda a, b: (a * b).sum(), grad(params), direction)
        return sum(jax.tree.leaves(products))

    forward, reverse = jax.jit(
        lambda p: (jax.jvp(grad, (p,), (direction,))[1], jax.grad(along)(p))
    )(params)
    assert_close(forward, reverse, 1e-10)


def test_dropout_masks_have_their_rate_and_no_pattern():
    kept = np.asarray(keep_mask(KEY, (512, 512), 0.1))
    # Five standard deviations.
    assert abs(kept.mean() - 0.9) < 5 * 0.3 / 512
    assert np.abs(kept.mean(0) - 0.9).max() < 6 * 0.3 / 512**0.5
    centred = (kept - 0.9) / 0.3
    other = (np.asarray(keep_mask(jax.random.key(6), (512, 512), 0.1)) - 0.9) / 0.3
    for pair in (
        centred[1:] * centred[:-1],
        centred[:, 1:] * centred[:, :-1],
        centred[:, 256:] * centred[:, :256],
        centred * other,
    ):
        assert abs(pair.mean()) < 5 / pair.size**0.5


def test_dropout_keeps_the_mean_and_is_off_without_a_key():
    x = jnp.ones((300, 300))
    dropped = dropout(x, 0.25, KEY)
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs(dropped.mean() - 1) < 0.01
    assert dropout(x, 0.25, None) is x
    assert dropout(x, 0.0, KEY) is x


def test_dropout_is_a_function_of_the_key():
    keys = jax.random.split(KEY, 3)
    together = jax.vmap(lambda key: keep_mask(key, (5, 7), 0.5))(keys)
    alone = jnp.stack([keep_mask(key, (5, 7), 0.5) for key in keys])
    np.testing.assert_array_equal(together, alone)
    assert not (alone[0] == alone[1]).all()
    params, batch = make_params(MODEL), make_batch()
    run = jax.jit(lambda rng: MODEL(params, batch, rng).last_hidden_state)
    np.testing.assert_array_equal(run(KEY), run(KEY))
    assert np.abs(run(KEY) - run(keys[0])).max() > 0.1


def test_bfloat16_is_close_and_leaves_parameters_alone():
    model = Transformer(TINY, head="classification", num_labels=(3,), dtype=jnp.bfloat16)
    params, batch = make_params(model), make_batch()
    low, full = (jax.jit(m)(params, batch) for m in (model, model.replace(dtype=None)))
    assert low.last_hidden_state.dtype == jnp.bfloat16
    assert low.logits.dtype == jnp.float32
    assert np.abs(low.logits - full.logits).max() < 0.1
    grads = jax.jit(jax.grad(lambda p: model(p, batch).logits.sum()))(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


def rounding(x):
    """Half the distance of bfloat16 numbers there, and a little more."""
    return 2.0 ** (np.floor(np.log2(np.abs(x))) - 8) * 1.01 + 1e-6


def test_statistics_of_bfloat16_are_taken_in_float32():
    """What comes out is the exact result rounded once."""
    # As far from zero as a mean in bfloat16 loses it all.
    x = jnp.asarray(3 + np.random.RandomState(0).randn(2, 40, 6), jnp.bfloat16)
    exact = np.asarray(x, np.float64)
    normed = LayerNorm(6, 1e-3)(x)
    variance = exact.var(-1, keepdims=True)
    expected = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(variance + 1e-3)
    mask = jnp.ones((2, 40), jnp.int32)
    ids = jnp.repeat(jnp.arange(2), 40).reshape(2, 40)
    for found, value in (
        (normed, expected),
        (mean_pool(x, mask), exact.mean(1)),
        (mean_pool_packed(x, ids, jnp.zeros(2, int)), exact.mean(1)),
        (
            rescale(x[:, 0], 3.0),
            3 * exact[:, 0] / np.linalg.norm(exact[:, 0], axis=-1, keepdims=True),
        ),
    ):
        assert found.dtype == jnp.bfloat16
        assert (np.abs(np.asarray(found, np.float64) - value) <= rounding(value)).all()


def test_attention_of_bfloat16_is_normalized_in_float32():
    """A decoder's block whose tokens, and values, are one-hot adds the probabilities to them."""
    length = 16
    config = dataclasses.replace(
        TINY, model_type="gpt2", hidden_size=length, num_attention_heads=1, num_hidden_layers=1
    )
    model = Transformer(config)
    layers = jax.tree.map(jnp.zeros_like, model.init(KEY)["layers"])
    random = np.random.RandomState(0)
    q, k = (jnp.asarray(random.randn(length, length), jnp.bfloat16) for _ in range(2))
    one_hot = jnp.eye(length)
    qkv = jnp.concatenate([q, k, one_hot], axis=1, dtype=jnp.float32)
    # After this norm they are one-hot again.
    low, high = ((value - 1 / 16) / (1 / 16 - 1 / 256) ** 0.5 for value in (0, 1))
    norm = {"scale": 1 / (high - low), "bias": -low / (high - low)}
    layers |= {
        "qkv": layers["qkv"] | {"kernel": qkv[None]},
        "out": layers["out"] | {"kernel": one_hot[None]},
        "attention_norm": {name: jnp.full((1, length), value) for name, value in norm.items()},
    }
    x = one_hot.astype(jnp.bfloat16)[None]
    batch = {"attention_mask": jnp.ones((1, length), jnp.int32)}
    found = model.run_layers({"layers": layers}, x, batch)
    weights = np.exp(np.asarray((q / 4) @ k.T, np.float64)) * np.tri(length)
    expected = (weights / weights.sum(-1, keepdims=True))[np.tri(length, k=-1) > 0]
    found = np.asarray(found[0], np.float64)[np.tri(length, k=-1) > 0]
    assert (np.abs(found - expected) <= rounding(expected)).all()


def test_activations_are_transformers():
    torch = pytest.importorskip("torch")
    activations = pytest.importorskip("transformers.activations")
    x = np.linspace(-4, 4, 101, dtype=np.float32)
    for name, function in ACTIVATION.items():
        expected = activations.ACT2FN[name](torch.tensor(x)).numpy()
        np.testing.assert_allclose(function(jnp.asarray(x)), expected, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("model_type", "head"), [("bert", "masked_lm"), ("electra", "classification"), ("gpt2", None)]
)
def test_fresh_parameters(model_type, head):
    """Normal, of the configuration's deviation, and no two drawn alike."""
    config = dataclasses.replace(
        TINY,
        model_type=model_type,
        initializer_range=0.5,
        embedding_size=6 if model_type == "electra" else None,
        tie_word_embeddings=False,
    )
    model = Transformer(config, head=head or "encoder", num_labels=(3, 2))
    params = model.init(KEY)
    values, rows = [], []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        assert leaf.dtype == jnp.float32
        if path[-1].key in ("bias", "scale"):
            assert (leaf == (path[-1].key == "scale")).all()
            continue
        # Of each block, or head, by itself.
        for part in leaf if path[0].key in ("layers", "classifier") else [leaf]:
            assert abs(part.std() - 0.5) < 5 * 0.5 / (2 * part.size) ** 0.5
            assert abs(part.mean()) < 5 * 0.5 / part.size**0.5
            values.append(np.asarray(part).reshape(-1))
            rows.append(tuple(values[-1][:4].tolist()))
    assert len(set(rows)) == len(rows)
    together = np.concatenate(values) / 0.5
    assert abs(together.std() - 1) < 5 / (2 * together.size) ** 0.5
    assert np.abs(together).max() > 2.5  # Not cut off.
    other = model.init(jax.random.key(6))
    assert not np.allclose(other["embeddings"]["word"], params["embeddings"]["word"])


def test_vmap_over_parameters_is_a_loop():
    many = [make_params(MODEL, seed) for seed in range(2)]
    batch = make_batch()
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *many)
    run = jax.jit(lambda p: MODEL(p, batch, KEY).pooled)
    together = jax.jit(jax.vmap(lambda p: MODEL(p, batch, KEY).pooled))(stacked)
    np.testing.assert_allclose(together, jnp.stack([run(p) for p in many]), atol=1e-5)


@pytest.mark.parametrize("pooling", ["pooler", "mean", "cls"])
def test_padding_changes_nothing(pooling):
    model = MODEL.replace(pooling=pooling)
    params, batch = make_params(model), make_batch()
    padded = {key: jnp.pad(value, ((0, 0), (0, 4))) for key, value in batch.items()}
    padded["input_ids"] = jnp.where(padded["attention_mask"] > 0, padded["input_ids"], 7)
    np.testing.assert_allclose(
        jax.jit(model)(params, padded).pooled, jax.jit(model)(params, batch).pooled, atol=1e-5
    )


def test_an_example_of_padding_alone_is_finite():
    batch = {key: jnp.zeros_like(value) for key, value in make_batch().items()}
    model = Transformer(TINY, head="classification", pooling="mean", feature_norm=2.0)
    params = make_params(model)
    grads = jax.jit(jax.grad(lambda p: model(p, batch).logits.sum()))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_the_first_token_is_pooled_as_it_is():
    params = make_params(MODEL)
    batch = make_batch()
    outputs = MODEL.replace(pooling="cls")(params, batch)
    np.testing.assert_array_equal(outputs.pooled, outputs.last_hidden_state[:, 0])


def test_mean_pool_against_numpy():
    hidden = np.random.RandomState(0).randn(2, 3, 4).astype("f")
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    expected = [hidden[0, :2].mean(0), hidden[1, 0]]
    np.testing.assert_allclose(mean_pool(jnp.asarray(hidden), jnp.asarray(mask)), expected, 1e-6)
    expected[0] = (hidden[0, 0] + 2 * hidden[0, 1]) / 3
    found = mean_pool(jnp.asarray(hidden), jnp.asarray(mask), weighted=True)
    np.testing.assert_allclose(found, expected, 1e-6)


def test_rescale_and_its_gradient_at_zero():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(rescale(x, 10.0), [[6, 8], [0, 0]], rtol=1e-6)
    assert rescale(x, None) is x
    assert np.isfinite(jax.jacobian(lambda x: rescale(x, 10.0))(x)).all()


@pytest.mark.parametrize(
    ("head", "pooling"),
    [
        ("masked_lm", "pooler"),
        ("classification", "mean"),
        ("classification", "cls"),
        ("classification", "pooler"),
    ],
)
def test_the_logits_depend_on_the_pooler_where_the_model_says_so(head, pooling):
    model = MODEL.replace(head=head, pooling=pooling)
    params = make_params(model)
    changed = params | {"pooler": jax.tree.map(lambda leaf: leaf + 1, params["pooler"])}
    one, other = (model(each, make_batch()).logits for each in (params, changed))
    assert ("pooler" not in unused_parts(head, pooling)) == bool((one != other).any())


def test_too_long_input_is_refused():
    with pytest.raises(ValueError, match="17 long, but the model has 16 positions"):
        MODEL(make_params(MODEL), make_batch(length=17))
