"""`--weights`: the weights of a run, those that it started from, or a choice between them."""

import json

import numpy as np
import pytest
import scipy.special
import tiny

import metajax
from metajax.commands.adapt import adapt
from metajax.config.groups import ModelSettings
from metajax.config.inner import AlgorithmSettings, InnerSettings, MethodSettings
from metajax.config.settings import AdaptSettings
from metajax.data import TaskData
from metajax.errors import InputError
from metajax.runs.classifier import Classifier, open_classifier, probabilities
from metajax.runs.cross_validation import HeldOut, deal, hold_out
from metajax.runs.few_shot import open_few_shot
from metajax.runs.method_choice import adapt_by, pick_weights
from metajax.runs.methods import adapt_to, method_of, prepare
from metajax.runs.original import with_weights
from metajax.runs.source import open_source
from metajax.runs.task_data import load, tokenized
from tests.stage_commands import metatrain_command

ROWS = tiny.examples(3, 8)
TEXTS, LABELS = map(list, zip(*ROWS))


@pytest.fixture(scope="module")
def ruined(material, tmp_path_factory):
    """A run whose learning rate was so high that its weights have forgotten everything."""
    folder = tmp_path_factory.mktemp("ruined") / "run"
    changes = {"learning_rate": 3, "clip_norm": 100, "warmup": 0, "max_length": 16}
    with tiny.one_device():
        tiny.succeed(*metatrain_command(material, folder, **changes))
    return folder


def settings_of(material, model, workdir, **changes):
    where = {"model": str(model), "tasks": (str(material.three),), "workdir": str(workdir)}
    return AdaptSettings(**where | {"max_length": 16, "weights": "choose"} | changes)


def prepared(model, method="linear", classes=3):
    few_shot = open_few_shot(str(model), ModelSettings(model=str(model)), InnerSettings(), classes)
    names = tuple(f"topic{label}" for label in range(classes))
    return prepare(few_shot, method, TaskData("", [], None, np.zeros(0, np.int32), names))[0]


def shares_of(model):
    return probabilities(open_classifier(str(model), None), TEXTS[:5], None, 64)


def test_the_original_weights_are_those_that_the_run_started_from(chain):
    few_shot, where = prepared(chain.metatrain), ModelSettings(model=str(chain.metatrain))
    assert with_weights(few_shot, where, "checkpoint") == (few_shot, None)
    original, none = with_weights(few_shot, where, "original")
    assert none is None
    start = open_source(str(chain.pretrain), head="encoder")
    tiny.assert_same_bits(original.params, start.params)
    assert original.source.record == start.record
    assert np.any(original.params["embeddings"]["word"] != few_shot.params["embeddings"]["word"])
    assert (original.model, original.inner) == (few_shot.model, few_shot.inner)
    first, second = with_weights(few_shot, where, "choose")
    assert first is few_shot
    tiny.assert_same_bits(second.params, start.params)
    # A run that kept its start has nothing to compare.
    record = few_shot.source.record | {"step": 0}
    kept = few_shot._replace(source=few_shot.source._replace(record=record))
    assert with_weights(kept, where, "choose")[1] is kept


@pytest.mark.parametrize(
    "algorithm", [pytest.param("maml", marks=pytest.mark.slow), "leopard", "reptile"]
)
def test_an_example_has_the_logits_of_steps_that_have_not_seen_it(material, algorithm):
    spec, inner = str(material.bert), AlgorithmSettings(algorithm=algorithm, inner_lr=0.05)
    few_shot = open_few_shot(spec, ModelSettings(model=spec), inner, 3)
    settings = settings_of(material, spec, "run", max_length=128)
    (task,) = load(settings, split="train")
    few_shot, model = prepare(few_shot, "steps", task)
    (examples,) = tokenized([task], model, 128)
    folds, method = deal(task.labels, 0), method_of("steps")
    held = hold_out(few_shot, examples, method, folds, np.zeros((24, 1)))
    for fold in range(2):
        rows = np.flatnonzero(folds != fold)
        support = metajax.data.take_examples(examples, rows)
        params = few_shot.merge(adapt_to(few_shot, support, method, chooses=False).params)
        texts = [task.texts[row] for row in np.flatnonzero(folds == fold)]
        expected = probabilities(Classifier(model, params, 0, 128, None), texts, None, 64)
        found = scipy.special.softmax(held.logits[folds == fold], 1)
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-6)


def held_of(sizes):
    """Logits of two classes whose label is ahead by a size."""
    labels = np.arange(len(sizes)) % 2
    signs = np.where(np.arange(2) == labels[:, None], 0.5, -0.5)
    return HeldOut(signs * np.asarray(sizes)[:, None], labels, np.ones(len(sizes)))


def test_the_original_weights_are_used_if_they_are_ahead_by_a_standard_error():
    plain, decisions = held_of([1, 1, 1, 1, 1, 1, 1, -1]), []
    for sizes in ([6] * 8, [-1, *[6] * 7], [-1, -1, *[6] * 6], [1, 1, 1, 1, 1, 1, 1, -1]):
        other = held_of(sizes)
        losses = [
            np.log1p(np.exp(-np.asarray(row) / held.temperature()))
            for row, held in (([1, 1, 1, 1, 1, 1, 1, -1], plain), (sizes, other))
        ]
        ahead = losses[0] - losses[1]
        expected = ahead.mean() > np.std(ahead, ddof=1) / np.sqrt(8)
        tried = {"linear": plain, "original linear": other}
        weights, method, why = pick_weights(tried, "linear")
        assert (weights, method) == ("original" if expected else "checkpoint", "linear")
        assert f"original linear minus that of linear is {ahead.mean():.4f} ± " in why
        decisions.append(bool(expected))
    assert decisions == [True, False, False, False]  # Two of these are ahead in the mean alone.


def test_each_has_its_own_method():
    weak, strong, equal = held_of([1, -1] * 8), held_of([4] * 16), held_of([1, -1] * 8)
    tried = {"linear": strong, "contrastive": weak, "original linear": weak}
    assert pick_weights(tried, "contrastive")[:2] == ("checkpoint", "linear")
    tried |= {"original contrastive": equal}
    assert pick_weights(tried, "contrastive")[:2] == ("checkpoint", "linear")
    swapped = {"linear": weak, "contrastive": equal, "original linear": strong}
    swapped |= {"original contrastive": weak}
    assert pick_weights(swapped, "contrastive")[:2] == ("original", "linear")


def test_without_results_to_compare_the_checkpoint_is_used():
    held = held_of([1, -1] * 4)
    diverged = held._replace(logits=np.full((8, 2), np.nan))
    assert pick_weights({}, "linear")[:2] == ("checkpoint", "linear")
    assert pick_weights({"linear": held}, "linear")[:2] == ("checkpoint", "linear")
    tried = {"linear": held, "original linear": diverged}
    weights, _, why = pick_weights(tried, "linear")
    assert (weights, why) == (
        "checkpoint",
        "original linear has no finite result; the checkpoint is used",
    )
    tried = {"linear": diverged, "original linear": held}
    assert pick_weights(tried, "linear")[:2] == ("original", "linear")


@pytest.mark.parametrize("method", ["linear", "steps"])
def test_adapt_does_not_use_weights_that_are_clearly_worse(ruined, material, tmp_path, method):
    changes = {"method": method, "time_limit": 1e6}
    found = adapt(settings_of(material, ruined, tmp_path / "chosen", **changes))
    choice = found["choice"]
    assert (choice["weights"], choice["chosen"]) == ("original", method)
    assert choice["verdict"].endswith("the original weights are used")
    assert list(choice["candidates"]) == [method, f"original {method}"]
    assert (choice["folds"], choice["examples"], choice["cut"]) == (4, 24, [])
    shares = shares_of(tmp_path / "chosen")
    for name, model, weights in (
        ("original", ruined, "original"),
        ("start", material.bert, "checkpoint"),
    ):
        inner = {"inner_steps": 1} if method == "steps" else {}  # As `ruined` was trained.
        same = changes | inner | {"weights": weights}
        assert "choice" not in adapt(settings_of(material, model, tmp_path / name, **same))
        np.testing.assert_allclose(shares_of(tmp_path / name), shares, atol=2e-5)
    record = json.loads((tmp_path / "original" / "run.json").read_text())
    assert record["parent"]["path"] == str(material.bert)
    assert np.abs(shares - shares_of_checkpoint(ruined, material, tmp_path, changes)).max() > 0.01

    # A finished run keeps its choice.
    results = tmp_path / "chosen" / "results.json"
    known = json.loads(results.read_text())
    assert adapt(settings_of(material, ruined, tmp_path / "chosen", **changes)) == known
    for value in ({}, choice | {"weights": "best"}, choice | {"chosen": "finetune"}):
        results.write_text(json.dumps(known | {"choice": value}))
        with pytest.raises(InputError, match=r"results\.json: the choice is .*; restore the file"):
            adapt(settings_of(material, ruined, tmp_path / "chosen", **changes))


def shares_of_checkpoint(run, material, tmp_path, changes):
    workdir = tmp_path / "checkpoint"
    adapt(settings_of(material, run, workdir, **changes | {"weights": "checkpoint"}))
    return shares_of(workdir)


def test_both_choices_together_and_the_same_in_python(ruined, material, tmp_path, monkeypatch):
    """Without candidates that train all weights, which take longer."""
    from metajax.runs import method_choice

    names = ("prototypes", "linear", "linear C=10")
    kept = {name: method_choice.CANDIDATES[name] for name in names}
    monkeypatch.setattr(method_choice, "CANDIDATES", kept)
    settings = settings_of(material, ruined, tmp_path / "run", method="choose", calibrate=True)
    found = adapt(settings)
    choice = found["choice"]
    assert set(choice["candidates"]) == {*names, *(f"original {name}" for name in names)}
    assert choice["weights"] == "original"
    scores = {n: choice["candidates"][f"original {n}"]["log_likelihood"] for n in names}
    assert choice["chosen"] == max(scores, key=scores.get)
    assert (
        found["temperature"]
        == (choice["candidates"][f"original {choice['chosen']}"]["temperature"])
    )
    own = metajax.FewShotClassifier(
        str(ruined), method="choose", weights="choose", calibrate=True, max_length=16
    )
    own.fit(TEXTS, LABELS)
    assert own.choice_ == choice
    np.testing.assert_allclose(own.predict_proba(TEXTS[:5]), shares_of(tmp_path / "run"), atol=1e-6)
    own.save(tmp_path / "saved")
    assert metajax.FewShotClassifier.load(tmp_path / "saved").get_params() == own.get_params()


def test_one_example_of_each_class_keeps_the_checkpoint(chain, material, caplog):
    caplog.set_level("INFO", "metajax")
    few, labels = ["w1 w2", "w3 w4"], ["a", "b"]
    own = metajax.FewShotClassifier(str(chain.metatrain), method="linear", weights="choose")
    own.fit(few, labels)
    why = "no class has a second example, so nothing can be compared; the checkpoint is used"
    assert own.choice_ == {
        "chosen": "linear",
        "weights": "checkpoint",
        "verdict": why,
        **{"folds": 0, "examples": 0, "candidates": {}, "cut": []},
    }
    assert why in caplog.text
    plain = metajax.FewShotClassifier(str(chain.metatrain), method="linear").fit(few, labels)
    np.testing.assert_array_equal(own.predict_proba(["w1"]), plain.predict_proba(["w1"]))


@pytest.mark.parametrize("calibrate", [False, True])
def test_a_run_that_kept_its_start_compares_nothing(chain, material, calibrate):
    few_shot = prepared(chain.metatrain)
    settings = settings_of(material, chain.metatrain, "run")
    (examples,) = tokenized(load(settings, split="train"), few_shot.model, 16)
    how = MethodSettings(method="linear", weights="choose", calibrate=calibrate)
    adapted = adapt_by(few_shot, examples, how, original=few_shot)
    assert (adapted.choice["weights"], adapted.choice["candidates"]) == ("checkpoint", {})
    assert "has its original weights" in adapted.choice["verdict"]
    assert (adapted.calibration is not None) == calibrate
    if calibrate:
        assert adapted.calibration.temperature > 0


def test_the_time_limit_keeps_the_checkpoint(chain, material):
    few_shot, original = with_weights(
        prepared(chain.metatrain, "finetune"), ModelSettings(model=str(chain.metatrain)), "choose"
    )
    settings = settings_of(material, chain.metatrain, "run")
    (examples,) = tokenized(load(settings, split="train"), few_shot.model, 16)
    how = MethodSettings(method="finetune", weights="choose", time_limit=1e-6)
    choice = adapt_by(few_shot, examples, how, original=original).choice
    assert choice["weights"] == "checkpoint"
    assert "original finetune was left out by the time limit" in choice["verdict"]
    assert choice["cut"] == ["finetune", "original finetune"]


def test_a_run_without_steps_has_original_weights_too(chain, material, tmp_path):
    """Step 0 of `linear` is not that of a meta-training that kept its start."""
    run = str(tmp_path / "run")
    adapt(settings_of(material, chain.metatrain, run, method="linear"))
    few_shot = prepared(run, "linear")
    assert few_shot.source.record["step"] == 0
    few_shot, original = with_weights(few_shot, ModelSettings(model=run), "choose")
    assert original is not None
    assert original is not few_shot
    assert original.source.record["step"] > 0


def test_what_has_no_original_weights_is_refused(material, chain, tmp_path):
    for weights in ("original", "choose"):
        with pytest.raises(
            InputError, match=f"--weights {weights}: .* is not the workdir of a run"
        ):
            adapt(settings_of(material, material.bert, tmp_path / "run", weights=weights))
    with pytest.raises(InputError, match="--weights mine: unknown value; choose from checkpoint,"):
        settings_of(material, material.bert, tmp_path / "run", weights="mine")
    own = metajax.FewShotClassifier(str(chain.metatrain), method="linear", weights="choose")
    with pytest.raises(InputError, match="--weights choose: needs one class for each text"):
        own.fit(["w1", "w2"], [["a"], ["b", "a"]])
    documents = (f"documents:{material.text}",)
    with pytest.raises(InputError, match="--weights original: needs labels; give labelled tasks"):
        adapt(settings_of(material, "x", tmp_path / "run", tasks=documents, weights="original"))
    frozen = {"lora": 2, "freeze": True}
    with pytest.raises(InputError, match="trained the weights that --freeze does not save; remove"):
        adapt(settings_of(material, chain.metatrain, tmp_path / "run", **frozen))
