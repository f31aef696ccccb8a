"""Sentence-transformers' directories: what they say, and what is written for them."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
import scipy.stats

from metajax.errors import InputError
from metajax.models import (
    DenseLayer,
    Transformer,
    from_pretrained,
    hashes,
    read_model,
    save_pretrained,
)
from metajax.models.sentence import pooling_of_modules, prompt_files, sentence_files
from tests.models.helpers import TINY, llama_settings, make_batch, make_params

PREFIX = "sentence_transformers.models."


def write(directory, **contents):
    """Write JSON files; two underscores stand for a slash."""
    for name, content in contents.items():
        path = directory / f"{name.replace('__', '/')}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def modules(**places):
    return [{"path": place, "type": PREFIX + kind} for kind, place in places.items()]


@pytest.fixture
def encoder(tmp_path):
    model = Transformer(TINY)
    save_pretrained(tmp_path, model, make_params(model))
    return tmp_path


def test_the_modules_say_where_the_pooling_is(encoder):
    write(encoder, modules=modules(Transformer="", Pooling="2_Pooling"))
    write(encoder, **{"1_Pooling__config": {"pooling_mode": "mean"}})
    write(encoder, **{"2_Pooling__config": {"pooling_mode": "cls"}})
    assert read_model(str(encoder)).pooling == "cls"


def test_what_is_not_applied_is_told(encoder, caplog):
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "LayerNorm": "2_Norm", "Normalize": "3"}
    write(encoder, modules=modules(**kinds))
    from_pretrained(str(encoder))
    assert caplog.messages == [
        f"{encoder}: its module LayerNorm (2_Norm) is not applied; features are those without it"
    ]


def test_the_default_prompt_is_read_and_written(encoder, tmp_path):
    prompts = {"prompts": {"query": "query: ", "none": ""}, "default_prompt_name": "query"}
    write(encoder, config_sentence_transformers=prompts)
    assert read_model(str(encoder)).prompt == "query: "
    model, params = from_pretrained(str(encoder), pooling="cls")
    save_pretrained(tmp_path / "again", model, params)
    written = json.loads((tmp_path / "again" / "config_sentence_transformers.json").read_text())
    assert written["prompts"][written["default_prompt_name"]] == "query: "
    assert read_model(str(tmp_path / "again")).prompt == "query: "
    save_pretrained(tmp_path / "again", model.replace(prompt=""), params)
    assert read_model(str(tmp_path / "again")).prompt == ""
    for name in (None, "none", "other"):
        prompts["default_prompt_name"] = name
        write(encoder, config_sentence_transformers=prompts)
        assert read_model(str(encoder)).prompt == ""


def test_named_prompts_are_kept(encoder, tmp_path):
    prompts = {"prompts": {"query": "query: ", "passage": "passage: "}}
    again = tmp_path / "again"
    for name in (None, "query"):
        write(encoder, config_sentence_transformers=prompts | {"default_prompt_name": name})
        model, params = from_pretrained(str(encoder))
        save_pretrained(again, model, params)
        written = json.loads((again / "config_sentence_transformers.json").read_text())
        assert written == prompts | {"default_prompt_name": name}
    save_pretrained(again, model.replace(prompt="mine: "), params)
    written = json.loads((again / "config_sentence_transformers.json").read_text())
    assert written["prompts"] == prompts["prompts"] | {"default": "mine: "}
    assert read_model(str(again)).prompt == "mine: "
    save_pretrained(again, model.replace(prompt=""), params)
    written = json.loads((again / "config_sentence_transformers.json").read_text())
    assert written == prompts | {"default_prompt_name": None}
    prompts = {"prompts": {"default": "query: "}, "default_prompt_name": None}
    write(encoder, config_sentence_transformers=prompts)
    assert prompt_files(model.replace(prompt="mine: "))["config_sentence_transformers.json"] == {
        "prompts": {"default": "query: ", "default_": "mine: "},
        "default_prompt_name": "default_",
    }


def test_named_prompts_that_the_pooling_leaves_out_are_not_kept(encoder):
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": None}
    pooling = {"pooling_mode": "mean", "include_prompt": True}
    for kept in (True, False):
        own = {"1_Pooling__config": pooling | {"include_prompt": kept}}
        write(encoder, config_sentence_transformers=prompts, **own)
        model, _ = from_pretrained(str(encoder))
        assert prompt_files(model) == (
            {"config_sentence_transformers.json": prompts} if kept else {}
        )


def test_a_prompt_that_cannot_be_applied_is_refused(encoder):
    prompts = {"prompts": {"query": 5}, "default_prompt_name": "query"}
    write(encoder, config_sentence_transformers=prompts)
    with pytest.raises(InputError, match=r"transformers.json: the prompt 'query' is 5, not a text"):
        read_model(str(encoder))
    write(encoder, config_sentence_transformers=prompts | {"default_prompt_name": ["query"]})
    with pytest.raises(InputError, match=r"default_prompt_name is \['query'\], not a text; fix it"):
        read_model(str(encoder))
    prompts["prompts"]["query"] = "q: "
    pooling = {"pooling_mode": "mean", "include_prompt": False}
    write(encoder, config_sentence_transformers=prompts, **{"1_Pooling__config": pooling})
    with pytest.raises(InputError, match=r"1_Pooling/config.json: include_prompt is false, but"):
        read_model(str(encoder))
    write(encoder, config_sentence_transformers=prompts | {"default_prompt_name": None})
    assert read_model(str(encoder)).prompt == ""
    write(encoder, config_sentence_transformers=prompts)
    write(encoder, **{"1_Pooling__config": pooling | {"include_prompt": True}})
    assert read_model(str(encoder)).prompt == "q: "


DENSE = {"in_features": 8, "out_features": 5, "bias": True}
DENSE |= {"activation_function": "torch.nn.modules.activation.Tanh"}
ACTIVATIONS = {
    "activation.Tanh": np.tanh,
    "linear.Identity": lambda x: x,
    "activation.ReLU": lambda x: np.maximum(x, 0),
    "activation.GELU": lambda x: x * scipy.stats.norm.cdf(x),
    "activation.SiLU": lambda x: x / (1 + np.exp(-x)),
    "activation.Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


def add_dense(encoder, *, stored="safetensors", **changes):
    """Add a dense layer after mean pooling; return its random weights."""
    values = DENSE | changes
    shape = (values["out_features"], values["in_features"])
    draw = np.random.RandomState(3)
    tensors = {"linear.weight": draw.normal(size=shape), "linear.bias": draw.normal(size=shape[0])}
    if not values["bias"]:
        del tensors["linear.bias"]
    places = {"Transformer": "", "Pooling": "1_Pooling", "Dense": "2_Dense", "Normalize": "3"}
    pooling = {"1_Pooling__config": {"pooling_mode": "mean"}}
    write(encoder, modules=modules(**places), **pooling, **{"2_Dense__config": values})
    if stored == "safetensors":
        safetensors.numpy.save_file(tensors, encoder / "2_Dense" / "model.safetensors")
    else:
        torch = pytest.importorskip("torch")
        tensors = {name: value.astype(np.float32) for name, value in tensors.items()}
        given = {name: torch.tensor(value) for name, value in tensors.items()}
        torch.save(given, encoder / "2_Dense" / "pytorch_model.bin")
    return tensors


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.usefixtures("x64")
def test_a_dense_layer_is_applied_after_the_pooling(encoder, activation):
    bias = activation != "linear.Identity"
    tensors = add_dense(encoder, activation_function=f"torch.nn.modules.{activation}", bias=bias)
    model, params = from_pretrained(str(encoder), param_dtype=np.float64, feature_norm=3.0)
    batch = make_batch()
    found = jax.jit(model.features)(params, batch)
    hidden, mask = model.hidden(params, batch), np.asarray(batch["attention_mask"])[:, :, None]
    pooled = (np.asarray(hidden) * mask).sum(1) / mask.sum(1)
    linear = pooled @ tensors["linear.weight"].T + tensors.get("linear.bias", 0)
    expected = ACTIVATIONS[activation](linear)
    np.testing.assert_allclose(jax.jit(model)(params, batch).pooled, expected, rtol=1e-10)
    scaled = 3 * expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found, scaled, rtol=1e-10)


@pytest.mark.parametrize("stored", ["safetensors", "bin"])
@pytest.mark.parametrize("head", ["encoder", "classification", "masked_lm"])
def test_a_dense_layer_comes_back(encoder, tmp_path, stored, head):
    add_dense(encoder, stored=stored)
    model, params = from_pretrained(str(encoder), head)
    assert model.dense == DenseLayer(5, "tanh", bias=True)
    assert head != "classification" or params["classifier"]["kernel"].shape == (1, 5, 2)
    save_pretrained(tmp_path / "again", model, params)
    written = json.loads((tmp_path / "again" / "2_Dense" / "config.json").read_text())
    assert written == DENSE
    again, same = from_pretrained(str(tmp_path / "again"), head)
    assert again == model.replace(source=again.source)
    jax.tree.map(np.testing.assert_array_equal, same, params)
    # A later model without the layer leaves none behind.
    rest = {name: value for name, value in params.items() if name not in ("dense", "classifier")}
    save_pretrained(tmp_path / "again", model.replace(dense=None, head="encoder"), rest)
    assert read_model(str(tmp_path / "again")).dense is None
    assert not (tmp_path / "again" / "2_Dense").exists()


@pytest.mark.parametrize(
    ("dense", "said"),
    [
        (DenseLayer(0), "the size of dense is 0; it has to be a number above 0"),
        (DenseLayer(5, "elu"), "the activation of dense is 'elu'; it has to be one of linear, "),
    ],
)
def test_a_dense_layer_that_cannot_be_saved_is_refused(encoder, dense, said):
    with pytest.raises(InputError, match=said):
        read_model(str(encoder), pooling="mean").replace(dense=dense)


def test_the_weights_of_a_dense_layer_identify_a_model(encoder):
    plain = hashes(str(encoder))
    add_dense(encoder)
    one = hashes(str(encoder))
    tensors = {"linear.weight": np.zeros((5, 8)), "linear.bias": np.zeros(5)}
    safetensors.numpy.save_file(tensors, encoder / "2_Dense" / "model.safetensors")
    assert len({each["sha256"] for each in (plain, one, hashes(str(encoder)))}) == 3


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"activation_function": "mine.Odd"}, r"the activation function Odd is not supported"),
        ({"use_residual": True}, r"use_residual is True, but only False is supported"),
        ({"module_input_name": "token_embeddings"}, r"only 'sentence_embedding' is supported"),
        ({"out_features": 0}, r"out_features is 0 and bias is True; they have to be"),
        ({"in_features": 7}, r"linear.weight is \[5, 7\], expected \[5, 8\]"),
    ],
)
def test_another_dense_layer_is_refused(encoder, changes, problem):
    add_dense(encoder, **changes)
    with pytest.raises(InputError, match=problem):
        from_pretrained(str(encoder))


def test_a_dense_layer_that_is_incomplete_is_refused(encoder):
    add_dense(encoder)
    with pytest.raises(InputError, match="pooling is 'pooler', but the model has a Dense layer"):
        from_pretrained(str(encoder), pooling="pooler")
    weights = encoder / "2_Dense" / "model.safetensors"
    safetensors.numpy.save_file({"linear.weight": np.full((5, 8), np.nan)}, weights)
    with pytest.raises(InputError, match=r"missing tensors: linear\.bias"):
        from_pretrained(str(encoder))
    tensors = {"linear.weight": np.full((5, 8), np.nan), "linear.bias": np.zeros(5)}
    safetensors.numpy.save_file(tensors, weights)
    with pytest.raises(InputError, match=r"2_Dense/model.safetensors: 40 of 40 numbers of the"):
        from_pretrained(str(encoder))
    weights.unlink()
    with pytest.raises(InputError, match=r"2_Dense: no weights"):
        from_pretrained(str(encoder))
    for places in ({"Dense": "2_Dense", "Dense2": "3"}, {"Normalize": "1", "Dense": "2_Dense"}):
        given = [module | {"type": module["type"].rstrip("2")} for module in modules(**places)]
        write(encoder, modules=given)
        with pytest.raises(InputError, match="but only one Dense, before Normalize, is supported"):
            read_model(str(encoder))


@pytest.mark.parametrize(
    "content", ["[", "{}", "[1]", [{"type": "Pooling"}], modules(Pooling="../other")]
)
def test_a_damaged_list_of_modules_is_refused(encoder, content):
    if content == "{}":
        content = {"a": 1}
    write(encoder, modules=content)
    with pytest.raises(InputError, match=r"modules.json: is not a list of modules .* fetch it"):
        read_model(str(encoder))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "weighted-mean"])
def test_every_pooling_comes_back(tmp_path, pooling):
    files = sentence_files(Transformer(TINY, pooling=pooling), normalize=True)
    write(
        tmp_path,
        modules=files["modules.json"],
        **{"1_Pooling__config": files["1_Pooling/config.json"]},
    )
    assert pooling_of_modules(tmp_path, decoder=False) == pooling
    assert [module["path"] for module in files["modules.json"]] == ["", "1_Pooling", "2_Normalize"]


def test_a_qwen3_pools_the_last_token(tmp_path):
    """As Qwen3-Embedding: a decoder, with the modules of a sentence encoder."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = Transformer(dataclasses.replace(TINY, **llama_settings("qwen3")))
    params = make_params(model)
    save_pretrained(tmp_path, model, params)
    files = sentence_files(model, normalize=True)
    write(tmp_path, modules=files["modules.json"])
    write(tmp_path, **{"1_Pooling__config": files["1_Pooling/config.json"]})
    model, params = from_pretrained(str(tmp_path))
    batch = make_batch()
    found = jax.jit(model)(params, batch).pooled
    given = {
        name: torch.tensor(np.asarray(batch[name])).long()
        for name in ("input_ids", "attention_mask")
    }
    theirs = transformers.AutoModel.from_pretrained(tmp_path).eval()(**given).last_hidden_state
    last = np.asarray(batch["attention_mask"]).sum(1) - 1
    np.testing.assert_allclose(found, theirs.detach().numpy()[np.arange(3), last], atol=2e-5)
