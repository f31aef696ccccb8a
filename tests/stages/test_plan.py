"""`plan` says what a step takes without taking one."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from metajax.errors import InputError
from metajax.optimizer import adamw
from metajax.parallel import outer_loop
from metajax.stages import plan
from metajax.stages.few_shot import open_few_shot
from metajax.stages.groups import InnerSettings
from metajax.stages.loop import compiler_options
from metajax.stages.settings import PlanSettings
from metajax.types import Task

SMALL = {
    "ways": 2,
    "queries": 2,
    "max_length": 8,
    "meta_batch_size": 2,
    "inner_steps": 1,
    "algorithm": "fomaml",
}


def command(model, **changes):
    given = SMALL | changes
    return ("plan", "--model", model, *(str(x) for k, v in given.items() for x in (flag(k), v)))


def flag(name):
    return "--" + name.replace("_", "-")


@pytest.mark.parametrize("little", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_cost_is_that_of_the_step_that_a_run_compiles(material, little):
    changes = {"algorithm": "maml", "low_memory": True, "remat": True} if little else {}
    settings = PlanSettings(model=str(material.bert), **SMALL | changes)
    cost = plan.measure(settings)
    few_shot = open_few_shot(settings.model, settings, InnerSettings(inner_steps=1), 2)
    outer = outer_loop(
        few_shot.algorithm(algorithm=settings.algorithm, low_memory=little),
        adamw(1e-3, weight_decay=0.0, clip_norm=1.0),
        donate=True,
        compiler_options=compiler_options(settings),
    )
    state = outer.init(few_shot.params, jax.random.key(0))
    tokens = ("input_ids", "token_type_ids", "position_ids", "example_ids")

    def batch(examples):
        flat = {key: jnp.ones((2, examples), jnp.int32) for key in ("first_token", "labels")}
        flat |= {"example_mask": jnp.ones((2, examples)), "class_mask": jnp.ones((2, 2))}
        return flat | {key: jnp.ones((2, examples, 8), jnp.int32) for key in tokens}

    tasks = Task(batch(2), batch(4))
    analysis = outer.lower(state, tasks).compile().memory_analysis()
    taken = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    taken += analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    np.testing.assert_allclose(cost.total, taken, rtol=0.1)
    assert cost.state > 3 * 4 * sum(leaf.size for leaf in jax.tree.leaves(few_shot.params))
    assert cost.flops > 0


def test_the_command(material, tmp_path):
    output = tmp_path / "plan.json"
    out = tiny.succeed(*command(material.bert, output=output))
    found = json.loads(output.read_text())
    assert [row["change"] for row in found["alternatives"]] == ["--remat"]
    cost = found["cost"]
    assert cost["total"] == cost["state"] + cost["tasks"] + cost["working"]
    assert f"{found['parameters'] / 1e6:.1f} million" in out
    assert "--remat" in out


def test_it_reads_no_weights_and_takes_a_workdir(chain, monkeypatch):
    monkeypatch.setattr("metajax.stages.source.checkpoint.load", None)
    settings = PlanSettings(model=str(chain.metatrain), **SMALL)
    assert plan.measure(settings).total > 0


@pytest.mark.parametrize("most", [1, 2, 3, 7, 40, 300])
@pytest.mark.parametrize("grow", [lambda k: k, lambda k: k**0.5, lambda k: (k > 1) * 9 + k])
def test_the_largest_is_found_to_five_percent(material, monkeypatch, most, grow):
    def measure(settings):
        if settings.chunk_size is None:
            return plan.Cost(0, 0, 1, 1)
        return plan.Cost(0, 0, round(1000 * grow(settings.chunk_size)), 1)

    monkeypatch.setattr(plan, "measure", measure)
    memory = str(round(1000 * grow(most)) + 1)
    monkeypatch.setattr(plan, "parse_memory", float)
    settings = PlanSettings(model=str(material.bert), memory=memory, **SMALL)
    found = plan.plan(settings)["largest"]["chunk_size"]
    assert 0.95 * most - 1 <= found <= most


def test_more_steps_may_take_less_than_unrolled_ones(material, monkeypatch):
    def measure(settings):
        steps = settings.inner_steps
        return plan.Cost(0, 0, 100 * steps if steps <= 5 else 200 + 10 * steps, 1)

    monkeypatch.setattr(plan, "measure", measure)
    settings = PlanSettings(model=str(material.bert), memory="0.0000003GB", **SMALL)
    assert plan.plan(settings)["largest"]["inner_steps"] == 10


def test_the_largest_that_fits(material, monkeypatch):
    """With memory that grows as expected; what is compiled is tested above."""

    def measure(settings):
        step = settings.inner_steps * 7 + 2 * (settings.inner_steps > 4)
        return plan.Cost(100, settings.chunk_size or 1, step * (settings.chunk_size or 1), 1)

    monkeypatch.setattr(plan, "measure", measure)
    settings = PlanSettings(model=str(material.bert), memory="0.00000020GB", **SMALL)
    assert plan.plan(settings)["largest"] == {"chunk_size": 12, "inner_steps": 13}
    tight = PlanSettings(model=str(material.bert), memory="0.0000001GB", **SMALL)
    assert plan.plan(tight)["largest"] == {"chunk_size": 0, "inner_steps": 0}


def test_the_advice():
    cost = {"total": 10e9, "flops": 100}
    small = {"change": "--remat", "total": 5e9, "flops": 120}
    smaller = {"change": "--low-memory", "total": 4e9, "flops": 150}
    settings = {"algorithm": "maml", "low_memory": False}
    found = {"cost": cost, "alternatives": [smaller, small], "settings": settings}
    assert "the fastest exact engine" in plan.advice(found)
    assert plan.advice(found | {"memory": 6e9}) == (
        "does not fit: --remat would, at 1.20 times the arithmetic"
    )
    assert "--low-memory would, at 1.50" in plan.advice(found | {"memory": 4.5e9})
    assert "none of these does" in plan.advice(found | {"memory": 1e9})


@pytest.mark.parametrize(
    "text", ["", "16", "GB", "-1GB", "1.2.3GB", "sixteenGB", "0GB", "9" * 400 + "GB"]
)
def test_nonsense_amounts_of_memory(text):
    with pytest.raises(InputError, match="give an amount such as 16GB"):
        plan.parse_memory(text)


def test_amounts_of_memory():
    assert plan.parse_memory("16GB") == 16e9
    assert plan.parse_memory("1.5GiB") == 1.5 * 2**30


def test_layers_that_are_not_there(material):
    with pytest.raises(InputError, match="--layers 2: the model has 2 blocks"):
        plan.plan(PlanSettings(model=str(material.bert), layers=2, **SMALL))
    with pytest.raises(InputError, match="--layers 1: reptile has no choice of what adapts"):
        plan.plan(
            PlanSettings(model=str(material.bert), layers=1, **SMALL | {"algorithm": "reptile"})
        )


def test_another_number_of_classes_than_a_run_has(chain):
    """The checkpoint's head then is a new one, as in metatrain."""
    command = ("plan", "--model", chain.adapt, "--head", "checkpoint", "--ways", 5)
    assert "memory" in tiny.succeed(*command, "--max-length", 8, "--inner-steps", 1)
