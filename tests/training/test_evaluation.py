import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from jax.custom_batching import custom_vmap
from scipy import stats
from sklearn import metrics
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

import metajax
from metajax.training.evaluation import (
    BASELINES,
    Estimate,
    _compiled,
    balanced_accuracy,
    calibration_error,
    estimate,
    f1_of_labels,
    macro_f1,
    ratio_estimate,
    run_episodes,
)
from metajax.training.outer import map_tasks

MAML = metajax.maml(problems.mlp_loss, optax.sgd(0.1), 2)


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_scores_of_a_confusion_matrix_are_those_of_scikit_learn():
    """Also if a class is never predicted, is no true label, or does not occur at all."""
    rng = np.random.default_rng(0)
    for true, predicted in ((4, 4), (4, 3), (3, 4), (3, 3)):
        truths, guesses = rng.integers(true, size=50), rng.integers(predicted, size=50)
        confusion = metrics.confusion_matrix(truths, guesses, labels=range(4))
        f1 = metrics.f1_score(truths, guesses, average="macro")
        assert macro_f1(confusion) == pytest.approx(f1)
        balanced = metrics.balanced_accuracy_score(truths, guesses)
        assert balanced_accuracy(confusion) == pytest.approx(balanced)


def test_the_calibration_error_weights_15_bins_by_their_examples():
    rng = np.random.default_rng(0)
    confidences = np.concatenate([rng.uniform(size=200), [0, 1]])
    correct = rng.uniform(size=202) < confidences**2
    expected = 0
    for low in range(15):
        here = (confidences > low / 15) & (confidences <= (low + 1) / 15)
        expected += here.mean() * abs(correct[here].mean() - confidences[here].mean())
    assert calibration_error(confidences, correct) == pytest.approx(expected)
    assert expected > 0.1
    assert calibration_error(np.full(5, 0.8), np.arange(5) > 0) == pytest.approx(0)


def test_estimate_is_students_interval():
    values = np.random.default_rng(0).normal(size=(7, 2))
    result = estimate(values)
    low, high = stats.t.interval(0.95, 6, loc=values.mean(0), scale=stats.sem(values))
    np.testing.assert_allclose(result.mean, values.mean(0))
    np.testing.assert_allclose(result.mean - result.ci95, low)
    np.testing.assert_allclose(result.mean + result.ci95, high)


def test_the_interval_covers_the_truth_95_times_in_100():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=(6, 20_000))
    result = estimate(values)
    covered = np.mean(np.abs(result.mean - 3.0) < result.ci95)
    assert abs(covered - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 20_000)


def test_one_episode_tells_nothing_about_the_error():
    assert estimate([2.0]) == Estimate(2.0, np.inf)
    assert estimate([1.0, 3.0]) == pytest.approx((2.0, stats.t.ppf(0.975, 1)))


def test_a_ratio_of_sums_has_the_interval_of_its_residuals():
    """Against a simulation: the standard error of the ratio over repeated samples."""
    rng = np.random.default_rng(0)
    weights = rng.integers(1, 9, (1000, 50))
    totals = weights * 2.0 + rng.normal(size=weights.shape) * weights
    found = [ratio_estimate(*pair) for pair in zip(totals, weights)]
    ratios = totals.sum(1) / weights.sum(1)
    np.testing.assert_allclose([each.mean for each in found], ratios)
    width = np.mean([each.ci95 for each in found]) / stats.t.ppf(0.975, 49)
    assert width == pytest.approx(ratios.std(), rel=0.07)
    same = ratio_estimate([3.0, 5.0, 10.0], [2, 2, 2])
    assert same == pytest.approx(estimate([1.5, 2.5, 5.0]))
    assert ratio_estimate([3.0], [2]) == Estimate(1.5, np.inf)


def test_evaluate_is_the_mean_over_adapted_episodes(x64):
    params, tasks, rng = problems.mlp_params(), problems.mlp_tasks(3), jax.random.key(5)
    result = metajax.evaluate(MAML, params, tasks, rng)
    meta_grad = jax.jit(MAML.meta_grad)
    infos = [
        meta_grad(params, problems.nth(tasks, t), jax.random.fold_in(rng, t))[1] for t in range(3)
    ]
    losses = [info.query_loss for info in infos]
    worst = [info.query_aux["worst"] for info in infos]
    np.testing.assert_allclose(result.query_loss.mean, np.mean(losses), rtol=1e-12)
    np.testing.assert_allclose(result.query_aux["worst"].mean, np.mean(worst), rtol=1e-12)
    np.testing.assert_allclose(
        result.support_loss.mean, np.mean([info.support_loss for info in infos], 0), rtol=1e-12
    )


def test_episodes_are_numbered_whatever_the_batch_or_chunk(x64):
    params, tasks, rng = problems.mlp_params(), problems.mlp_tasks(8), jax.random.key(5)
    whole = run_episodes(MAML, params, tasks, rng).query_loss
    chunked = run_episodes(MAML, params, tasks, rng, chunk_size=4).query_loss
    second = jax.tree.map(lambda leaf: leaf[4:], tasks)
    half = run_episodes(MAML, params, second, rng, first=4).query_loss
    mean = metajax.evaluate(MAML, params, tasks, rng, chunk_size=4).query_loss.mean
    np.testing.assert_allclose(chunked, whole, rtol=1e-12)
    np.testing.assert_allclose(half, whole[4:], rtol=1e-12)
    np.testing.assert_allclose(mean, np.mean(whole), rtol=1e-12)


def test_a_chunk_is_computed_at_once():
    """Also of `evaluate`, where a chunk size changes memory and no number."""
    sizes = set()

    @custom_vmap
    def noting(x):
        return x

    @noting.def_vmap
    def _(size, batched, x):
        sizes.add(size)
        return x, batched[0]

    algorithm = metajax.supervised(lambda params, batch, rng: (noting(batch.sum()), {}))
    tasks = metajax.Task(None, jnp.arange(12.0).reshape(6, 2))
    for chunk_size in (2, 3):
        found = metajax.evaluate(algorithm, {}, tasks, jax.random.key(0), chunk_size=chunk_size)
        assert sizes == {chunk_size}
        assert found.query_loss.mean == 11
        sizes.clear()


def test_evaluation_is_compiled_once():
    traces = []

    def loss_fn(params, batch, rng):
        traces.append(batch)
        return jnp.sum((params - batch) ** 2), {}

    algorithm = metajax.maml(loss_fn, optax.sgd(0.1), 1)
    tasks = metajax.Task(np.ones((2, 3)), np.ones((2, 3)))
    metajax.evaluate(algorithm, jnp.zeros(3), tasks, jax.random.key(0))
    after_one = len(traces)
    metajax.evaluate(algorithm, jnp.ones(3), tasks, jax.random.key(1))
    assert len(traces) == after_one


@pytest.mark.parametrize("chunk_size", [1, 2, 4])
def test_evaluation_computes_no_meta_gradient(chunk_size):
    """As little arithmetic as adapting and one look at the query set."""

    def loss_fn(params, batch, rng):
        x, y = batch
        return jnp.mean((jnp.tanh(x @ params) @ params.T - y) ** 2), {}

    algorithm = metajax.maml(loss_fn, optax.sgd(0.1), 2)
    shapes = jax.eval_shape(
        lambda: (
            jnp.zeros((16, 16)),
            metajax.Task(*[(jnp.zeros((4, 32, 16)), jnp.zeros((4, 32, 16)))] * 2),
            jax.random.split(jax.random.key(0), 4),
        )
    )

    def flops(function):
        compiled = function.lower(*shapes).compile()
        # Of the program as compiled; a loop's body is counted once.
        return compiled.cost_analysis()["flops"]

    def over_tasks(function):
        def run(params, tasks, keys):
            def one(task, key):
                return None, function(params, task, key)

            return map_tasks(one, tasks, keys, chunk_size)[1]

        return jax.jit(run)

    def judge(params, task, key):
        adapted, _ = algorithm.adapt(params, task.support, key)
        return loss_fn(adapted, task.query, key)[0]

    needed = flops(over_tasks(judge))
    assert flops(_compiled(algorithm, chunk_size)) < 1.05 * needed
    assert flops(over_tasks(algorithm.meta_grad)) > 1.5 * needed


@pytest.mark.parametrize(
    ("name", "reference"),
    [("prototypes", NearestCentroid()), ("knn", KNeighborsClassifier(n_neighbors=1))],
)
@pytest.mark.parametrize("scaled", [True, False])
def test_baselines_agree_with_scikit_learn(name, reference, scaled):
    rng = np.random.default_rng(0)
    features, query = rng.normal(size=(2, 40, 8))
    if scaled:
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        query /= np.linalg.norm(query, axis=1, keepdims=True)
    for classes in (2, 5):
        labels = np.arange(40) % classes
        expected = reference.fit(features, labels).predict(query)
        np.testing.assert_array_equal(BASELINES[name](features, labels, query), expected)


def test_logistic_regression_is_scikit_learns():
    """Few examples of many features, where its strength of regularisation decides."""
    rng = np.random.default_rng(0)
    labels = np.arange(12) % 3
    features, query = rng.normal(size=(12, 8)) + np.eye(3, 8)[labels], rng.normal(size=(200, 8))
    found = BASELINES["linear"](features, labels, query)
    ours, weaker = (LogisticRegression(C=c).fit(features, labels).predict(query) for c in (1, 3))
    np.testing.assert_array_equal(found, ours)
    assert np.any(found != weaker)


def test_f1_of_texts_with_several_labels_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 2, (2, 9, 5))
    labels[:, 3], predicted[:, 4] = 0, 0
    found = f1_of_labels(labels, predicted)
    expected = [metrics.f1_score(labels, predicted, average=kind) for kind in ("macro", "micro")]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    # scikit-learn counts labels that do not occur at all as 0.
    wider = [np.concatenate([each, np.zeros((9, 1), int)], 1) for each in (labels, predicted)]
    assert f1_of_labels(*wider) == found
    assert f1_of_labels(np.zeros((2, 3)), np.zeros((2, 3))) == (0, 0)
