"""Check the numbers of adapt and predict against a second computation."""

import json

import jax
import numpy as np
import pytest
import scipy.special
import tiny
from sklearn import metrics

from metajax import data
from metajax.commands import adapt
from metajax.config.settings import AdaptSettings
from metajax.runs import choice
from metajax.runs.classifier import open_classifier
from metajax.runs.descent import Descent
from metajax.runs.few_shot import FewShot
from metajax.runs.inner import DEFAULTS
from metajax.runs.source import Source, open_source
from metajax.runs.task_data import tokenized
from metajax.training import checkpoint
from tests.workdirs import write_workdir

STABLE_RATE = 0.004


def left_out(monkeypatch, *, prototypes, steps):
    """Label this many of six left-out examples correctly."""
    right = lambda self, rate: (prototypes if rate is None else steps, 6)  # noqa: E731
    monkeypatch.setattr(Descent, "left_out", right)


def test_adapt_finds_the_largest_rate_at_which_no_step_raises_the_loss(
    material, tmp_path, monkeypatch
):
    left_out(monkeypatch, prototypes=2, steps=3)

    def adapted(name, *rates):
        where = {"model": material.bert, "tasks": (material.new,), "workdir": tmp_path / name}
        monkeypatch.setattr(choice, "_RATES", rates)
        return adapt.adapt(AdaptSettings(**where, remat=True))  # Compiles faster.

    # The loss rises at the first step, at the second step, or at the last step (although it ends
    # lower).
    found = adapted("looked for", 0.07, 0.016, 0.006, STABLE_RATE, 0.001)
    assert found["inner_lr"] == STABLE_RATE
    # If every rate raises the loss, the last rate is used.
    last = adapted("too large", 0.016, 0.006)
    assert last["inner_lr"] == 0.006
    losses = [*last["loss"], last["loss_after"]]
    assert list(np.diff(losses) > 0) == [False, False, True]
    assert losses[-1] < losses[0]
    # A run keeps its rate, even if the search would now give another one.
    assert adapted("looked for", 1e-7) == found
    shares = {"prototypes": 2 / 6, "steps": 3 / 6}
    assert found["left_out"] == {"examples": 6, "inner_lr": STABLE_RATE} | shares

    record = json.loads((tmp_path / "looked for" / "run.json").read_text())
    assert record["settings"]["inner_lr"] is None
    rows = [{"step": step, "loss": loss} for step, loss in enumerate(found["loss"], start=1)]
    assert tiny.rows_of(tmp_path / "looked for") == rows
    assert checkpoint.load(tmp_path / "looked for" / "checkpoints").step == 3
    # The loss is the loss of the saved parameters.
    classifier = open_classifier(str(tmp_path / "looked for"), None)
    model = classifier.model
    batch = tiny.batch_of(*tokenized(data.load_tasks([str(material.new)]), model, 32))
    logits = np.asarray(jax.jit(model)(classifier.params, batch).logits)
    shares = scipy.special.softmax(logits, axis=1)[np.arange(6), batch["labels"]]
    assert found["loss_after"] == pytest.approx(-np.log(shares).mean(), rel=1e-4)


def test_adapt_says_how_well_other_examples_are_labelled(material, tmp_path):
    """`--dev` may be given later, and does not change the model. One label has no example.

    Meta-trained weights have their number of steps.
    """
    rows = [row for row in tiny.examples(3, 5, seed=13, first=8) if row[1] != "topic10"]
    dev = tiny.write_rows(tmp_path / "dev.csv", rows)
    own = {"inner_lr": STABLE_RATE, "inner_steps": 1}
    meta_trained, run = tmp_path / "meta-trained", tmp_path / "run"
    network = {"head": "encoder", "pooling": "mean"}
    write_workdir(meta_trained, material.bert, "metatrain", network=network, **own)
    command = ["adapt", "--model", meta_trained, "--tasks", material.new, "--workdir", run]
    command += ["--max-length", 4, "--remat", "--inner-lr", STABLE_RATE]
    tiny.succeed(*command)
    before = checkpoint.load(run / "checkpoints").params
    tiny.succeed(*command, "--dev", dev)
    results = json.loads((run / "results.json").read_text())
    assert (results["inner_lr"], len(results["loss"])) == (STABLE_RATE, 1)
    tiny.assert_same_bits(checkpoint.load(run / "checkpoints").params, before)
    stdin = "\n".join(text for text, _ in rows).encode()
    found = tiny.succeed("predict", "--model", run, stdin=stdin).splitlines()
    labels, confusion = ["topic10", "topic8", "topic9"], np.zeros((3, 3), int)
    for (_, truth), line in zip(rows, found):
        confusion[labels.index(truth), labels.index(line.split("\t")[0])] += 1
    assert (confusion != confusion.T).any()
    assert json.loads((run / "run.json").read_text())["pairs"] == [False]
    assert results["labels"] == labels
    truths = [labels.index(truth) for _, truth in rows]
    guesses = [labels.index(line.split("\t")[0]) for line in found]
    # The probabilities that predict prints are rounded; none is at the border of a bin.
    confidences = np.array([float(line.split("\t")[1]) for line in found])
    expected = 0
    for low in range(15):
        here = (confidences > low / 15) & (confidences <= (low + 1) / 15)
        right = np.equal(truths, guesses)[here]
        expected += here.mean() * abs(right.mean() - confidences[here].mean()) if here.any() else 0
    recall = metrics.recall_score  # Of the true labels only, without a warning about the others.
    balanced = recall(truths, guesses, average="macro", labels=sorted(set(truths)))
    assert results["dev"] == {
        "examples": 10,
        "accuracy": np.trace(confusion) / 10,
        "macro_f1": pytest.approx(metrics.f1_score(truths, guesses, average="macro")),
        "balanced_accuracy": pytest.approx(balanced),
        "calibration_error": pytest.approx(expected, abs=1e-4),
        "confusion": confusion.tolist(),
    }


def test_predict_gives_the_softmax_of_the_head_that_is_named(material, tmp_path):
    """Each line, in order, is cut to the run's length; a head only has its classes."""
    names = (("no", "yes"), (), ("one", "two", "three"))
    network = {"head": "classification", "num_labels": (2, 1, 3), "label_names": names}
    network["pooling"] = "mean"
    settings = {"tasks": ("pairs", "scores", "texts"), "max_length": 6}
    run = tmp_path / "run"
    pairs = [True, False, False]
    write_workdir(run, material.bert, "finetune", network=network, pairs=pairs, **settings)
    texts = [text for text, _ in tiny.examples(3, 3, seed=4)]
    source = open_source(str(run))
    forward = jax.jit(source.model)

    def logits_of(head, pairs, length):
        how = {"max_length": length, "truncation": True, "padding": "max_length"}
        batch = source.model.tokenizer(texts, pairs, return_tensors="np", **how)
        batch = {**batch, "task": np.full(len(texts), head)}
        return np.asarray(forward(source.params, batch).logits)

    def predicted(task, lines, *more):
        command = ("predict", "--model", run, "--task", task, "--batch-size", 4, *more)
        rows = tiny.succeed(*command, stdin="\n".join(lines).encode()).splitlines()
        labels, numbers = zip(*(row.split("\t") for row in rows))
        return list(labels), [float(number) for number in numbers]

    others = [text.split(" ")[-1] for text in texts]
    both = ["\t".join(pair) for pair in zip(texts, others)]
    for number, task, lines, pair, length, more in (
        (0, "pairs", both, others, 6, ()),
        (2, "texts", texts, None, 6, ()),
        (2, "texts", texts, None, 4, ("--max-length", 4)),
    ):
        scores = logits_of(number, pair, length)[:, : len(names[number])]
        shares = scipy.special.softmax(scores, axis=1)
        labels, found = predicted(task, lines, *more)
        assert labels == [names[number][best] for best in shares.argmax(1)]
        np.testing.assert_allclose(found, shares.max(1), atol=1e-4)
        assert np.ptp(found) > 1e-3
    labels, found = predicted("scores", texts)
    assert set(labels) == {"value"}
    np.testing.assert_allclose(found, logits_of(1, None, 6)[:, 0], atol=1e-4)


def test_a_rate_that_is_given_is_taken(material, tmp_path, monkeypatch):
    left_out(monkeypatch, prototypes=6, steps=0)
    where = {"model": material.bert, "tasks": (material.new,)}
    for steps in (0, 1):
        given = {"workdir": tmp_path / f"{steps}", "inner_lr": 0.5, "inner_steps": steps}
        found = adapt.adapt(AdaptSettings(**where, **given))
        assert (found["inner_lr"], len(found["loss"])) == (0.5, steps)


def test_the_prototypes_are_kept_where_the_steps_do_not_win(
    material, tmp_path, monkeypatch, caplog
):
    """A repeated run also keeps its choice, whatever the comparison would now give."""
    caplog.set_level("INFO", "metajax")
    left_out(monkeypatch, prototypes=4, steps=4)
    where = {"model": material.bert, "tasks": (material.new,)}
    kept = AdaptSettings(**where, workdir=tmp_path / "kept")
    found = adapt.adapt(kept)
    assert (found["inner_lr"], found["loss"]) == (None, [])
    assert (found["left_out"]["prototypes"], found["left_out"]["steps"]) == (4 / 6, 4 / 6)
    rate = found["left_out"]["inner_lr"]
    assert (
        "of 6 held-out examples, the steps label 4 correctly and the prototypes without steps 4; "
        f"the prototypes are used (to use steps, give --inner-lr {rate:g} and a new --workdir)"
    ) in caplog.text
    stepless = AdaptSettings(**where, workdir=tmp_path / "stepless", inner_steps=0)
    assert found["loss_after"] == adapt.adapt(stepless)["loss_after"]
    saved, wanted = (
        checkpoint.load(tmp_path / name / "checkpoints") for name in ("kept", "stepless")
    )
    assert saved.step == 0
    tiny.assert_same_bits(saved.params, wanted.params)
    left_out(monkeypatch, prototypes=0, steps=6)
    assert adapt.adapt(kept) == found


def test_the_steps_are_taken_where_no_example_can_be_left_out(material, tmp_path, monkeypatch):
    """With one example per class, or if the head does not start from prototypes."""
    monkeypatch.setattr(choice, "_RATES", (STABLE_RATE,))
    rows = [("w1 w2", "a"), ("w3 w4", "b"), ("w5 w6", "c")]
    one_each = tiny.write_rows(tmp_path / "tasks.csv", rows)
    where = {"model": material.bert, "tasks": (one_each,), "workdir": tmp_path / "one each"}
    for changes in ({}, {"tasks": (material.new,), "workdir": tmp_path / "zero", "head": "zero"}):
        found = adapt.adapt(AdaptSettings(**where | changes))
        assert (found["inner_lr"], len(found["loss"])) == (STABLE_RATE, 3)
        assert "left_out" not in found


def test_meta_trained_weights_try_their_own_rate_first_and_adapters_larger_ones():
    def rates(stage, **inner):
        source = Source(None, None, {"record": {"stage": stage}})
        return choice._rates(FewShot(None, None, DEFAULTS | {"inner_lr": 0.05} | inner, source))

    assert rates("pretrain") == (0.3, 0.1, 0.03, 0.01, 0.003)
    assert rates("pretrain", lora=8) == (3, 1, 0.3, 0.1, 0.03, 0.01, 0.003)
    assert rates("pretrain", inner_optimizer="adam") == (0.03, 0.01, 0.003, 0.001, 0.0003)
    assert rates("metatrain") == (0.05, 0.03, 0.01, 0.003)
    assert rates("metatrain", inner_lr=2, lora=8) == (2, 1, 0.3, 0.1, 0.03, 0.01, 0.003)


def test_a_model_that_was_meta_trained_without_steps_says_so(material, tmp_path):
    meta_trained = tmp_path / "meta-trained"
    own = {"inner_lr": STABLE_RATE, "inner_steps": 0}
    write_workdir(meta_trained, material.bert, "metatrain", network={"head": "encoder"}, **own)
    command = ["adapt", "--model", meta_trained, "--tasks", material.new, "--workdir"]
    done = tiny.run(*command, tmp_path / "run")
    assert (
        f"{meta_trained}: was meta-trained without inner steps, so adapt takes none; to take "
        "steps, give --inner-steps 3 and a new --workdir"
    ) in done.err
    assert json.loads(done.out.split("written to")[0])["loss"] == []
    for steps in (0, 1):  # With the given settings.
        given = ("--inner-steps", steps, "--inner-lr", STABLE_RATE)
        done = tiny.run(*command, tmp_path / f"{steps}", *given)
        assert done.status == 0
        assert "was meta-trained" not in done.err
