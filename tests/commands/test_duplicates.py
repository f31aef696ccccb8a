"""Repeated texts in the stages: episodes, messages, and resumed runs."""

import dataclasses
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny

from metajax.commands.metatrain import _as_begun
from metajax.commands.pretrain import _report_repeated
from metajax.config.settings import AdaptSettings, EvaluateSettings, MetatrainSettings
from metajax.data import EpisodeSpec, check_episodes
from metajax.errors import InputError
from metajax.models import read_model
from metajax.runs.eval_set import choose_protocol
from metajax.runs.record import make_record
from metajax.runs.task_data import load, relabel
from metajax.runs.workdir import Run, begin, open_run

KEPT = "; with repeated texts, 20 of 32 examples repeat another"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tiny.write_model(tmp_path_factory.mktemp("model") / "bert")
    return read_model(str(path)).tokenizer


@pytest.fixture
def tasks(tmp_path):
    """Two classes of six texts. Five of the texts have two or three examples."""
    rows = [(f"w{10 * label + n}", f"c{label}") for label in (0, 1) for n in range(6)]
    rows += [row for row in rows if row[0][-1] != "5"] * 2
    path = tmp_path / "t.csv"
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    return str(path)


def protocol_of(tasks, tokenizer, **changes):
    settings = EvaluateSettings(
        model="m", tasks=(tasks,), ways=2, shots=3, queries=3, episodes=20, **changes
    )
    choice = choose_protocol(settings, load(settings, split="train"))
    return choice.open(SimpleNamespace(tokenizer=tokenizer, prompt="", siamese=False), 8)


def on_both_sides(protocol):
    """Return the texts of support and query set of each episode."""
    tokens = protocol.examples[0].tokens.input_ids
    return [
        {tuple(tokens[row]) for row in support} & {tuple(tokens[row]) for row in query}
        for chunk in protocol.episodes
        for support, query in zip(chunk.support, chunk.query)
    ]


def test_an_evaluation_has_no_text_on_both_sides(tasks, tokenizer):
    protocol = protocol_of(tasks, tokenizer)
    assert on_both_sides(protocol) == [set()] * 20
    assert protocol.description.endswith(
        "3 queries per class, each classified by itself; each text once, 20 of 32 examples are "
        "left out"
    )
    kept = protocol_of(tasks, tokenizer, keep_duplicates=True)
    assert any(on_both_sides(kept))
    assert kept.description.endswith(f"each classified by itself{KEPT}")


def test_without_equal_texts_nothing_is_said_of_them(tasks, tokenizer, tmp_path, caplog):
    lines = Path(tasks).read_text().splitlines(keepends=True)
    (tmp_path / "once.csv").write_text("".join(lines[:13]))
    for keep in (False, True):
        protocol = protocol_of(str(tmp_path / "once.csv"), tokenizer, keep_duplicates=keep)
        assert protocol.description.endswith("3 queries per class, each classified by itself")
    assert not caplog.messages


def test_published_draws_keep_no_duplicates(tasks, tmp_path, caplog):
    settings = EvaluateSettings(
        model="m", tasks=(tasks,), splits=str(tmp_path), keep_duplicates=True
    )
    with pytest.raises(InputError, match=r"^--keep-duplicates: does not apply to --splits"):
        choose_protocol(settings, load(settings, split="train"))
    assert not caplog.messages


@pytest.mark.parametrize("keep", [False, True])
def test_how_many_texts_come_again_is_logged(tasks, caplog, keep):
    settings = MetatrainSettings(model="m", tasks=(tasks,), workdir="w", keep_duplicates=keep)
    with caplog.at_level(logging.INFO):
        load(settings, split="train")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING  # It is not shown if the input is refused later.
    assert record.message.startswith(f"{tasks}: 20 of 32 examples have the text of another; ")
    assert (
        "in both support and query set" if keep else "(unless you pass --keep-duplicates)"
    ) in record.message


def test_texts_of_several_labels_are_logged(tmp_path, caplog):
    path = tmp_path / "t.csv"
    rows = ["w1,a", "w2,b", "w1 ,b", "w3,a", "w3,a", "w4,b", "w4,a", "w1,a"]
    path.write_text("\n".join(["text,label", *rows]))
    load(AdaptSettings(model="m", tasks=(path,), workdir="w"), split="train")
    message = f"{path}: 2 texts have several labels, such as 'w1' ('a' and 'b'); "
    assert caplog.messages == [f"{message}keep one label for each"]
    caplog.clear()
    (task,) = load(MetatrainSettings(model="m", tasks=(path,), workdir="w"), split="train")
    once = "an episode uses each text once (unless you pass --keep-duplicates)"
    assert caplog.messages == [
        f"{message}no episode uses them",
        f"{path}: 4 of 8 examples have the text of another; {once}",
    ]
    with pytest.raises(InputError, match="class 'a' has 1 usable texts in 5 examples"):
        check_episodes([task], EpisodeSpec(2, 1, 1))


def test_a_dev_set_that_shares_texts_with_the_training_file_is_reported(tmp_path, caplog):
    (tmp_path / "t.csv").write_text("text,text_pair,label\na,x,p\nb,y,q\nb,y,q\n")
    (tmp_path / "d.csv").write_text("text,text_pair,label\na,y,p\n b,y ,q\nb,y,p\nc,c,p\n")
    settings = AdaptSettings(model="m", tasks=(tmp_path / "t.csv",), workdir="w")
    (training,) = load(settings, split="train")
    (dev,) = load(settings, split="validation", specs=[str(tmp_path / "d.csv")])
    caplog.clear()
    found = relabel(dev, training)
    assert len(found.texts) == 4
    assert caplog.messages == [
        f"{tmp_path}/d.csv: 2 of 4 examples are also in the training file, so measurements on this "
        "file are too good"
    ]
    caplog.clear()
    relabel(dev._replace(texts=["d"] * 4), training)
    assert not caplog.messages


def test_lines_that_come_again_are_reported(caplog):
    caplog.set_level(logging.INFO)
    _report_repeated(["w1 w2", "w3", "w1  w2", "w1 w2", "w4"])
    (message,) = caplog.messages
    assert message.startswith("2 of 5 lines or documents are repeated")
    caplog.clear()
    _report_repeated(["w1", "w2"])
    assert not caplog.messages


def test_a_run_from_before_the_setting_goes_on_with_its_draws(tmp_path):
    settings = MetatrainSettings(model="m", tasks=("t",), workdir=tmp_path / "run")
    parent = {"path": "m", "sha256": "1"}

    def record_of(settings):
        return make_record("metatrain", settings, data={}, parent=parent, model={})

    assert _as_begun(settings) == settings  # There is no run yet.
    kept = dataclasses.replace(settings, keep_duplicates=True)
    run = Run(tmp_path / "run", record_of(kept))
    begin(run, lambda directory: (directory.mkdir(), (directory / "config.json").touch()))
    assert _as_begun(settings) == settings
    with pytest.raises(InputError, match="--keep-duplicates was True, is now False"):
        open_run(settings.workdir, record_of(settings))
    del run.record["settings"]["keep_duplicates"]
    (run.path / "run.json").write_text(json.dumps(run.record))
    assert _as_begun(settings) == kept
    open_run(kept.workdir, record_of(kept))
