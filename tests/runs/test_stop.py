"""How a run stops at signals and at failing disks."""

import json
import resource
import signal
import time

import jax
import pytest
import tiny

from metajax.config.settings import PretrainSettings
from metajax.runs.parts import with_parts
from metajax.training.checkpoint import Checkpoints
from tests.stage_commands import pretrain_command

STEPS = 400


def lines(workdir):
    file = workdir / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def signalled(command, workdir, cache, number, moment):
    process = tiny.start(*command, cache=cache)
    while process.poll() is None and lines(workdir) < moment:
        time.sleep(0.005)
    process.send_signal(number)
    begun = time.perf_counter()
    done = tiny.finish(process)
    return done, time.perf_counter() - begun


def steps_saved(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT]
)
def test_a_signal_in_the_middle_saves_the_step_in_hand(material, compiled, tmp_path, number):
    command = pretrain_command(material, tmp_path / "run", steps=STEPS, save_every=STEPS)
    done, seconds = signalled(command, tmp_path / "run", compiled, number, 4)
    assert done.status == 1, done.err
    (saved,) = steps_saved(tmp_path / "run")
    assert f"stopped by {number.name} after step {saved}, which is saved" in done.err
    assert "Traceback" not in done.err
    assert 3 <= saved < STEPS
    assert seconds < 20


@pytest.mark.slow
def test_after_a_signal_the_metrics_go_on_where_they_were(material, compiled, tmp_path):
    workdir = tmp_path / "run"
    command = pretrain_command(material, workdir, steps=STEPS, save_every=STEPS)
    for _ in range(2):
        done, _ = signalled(command, workdir, compiled, signal.SIGTERM, lines(workdir) + 4)
        assert done.status == 1
    steps = [row["step"] for row in tiny.rows_of(workdir)]
    assert steps == list(range(steps[-1] + 1))
    first, last = steps_saved(workdir)
    assert 3 <= first < last == steps[-1]


def lose(process, checkpoints):
    process.send_signal(signal.SIGSTOP)
    checkpoints.rename(checkpoints.parent.with_name("lost"))  # At once: it may still be writing.
    checkpoints.write_text("no directory any more")
    process.send_signal(signal.SIGCONT)


def fill_up(process, checkpoints):
    """Limit the size of files, as on a full disk."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (9000, 9000))


def harmed(harm, command, workdir, cache):
    process = tiny.start(*command, cache=cache)
    while process.poll() is None and not (workdir / "checkpoints" / "6").exists():
        time.sleep(0.005)
    harm(process, workdir / "checkpoints")
    begun = time.perf_counter()
    done = tiny.finish(process)
    assert time.perf_counter() - begun < 60
    assert done.status == 1, done.err
    return done


@pytest.mark.parametrize(
    ("harm", "safe"),
    [pytest.param(lose, "nothing is saved yet", marks=pytest.mark.slow), (fill_up, "is safe")],
)
def test_a_checkpoint_that_cannot_be_written_stops_the_run(
    material, compiled, tmp_path, harm, safe
):
    workdir = tmp_path / "run"
    command = pretrain_command(material, workdir, steps=STEPS, save_every=6)
    done = harmed(harm, command, workdir, compiled)
    assert "Traceback" not in done.err
    last = done.err.strip().splitlines()[-1]
    assert f"{workdir / 'checkpoints'}: a checkpoint could not be written" in last
    assert safe in last


@pytest.mark.slow
def test_with_room_again_a_run_goes_on(material, compiled, tmp_path):
    workdir = tmp_path / "run"
    command = pretrain_command(material, workdir, steps=STEPS, save_every=6)
    harmed(fill_up, command, workdir, compiled)
    again, _ = signalled(command, workdir, compiled, signal.SIGTERM, lines(workdir) + 8)
    assert again.status == 1
    assert "which is saved" in again.err


def test_a_signal_outside_of_the_steps_stops_at_once(material, tmp_path):
    def measure(*arguments):
        signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metajax.commands.pretrain.held_out_loss", measure)
        done = tiny.run(*pretrain_command(material, tmp_path / "run"))
    assert done.status == 1
    assert "stopped by SIGTERM; the same command resumes" in done.err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    tiny.succeed(*pretrain_command(material, tmp_path / "run"))


def test_a_signal_while_restoring_harms_no_checkpoint(material, tmp_path):
    restore = Checkpoints.restore

    def signalled_restore(self, state):
        signal.raise_signal(signal.SIGTERM)
        return restore(self, state)

    run = pretrain_command(material, tmp_path / "run", steps=4)
    tiny.succeed(*run)
    (tmp_path / "run" / "results.json").unlink()  # As if killed before its end.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "restore", signalled_restore)
        done = tiny.run(*run)
    assert done.status == 1
    assert "stopped by SIGTERM; the same command resumes" in done.err
    assert steps_saved(tmp_path / "run") == [2, 4]
    tiny.succeed(*run)


def test_a_run_keeps_its_parts(material, tmp_path, caplog):
    run = pretrain_command(material, tmp_path / "run", steps=2, parts=2)
    tiny.succeed(*run)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["settings"]["parts"] == 2
    own = PretrainSettings(model="m", text=("t",), workdir=str(tmp_path / "run"), batch_size=4)
    assert with_parts(own)[1] == 2
    four = jax.devices()[:4]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: four)
        assert with_parts(own)[1] == 4
    assert "2 parts, which 4 devices cannot share evenly" in caplog.text
