"""Check that names of labels count as examples: of a task, and of episodes to meta-train on."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

import metajax
from metajax import data
from metajax.commands import adapt
from metajax.commands import metatrain as training
from metajax.config.settings import AdaptSettings
from metajax.data.tokens import JoinedRows
from metajax.errors import InputError
from metajax.models import from_pretrained
from metajax.runs import task_data
from metajax.runs.classifier import open_classifier, probabilities
from metajax.runs.label_names import (
    append_label_names,
    check_any_names,
    read_label_names,
    with_usable_names,
)
from metajax.runs.labels import read_examples
from metajax.runs.task_data import tokenized
from tests.stage_commands import metatrain_command

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


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tiny.write_model(tmp_path_factory.mktemp("model"))
    return from_pretrained(str(directory), pooling="mean")[0]


def task_of(name, labels, **changes):
    """A data set with two texts of each label."""
    texts = [f"w{number}" for number in range(2 * len(labels))]
    numbers = np.repeat(np.arange(len(labels)), 2).astype(np.int32)
    pairs = changes.pop("pairs", None) and texts[::-1]
    return data.TaskData(name, texts, pairs, numbers, labels, **changes)


@pytest.mark.parametrize("prompt", ["", "w89 "])
@pytest.mark.parametrize("keep", [False, True])
def test_names_of_labels_are_tokenized_like_texts(
    model, prompt, keep, monkeypatch, tmp_path, caplog
):
    """Also where the tokens of the texts are mapped from disk; the log speaks once of all sets."""
    monkeypatch.setattr(task_data, "MANY", 1)
    monkeypatch.setattr(task_data, "tokens_directory", lambda: tmp_path)
    tasks = [task_of("a", ("w80_w81", "w82")), task_of("b", ("w83",))]
    opened = model.replace(prompt=prompt)
    plain = tokenized(tasks, opened, 16, keep=keep)
    assert isinstance(plain[0].tokens.input_ids, JoinedRows) == keep
    caplog.clear()
    with caplog.at_level("INFO", logger="metajax"):
        found, other = append_label_names(plain, opened, 16)
    assert len(caplog.messages) == bool(prompt)
    assert other.name_rows.tolist() == [2]
    assert found.name_rows.tolist() == [4, 5]
    assert found.labels.tolist() == [0, 0, 1, 1, -1, -1]
    assert found._replace(tokens=None, labels=None, name_rows=None) == (
        plain[0]._replace(tokens=None, labels=None)
    )
    expected = model.tokenizer([prompt + text for text in (*tasks[0].texts, "w80 w81", "w82")])
    rows = zip(np.asarray(found.tokens.input_ids), found.tokens.lengths, strict=True)
    assert [ids[:length].tolist() for ids, length in rows] == expected["input_ids"]


def test_only_data_sets_of_single_texts_and_labels_with_letters_have_names(model, caplog):
    tasks = [
        task_of("letters", ("a1", "b")),
        task_of("numbers", ("a", "1.5")),
        task_of("pairs", ("a", "b"), pairs=True),
        task_of("hidden", ("a", "b"), hides_words=True),
    ]
    examples = [tokenized([task], model, 16)[0] for task in tasks[:3]]
    examples.append(examples[0]._replace(name="hidden", hides_words=True))
    found = with_usable_names(examples, tasks, model, 16)
    assert [task.name_rows is None for task in found] == [False, True, True, True]
    assert found[1:] == examples[1:]
    assert "--named-episodes: does not apply to numbers, pairs, hidden (" in caplog.text
    check_any_names(found)
    message = "--named-episodes: no data set to train on has single texts and labels with letters"
    for others in (found[1:], [found[0]._replace(weight=0), *found[1:]]):
        with pytest.raises(InputError, match=message):
            check_any_names(others)


def test_names_that_no_training_takes_are_refused(material, tmp_path):
    """Of four data sets one is held out; here it is the only one with names."""
    files = []
    for number in range(4):
        rows = [(text, label if number == 1 else label[5:]) for text, label in tiny.examples(3, 8)]
        rows = [(f"{text} w{number}", label) for text, label in rows]
        files.append(tiny.write_rows(tmp_path / f"{number}.jsonl", rows))
    statuses = set()
    for seed in range(8):
        command = metatrain_command(
            material, tmp_path / f"run{seed}", named_episodes=0.5, held_out=0.25, seed=seed, steps=1
        )
        where = command.index("--tasks")
        done = tiny.run(*command[: where + 1], *files, *command[where + 2 :])
        statuses.add(done.status)
        if done.status:
            assert "--named-episodes: no data set to train on has single texts" in done.err
    assert statuses == {0, 2}


def support_texts(monkeypatch, material, workdir, **changes):
    """Return the rows of support examples that training takes, and those that it measures on."""
    drawn = []
    sampler = training.episode_sampler

    def noting(examples, spec, *given):
        drawn.append((examples, spec))
        return sampler(examples, spec, *given)

    infos = SimpleNamespace(query_aux={"accuracy": np.zeros(4)})
    stages = []
    monkeypatch.setattr(training, "train", lambda stage, params: stages.append(stage) or {})
    monkeypatch.setattr(training, "episode_sampler", noting)
    monkeypatch.setattr(training, "run_episodes", lambda *given, **settings: infos)
    command = metatrain_command(material, workdir, named_episodes=1.0, **changes)
    tiny.succeed(*command)
    stages[0].measure({})
    return [data.sample_episodes(examples, spec, 0, 0, 20) for examples, spec in drawn], drawn


@pytest.mark.parametrize("held_out", [0, 0.25])
def test_metatrain_takes_names_but_is_not_measured_on_them(
    material, tmp_path, monkeypatch, held_out
):
    (trained, measured), drawn = support_texts(
        monkeypatch, material, tmp_path / "run", ways=2, held_out=held_out
    )
    (task,) = drawn[0][0]
    assert (trained.support == task.name_rows[trained.classes]).all()
    assert (measured.support < task.name_rows.min()).all()


def test_a_run_with_names_resumes_and_differs_from_one_without(material, tmp_path):
    changes = {"algorithm": "protonet", "inner_steps": 0, "named_episodes": 0.5}
    whole, resumed, plain = (tmp_path / name for name in ("whole", "resumed", "plain"))
    tiny.succeed(*metatrain_command(material, whole, **changes))
    shutil.copytree(whole, resumed)
    (resumed / "results.json").unlink()
    shutil.rmtree(resumed / "checkpoints" / "4")
    tiny.succeed(*metatrain_command(material, resumed, **changes))
    tiny.succeed(*metatrain_command(material, plain, **changes | {"named_episodes": 0.0}))
    losses = [[row.get("loss") for row in tiny.rows_of(run)] for run in (whole, resumed, plain)]
    assert losses[0] == losses[1] != losses[2]
