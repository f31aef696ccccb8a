"""`metatrain --memory`: the fastest exact plan that fits, recorded for when the run resumes."""

import importlib
import json
import logging
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny
from jax.experimental.compilation_cache import compilation_cache

from metajax.config.settings import MetatrainSettings
from metajax.errors import InputError
from metajax.platforms import compiling_for
from metajax.runs import loop, memory_plan
from metajax.runs.memory_plan import choose_plan, device_memory, step_memory, with_plan
from metajax.training import distributed
from tests.runs.test_resume import losses, results, stop_at
from tests.stage_commands import metatrain_command

metatrain = importlib.import_module("metajax.commands.metatrain")
ALL = {"chunk_size": 1, "low_memory": True, "remat": True}
LOW = {"chunk_size": 1, "low_memory": True}


def settings_of(**changes):
    given = {"model": "m", "tasks": ("t",), "workdir": "w", "meta_batch_size": 8}
    return MetatrainSettings(**given | changes)


def gigabytes(settings):
    """The memory of an invented step."""
    chunk = settings.chunk_size or 8
    if settings.low_memory:
        return 1e9 * (4 + chunk - 2 * settings.remat)
    return 1e9 * (2 + 8 * chunk - 3 * settings.remat)


def search(memory, algorithm="maml", size_of=gigabytes, **changes):
    """Return the plan for an accelerator, and how many programs were compiled."""
    sizes = []

    def compiled(settings):
        sizes.append(size_of(settings))
        return sizes[-1]

    with compiling_for("gpu"):
        plan = choose_plan(settings_of(**changes), algorithm, 1e9 * memory, compiled)
    return plan, len(sizes)


@pytest.mark.parametrize(
    ("memory", "plan", "programs"),
    [
        (66, {}, 1),
        (65, {"chunk_size": 4}, 2),
        (34, {"chunk_size": 4}, 2),
        (33, {"chunk_size": 2}, 3),
        (32, {"chunk_size": 2}, 2),  # If all memory were the tasks', 3.9 would fit.
        (10, {"chunk_size": 1}, 2),
        (9, LOW, 3),
        (8, LOW, 2),  # Not even one would fit.
        (5, LOW, 2),
        (4, ALL, 3),
        (3, ALL, 3),
    ],
)
def test_the_fastest_plan_that_fits_is_found_in_few_programs(memory, plan, programs):
    assert search(memory) == (plan, programs)


@pytest.mark.parametrize(
    ("memory", "changes", "plan"),
    [
        (32, {"meta_batch_size": 6, "chunk_size": 6}, {"chunk_size": 3}),
        (20, {"meta_batch_size": 6, "chunk_size": 6}, {"chunk_size": 2}),
        (49, {"meta_batch_size": 12, "chunk_size": 6}, {"chunk_size": 3}),  # At most half.
        (40, {"chunk_size": 4}, {}),
        (20, {"chunk_size": 4}, {"chunk_size": 2}),
        (6, {"low_memory": True}, {"chunk_size": 2}),
        (4, {"low_memory": True}, {"chunk_size": 1, "remat": True}),
        (6, {"remat": True}, {"chunk_size": 1, "low_memory": True}),
        (5, {"remat": True, "chunk_size": 1}, {"low_memory": True}),
        (7, {"algorithm": "fomaml"}, {"chunk_size": 1, "remat": True}),
    ],
)
def test_what_is_given_stays_and_what_the_algorithm_lacks_is_left_out(memory, changes, plan):
    assert search(memory, **{"algorithm": "maml", **changes})[0] == plan


@pytest.mark.parametrize(
    ("algorithm", "changes", "hint"),
    [
        ("maml", {}, "needs 3 GB of 2.5; use a smaller --max-length, adapt fewer --layers, or use"),
        ("anil", {}, "needs 7 GB of 2.5; use a smaller --max-length, or use"),
        ("maml", {"tasks": ("documents:d",)}, "needs 3 GB of 2.5; use a smaller --max-length, or"),
        ("maml", {"remat": True, **LOW}, "needs 3 GB of 2.5; use"),
    ],
)
def test_where_nothing_fits_the_smallest_is_named(algorithm, changes, hint):
    with pytest.raises(InputError, match=f"^metatrain: the smallest exact step {hint}"):
        search(2.5, algorithm, **changes)


def test_the_smallest_step_is_not_always_the_last():
    with pytest.raises(InputError, match="needs 5 GB of 4"):
        search(4, size_of=lambda settings: gigabytes(settings) + 4e9 * settings.remat)


def test_the_log_says_what_is_compiled_and_what_was_chosen_and_why(caplog):
    as_given = ["metatrain: compiling a step to see if it fits", "metatrain: compiled in 0 s"]
    with caplog.at_level(logging.INFO, "metajax"):
        search(66)
        assert caplog.messages == as_given
        caplog.clear()
        search(8.5)
    assert caplog.messages[:2] == as_given
    assert caplog.messages[-3:] == [
        "metatrain: compiling a step with --chunk-size 1 --low-memory to see if it fits",
        "metatrain: compiled in 0 s",
        "metatrain: the step needs 66 GB of 8.5; with --chunk-size 1 --low-memory it needs 5 GB",
    ]


def test_processes_agree(monkeypatch):
    """On the largest need and the smallest memory."""
    monkeypatch.setattr(distributed, "largest", lambda value: max(value, -32e9))
    assert search(66)[0] == {"chunk_size": 2}
    monkeypatch.setattr(distributed, "largest", lambda value: value if value < 0 else 10e9 + value)
    assert search(66)[0] == {"chunk_size": 4}


def test_the_largest_value_of_all_processes(monkeypatch):
    assert distributed.largest(16e9 + 1) == 16e9 + 1
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    gathered = SimpleNamespace(process_allgather=lambda value: np.stack([value, value + 1]))
    monkeypatch.setattr(distributed, "multihost_utils", gathered)
    assert distributed.largest(2.0) == 3


def test_the_memory_is_as_given_or_that_of_the_smallest_device(monkeypatch):
    assert device_memory(settings_of(memory="16GB")) == 16e9
    for stats, expected in (
        ((None,), None),
        (({"peak_bytes_in_use": 1},), None),
        (({"bytes_limit": 7}, {"bytes_limit": 5}), 5),
    ):
        devices = [SimpleNamespace(memory_stats=lambda each=each: each) for each in stats]
        monkeypatch.setattr(jax, "local_devices", lambda devices=devices: devices)
        assert device_memory(settings_of()) == expected


def test_a_plan_divides_the_share_of_more_devices(monkeypatch):
    settings = settings_of(remat=True)
    assert with_plan(settings, {}) == settings
    assert with_plan(settings, LOW) == settings_of(remat=True, **LOW)
    monkeypatch.setattr(memory_plan, "all_devices", lambda: [0, 1, 2, 3])
    assert with_plan(settings, {"chunk_size": 4}).chunk_size == 2
    # Each device has two tasks.
    assert search(8, size_of=lambda each: (each.chunk_size or 9) * 1e9)[0] == {"chunk_size": 1}


@pytest.fixture
def stage(material, tmp_path, monkeypatch):
    """A stage and its parameters."""
    caught = []
    with monkeypatch.context() as patch:
        patch.setattr(metatrain, "train", lambda *given: caught.append(given) or {})
        tiny.succeed(*metatrain_command(material, tmp_path / "run"))
    return caught[0]


@pytest.fixture
def own_cache(tmp_path):
    """JAX's cache of compiled programs, empty."""
    shared = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "xla"))
    compilation_cache.reset_cache()
    yield tmp_path / "xla"
    jax.config.update("jax_compilation_cache_dir", shared)
    compilation_cache.reset_cache()


def test_the_program_that_is_measured_is_the_one_that_runs(stage, own_cache):
    """The run loads it from JAX's cache."""
    stage, params = stage
    size = step_memory(stage, params)
    outer = loop._outer_loop(stage)
    state, tasks = outer.init(params, jax.random.key(stage.settings.seed)), stage.make_tasks(0)
    found = outer.lower(state, tasks).compile().memory_analysis()
    outer.step(state, tasks)
    assert len(list(own_cache.glob("jit_step-*-cache"))) == 1
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    assert size == found.argument_size_in_bytes + found.temp_size_in_bytes + results


def test_a_program_that_the_compiler_refuses_needs_more(monkeypatch):
    def refuse():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: temporaries (3.0K) exceed (1.0K).")

    avals = ({"a": jax.ShapeDtypeStruct((10,), np.float32)}, jax.ShapeDtypeStruct((), np.int32))
    lowered = SimpleNamespace(compile=refuse, in_avals=avals)
    monkeypatch.setattr(memory_plan, "lower_step", lambda *_: lowered)
    assert step_memory(None, None) == 3 * 1024 + 44


def plan_of(workdir):
    return json.loads((workdir / "run.json").read_text()).get("plan")


def test_a_run_resumes_with_the_plan_that_it_chose(material, tmp_path, monkeypatch):
    """And computes what it would with the same flags."""
    by_hand = metatrain_command(material, tmp_path / "by_hand")
    tiny.succeed(*by_hand, "--low-memory", "--remat")
    command = [*metatrain_command(material, tmp_path / "run"), "--memory"]
    with monkeypatch.context() as patch:
        sizes = {(False, False): 5e9, (True, False): 4e9, (True, True): 3e9}
        patch.setattr(
            metatrain,
            "step_memory",
            lambda stage, params: sizes[stage.settings.low_memory, stage.model.remat],
        )
        stop_at(patch, "metatrain", 3)
        stopped = tiny.run(*command, "3GB")
    line = "the step needs 5 GB of 3; with --low-memory --remat it needs 3 GB\n"
    assert stopped.status == 1
    assert line in stopped.err
    assert plan_of(tmp_path / "run") == {"low_memory": True, "remat": True}
    resumed = tiny.run(*command, "1kB")
    assert resumed.status == 0
    assert "to see if it fits" not in resumed.err  # Nothing is compiled to be measured.
    assert "starts from step 2" in resumed.err
    states = [tiny.training_state(tmp_path / name) for name in ("run", "by_hand")]
    tiny.assert_same_bits(*states)
    assert losses(tmp_path / "run") == losses(tmp_path / "by_hand")
    assert results(tmp_path / "run") == results(tmp_path / "by_hand")
    assert plan_of(tmp_path / "by_hand") is None


def test_nothing_fits(refused, material, tmp_path):
    refused(
        "^metajax: error: metatrain: the smallest exact step needs 0.000[0-9]+ GB of 1e-06; use",
        *metatrain_command(material, tmp_path / "run"),
        *("--memory", "1kB", "--low-memory", "--remat", "--log-level", "error"),
    )
