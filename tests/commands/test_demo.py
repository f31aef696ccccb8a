"""The demo's data, from made-up modules, and its settings of each stage."""

import csv
import json
from collections import Counter
from types import SimpleNamespace

import pytest

from metajax.commands import demo as demo_module
from metajax.commands.demo import demo
from metajax.commands.predict import Prediction
from metajax.config.settings import DemoSettings
from metajax.models import from_pretrained
from metajax.runs import demo_data, demo_documents

MODULES, EXAMPLES = 46, 22


def sentence(module, number):
    return f"Function {number} of module {module} does something."


def function(name, docstring):
    return f'def {name}():\n    """{docstring}"""\n\n\n'


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A standard library and a package, also with docstrings that are not examples."""
    stdlib, packages = tmp_path / "stdlib", tmp_path / "packages"
    for folder in (stdlib / "test", stdlib / "big", packages / "numpy" / "linalg"):
        folder.mkdir(parents=True)

    def module(name, count=EXAMPLES):
        own = [function(f"f{n}", sentence(name, n)) for n in range(count)]
        shared = function("g", "This sentence is in each of the modules.")
        others = function("h", "Too short a sentence.") + function("i", "word " * 41)
        more = function("j", f"A first part\n    of {name} in two lines.\n\n    A second part.")
        return "".join(own) + shared + others + more

    for n in range(MODULES - 2):
        (stdlib / f"module{n}.py").write_text(module(f"module{n}"))
    (stdlib / "big" / "part.py").write_text(module("big"))
    (stdlib / "small.py").write_text(module("small", 18))
    (stdlib / "_private.py").write_text(module("_private"))
    (stdlib / "test" / "inner.py").write_text(module("inner"))
    (packages / "numpy" / "linalg" / "_part.py").write_text(module("linalg"))
    paths = {"stdlib": str(stdlib), "purelib": str(packages)}
    monkeypatch.setattr(demo_data, "sysconfig", SimpleNamespace(get_path=paths.get))


def lines_of(path):
    return path.read_text().splitlines()


@pytest.mark.usefixtures("library")
def test_the_demo_holds_modules_out(tmp_path):
    files = demo_data.write_data(tmp_path / "data", 0)
    rows = [json.loads(line) for line in lines_of(files.tasks)]
    names = {row["label"] for row in rows}
    assert names == {f"module{n}" for n in range(MODULES - 2)} | {"big", "numpy.linalg"}
    for name in names:
        known = name.removeprefix("numpy.")
        expected = {sentence(known, n) for n in range(EXAMPLES)}
        expected.add(f"A first part of {known} in two lines.")
        assert {row["text"] for row in rows if row["label"] == name} == expected
    train, test = lines_of(files.train_classes), lines_of(files.test_classes)
    assert (len(train), len(test)) == (MODULES - 40, 40)
    assert {*train, *test} == names
    # The text has no held-out modules, but it has modules that are too small for a class.
    text = set(lines_of(files.text))
    assert text >= {sentence("small", n) for n in range(18)}
    for name in names:
        own = {row["text"] for row in rows if row["label"] == name}
        assert own <= text if name in train else not own & text
    other = demo_data.write_data(tmp_path / "other", 1)
    assert lines_of(other.test_classes) != test
    # Existing files are kept.
    assert demo_data.write_data(tmp_path / "data", 1) == files
    assert lines_of(files.test_classes) == test


@pytest.mark.parametrize("kept_step", [0, 24])
def test_the_end_of_the_demo_says_whether_the_start_was_kept(tmp_path, kept_step):
    places = demo_module._Places.of(tmp_path)
    (tmp_path / "metatrain").mkdir()
    (tmp_path / "metatrain" / "results.json").write_text(json.dumps({"kept_step": kept_step}))
    start = "On docstrings, checkpoint has the weights from before meta-training"
    assert (start in demo_module._closing(places, 1.0)) == (kept_step == 0)


@pytest.mark.usefixtures("library")
def test_the_demos_new_task_is_of_five_modules_held_out(tmp_path):
    files = demo_data.write_data(tmp_path, 0)
    new = demo_data.write_new_task(tmp_path, files, 5)
    rows, others = (
        [(row["text"], row["label"]) for row in csv.DictReader(lines_of(path))]
        for path in (new.tasks, new.dev)
    )
    labels = {label for _, label in rows}
    assert len(labels) == 5
    assert labels <= set(lines_of(files.test_classes))
    assert (len(rows), len(others)) == (25, 5 * (EXAMPLES + 1 - 5))
    assert not set(rows) & set(others)
    known = {(row["text"], row["label"]) for row in map(json.loads, lines_of(files.tasks))}
    assert {*rows, *others} <= known
    assert set(new.questions) <= set(others)
    assert [label for _, label in new.questions] == list(dict.fromkeys(label for _, label in rows))


def source(module, number, length):
    return f"# {module}, file {number}.\n".ljust(length, ".")


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Source files of modules, three of which are held out: held, out and two."""
    folder, listed = tmp_path / "sources", []
    folder.mkdir()

    def add(module, name, text):
        path = folder / f"{module}-{name}"
        path.write_text(text)
        listed.append((module, path))

    for module in ("a", "b", "c", "held", "out"):
        for number in range(14):
            add(module, number, source(module, number, 4000))
        add(module, "short", source(module, 99, 3999))
    add("long", 0, source("long", 0, 6001))
    for module in ("one", "two"):
        for number in range(3):
            add(module, number, source("both", number, 4000))
    monkeypatch.setattr(demo_documents, "module_files", lambda: iter(listed))
    files = demo_data.DemoData.of(tmp_path)
    files.test_classes.write_text("held\nout\ntwo\n")
    return files


def texts_of(path):
    return [json.loads(line)["text"] for line in lines_of(path)]


def test_the_demos_documents_are_files_of_modules_held_out_or_not(tmp_path, sources):
    files = demo_documents.write_documents(tmp_path / "data", sources, 0)
    train, test = texts_of(files.train), texts_of(files.test)
    assert len({*train, *test}) == len(train) + len(test)
    counts = {
        part: Counter(text.split(",")[0].removeprefix("# ") for text in texts)
        for part, texts in (("train", train), ("test", test))
    }
    both = [counts[part].pop("both", 0) for part in counts]
    assert sum(both) == 3
    assert counts == {
        "train": {"a": 12, "b": 12, "c": 12, "long": 1},
        "test": {"held": 4, "out": 4},
    }
    assert {len(text) for text in (*train, *test)} == {4000, 6000}
    other = demo_documents.write_documents(tmp_path / "other", sources, 1)
    assert set(texts_of(other.test)) != set(test)
    # Existing files are kept.
    before = files.decoder.joinpath("model.safetensors").read_bytes()
    assert demo_documents.write_documents(tmp_path / "data", sources, 1) == files
    assert files.decoder.joinpath("model.safetensors").read_bytes() == before
    assert texts_of(files.test) == test


def test_the_demo_tests_on_at_most_so_many_files(tmp_path, sources, monkeypatch):
    monkeypatch.setattr(demo_documents, "_TEST_FILES", 3)
    assert len(texts_of(demo_documents.write_documents(tmp_path, sources, 0).test)) == 3


def test_the_demos_decoder_is_random_and_knows_the_characters_of_its_texts(tmp_path):
    texts = [source("a", number, 40) for number in range(4)]
    decoders = [tmp_path / str(seed) for seed in (0, 1)]
    for seed, decoder in enumerate(decoders):
        demo_documents.write_decoder(decoder, texts, seed, vocabulary=300, width=16, blocks=1)
    weights = [decoder.joinpath("model.safetensors").read_bytes() for decoder in decoders]
    assert len(weights[0]) == len(weights[1])
    assert weights[0] != weights[1]
    model, _ = from_pretrained(str(decoders[0]), "causal_lm")
    assert model.config.model_type == "llama"
    text = source("a", 3, 40) + "é"
    ids = model.tokenizer.encode(text)
    assert model.tokenizer.decode(ids) == text
    assert len(ids) < len(text)
    assert max(ids) < model.config.vocab_size <= 512


def test_what_the_demo_asks_of_each_stage(tmp_path, monkeypatch, capsys, sources):
    """Meta-training sees the training modules, and the evaluation those held out."""
    asked, results = {}, {}

    def stage(name, *outcomes):
        asked[name], results[name] = [], iter(outcomes)

        def run(settings):
            asked[name].append(settings)
            return next(results[name])

        monkeypatch.setattr(demo_module, name, run)

    perplexities = [{"perplexity": value} for value in (4321.0, 123.0, 501.0, 30.0)]
    stage(
        "pretrain",
        *({"before": b, "after": a} for b, a in (perplexities[:2], perplexities[2:])),
    )
    stage("metatrain", None, None)
    stage("adapt", None)
    stage("report", None)
    stage("evaluate", [SimpleNamespace(episodes=56)], ["rows of documents"])
    monkeypatch.setattr(
        demo_module,
        "table",
        lambda rows: "BY CHUNK" if rows == ["rows of documents"] else "THE TABLE",
    )
    monkeypatch.setattr(demo_module, "_show_predictions", lambda *given: None)
    library = {f"m{n}": [sentence(n, k) for k in range(22)] for n in range(46)}
    monkeypatch.setattr(demo_data, "_docstrings", lambda: library)
    demo(DemoSettings(workdir=str(tmp_path / "demo"), model="weights", seed=3))
    files = demo_data.DemoData.of(tmp_path / "demo" / "data")
    documents = demo_documents.DocumentData.of(tmp_path / "demo" / "data")
    pretrain, metatrain, evaluate, adapt, report = (
        asked[name][0] for name in ("pretrain", "metatrain", "evaluate", "adapt", "report")
    )
    assert pretrain.model == "weights"
    assert metatrain.model == pretrain.workdir
    assert evaluate.model == adapt.model == metatrain.workdir
    assert pretrain.text == (str(files.text),)
    assert metatrain.tasks == evaluate.tasks == (str(files.tasks),)
    assert metatrain.classes == str(files.train_classes)
    assert evaluate.classes == str(files.test_classes)
    assert adapt.tasks == (str(tmp_path / "demo" / "data" / "new_task.csv"),)
    assert adapt.dev == str(tmp_path / "demo" / "data" / "new_task_dev.csv")
    assert [each.seed for each in (pretrain, metatrain, evaluate)] == [3, 3, 3]
    assert [each.max_length for each in (metatrain, evaluate, adapt)] == [24, 24, 24]
    assert (evaluate.episodes, evaluate.ways, evaluate.shots) == (56, None, None)
    assert metatrain.meta_batch_size % 2 == pretrain.batch_size % 16 == 0
    own_pretrain, own_metatrain, own_evaluate = (
        asked[name][1] for name in ("pretrain", "metatrain", "evaluate")
    )
    assert own_pretrain.model == str(documents.decoder)
    assert own_metatrain.model == own_pretrain.workdir
    assert own_evaluate.model == own_metatrain.workdir
    assert own_pretrain.text == own_metatrain.tasks == (f"documents:{documents.train}",)
    assert own_evaluate.tasks == (f"documents:{documents.test}",)
    assert own_evaluate.methods == ("checkpoint", "same-steps", "none")
    own = (own_pretrain, own_metatrain, own_evaluate)
    assert [each.seed for each in own] == [3, 3, 3]
    assert [each.max_length for each in own] == [64, 64, 64]
    workdirs = [run.workdir for run in (pretrain, metatrain, adapt, own_pretrain, own_metatrain)]
    assert len(set(workdirs)) == 5
    assert report.runs == tuple(workdirs)
    assert report.evaluations == (own_evaluate.output, evaluate.output)
    out = capsys.readouterr().out
    assert "perplexity on held-out docstrings: 4,321 -> 123" in out
    assert "perplexity on held-out source files: 501 -> 30" in out
    assert "the same on 40 modules" in out
    assert "56 episodes:\n\nTHE TABLE\n" in out
    assert "after each chunk:\n\nBY CHUNK\n" in out
    assert all(workdir in out for workdir in workdirs)


@pytest.mark.parametrize(("devices", "size"), [(1, 16), (3, 18), (32, 32)])
def test_the_demos_batches_are_the_same_on_each_device(devices, size, monkeypatch):
    monkeypatch.setattr(demo_module.jax, "local_device_count", lambda: devices)
    assert demo_module._for_all_devices(16) == size


def test_the_demo_shows_each_question_with_its_own_answer(monkeypatch, capsys):
    questions = [("a text", "truth0"), ("another", "truth1")]
    found = [
        Prediction(f"guess{n}", ((f"guess{n}", 0.25 + n / 2), ("other", 0.1)), True)
        for n in range(2)
    ]
    monkeypatch.setattr(demo_module, "open_classifier", lambda model, task: model)
    seen = {}
    monkeypatch.setattr(
        demo_module, "label", lambda model, texts, *more: seen.update({model: texts}) or found
    )
    demo_module._show_predictions(SimpleNamespace(adapt="run"), questions)
    assert seen == {"run": ["a text", "another"]}
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [
        ["guess0", "0.25", "truth0", "a", "text"],
        ["guess1", "0.75", "truth1", "another"],
    ]
