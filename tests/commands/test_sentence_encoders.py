"""Export of a sentence encoder for sentence-transformers, with a model card."""

import json

import jax
import numpy as np
import pytest
import tiny

from metajax.models import from_pretrained
from metajax.runs.record import read_record

FORMAT = ("--format", "sentence-transformers")
TEXTS = ["w48 w49 w50", "w60 w61 " * 40, "w1"]


def exported(model, directory):
    out = tiny.succeed("export", "--model", model, "--output", directory, *FORMAT)
    return out


def test_a_few_shot_model_becomes_a_sentence_encoder(chain, tmp_path):
    out = exported(chain.adapt, tmp_path / "encoder")
    assert "sentence_transformers.SentenceTransformer" in out
    modules = json.loads((tmp_path / "encoder" / "modules.json").read_text())
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    assert kinds == ["Transformer", "Pooling", "Normalize"]
    length = read_record(chain.adapt)["settings"]["max_length"]
    settings = json.loads((tmp_path / "encoder" / "sentence_bert_config.json").read_text())
    assert settings["max_seq_length"] == min(length, tiny.CONFIG.max_position_embeddings)
    card = (tmp_path / "encoder" / "README.md").read_text()
    for part in ('SentenceTransformer("encoder")', "classifier.safetensors", "adapt  ", "seed "):
        assert part in card, part
    assert "Hugging Face weights" in card
    model, params = from_pretrained(str(tmp_path / "encoder"), "classification")
    assert (model.pooling, model.label_names is None) == ("mean", False)
    tiny.succeed("export", "--model", chain.adapt, "--output", tmp_path / "plain")
    _, same = from_pretrained(str(tmp_path / "plain"), "classification")
    jax.tree.map(np.testing.assert_array_equal, params, same)


def test_a_language_model_becomes_one_without_its_head(chain, tmp_path):
    done = tiny.run("export", "--model", chain.pretrain, "--output", tmp_path / "out", *FORMAT)
    assert done.status == 2
    assert "pools by BERT's pooler, which that library does not have; finetune it" in done.err
    assert not (tmp_path / "out").exists()
    exported(chain.metatrain, tmp_path / "out")
    assert not (tmp_path / "out" / "classifier.safetensors").exists()
    assert "classifier" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
def test_sentence_transformers_computes_the_same_vectors(chain, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    exported(chain.adapt, tmp_path / "out")
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    model, params = from_pretrained(str(tmp_path / "out"), feature_norm=1.0)
    batch = model.tokenizer(
        TEXTS,
        return_tensors="np",
        padding=True,
        truncation=True,
        max_length=theirs.max_seq_length,
        return_token_type_ids=True,
    )
    np.testing.assert_allclose(theirs.encode(TEXTS), model.features(params, dict(batch)), atol=2e-6)
