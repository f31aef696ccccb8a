"""Every form of Hugging Face directory that `from_pretrained` takes, and what it refuses."""

import json
import logging
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tiny

from metajax.errors import InputError
from metajax.models import (
    Transformer,
    convert,
    files,
    from_pretrained,
    has_classifier,
    read_model,
    save_config,
    save_pretrained,
    with_head,
)
from metajax.models.config import TransformerConfig
from tests.models.helpers import (
    TINY,
    assert_equal,
    make_batch,
    make_params,
    write_directory,
    write_tokenizer,
)

# PyTorch is hidden, as where it is not installed.
READS_TOKENIZER = """
import sys, os
sys.modules["torch"] = None
from metajax.models.files import tokenizer
before = dict(os.environ)
tokenizer(sys.argv[1])
assert "transformers" in sys.modules and dict(os.environ) == before
"""
MODEL = Transformer(TINY)
PARAMS = make_params(MODEL)
LM = Transformer(TINY, head="masked_lm")
LM_PARAMS = make_params(LM)
CLASSIFIER = Transformer(TINY, head="classification", num_labels=(3,))
CLASSIFIER_PARAMS = make_params(CLASSIFIER)


def theirs(params, prefix=""):
    """Tensors by Hugging Face's names."""
    tensors = {}
    for name, value in convert.to_hugging_face(params).items():
        name = name.replace("classifier.0.", "classifier.")
        head = name.startswith(("cls.", "classifier."))
        tensors[name if head else prefix + name] = value
    return tensors


def old_names(tensors):
    return {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in tensors.items()
    }


def one_line(info):
    assert "\n" not in str(info.value)
    return str(info.value)


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.WARNING, "metajax")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "metajax"]


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("names", [dict, old_names])
def test_both_naming_generations_with_and_without_prefix(tmp_path, prefix, names, log):
    path = write_directory(tmp_path, names(theirs(LM_PARAMS, prefix)))
    model, params = from_pretrained(path, "masked_lm")
    assert_equal(params, LM_PARAMS)
    assert (model.config, model.source) == (TINY, path)
    assert not log()


def test_what_is_not_needed_is_ignored(tmp_path, log):
    tensors = theirs(LM_PARAMS, "bert.")
    tensors["bert.embeddings.position_ids"] = np.arange(16)[None]
    tensors["cls.seq_relationship.weight"] = np.zeros((2, 8), "f")
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    path = write_directory(tmp_path, tensors)
    assert_equal(from_pretrained(path, "masked_lm")[1], LM_PARAMS)
    encoder = {key: LM_PARAMS[key] for key in ("embeddings", "layers", "pooler")}
    assert_equal(from_pretrained(path)[1], encoder)
    assert not log()


def test_an_untied_decoder_is_read_with_its_own_bias(tmp_path):
    config = TransformerConfig(**{**vars(TINY), "tie_word_embeddings": False})
    params = make_params(Transformer(config, head="masked_lm"))
    tensors = theirs(params, "bert.")
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"]
    tensors["cls.predictions.bias"] = np.zeros(31, "f")
    path = write_directory(tmp_path, tensors, config)
    assert_equal(from_pretrained(path, "masked_lm")[1], params)


def test_missing_parts_are_initialized_and_named_once(tmp_path, log):
    tensors = {k: v for k, v in theirs(PARAMS).items() if not k.startswith("pooler.")}
    path = write_directory(tmp_path, tensors)
    _, params = from_pretrained(path, "classification", rng=jax.random.key(1))
    assert log() == [f"{path}: has no pooler, classifier: freshly initialized"]
    assert_equal(params["layers"], PARAMS["layers"])
    kernel = np.asarray(params["pooler"]["kernel"])
    assert 0.01 < kernel.std() < 0.04
    assert params["classifier"]["kernel"].shape == (1, 8, 2)
    _, other = from_pretrained(path, "classification", rng=jax.random.key(2))
    assert (other["pooler"]["kernel"] != kernel).any()


def test_a_missing_pooler_is_not_named_where_the_mean_is_pooled(tmp_path, log):
    tensors = {k: v for k, v in theirs(PARAMS).items() if not k.startswith("pooler.")}
    path = write_directory(tmp_path, tensors)
    _, params = from_pretrained(path, pooling="mean")
    assert "pooler" in params
    assert not log()
    from_pretrained(path, "classification", pooling="mean")
    assert log() == [f"{path}: has no classifier: freshly initialized"]


def test_a_classifier_is_kept_only_if_it_is_what_was_asked_for(tmp_path, log):
    names = {"0": "no", "1": "yes", "2": "maybe"}
    path = write_directory(tmp_path, theirs(CLASSIFIER_PARAMS, "bert."), id2label=names)
    model, params = from_pretrained(path, "classification")
    assert model.num_labels == (3,)
    assert model.label_names == (("no", "yes", "maybe"),)
    assert_equal(params, CLASSIFIER_PARAMS)
    assert not log()
    model, params = from_pretrained(path, "classification", num_labels=5)
    assert model.label_names is None
    assert params["classifier"]["kernel"].shape == (1, 8, 5)
    assert log() == [f"{path}: has no classifier: freshly initialized"]


def test_shards(tmp_path):
    tensors = theirs(PARAMS)
    path = write_directory(tmp_path, tensors)
    (tmp_path / "model.safetensors").unlink()
    halves = {"model-1.safetensors": {}, "model-2.safetensors": {}}
    index = {}
    for i, (name, value) in enumerate(tensors.items()):
        shard = f"model-{i % 2 + 1}.safetensors"
        halves[shard][name], index[name] = value, shard
    for name, part in halves.items():
        safetensors.numpy.save_file(part, tmp_path / name)
    index_file = tmp_path / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"weight_map": index}))
    assert_equal(from_pretrained(path)[1], PARAMS)
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(InputError, match=r"model-2.safetensors: missing") as info:
        from_pretrained(path)
    one_line(info)
    for name in ("../model-1.safetensors", "/etc/passwd", "a\\b", ".."):
        index_file.write_text(json.dumps({"weight_map": {"x": name}}))
        with pytest.raises(InputError, match="not a plain file name"):
            from_pretrained(path)


def test_pytorch_files_are_read_without_unpickling(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    path = write_directory(tmp_path, theirs(PARAMS))
    (tmp_path / "model.safetensors").unlink()
    file = tmp_path / "pytorch_model.bin"
    torch.save({k: torch.tensor(v) for k, v in theirs(PARAMS).items()}, file)
    assert_equal(from_pretrained(path)[1], PARAMS)
    torch.save({"x": tiny.Harm()}, file)
    monkeypatch.chdir(tmp_path)  # where the pickle would write
    with pytest.raises(InputError, match="more than plain tensors") as info:
        from_pretrained(path)
    one_line(info)
    assert not (tmp_path / "harm").exists()


def test_bfloat16_weights_and_parameters(tmp_path):
    tensors = {name: value.astype(ml_dtypes.bfloat16) for name, value in theirs(PARAMS).items()}
    path = write_directory(tmp_path, tensors)
    _, full = from_pretrained(path)
    model, low = from_pretrained(path, param_dtype=jnp.bfloat16)
    assert full["pooler"]["bias"].dtype == jnp.float32
    assert low["pooler"]["bias"].dtype == jnp.bfloat16
    assert model(low, make_batch()).pooled.dtype == jnp.bfloat16


def write_pooling(directory, said):
    (directory / "1_Pooling").mkdir(exist_ok=True)
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(said))


def test_pooling_is_what_the_directory_says(tmp_path):
    path = write_directory(tmp_path, theirs(PARAMS))
    assert from_pretrained(path)[0].pooling == "pooler"
    write_pooling(tmp_path, {"pooling_mode_mean_tokens": True})
    assert from_pretrained(path)[0].pooling == "mean"
    assert from_pretrained(path, pooling="pooler")[0].pooling == "pooler"
    write_directory(tmp_path, theirs(PARAMS), metajax={"pooling": "pooler", "feature_norm": 3})
    model, _ = from_pretrained(path)
    assert (model.pooling, model.feature_norm) == ("pooler", 3.0)


OLD = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False}
MAX = "pooling_mode_max_tokens"


@pytest.mark.parametrize(
    ("said", "pooling"),
    [
        ({"word_embedding_dimension": 8, **OLD, "pooling_mode_mean_tokens": True}, "mean"),
        ({**OLD, "pooling_mode_cls_token": True, "include_prompt": True}, "cls"),
        (OLD, "mean"),  # As sentence-transformers has it.
        ({}, "mean"),
        ({"embedding_dimension": 8, "pooling_mode": "mean", "include_prompt": True}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["mean"]}, "mean"),
        ({"pooling_mode": "max"}, "by max "),
        ({"pooling_mode": "weightedmean"}, "weighted-mean"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": ["cls", "mean"]}, "by cls and mean "),
        ({"pooling_mode": 3}, "by 3 "),
        ({**OLD, MAX: True}, "by max "),
        ({**OLD, "pooling_mode_mean_sqrt_len_tokens": True}, "by mean_sqrt_len "),
        ({**OLD, "pooling_mode_weightedmean_tokens": True}, "weighted-mean"),
        ({**OLD, "pooling_mode_lasttoken": True}, "last"),
        ({**OLD, MAX: True, "pooling_mode_mean_tokens": True}, "by mean and max "),
    ],
)
def test_both_forms_of_sentence_transformers_pooling(tmp_path, said, pooling):
    path = write_directory(tmp_path, theirs(PARAMS))
    write_pooling(tmp_path, said)
    if not pooling.startswith("by "):
        assert from_pretrained(path)[0].pooling == pooling
        return
    with pytest.raises(InputError, match=f"1_Pooling/config.json: pooling {pooling}is not") as info:
        from_pretrained(path)
    assert "pass pooling" in one_line(info)
    assert from_pretrained(path, pooling="mean")[0].pooling == "mean"


def test_the_last_token_is_what_a_decoder_pools(tmp_path):
    config = TransformerConfig(**vars(TINY) | {"model_type": "gpt2", "type_vocab_size": 0})
    config = TransformerConfig.from_dict(config.to_dict() | {"eos_token_id": 30}, "config.json")
    save_config(tmp_path, Transformer(config))
    write_pooling(tmp_path, {"pooling_mode": "lasttoken"})
    assert read_model(str(tmp_path)).pooling == "pooler"


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "0.auto_model.", "model.bert."])
def test_names_that_a_wrapper_made_longer(tmp_path, prefix):
    tensors = {prefix + name: value for name, value in theirs(LM_PARAMS).items()}
    assert_equal(from_pretrained(write_directory(tmp_path, tensors), "masked_lm")[1], LM_PARAMS)
    path = write_directory(tmp_path, tensors | {"2.linear.weight": np.zeros((2, 2), "f")})
    wrapper = prefix.removesuffix("bert.")
    with pytest.raises(InputError, match=r"2.linear.weight is another model's") as info:
        from_pretrained(path)
    assert f"name.removeprefix('{wrapper}')" in one_line(info)


@pytest.mark.parametrize("model_type", ["roberta", "distilbert", "electra", "gpt2"])
def test_wrapped_models_of_other_families(tmp_path, model_type):
    changes = {"model_type": model_type}
    if model_type in ("distilbert", "gpt2"):
        changes |= {"type_vocab_size": 0}
    model = Transformer(
        TransformerConfig(**vars(TINY) | changes), head="classification", num_labels=(3,)
    )
    params = make_params(model)
    if model_type == "gpt2":
        params["classifier"]["bias"] *= 0  # It has none.
    save_pretrained(tmp_path, model, params)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    tensors = {f"module.{name}": value for name, value in tensors.items()}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    assert has_classifier(str(tmp_path))
    assert_equal(from_pretrained(str(tmp_path), "classification")[1], params)


WORD = "embeddings.word_embeddings.weight"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (np.int8, "I8"),
        (np.uint8, "U8"),
        (np.int64, "I64"),
        (ml_dtypes.float8_e4m3fn, "F8_E4M3"),
        (ml_dtypes.float8_e5m2, "F8_E5M2"),
    ],
)
def test_weights_that_are_no_plain_floats_are_refused(tmp_path, kind, name):
    tensors = theirs(PARAMS)
    tensors[WORD] = (100 * tensors[WORD]).astype(kind)
    path = write_directory(tmp_path, tensors)
    with pytest.raises(InputError) as info:
        from_pretrained(path)
    line = f"{path}/model.safetensors: the tensor {WORD} is of type {name}, and only float64, "
    assert one_line(info).startswith(line)
    torch = pytest.importorskip("torch")
    (tmp_path / "model.safetensors").unlink()
    kinds = {"I8": "int8", "U8": "uint8", "I64": "int64", "F8_E4M3": "float8_e4m3fn"}
    theirs_kind = kinds.get(name, "float8_e5m2")
    saved = {key: torch.tensor(value) for key, value in theirs(PARAMS).items()}
    saved[WORD] = saved[WORD].to(getattr(torch, theirs_kind))
    torch.save(saved, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=f"tensor {WORD} is of type {theirs_kind}, and only"):
        from_pretrained(path)


@pytest.mark.parametrize("kind", [np.float64, np.float16])
def test_weights_of_other_widths(tmp_path, kind):
    tensors = {name: value.astype(kind) for name, value in theirs(PARAMS).items()}
    _, params = from_pretrained(write_directory(tmp_path, tensors))
    expected = jax.tree.map(lambda leaf: np.float32(np.asarray(leaf).astype(kind)), PARAMS)
    assert_equal(params, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_where_they_are_used(tmp_path, value):
    name = "encoder.layer.1.output.dense.bias"
    for kind in (np.float32, ml_dtypes.bfloat16):
        tensors = {key: x.astype(kind) for key, x in theirs(PARAMS, "bert.").items()}
        tensors[f"bert.{name}"][2:4] = value
        path = write_directory(tmp_path, tensors)
        with pytest.raises(InputError) as info:
            from_pretrained(path)
        line = f"{path}/model.safetensors: 2 of 8 numbers of the tensor bert.{name} are not finite;"
        assert one_line(info).startswith(line)
    tensors = theirs(LM_PARAMS, "bert.")
    tensors["cls.predictions.bias"] = np.full(31, value, "f")
    path = write_directory(tmp_path, tensors)
    assert_equal(from_pretrained(path)[1]["layers"], LM_PARAMS["layers"])
    with pytest.raises(InputError, match=r"31 of 31 numbers of the tensor cls\.predictions\.bias"):
        from_pretrained(path, "masked_lm")


def test_a_folder_of_the_hub_s_cache(tmp_path):
    folder = tmp_path / "models--owner--name"
    for commit in ("abc", "def"):
        (folder / "snapshots" / commit).mkdir(parents=True)
        write_directory(folder / "snapshots" / commit, theirs(PARAMS))
    with pytest.raises(InputError, match="cache with 2 snapshots and none that refs/main names"):
        files.resolve(str(folder))
    (folder / "refs").mkdir()
    for named, found in (("def\n", "def"), ("abc", "abc")):
        (folder / "refs" / "main").write_text(named)
        model, params = from_pretrained(str(folder))
        assert model.source == str(folder / "snapshots" / found)
        assert_equal(params, PARAMS)
    (folder / "refs" / "main").write_text("../..")
    with pytest.raises(InputError, match="2 snapshots"):
        files.resolve(str(folder))
    shutil.rmtree(folder / "snapshots" / "def")
    assert files.resolve(str(folder)) == folder / "snapshots" / "abc"


def test_the_tokenizer(tmp_path):
    model, _ = from_pretrained(write_directory(tmp_path, theirs(PARAMS)))
    with pytest.raises(InputError, match="no usable tokenizer") as info:
        _ = model.tokenizer
    assert str(tmp_path) in one_line(info)
    with pytest.raises(InputError, match="no directory"):
        _ = MODEL.tokenizer
    write_tokenizer(tmp_path)
    assert model.tokenizer("w0 w3")["input_ids"] == [2, 5, 8, 3]
    assert model.tokenizer is model.tokenizer


def test_with_head_keeps_what_fits(log):
    model, params = with_head(LM, LM_PARAMS, head="classification", num_labels=(2, 3))
    assert params["classifier"]["kernel"].shape == (2, 8, 3)
    assert "masked_lm" not in params
    assert_equal(params["pooler"], LM_PARAMS["pooler"])
    assert log() == ["with_head: has no classifier: freshly initialized"]
    again, same = with_head(model, params, head="classification", pooling="mean")
    assert again.pooling == "mean"
    assert_equal(same, params)
    # Padded heads of other sizes can have the same shape.
    _, other = with_head(
        model, params, head="classification", num_labels=(3, 3), rng=jax.random.key(1)
    )
    assert (other["classifier"]["kernel"] != params["classifier"]["kernel"]).any()
    assert_equal(
        with_head(LM, LM_PARAMS, head="encoder")[1],
        {k: LM_PARAMS[k] for k in ("embeddings", "layers", "pooler")},
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "deberta"}, "model_type is 'deberta'"),
        ({"model_type": None}, "model_type is None"),
        ({"position_embedding_type": "relative_key"}, "'relative_key'"),
        ({"is_decoder": True}, "is_decoder"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is set, and a quantized model"),
        ({"hidden_act": "swish"}, "'swish'"),
        ({"hidden_act": ["gelu"]}, "hidden_act"),
        ({"num_attention_heads": 3}, "not a multiple"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"vocab_size": "31"}, "vocab_size is '31'"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob is 1.5"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'"),
        ({"pad_token_id": 31}, "pad_token_id 31"),
    ],
)
def test_configurations_that_are_refused(changes, message):
    with pytest.raises(InputError, match=r"^DIR: ") as info:
        TransformerConfig.from_dict({**TINY.to_dict(), **changes}, "DIR")
    assert message in one_line(info)


def test_sizes_have_to_be_in_the_configuration():
    values = TINY.to_dict()
    del values["hidden_size"]
    with pytest.raises(InputError, match="hidden_size is missing"):
        TransformerConfig.from_dict(values, "DIR")
    values = {**TINY.to_dict(), "pad_token_id": None, "auto_map": {"AutoModel": "evil.Model"}}
    assert TransformerConfig.from_dict(values, "DIR") == TINY


def test_a_family_that_there_is_not():
    with pytest.raises(InputError, match=r"model_type is 'x', .* give a model of type bert, "):
        TransformerConfig(model_type="x").family  # noqa: B018


def break_tensors(change):
    tensors = theirs(PARAMS)
    change(tensors)
    return tensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("encoder.layer.1.output.dense.bias"),
            "missing tensors: encoder.layer.1.output.dense.bias;",
        ),
        (lambda t: t.update(extra=np.zeros(1)), "unexpected tensors: extra;"),
        (
            lambda t: t.update({f"encoder.layer.{i}.new": np.zeros(1) for i in range(9)}),
            "encoder.layer.3.new and 5 more",
        ),
        (
            lambda t: t.update({"pooler.dense.bias": np.zeros(5, "f")}),
            "pooler.dense.bias is [5], expected [8]",
        ),
        (
            lambda t: t.update({"encoder.layer.0.intermediate.dense.weight": np.zeros((8, 12))}),
            "intermediate.dense.weight is [8, 12], expected [12, 8]",
        ),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, change, message):
    path = write_directory(tmp_path, break_tensors(change))
    with pytest.raises(InputError) as info:
        from_pretrained(path)
    assert message in one_line(info)
    assert path in str(info.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "config.json: missing"),
        ("config.json", b"{", "config.json:1: not JSON"),
        ("config.json", b"[]", "not a JSON object"),
        ("config.json", b"\xff", "not UTF-8"),
        ("model.safetensors", None, "no weights"),
        ("model.safetensors", b"", "truncated"),
        ("model.safetensors", b"half", "model.safetensors: truncated"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    path = write_directory(tmp_path, theirs(PARAMS))
    file = tmp_path / name
    if content is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:5000] if content == b"half" else content)
    with pytest.raises(InputError) as info:
        from_pretrained(path)
    assert message in one_line(info)


def test_notes_that_make_no_sense(tmp_path):
    for changes in (
        {"metajax": 3},
        {"metajax": {"feature_norm": "x"}},
        {"num_labels": "x"},
        {"problem_type": "x"},
    ):
        path = write_directory(tmp_path, theirs(PARAMS), **changes)
        with pytest.raises(InputError, match="is not valid"):
            from_pretrained(path)


def test_paths_and_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("./none", "/none/at/all", "a/b/c", "~none/x"):
        with pytest.raises(InputError, match="no such directory"):
            files.resolve(name)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        files.resolve("file")
    with pytest.raises(InputError, match="neither a directory nor a hub id"):
        files.resolve("not a name!")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert str(files.resolve("owner/name")) == "owner/name"


def test_a_hub_out_of_reach(monkeypatch, tmp_path):
    import huggingface_hub

    def offline(name, **_):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no\nconnection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(InputError, match=r"hub is out of reach.*local directory") as info:
        from_pretrained("owner/name")
    one_line(info)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = r"^owner/name: not in the hub's cache, and HF_HUB_OFFLINE .*; unset the variable"
    with pytest.raises(InputError, match=message) as info:
        from_pretrained("owner/name")
    one_line(info)


def test_the_hub_is_asked_for_pytorch_files_only_where_there_are_no_others(monkeypatch, tmp_path):
    import huggingface_hub

    asked = []

    def download(name, allow_patterns):
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert files.resolve("owner/name") == tmp_path
    assert ["pytorch_model.bin" in patterns for patterns in asked] == [False, True]
    assert ["model.safetensors" in patterns for patterns in asked] == [True, False]
    assert {*files.COMPANIONS, "1_Pooling/config.json", *files.TOKENIZER_FILES} <= {*asked[0]}
    write_directory(tmp_path, theirs(PARAMS))
    files.resolve("owner/name")
    assert len(asked) == 3


def test_settings_that_make_no_sense():
    for settings in ({"head": "lm"}, {"pooling": "max"}, {"num_labels": ()}, {"num_labels": (0,)}):
        with pytest.raises(InputError):
            Transformer(TINY, **settings)


def test_reading_a_tokenizer_says_nothing_of_pytorch(tmp_path):
    write_tokenizer(tmp_path)
    command = [sys.executable, "-c", READS_TOKENIZER, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
