"""Trackers, the profiler's trace, progress and log levels."""

import gzip
import json
import logging
import re
import struct
import sys
import time

import pytest
import tiny
from tensorboardX.proto.event_pb2 import Event

from metajax.cli.main import main
from metajax.config import groups
from metajax.runs.progress import Progress, progress
from tests.stage_commands import metatrain_command, pretrain_command


def events(directory):
    """The scalars of TensorBoard's files, by step and name; later files win."""
    found = {}
    for path in sorted(directory.glob("events.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (size,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + size])
            at += 16 + size
            for value in event.summary.value:
                found[event.step, value.tag] = value.simple_value
    return found


def test_a_run_is_followed(material, tmp_path, capfd):
    run = tmp_path / "run"
    command = [*map(str, metatrain_command(material, run, steps=2, algorithm="fomaml"))]
    command += ["--profile"]
    assert main([*command, "--track", "tensorboard", "--log-level", "warning"]) == 0
    pooling = f"{material.bert}: names no pooling (1_Pooling); mean is used"
    assert capfd.readouterr().err == f"metajax: {pooling}\n"
    # TensorBoard has the numbers of the metrics.
    before, *rows = tiny.rows_of(run)
    found = events(run / "tensorboard")
    assert found[0, "before/accuracy"] == pytest.approx(before["before"]["accuracy"])
    for row in rows:
        for name in ("loss", "accuracy", "grad_norm", "seconds"):
            assert found[row["step"], name] == pytest.approx(row[name], rel=1e-6)
    results = json.loads((run / "results.json").read_text())
    assert found[2, "after/accuracy"] == pytest.approx(results["after"]["accuracy"])
    # The trace is one for TensorBoard and one for Perfetto.
    assert list(run.glob("profile/plugins/profile/*/*.xplane.pb"))
    (trace,) = run.glob("profile/plugins/profile/*/perfetto_trace.json.gz")
    with gzip.open(trace) as file:
        names = {event.get("name", "") for event in json.load(file)["traceEvents"]}
    # It has the operations of the programs, and no functions of Python ("$file:line name").
    assert any("fusion" in name for name in names)
    assert not any(name.startswith("$") for name in names)


def logged(workdir):
    """The rows that Weights & Biases got, by run and step; later files win."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = {}
    for path in sorted(workdir.glob("wandb/offline-run-*/run-*.wandb")):
        content, at = path.read_bytes(), 7
        while at + 7 < len(content):  # A checksum, the size, a kind; less than a block in all.
            size = int.from_bytes(content[at + 4 : at + 6], "little")
            history = Record.FromString(content[at + 7 : at + 7 + size]).history
            at += 7 + size
            row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in history.item}
            if row:
                found[path.name, row["_step"]] = row
    return found


@pytest.mark.slow
def test_weights_and_biases_has_the_numbers_too(material, compiled, tmp_path):
    """Offline, and after a kill, the same run continues."""
    pytest.importorskip("wandb")
    run = tmp_path / "run"
    command = [*pretrain_command(material, run, steps=40, keep=40), "--track", "wandb"]
    environment = {"WANDB_MODE": "offline", "WANDB_CACHE_DIR": str(tmp_path)}
    process = tiny.start(*command, cache=compiled, **environment)
    deadline = time.monotonic() + 300
    while process.poll() is None and not (run / "checkpoints" / "4").exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -9
    done = tiny.finish(tiny.start(*command, cache=compiled, **environment))
    assert done.status == 0, done.err
    found = logged(run)
    assert len({name for name, _ in found}) == 1
    ours = {row["step"]: row for row in tiny.rows_of(run) if "loss" in row}
    assert sorted(ours) == list(range(1, 41))
    last = {step: row for (_, step), row in found.items()}
    for step, row in ours.items():
        assert last[step]["loss"] == pytest.approx(row["loss"]), step


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_refused(name, material, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(groups.importlib.util, "find_spec", lambda package: None)
    command = metatrain_command(material, tmp_path / "run")
    assert main([*map(str, command), "--track", name]) == 2
    package = {"tensorboard": "tensorboardX"}.get(name, name)
    assert f"`pip install {package}`" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_where_there_is_no_terminal_a_line_comes_now_and_then(caplog, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("metajax.runs.progress.time.monotonic", lambda: now[0])
    with caplog.at_level(logging.INFO, "metajax"), Progress("train", "step", 9, done=1) as counted:
        steps = ((31, "loss 5"), (41, "loss 4"), (61, "loss 3"), (390, "loss 2"), (420, "loss 1"))
        for seconds, note in steps:
            if note in ("loss 5", "loss 2"):
                counted.compiling()
            now[0] = seconds
            counted.update(note)
    # Steps that compile do not count: 10, 20 and 30 seconds.
    assert caplog.messages == [
        "train: compiling for step 2",
        "train: step 2 of 9, loss 5",
        "train: step 4 of 9 (01:15 left), loss 3",
        "train: compiling for step 5 (last: 31 s)",
        "train: step 5 of 9 (01:00 left), loss 2",
        "train: step 6 of 9 (01:00 left), loss 1",
    ]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("terminal", [False, True])
def test_items_can_be_counted_many_at_once(caplog, monkeypatch, capsys, terminal):
    now = [0.0]
    monkeypatch.setattr("metajax.runs.progress.time.monotonic", lambda: now[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with caplog.at_level(logging.INFO, "metajax"), Progress("tokenize", "text", 2000) as counted:
        for seconds, count in ((20, 400), (40, 400), (60, 200)):
            now[0] = seconds
            counted.update(count=count)
    if terminal:
        assert re.search(r" 50%.*1000/2000.*, 01:00 left", capsys.readouterr().err)
    else:
        assert caplog.messages == ["tokenize: text 800 of 2000 (01:00 left), done"]


def test_on_a_terminal_there_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(progress("abc", "read", "letter")) == ["a", "b", "c"]
    assert re.search(
        r"read: +0%.*compiling.*100%.*3/3.*, 00:00 left", capsys.readouterr().err, re.S
    )
