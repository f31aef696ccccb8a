"""`plan` prints the cost of a step without running it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from metajax.algorithms.inner_loop import mean_recomputed_steps
from metajax.commands import plan
from metajax.config.inner import InnerSettings
from metajax.config.plan import PlanSettings
from metajax.errors import InputError
from metajax.models import read_model
from metajax.runs import fitting, planning
from metajax.runs.cost import Cost, count_parameters, measure
from metajax.runs.few_shot import open_few_shot
from metajax.runs.loop import compiler_options
from metajax.training.flops import count_flops
from metajax.training.optimizer import adamw
from metajax.training.parallel import outer_loop
from metajax.types import Task

SMALL = {
    "ways": 2,
    "queries": 2,
    "max_length": 8,
    "meta_batch_size": 2,
    "inner_steps": 1,
    "algorithm": "fomaml",
}


STAGE = {"stage": "metatrain", "documents": False}


def command(model, **changes):
    given = SMALL | changes
    return ("plan", "--model", model, *(str(x) for k, v in given.items() for x in (flag(k), v)))


def flag(name):
    return "--" + name.replace("_", "-")


# Each setting changes the program: without it, memory or arithmetic would differ.
LITTLE = {
    "algorithm": "maml",
    "low_memory": True,
    "remat": True,
    "dtype": "bfloat16",
    "chunk_size": 2,
    "inner_steps": 2,
    "shots": 2,
    "queries": 3,
}


@pytest.mark.parametrize("changes", [pytest.param({}, marks=pytest.mark.slow), LITTLE])
def test_the_cost_is_that_of_the_step_that_a_run_compiles(material, monkeypatch, changes):
    """On each of two devices, which share the episodes."""
    with monkeypatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: jax.devices()[:2])
        given = SMALL | {"meta_batch_size": 4} | changes
        settings = PlanSettings(model=str(material.bert), **given)
        cost = measure(settings)
    steps = settings.inner_steps
    few_shot = open_few_shot(settings.model, settings, InnerSettings(inner_steps=steps), 2)
    algorithm = few_shot.algorithm(
        algorithm=settings.algorithm, low_memory=settings.low_memory, inner_steps=steps
    )
    outer = outer_loop(
        algorithm,
        adamw(1e-3, weight_decay=0.0, clip_norm=1.0),
        chunk_size=settings.chunk_size,
        donate=True,
        compiler_options=compiler_options(settings),
    )
    state = outer.init(few_shot.params, jax.random.key(0))
    tokens = ("input_ids", "token_type_ids", "position_ids", "example_ids")

    def batch(examples):
        flat = {key: jnp.ones((2, examples), jnp.int32) for key in ("first_token", "labels")}
        flat |= {"example_mask": jnp.ones((2, examples)), "class_mask": jnp.ones((2, 2))}
        return flat | {key: jnp.ones((2, examples, 8), jnp.int32) for key in tokens}

    tasks = Task(batch(2 * settings.shots), batch(2 * settings.queries))
    analysis = outer.lower(state, tasks).compile().memory_analysis()
    taken = analysis.temp_size_in_bytes
    taken += analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    np.testing.assert_allclose(cost.working, taken, rtol=0.005)
    assert cost.state == sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert cost.tasks == sum(leaf.nbytes for leaf in jax.tree.leaves(tasks))
    assert cost.total == cost.state + cost.tasks + cost.working
    keys = jax.random.split(jax.random.key(0), 2)
    step = jax.vmap(algorithm.meta_grad, (None, 0, 0))
    flops = count_flops(
        step, few_shot.params, tasks, keys, while_length=mean_recomputed_steps(steps)
    )
    assert cost.flops == round(flops)


def test_the_command(material, tmp_path):
    output = tmp_path / "plan.json"
    out = tiny.succeed(*command(material.bert, output=output))
    found = json.loads(output.read_text())
    assert [row["change"] for row in found["alternatives"]] == ["--remat"]
    cost = found["cost"]
    assert cost["total"] == cost["state"] + cost["tasks"] + cost["working"]
    model = read_model(str(material.bert), head="encoder")
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert found["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert out == plan.summary(found) + "\n"


@pytest.mark.parametrize(
    ("given", "changes"),
    [
        (
            {"algorithm": "maml", "chunk_size": 2},
            {
                "--remat": {"remat": True},
                "--low-memory": {"low_memory": True},
                "--remat --low-memory": {"remat": True, "low_memory": True},
                "--algorithm fomaml": {"algorithm": "fomaml"},
                "--chunk-size 1": {"chunk_size": 1},
            },
        ),
        (
            {"algorithm": "maml", "low_memory": True},  # On a CPU, one episode at a time.
            {
                "--remat": {"remat": True},
                "--remat --low-memory": {"remat": True},
                "--algorithm fomaml": {"algorithm": "fomaml", "low_memory": False},
            },
        ),
        ({"algorithm": "anil", "remat": True}, {}),
    ],
)
def test_each_alternative_has_the_cost_of_its_own_settings(material, monkeypatch, given, changes):
    def measure(settings):
        few = settings.algorithm == "fomaml"
        each = (settings.remat, settings.low_memory, few, settings.chunk_size == 1)
        return Cost(*(10 ** sum(each[:n]) for n in range(1, 5)))

    monkeypatch.setattr(planning, "measure", measure)
    settings = PlanSettings(model=str(material.bert), **SMALL | given)
    found = plan.plan(settings)

    def row(cost):
        parts = dict(zip(("state", "tasks", "working", "flops"), cost))
        return parts | {"total": cost.state + cost.tasks + cost.working}

    assert found["cost"] == row(measure(settings))
    assert found["settings"] == dataclasses.asdict(settings)
    wanted = {name: dataclasses.replace(settings, **each) for name, each in changes.items()}
    if settings.low_memory:  # Another row with the same settings is omitted.
        del wanted["--remat --low-memory"]
    assert found["alternatives"] == [
        {"change": name} | row(measure(each)) for name, each in wanted.items()
    ]


def test_it_reads_no_weights_and_takes_a_workdir(chain, monkeypatch):
    monkeypatch.setattr("metajax.training.checkpoint.load", None)
    settings = PlanSettings(model=str(chain.metatrain), **SMALL)
    assert measure(settings).total > 0


@pytest.mark.parametrize("start", [1, 8, 500])
@pytest.mark.parametrize("most", [1, 2, 3, 7, 40, 300])
@pytest.mark.parametrize(
    ("grow", "compiled"),
    [
        (lambda k: 40 * k, 2),
        (lambda k: 4000 + 40 * k, 3),
        (lambda k: 4000 + 40 * k + k * k // 50, 4),
        (lambda k: 1000 * k**0.5, 7),
        (lambda k: 40 * (k + (k > 1) * 9), 6),
    ],
    ids=["proportional", "linear", "slightly convex", "concave", "with a jump"],
)
def test_few_programs_find_the_largest_to_five_percent(start, most, grow, compiled):
    asked = []

    def total(value):
        asked.append(value)
        return round(grow(value))

    found = fitting.largest_fitting(total, start, grow(most) + 1)
    assert most / 1.05 - 1 < found <= most
    assert len(asked) == len(set(asked)) <= compiled


@pytest.mark.parametrize("start", [1, 8, 500])
def test_nothing_fits(start):
    asked = []
    assert fitting.largest_fitting(lambda k: asked.append(k) or 90 + 40 * k, start, 100) == 0
    assert len(asked) <= 3


@pytest.mark.parametrize("end", [60, 5000])
def test_memory_that_does_not_grow_or_jumps(end):
    asked = []
    found = fitting.largest_fitting(lambda k: asked.append(k) or 10 + 10**9 * (k > end), 1, 100)
    assert len(asked) < 25
    assert min(end, fitting._MOST) / 1.05 - 1 < found <= min(end, fitting._MOST)


@pytest.mark.parametrize("most", [1, 2, 3, 7, 40, 300])
@pytest.mark.parametrize("grow", [lambda k: k, lambda k: k**0.5, lambda k: (k > 1) * 9 + k])
def test_the_largest_is_found_to_five_percent(material, monkeypatch, most, grow):
    def measure(settings):
        if settings.chunk_size is None:
            return Cost(0, 0, 1, 1)
        return Cost(0, 0, round(1000 * grow(settings.chunk_size)), 1)

    monkeypatch.setattr(planning, "measure", measure)
    memory = str(round(1000 * grow(most)) + 1)
    monkeypatch.setattr(planning, "parse_memory", float)
    settings = PlanSettings(model=str(material.bert), memory=memory, **SMALL)
    found = plan.plan(settings)["largest"]["chunk_size"]
    assert 0.95 * most - 1 <= found <= most


def test_each_program_is_compiled_once(material, monkeypatch):
    """Also if the settings name it in two ways: the default number of steps, and the same given."""
    compiled = []

    def measure(settings):
        compiled.append((settings.inner_steps or 3, settings.chunk_size or 1))
        return Cost(0, 0, compiled[-1][0] * 10, 1)

    monkeypatch.setattr(planning, "measure", measure)
    given = SMALL | {"inner_steps": None, "meta_batch_size": 1, "remat": True}
    settings = PlanSettings(model=str(material.bert), memory="0.0000001GB", **given)
    assert plan.plan(settings)["largest"]["inner_steps"] == 10
    assert compiled[0] == (3, 1)
    assert len(compiled) == len(set(compiled))


def test_progress_names_each_program_and_its_memory(material, monkeypatch):
    notes = []
    monkeypatch.setattr(planning.Progress, "update", lambda self, note: notes.append(note))
    monkeypatch.setattr(planning, "measure", lambda settings: Cost(10**9, 0, 5 * 10**8, 1))
    plan.plan(PlanSettings(model=str(material.bert), memory="2GB", **SMALL))
    assert notes[:2] == ["as given needs 1.50 GB", "--remat needs 1.50 GB"]
    assert notes[2].startswith("--chunk-size ")


def test_a_warning_is_printed_once(material, monkeypatch, caplog):
    """Each of the programs describes the model, which names no pooling."""
    for _ in range(2):
        caplog.clear()
        plan.plan(PlanSettings(model=str(material.bert), **SMALL))
        assert [record.message for record in caplog.records].count(caplog.messages[0]) == 1
        assert "names no pooling" in caplog.messages[0]


def test_more_steps_may_take_less_than_unrolled_ones(material, monkeypatch):
    def measure(settings):
        steps = settings.inner_steps
        return Cost(0, 0, 100 * steps if steps <= 5 else 200 + 10 * steps, 1)

    monkeypatch.setattr(planning, "measure", measure)
    settings = PlanSettings(model=str(material.bert), memory="0.0000003GB", **SMALL)
    assert plan.plan(settings)["largest"]["inner_steps"] == 10


def test_the_largest_that_fits(material, monkeypatch):
    """On each of two devices, with memory that grows as expected; the rest is tested above."""
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:2])

    def measure(settings):
        assert settings.meta_batch_size == 2 * (settings.chunk_size or 1)
        step = settings.inner_steps * 7 + 2 * (settings.inner_steps > 4)
        return Cost(100, settings.chunk_size or 1, step * (settings.chunk_size or 1), 1)

    monkeypatch.setattr(planning, "measure", measure)
    settings = PlanSettings(model=str(material.bert), memory="0.00000020GB", **SMALL)
    found = plan.plan(settings)
    assert found["largest"] == {"chunk_size": 12, "inner_steps": 13}
    assert found["memory"] == 200
    tight = PlanSettings(model=str(material.bert), memory="0.0000001GB", **SMALL)
    assert plan.plan(tight)["largest"] == {"chunk_size": 0, "inner_steps": 0}


def test_the_advice():
    cost = {"total": 10e9, "flops": 100}
    small = {"change": "--remat", "total": 5e9, "flops": 120}
    smaller = {"change": "--low-memory", "total": 4e9, "flops": 150}
    settings = STAGE | {"algorithm": "maml", "low_memory": False, "remat": False}
    found = {"cost": cost, "alternatives": [smaller, small], "settings": settings}
    assert "the fastest exact engine" in plan.advice(found)
    assert plan.advice(found | {"memory": 6e9}) == (
        "does not fit; --remat fits, at 1.20 times the arithmetic"
    )
    assert "--low-memory fits, at 1.50" in plan.advice(found | {"memory": 4.5e9})
    assert "nor do the alternatives" in plan.advice(found | {"memory": 1e9})
    assert "the fastest exact engine" in plan.advice(found | {"memory": 10e9})
    assert "--low-memory fits" in plan.advice(found | {"memory": 4e9})
    low = {"settings": STAGE | {"algorithm": "maml", "low_memory": True}}
    assert "forward over reverse" in plan.advice(found | low)
    remat = {"settings": settings | {"remat": True}}
    assert "without --remat it is faster" in plan.advice(found | remat)
    other = {"settings": STAGE | {"algorithm": "anil", "low_memory": False}}
    assert "anil has one engine" in plan.advice(found | other)


def test_the_summary_is_in_billions_of_bytes_and_operations():
    cost = {"state": 1.5e9, "tasks": 0.25e9, "working": 2e9, "total": 3.75e9, "flops": 2.5e12}
    found = {
        "settings": STAGE | {"algorithm": "maml", "low_memory": False, "remat": False},
        "parameters": 33_400_000,
        "cost": cost,
        "memory": 15.5e9,
        "largest": {"chunk_size": 12, "inner_steps": 34},
        "alternatives": [{"change": "--remat", "total": 3.25e9, "flops": 4e12}],
    }
    lines = [" ".join(line.split()) for line in plan.summary(found).splitlines()]
    assert lines[:-1] == [
        "parameters 33.4 million",
        "on each device:",
        "parameters and optimizer 1.50 GB",
        "tasks 0.25 GB",
        "during a step 2.00 GB",
        "total 3.75 GB",
        "arithmetic 2.50 TFLOP per step",
        "fits in 15.5 GB:",
        "episodes at once 12 (more per step with --chunk-size 12)",
        "or inner steps 34",
        "",
        "instead GB TFLOP",
        "--remat 3.25 4.00",
        "",
    ]
    assert lines[-1] == plan.advice(found)


@pytest.mark.parametrize(
    "text", ["", "16", "GB", "-1GB", "1.2.3GB", "sixteenGB", "0GB", "9" * 400 + "GB"]
)
def test_nonsense_amounts_of_memory(text):
    with pytest.raises(InputError, match="give one such as 16GB"):
        planning.parse_memory(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2kB", 2e3),
        ("3MB", 3e6),
        ("16GB", 16e9),
        ("0.5 TB", 5e11),
        ("4KiB", 4 * 2**10),
        ("5MiB", 5 * 2**20),
        ("1.5GiB", 1.5 * 2**30),
    ],
)
def test_amounts_of_memory(text, size):
    assert planning.parse_memory(text) == size


def test_layers_that_are_not_there(material):
    with pytest.raises(InputError, match="--layers 2: the model has 2 blocks"):
        plan.plan(PlanSettings(model=str(material.bert), layers=2, **SMALL))
    with pytest.raises(InputError, match="--layers 1: reptile does not take it; remove it"):
        plan.plan(
            PlanSettings(model=str(material.bert), layers=1, **SMALL | {"algorithm": "reptile"})
        )


def test_another_number_of_classes_than_a_run_has(chain):
    """The head is then a new one, as in metatrain."""
    settings = PlanSettings(model=str(chain.adapt), head="checkpoint", **SMALL | {"ways": 5})
    headless = dataclasses.replace(settings, head="zero")
    counts = [count_parameters(each) for each in (settings, headless)]
    assert counts[0] - counts[1] == 5 * (tiny.CONFIG.hidden_size + 1)
    assert measure(settings).state > 3 * 4 * counts[0]
