"""The files of a run, its lock, and the settings with which it may resume."""

import contextlib
import copy
import dataclasses
import json
import os
import signal
import sys
from types import SimpleNamespace

import jax
import pytest
from etils import epath
from tensorboardX.proto.event_pb2 import Event, SessionLog

from metajax.cli import main as cli
from metajax.errors import InputError, StoppedError
from metajax.runs.metrics import MetricsLog, read_metrics
from metajax.runs.parts import check_split
from metajax.runs.paths import address, in_bucket, local, staged_upload, to_path
from metajax.runs.record import SETTINGS, make_record
from metajax.runs.signals import handle_signals
from metajax.runs.trackers import Profile, tracking
from metajax.runs.workdir import Run, begin, locked, open_run, write_atomically
from metajax.training import distributed

REQUIRED = {
    "model": "m",
    "text": ("t",),
    "tasks": ("a.csv", "b.csv"),
    "workdir": "w",
}
DATA = {"--text a.txt": "1", "--text b.txt": "2", "--dev c.txt": "1"}
PARENT = {"path": "bert", "sha256": "5", "step": 3}


def settings_of(stage, **changes):
    names = {field.name for field in dataclasses.fields(SETTINGS[stage])}
    return SETTINGS[stage](**{n: v for n, v in REQUIRED.items() if n in names} | changes)


def save_model(directory):
    directory.mkdir()
    (directory / "config.json").write_text("{}")


def begun(path, stage="pretrain", **changes):
    """A started run, and its record."""
    settings = settings_of(stage, workdir=path, **changes)
    record = make_record(stage, settings, data=DATA, parent=PARENT, model={"head": "masked_lm"})
    run = open_run(str(path), record)
    begin(run, save_model)
    return run, record


@pytest.fixture
def bucket(tmp_path):
    """A path that is treated like one in a bucket: not a `pathlib.Path`."""
    path = epath.Path(tmp_path / "bucket")
    assert in_bucket(path)
    path.mkdir()
    return path


def test_a_file_is_whole_before_it_takes_its_name(tmp_path, monkeypatch):
    file, seen, replace = tmp_path / "run.json", [], os.replace
    file.write_text("old")

    def look(source, target):
        seen.append((target.read_text(), source.read_text(encoding="utf-8")))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    write_atomically(file, "neü")
    assert seen == [("old", "neü")]
    assert file.read_text(encoding="utf-8") == "neü"
    assert list(tmp_path.iterdir()) == [file]


def test_one_run_at_a_time(tmp_path):
    run, _ = begun(tmp_path / "run")
    for _ in range(2):  # After its release, it can be locked again.
        with (
            locked(run),
            pytest.raises(InputError, match="another process is running"),
            locked(run),
        ):
            pass


def test_a_new_run_writes_what_it_is_and_an_old_one_keeps_it(tmp_path):
    run, record = begun(tmp_path / "run", seed=3)
    assert run.record == record == json.loads((run.path / "run.json").read_text())
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    assert {path.name for path in before} == {"run.json", "config.yaml", "config.json"}
    changed = copy.deepcopy(record)
    changed["settings"]["save_every"] = 7
    again = open_run(str(run.path), changed)
    assert again.record == record
    begin(Run(run.path, changed), lambda directory: pytest.fail("is there"))
    assert {path: path.read_bytes() for path in before} == before


TRAINING = {
    *("model", "workdir", "shards", "distributed", "coordinator", "num_processes", "process_id"),
    *("save_every", "keep", "keep_every", "track", "profile", "max_skipped"),
}
MAY_DIFFER = {
    "pretrain": TRAINING | {"text", "parts"},
    "finetune": TRAINING | {"tasks", "glue_dir", "classes", "dev", "parts"},
    "metatrain": TRAINING | {"tasks", "glue_dir", "classes", "memory", "valid", "valid_classes"},
    "adapt": {"model", "workdir", "tasks", "label_names", "glue_dir", "classes", "dev"},
}


@pytest.mark.parametrize("stage", MAY_DIFFER)
def test_which_settings_may_differ_when_a_run_is_resumed(tmp_path, stage):
    """Settings that change no number, and names of files, whose contents are compared."""
    run, record = begun(tmp_path / "run", stage)
    for name in record["settings"]:
        changed = copy.deepcopy(record)
        changed["settings"][name] = "another"
        if name in MAY_DIFFER[stage]:
            open_run(str(run.path), changed)
            continue
        with pytest.raises(InputError) as refused:
            open_run(str(run.path), changed)
        option = f"--{name.replace('_', '-')}"
        difference = f"({option} was {record['settings'][name]}, is now another)"
        assert difference in str(refused.value)
    assert MAY_DIFFER[stage] < record["settings"].keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"--text x.txt": "1", "--text y.txt": "2", "--dev z.txt": "1"}}, None),
        ({"data": DATA | {"--text b.txt": "3"}}, "the contents of --text b.txt have changed"),
        ({"data": {"--text a.txt": "1", "--text b.txt": "2"}}, "or they have another order"),
        (
            {"data": {"--text b.txt": "2", "--text a.txt": "1", "--dev c.txt": "1"}},
            "or they have another order",
        ),
        # The development set is not training text, whatever it contains.
        (
            {"data": {"--text a.txt": "1", "--text b.txt": "2", "--text c.txt": "1"}},
            "or they have another order",
        ),
        ({"parent": {"path": "elsewhere", "sha256": "5", "step": 3}}, None),
        ({"parent": {"path": "bert", "sha256": "6", "step": 3}}, "--model has other weights"),
        ({"parent": {"path": "bert", "sha256": "5", "step": 4}}, "--model has other weights"),
        ({"model": {"siamese": True}}, "a pair were read together, are now read apart"),
        ({"stage": "metatrain"}, "belongs to a pretrain run, not to metatrain"),
    ],
)
def test_which_inputs_may_differ_when_a_run_is_resumed(tmp_path, changes, message):
    run, record = begun(tmp_path / "run")
    if message is None:
        assert open_run(str(run.path), record | changes) == Run(run.path, record)
    else:
        with pytest.raises(InputError, match=message):
            open_run(str(run.path), record | changes)


def test_metrics_go_on_from_the_step_of_the_checkpoint(tmp_path):
    run, told = Run(tmp_path, {}), []
    with MetricsLog(run, 0, also=told.append) as log:
        for step in range(4):
            log.write({"step": step, "loss": step / 2})
            assert read_metrics(tmp_path / "metrics.jsonl") == log.rows  # At once.
    assert told == log.rows
    with MetricsLog(run, 2) as log:
        assert [row["step"] for row in log.rows] == [0, 1, 2]
        log.write({"step": 3, "loss": 9.0})
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0, 0.5, 1, 9]
    # Another process of the same run has the rows, but does not write them.
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with MetricsLog(run, 1, writes=False) as log:
        log.write({"step": 2, "loss": 8.0})
        assert [row["step"] for row in log.rows] == [0, 1, 2]
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_metrics_in_a_bucket_are_written_before_a_step_is_saved(bucket):
    with MetricsLog(Run(bucket, {}), 0) as log:
        for step in range(3):
            log.write({"step": step})
            if step == 1:
                log.flush()
        assert len(read_metrics(bucket / "metrics.jsonl")) == 2
    assert len(read_metrics(bucket / "metrics.jsonl")) == 3


def test_a_directory_in_a_bucket_is_filled_from_one_on_disk(bucket, monkeypatch):
    """The file that marks the others as complete comes last."""
    written, write = [], type(bucket).write_bytes

    def note(path, content):
        written.append((path.name, content))
        return write(path, content)

    monkeypatch.setattr(type(bucket), "write_bytes", note)
    with staged_upload(bucket, last="config.json") as directory:
        for name in ("vocab.txt", "config.json", "added.json"):
            (directory / name).write_text(name)
        assert written == []
    names = [name for name, _ in written]
    assert sorted(names) == ["added.json", "config.json", "vocab.txt"]
    assert names[-1] == "config.json"
    copied = local(bucket)
    assert not in_bucket(copied)
    assert {path.name: path.read_text() for path in copied.iterdir()} == {n: n for n in names}


def test_paths_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert to_path("run") != to_path(str(tmp_path / "run"))
    assert address(to_path("run")) == str(tmp_path / "run")
    with staged_upload(tmp_path, last="config.json") as directory:
        assert directory == tmp_path == local(tmp_path)


@pytest.fixture
def own_handler():
    """A handler of both signals, instead of pytest's."""

    def handler(number, frame):
        pytest.fail("no run was handle_signals")

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, handler) for number in numbers]
    yield handler
    for number, old in zip(numbers, before):
        signal.signal(number, old)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_for_the_step_in_hand_but_not_for_a_measurement(number, own_handler):
    with handle_signals() as stop:
        stop.check()
        signal.raise_signal(number)
        assert stop.asked == number.name
        with pytest.raises(StoppedError, match=f"stopped by {number.name}"):
            stop.check()
        with pytest.raises(StoppedError), stop.at_once():
            pytest.fail("it has been asked to stop")
        with pytest.raises(KeyboardInterrupt):  # The second one.
            signal.raise_signal(number)
    assert signal.getsignal(number) is own_handler
    with handle_signals() as stop:
        with stop.at_once():
            pass
        with pytest.raises(StoppedError, match=f"stopped by {number.name}"), stop.at_once():
            signal.raise_signal(number)
    with handle_signals() as stop:
        with stop.at_once():
            pass
        signal.raise_signal(number)  # No longer at once.
        assert stop.asked == number.name


def test_each_process_has_its_own_tasks(monkeypatch):
    assert (distributed.is_first(), distributed.local_slice(6), distributed.asked_to_stop(3)) == (
        True,
        slice(0, 6),
        False,
    )
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    shares = []
    for number in range(3):
        monkeypatch.setattr(jax, "process_index", lambda number=number: number)
        shares += list(range(6))[distributed.local_slice(6)]
        assert distributed.is_first() == (number == 0)
    assert shares == list(range(6))
    assert distributed.local_slice(6) == slice(4, 6)


def test_tasks_are_in_the_order_of_the_devices(monkeypatch):
    """Of eight devices of two processes, in blocks of two by two, each has two of 16 tasks."""
    assert distributed.tasks_by_device(16).tolist() == list(range(16))
    owners = [0, 0, 1, 1, 0, 0, 1, 1]
    devices = [SimpleNamespace(process_index=owner) for owner in owners]
    monkeypatch.setattr(distributed, "all_devices", lambda: devices)
    found = distributed.tasks_by_device(16).tolist()
    assert found == [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15]


def test_the_settings_say_which_process_this_is(monkeypatch):
    asked = []
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *where, **settings: asked.append(where)
    )
    monkeypatch.setattr("metajax.commands.pretrain.pretrain", lambda settings: None)
    cli._run("pretrain", settings_of("pretrain"))
    assert asked == []
    where = {"coordinator": "host:1", "num_processes": 4, "process_id": 2}
    cli._run("pretrain", settings_of("pretrain", distributed=True, **where))
    assert asked == [("host:1", 4, 2)]


def test_parameters_of_many_devices_are_brought_to_the_first(monkeypatch):
    eight = jax.devices()
    monkeypatch.setattr(jax, "local_devices", lambda: eight)
    everywhere = jax.sharding.NamedSharding(
        jax.make_mesh((8,), ("all",), devices=eight), jax.sharding.PartitionSpec("all")
    )
    found = distributed.all_gather({"w": jax.device_put(jax.numpy.arange(8.0), everywhere)})
    assert found["w"].devices() == {eight[0]}
    assert found["w"].tolist() == list(range(8))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((8,), None),
        ((8, 2), None),
        ((6,), r"--batch 6: is not a multiple of 4, .*; use 4 or 8"),
        ((3,), r"--batch 3: is not a multiple of 4, .*; use 4"),
        ((8, 4), r"--chunk-size 4: does not divide the 2 episodes"),
        ((12, 2), r"--chunk-size 2: does not divide the 3 episodes"),
    ],
)
def test_each_device_has_the_same_work(monkeypatch, given, message):
    four = jax.devices()[:4]
    monkeypatch.setattr(jax, "local_devices", lambda: four)
    with contextlib.nullcontext() if message is None else pytest.raises(InputError, match=message):
        check_split("--batch", *given)


def tensorboard_events(directory):
    for path in sorted(directory.glob("events.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            size = int.from_bytes(content[at : at + 8], "little")
            yield Event.FromString(content[at + 12 : at + 12 + size])
            at += 16 + size


ROW = {"step": 5, "loss": 0.5, "before": {"a": {"f1": 2}, "b": 3.0}, "bad": float("nan"), "x": None}


def test_tensorboard_is_told_the_numbers_and_drops_later_steps(tmp_path):
    with tracking(Run(tmp_path, {}), ("tensorboard",), 4) as track:
        track(ROW)
    events = list(tensorboard_events(tmp_path / "tensorboard"))
    assert [e.step for e in events if e.session_log.status == SessionLog.START] == [5]
    values = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert values == [(5, "loss", 0.5), (5, "before/a/f1", 2.0), (5, "before/b", 3.0)]


def test_weights_and_biases_goes_on_with_the_same_run(tmp_path, monkeypatch):
    """Its client starts a server, so a slow test has the real one."""
    told = []
    fake = SimpleNamespace(
        Settings=lambda **settings: settings,
        init=lambda **given: told.append(given) or fake,
        log=lambda numbers, step: told.append((step, numbers)),
        finish=lambda: told.append("finished"),
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run = Run(tmp_path / "run", {"stage": "pretrain"})
    run.path.mkdir()
    rows = [{"step": step, "loss": step / 2} for step in range(4)]
    write_atomically(run.path / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    with tracking(run, ("wandb",), 1) as track:
        track(ROW)
    first, *rest = told
    assert (first["name"], first["dir"], first["resume"]) == ("run", str(run.path), "allow")
    assert first["config"] == run.record
    numbers = {"loss": 0.5, "before/a/f1": 2.0, "before/b": 3.0}
    assert rest == [(0, {"loss": 0.0}), (1, {"loss": 0.5}), (5, numbers), "finished"]
    names = {first["id"]}
    for path in (run.path, tmp_path / "other"):
        with tracking(Run(path, {}), ("wandb",), 0):
            names.add([given for given in told if "id" in given][-1]["id"])
    assert len(names) == 2


def test_a_trace_is_of_three_steps_after_the_one_that_compiles(tmp_path, monkeypatch):
    on, traced = [], []
    start = lambda path, **_: on.append(path)  # noqa: E731
    monkeypatch.setattr(jax.profiler, "start_trace", start)
    monkeypatch.setattr(jax.profiler, "stop_trace", on.clear)
    for steps, expected in ((range(4, 20), [5, 6, 7]), (range(4, 7), [5, 6]), (range(4, 5), [4])):
        traced.clear()
        with Profile(Run(tmp_path, {}), steps, wanted=True) as profile:
            for step in steps:
                profile.before(step)
                traced += [step] * (on == [str(tmp_path / "profile")])
        assert (traced, on) == (expected, [])
    with Profile(Run(tmp_path, {}), range(9), wanted=False) as profile:
        for step in range(9):
            profile.before(step)
            assert on == []
