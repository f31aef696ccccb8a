"""An algorithm for each outer step, and the network that an adapted one becomes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from metajax.algorithms import ALGORITHMS
from metajax.models import Transformer, classification_loss, prototype_init
from metajax.platforms import compiling_for
from metajax.runs.adapters import make_adapters
from metajax.runs.few_shot import FewShot
from metajax.runs.inner import DEFAULTS
from metajax.runs.learner import (
    adapted_model,
    as_classifier,
    make_algorithm,
    make_learner,
    make_schedule,
)
from tests import tiny
from tests.models.helpers import TINY, llama_settings
from tests.problems import relative_gap

MODEL = Transformer(
    dataclasses.replace(tiny.CONFIG, num_hidden_layers=1),
    head="classification",
    num_labels=(3,),
    pooling="mean",
    feature_norm=2.0,
)
INNER = DEFAULTS | {"inner_steps": 2}
KEY = jax.random.key(3)


def batch(seed, count=6):
    ids = jax.random.randint(jax.random.key(seed), (count, 5), 1, 20)
    own = {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}
    return own | {"labels": jnp.arange(count) % 3}


@pytest.fixture(scope="module")
def params():
    whole = MODEL.init(jax.random.key(0))
    return {name: leaf for name, leaf in whole.items() if name != "classifier"}


def test_maml_plus_plus_weights_the_losses_of_all_steps_for_a_tenth_of_the_run(params):
    """One block has its own rates, as each of several has."""
    inner, task = INNER | {"algorithm": "maml++"}, metajax.Task(batch(1), batch(2))
    schedule = make_schedule(MODEL, inner, KEY, 40)
    loss_fn, begin = classification_loss(MODEL), prototype_init(MODEL)

    def expected(step):
        return metajax.maml_plus_plus(
            lambda params, batch, rng: loss_fn(params, batch, None),
            0.1,
            2,
            step=step,
            multi_step=4,
            stacked=lambda path: path.startswith("layers/"),
            init_fn=lambda params, support, rng: begin(params, support, None),
        )

    meta_params = expected(0).init(params)

    def rates(algorithm):
        grads = algorithm.meta_grad(meta_params, task, None)[0]
        return grads["rates"]["layers"]["qkv"]["kernel"]

    both = jax.jit(lambda step: (rates(schedule(step)), rates(expected(step))))
    grads = {step: both(jnp.int32(step)) for step in (0, 3, 4)}
    for ours, theirs in grads.values():
        assert ours.shape == (2, MODEL.config.num_hidden_layers)
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert np.abs(grads[0][0] - grads[3][0]).max() > 1e-5
    assert np.abs(grads[3][0] - grads[4][0]).max() > 1e-5


def test_other_algorithms_are_the_same_at_every_outer_step():
    for name in ALGORITHMS:
        if name != "maml++":
            found = make_schedule(MODEL, INNER | {"algorithm": name}, KEY, 40)
            assert isinstance(found, metajax.MetaAlgorithm)


def test_a_generated_head_becomes_a_classifier(params):
    """The network's logits are those of LEOPARD's own loss."""
    inner = INNER | {"algorithm": "leopard", "head": None}
    algorithm = make_algorithm(MODEL, inner, KEY)
    support, query = batch(1), batch(2)
    meta_params = algorithm.init(params)
    adapted, _ = jax.jit(algorithm.adapt)(meta_params, support, None)
    _, info = jax.jit(algorithm.meta_grad)(meta_params, metajax.Task(support, query), None)
    model = adapted_model(MODEL, inner)
    loss, aux = jax.jit(classification_loss(model))(as_classifier(adapted), query, None)
    assert model.projection == MODEL.config.hidden_size
    np.testing.assert_allclose(loss, info.query_loss, rtol=1e-5)
    np.testing.assert_allclose(aux["accuracy"], info.query_aux["accuracy"])
    other = make_algorithm(MODEL, inner, jax.random.key(4)).init(params)
    same = make_algorithm(MODEL, inner, KEY).init(params)
    kernel = lambda meta: np.asarray(meta["generator"]["first"]["kernel"])  # noqa: E731
    np.testing.assert_array_equal(kernel(meta_params), kernel(same))
    assert np.abs(kernel(meta_params) - kernel(other)).max() > 0


def test_each_name_is_its_constructor(params):
    """Not the algorithm of another row: the programs differ pairwise, but for the two names of one.

    Heads start from prototypes here, so that MAML is Proto-MAML.
    """
    task, programs = metajax.Task(batch(1), batch(2)), {}
    labelled = {name: entry for name, entry in ALGORITHMS.items() if not entry.tests_on_stream}
    for name, entry in labelled.items():
        head, steps = (*entry.heads, None)[0], 2 * ("inner_steps" in entry.settings)
        inner = INNER | {"algorithm": name, "inner_steps": steps, "head": head}
        algorithm = make_algorithm(MODEL, inner, KEY)
        own = jax.eval_shape(algorithm.init, params)
        programs[name] = str(jax.make_jaxpr(algorithm.meta_grad)(own, task, None))
    assert programs.pop("proto-maml") == programs["maml"]
    assert len(set(programs.values())) == len(programs)
    learner = make_learner(MODEL, INNER | {"algorithm": "imaml"})
    implicit = metajax.imaml(learner.loss_fn, learner.optimizer, 2, **learner.shared._asdict())
    assert programs["imaml"] == str(jax.make_jaxpr(implicit.meta_grad)(params, task, None))


def test_the_inner_optimizers():
    """After two equal gradients of norm 5, clipped to 1, at rate 0.1."""
    grads, moved = {"w": jnp.array([3.0, -4.0])}, {}
    for name in (None, "momentum", "adam"):
        inner = INNER | {"algorithm": "maml", "inner_optimizer": name, "inner_clip_norm": 1.0}
        optimizer = make_learner(MODEL, inner).optimizer
        state = optimizer.init(grads)
        for _ in range(2):
            updates, state = optimizer.update(grads, state)
        moved[name] = updates["w"]
    unit = np.array([0.6, -0.8])
    np.testing.assert_allclose(moved[None], -0.1 * unit, rtol=1e-6)
    np.testing.assert_allclose(moved["momentum"], -0.19 * unit, rtol=1e-6)
    np.testing.assert_allclose(moved["adam"], [-0.1, 0.1], rtol=1e-4)


def test_each_algorithm_for_documents_takes_one_chunk_a_step():
    """Its programs differ from the others', and test-time training is that of the library."""
    config = dataclasses.replace(MODEL.config, **llama_settings("llama"))
    model = Transformer(config, head="causal_lm")
    params = jax.eval_shape(model.init, KEY)
    ids = jnp.ones((2, 1, 5), int)
    support = {"input_ids": ids, "attention_mask": ids}
    programs = {}
    for name, entry in ALGORITHMS.items():
        if entry.documents:
            query = None if entry.tests_on_stream else jax.tree.map(lambda leaf: leaf[0], support)
            algorithm = make_algorithm(model, INNER | {"algorithm": name, "head": None}, KEY)
            own = jax.eval_shape(algorithm.init, params)
            task = metajax.Task(support, query)
            programs[name] = str(jax.make_jaxpr(algorithm.meta_grad)(own, task, None))
            _, info = jax.eval_shape(algorithm.adapt, own, support, None)
            assert info.support_loss.shape == (2,)
    assert len(programs) == len(set(programs.values())) == 7
    learner = make_learner(model, INNER | {"algorithm": "test-time-training", "head": None})
    options = {name: getattr(learner.shared, name) for name in ("unroll", "reparametrize")}
    options["chunk_weights"] = lambda chunks: (chunks["attention_mask"][..., 1:] > 0).sum((1, 2))
    for prefix in ("", "first-order-"):
        online = metajax.test_time_training(
            learner.loss_fn, learner.optimizer, 2, first_order=bool(prefix), **options
        )
        known = str(jax.make_jaxpr(online.meta_grad)(params, metajax.Task(support, None), None))
        assert programs[f"{prefix}test-time-training"] == known


TWO_BLOCKS = Transformer(TINY, head="classification", num_labels=(3,))


def meta_grad_with(inner):
    """Return `(params, task) -> (grads, info)` with settings of the inner loop."""

    def meta_grad(params, task):
        few_shot = FewShot(TWO_BLOCKS, params, INNER | {"algorithm": "maml"} | inner, None)
        start = make_adapters(TWO_BLOCKS, few_shot.inner)
        start = start.split(params) if few_shot.has_adapters else params
        return few_shot.schedule(10).meta_grad(start, task, None)

    return meta_grad


@pytest.mark.parametrize("inner", [{}, {"layers": 1}, {"lora": 2, "freeze": True}], ids=str)
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_blocks_are_in_a_loop_only_if_asked_for(platform, inner):
    """Besides the two loops over inner steps."""
    params, task = jax.eval_shape(TWO_BLOCKS.init, KEY), metajax.Task(batch(1), batch(2))

    def loops(changes):
        program = jax.jit(meta_grad_with(inner | changes)).trace(params, task)
        return str(program.jaxpr).count("scan[")

    with compiling_for(platform):
        assert loops({}) == 2
        assert loops({"loop": True}) > 2
        assert loops({"low_memory": True}) > 2


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("algorithm", ["maml", "fomaml"])
def test_blocks_in_a_loop_compute_the_same(algorithm):
    params = jax.tree.map(lambda leaf: leaf.astype(float), TWO_BLOCKS.init(KEY))
    inner, task = {"algorithm": algorithm}, metajax.Task(batch(1), batch(2))
    with compiling_for("gpu"):
        separate, looped = (
            jax.jit(meta_grad_with(inner | {"loop": loop}))(params, task) for loop in (False, True)
        )
    assert relative_gap(separate, looped) < 1e-12
