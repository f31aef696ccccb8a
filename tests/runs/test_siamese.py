"""Pairs of texts with a sentence encoder, which reads each text by itself."""

import json
import logging
import random

import numpy as np
import pytest
import tiny

import metajax
from metajax.commands import evaluate as evaluating
from metajax.commands import finetune as finetuning
from metajax.commands.evaluate import evaluate
from metajax.config.groups import ModelSettings
from metajax.config.inner import InnerSettings, MethodSettings
from metajax.config.settings import EvaluateSettings, FinetuneSettings
from metajax.data import TaskData
from metajax.models.metadata import encodes_texts
from metajax.runs import eval_set
from metajax.runs.classifier import Classifier, logits_of, open_classifier, probabilities
from metajax.runs.described import describe_source
from metajax.runs.eval_set import choose_protocol
from metajax.runs.features import features_of
from metajax.runs.few_shot import open_few_shot
from metajax.runs.methods import adapt_to, method_of, prepare
from metajax.runs.original import prepare_weights
from metajax.runs.record import read_record
from metajax.runs.task_data import load, tokenized

pytestmark = pytest.mark.xdist_group("pairs apart")  # They share their runs.


def draw_pairs(count, seed):
    """Pairs of equal texts, which are similar, and of different ones, which are not."""
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(tiny.WORDS, k=4)) for _ in range(count)]
    others = [text if row % 2 else texts[row - 1] for row, text in enumerate(texts)]
    return texts, others, ["same" if row % 2 else "other" for row in range(count)]


PAIRS, NEW = draw_pairs(16, 1), draw_pairs(30, 2)
GIVEN, ASKED = (list(zip(*pairs[:2])) for pairs in (PAIRS, NEW))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("encoder"), head="encoder", pooling="mean")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "pairs.csv"
    path.write_text("\n".join(map(",".join, [("text", "text_pair", "label"), *zip(*PAIRS)])))
    return path


@pytest.fixture(scope="module")
def adapted(encoder, tasks, tmp_path_factory):
    """A run of `linear` on pairs, and its export."""
    folder = tmp_path_factory.mktemp("adapted")
    given = ("--tasks", tasks, "--workdir", folder / "run", "--method", "linear")
    tiny.succeed("adapt", "--model", encoder, *given, "--dev", tasks)
    tiny.succeed("export", "--model", folder / "run", "--output", folder / "plain")
    return folder


def test_only_a_sentence_encoder_reads_pairs_apart(encoder, material, caplog):
    assert encodes_texts(str(encoder))
    assert not encodes_texts(str(material.bert))
    where = ModelSettings(model=str(encoder))
    few_shot = open_few_shot(str(encoder), where, InnerSettings(), 2)
    pairs = TaskData("pairs", ["a"], ["b"], np.zeros(1, np.int32), ("same", "other"))
    singles = pairs._replace(pairs=None)
    for method, task, apart in (
        ("linear", pairs, True),
        ("choose", pairs, True),
        ("linear", singles, False),
        ("steps", pairs, False),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert prepare(few_shot, method, task)[0].model.siamese is apart
        how = "each by itself, and compared" if apart else "together, as one text"
        line = [f"pairs: the two texts of a pair are read {how}"]
        assert caplog.messages == (line if task is pairs else [])


@pytest.mark.parametrize("method", ["prototypes", "linear", "contrastive", "finetune"])
def test_equal_texts_are_told_from_others(encoder, tmp_path, method):
    own = metajax.FewShotClassifier(str(encoder), method=method).fit(GIVEN, PAIRS[2])
    assert own.score(ASKED, NEW[2]) > 0.85
    own.save(tmp_path)
    again = metajax.FewShotClassifier.load(tmp_path)
    np.testing.assert_allclose(again.predict_proba(ASKED), own.predict_proba(ASKED), atol=1e-6)


def test_a_long_pair_leaves_no_row_that_is_too_long(encoder):
    """Packed rows may be longer than the longest pair, but not than the model's positions."""
    positions = metajax.from_pretrained(encoder)[0].config.max_position_embeddings
    long, usual = (" ".join(["river"] * count) for count in (positions, positions // 3))
    given = [(long, long), *[(usual, usual)] * 23]
    own = metajax.FewShotClassifier(str(encoder), method="linear").fit(given, ["a", "b"] * 12)
    found = own.predict_proba(given)
    np.testing.assert_allclose(found[1], own.predict_proba(given[1:2])[0], atol=1e-6)


def test_the_commands_read_pairs_as_the_library_does(encoder, adapted, tmp_path):
    run = adapted / "run"
    assert read_record(run)["model"]["siamese"] is True
    assert json.loads((run / "results.json").read_text())["dev"]["accuracy"] == 1
    own = metajax.FewShotClassifier(str(encoder), method="linear").fit(GIVEN, PAIRS[2])
    (tmp_path / "new.txt").write_text("".join("\t".join(pair) + "\n" for pair in ASKED))
    exported = ("--output", tmp_path / "out", "--format", "sentence-transformers")
    tiny.succeed("export", "--model", run, *exported)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "metajax predict --model out" in card
    assert "becomes a vector of 16 numbers" in card
    for path in (run, adapted / "plain", tmp_path / "out"):
        classifier = open_classifier(str(path), None)
        logits = np.stack(list(logits_of(classifier, NEW[0], NEW[1], 64)))
        odds = np.log(own.predict_proba(ASKED))
        np.testing.assert_allclose(np.diff(logits), np.diff(odds), atol=1e-4)
        out = tiny.succeed("predict", "--model", path, "--input", tmp_path / "new.txt")
        assert [line.split("\t")[0] for line in out.splitlines()] == NEW[2]
        (tmp_path / "one.txt").write_text("w1\n")
        done = tiny.run("predict", "--model", path, "--input", tmp_path / "one.txt")
        assert done.status == 2
        assert "has single texts, but the model was trained on pairs" in done.err


@pytest.fixture(scope="module")
def trained(encoder, tasks, tmp_path_factory):
    """A run of metatrain from a sentence encoder."""
    path = tmp_path_factory.mktemp("trained") / "run"
    size = ("--ways", 2, "--shots", 2, "--queries", 2, "--meta-batch-size", 8)
    steps = ("--steps", 1, "--warmup", 0, "--inner-steps", 1, "--held-out", 0)
    given = ("--tasks", tasks, "--workdir", path, *size, *steps)
    tiny.succeed("metatrain", "--model", encoder, *given)
    return path


def test_pairs_are_read_as_the_weights_in_use_read_them(encoder, trained, tasks, tmp_path):
    """The original weights are a sentence encoder, and the trained ones have read pairs."""
    shares = {}
    for weights in ("checkpoint", "original"):
        own = metajax.FewShotClassifier(str(trained), method="linear", weights=weights)
        shares[weights] = own.fit(GIVEN, PAIRS[2]).predict_proba(ASKED)
    plain = metajax.FewShotClassifier(str(encoder), method="linear").fit(GIVEN, PAIRS[2])
    np.testing.assert_allclose(shares["original"], plain.predict_proba(ASKED), atol=1e-6)
    assert np.abs(shares["original"] - shares["checkpoint"]).max() > 0.1
    given = ("--tasks", tasks, "--workdir", tmp_path / "run", "--weights")
    command = ("adapt", "--model", trained, *given)
    done = tiny.run(*command, "choose", "--method", "linear")
    assert (done.status, "give --weights original or checkpoint" in done.err) == (2, True)
    tiny.succeed(*command, "original", "--method", "linear")
    assert read_record(tmp_path / "run")["model"]["siamese"] is True
    where, how = ModelSettings(model=str(trained)), MethodSettings(weights="choose")
    few_shot = open_few_shot(str(trained), where, InnerSettings(), 2)
    (task,) = load(FinetuneSettings(model="", tasks=(str(tasks),), workdir="run"), split="train")
    prepared, model, original = prepare_weights(few_shot, where, how, task)
    for each in (prepared.model, model, original.model):
        assert not each.siamese


@pytest.mark.parametrize("format_", [(), ("--format", "sentence-transformers")])
def test_exported_weights_read_pairs_as_their_run_does(trained, tmp_path, format_):
    tiny.succeed("export", "--model", trained, "--output", tmp_path / "out", *format_)
    assert not encodes_texts(str(tmp_path / "out"))
    config = tmp_path / "out" / "config.json"
    values = json.loads(config.read_text())
    assert values["metajax"].pop("siamese") is False
    config.write_text(json.dumps(values))
    assert encodes_texts(str(tmp_path / "out"))


@pytest.mark.parametrize("name", ["run", "plain"])
def test_finetune_puts_a_new_head_on_one_that_compares_texts(adapted, tasks, tmp_path, name):
    """Also with as many classes: it reads the two texts of a pair together."""
    path, where = str(adapted / name), {"tasks": (str(tasks),), "workdir": str(tmp_path / "run")}
    settings = FinetuneSettings(model=path, pooling="mean", steps=1, **where)
    source = finetuning._open_source(settings, load(settings, split="train"))
    found = describe_source(path, settings, head="classification", num_labels=(2,), pooling="mean")
    for each in (source, found):
        assert not each.model.siamese
        assert each.params["classifier"]["kernel"].shape == (1, 16, 2)
    assert found.encodes_texts == (name == "run")
    tiny.succeed("finetune", "--model", path, "--tasks", tasks, "--workdir", tmp_path, "--steps", 1)
    assert "siamese" not in read_record(tmp_path)["model"]


def test_a_run_on_pairs_is_adapted_to_others(encoder, tasks, tmp_path):
    given = ("--tasks", tasks, "--method", "finetune", "--workdir")
    tiny.succeed("adapt", "--model", encoder, *given, tmp_path / "first")
    tiny.succeed("adapt", "--model", tmp_path / "first", *given, tmp_path / "second")
    assert read_record(tmp_path / "second")["model"]["siamese"] is True


def evaluation(encoder, tasks, *methods):
    size = {"ways": 2, "shots": 3, "queries": 4, "episodes": 3}
    return EvaluateSettings(model=str(encoder), tasks=(str(tasks),), methods=methods, **size)


@pytest.fixture(scope="module")
def episodes(encoder, tasks):
    """Three episodes of pairs, apart: the network, the pairs, and their rows and labels."""
    settings = evaluation(encoder, tasks)
    few_shot = open_few_shot(str(encoder), settings, InnerSettings(), 2)
    (task,) = load(settings, split="train")
    siamese = few_shot.model.replace(siamese=True)
    return few_shot, task, choose_protocol(settings, [task]).open(siamese, 16)


@pytest.mark.parametrize("method", ["prototypes", "linear", "contrastive", "finetune"])
def test_an_evaluation_reads_pairs_apart(encoder, tasks, episodes, method):
    """It adapts to the support set of each episode as `adapt` does."""
    few_shot, task, drawn = episodes
    (chunk,), accuracies = drawn.episodes, []
    for t in range(3):
        parts = []
        for rows, labels in (
            (chunk.support[t], chunk.support_labels[t]),
            (chunk.query[t], chunk.query_labels[t]),
        ):
            texts, pairs = ([side[row] for row in rows] for side in (task.texts, task.pairs))
            parts.append(task._replace(texts=texts, pairs=pairs, labels=labels))
        support, query = parts
        prepared, model = prepare(few_shot, method, support)
        (examples,) = tokenized([support], model, 16)
        params = adapt_to(prepared, examples, method_of(method), chooses=False).params
        shares = probabilities(Classifier(model, params, 0, 16, None), query.texts, query.pairs, 8)
        accuracies.append(np.mean(shares.argmax(1) == query.labels))
    (row,) = evaluate(evaluation(encoder, tasks, method))
    np.testing.assert_allclose(row.accuracies, accuracies)


def test_the_frozen_features_of_pairs_have_the_scale_of_adapt(episodes):
    few_shot, task, drawn = episodes
    sides = []
    for texts in (task.texts, task.pairs):
        (alone,) = tokenized([task._replace(texts=texts, pairs=None)], few_shot.model, 16)
        raw = few_shot.model.replace(feature_norm=None)
        vectors = features_of(raw, few_shot.params, alone)
        sides.append(np.sqrt(10) * vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    u, v = sides
    expected = np.concatenate([np.abs(u - v), u * v], 1)
    found = evaluating._frozen_features(few_shot, drawn)
    np.testing.assert_allclose(found[0], expected, atol=1e-4)


def test_only_the_tokens_that_a_method_reads_are_made(encoder, tasks, monkeypatch):
    made = []

    def tokenize(tasks, model, length):
        made.append(model.siamese)
        return tokenized(tasks, model, length)

    monkeypatch.setattr(eval_set, "tokenized", tokenize)
    evaluate(evaluation(encoder, tasks, "prototypes", "knn"))
    assert made == [True]
    evaluate(evaluation(encoder, tasks, "same-steps", "prototypes"))
    assert made[1:] == [False, True]


def test_the_prompt_is_put_before_both_texts(encoder, tmp_path):
    changes = {"pooling": "mean", "prompt": "w7 w8 "}
    prompted = tiny.write_model(tmp_path / "prompted", head="encoder", **changes)
    by_hand = [tuple(f"w7 w8 {text}" for text in pair) for pair in GIVEN]
    given = metajax.FewShotClassifier(str(prompted), method="linear").fit(GIVEN, PAIRS[2])
    own = metajax.FewShotClassifier(str(encoder), method="linear").fit(by_hand, PAIRS[2])
    found, expected = given.predict_proba(GIVEN), own.predict_proba(by_hand)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_similarities_are_learned(encoder):
    numbers = [5.0 if label == "same" else 0.0 for label in PAIRS[2]]
    expected = [5.0 if label == "same" else 0.0 for label in NEW[2]]
    for method in ("linear", "finetune"):
        own = metajax.FewShotRegressor(str(encoder), method=method).fit(GIVEN, numbers)
        assert np.corrcoef(own.predict(ASKED), expected)[0, 1] > 0.8
