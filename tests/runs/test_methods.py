"""Training on one task's examples, against the same training written out."""

import dataclasses
import functools
from statistics import mean

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import tiny
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.utils.class_weight import compute_sample_weight

from metajax import data, estimator, regressor
from metajax.commands import adapt
from metajax.commands.evaluate import evaluate
from metajax.config.groups import ModelSettings
from metajax.config.inner import InnerSettings
from metajax.config.settings import AdaptSettings, EvaluateSettings
from metajax.models import Transformer, classification_loss, cosine_loss
from metajax.runs import features, methods, recipes, support_training
from metajax.runs.eval_set import choose_protocol
from metajax.runs.features import features_of, logistic_head, one_vs_rest_head
from metajax.runs.few_shot import open_few_shot
from metajax.runs.recipes import RECIPES
from metajax.runs.support_training import train
from metajax.runs.task_data import load

BALANCED = LogisticRegression(class_weight="balanced", max_iter=1000)
LABELS = np.array([2, 0, 1, 0, 2, 1, 0], np.int32)


def examples_of(labels=LABELS, longest=9):
    """Texts of different lengths; token 5 + row occurs in one text only."""
    count, rng = len(labels), np.random.default_rng(0)
    lengths = rng.integers(3, longest, count).astype(np.int32)
    ids = rng.integers(40, 80, (count, longest)).astype(np.int32)
    ids[:, 1] = 5 + np.arange(count)
    ids[np.arange(longest) >= lengths[:, None]] = 0
    tokens = data.Tokens(ids, np.zeros_like(ids, np.int8), lengths, truncated=0)
    names = tuple(map(str, range(labels.max() + 1)))
    return data.TokenizedTask("texts", tokens, labels, names, ())


def padded(examples, rows):
    tokens = examples.tokens
    mask = (np.arange(tokens.input_ids.shape[1]) < tokens.lengths[rows, None]).astype(np.int32)
    batch = {"input_ids": tokens.input_ids[rows], "attention_mask": mask}
    return batch | {"token_type_ids": 0 * mask, "labels": examples.labels[rows]}


def without_dropout(config=tiny.CONFIG):
    return dataclasses.replace(
        config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.0
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", ["contrastive", "finetune"])
def test_training_is_adamw_on_padded_batches(kind):
    """The unused pooler stays."""
    model = Transformer(without_dropout(), "classification", "mean", 2.0, num_labels=(3,))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), model.init(jax.random.key(0)))
    if kind == "contrastive":
        params.pop("classifier")
    recipe = RECIPES[kind]._replace(steps=1, batch_size=4, epochs=2, learning_rate=0.01)
    examples = examples_of()
    found, losses = train(model, params, examples, recipe, seed=3)

    expected, loss_fn = params, recipe.make_loss(model)
    rates = [0.0, 0.01, 0.01 * 2 / 3, 0.01 / 3]  # A step of warm-up, then down to zero.
    scale = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())
    state = scale.init(params)
    slope = jax.jit(jax.value_and_grad(lambda p, batch: loss_fn(p, batch, None)[0]))
    for step, rate in enumerate(rates):
        batch = padded(examples, recipe.rows(LABELS, 3, step, 4))
        loss, grads = slope(expected, batch)
        np.testing.assert_allclose(losses[step], loss, rtol=1e-7)  # Rates are float32.
        updates, state = scale.update(grads, state)

        def move(path, leaf, update):
            name = jax.tree_util.keystr(path)
            decay = 0 if "bias" in name or "norm" in name or "pooler" in name else 0.01
            return leaf - rate * (update + decay * leaf)  # noqa: B023

        expected = jax.tree_util.tree_map_with_path(move, expected, updates)
    word, own = (tree["embeddings"].pop("word") for tree in (found, expected))
    # All rows of a small table are trained; those that no text mentions only decay.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-8)
    jax.tree.map(close, (word, found), (own, expected))


@pytest.mark.usefixtures("x64")
def test_several_networks_are_averaged():
    """Each has its own batches and an optimizer and rates that start again."""
    model = Transformer(without_dropout(), pooling="mean")
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), model.init(jax.random.key(0)))
    own = RECIPES["contrastive"]._replace(steps=2, batch_size=4, epochs=0, learning_rate=0.01)
    examples, rows = examples_of(), own.rows

    def later(first):
        return lambda labels, seed, step, size: rows(labels, seed, first + step, size)

    each = [
        train(model, params, examples, own._replace(rows=later(2 * network)), seed=1)
        for network in range(3)
    ]
    found = train(model, params, examples, own._replace(networks=3), seed=1, donate=True)
    expected = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *each)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9)
    jax.tree.map(close, found, expected)
    assert_freed(params)


def test_a_network_begins_without_the_optimizer_state_of_the_last(monkeypatch):
    sizes, compiled = [], support_training._compiled

    def watched(*args):
        begin, *others = compiled(*args)

        def watch(*args):
            sizes.append(sum(leaf.nbytes for leaf in jax.live_arrays()))
            return begin(*args)

        return watch, *others

    monkeypatch.setattr(support_training, "_compiled", watched)
    model = Transformer(tiny.CONFIG, pooling="mean")
    params = model.init(jax.random.key(0))
    recipe = RECIPES["contrastive"]._replace(steps=1, epochs=0, networks=3)
    train(model, params, examples_of(), recipe, seed=0)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    for later in sizes[1:]:  # There is the mean besides the start.
        assert later - sizes[0] < 1.5 * size


def test_dropout_differs_between_steps_and_networks_and_follows_the_seed():
    model = Transformer(tiny.CONFIG, pooling="mean")
    recipe = RECIPES["contrastive"]._replace(
        rows=lambda labels, seed, step, size: np.arange(size), steps=2, epochs=0, learning_rate=0.0
    )
    params = model.init(jax.random.key(0))
    losses = [train(model, params, examples_of(), recipe, seed=seed)[1] for seed in (0, 0, 1)]
    assert losses[0] == losses[1]
    assert len({*losses[0], *losses[2]}) == 4
    two = recipe._replace(steps=1, networks=2)
    assert train(model, params, examples_of(), two, seed=0)[1] == pytest.approx([mean(losses[0])])


def test_tokens_that_no_text_has_keep_their_embeddings(monkeypatch):
    monkeypatch.setattr(support_training, "_ROUNDING", 10)
    model = Transformer(tiny.CONFIG, pooling="mean")
    params, examples = model.init(jax.random.key(0)), examples_of()
    recipe = RECIPES["contrastive"]._replace(steps=2, batch_size=5, epochs=0)
    found, _ = train(model, params, examples, recipe, seed=0)
    mentioned = np.unique(examples.tokens.input_ids)
    word, start = (np.asarray(tree["embeddings"]["word"]) for tree in (found, params))
    changed = np.flatnonzero((word != start).any(1))
    assert set(changed) >= set(mentioned)
    assert len(changed) == -(-len(mentioned) // 10) * 10 < len(start)


def assert_freed(params):
    table = params["embeddings"]["word"]
    for leaf in jax.tree.leaves(params):
        assert leaf.is_deleted() == (leaf is not table)


@pytest.mark.parametrize("method", ["contrastive", "finetune"])
def test_the_start_is_only_used_up_when_donated(method, tmp_path):
    directory = str(tiny.write_model(tmp_path, head="encoder"))
    few_shot = open_few_shot(directory, ModelSettings(model=directory), InnerSettings(), 3)
    examples, how = examples_of(), methods.method_of(method)
    kept = methods.adapt_to(few_shot, examples, how, chooses=False)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(few_shot.params))
    donated = methods.adapt_to(few_shot, examples, how, chooses=False, donate=True)
    assert_freed(few_shot.params)
    jax.tree.map(np.testing.assert_array_equal, donated.params, kept.params)
    assert donated.losses == kept.losses


@pytest.mark.parametrize("caller", ["adapt", "estimator", "regressor"])
def test_who_opens_the_weights_frees_them(caller, material, tmp_path, monkeypatch):
    opened = []
    module = {"adapt": adapt, "estimator": estimator, "regressor": regressor}[caller]
    monkeypatch.setattr(
        module, "open_few_shot", lambda *a: (opened.append(open_few_shot(*a)), opened[-1])[1]
    )
    texts, labels, model = ["w1 w9", "w2 w1", "w3", "w4"], [0, 1, 0, 1], str(material.bert)
    if caller == "adapt":
        rows = tmp_path / "rows.csv"
        rows.write_text("".join(f"{t},{n}\n" for t, n in zip(["text", *texts], ["label", *labels])))
        settings = {"tasks": (str(rows),), "method": "finetune", "workdir": str(tmp_path / "run")}
        adapt.adapt(AdaptSettings(model=model, max_length=16, **settings))
    elif caller == "estimator":
        estimator.FewShotClassifier(model, method="finetune", max_length=16).fit(texts, labels)
    else:
        numbers = np.float32(labels)
        regressor.FewShotRegressor(model, method="finetune", max_length=16).fit(texts, numbers)
    assert_freed(opened[0].params)


def test_larger_support_sets_have_more_steps():
    model = Transformer(tiny.CONFIG, pooling="mean")
    params, examples = model.init(jax.random.key(0)), examples_of()
    recipe = RECIPES["contrastive"]._replace(steps=3, batch_size=4, epochs=2)
    few = data.take_examples(examples, np.arange(4))
    assert len(train(model, params, few, recipe, seed=0)[1]) == 3
    expected = -(-2 * len(LABELS) // 4)
    assert len(train(model, params, examples, recipe, seed=0)[1]) == expected > 3


def test_training_follows_the_recipe_for_many_examples(monkeypatch):
    monkeypatch.setattr(recipes, "_MANY_SHOTS", 2)
    model = Transformer(without_dropout(), pooling="mean")
    params, examples = model.init(jax.random.key(0)), examples_of(LABELS // 2)
    few = RECIPES["contrastive"]._replace(steps=1, epochs=0, many_shot_recipe=None)
    many = few._replace(make_loss=cosine_loss, steps=2, batch_size=4, learning_rate=1e-3)
    trained, expected = (
        train(model, params, examples, each, seed=0)
        for each in (few._replace(many_shot_recipe=many), many)
    )
    assert len(trained[1]) == 2
    jax.tree.map(np.testing.assert_array_equal, trained, expected)


def test_a_plan_of_several_tasks_has_the_batches_of_their_own_recipes(monkeypatch):
    monkeypatch.setattr(recipes, "_MANY_SHOTS", 2)
    few = RECIPES["contrastive"]._replace(steps=4, batch_size=6, epochs=0, many_shot_recipe=None)
    recipe = few._replace(many_shot_recipe=few._replace(batch_size=3))
    many = data.take_examples(examples_of(), np.array([1, 3, 2, 5]))  # Of two classes.
    for tasks in ([many, examples_of()], [examples_of(), many]):
        assert support_training.plan_steps(tasks, recipe, 0)[-1][0].rows == 6
    assert support_training.plan_steps([many], recipe, 0)[-1][0].rows == 3


def test_a_plan_counts_the_steps_of_all_networks(monkeypatch):
    steps = []
    monkeypatch.setattr(support_training, "plan_shapes", lambda *args: steps.append(args[2]))
    recipe = RECIPES["contrastive"]._replace(steps=5, epochs=0, many_shot_recipe=None)
    for networks in (1, 3):
        support_training.plan_steps([examples_of()], recipe._replace(networks=networks), 0)
    assert steps == [5, 15]


@pytest.mark.parametrize("width", [3 * tiny.CONFIG.hidden_size, tiny.CONFIG.hidden_size / 4])
def test_wide_networks_have_a_lower_rate(width):
    model = Transformer(without_dropout(), pooling="mean")
    params, examples = model.init(jax.random.key(0)), examples_of()
    recipe = RECIPES["contrastive"]._replace(steps=2, epochs=0, width=width)
    rate = 1e-4 if width > tiny.CONFIG.hidden_size else 2.5e-5
    same = recipe._replace(width=float("inf"), learning_rate=rate)
    found, expected = (train(model, params, examples, each, seed=0)[0] for each in (recipe, same))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_logistic_head_of_one_example_per_class_does_not_warn():
    """Pytest makes an error of a warning; scikit-learn warns from some classes on."""
    features = np.random.default_rng(0).normal(size=(30, 8))
    head = logistic_head(features, {"labels": np.arange(30)}, 30)
    assert head["kernel"].shape == (8, 30)


@pytest.mark.parametrize("classes", [2, 4])
def test_a_logistic_head_has_the_probabilities_of_scikit_learn(classes):
    rng = np.random.default_rng(0)
    labels = np.arange(12) % classes
    features, new = rng.normal(size=(12, 5)) + labels[:, None], rng.normal(size=(7, 5))
    head = logistic_head(features, {"labels": labels}, classes)
    shares = jax.nn.softmax(new @ head["kernel"] + head["bias"])
    expected = LogisticRegression(max_iter=1000).fit(features, labels).predict_proba(new)
    np.testing.assert_allclose(shares, expected, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_balanced_logistic_head_has_the_probabilities_of_scikit_learn(classes):
    """At another regularization too; the classes have 6, 3 and 3, or 9 and 3 examples."""
    rng = np.random.default_rng(0)
    labels = np.maximum(np.arange(12) % 4 - (4 - classes), 0)
    features, new = rng.normal(size=(12, 5)) + labels[:, None], rng.normal(size=(7, 5))
    settings = {"inverse_strength": 0.3, "class_weight": "balanced"}
    head = logistic_head(features, {"labels": labels}, classes, **settings)
    shares = jax.nn.softmax(new @ head["kernel"] + head["bias"])
    weights = len(labels) / (classes * np.bincount(labels))[labels]
    own = LogisticRegression(C=0.3, max_iter=1000).fit(features, labels, sample_weight=weights)
    np.testing.assert_allclose(shares, own.predict_proba(new), atol=1e-5)
    named = LogisticRegression(C=0.3, class_weight="balanced", max_iter=1000)
    expected = named.fit(features, labels).predict_proba(new)
    np.testing.assert_allclose(shares, expected, atol=1e-6)
    np.testing.assert_allclose(methods.balanced_weights(labels), weights)


def test_balanced_weights_are_those_of_scikit_learn_without_absent_classes():
    labels = np.array([3, 0, 3, 3, 0, 5])
    expected = compute_sample_weight("balanced", labels)
    np.testing.assert_allclose(methods.balanced_weights(labels), expected)


@pytest.mark.usefixtures("x64")
def test_balanced_fine_tuning_weighs_the_examples():
    """The loss of the first step is that of PyTorch, with weights of classes."""
    model = Transformer(without_dropout(), "classification", "mean", 2.0, num_labels=(3,))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), model.init(jax.random.key(0)))
    examples = examples_of()
    recipe = RECIPES["finetune"]._replace(steps=1)
    weights = methods.balanced_weights(LABELS)
    _, (loss,) = train(model, params, examples, recipe, seed=0, weights=weights)
    logits = torch.tensor(np.asarray(model(params, padded(examples, np.arange(7))).logits))
    each = torch.tensor([weights[label == LABELS][0] for label in range(3)])
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(LABELS).long(), each)
    assert loss == pytest.approx(float(expected), rel=1e-7)
    assert loss != pytest.approx(train(model, params, examples, recipe, seed=0)[1][0], rel=1e-4)


def test_methods_pass_the_class_weight_on(few_shot, monkeypatch):
    seen = []
    monkeypatch.setattr(
        methods, "train", lambda *args, weights, **_: (seen.append(weights), (args[1], []))[1]
    )
    monkeypatch.setattr(
        methods, "logistic_head", lambda *a, class_weight, **k: seen.append(class_weight) or HEAD
    )
    for name, expected in (
        ("finetune", methods.balanced_weights(LABELS).astype(np.float32)),
        ("contrastive", [None, "balanced"]),
        ("linear", ["balanced"]),
    ):
        seen.clear()
        methods.train_on(few_shot, examples_of(), methods.method_of(name, "balanced"))
        found = seen[0] if name == "finetune" else seen
        np.testing.assert_array_equal(found, expected)


HEAD = {"kernel": np.zeros((16, 3)), "bias": np.zeros(3)}


@pytest.fixture(scope="module")
def few_shot(tmp_path_factory):
    directory = str(tiny.write_model(tmp_path_factory.mktemp("bert"), head="encoder"))
    return open_few_shot(directory, ModelSettings(model=directory), InnerSettings(), 3)


@pytest.mark.parametrize("method", methods.TRAINED)
@pytest.mark.parametrize("absent", [1, 2])
def test_a_class_without_examples_is_never_predicted(few_shot, method, absent):
    examples = examples_of(np.array([0, 3 - absent, 0, 3 - absent], np.int32))
    params = methods.train_on(few_shot, examples, methods.method_of(method)).params
    logits = few_shot.model(params, padded(examples, np.arange(4))).logits
    assert logits.shape == (4, 3)
    assert logits[:, absent].max() < -1e6
    assert np.isfinite(logits).all()


def test_features_come_in_the_order_of_the_texts(few_shot):
    examples = examples_of()
    found = features_of(few_shot.model, few_shot.params, examples, batch_size=3)
    expected = few_shot.model.features(few_shot.params, padded(examples, np.arange(7)))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_features_with_and_without_a_head_are_one_program(few_shot):
    features._compiled.cache_clear()
    methods.adapt_to(few_shot, examples_of(), methods.method_of("linear"), chooses=False)
    assert features._compiled(few_shot.model)._cache_size() == 1


@pytest.mark.parametrize("method", ["linear", "contrastive"])
def test_the_last_loss_needs_no_features_but_those_of_the_head(few_shot, method, monkeypatch):
    count = []
    for module in (methods, features):
        monkeypatch.setattr(module, "features_of", lambda *a: (count.append(1), features_of(*a))[1])
    adapted = methods.adapt_to(few_shot, examples_of(), methods.method_of(method), chooses=False)
    assert len(count) == 1
    batch = padded(examples_of(), np.arange(7))
    expected, _ = classification_loss(few_shot.model)(adapted.params, batch, None)
    assert adapted.losses[-1] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("method", ["contrastive", "finetune"])
def test_evaluate_trains_on_each_support_set(few_shot, material, method):
    settings = EvaluateSettings(
        model=str(few_shot.model.source),
        tasks=(str(material.intents),),
        methods=(method, "linear"),
        **{"ways": 3, "shots": 2, "queries": 3, "episodes": 3},
    )
    rows = evaluate(settings)
    assert [row.method for row in rows] == [method, "linear"]
    eval_set = choose_protocol(settings, load(settings, split="train")).open(few_shot.model, 32)
    (episodes,) = eval_set.episodes
    for t, accuracy in enumerate(rows[0].accuracies):
        own = eval_set.examples[episodes.task[t]]
        support = data.take_examples(own, episodes.support[t])._replace(
            labels=episodes.support_labels[t]
        )
        params = methods.train_on(few_shot, support, methods.method_of(method)).params
        batch = padded(own, episodes.query[t])
        guesses = few_shot.model(params, batch).logits.argmax(1)
        assert accuracy == pytest.approx(np.mean(guesses == episodes.query_labels[t]))


def test_a_head_for_several_labels_has_the_probabilities_of_scikit_learn():
    """The last labels have no example, and only examples: their probabilities are 0 and 1."""
    rng = np.random.default_rng(0)
    labels = np.concatenate([rng.integers(0, 2, (12, 3)), [[0, 1]] * 12], 1)
    features, new = rng.normal(size=(12, 5)), rng.normal(size=(7, 5))
    head = one_vs_rest_head(features, labels)
    shares = scipy.special.expit(new @ head["kernel"] + head["bias"])
    with pytest.warns(UserWarning, match="Label (3|4|not 3)"):
        fitted = OneVsRestClassifier(BALANCED).fit(features, labels)
    np.testing.assert_allclose(shares, fitted.predict_proba(new), atol=1e-12)


def test_several_labels_are_trained_from_the_head_of_each(few_shot):
    model = few_shot.model.replace(problem_type="multi_label_classification")
    indicator = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]], np.int32)
    names = ("a", "b", "c")
    examples = examples_of(np.zeros(4, int))._replace(labels=indicator, label_names=names)
    linear, adapted = (
        methods.adapt_to(
            few_shot._replace(model=model),
            examples,
            methods.method_of(method, several_labels=True),
            chooses=False,
        )
        for method in ("linear", "finetune")
    )
    for params, losses in ((linear.params, linear.losses), (adapted.params, adapted.losses)):
        logits = np.asarray(model(params, padded(examples, np.arange(4))).logits, np.float64)
        shares = scipy.special.expit(logits)
        expected = -np.log(np.where(indicator == 1, shares, 1 - shares)).mean()
        assert losses[-1] == pytest.approx(expected, rel=1e-4)
    assert len(adapted.losses) == 61
    assert adapted.losses[-1] < linear.losses[-1]


def test_texts_with_and_without_a_label_weigh_the_same():
    labels = np.array([[1, 0, 1], [0, 0, 1], [0, 1, 1], [0, 1, 1], [0, 0, 1]])
    weights = methods.balanced_label_weights(labels)
    for column in (0, 1):
        expected = compute_sample_weight("balanced", labels[:, column])
        np.testing.assert_allclose(weights[:, column], expected, rtol=1e-15)
    np.testing.assert_array_equal(weights[:, 2], 0.5)


def test_weights_of_labels_enter_the_loss(few_shot):
    config = without_dropout(few_shot.model.config)
    model = few_shot.model.replace(problem_type="multi_label_classification", config=config)
    indicator = np.array([[1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 1, 0]], np.int32)
    names = ("a", "b", "c")
    examples = examples_of(np.zeros(4, int))._replace(labels=indicator, label_names=names)
    head = {"kernel": np.ones((1, model.config.hidden_size, 3)), "bias": np.zeros((1, 3))}
    params = {**few_shot.params, "classifier": jax.tree.map(np.float32, head)}
    params.pop("pooler", None)
    weights = np.arange(1, 13, dtype=np.float32).reshape(4, 3)
    recipe = methods.method_of("finetune", several_labels=True).recipe
    for given in (weights, weights[:, 0]):
        _, losses = train(model, params, examples, recipe._replace(steps=1), seed=0, weights=given)
        logits = np.asarray(model(params, padded(examples, np.arange(4))).logits, np.float64)
        each = np.logaddexp(0, logits) - indicator * logits
        by_text = (each * given if given.ndim == 2 else each).mean(1)
        expected = by_text.mean() if given.ndim == 2 else np.average(by_text, weights=given)
        assert losses == pytest.approx([expected], rel=1e-4)
