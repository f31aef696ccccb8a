"""Sentence-transformers' directories: what they say, and what is written for them."""

import dataclasses
import json

import numpy as np
import pytest

from metajax.errors import InputError
from metajax.models import Transformer, from_pretrained, read_model, save_pretrained
from metajax.models.sentence import pooling_files, pooling_of_modules
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
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Dense": "2_Dense", "Normalize": "3"}
    write(encoder, modules=modules(**kinds))
    from_pretrained(str(encoder))
    dense = f"{encoder}: its module Dense (2_Dense) is not applied; features are the pooled"
    assert [line.startswith(dense) for line in caplog.messages] == [True]
    caplog.clear()
    write(encoder, modules=modules(Transformer=""))
    prompts = {"prompts": {"query": "query: ", "none": ""}, "default_prompt_name": "query"}
    write(encoder, config_sentence_transformers=prompts)
    from_pretrained(str(encoder))
    assert caplog.messages == [
        f"{encoder}: its default prompt 'query: ' is not put before texts; put it before yours"
    ]
    caplog.clear()
    for name in (None, "none", "other"):
        prompts["default_prompt_name"] = name
        write(encoder, config_sentence_transformers=prompts)
        from_pretrained(str(encoder))
    assert not caplog.messages


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
    files = pooling_files(pooling, 8, normalize=True)
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
    files = pooling_files("last", 8, normalize=True)
    write(tmp_path, modules=files["modules.json"])
    write(tmp_path, **{"1_Pooling__config": files["1_Pooling/config.json"]})
    model, params = from_pretrained(str(tmp_path))
    batch = make_batch()
    found = model(params, batch).pooled
    given = {
        name: torch.tensor(np.asarray(batch[name])).long()
        for name in ("input_ids", "attention_mask")
    }
    theirs = transformers.AutoModel.from_pretrained(tmp_path).eval()(**given).last_hidden_state
    last = np.asarray(batch["attention_mask"]).sum(1) - 1
    np.testing.assert_allclose(found, theirs.detach().numpy()[np.arange(3), last], atol=2e-5)
