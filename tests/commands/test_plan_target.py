"""`plan --target`: the program, the report and what is refused, with devices of this machine."""

import dataclasses

import jax
import pytest
import tiny

from metajax import platforms
from metajax.commands import metatrain, plan
from metajax.config.plan import PlanSettings
from metajax.config.settings import MetatrainSettings
from metajax.errors import InputError
from metajax.platforms import compiling_for
from metajax.runs import cost, planning
from metajax.runs.loop import compiler_options, lower_step
from metajax.runs.programs import describe_training
from metajax.training.targets import CHIPS, Target
from tests.commands.test_plan import SMALL, command

FULL = "RESOURCE_EXHAUSTED: the memory for HLO temporaries (32.5G) exceeds available HBM (15.75G)."


@pytest.fixture
def two_devices(monkeypatch):
    """Any target is two devices of this machine, with the numbers of an H100."""
    target = Target(CHIPS["h100"], jax.devices()[:2])
    monkeypatch.setattr(cost, "find_target", lambda text: target)


@pytest.fixture
def settings(material):
    given = SMALL | {"meta_batch_size": 4, "target": "h100:2"}
    return PlanSettings(model=str(material.bert), **given)


@pytest.mark.usefixtures("two_devices")
def test_the_cost_of_a_program_on_two_devices(settings):
    found = cost.measure(settings)
    (kind, collective), *others = found.estimate.collectives.items()
    assert (kind, others) == ("all-reduce", [])
    assert collective["count"] == 1
    # The mean of the gradients, and three numbers of each task. The pooler has no gradient.
    pooler = 16 * 16 + 16
    assert collective["bytes"] == 4 * (cost.count_parameters(settings) - pooler + 3 * 4)
    assert found.estimate.seconds == CHIPS["h100"].seconds(
        found.flops, found.estimate.moved, "float32"
    )
    assert found.estimate.moved > found.state
    assert found.tasks == cost._bytes(describe_training(settings, 2).tasks(2))
    whole = cost.measure(dataclasses.replace(settings, meta_batch_size=8))
    assert (whole.state, whole.tasks) == (found.state, 2 * found.tasks)
    assert whole.flops == 2 * found.flops
    split = cost.measure(dataclasses.replace(settings, shards=2))
    assert split.state == pytest.approx(found.state / 2, rel=0.02)
    assert split.flops == found.flops
    assert "all-gather" in split.estimate.collectives


@pytest.mark.usefixtures("two_devices")
def test_the_report(settings, monkeypatch):
    measured = cost.Cost(1, 1, 1, 10**12, cost.Estimate(10**9, 50, 0.25, {}))
    monkeypatch.setattr(planning, "measure", lambda _: measured)
    monkeypatch.setattr(planning, "_largest", lambda *_: 7)
    found = plan.plan(settings)
    assert (found["devices"], found["memory"]) == (2, 60e9)  # Three quarters of an H100's.
    assert plan.plan(dataclasses.replace(settings, memory="5GB"))["memory"] == 5e9
    summarized = {"target": "h100:2", "chips": 2, "argument_bytes": 2, "temporary_bytes": 1}
    summarized |= {"output_bytes": 1, "fits": True, "flops": 10**12, "collectives": {}}
    assert summarized.items() <= found.items()
    assert not plan.plan(dataclasses.replace(settings, memory="0.000000002GB"))["fits"]
    found["cost"]["collectives"] = {"all-reduce": {"count": 3, "bytes": 2 * 10**9}}
    lines = [" ".join(line.split()) for line in plan.summary(found).splitlines()]
    assert lines[1] == "on each of 2 devices:"
    assert lines[7:10] == [
        "memory traffic 1.00 GB per step, 50 kernels",
        "all-reduce 2.00 GB per step, 3 in all",
        "time, estimated 0.250 s per step",
    ]
    assert "fits in 60 GB:" in lines


@pytest.mark.usefixtures("two_devices")
def test_recomputing_includes_low_memory_on_accelerators(settings, monkeypatch):
    """So that they are one program, which is named once."""
    monkeypatch.setattr(planning, "measure", lambda _: cost.Cost(1, 1, 1, 1))
    monkeypatch.setattr(planning, "_largest", lambda *_: 7)
    exact = dataclasses.replace(settings, algorithm="maml", chunk_size=1)
    named = [row["change"] for row in plan.plan(exact)["alternatives"]]
    assert named == ["--remat", "--low-memory", "--algorithm fomaml"]
    named = [
        row["change"] for row in plan.plan(dataclasses.replace(exact, remat=True))["alternatives"]
    ]
    assert named == ["--algorithm fomaml"]


@pytest.mark.usefixtures("two_devices")
def test_a_program_that_the_compiler_refuses_does_not_fit(settings, monkeypatch):
    def refuse(lowered):
        raise jax.errors.JaxRuntimeError(FULL)

    monkeypatch.setattr(cost, "compile_for_target", refuse)
    found = cost.measure(settings)
    assert (found.working, found.estimate) == (round(32.5 * 2**30), None)
    assert "seconds" not in found.as_json()


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_a_plan_has_the_program_of_a_run(material, tmp_path, monkeypatch, platform):
    """A short one and a long one, which have other compiler options on a TPU: 3000 are many."""
    monkeypatch.setattr(metatrain, "train", lambda stage, params: stage)
    common = SMALL | {"model": str(material.bert), "algorithm": "maml", "meta_batch_size": 2}
    programs = []
    for steps in (1499, 1500):
        run = {"tasks": (str(material.intents),), "workdir": str(tmp_path / str(steps))}
        with tiny.one_device(), compiling_for(platform):
            planned = describe_training(PlanSettings(**common, steps=steps), 1)
            stage = metatrain.metatrain(MetatrainSettings(**common, **run, steps=steps))
            programs += [
                (
                    str(
                        jax.make_jaxpr(each.algorithm.meta_grad)(planned.params, planned.task, None)
                    ),
                    compiler_options(stage.settings, short=each.short),
                )
                for each in (planned, stage)
            ]
    short, short_run, long, long_run = programs
    assert short == short_run
    assert long == long_run
    assert (short == long) == (platform != "tpu")


@pytest.mark.parametrize("given", [SMALL, {"stage": "adapt"}], ids=["metatrain", "adapt"])
def test_a_program_that_runs_a_few_times_is_compiled_quickly(material, monkeypatch, given):
    """With the options of a TPU's compiler, which this machine's refuses."""
    target = Target(CHIPS["v5e"], jax.devices()[:2])
    monkeypatch.setattr(cost, "find_target", lambda text: target)
    monkeypatch.setitem(platforms._QUICK, "tpu", {"xla_tpu_that_is_not_there": True})
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_tpu_that_is_not_there"):
        cost.measure(PlanSettings(model=str(material.bert), target="v5e:2", **given))


def test_a_run_compiles_its_steps_quickly_if_it_is_short(material, tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(metatrain, "train", lambda stage, params: steps.append((stage, params)))
    monkeypatch.setitem(platforms._QUICK, "tpu", {"xla_tpu_that_is_not_there": True})
    common = SMALL | {"model": str(material.bert), "tasks": (str(material.intents),)}
    with compiling_for("tpu"):
        for name, changes in (("short", {"steps": 1}), ("long", {"steps": 1500})):
            metatrain.metatrain(MetatrainSettings(**common | changes, workdir=str(tmp_path / name)))
        (short, long) = (lower_step(*each) for each in steps)
    long.compile()
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_tpu_that_is_not_there"):
        short.compile()


@pytest.mark.usefixtures("two_devices")
def test_sizes_that_the_target_cannot_share(settings):
    with pytest.raises(InputError, match="--meta-batch-size 3: is not a multiple of 2"):
        plan.plan(dataclasses.replace(settings, meta_batch_size=3))
    with pytest.raises(InputError, match="--shards 3: a state cannot be sharded over 3 of 2"):
        plan.plan(dataclasses.replace(settings, shards=3))


def test_what_is_refused(material):
    with pytest.raises(InputError, match="--shards 2: needs --target; add it"):
        PlanSettings(model="m", shards=2)
    done = tiny.run(*command(material.bert, target="v9"))
    assert done.status == 2
    assert "--target v9: is not a known chip; choose from v4" in done.err
