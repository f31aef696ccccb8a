"""`plan --stage`: the program of each stage is the one that a run compiles."""

import re

import jax
import numpy as np
import pytest
import tiny

from metajax.commands import plan
from metajax.commands.adapt import adapt
from metajax.commands.finetune import finetune
from metajax.commands.metatrain import metatrain
from metajax.commands.pretrain import pretrain
from metajax.config.plan import PlanSettings
from metajax.config.settings import (
    AdaptSettings,
    FinetuneSettings,
    MetatrainSettings,
    PretrainSettings,
)
from metajax.errors import InputError
from metajax.runs import cost, descent, few_shot, loop, planning
from metajax.runs.programs import describe_adaptation, describe_training
from metajax.training.targets import CHIPS, Target
from tests.commands.test_decoders import write_llama

LENGTH = 8  # Of every text of the tiny tasks: six words between [CLS] and [SEP].


class Compiled(Exception):  # noqa: N818
    """The first step of a run is compiled."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """Documents that fill all chunks of a task."""
    directory = tmp_path_factory.mktemp("documents")
    for name in "abc":
        (directory / f"{name}.txt").write_text(" ".join(tiny.WORDS) + "\n")
    return directory


@pytest.fixture
def first_step(monkeypatch):
    """Run a stage up to its first step. Return the step, compiled, its state and its tasks."""

    def run(stage, settings):
        found = []

        def spying(*args, **kwargs):
            outer = original(*args, **kwargs)

            def step(state, tasks):
                found.extend((outer.lower(state, tasks).compile(), state, tasks))
                raise Compiled

            return outer._replace(step=step)

        original = loop.outer_loop
        with monkeypatch.context() as patch:
            patch.setattr(loop, "outer_loop", spying)
            with pytest.raises(Compiled):
                stage(settings)
        return found

    return run


def same_cost(settings, compiled, state, tasks):
    found = cost.measure(settings)
    analysis = compiled.memory_analysis()
    taken = analysis.temp_size_in_bytes
    taken += analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    np.testing.assert_allclose(found.working, taken, rtol=0.005)
    count = 4  # Bytes of the number of steps, which the schedule of a run counts.
    assert found.state + count == sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert found.tasks == sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tasks))
    planned = describe_training(settings, 1)
    planned = planned.tasks(planned.num_tasks)
    assert jax.tree.structure(planned) == jax.tree.structure(tasks)
    shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(planned)]
    assert shapes == [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tasks)]
    assert found.flops > 0


@pytest.mark.parametrize("which", ["bert", "gpt2"])
def test_pretrain(material, first_step, tmp_path, which):
    sizes = {"max_length": 16, "batch_size": 4, "remat": True}
    model = str(getattr(material, which))
    run = PretrainSettings(
        model=model, text=(str(material.text),), workdir=str(tmp_path / "run"), **sizes
    )
    same_cost(PlanSettings(model=model, stage="pretrain", **sizes), *first_step(pretrain, run))


def test_finetune(material, first_step, tmp_path):
    sizes = {"model": str(material.bert), "max_length": LENGTH, "batch_size": 6}
    run = FinetuneSettings(tasks=(str(material.three),), workdir=str(tmp_path / "run"), **sizes)
    same_cost(PlanSettings(stage="finetune", ways=3, **sizes), *first_step(finetune, run))


@pytest.mark.parametrize("algorithm", ["test-time-training", "fomaml"])
def test_metatrain_on_documents(llama, documents, first_step, tmp_path, algorithm):
    sizes = {"model": str(llama), "max_length": LENGTH, "meta_batch_size": 2, "inner_steps": 2}
    sizes |= {"algorithm": algorithm, "lora": 2}
    run = MetatrainSettings(
        tasks=(f"documents:{documents}",), workdir=str(tmp_path / "run"), **sizes
    )
    settings = PlanSettings(documents=algorithm == "fomaml", **sizes)
    same_cost(settings, *first_step(metatrain, run))


def jaxpr_of(function, *arguments):
    return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(function)(*arguments)))


@pytest.mark.parametrize(
    "changes",
    [{}, {"head": "zero", "layers": 1}, {"lora": 2, "freeze": True}],
    ids=["plain", "layers", "lora"],
)
def test_adapt_compiles_the_gradient_of_a_part(material, tmp_path, monkeypatch, changes):
    given = changes | {"model": str(material.bert), "max_length": LENGTH, "inner_steps": 1}
    seen = []

    def spying(loss_fn):
        def add(*arguments):
            if not seen:
                seen.append(jaxpr_of(original(loss_fn), *arguments))
            return original(loss_fn)(*arguments)

        return add

    program = describe_adaptation(PlanSettings(stage="adapt", ways=3, shots=2, **given))
    planned = jaxpr_of(program.function, *program.arguments)
    original = descent._adder
    with monkeypatch.context() as patch:
        patch.setattr(descent, "_adder", spying)
        where = {"tasks": (str(material.new),), "workdir": str(tmp_path / "run")}
        adapt(AdaptSettings(inner_lr=0.1, **where, **given))
    assert planned == seen[0]


def adapted(monkeypatch, settings):
    """Return the program in which a run takes all its inner steps."""
    seen = []

    def spying(self, **changes):
        algorithm = original(self, **changes)

        def take_steps(params, support, rng):
            if not seen:
                plain = lambda params, support: algorithm.adapt(params, support, rng)  # noqa: E731
                seen.append(jaxpr_of(plain, params, support))
            return algorithm.adapt(params, support, rng)

        return algorithm._replace(adapt=take_steps)

    original = few_shot.FewShot.algorithm
    with monkeypatch.context() as patch:
        patch.setattr(few_shot.FewShot, "algorithm", spying)
        adapt(settings)
    return seen[0]


def test_adapt_to_documents_compiles_all_steps(llama, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text(" ".join(tiny.WORDS))
    given = {"model": str(llama), "max_length": LENGTH, "inner_steps": 3, "lora": 2}
    where = {"tasks": (f"documents:{tmp_path / 'a.txt'}",), "workdir": str(tmp_path / "run")}
    program = describe_adaptation(PlanSettings(stage="adapt", documents=True, **given))
    planned = jaxpr_of(program.function, *program.arguments)
    assert planned == adapted(monkeypatch, AdaptSettings(**where, **given))


def test_the_memory_of_adapt(material):
    """The weights, those before and after a step, and the gradient."""
    settings = PlanSettings(model=str(material.bert), stage="adapt", head="zero", max_length=8)
    found = cost.measure(settings)
    weights = 4 * cost.count_parameters(settings)
    assert 2.5 * weights < found.state < 4.5 * weights
    less = cost.measure(PlanSettings(model=str(material.bert), stage="adapt", layers=0, ways=9))
    assert less.state < found.state / 2


def test_each_device_has_its_part_of_a_batch(material, monkeypatch):
    target = Target(CHIPS["h100"], jax.devices()[:2])
    monkeypatch.setattr(cost, "find_target", lambda text: target)
    sizes = {"model": str(material.bert), "stage": "pretrain", "max_length": LENGTH}
    two = cost.measure(PlanSettings(target="h100:2", batch_size=8, **sizes))
    one = cost.measure(PlanSettings(batch_size=4, **sizes))
    assert (two.state, two.tasks, two.flops) == (one.state, one.tasks, one.flops)
    assert two.estimate.collectives.keys() == {"all-reduce"}


def test_the_largest_batch(material, monkeypatch):
    """It is a number of rows on all devices."""
    target = Target(CHIPS["h100"], jax.devices()[:2])
    monkeypatch.setattr(cost, "find_target", lambda text: target)
    monkeypatch.setattr(planning, "target_of", lambda settings: target)

    asked = []

    def measure(settings):
        asked.append(settings.rows)
        return cost.Cost(10, 0, settings.rows // 2 * 10 + settings.rows % 2, 1)

    monkeypatch.setattr(planning, "measure", measure)
    settings = PlanSettings(
        model=str(material.bert), stage="finetune", target="h100:2", memory="0.0000002GB"
    )
    report = planning.make_report(settings)
    assert report["largest"] == {"batch_size": 38}
    assert not any(rows % 2 for rows in asked)
    assert "--batch-size 38" in " ".join(plan.summary(report).split())
    assert [row["change"] for row in report["alternatives"]] == ["--remat"]
    with pytest.raises(InputError, match="--batch-size 3: is not a multiple of 2"):
        planning.plan(str(material.bert), stage="pretrain", target="h100:2", batch_size=3)
    with pytest.raises(InputError, match="adapt runs on one device; give --target h100"):
        planning.plan(str(material.bert), stage="adapt", target="h100:2")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"stage": "pretrain", "shots": 2}, "--shots 2: pretrain does not take it; remove it"),
        ({"stage": "finetune", "low_memory": True}, "--low-memory: finetune does not take it"),
        ({"stage": "adapt", "meta_batch_size": 2}, "--meta-batch-size 2: adapt does not take it"),
        ({"stage": "adapt", "queries": 2}, "--queries 2: adapt does not take it; remove it"),
        ({"batch_size": 2}, "--batch-size 2: metatrain does not take it; remove it"),
        ({"documents": True, "ways": 2}, "--ways 2: does not apply to documents; remove it"),
        ({"algorithm": "test-time-training", "shots": 2}, "--shots 2: does not apply"),
    ],
)
def test_settings_that_a_stage_does_not_have(given, line):
    with pytest.raises(InputError, match=line):
        PlanSettings(model="m", **given)


def test_from_python(material, monkeypatch):
    monkeypatch.setattr(planning, "measure", lambda settings: cost.Cost(1, 2, 3, 4))
    report = planning.plan(str(material.bert), stage="adapt", ways=3, memory="10GB")
    assert report["settings"]["ways"] == 3
    assert report["cost"] == {"state": 1, "tasks": 2, "working": 3, "flops": 4, "total": 6}
    assert report["largest"] == {}
    assert plan.advice(report) == "adapt has one engine; --remat needs less memory and more time"
    with pytest.raises(TypeError, match="shot"):
        planning.plan(str(material.bert), shot=3)
