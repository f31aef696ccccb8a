"""ModernBERT's own parts: local attention, biases, heads, and both formats of its settings."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.errors import InputError
from metajax.models import Transformer, TransformerConfig, from_pretrained, save_pretrained
from metajax.models.save import to_safetensors
from tests.models.helpers import ENCODERS, TINY, assert_equal, make_batch, make_params

CONFIG = dataclasses.replace(
    TINY, model_type="modernbert", layer_norm_eps=0.05, **ENCODERS["modernbert"]
)
ALL_BIASES = dict.fromkeys(
    ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias", "decoder_bias"), True
)


def run_theirs(kind, directory, batch):
    """Return the logits of transformers' network, in float64."""
    torch = pytest.importorskip("torch")
    from benchmarks import parity

    kind = parity.class_of("modernbert", kind)
    names = ("input_ids", "attention_mask")
    given = {name: torch.tensor(np.asarray(batch[name])).long() for name in names}
    with parity.in_float64(kind), torch.no_grad():
        theirs, info = kind.from_pretrained(
            directory, dtype=torch.float64, attn_implementation="eager", output_loading_info=True
        )
        assert not any(info.values()), info
        parity.widen_rotation(theirs)
        return theirs.eval()(**given).logits.numpy()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("head", "changes"),
    [
        ("classification", {**ALL_BIASES, "classifier_pooling": "cls"}),
        ("masked_lm", ALL_BIASES),
        ("masked_lm", {**ALL_BIASES, "tie_word_embeddings": False}),
        ("masked_lm", {"decoder_bias": False, "global_attn_every_n_layers": 1}),
        ("masked_lm", {"decoder_bias": False, "tie_word_embeddings": False}),
    ],
)
def test_each_variant_agrees_in_float64(tmp_path, head, changes):
    model = Transformer(dataclasses.replace(CONFIG, **changes), head=head, num_labels=(3,))
    params, batch = make_params(model, dtype=jnp.float64), make_batch(length=14)
    save_pretrained(tmp_path, model, params)
    expected = run_theirs(head, tmp_path, batch)
    gap = np.abs(jax.jit(model)(params, batch).logits - expected)
    if head == "masked_lm":
        gap *= np.asarray(batch["attention_mask"])[:, :, None]
    assert gap.max() < 1e-12
    again, same = from_pretrained(str(tmp_path), head, param_dtype=jnp.float64)
    assert again.config == model.config
    assert_equal(same, params)


def test_local_attention_sees_half_of_its_width_on_each_side():
    """Of one global and one local block, the change of a token reaches those near it alone."""
    config = dataclasses.replace(CONFIG, num_hidden_layers=2)
    model = Transformer(config)
    params, batch = make_params(model), make_batch(batch=1, length=9)
    upper = {"layers": jax.tree.map(lambda leaf: leaf[1:], params["layers"])}
    hidden = model.embed(params, batch)

    def run(hidden):
        return model.run_layers(upper, hidden, batch, first=1)

    changed = np.abs(run(hidden.at[0, 4, 0].add(1.0)) - run(hidden)).max((0, 2)) > 1e-6
    assert changed.nonzero()[0].tolist() == [2, 3, 4, 5, 6]


def test_the_norm_of_the_first_block_has_no_effect():
    model = Transformer(CONFIG)
    params, batch = make_params(model), make_batch()

    def energy(params):
        return jnp.square(model(params, batch).last_hidden_state).sum()

    largest = jnp.abs(jax.grad(energy)(params)["layers"]["attention_norm"]["scale"]).max(-1)
    assert largest[0] == 0
    assert (largest[1:] > 1e-3).all()


def test_a_classifier_starts_from_the_masked_lm_head(tmp_path):
    """As in transformers, where both have this layer; one of our own is in a file of its own."""
    model = Transformer(CONFIG, head="masked_lm")
    params = make_params(model)
    save_pretrained(tmp_path, model, params)
    _, found = from_pretrained(str(tmp_path), "classification")
    assert_equal(found["pooler"], params["pooler"])
    (tmp_path / "pooler.safetensors").unlink()
    _, found = from_pretrained(str(tmp_path), "classification")
    head = params["masked_lm"]
    assert_equal(found["pooler"], {"dense": head["dense"], "norm": head["norm"]})


def test_tensors_without_the_prefix_are_read(tmp_path):
    """As sentence-transformers writes them."""
    model = Transformer(CONFIG)
    params = make_params(model)
    save_pretrained(tmp_path, model, params)
    import safetensors.numpy

    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert not any(name.startswith(("model.", "layers.0.attn_norm")) for name in tensors)
    prefixed = {f"model.{name}": value for name, value in tensors.items()}
    (tmp_path / "model.safetensors").write_bytes(to_safetensors(prefixed))
    assert_equal(from_pretrained(str(tmp_path))[1], params)


# What ModernBERT-base's config.json says, without what other tests check.
RELEASED = {
    **CONFIG.to_dict(),
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "local_rope_theta": 10000.0,
    "position_embedding_type": "absolute",
    "reference_compile": None,
    "sparse_prediction": False,
}
NEW = {name: value for name, value in RELEASED.items() if "rope" not in name}
del NEW["global_attn_every_n_layers"]
FULL, LOCAL = "full_attention", "sliding_attention"


@pytest.mark.parametrize(
    ("values", "every", "thetas"),
    [
        (RELEASED, 3, (160000.0, 10000.0)),
        (NEW, 3, (160000.0, 10000.0)),
        (NEW | {"layer_types": [FULL, LOCAL, FULL]}, 2, (160000.0, 10000.0)),
        (NEW | {"layer_types": [FULL, FULL, FULL]}, 1, (160000.0, 10000.0)),
        (NEW | {"layer_types": [FULL, LOCAL, LOCAL]}, 3, (160000.0, 10000.0)),
        (
            NEW
            | {"rope_parameters": {FULL: {"rope_theta": 5.0, "rope_type": "default"}, LOCAL: None}},
            3,
            (5.0, 10000.0),
        ),
        (NEW | {"rope_parameters": {LOCAL: {"rope_theta": 6.0}}}, 3, (160000.0, 6.0)),
    ],
)
def test_settings_are_read_in_the_formats_of_all_versions(values, every, thetas):
    config = TransformerConfig.from_dict(values, "config.json")
    assert config.global_attn_every_n_layers == every
    assert (config.rope_theta, config.local_rope_theta) == thetas
    written = json.loads(json.dumps(config.to_dict()))
    assert TransformerConfig.from_dict(written, "config.json") == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": [LOCAL, FULL, LOCAL]}, "layer_types is .* only full_attention in every"),
        ({"layer_types": [FULL, LOCAL, "chunked"]}, "layer_types is .* only full_attention in"),
        ({"layer_types": FULL}, "layer_types is 'full_attention', but only full_attention in"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "modernbert are scaled"),
        ({"rope_parameters": {FULL: {"rope_type": "yarn"}}}, "type 'yarn' are not supported"),
        ({"rope_parameters": "default"}, "rope_scaling is 'default'; it has to be an object"),
        ({"hidden_size": 10}, "head_dim is 5; it has to be even"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(changes, message):
    with pytest.raises(InputError, match=f"^config.json: .*{message}"):
        TransformerConfig.from_dict(NEW | changes, "config.json")
