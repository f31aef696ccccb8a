"""Every algorithm of the registry on the command line: trained, evaluated, adapted and used."""

import functools
import json

import jax
import numpy as np
import optax
import pytest

from metajax import data
from metajax.algorithms import ALGORITHMS
from metajax.commands.plan import plan, summary
from metajax.config.groups import ModelSettings
from metajax.config.inner import RATES_LEARNING_RATE, InnerSettings
from metajax.config.plan import PlanSettings
from metajax.config.settings import MetatrainSettings
from metajax.errors import InputError
from metajax.runs.few_shot import open_few_shot
from metajax.runs.learner import as_classifier
from metajax.runs.source import open_source
from metajax.runs.task_data import tokenized
from metajax.training.outer import initial_state
from tests import tiny
from tests.stage_commands import metatrain_command

pytestmark = pytest.mark.xdist_group("every algorithm")  # They share their runs.

KEY = jax.random.key(0)
QUICK = ("maml++", "leopard")
# The others take documents only; see test_documents.py.
LABELLED = [name for name, entry in ALGORITHMS.items() if not entry.tests_on_stream]


def command_of(material, workdir, name):
    steps = {"inner_steps": 2} if "inner_steps" in ALGORITHMS[name].settings else {}
    own = {"algorithm": name, "steps": 12, "save_every": 12, "rates_learning_rate": 0.01}
    if not ALGORITHMS[name].learned_rates:
        del own["rates_learning_rate"]
    command = metatrain_command(material, workdir, **own | {"inner_steps": 0} | steps)
    if not steps:
        at = command.index("--inner-steps")
        del command[at : at + 2]
    return command


@pytest.fixture(scope="module")
def trained(material, tmp_path_factory):
    """A function that returns the workdir of a run with an algorithm."""

    @functools.cache
    def workdir_of(name):
        workdir = tmp_path_factory.mktemp("meta") / "run"
        with tiny.one_device():
            tiny.succeed(*command_of(material, workdir, name))
        return workdir

    return workdir_of


def opened(workdir, **inner):
    settings = ModelSettings(model=str(workdir))
    return open_few_shot(settings.model, settings, InnerSettings(**inner), 3)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in LABELLED]
)
def test_it_is_trained_evaluated_adapted_and_used(trained, material, tmp_path, name):
    meta, new = trained(name), tmp_path / "new"
    norms = [row["grad_norm"] for row in tiny.rows_of(meta) if "grad_norm" in row]
    assert len(norms) == 12
    assert np.isfinite(norms).all()
    tiny.succeed(
        *("evaluate", "--model", meta, "--tasks", material.intents, "--ways", 3, "--episodes", 2),
        *("--methods", "checkpoint", "same-steps", "--output", tmp_path / "rows.json"),
    )
    rows = json.loads((tmp_path / "rows.json").read_text())
    steps = 2 if "inner_steps" in ALGORITHMS[name].settings else 0
    assert [row["inner_steps"] for row in rows] == [steps, steps]

    tiny.succeed("adapt", "--model", meta, "--tasks", material.new, "--workdir", new)
    assert np.isfinite(json.loads((new / "results.json").read_text())["loss_after"])
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"{text}\n" for text, _ in tiny.examples(3, 2, seed=7, first=8)))
    guesses = tiny.succeed("predict", "--model", new, "--input", texts)
    tiny.succeed("export", "--model", new, "--output", tmp_path / "exported")
    again = tiny.succeed("predict", "--model", tmp_path / "exported", "--input", texts)
    assert again == guesses
    if not ALGORITHMS[name].plain_steps:
        check_what_was_learned(opened(meta), material, new)


def check_what_was_learned(few_shot, material, new):
    """That it differs from what training began with, and that `adapt` has used it."""
    algorithm, key = few_shot.algorithm(), few_shot.entry.initialization
    if key is not None:
        begun = algorithm.init(few_shot.params)
        for name, leaf in few_shot.learned.items():
            moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), leaf, begun[name])
            assert max(jax.tree.leaves(moved)) > 1e-4, name
    (examples,) = tokenized(data.load_tasks([str(material.new)]), few_shot.model, 32)
    adapted, _ = jax.jit(algorithm.adapt)(few_shot.meta_params, tiny.batch_of(examples), None)
    saved = open_source(str(new)).params
    close = lambda one, other: np.testing.assert_allclose(one, other, atol=2e-5)  # noqa: E731
    jax.tree.map(close, saved, as_classifier(adapted))


def test_what_an_algorithm_does_not_take_is_refused(material, tmp_path):
    for more, line in {
        "--algorithm protonet --inner-steps 2": "--inner-steps 2: protonet does not take it; "
        "remove it, or use --algorithm maml or fomaml or proto-maml",
        "--algorithm anil --lora 2": "--lora 2: anil does not take it",
        "--algorithm fomaml --low-memory": "--low-memory: fomaml does not take it",
        "--algorithm proto-maml --head zero": "--head zero: proto-maml does not take it",
        "--algorithm meta-sgd --head checkpoint": "--head checkpoint: meta-sgd does not take this "
        "value; choose prototypes or zero",
        "--algorithm maml++ --inner-steps 0": "--inner-steps 0: too few for maml++; give at least",
        "--rates-learning-rate 1": "--rates-learning-rate 1.0: maml does not take it; remove it, "
        "or use --algorithm meta-sgd or maml++",
    }.items():
        done = tiny.run(
            *("metatrain", "--model", material.bert, "--tasks", material.intents, "--workdir"),
            *(tmp_path / "run", *more.split()),
        )
        assert done.status == 2
        assert line in done.err


def test_learned_rates_are_those_of_the_steps_that_were_trained(trained, material):
    meta = trained("maml++")
    assert opened(meta, inner_steps=1).inner["inner_steps"] == 1
    with pytest.raises(InputError, match=r"--inner-steps 3: maml\+\+ has learned rates for 2"):
        opened(meta, inner_steps=3)
    with pytest.raises(InputError, match=r"--inner-lr 0.5: maml\+\+ has learned rates"):
        opened(meta, inner_lr=0.5)
    with pytest.raises(InputError, match=r"optimizer adam: maml\+\+ has learned rates for sgd"):
        opened(meta, inner_optimizer="adam")
    done = tiny.run(
        *("evaluate", "--model", meta, "--tasks", material.intents, "--ways", 3, "--curve", 2)
    )
    assert done.status == 2
    assert "--curve: not available for maml++; remove --curve" in done.err


def test_rates_have_the_learning_rate_that_was_given(trained):
    """They move further than twelve steps at the default could move them."""
    few_shot = opened(trained("maml++"))
    begun = few_shot.algorithm().init(few_shot.params)["rates"]
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), few_shot.learned["rates"], begun)
    assert max(jax.tree.leaves(moved)) > 12 * RATES_LEARNING_RATE


def test_further_meta_training_begins_with_what_was_learned(trained, caplog):
    meta = trained("maml++")

    def begun(**given):
        settings = MetatrainSettings(
            model=str(meta), tasks=("t",), workdir="w", algorithm="maml++", **given
        )
        few_shot = open_few_shot(settings.model, settings, settings, 3)
        schedule = few_shot.schedule(40)
        state = initial_state(schedule, optax.sgd(1), few_shot.params, KEY)
        return state.meta_params["rates"]["layers"]["qkv"]["kernel"]

    learned = opened(meta).learned["rates"]["layers"]["qkv"]["kernel"]
    np.testing.assert_array_equal(begun(), learned)
    np.testing.assert_array_equal(begun(inner_lr=0.5), np.full_like(learned, 0.5))
    assert "the learned rates start again at 0.5" in caplog.text
    assert begun(inner_steps=3).shape == (3, 2)


def test_a_prototypical_network_takes_steps_where_it_is_told_to(trained, material, tmp_path):
    meta = trained("protonet")
    for given in ({}, {"inner_steps": 0}):
        assert opened(meta, **given).inner["algorithm"] == "protonet"
    for given in ({"inner_lr": 0.1}, {"lora": 2}):
        with pytest.raises(InputError, match="was meta-trained with protonet, which does not take"):
            opened(meta, **given)
    stepping = opened(meta, inner_steps=2).inner
    assert (stepping["algorithm"], stepping["inner_steps"]) == ("proto-maml", 2)
    tiny.succeed("adapt", "--model", meta, "--tasks", material.new, "--workdir", tmp_path / "new")
    assert json.loads((tmp_path / "new" / "results.json").read_text())["inner_lr"] is None
    # Another algorithm takes at least as many steps as it needs, whatever the run before took.
    settings = MetatrainSettings(model=str(meta), tasks=("t",), workdir="w", algorithm="imaml")
    assert open_few_shot(str(meta), settings, settings, 3).inner["inner_steps"] == 3


@pytest.mark.parametrize("name", ["protonet", pytest.param("leopard", marks=pytest.mark.slow)])
def test_plan_says_what_fits_for_every_algorithm(material, name):
    """Of settings that the algorithm takes."""
    settings = {"ways": 2, "queries": 1, "max_length": 4, "meta_batch_size": 1}
    report = plan(PlanSettings(model=str(material.bert), algorithm=name, memory="1MB", **settings))
    takes_steps = "inner_steps" in ALGORITHMS[name].settings
    assert ("inner_steps" in report["largest"]) == takes_steps
    assert ("or inner steps" in summary(report)) == takes_steps
