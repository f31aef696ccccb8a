"""The training loop, on a problem whose steps are also calculated here."""

import functools
import itertools
import json
import logging
import re
import resource
import shutil
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.custom_batching import custom_vmap
from tensorboardX.proto.event_pb2 import Event

from metajax.algorithms.supervised import supervised
from metajax.config.settings import PretrainSettings
from metajax.errors import InputError, StoppedError
from metajax.models import Transformer
from metajax.runs import best, loop, measurements
from metajax.runs.record import make_record
from metajax.runs.workdir import locked, open_run
from metajax.types import MetaAlgorithm, Task

TASKS, STEPS = 4, 7
# None of these is a default, and each affects the result.
SETTINGS = {
    "steps": STEPS,
    "learning_rate": 0.03,
    "warmup": 0.4,  # Of 7 steps 2.8, so 3.
    "weight_decay": 0.2,
    "clip_norm": 3.0,
    "seed": 9,
    "save_every": 2,
    "keep": 1,
    "keep_every": 4,
}


def initial_params():
    return {
        "layer": {"kernel": jnp.linspace(-1.0, 2.0, 3), "bias": jnp.ones(3)},
        "pooler": {"kernel": jnp.linspace(1.0, 2.0, 3)},
    }


def loss_fn(params, batch, rng):
    """Half the squared distance to a centre that the key moves at random."""
    noise = jax.random.normal(rng)
    gaps = (params["layer"]["kernel"] - batch["centre"], params["layer"]["bias"] - noise)
    loss = sum(jnp.sum(gap**2) for gap in gaps) / 2
    return loss, {"noise": noise, "gap": gaps[0]}


def meta_grad(params, task, rng):
    """If the key's noise exceeds the task's limit, the loss or the gradient is not finite."""
    grads, info = supervised(loss_fn).meta_grad(params, task, rng)
    spoilt = jnp.where(info.query_aux["noise"] > task.query["limit"], jnp.nan, 0.0)
    loss = info.query_loss + jnp.where(task.query["spoils_loss"], spoilt, 0.0)
    grads["layer"]["kernel"] += jnp.where(task.query["spoils_loss"], 0.0, spoilt)
    return grads, info._replace(query_loss=loss, support_loss=jnp.stack([2 * loss, 3 * loss]))


ALGORITHM = MetaAlgorithm(lambda params: params, None, meta_grad)


def make_tasks(step, spoilt=(), spoils_loss=False):
    """Centres at distances below and above the norm at which gradients are clipped."""
    centre = np.random.default_rng(step).normal(size=(TASKS, 3)) * 4.0 ** (step - 3)
    limit = np.full(TASKS, 0.0 if step in spoilt else np.inf)
    flags = np.full(TASKS, float(spoils_loss))
    return Task(None, {"centre": centre, "limit": limit, "spoils_loss": flags})


@functools.cache
def noise_of(step):
    """Return the noise of a step's tasks: task t draws from fold_in(fold_in(rng, n), t)."""
    rng = jax.random.fold_in(jax.random.key(SETTINGS["seed"]), step)
    return np.array([jax.random.normal(jax.random.fold_in(rng, t)) for t in range(TASKS)])


def reference(steps):
    """Return parameters and rows after some steps: AdamW, written out."""
    params = jax.tree.map(lambda leaf: np.array(leaf, float), initial_params())
    layer = params["layer"]
    first, second = (dict.fromkeys(layer, 0.0) for _ in range(2))
    rows = []
    for count, step in enumerate(steps):
        noise, centre = noise_of(step), make_tasks(step).query["centre"]
        gaps = {"kernel": layer["kernel"] - centre, "bias": layer["bias"] - noise[:, None]}
        loss = sum((gap**2).sum(1) for gap in gaps.values()).mean() / 2
        grads = {name: gap.mean(0) for name, gap in gaps.items()}
        norm = np.sqrt(sum((grad**2).sum() for grad in grads.values()))
        row = {"step": step + 1, "loss": loss, "noise": noise.mean(), "grad_norm": norm}
        rows.append(row | {"support_loss": [2 * loss, 3 * loss]})
        # Up to the peak in three steps, and down to zero in four.
        rate = 0.03 * (count / 3 if count < 3 else (7 - count) / 4)
        for name, decay in (("kernel", 0.2), ("bias", 0.0)):
            grad = grads[name] * min(1, 3.0 / norm)
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.999 * second[name] + 0.001 * grad**2
            means = (
                first[name] / (1 - 0.9 ** (count + 1)),
                second[name] / (1 - 0.999 ** (count + 1)),
            )
            layer[name] = layer[name] - rate * (
                means[0] / (np.sqrt(means[1]) + 1e-8) + decay * layer[name]
            )
    return params, rows


@pytest.fixture
def make_stage(tmp_path):
    """Stages in one workdir. Record their measurements, and the steps of which they read tasks."""
    model = Transformer(config=tiny.CONFIG, head="masked_lm")
    noted = SimpleNamespace(measured=[], steps=[])

    def make(tasks_of=make_tasks, algorithm=ALGORITHM, chunk_size=None, **changes):
        settings = PretrainSettings(
            model="m", text=("t",), workdir=tmp_path / "run", **SETTINGS | changes
        )
        record = make_record("pretrain", settings, data={}, parent={}, model={})

        def measure(params):
            with pytest.raises(InputError, match="another process"), locked(stage.run):
                pass
            noted.measured.append(jax.device_get(params))
            return {"total": float(sum(map(jnp.sum, jax.tree.leaves(params))))}

        def note_and_make_tasks(step):
            noted.steps.append(step)
            return tasks_of(step)

        stage = loop.Stage(
            run=open_run(settings.workdir, record),
            settings=settings,
            model=model,
            algorithm=algorithm,
            make_tasks=note_and_make_tasks,
            num_steps=settings.steps,
            measure=measure,
            measured_on="sums",
            chunk_size=chunk_size,
        )
        return stage

    make.workdir, make.noted = tmp_path / "run", noted
    return make


MEASURED = {"seconds", "data_wait", "peak_memory_bytes"}
TIMED = MEASURED | {"valid_seconds", "peak_device_memory_bytes", "compiled"}


def numbers_of(workdir):
    """Return the rows of the steps, without what depends on the process."""
    _, *rows = tiny.rows_of(workdir)
    assert all(row.keys() >= MEASURED for row in rows)
    return [{k: v for k, v in row.items() if k not in TIMED} for row in rows]


def tensorboard_events(workdir):
    for path in sorted((workdir / "tensorboard").iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            size = int.from_bytes(content[at : at + 8], "little")
            yield Event.FromString(content[at + 12 : at + 12 + size])
            at += 16 + size


def saved_steps(workdir):
    return {path.name for path in (workdir / "checkpoints").iterdir()}


def assert_close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), jax.device_get(found), expected
    )


def test_a_run_takes_the_steps_that_its_settings_ask_for(make_stage):
    results = loop.train(make_stage(), initial_params())
    expected, rows = reference(range(STEPS))
    assert min(row["grad_norm"] for row in rows) < 3 < max(row["grad_norm"] for row in rows)
    found = tiny.training_state(make_stage.workdir)
    assert_close(found["params"], expected)
    np.testing.assert_array_equal(found["params"]["pooler"]["kernel"], [1.0, 1.5, 2.0])
    training = found["training"]
    assert training["step"] == STEPS
    assert jax.random.key_data(training["rng"]).tolist() == [0, 9]
    assert saved_steps(make_stage.workdir) == {"4", "7"}

    first, *timed = tiny.rows_of(make_stage.workdir)
    held_most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    held_most *= 1 if sys.platform == "darwin" else 1024
    assert all(held_most / 2 < row["peak_memory_bytes"] <= held_most for row in timed)
    assert_close(numbers_of(make_stage.workdir), rows)
    # Before the first step and after the last.
    assert make_stage.noted.steps == list(range(STEPS))
    assert_close(make_stage.noted.measured, [initial_params(), expected])
    total = [sum(leaf.sum() for leaf in jax.tree.leaves(p)) for p in make_stage.noted.measured]
    assert results["measured_on"] == "sums"
    numbers = {when: results[when] for when in ("before", "after")}
    assert_close(numbers, {"before": {"total": total[0]}, "after": {"total": total[1]}})
    assert list(results) == ["measured_on", "before", "after"]
    assert first == {"step": 0, "before": results["before"]}
    assert json.loads((make_stage.workdir / "results.json").read_text()) == results


def test_each_step_is_reported_by_source(make_stage, caplog):
    """The sources are those of the step; a row is complete when the run goes on."""

    def names(step):
        return ["ab"[(step + task) % 3 == 0] for task in range(TASKS)]

    with caplog.at_level(logging.INFO, "metajax"):
        loop.train(make_stage()._replace(sources=names), initial_params())
    _, *rows = tiny.rows_of(make_stage.workdir)
    assert len(rows) == STEPS
    for row in rows:
        noise, own = noise_of(row["step"] - 1), np.array(names(row["step"] - 1))
        assert row["sources"].keys() == {"a", "b"}
        assert row["loss"] == pytest.approx(
            sum(each["tasks"] * each["loss"] for each in row["sources"].values()) / TASKS
        )
        for name, means in row["sources"].items():
            assert means.keys() == {"tasks", "loss", "noise"}
            assert means["tasks"] == (own == name).sum()
            assert means["noise"] == pytest.approx(noise[own == name].mean(), rel=1e-5)
    (line,) = (each for each in caplog.messages if "by source" in each)
    assert line.startswith(f"{make_stage.workdir}: by source, last 7 steps: ")


def interrupted(step):
    """Make the tasks of a step, as far as step 5."""
    if step == 5:
        raise RuntimeError("no data")
    return make_tasks(step)


def test_a_resumed_run_says_how_long_the_last_compilation_took(make_stage, caplog):
    with caplog.at_level(logging.INFO, "metajax"), pytest.raises(RuntimeError, match="no data"):
        loop.train(make_stage(interrupted), initial_params())
    assert "pretrain: compiling for step 1" in caplog.messages
    _, *rows = tiny.rows_of(make_stage.workdir)
    assert [row["step"] for row in rows if row.get("compiled")] == [1]
    file = make_stage.workdir / "metrics.jsonl"
    compiled = r'"seconds": [\d.e-]+(.*"compiled")'
    file.write_text(re.sub(compiled, r'"seconds": 7.0\1', file.read_text()))
    caplog.clear()
    with caplog.at_level(logging.INFO, "metajax"):
        loop.train(make_stage(), initial_params())
    assert "pretrain: compiling for step 5 (last: 7 s)" in caplog.messages


def test_a_line_that_lost_its_seconds_says_nothing_of_the_compilation():
    rows = [{"seconds": 3.0, "compiled": True}, {"seconds": 1.0}, {"compiled": True}]
    assert loop._compiled_in(SimpleNamespace(rows=rows)) == 3.0
    assert loop._compiled_in(SimpleNamespace(rows=rows[1:])) is None


def test_a_resumed_run_goes_on_from_its_checkpoint(make_stage):
    tracked = {"track": ("tensorboard",)}
    with pytest.raises(RuntimeError, match="no data"):
        loop.train(make_stage(interrupted, **tracked), initial_params())
    assert saved_steps(make_stage.workdir) == {"4"}
    assert [row["step"] for row in tiny.rows_of(make_stage.workdir)] == [0, 1, 2, 3, 4, 5]
    make_stage.noted.steps.clear()
    # It starts from the checkpoint, not from the weights of a new run, and does not measure again.
    elsewhere = jax.tree.map(jnp.zeros_like, initial_params())
    results = loop.train(make_stage(**tracked), elsewhere)
    expected, rows = reference(range(STEPS))
    assert make_stage.noted.steps == [4, 5, 6]
    assert_close(make_stage.noted.measured, [initial_params(), expected])
    assert_close(tiny.training_state(make_stage.workdir)["params"], expected)
    assert_close(numbers_of(make_stage.workdir), rows)
    assert results["before"] == tiny.rows_of(make_stage.workdir)[0]["before"]
    # TensorBoard drops the later steps, too. (Runs begun in the same second write to one file.)
    events = list(tensorboard_events(make_stage.workdir))
    assert [event.step for event in events if event.HasField("session_log")][-1] == 5
    after = [event.step for event in events for v in event.summary.value if v.tag == "after/total"]
    assert after == [STEPS]


@pytest.mark.parametrize("spoils_loss", [False, True], ids=["gradient", "loss"])
def test_tasks_that_are_not_finite_are_skipped_and_named(make_stage, spoils_loss):
    """Either of the two is enough. The steps are counted, but parameters do not change."""
    spoilt = (1, 3, 4)
    stage = make_stage(
        lambda step: make_tasks(step, spoilt, spoils_loss), max_skipped=2, save_every=100
    )
    with pytest.raises(StoppedError) as stopped:
        loop.train(stage, initial_params())
    tasks = [np.flatnonzero(noise_of(step) > 0).tolist() for step in range(STEPS)]
    assert tasks[4] not in (tasks[3], tasks[5], [], list(range(TASKS)))
    named = ", ".join(map(str, tasks[4]))
    assert "the last 2 steps had a non-finite loss or gradient and were skipped" in str(
        stopped.value
    )
    assert f"(in step 5: task {named} of 0 to 3)" in str(stopped.value)

    expected, _ = reference([0, 2])
    found = tiny.training_state(make_stage.workdir)
    assert saved_steps(make_stage.workdir) == {"5"}
    assert found["training"]["step"] == 5
    assert_close(found["params"], expected)
    rows = numbers_of(make_stage.workdir)
    assert [row.get("skipped", False) for row in rows] == [False, True, False, True, True]
    assert [row["loss"] is None for row in rows] == [s in spoilt and spoils_loss for s in range(5)]
    assert "NaN" not in (make_stage.workdir / "metrics.jsonl").read_text()  # It is not JSON.


def test_shards_and_chunks_reach_the_outer_loop(make_stage, monkeypatch):
    found = SimpleNamespace(axes=set(), chunks=set())

    @custom_vmap
    def noting(x):
        return x

    @noting.def_vmap
    def _(size, batched, x):
        found.chunks.add(size)
        return x, batched[0]

    def looked_at(params, task, rng):
        found.axes.add((jax.lax.axis_size("tasks"), jax.lax.axis_size("params")))
        grads, info = meta_grad(params, task, rng)
        return grads, info._replace(query_loss=noting(info.query_loss))

    four = jax.devices()[:4]
    monkeypatch.setattr(jax, "local_devices", lambda: four)
    stage = make_stage(
        lambda step: jax.tree.map(lambda leaf: leaf.repeat(2, 0), make_tasks(step)),
        ALGORITHM._replace(meta_grad=looked_at),
        steps=1,
        shards=2,
        chunk_size=2,
    )
    loop.train(stage, initial_params())
    assert found.axes == {(2, 2)}
    assert found.chunks == {2}


def test_a_step_is_timed_with_its_share_of_waiting(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(measurements.time, "perf_counter", lambda: now[0])
    clock = measurements.Clock()

    def pass_time(seconds):
        now[0] += seconds
        return seconds

    for waited, worked in ((1, 3), (2, 2), (0, 5)):
        assert clock.wait_for(lambda waited=waited: pass_time(waited)) == waited
        pass_time(worked)
        seconds = waited + worked
        assert clock.lap() == {"seconds": seconds, "data_wait": waited / seconds}


@pytest.fixture
def valid_stage(make_stage):
    """Stages in one workdir that are validated after every second step, with these gains."""
    gains = {0: 0.0, 2: 0.3, 4: 0.35, 6: 0.1, 7: 0.2}

    def make(**changes):
        stage = make_stage(**{"save_every": 5, "keep": 1, "keep_every": None} | changes)

        def accuracies(params):
            """Another number for each step: the parameters tell which one it is."""
            found = float(params["layer"]["bias"].sum())
            step = min(gains, key=lambda each: abs(found - sums[each]))
            assert abs(found - sums[step]) < 1e-4
            return 0.5 + gains[step] + np.linspace(-0.02, 0.02, 10)

        sums = {step: float(reference(range(step))[0]["layer"]["bias"].sum()) for step in gains}
        return stage._replace(validation=best.Validation(accuracies, 2))

    make.workdir = make_stage.workdir
    return make


def test_the_best_of_a_run_is_kept_however_old_it_is(valid_stage):
    results = loop.train(valid_stage(), initial_params())
    rows = tiny.rows_of(valid_stage.workdir)
    assert [row["step"] for row in rows if "valid_accuracies" in row] == [0, 2, 4, 6, 7]
    assert [row["step"] for row in rows if "valid" in row] == [2, 4, 6, 7]
    assert [row["step"] for row in rows if row.get("valid_seconds", 0) > 0] == [2, 4, 6, 7]
    assert saved_steps(valid_stage.workdir) == {"0", "4", "7"}
    assert (results["best_step"], results["kept_step"]) == (4, 4)
    assert results["gain"] == pytest.approx(0.35)
    assert results["before"] == rows[0]["before"]
    assert results["after"] == rows[-1]["valid"]
    assert results == json.loads((valid_stage.workdir / "results.json").read_text())


def writes_of(monkeypatch, stops_at):
    """Kill a run before one of its writes; return the list of those that it did."""
    done = []

    def counted(owner, name):
        write = getattr(owner, name)

        def stopping(*arguments, **settings):
            if len(done) == stops_at:
                raise KeyboardInterrupt
            done.append(name)
            return write(*arguments, **settings)

        monkeypatch.setattr(owner, name, stopping)

    counted(loop.MetricsLog, "write")
    counted(loop.Checkpoints, "save")
    counted(loop.Checkpoints, "remove_surplus")
    counted(loop, "write_results")
    return done


def test_a_run_killed_between_any_two_writes_chooses_the_same(valid_stage, monkeypatch):
    outer = loop._outer_loop(valid_stage())  # Compiled once for all runs.
    monkeypatch.setattr(loop, "_outer_loop", lambda stage: outer)
    expected = loop.train(valid_stage(), initial_params())
    state, files = tiny.training_state(valid_stage.workdir), saved_steps(valid_stage.workdir)
    rows = numbers_of(valid_stage.workdir)
    counts = []
    for stops_at in itertools.count():
        shutil.rmtree(valid_stage.workdir)
        with monkeypatch.context() as patch:
            done = writes_of(patch, stops_at)
            try:
                loop.train(valid_stage(), initial_params())
            except KeyboardInterrupt:
                counts.append(len(done))
            else:
                break
        assert loop.train(valid_stage(), initial_params()) == expected
        tiny.assert_same_bits(tiny.training_state(valid_stage.workdir), state)
        assert saved_steps(valid_stage.workdir) == files
        assert numbers_of(valid_stage.workdir) == rows
    # Rows of the start and of each step; saves of the start, of 2 and 4 (the best), 5 and 7; the
    # removal of what is left; the results.
    assert counts == list(range((1 + STEPS) + 5 + 1 + 1))
