"""The choice of a method and of a temperature by cross-validation, against NumPy."""

import functools
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.special
import tiny
from sklearn.linear_model import LogisticRegression

import metajax
from metajax import data
from metajax.commands import adapt
from metajax.config.groups import ModelSettings
from metajax.config.inner import InnerSettings, MethodSettings
from metajax.config.settings import AdaptSettings
from metajax.errors import InputError
from metajax.runs import cross_validation, features, method_choice, methods, recipes
from metajax.runs.card import model_card
from metajax.runs.classifier import Classifier, open_classifier, probabilities
from metajax.runs.cross_validation import HeldOut, deal, hold_out
from metajax.runs.features import features_of, logits_on
from metajax.runs.few_shot import open_few_shot
from metajax.runs.task_data import tokenized
from tests.runs.test_methods import examples_of

LABELS = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2], np.int32)
FROZEN = ("prototypes", "linear C=0.1", "linear", "linear C=10")


def held_of(count=40, classes=3, seed=0, weights=None):
    """Logits that are too large for the labels, which are drawn from softer probabilities."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, classes)) * 4
    shares = scipy.special.softmax(logits / 3, 1)
    labels = np.array([rng.choice(classes, p=share) for share in shares])
    return HeldOut(logits, labels, np.ones(count) if weights is None else weights)


@pytest.fixture(scope="module")
def few_shot(tmp_path_factory):
    directory = str(tiny.write_model(tmp_path_factory.mktemp("bert"), head="encoder"))
    return open_few_shot(directory, ModelSettings(model=directory), InnerSettings(), 3)


@pytest.mark.parametrize(("counts", "folds"), [((9, 3, 4), 4), ((1, 3, 2), 3), ((2, 2, 1), 2)])
def test_folds_have_equal_shares_of_each_class(counts, folds):
    """Only the single example of a class is never held out."""
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(3), counts))
    found = deal(labels, seed=5)
    assert sorted(set(found[found >= 0])) == list(range(folds))
    assert np.ptp(np.bincount(found[found >= 0])) <= 1
    for label, count in enumerate(counts):
        own = found[labels == label]
        if count == 1:
            assert own.tolist() == [-1]
        else:
            assert np.ptp(np.bincount(own, minlength=folds)) <= 1
    np.testing.assert_array_equal(deal(labels, 5), found)
    assert (deal(labels, 6) != found).any() or counts == (2, 2, 1)


@pytest.mark.parametrize("name", ["prototypes", "linear C=10", "contrastive", "finetune"])
def test_an_example_has_the_logits_of_a_model_that_has_not_seen_it(few_shot, name):
    examples = examples_of(LABELS)
    folds, method = deal(LABELS, 0), method_choice.CANDIDATES[name]
    features = features_of(few_shot.model, few_shot.params, examples)
    held = hold_out(few_shot, examples, method, folds, features)
    np.testing.assert_array_equal(held.labels, LABELS)
    for fold in range(4):
        own = data.take_examples(examples, np.flatnonzero(folds != fold))
        params = methods.train_on(few_shot, own, method).params
        expected = logits_on(few_shot.model, params, examples)[folds == fold]
        np.testing.assert_allclose(held.logits[folds == fold], expected, rtol=2e-3, atol=2e-3)


def test_folds_train_for_the_steps_of_all_examples(few_shot, monkeypatch):
    """And compute features once. Three quarters of the examples would be too few for more steps."""
    labels = LABELS % 2
    monkeypatch.setattr(recipes, "_MANY_SHOTS", len(labels) // 2)
    few = recipes.RECIPES["contrastive"]._replace(steps=1, epochs=0, many_shot_recipe=None)
    recipe = few._replace(many_shot_recipe=few._replace(steps=3))
    trained, count = [], []
    monkeypatch.setattr(
        cross_validation,
        "train_on",
        lambda *args, **rest: (trained.append(methods.train_on(*args, **rest)), trained[-1])[1],
    )
    for module in (methods, features):
        monkeypatch.setattr(module, "features_of", lambda *a: (count.append(1), features_of(*a))[1])
    method = methods.Method("contrastive", recipe)
    hold_out(few_shot, examples_of(labels), method, deal(labels, 0), None)
    assert [len(each.losses) for each in trained] == [3] * 4
    assert len(count) == 4


@pytest.mark.parametrize("name", ["prototypes", "linear", "contrastive"])
def test_a_class_without_examples_has_no_logits(few_shot, name):
    """The logits are those of a network with the two classes that have examples."""
    labels = np.array([0, 0, 0, 2, 2, 2, 2], np.int32)
    folds, method = deal(labels, 0), method_choice.CANDIDATES[name]
    assert few_shot.model.num_labels == (3,)
    two = few_shot._replace(model=few_shot.model.replace(num_labels=(2,)))
    held, expected = (
        hold_out(own, examples, method, folds, features_of(own.model, own.params, examples))
        for own, examples in (
            (few_shot, examples_of(labels)),
            (two, examples_of(labels // 2)),
        )
    )
    np.testing.assert_array_equal(held.labels, labels // 2)
    np.testing.assert_allclose(held.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert held.temperature() < 1e3
    weights = hold_out(
        few_shot,
        examples_of(labels),
        methods.method_of("linear", "balanced"),
        folds,
        features_of(few_shot.model, few_shot.params, examples_of(labels)),
    ).weights
    np.testing.assert_allclose(weights, 7 / 2 / np.array([3] * 3 + [4] * 4))


def test_a_balanced_class_weight_weighs_held_out_examples_too(few_shot):
    examples = examples_of(LABELS)
    features = features_of(few_shot.model, few_shot.params, examples)
    method = methods.method_of("linear", "balanced")
    held = hold_out(few_shot, examples, method, deal(LABELS, 0), features)
    np.testing.assert_allclose(held.weights, 12 / 3 / np.array([5] * 5 + [3] * 3 + [4] * 4))
    right = held.logits.argmax(1) == LABELS
    recalls = [right[label == LABELS].mean() for label in range(3)]
    assert held.accuracy() == pytest.approx(np.mean(recalls))


@pytest.mark.parametrize("weighted", [False, True])
def test_the_temperature_of_two_classes_is_a_logistic_regression(weighted):
    """On the difference of the logits, with both labels of each example by their smoothed share."""
    count = 30
    weights = np.random.default_rng(2).uniform(0.2, 1.8, count) if weighted else None
    held = held_of(count, 2, weights=weights)
    difference = held.logits[:, 1] - held.logits[:, 0]
    shares = np.where(held.labels == 1, 1 - 1 / (count + 2), 1 / (count + 2))
    sample_weight = np.concatenate([shares, 1 - shares]) * np.tile(held.weights, 2)
    regression = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-12, max_iter=10_000)
    regression.fit(np.tile(difference, 2)[:, None], np.repeat([1, 0], count), sample_weight)
    assert held.temperature() == pytest.approx(1 / regression.coef_[0, 0], rel=1e-5)


def test_the_temperature_has_the_smallest_smoothed_loss():
    held = held_of(300)
    smooth = 1 / 302

    def loss(temperature):
        total = 0.0
        for row, label in zip(held.logits, held.labels):
            shares = np.exp(row / temperature) / np.exp(row / temperature).sum()
            others = np.delete(shares, label)
            total -= (1 - smooth) * np.log(shares[label]) + smooth / 2 * np.log(others).sum()
        return total

    found = held.temperature()
    grid = found * np.linspace(0.99, 1.01, 41)
    assert grid[np.argmin([loss(each) for each in grid])] == pytest.approx(found, rel=6e-4)
    assert 2.5 < found < 3.6  # The labels were drawn at 3.


def test_the_temperature_is_finite_if_all_labels_are_right():
    logits = np.eye(3)[np.arange(12) % 3]
    temperature = HeldOut(logits, np.arange(12) % 3, np.ones(12)).temperature()
    # The probability of a label is then its smoothed target.
    assert np.exp(1 / temperature) / (np.exp(1 / temperature) + 2) == pytest.approx(1 - 1 / 14)


def test_95_percent_of_held_out_examples_reach_the_threshold():
    held = held_of()
    temperature, threshold = held.calibration()
    assert temperature == held.temperature()
    largest = sorted(scipy.special.softmax(held.logits / temperature, 1).max(1))
    assert threshold == largest[1]  # Of 40, 39 / 40 = 0.975 reach it, and 38 / 40 the next one.


def margin(label, size):
    return np.where(np.arange(2) == label, size, 0.0)


def test_the_default_is_kept_unless_another_is_ahead_by_a_standard_error():
    """The other is always ahead in the mean; it is sure of all labels, or of some alone."""
    labels, ones, chosen = np.arange(8) % 2, np.ones(8), []
    default = HeldOut(np.array([margin(y, 1.0) for y in [*labels[:7], 0]]), labels, ones)
    for wrong in (0, 1, 2):
        sizes = np.where(np.arange(8) < wrong, -1.0, 6.0)
        other = HeldOut(np.array([margin(y, size) for y, size in zip(labels, sizes)]), labels, ones)
        losses = [
            -np.log(scipy.special.softmax(each.logits / each.temperature(), 1)[range(8), labels])
            for each in (default, other)
        ]
        ahead = losses[0] - losses[1]
        error = np.sqrt(np.sum((ahead - ahead.mean()) ** 2) / 7 / 8)
        chosen.append("linear" if ahead.mean() > error else "contrastive")
        assert method_choice.pick({"linear": other, "contrastive": default}) == chosen[-1]
        assert method_choice.pick({"contrastive": default, "linear": other}) == chosen[-1]
    assert set(chosen) == {"linear", "contrastive"}
    # Without the default, the best is chosen; without any, the default.
    best = HeldOut(np.array([margin(y, 1.0) for y in labels]), labels, ones)
    for names in (("linear", "finetune"), ("finetune", "linear")):
        assert method_choice.pick(dict(zip(names, (default, best)))) == names[1]
        assert method_choice.pick(dict(zip(names, (best, default)))) == names[0]
    assert method_choice.pick({}) == "contrastive"


def test_what_diverged_is_not_chosen():
    held = held_of()
    diverged = held._replace(logits=np.where(np.arange(40)[:, None] == 3, np.nan, held.logits))
    assert method_choice.pick({"linear": held, "contrastive": diverged}) == "linear"
    assert method_choice.pick({"linear": diverged, "contrastive": held}) == "contrastive"
    assert method_choice.pick({"linear": diverged}) == "contrastive"
    tried = {"linear": held, "contrastive": diverged}
    described = method_choice._described(search_of(None), tried, 4)
    assert list(described["candidates"]) == ["linear"]
    assert "contrastive" not in described["cut"]
    json.dumps(described, allow_nan=False)


def search_of(few_shot, examples=None, original=None, method="choose"):
    """A search; without a network, of which only the candidates' names are read."""
    few_shot = few_shot or SimpleNamespace(model=SimpleNamespace(problem_type=None))
    settings = MethodSettings(method=method, weights="choose" if original else "checkpoint")
    return method_choice._Search(few_shot, original, examples, settings, False)


def adapt_settings(material, workdir, **changes):
    where = {"model": material.bert, "tasks": (material.three,), "workdir": workdir}
    settings = {"method": "choose", "max_length": 16, "calibrate": True, "time_limit": 1e6}
    return AdaptSettings(**where | settings | changes)


def test_adapt_chooses_calibrates_and_repeats(material, tmp_path, monkeypatch):
    """Without candidates that train all weights, which take longer."""
    kept = {name: method_choice.CANDIDATES[name] for name in FROZEN}
    monkeypatch.setattr(method_choice, "CANDIDATES", kept)
    found = adapt.adapt(adapt_settings(material, tmp_path / "run"))
    choice = found["choice"]
    assert (choice["folds"], choice["examples"], choice["cut"]) == (4, 24, [])
    assert list(choice["candidates"]) == list(FROZEN)
    scores = {name: row["log_likelihood"] for name, row in choice["candidates"].items()}
    assert choice["chosen"] == max(scores, key=scores.get)  # The default was not tried.
    assert found["temperature"] == choice["candidates"][choice["chosen"]]["temperature"] != 1
    plain = adapt.adapt(adapt_settings(material, tmp_path / "plain", calibrate=False))
    assert plain["choice"] == choice
    assert "temperature" not in plain

    # Probabilities are those of the method, at the temperature.
    (example,) = data.load_tasks([str(material.three)])
    spec, texts = str(material.bert), [f"w{number} w{number + 7}" for number in range(6)]
    few_shot = open_few_shot(spec, ModelSettings(model=spec), InnerSettings(), 3)
    few_shot, model = methods.prepare(few_shot, "linear", example)
    (examples,) = tokenized([example], model, 16)
    params = methods.train_on(few_shot, examples, kept[choice["chosen"]]).params
    expected, calibrated = (
        probabilities(own, texts, None, 64)
        for own in (
            Classifier(model, params, 0, 16, None),
            open_classifier(str(tmp_path / "run"), None),
        )
    )
    softened = scipy.special.softmax(np.log(expected) / found["temperature"], 1)
    np.testing.assert_allclose(calibrated, softened, atol=2e-5)

    # A finished run keeps its choice.
    results = tmp_path / "run" / "results.json"
    known = json.loads(results.read_text())
    known["choice"]["chosen"], known["temperature"] = "prototypes", 2.0
    results.write_text(json.dumps(known))
    again = adapt.adapt(adapt_settings(material, tmp_path / "run"))
    assert (again["choice"], again["temperature"]) == (known["choice"], 2.0)
    for name, value in (
        ("temperature", 0),
        ("temperature", None),
        ("threshold", "x"),
        *(("choice", value) for value in ([], {"chosen": []}, {"chosen": "x"})),
        ("choice", {"chosen": "linear"}),
    ):
        results.write_text(json.dumps(known | {name: value}))
        with pytest.raises(InputError, match=rf"results\.json: .*{name}.* (is|are) "):
            adapt.adapt(adapt_settings(material, tmp_path / "run"))


def test_nothing_is_saved_before_the_dev_set_is_judged(material, tmp_path, monkeypatch):
    """A checkpoint without results would stay when a resumed run chooses differently."""

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(adapt, "judge", fail)
    with pytest.raises(KeyboardInterrupt):
        adapt.adapt(adapt_settings(material, tmp_path / "run", method="linear", dev=material.three))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_candidate_trains_twice_as_long():
    usual, longer = (
        method_choice.CANDIDATES[name].recipe
        for name in ("contrastive", "contrastive twice as long")
    )
    for labels in (np.arange(16), np.arange(1500), np.zeros(200, int)):
        examples = examples_of(labels)
        steps = [each.for_examples(examples).num_steps(len(labels)) for each in (usual, longer)]
        assert steps[1] == pytest.approx(2 * steps[0], abs=1)


def test_the_time_limit_leaves_out_what_trains_all_weights(few_shot, monkeypatch, caplog):
    """No fold begins after the limit. Heads are always tried."""
    caplog.set_level("INFO", "metajax")
    examples, ticks = examples_of(LABELS), itertools.count()
    clock = SimpleNamespace(monotonic=lambda: float(next(ticks)))  # Others read the real one.
    monkeypatch.setattr(cross_validation, "time", clock)
    features = features_of(few_shot.model, few_shot.params, examples)
    tried = functools.partial(hold_out, few_shot, examples, methods.method_of("linear"))
    assert tried(deal(LABELS, 0), features, until=3.0) is not None  # The folds begin at 0, 1, 2, 3.
    assert tried(deal(LABELS, 0), features, until=6.5) is None  # At 4, 5, 6 and 7.
    search = search_of(few_shot, examples)
    found, folds = method_choice._try(search, until=0.0)
    assert (list(found), folds) == (list(FROZEN), 4)
    cut = method_choice._described(search, found, folds)["cut"]
    assert cut == [name for name in method_choice.CANDIDATES if name not in FROZEN]
    assert "the time limit left out contrastive, finetune, contrastive 3e-5" in caplog.text


def test_one_example_of_each_class_takes_the_default(material, tmp_path, caplog):
    caplog.set_level("INFO", "metajax")
    own = metajax.FewShotClassifier(str(material.bert), method="choose")
    own.fit(["w1 w2", "w3 w4"], ["a", "b"])
    expected = metajax.FewShotClassifier(str(material.bert)).fit(["w1 w2", "w3 w4"], ["a", "b"])
    np.testing.assert_array_equal(own.predict_proba(["w1"]), expected.predict_proba(["w1"]))
    empty = {"folds": 0, "examples": 0, "candidates": {}, "cut": []}
    assert (own.choice_, own.calibration_) == ({"chosen": "contrastive"} | empty, None)
    assert "no class has a second example, so nothing can be held out; contr" in caplog.text
    own = metajax.FewShotClassifier(str(material.bert), method="linear", calibrate=True)
    assert own.fit(["w1 w2", "w3 w4"], ["a", "b"]).calibration_ == (None, None)
    assert "the probabilities are not calibrated" in caplog.text
    plain = metajax.FewShotClassifier(str(material.bert), method="linear")
    plain.fit(["w1 w2", "w3 w4"], ["a", "b"])
    np.testing.assert_array_equal(own.predict_proba(["w1"]), plain.predict_proba(["w1"]))
    rows = tiny.write_rows(tmp_path / "two.csv", [("w1 w2", "a"), ("w3 w4", "b")])
    settings = adapt_settings(material, tmp_path / "run", tasks=(rows,))
    results = adapt.adapt(settings)
    assert (results["temperature"], results["threshold"]) == (None, None)
    assert adapt.adapt(settings) == results  # A finished run keeps that too.
    damaged = {name: value for name, value in results.items() if name != "threshold"}
    (tmp_path / "run" / "results.json").write_text(json.dumps(damaged))
    with pytest.raises(InputError, match="temperature and threshold are None and None; restore"):
        adapt.adapt(settings)


def test_calibrating_a_method_keeps_its_labels_and_is_saved(material, tmp_path):
    texts = [f"w{topic} w{10 + number} w{topic}" for topic in range(3) for number in range(4)]
    labels, new = np.repeat(["a", "b", "c"], 4), ["w0 w50 w2", "w1 w51", "w2"]
    plain, own = (
        metajax.FewShotClassifier(str(material.bert), method="linear", calibrate=calibrate)
        for calibrate in (False, True)
    )
    shares, found = (each.fit(texts, labels).predict_proba(new) for each in (plain, own))
    assert (plain.calibration_, plain.choice_, own.choice_) == (None, None, None)
    softened = scipy.special.softmax(np.log(shares) / own.calibration_.temperature, 1)
    np.testing.assert_allclose(found, softened, atol=1e-5)
    assert np.abs(found - shares).max() > 1e-3
    own.save(tmp_path / "saved")
    again = metajax.FewShotClassifier.load(tmp_path / "saved")
    assert again.get_params() == own.get_params()
    assert (again.calibration_, again.choice_) == (own.calibration_, None)
    np.testing.assert_array_equal(again.predict_proba(new), found)
    where = {"model": str(material.bert), "method": "linear", "calibrate": True}
    rows = tiny.write_rows(tmp_path / "examples.csv", list(zip(texts, labels)))
    results = adapt.adapt(AdaptSettings(**where, tasks=(rows,), workdir=tmp_path / "run"))
    found = results["temperature"], results["threshold"]
    assert found == pytest.approx(own.calibration_, rel=1e-5)
    assert "choice" not in results


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"class_weight": "balanced", "method": "prototypes"}, "--class-weight balanced: --method"),
        ({"class_weight": "balanced", "method": "steps"}, "or use --method contrastive or finetu"),
        ({"calibrate": True, "method": "steps"}, "--calibrate: --method steps does not take it"),
        ({"class_weight": "even", "method": "linear"}, "choose from balanced"),
        ({"time_limit": 0, "method": "choose"}, "--time-limit 0: out of range"),
        ({"inner_steps": 2, "method": "choose"}, "--method choose takes no inner steps"),
    ],
)
def test_settings_that_a_method_does_not_take(changes, said):
    with pytest.raises(InputError, match=said):
        MethodSettings(**changes)


@pytest.mark.parametrize("name", ["class_weight", "calibrate"])
def test_several_labels_per_text_take_neither(material, name):
    changes = {name: "balanced" if name == "class_weight" else True}
    own = metajax.FewShotClassifier(str(material.bert), method="linear", **changes)
    with pytest.raises(
        InputError, match=f"^--{name.replace('_', '-')}: needs one class for each text"
    ):
        own.fit(["w1", "w2"], [["a"], ["b", "a"]])


def test_the_card_has_the_scores_of_the_candidates():
    row = {"log_likelihood": -0.51, "accuracy": 0.75, "temperature": 2.0}
    choice = {"chosen": "linear", "folds": 4, "examples": 24, "cut": ["finetune"]}
    results = {"loss_after": 0.3, "choice": choice | {"candidates": {"linear": row}}}
    about = {"model_type": "bert", "stage": "adapt", "pooling": "mean", "width": 16}
    about |= {"dense": None, "prompt": "", "regression": False, "siamese": False}
    about |= {"max_length": 16, "normalized": True, "classifier": True, "lineage": "-"}
    card = model_card("mine", **about, results=results)
    assert card.endswith(
        "- loss_after: 0.3\n"
        "- chosen method: linear, by 4-fold cross-validation on 24 examples\n"
        "    - linear: log-likelihood -0.5100, accuracy 0.7500\n"
        "    - finetune: not tried, because of the time limit\n"
    )
    empty = {"folds": 0, "examples": 0, "candidates": {}, "cut": []}
    card = model_card("mine", **about, results={"choice": {"chosen": "contrastive"} | empty})
    assert card.endswith("\n- chosen method: contrastive (no class has a second example)\n")
    weights = {"chosen": "linear", "weights": "original", "verdict": "it is ahead"}
    card = model_card("mine", **about, results={"choice": empty | weights})
    assert card.endswith("\n\n- chosen weights: original (it is ahead)\n")


def test_the_card_of_a_run_that_kept_its_start_has_no_gain():
    about = {"model_type": "bert", "stage": "metatrain", "pooling": "mean", "width": 16}
    about |= {"dense": None, "prompt": "", "regression": False, "siamese": False}
    about |= {"max_length": 16, "normalized": True, "classifier": False, "lineage": "-"}
    results = {"measured_on": "x", "best_step": 4, "gain": -0.1, "gain_ci95": 0.05}
    card = model_card("mine", **about, results=results | {"kept_step": 0})
    assert card.endswith(
        "- measured_on: x\n"
        "- The weights are those from before meta-training, because no checkpoint was better on "
        "the validation tasks.\n"
    )
    card = model_card("mine", **about, results=results | {"kept_step": 4})
    assert "- gain: -0.1\n- gain_ci95: 0.05\n- kept_step: 4\n" in card
    about |= {"classifier": True, "siamese": True}
    for regression, verb in ((False, "labels"), (True, "scores")):
        card = model_card("mine", **about | {"regression": regression}, results={})
        assert f"`classifier.safetensors` {verb} pairs of texts by" in card
