"""`kill -9` at any moment; run again, it ends as the undisturbed run does, bit for bit."""

import random
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny

from tests.stages.commands import COMMANDS

STEPS = {"pretrain": 8, "metatrain": 6}


class Undisturbed(NamedTuple):
    """The run to end like, and where its compiled programs are."""

    workdir: Path
    cache: Path


@pytest.fixture(scope="module")
def undisturbed(material, tmp_path_factory):
    """Makes the undisturbed run of a stage, once."""
    made = {}

    def make(stage):
        if stage not in made:
            root = tmp_path_factory.mktemp(stage)
            made[stage] = Undisturbed(root / "run", root / "xla")
            run_whole(stage, material, *made[stage])
        return made[stage]

    return make


@pytest.fixture(scope="module")
def seconds(material, undisturbed, tmp_path_factory):
    """How long a stage runs, with all programs compiled."""
    found = {}

    def measure(stage):
        if stage not in found:
            workdir, cache = tmp_path_factory.mktemp("timed") / "run", undisturbed(stage).cache
            begun = time.perf_counter()
            run_whole(stage, material, workdir, cache)
            found[stage] = time.perf_counter() - begun
        return found[stage]

    return measure


def run_whole(stage, material, workdir, cache):
    done = tiny.finish(tiny.start(*command(stage, material, workdir), cache=cache))
    assert done.status == 0, done.err


def command(stage, material, workdir):
    # A checkpoint every step: writing one is what a kill disturbs most.
    quick = {"algorithm": "fomaml"} if stage == "metatrain" else {}
    return COMMANDS[stage](material, workdir, steps=STEPS[stage], save_every=1, **quick)


def kill_when(process, condition, timeout=300.0):
    """Kills a process at the first moment that a condition holds; whether it was still running."""
    deadline = time.perf_counter() + timeout
    while process.poll() is None and not condition():
        assert time.perf_counter() < deadline
        time.sleep(0.001)
    process.kill()
    process.communicate()
    return process.returncode == -9


def progress(workdir):
    """How far a killed run was, in words."""
    if not (workdir / "run.json").exists():
        return "before the record"
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    steps = [int(name) for name in names if name.isdigit()]
    half = " and one half-written" if len(names) > len(steps) else ""
    end = ", done" if (workdir / "results.json").exists() else ""
    return f"checkpoint {max(steps, default='none')}{half}{end}"


def losses(workdir):
    return [(row["step"], row.get("loss"), row.get("grad_norm")) for row in tiny.rows_of(workdir)]


def assert_ends_alike(process, workdir, expected):
    done = tiny.finish(process)
    assert done.status == 0, done.err
    tiny.assert_same_bits(tiny.training_state(workdir), tiny.training_state(expected.workdir))
    assert losses(workdir) == losses(expected.workdir)
    for name in ("results.json", "model/config.json"):
        assert (workdir / name).read_bytes() == (expected.workdir / name).read_bytes()
    for place in ("", "model", "checkpoints"):
        left, right = (
            sorted(path.name for path in (run / place).iterdir())
            for run in (workdir, expected.workdir)
        )
        assert left == right
    assert not [name for name in tiny.tree_of(workdir) if "tmp" in name or ".part" in name]


@pytest.mark.parametrize(
    ("stage", "moment"),
    [
        ("pretrain", "after a step"),
        pytest.param("metatrain", "while saving", marks=pytest.mark.slow),
    ],
)
def test_killed_and_run_again(material, undisturbed, tmp_path, stage, moment):
    expected = undisturbed(stage)
    workdir = tmp_path / "run"

    def reached():
        if moment == "after a step":
            file = workdir / "metrics.jsonl"
            return file.exists() and file.read_bytes().count(b"\n") > 4
        return any((workdir / "checkpoints").glob("*tmp*"))

    process = tiny.start(*command(stage, material, workdir), cache=expected.cache)
    assert kill_when(process, reached)
    assert not (workdir / "results.json").exists()
    again = tiny.start(*command(stage, material, workdir), cache=expected.cache)
    assert_ends_alike(again, workdir, expected)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "metatrain"])
@pytest.mark.parametrize("number", range(20))
def test_killed_at_a_random_moment(material, undisturbed, seconds, tmp_path, stage, number):
    """And, every third time, killed once more before it is left alone."""
    expected, whole = undisturbed(stage), seconds(stage)
    draw = random.Random(f"{stage} {number}")
    workdir = tmp_path / "run"
    for _ in range(2 if number % 3 == 0 else 1):
        moment = draw.uniform(0, whole)
        process = tiny.start(*command(stage, material, workdir), cache=expected.cache)
        try:
            process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        print(f"{stage} {number}: killed at {moment:.2f} of {whole:.2f} s:", end=" ")
        print(progress(workdir))
    again = tiny.start(*command(stage, material, workdir), cache=expected.cache)
    assert_ends_alike(again, workdir, expected)
