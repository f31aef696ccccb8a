"""`FewShotClassifier.meta_fit`: the stage of the command line, on data sets in memory."""

import json
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import sklearn.base
import tiny

import metajax
from metajax.errors import InputError, StoppedError
from metajax.runs.memory_tasks import write_tasks

pytestmark = pytest.mark.xdist_group("meta_fit")  # They share their runs.

SETTINGS = {"steps": 2, "learning_rate": 1e-3, "ways": 3, "queries": 3, "meta_batch_size": 2}
INTENTS = tuple(map(list, zip(*tiny.examples(6, 8))))
TEXTS, LABELS = map(list, zip(*tiny.examples(3, 4, first=7)))


def classifier_of(material, **changes):
    settings = {"method": "linear", "max_length": 16} | changes
    return metajax.FewShotClassifier(str(material.bert), **settings)


@pytest.fixture(scope="module")
def trained(material, tmp_path_factory):
    """A classifier, and the run on which it is based."""
    workdir = tmp_path_factory.mktemp("meta") / "run"
    with tiny.one_device():
        own = classifier_of(material)
        assert own.meta_fit({"intents": INTENTS}, workdir=workdir, held_out=0, **SETTINGS) is own
    return own, workdir


def test_it_is_what_the_command_does(trained, material, tmp_path):
    own, workdir = trained
    flags = ("--algorithm", "protonet", "--max-length", 16, "--held-out", 0)
    for name, value in SETTINGS.items():
        flags += (f"--{name.replace('_', '-')}", value)
    where = ("--model", material.bert, "--tasks", material.intents, "--workdir", tmp_path / "run")
    tiny.succeed("metatrain", *where, *flags)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert own.meta_results_ == json.loads((workdir / "results.json").read_text())
    assert own.meta_results_["after"] == pytest.approx(results["after"])
    for run in (workdir, tmp_path / "run"):
        expected = metajax.FewShotClassifier(str(run), method="linear", max_length=16)
        shares = expected.fit(TEXTS, LABELS).predict_proba(TEXTS)
        np.testing.assert_allclose(own.fit(TEXTS, LABELS).predict_proba(TEXTS), shares, atol=1e-5)
    plain = classifier_of(material).fit(TEXTS, LABELS).predict_proba(TEXTS)
    assert np.abs(shares - plain).max() > 1e-3


def test_any_classes_follow_and_the_result_is_kept(trained, tmp_path):
    own, _ = trained
    assert own.fit(TEXTS, [label == LABELS[0] for label in LABELS]).classes_.tolist() == [0, 1]
    shares = own.fit(TEXTS, LABELS).predict_proba(TEXTS)
    again = pickle.loads(pickle.dumps(own))
    np.testing.assert_array_equal(again.predict_proba(TEXTS), shares)
    np.testing.assert_array_equal(again.fit(TEXTS, LABELS).predict_proba(TEXTS), shares)
    again.set_params(method="contrastive")
    trained_shares = again.fit(TEXTS, LABELS).predict_proba(TEXTS)
    np.testing.assert_array_equal(again.fit(TEXTS, LABELS).predict_proba(TEXTS), trained_shares)
    own.save(tmp_path / "saved")
    again = metajax.FewShotClassifier.load(tmp_path / "saved")
    assert again.get_params() == own.get_params()
    np.testing.assert_array_equal(again.predict_proba(TEXTS), shares)
    assert not hasattr(sklearn.base.clone(own), "meta_results_")


def test_a_run_in_memory_leaves_nothing_and_validates(material, tmp_path, monkeypatch):
    """A learning rate that ruins the weights: the original ones are kept."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = classifier_of(material, weights="choose")
    own.meta_fit([("intents", INTENTS)], **SETTINGS | {"learning_rate": 3.0})
    assert not list(tmp_path.iterdir())
    assert own.meta_results_["kept_step"] == 0
    assert own.meta_results_["measured_on"].endswith("validation tasks: 3 classes of intents.jsonl")
    own.fit(TEXTS, LABELS)
    assert (own.choice_["weights"], own.choice_["candidates"]) == ("checkpoint", {})
    plain = classifier_of(material).fit(TEXTS, LABELS).predict_proba(TEXTS)
    np.testing.assert_allclose(own.predict_proba(TEXTS), plain, atol=1e-5)


def test_another_model_is_not_confused_with_what_was_meta_trained(trained):
    own, _ = trained
    model = own.model
    own.set_params(model="another")
    with pytest.raises(InputError, match="model: has changed since meta_fit; call meta_fit"):
        own.fit(TEXTS, LABELS)
    own.set_params(model=model)


def test_a_stopped_temporary_run_does_not_promise_to_resume(material, tmp_path, monkeypatch):
    def stopped(_):
        raise StoppedError("stopped by SIGINT after step 3, which is saved; the same command ...")

    monkeypatch.setattr("metajax.commands.metatrain.metatrain", stopped)
    with pytest.raises(StoppedError, match="of a temporary run nothing is kept; give a workdir"):
        classifier_of(material).meta_fit({"intents": INTENTS})
    with pytest.raises(StoppedError, match="step 3, which is saved"):
        classifier_of(material).meta_fit({"intents": INTENTS}, workdir=tmp_path / "run")


def test_the_original_weights_can_be_chosen(trained):
    own, _ = trained
    own.set_params(weights="choose").fit(TEXTS, LABELS)
    assert set(own.choice_["candidates"]) == {"linear", "original linear"}
    own.set_params(weights="checkpoint")


def test_the_files_have_the_texts_and_labels(tmp_path):
    pairs = [("a, b", 'say "c"'), ("d\n", "é")]
    tasks = {"pairs": (pairs, np.array([1, 0])), "films": (["x", "y"], ["good", "bad"])}
    files = write_tasks(tmp_path, tasks)
    assert files == (str(tmp_path / "pairs.jsonl"), str(tmp_path / "films.jsonl"))
    lines = [Path(file).read_text(encoding="utf-8").splitlines() for file in files]
    rows = [[json.loads(line) for line in own] for own in lines]
    assert rows[0] == [
        {"text": "a, b", "label": "1", "text_pair": 'say "c"'},
        {"text": "d\n", "label": "0", "text_pair": "é"},
    ]
    assert rows[1] == [{"text": "x", "label": "good"}, {"text": "y", "label": "bad"}]
    for file, task in zip(files, metajax.data.load_tasks(files)):
        assert (task.name, task.pairs is not None) == (file, "pairs" in file)


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ({}, "^tasks: have no data sets; give a dict of names"),
        (7, "^tasks: have no data sets"),
        ([INTENTS], "^tasks: have no data sets"),
        ([("a", INTENTS), ("a", INTENTS)], "^tasks: two data sets have the same name"),
        ({1: INTENTS, "1": INTENTS}, "^tasks: two data sets have the same name"),
        ({"a/b": INTENTS}, "^tasks: a/b: is not the name of a file; give a name without a slash"),
        ({"films": INTENTS[0]}, "^tasks: films: is no pair of texts and labels"),
        ({"films": (["x"], ["a", "b"])}, "^tasks: films: 1 texts have 2 labels; give one each"),
        ({"films": (["x", 3], ["a", "b"])}, "^tasks: films: texts: number 1 is 3, not a text"),
        ({"films": (["x", "y"], [["a"], []])}, "^tasks: films: has several labels per text"),
        ({"films": (["x", "y"], ["a", "b"])}, r"^films\.jsonl: has 2 classes, fewer than 3 ways"),
    ],
)
def test_bad_tasks_are_named(material, tasks, said):
    with pytest.raises(InputError, match=said):
        classifier_of(material).meta_fit(tasks, **SETTINGS)


def test_bad_settings_are_named(material):
    with pytest.raises(InputError, match="--steps 0: out of range; give a number of at least 1"):
        classifier_of(material).meta_fit({"intents": INTENTS}, steps=0)
    with pytest.raises(TypeError, match="way"):
        classifier_of(material).meta_fit({"intents": INTENTS}, way=3)
