"""Export of a sentence encoder for sentence-transformers, with a model card."""

import json
import shutil
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import tiny

from metajax.models import DenseLayer, from_pretrained
from metajax.runs.record import read_record
from metajax.runs.source import open_source
from tests.stage_commands import metatrain_command, pretrain_command

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


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A sentence encoder with a dense layer and a prompt."""
    changes = {"pooling": "mean", "dense": DenseLayer(12), "prompt": "w7 w8 "}
    return tiny.write_model(tmp_path_factory.mktemp("encoder"), head="encoder", **changes)


def dense_of(spec):
    return jax.tree.map(np.asarray, open_source(str(spec)).params["dense"])


@pytest.mark.parametrize("algorithm", ["maml", pytest.param("leopard", marks=pytest.mark.slow)])
def test_a_dense_layer_and_a_prompt_take_part_in_all_stages(encoder, material, tmp_path, algorithm):
    changes = {"algorithm": algorithm, "layers": 1}
    out = tiny.run(*metatrain_command(material, tmp_path / "meta", encoder, **changes))
    assert (out.status, "its prompt 'w7 w8 ' is put before each text" in out.err) == (0, True)
    given = ("--tasks", material.new, "--workdir", tmp_path / "adapt", "--inner-lr", 0.1)
    tiny.succeed("adapt", "--model", tmp_path / "meta", *given)
    before, meta, after = map(dense_of, (encoder, tmp_path / "meta", tmp_path / "adapt"))
    assert (before["kernel"] != meta["kernel"]).any()
    assert (meta["kernel"] != after["kernel"]).any()
    exported(tmp_path / "adapt", tmp_path / "out")
    kinds = [each["path"] for each in json.loads((tmp_path / "out/modules.json").read_text())]
    assert kinds == ["", "1_Pooling", "2_Dense", "3_Normalize"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "vector of 12 numbers" in card
    found: dict[str, Any] = {}
    exec(
        card.split("metajax reads both:\n\n```python\n")[1]
        .split("```")[0]
        .replace('"out"', repr(str(tmp_path / "out"))),
        found,
    )
    prompt = found["model"].tokenizer.convert_tokens_to_ids(["w7", "w8"])
    assert found["batch"]["input_ids"][0, 1:3].tolist() == prompt
    model, params = from_pretrained(str(tmp_path / "out"), "classification")
    assert (model.dense, model.prompt) == (DenseLayer(12), "w7 w8 ")
    jax.tree.map(np.testing.assert_array_equal, params["dense"], after)
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"{text}\n" for text in TEXTS))
    runs = (tmp_path / "adapt", tmp_path / "out")
    outs = [tiny.succeed("predict", "--model", run, "--input", texts) for run in runs]
    assert outs[0] == outs[1]


def test_every_named_prompt_is_exported(encoder, material, tmp_path):
    """Through the directory of a run, which keeps them for later stages."""
    prompts = {"prompts": {"query": "w7 w8 ", "passage": "w9 "}, "default_prompt_name": "query"}
    name = "config_sentence_transformers.json"
    shutil.copytree(encoder, tmp_path / "encoder")
    (tmp_path / "encoder" / name).write_text(json.dumps(prompts))
    given = ("--tasks", material.new, "--workdir", tmp_path / "run", "--method", "linear")
    tiny.succeed("adapt", "--model", tmp_path / "encoder", *given)
    exported(tmp_path / "run", tmp_path / "out")
    assert json.loads((tmp_path / "out" / name).read_text()) == prompts


@pytest.mark.parametrize("method", ["finetune", "contrastive", "linear"])
def test_other_methods_adapt_a_dense_layer_with_the_rest(encoder, material, tmp_path, method):
    given = ("--tasks", material.new, "--workdir", tmp_path / "run", "--method", method)
    tiny.succeed("adapt", "--model", encoder, *given)
    before, after = map(dense_of, (encoder, tmp_path / "run"))
    assert (before["kernel"] != after["kernel"]).any() == (method != "linear")


def test_pretraining_leaves_a_dense_layer_alone(encoder, material, tmp_path):
    own = SimpleNamespace(bert=encoder, text=material.text)
    settings = {"steps": 2, "save_every": 1, "weight_decay": 0.5, "learning_rate": 0.1}
    tiny.succeed(*pretrain_command(own, tmp_path / "run", **settings))
    jax.tree.map(np.testing.assert_array_equal, *map(dense_of, (encoder, tmp_path / "run")))


@pytest.mark.slow
@pytest.mark.parametrize("with_dense", [False, True])
def test_sentence_transformers_computes_the_same_vectors(
    chain, encoder, material, tmp_path, with_dense
):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    run = tmp_path / "run" if with_dense else chain.adapt
    if with_dense:
        given = ("--tasks", material.new, "--method", "finetune", "--workdir", run)
        tiny.succeed("adapt", "--model", encoder, *given)
    exported(run, tmp_path / "out")
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    model, params = from_pretrained(str(tmp_path / "out"), feature_norm=1.0)
    batch = model.tokenizer(
        [model.prompt + text for text in TEXTS],
        return_tensors="np",
        padding=True,
        truncation=True,
        max_length=theirs.max_seq_length,
        return_token_type_ids=True,
    )
    np.testing.assert_allclose(theirs.encode(TEXTS), model.features(params, dict(batch)), atol=2e-6)
