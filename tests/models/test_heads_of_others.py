"""Heads that are no classifier of texts, or one of another type, and the names of their classes."""

import dataclasses
import json
import logging
import re

import jax
import numpy as np
import pytest

from metajax.errors import InputError
from metajax.models import (
    Transformer,
    classification_loss,
    convert,
    from_pretrained,
    has_classifier,
    read_model,
    save_config,
    save_pretrained,
    with_head,
)
from metajax.models.metadata import no_classifier
from tests.models.helpers import TINY, assert_equal, make_params, write_directory

GPT2 = {"type_vocab_size": 0, "hidden_act": "gelu_new", "classifier_dropout": 0.0}
SETTINGS = {
    "bert": {},
    "roberta": {"pad_token_id": 1},
    "xlm-roberta": {"pad_token_id": 1},
    "distilbert": {"type_vocab_size": 0, "classifier_dropout": 0.2},
    "electra": {},
    "gpt2": {**GPT2, "layer_norm_eps": 1e-5, "eos_token_id": 30},
}
WORD_HEADS = [(model_type, "ForTokenClassification") for model_type in SETTINGS]
OTHER_HEADS = [
    *((model_type, "ForQuestionAnswering") for model_type in SETTINGS),
    *((model_type, "ForMultipleChoice") for model_type in SETTINGS if model_type != "gpt2"),
    ("bert", "ForNextSentencePrediction"),
]
SAID = {
    "ForTokenClassification": "a token classifier",
    "ForQuestionAnswering": "a question-answering model",
    "ForMultipleChoice": "a multiple-choice model",
    "ForNextSentencePrediction": "a next-sentence predictor",
}
CLASSIFIER = Transformer(TINY, head="classification", num_labels=(3,))
CLASSIFIER_PARAMS = make_params(CLASSIFIER)
MULTI = "multi_label_classification"


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "metajax")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "metajax"]


def write_theirs(directory, model_type, head):
    """What transformers writes of a model with another head, and its encoder's parameters."""
    transformers = pytest.importorskip("transformers")
    config = dataclasses.replace(TINY, model_type=model_type, **SETTINGS[model_type])
    save_config(directory / "config", Transformer(config))
    labels = 2 if head == "ForQuestionAnswering" else 3
    theirs = transformers.AutoConfig.from_pretrained(directory / "config", num_labels=labels)
    kind = getattr(transformers, config.family.classes + head)
    kind(theirs).save_pretrained(directory / "theirs")
    return str(directory / "theirs")


@pytest.mark.parametrize(("model_type", "head"), [*WORD_HEADS, *OTHER_HEADS])
def test_a_head_for_something_else_is_refused_and_its_encoder_read(tmp_path, model_type, head, log):
    path = write_theirs(tmp_path, model_type, head)
    assert not has_classifier(path)
    assert no_classifier(path).startswith(f"is {SAID[head]}")
    for read in (from_pretrained, read_model):
        with pytest.raises(InputError, match=f"theirs: is {SAID[head]}.*; pass num_labels"):
            read(path, "classification")
    model, encoder = from_pretrained(path)
    assert (model.head, model.problem_type) == ("encoder", None)
    # A head of as many classes is new, whatever the checkpoint's.
    fresh, params = from_pretrained(path, "classification", num_labels=3, pooling="mean")
    assert_equal(params["layers"], encoder["layers"])
    expected = fresh.init(jax.random.key(0))["classifier"]["kernel"]
    np.testing.assert_allclose(params["classifier"]["kernel"], expected, rtol=1e-6)
    assert f"{path}: has no classifier: freshly initialized" in log()


def theirs(params=CLASSIFIER_PARAMS):
    """Tensors of BertForSequenceClassification."""
    tensors = convert.to_hugging_face(params)
    for name in ("weight", "bias"):
        tensors[f"classifier.{name}"] = tensors.pop(f"classifier.0.{name}")
    return tensors


@pytest.mark.parametrize(
    ("architectures", "found"),
    [
        (["BertForSequenceClassification"], None),
        (["BertModel"], None),
        (["BertForMaskedLM"], None),
        (None, None),
        (3, None),
        (["BertForMine"], "is a BertForMine, whose head is not known, not a classifier of texts"),
        ("BertForTokenClassification", "is a token classifier, which labels words"),
    ],
)
def test_whose_head_it_is_by_its_architecture(tmp_path, architectures, found):
    path = write_directory(tmp_path, theirs(), architectures=architectures, num_labels=3)
    assert (no_classifier(path) or "None").startswith(str(found))


def test_a_head_without_the_pooler_that_it_reads_is_no_classifier(tmp_path):
    tensors = {name: value for name, value in theirs().items() if not name.startswith("pooler.")}
    path = write_directory(tmp_path, tensors, num_labels=3)
    assert no_classifier(path).startswith("has a head but lacks the pooler that the head reads")
    write_directory(tmp_path, tensors, num_labels=3, metajax={"pooling": "mean"})
    assert has_classifier(path)


@pytest.mark.parametrize(
    ("count", "said", "found"),
    [
        (3, None, None),
        (3, "single_label_classification", None),
        (3, MULTI, MULTI),
        (3, "regression", "regression"),
        (1, "regression", None),
        (1, None, None),
        (1, "single_label_classification", MULTI),
        (1, MULTI, MULTI),
    ],
)
def test_the_type_of_a_head(tmp_path, count, said, found, log):
    """That a text has one label, or one value, is what the number of classes says."""
    model = CLASSIFIER.replace(num_labels=(count,))
    changes = {"id2label": {str(i): f"n{i}" for i in range(count)}, "problem_type": said}
    path = write_directory(tmp_path / "given", theirs(make_params(model)), **changes)
    read, params = from_pretrained(path, "classification")
    assert read.problem_type == found
    assert read_model(path, "classification").problem_type == found
    remark = '"problem_type" is not set; the head of one class is read as a regression'
    assert log() == [f"{path}/config.json: {remark}"] * ((count, said) == (1, None))
    # It goes along where the model is written, and not to another head.
    save_pretrained(tmp_path / "saved", read, params)
    values = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert values.get("problem_type") == (found or ("regression" if count == 1 else None))
    again, _ = from_pretrained(str(tmp_path / "saved"), "classification")
    assert again == read.replace(source=str(tmp_path / "saved"))
    assert from_pretrained(path)[0].problem_type is None
    assert from_pretrained(path, "classification", num_labels=4)[0].problem_type is None
    assert with_head(read, params, head="classification", num_labels=4)[0].problem_type is None
    assert with_head(read, params, head="classification", pooling="mean")[0].problem_type == found
    assert with_head(read, params, head="encoder")[0].problem_type is None


def test_a_loss_of_one_label_a_text_is_refused_for_several():
    with pytest.raises(InputError, match="problem_type is multi_label_classification, but"):
        classification_loss(CLASSIFIER.replace(problem_type=MULTI))
    for changes in ({"problem_type": "x"}, {"problem_type": MULTI, "num_labels": (2, 3)}):
        with pytest.raises(InputError, match="problem_type is "):
            CLASSIFIER.replace(**changes)


@pytest.mark.parametrize(
    ("id2label", "names", "missing"),
    [
        ({"0": "a", "2": "b", "5": "c"}, ("a", "LABEL_1", "b"), "names 2 of 3 .* called LABEL_1$"),
        ({"1": "a", "2": "b", "3": "c"}, ("LABEL_0", "a", "b"), "names 2 of 3 .* called LABEL_0$"),
        ({"0": 1, "1": 2.5, "2": "c"}, ("1", "2.5", "c"), None),
        ({"0": "a", "1": None, "2": ""}, ("a", "LABEL_1", "LABEL_2"), "LABEL_1, LABEL_2$"),
        ({"0": "a", "1": "b"}, ("a", "b", "LABEL_2"), "names 2 of 3 .* called LABEL_2$"),
        ({"LABEL_0": "a", "x": "b", "-1": "c"}, None, "names 0 of 3"),
        (["a", "b", "c"], None, "names 0 of 3"),
        ({}, None, None),
    ],
)
def test_names_that_are_missing(tmp_path, log, id2label, names, missing):
    """They matter where the head is used, and there is one line on them."""
    path = write_directory(tmp_path, theirs(), id2label=id2label)
    from_pretrained(path, pooling="pooler")
    from_pretrained(path, "classification", num_labels=4, pooling="pooler")
    assert log() == [f"{path}: has no classifier: freshly initialized"]
    assert has_classifier(path)
    model, params = from_pretrained(path, "classification")
    assert model.num_labels == (3,)
    assert model.label_names == (names and (names,))
    assert_equal(params, CLASSIFIER_PARAMS)
    assert len(log()) == 1 + bool(missing)
    if missing:
        assert log()[-1].startswith(f'{path}/config.json: "id2label" names ')
        assert re.search(missing, log()[-1])
