"""Compare two local processes of four devices each with one process of eight."""

import re
import signal
import socket
import time

import problems
import pytest
import tiny

from metajax.training import checkpoint
from tests.stage_commands import COMMANDS

DEVICES = "--xla_force_host_platform_device_count={}"
SETTINGS = {
    "pretrain": {"steps": 10, "batch_size": 8, "parts": 8, "save_every": 4},
    "finetune": {"steps": 10, "batch_size": 8, "parts": 8, "save_every": 4},
    "metatrain": {"steps": 10, "meta_batch_size": 8, "save_every": 4, "algorithm": "fomaml"},
}


def start_two(command, cache, other=None):
    """A command in two processes, or another one in the second."""
    port = tiny.free_port()
    meet = ["--distributed", "--coordinator", f"127.0.0.1:{port}", "--num-processes", 2]
    flags = {"XLA_FLAGS": DEVICES.format(4)}
    return [
        tiny.start(*each, *meet, "--process-id", number, cache=cache, **flags)
        for number, each in enumerate((command, other or command))
    ]


def params_of(workdir):
    return checkpoint.load(workdir / "checkpoints").params


@pytest.mark.parametrize(
    ("stage", "shards"),
    [
        pytest.param("metatrain", 4, marks=pytest.mark.slow),
        pytest.param("metatrain", 1, marks=pytest.mark.slow),
        pytest.param("pretrain", 1, marks=pytest.mark.slow),
        pytest.param("pretrain", 8, marks=pytest.mark.slow),
        pytest.param("finetune", 2, marks=pytest.mark.slow),
    ],
)
def test_two_processes_do_what_one_does(material, compiled, tmp_path, stage, shards):
    make, settings = COMMANDS[stage], SETTINGS[stage]
    alone = tiny.start(
        *make(material, tmp_path / "one", **settings), cache=compiled, XLA_FLAGS=DEVICES.format(8)
    )
    done = tiny.finish(alone)
    assert done.status == 0, done.err
    two = start_two(make(material, tmp_path / "two", shards=shards, **settings), compiled)
    ends = [tiny.finish(process) for process in two]
    assert [end.status for end in ends] == [0, 0], ends
    gap = problems.relative_gap(params_of(tmp_path / "two"), params_of(tmp_path / "one"))
    assert gap < 1e-6
    names = [sorted(path.name for path in (tmp_path / run).iterdir()) for run in ("one", "two")]
    assert names[0] == names[1]
    assert len(tiny.rows_of(tmp_path / "two")) == 11
    # On one device, and from what two processes saved.
    again = tiny.run(*make(material, tmp_path / "two", **settings))
    assert again.status == 0, again.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGKILL, None)]
)
def test_one_of_two_is_stopped(material, compiled, tmp_path, number, status):
    settings = SETTINGS["pretrain"] | {"steps": 4000}
    command = COMMANDS["pretrain"](material, tmp_path / "run", **settings)
    first, second = start_two(command, compiled)
    while first.poll() is None and not (tmp_path / "run" / "checkpoints" / "8").exists():
        time.sleep(0.05)
    second.send_signal(number)
    begun = time.perf_counter()
    done = tiny.finish(first)
    tiny.finish(second)
    assert time.perf_counter() - begun < 60
    assert done.status not in (0, 2)
    if status is None:
        # JAX's runtime ends it and names the lost task. Our log says on which host it ran.
        assert re.search(r"tasks are unhealthy[^\n]*\n1\n", done.err)
        assert f"1 on {socket.gethostname()}" in done.err
    else:
        assert done.status == status
        assert "stopped by SIGTERM after step" in done.err
    # The run resumes in one process.
    found = (tmp_path / "run" / "checkpoints").iterdir()
    last = max(int(path.name) for path in found if path.name.isdigit())
    rest = COMMANDS["pretrain"](material, tmp_path / "run", **settings)
    alone = tiny.start(*rest, cache=compiled, XLA_FLAGS=DEVICES.format(8))
    while alone.poll() is None and len(tiny.rows_of(tmp_path / "run")) < last + 4:
        time.sleep(0.05)
    alone.send_signal(signal.SIGTERM)
    assert "which is saved" in tiny.finish(alone).err


@pytest.mark.slow
def test_two_processes_set_a_damaged_checkpoint_aside(material, compiled, tmp_path):
    workdir = tmp_path / "run"
    command = COMMANDS["pretrain"](material, workdir, **SETTINGS["pretrain"])
    assert [tiny.finish(each).status for each in start_two(command, compiled)] == [0, 0]
    expected = params_of(workdir)
    (workdir / "results.json").unlink()
    for path in (workdir / "checkpoints" / "10").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    ends = [tiny.finish(each) for each in start_two(command, compiled)]
    assert [end.status for end in ends] == [0, 0], ends
    assert "checkpoint 10 cannot be read" in ends[0].err
    assert (workdir / "damaged-10").is_dir()
    tiny.assert_same_bits(params_of(workdir), expected)
    # Both remove extra checkpoints, also if there is nothing left to save.
    (workdir / "results.json").unlink()
    ends = [tiny.finish(each) for each in start_two([*command, "--keep", 1], compiled)]
    assert [end.status for end in ends] == [0, 0], ends
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["10"]


@pytest.mark.slow
def test_one_of_two_has_bad_input(material, compiled, tmp_path):
    command = COMMANDS["pretrain"](material, tmp_path / "run", **SETTINGS["pretrain"])
    begun = time.perf_counter()
    where = command.index("--text") + 1
    bad = [*command[:where], tmp_path / "missing.txt", *command[where + 1 :]]
    good, other = start_two(command, compiled, bad)
    assert tiny.finish(other).status == 2
    assert tiny.finish(good).status != 0
    assert time.perf_counter() - begun < 90
