"""Data sets of the hub, and its copy of GLUE."""

import numpy as np
import pytest

from metajax.data import fingerprint, has_split, load_tasks
from metajax.errors import InputError

SENTENCES = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")


def load(spec, **settings):
    (task,) = load_tasks([spec], **settings)
    return task


def assert_complaint(message, spec):
    with pytest.raises(InputError, match=message) as caught:
        load(spec)
    assert len(str(caught.value).splitlines()) == 1
    assert "; " in str(caught.value), "what to do is missing"


@pytest.fixture
def hub(monkeypatch):
    """Replace the hub by a function of load_dataset's arguments."""
    import datasets

    calls = []
    answer = {}

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        if isinstance(answer["data"], Exception):
            raise answer["data"]
        return answer["data"]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return answer, calls


def hub_data(labels, names=None, **columns):
    import datasets

    feature = datasets.ClassLabel(names=names) if names else datasets.Value("string")
    features = dict.fromkeys(columns, datasets.Value("string")) | {"label": feature}
    return datasets.Dataset.from_dict(columns | {"label": labels}, datasets.Features(features))


def test_hub_data_set_with_declared_classes(hub):
    answer, calls = hub
    answer["data"] = hub_data([1, 0], ["z", "y", "x"], text=["t", "u"])
    task = load("hub:me/mine/part", split="validation")
    assert calls == [(("me/mine", "part"), {"split": "validation"})]
    assert (task.texts, task.pairs) == (["t", "u"], None)
    assert task.label_names == ("z", "y", "x")  # the published order, not the sorted one
    assert task.labels.tolist() == [1, 0]
    assert task.name == "hub:me/mine/part"


def test_names_that_are_numbers_are_no_places_in_the_order(hub):
    hub[0]["data"] = hub_data([1, 0, 2], ["2", "0", "1"], text=["t", "u", "v"])
    task = load("hub:me/mine")
    assert [task.label_names[label] for label in task.labels] == ["0", "2", "1"]
    assert task.label_names == ("2", "0", "1")


def test_hub_data_set_with_plain_labels_and_other_columns(hub):
    answer, calls = hub
    answer["data"] = hub_data(["b", "a"], body=["t", "u"])
    task = load("hub:me/mine", text_column="body")
    assert calls[0][0] == ("me/mine", None)
    assert task.label_names == ("a", "b")
    assert_complaint("no column 'text' or 'sentence', only 'body'", "hub:me/mine")


def test_hub_labels_that_are_withheld(hub):
    hub[0]["data"] = hub_data([1, -1], ["a", "b"], text=["t", "u"])
    assert_complaint("hub:me/mine row 2: no 'label'", "hub:me/mine")


@pytest.mark.parametrize(
    ("name", "columns", "names"),
    [
        ("CoLA", ("sentence",), ("unacceptable", "acceptable")),
        ("MRPC", SENTENCES, ("not_equivalent", "equivalent")),
        ("mnli", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
        ("QNLI", ("question", "sentence"), ENTAILMENT),
        ("QQP", ("question1", "question2"), ("not_duplicate", "duplicate")),
        ("RTE", SENTENCES, ENTAILMENT),
        ("SST-2", ("sentence",), ("negative", "positive")),
        ("STS-B", SENTENCES, ()),
        ("WNLI", SENTENCES, ENTAILMENT[::-1]),
    ],
)
def test_glue_from_the_hub(hub, name, columns, names):
    answer, calls = hub
    texts = dict(zip(columns, (["a", "c"], ["b", "d"])))
    answer["data"] = hub_data([1, 0] if names else ["3.8", "5"], list(names), **texts)
    config = name.lower().replace("-", "")
    development = "validation_matched" if name == "mnli" else "validation"
    for asked, expected in (("validation", development), ("train", "train")):
        task = load(f"glue:{name}", split=asked)
        assert calls.pop() == (("nyu-mll/glue", config), {"split": expected})
        assert (task.texts, task.pairs) == (["a", "c"], ["b", "d"] if columns[1:] else None)
        assert task.label_names == names
        np.testing.assert_allclose(task.labels, [1, 0] if names else [3.8, 5], rtol=1e-6)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach 'me/mine' on the Hub (ConnectTimeout)"),
        ValueError('Unknown split "validation".\nShould be one of train'),
        RuntimeError("Dataset scripts are no longer supported, but found mine.py"),
        KeyError(),
    ],
)
def test_hub_out_of_reach(hub, error):
    hub[0]["data"] = error
    message = "hub:me/mine: the train split cannot be loaded .*give a local file"
    assert_complaint(message, "hub:me/mine")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(["train", "test"], False), (["validation", "train"], True), (OSError("no network"), True)],
)
def test_whether_the_hub_has_a_split(monkeypatch, answer, expected):
    import datasets

    def names(*args):
        assert args == ("me/mine", "part")
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(datasets, "get_dataset_split_names", names)
    assert has_split("hub:me/mine/part", "validation") == expected


def test_a_split_of_glue_goes_by_its_published_name(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_: ["validation_matched"])
    assert has_split("glue:mnli", "validation")
    assert not has_split("glue:rte", "validation")


@pytest.mark.parametrize("spec", ["hub:mine", "hub:", "hub:me/", "hub:a/b/c/d"])
def test_malformed_hub_names(spec):
    with pytest.raises(InputError, match="use hub:OWNER/NAME"):
        load(spec)


def test_fingerprint_of_the_hubs_rows(hub):
    answer, calls = hub
    prints = []
    changes = ("tu", [1, 0]), ("tu", [1, 0]), ("tv", [1, 0]), ("tu", [0, 1])
    for texts, labels in changes:
        answer["data"] = hub_data(labels, ["a", "b"], text=list(texts))
        prints.append(fingerprint("hub:me/mine"))
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    assert fingerprint("glue:mnli", split="validation") == prints[-1]
    assert calls[-1] == (("nyu-mll/glue", "mnli"), {"split": "validation_matched"})
