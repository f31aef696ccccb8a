"""DeBERTa's own parts: buckets of distances, files of the hub, and the tokenizer's format."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from metajax.errors import InputError
from metajax.models import Transformer, TransformerConfig, files, from_pretrained, save_pretrained
from metajax.models.deberta import buckets, near_embeddings, of_pairs, places
from tests.models.helpers import ENCODERS, TINY, assert_equal, make_batch, make_params

CONFIG = dataclasses.replace(TINY, model_type="deberta-v2", **ENCODERS["deberta-v2"])
# Number of buckets and positions: of DeBERTa-v3, of an odd number, and of this file's.
SIZES = [(256, 512), (31, 40), (8, 16)]


def sized(size):
    count, positions = size
    return dataclasses.replace(CONFIG, position_buckets=count, max_position_embeddings=positions)


@pytest.mark.parametrize("size", SIZES)
def test_buckets_are_transformers(size):
    torch = pytest.importorskip("torch")
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    distances = np.arange(1 - size[1], size[1])
    expected = make_log_bucket_position(torch.tensor(distances), *size).numpy()
    found = buckets(distances, sized(size))
    np.testing.assert_array_equal(found, expected)
    assert np.abs(found).max() < size[0]


def test_buckets_are_exact_up_to_half():
    found = buckets(np.array([0, 1, -128, 128, 129, -511, 511]), sized((256, 512)))
    assert found.tolist() == [0, 1, -128, 128, 129, -255, 255]


@pytest.mark.parametrize("length", [1, 3, 16])
def test_each_distance_has_the_embedding_of_its_bucket(length):
    table = np.arange(16)[:, None] * np.ones((1, 8))
    near = np.asarray(near_embeddings(jnp.asarray(table), CONFIG, length))
    found = near[places(CONFIG, length), 0]
    np.testing.assert_array_equal(found, 8 + buckets(np.arange(1 - length, length), CONFIG))


@pytest.mark.parametrize("length", [1, 2, 5])
def test_rows_move_by_one(length):
    x = np.random.RandomState(0).standard_normal((2, 3, length, 2 * length - 1))
    found = of_pairs(jnp.asarray(x))
    for row in range(length):
        begin = length - 1 - row
        np.testing.assert_array_equal(
            found[:, :, row], np.float32(x[:, :, row, begin : begin + length])
        )


def test_embeddings_of_distances_have_dropout():
    """Without them, the scores are those of their projections' biases."""
    rates = {"hidden_dropout_prob": 1 - 2**-32, "attention_probs_dropout_prob": 0.0}
    config = dataclasses.replace(CONFIG, **rates)
    model = Transformer(config)
    params, x = make_params(model), jnp.asarray(np.random.RandomState(0).randn(2, 5, 8), "f4")
    own = jax.tree.map(lambda leaf: leaf[0], params["layers"])
    block = nnx.merge(model._graph("layers"), own)
    near = near_embeddings(model.relative(params, {}), config, 5)
    bias, key = jnp.zeros((2, 1, 1, 5)), jax.random.key(0)
    found, expected = block.attend(x, (bias, near), key), block.attend(x, (bias, 0 * near), None)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found - block.attend(x, (bias, near), None)).max() > 1e-3


@pytest.mark.parametrize("legacy", [True, False])
def test_both_masked_lm_heads_are_read(tmp_path, legacy):
    """They are the same layers under other names; we write those of the usual one."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    values = transformers.DebertaV2Config(**CONFIG.to_dict(), legacy=legacy)
    theirs = transformers.DebertaV2ForMaskedLM(values).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    theirs.save_pretrained(tmp_path)
    model, params = from_pretrained(str(tmp_path), "masked_lm")
    batch = make_batch()
    given = {key: torch.tensor(np.asarray(batch[key])).long() for key in batch}
    with torch.no_grad():
        expected = theirs(**given).logits.numpy()
    mask = np.asarray(batch["attention_mask"])[:, :, None]
    assert np.abs((jax.jit(model)(params, batch).logits - expected) * mask).max() < 2e-5
    save_pretrained(tmp_path / "again", model, params)
    again, info = transformers.DebertaV2ForMaskedLM.from_pretrained(
        tmp_path / "again", output_loading_info=True
    )
    assert not any(info.values()), info
    with torch.no_grad():
        assert np.abs((again(**given).logits.numpy() - expected) * mask).max() < 2e-5


def test_the_hubs_files_are_read(tmp_path):
    """PyTorch's format, half precision, and tensors that no class of transformers reads."""
    torch = pytest.importorskip("torch")
    model = Transformer(CONFIG, head="masked_lm")
    params = make_params(model, dtype=jnp.float16)
    save_pretrained(tmp_path, model, params)
    import safetensors.torch

    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    renamed = {
        name.replace("cls.predictions.transform", "lm_predictions.lm_head").replace(
            "cls.predictions", "lm_predictions.lm_head"
        ): value
        for name, value in tensors.items()
    }
    renamed |= {
        "deberta.embeddings.position_embeddings.weight": torch.zeros(16, 8),
        "mask_predictions.dense.weight": torch.zeros(8, 8),
        "mask_predictions.LayerNorm.weight": torch.zeros(8),
    }
    torch.save(renamed, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    values = json.loads((tmp_path / "config.json").read_text()) | {"pos_att_type": "p2c|c2p"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    for head in ("masked_lm", "classification"):
        again, found = from_pretrained(str(tmp_path), head, param_dtype=jnp.float16)
        assert again.config == CONFIG
        same = found.keys() - {"classifier"}
        assert_equal({key: found[key] for key in same}, {key: params[key] for key in same})


def test_what_transformers_leaves_out_is_refused():
    """Its own defaults are another network."""
    values = CONFIG.to_dict()
    for key in ("relative_attention", "position_biased_input", "share_att_key", "pos_att_type"):
        rest = {name: value for name, value in values.items() if name != key}
        with pytest.raises(InputError, match=f"^config.json: {key} is .*, but only .* supported"):
            TransformerConfig.from_dict(rest, "config.json")


def test_a_vocabulary_of_sentencepiece_needs_the_package(tmp_path, monkeypatch):
    (tmp_path / "spm.model").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(InputError, match=r"reading spm\.model needs sentencepiece; run pip"):
        files.tokenizer(str(tmp_path))


def test_a_vocabulary_of_sentencepiece_is_read(tmp_path):
    format = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    model = format.ModelProto()
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "▁hello", "▁world"]
    for number, word in enumerate(words):
        kind = 1 if number > 3 else 2 if word == "[UNK]" else 3  # Normal, unknown, control.
        model.pieces.add(piece=word, score=-number if kind == 1 else 0, type=kind)
    model.trainer_spec.unk_id = 3
    (tmp_path / "spm.model").write_bytes(model.SerializeToString())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deberta-v2"}))
    found = files.tokenizer(str(tmp_path))("hello world", "world")
    assert found["input_ids"] == [1, 4, 5, 2, 5, 2]
    model = Transformer(CONFIG, source=str(tmp_path))
    save_pretrained(tmp_path / "again", model, make_params(model))
    assert (tmp_path / "again" / "spm.model").exists()
