"""`save_pretrained`: what comes back is what went in, and never half of it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors

from metajax.models import (
    Transformer,
    from_pretrained,
    read_model,
    save,
    save_config,
    save_pretrained,
)
from tests.models.helpers import TINY, assert_equal, make_batch, make_params, write_tokenizer

MODELS = {
    "encoder": Transformer(TINY),
    "mean": Transformer(TINY, pooling="mean", feature_norm=2.5),
    "cls": Transformer(TINY, pooling="cls"),
    "masked_lm": Transformer(TINY, head="masked_lm"),
    "classification": Transformer(
        TINY, head="classification", num_labels=(3,), label_names=(("a", "b", "c"),)
    ),
    "multi-label": Transformer(
        TINY,
        head="classification",
        num_labels=(3,),
        problem_type="multi_label_classification",
    ),
    "regression": Transformer(TINY, head="classification", num_labels=(1,)),
    "mean regression": Transformer(
        TINY, head="classification", num_labels=(1,), pooling="mean", label_names=((),)
    ),
    "mean classification": Transformer(
        TINY, head="classification", num_labels=(2,), pooling="mean", label_names=(("x", "y"),)
    ),
    "normed": Transformer(TINY, head="classification", num_labels=(3,), feature_norm=0.5),
    "heads": Transformer(
        TINY,
        head="classification",
        num_labels=(2, 1, 3),
        feature_norm=4.0,
        label_names=(("x", "y"), None, ("a", "b", "c")),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_is_exact(tmp_path, name, caplog):
    model = MODELS[name]
    params = make_params(model)
    save_pretrained(tmp_path / "saved", model, params)
    back, loaded = from_pretrained(str(tmp_path / "saved"), model.head)
    assert_equal(loaded, params)
    expected = model.replace(source=str(tmp_path / "saved"))
    if model.head != "classification":
        expected = expected.replace(num_labels=back.num_labels)
    assert back == expected
    assert not caplog.records
    assert not list((tmp_path / "saved").rglob("*.tmp"))


@pytest.mark.parametrize("name", ["mean", "mean classification", "normed", "heads"])
def test_what_transformers_cannot_express_loads_as_a_bert_model(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    model, batch = MODELS[name], make_batch()
    params = make_params(model)
    save_pretrained(tmp_path, model, params)
    theirs, info = transformers.BertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    result = theirs.eval()(**{k: torch.tensor(np.asarray(v)).long() for k, v in batch.items()})
    hidden = result.last_hidden_state.detach().numpy()
    mask = np.asarray(batch["attention_mask"])[:, :, None]
    assert np.abs((jax.jit(model)(params, batch).last_hidden_state - hidden) * mask).max() < 1e-4
    assert (tmp_path / "modules.json").exists() == (model.pooling == "mean")
    apart = (tmp_path / "classifier.safetensors").exists()
    assert apart == (model.head == "classification")


def written(directory, name, **changes):
    """What config.json says of a model."""
    model = MODELS[name].replace(**changes)
    save_pretrained(directory, model, make_params(model))
    return json.loads((directory / "config.json").read_text())


def test_config_json_has_the_classes_and_the_class_to_load_with(tmp_path):
    values = written(tmp_path, "classification")
    assert values["architectures"] == ["BertForSequenceClassification"]
    assert values["id2label"] == {"0": "a", "1": "b", "2": "c"}
    assert values["label2id"] == {"a": 0, "b": 1, "c": 2}
    assert (values["dtype"], values["model_type"]) == ("float32", "bert")
    assert not {"problem_type", "metajax"} & values.keys()
    values = written(tmp_path, "classification", label_names=None)
    assert values["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    values = written(tmp_path, "regression")
    assert (values["problem_type"], values["id2label"]) == ("regression", {"0": "LABEL_0"})
    values = written(tmp_path, "masked_lm")
    assert values["architectures"] == ["BertForMaskedLM"]
    assert not {"id2label", "problem_type", "metajax"} & values.keys()
    values = written(tmp_path, "heads")
    assert values["architectures"] == ["BertModel"]
    assert values["metajax"] == {
        "feature_norm": 4.0,
        "num_labels": [2, 1, 3],
        "label_names": [["x", "y"], None, ["a", "b", "c"]],
    }
    with safetensors.safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    ("name", "mode"), [("mean", "pooling_mode_mean_tokens"), ("cls", "pooling_mode_cls_token")]
)
def test_pooling_is_noted_for_sentence_transformers(tmp_path, name, mode):
    written(tmp_path, name)
    pooling = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    assert pooling.pop("word_embedding_dimension") == 8
    modes = {name for name, chosen in pooling.items() if chosen}
    assert modes == {mode}
    modules = json.loads((tmp_path / "modules.json").read_text())
    assert [(module["idx"], module["path"]) for module in modules] == [(0, ""), (1, "1_Pooling")]
    assert [module["type"].rpartition(".")[2] for module in modules] == ["Transformer", "Pooling"]


def test_a_configuration_alone(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    write_tokenizer(source)
    save_config(tmp_path / "saved", MODELS["heads"].replace(source=str(source)))
    model = read_model(str(tmp_path / "saved"))
    assert model == Transformer(TINY, source=str(tmp_path / "saved"))
    assert model.tokenizer("w1")["input_ids"] == [2, 6, 3]
    assert not list((tmp_path / "saved").glob("*.safetensors"))


def test_a_smaller_model_leaves_nothing_of_the_one_before(tmp_path):
    heads, plain = MODELS["mean classification"], MODELS["encoder"]
    save_pretrained(tmp_path, heads, make_params(heads))
    params = make_params(plain, seed=4)
    save_pretrained(tmp_path, plain, params)
    back, loaded = from_pretrained(str(tmp_path))
    assert back.pooling == "pooler"
    assert_equal(loaded, params)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_the_tokenizer_goes_along(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    write_tokenizer(source)
    model = MODELS["encoder"].replace(source=str(source))
    save_pretrained(tmp_path / "saved", model, make_params(model))
    back, _ = from_pretrained(str(tmp_path / "saved"))
    assert back.tokenizer("w1")["input_ids"] == model.tokenizer("w1")["input_ids"]


def test_parameters_keep_their_dtype(tmp_path):
    model = MODELS["encoder"]
    params = make_params(model, dtype=jnp.bfloat16)
    save_pretrained(tmp_path, model, params)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert_equal(from_pretrained(str(tmp_path), param_dtype=jnp.bfloat16)[1], params)


def test_a_killed_save_leaves_no_directory_that_looks_complete(tmp_path, monkeypatch):
    model, before = MODELS["encoder"], make_params(MODELS["encoder"])
    after = jax.tree.map(lambda x: x + 1, before)
    replace, calls = save.os.replace, []

    class Killed(BaseException):
        pass

    def die(at):
        def replace_or_die(source, target):
            calls.append(target)
            if len(calls) > at:
                raise Killed
            replace(source, target)

        return replace_or_die

    for at in range(2):
        monkeypatch.undo()
        save_pretrained(tmp_path, model, before)
        calls.clear()
        monkeypatch.setattr(save.os, "replace", die(at))
        with pytest.raises(Killed):
            save_pretrained(tmp_path, model, after)
        assert not (tmp_path / "config.json").exists()
    monkeypatch.undo()
    save_pretrained(tmp_path, model, after)
    assert_equal(from_pretrained(str(tmp_path))[1], after)


def test_what_another_model_left_goes_and_what_is_not_a_models_stays(tmp_path):
    others = ["model_ema.safetensors", "pytorch_model_notes.txt", "README.md"]
    left = [
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model-00001-of-00002.bin",
        "tokenizer.json",
    ]
    for name in (*others, *left):
        (tmp_path / name).write_text("{}")
    source = tmp_path / "source"
    source.mkdir()
    write_tokenizer(source)
    model = Transformer(TINY, source=str(source))
    save_pretrained(tmp_path, model, make_params(model))
    assert not [name for name in left if (tmp_path / name).exists()]
    assert all((tmp_path / name).read_text() == "{}" for name in others)
    assert (tmp_path / "vocab.txt").is_file()
