"""Check that names of labels count as examples, on the command line as in memory."""

import json

import numpy as np
import pytest

import metajax
from metajax.commands import adapt
from metajax.config.settings import AdaptSettings
from metajax.errors import InputError
from metajax.runs.classifier import open_classifier, probabilities
from metajax.runs.label_names import read_label_names
from metajax.runs.labels import read_examples

NAMES = {"b": "w1", "a": "w0", "c": "w2"}
EXAMPLES = "text,label\nw3 w4,b\nw5 w6,d\n"  # d has no name; a and c have no examples.


@pytest.mark.parametrize("rows", [None, EXAMPLES])
def test_adapt_agrees_with_the_estimator(material, tmp_path, rows):
    names, examples = tmp_path / "names.json", tmp_path / "examples.csv"
    names.write_text(json.dumps(NAMES))
    examples.write_text(rows or "")
    settings = AdaptSettings(
        model=str(material.bert),
        method="prototypes",
        tasks=(str(examples),) if rows else (),
        label_names=str(names),
        workdir=str(tmp_path / "run"),
    )
    results = adapt.adapt(settings)
    own = metajax.FewShotClassifier(str(material.bert), method="prototypes", label_names=NAMES).fit(
        ["w3 w4", "w5 w6"] if rows else None, ["b", "d"] if rows else None
    )
    assert results["labels"] == own.classes_.tolist()
    found = probabilities(open_classifier(settings.workdir, None), ["w0", "w7"], None, 64)
    np.testing.assert_allclose(found, own.predict_proba(["w0", "w7"]), rtol=1e-5)


def test_names_without_examples_are_reported(material, tmp_path, caplog):
    """Without any example, all names have none, which is intended."""
    names = {"b": "w1"} | {f"x{number}": f"w{number}" for number in range(6)}
    file, examples = tmp_path / "names.json", tmp_path / "examples.csv"
    file.write_text(json.dumps(names))
    examples.write_text(EXAMPLES)
    how = {"model": str(material.bert), "method": "prototypes", "label_names": str(file)}
    adapt.adapt(AdaptSettings(**how, tasks=(str(examples),), workdir=str(tmp_path / "run")))
    said = "6 labels have a name but no example: 'x0', 'x1', 'x2', 'x3', 'x4' and 1 more"
    assert f"{file}: {said}" in caplog.messages
    caplog.clear()
    read_examples(["w3 w4", "w5 w6"], ["b", "d"], {"b": "w1", "B": "w2"})
    read_examples(["w3", "w5"], np.array([[1, 0], [0, 0]]), {0: "w1", 1: "w2"})
    unused = [f"label_names: 1 label has a name but no example: {name}" for name in ("'B'", "1")]
    assert caplog.messages == unused
    read_examples(None, None, names)
    assert caplog.messages == unused


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", "is not a JSON object"),
        ("{", "is not JSON"),
        ('{"a": 1}', "the name of 'a' is 1, not a text"),
        ('{"a": "x", "a": "y"}', "'a' is given twice"),
    ],
)
def test_bad_names_are_refused(tmp_path, text, said):
    (tmp_path / "names.json").write_text(text)
    with pytest.raises(InputError, match=said):
        read_label_names(str(tmp_path / "names.json"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError) as caught:
        read_label_names(str(tmp_path / "names.json"))
    assert str(caught.value) == f"{tmp_path / 'names.json'}: no such file; check the path"


def test_names_in_utf_8_with_or_without_its_mark(tmp_path):
    for start, text in ((b"", "caf\u00e9"), (b"\xef\xbb\xbf", "caf\u00e9")):
        content = start + json.dumps({"a": text}, ensure_ascii=False).encode()
        (tmp_path / "names.json").write_bytes(content)
        assert read_label_names(str(tmp_path / "names.json")) == {"a": text}
    (tmp_path / "names.json").write_bytes(content[:-3])
    with pytest.raises(InputError, match="is not JSON"):
        read_label_names(str(tmp_path / "names.json"))
