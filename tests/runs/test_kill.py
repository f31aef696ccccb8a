"""A run that is killed at any moment and repeated ends like an undisturbed run, bit for bit."""

import random
import subprocess
import time
import types

import pytest
import tiny

from tests.commands import test_documents
from tests.commands.test_decoders import write_llama
from tests.stage_commands import COMMANDS

# "documents" meta-trains LoRA adapters of a frozen decoder; its checkpoints have the adapters.
STEPS = {"pretrain": 8, "metatrain": 6, "documents": 6}


@pytest.fixture(scope="module")
def material(material, tmp_path_factory):
    """Also a random Llama and a folder of documents."""
    llama = write_llama(tmp_path_factory.mktemp("models") / "llama")
    documents = tmp_path_factory.mktemp("documents")
    for number in range(6):
        words = random.Random(number).choices(tiny.WORDS, k=30)
        (documents / f"{number}.txt").write_text(" ".join(words))
    return types.SimpleNamespace(**vars(material), llama=llama, documents=documents)


@pytest.fixture(scope="module")
def undisturbed(material, tmp_path_factory):
    """Run a stage without a kill, once."""
    made = {}

    def make(stage):
        if stage not in made:
            made[stage] = tmp_path_factory.mktemp(stage) / "run"
            tiny.succeed(*command(stage, material, made[stage]))
        return made[stage]

    return make


@pytest.fixture(scope="module")
def seconds(material, compiled, tmp_path_factory):
    """Return the seconds of a stage in a separate process, with all programs compiled."""
    found = {}

    def measure(stage):
        if stage not in found:
            for run in ("compiles", "timed"):
                workdir = tmp_path_factory.mktemp(run) / "run"
                begun = time.perf_counter()
                done = tiny.finish(tiny.start(*command(stage, material, workdir), cache=compiled))
                assert done.status == 0, done.err
                found[stage] = time.perf_counter() - begun
        return found[stage]

    return measure


def command(stage, material, workdir):
    # A checkpoint at each step, because a kill disturbs a save most.
    if stage == "documents":
        settings = {"algorithm": "test-time-training", "queries": None, "lora": 2}
        settings |= {"steps": STEPS[stage], "save_every": 1}
        llama, documents = material.llama, material.documents
        return [*test_documents.metatrain(llama, documents, workdir, **settings), "--freeze"]
    quick = {}
    if stage == "metatrain":
        quick = {"algorithm": "fomaml", "held_out": 0.25, "valid_every": 2, "keep": 1}
    return COMMANDS[stage](material, workdir, steps=STEPS[stage], save_every=1, **quick)


def kill_when(process, condition, timeout=300.0):
    """Kill a process when a condition holds; return whether it was still running."""
    deadline = time.perf_counter() + timeout
    while process.poll() is None and not condition():
        assert time.perf_counter() < deadline
        time.sleep(0.001)
    process.kill()
    process.communicate()
    return process.returncode == -9


def progress(workdir):
    """Describe how far a killed run was."""
    if not (workdir / "run.json").exists():
        return "before the record"
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    steps = [int(name) for name in names if name.isdigit()]
    half = " and one half-written" if len(names) > len(steps) else ""
    end = ", done" if (workdir / "results.json").exists() else ""
    return f"checkpoint {max(steps, default='none')}{half}{end}"


def losses(workdir):
    return [(row["step"], row.get("loss"), row.get("grad_norm")) for row in tiny.rows_of(workdir)]


def assert_ends_alike(stage, material, workdir, expected):
    tiny.succeed(*command(stage, material, workdir))
    tiny.assert_same_bits(tiny.training_state(workdir), tiny.training_state(expected))
    assert losses(workdir) == losses(expected)
    for name in ("results.json", "model/config.json"):
        assert (workdir / name).read_bytes() == (expected / name).read_bytes()
    for place in ("", "model", "checkpoints"):
        left, right = (
            sorted(path.name for path in (run / place).iterdir()) for run in (workdir, expected)
        )
        assert left == right
    assert not [name for name in tiny.tree_of(workdir) if "tmp" in name or ".part" in name]


@pytest.mark.parametrize(
    ("stage", "moment"),
    [
        ("pretrain", "after a step"),
        pytest.param("metatrain", "while saving", marks=pytest.mark.slow),
        pytest.param("documents", "after a step", marks=pytest.mark.slow),
        pytest.param("documents", "while saving", marks=pytest.mark.slow),
    ],
)
def test_killed_and_run_again(material, compiled, undisturbed, tmp_path, stage, moment):
    expected = undisturbed(stage)
    workdir = tmp_path / "run"

    def reached():
        if moment == "after a step":
            file = workdir / "metrics.jsonl"
            return file.exists() and file.read_bytes().count(b"\n") > 4
        return any((workdir / "checkpoints").glob("*tmp*"))

    process = tiny.start(*command(stage, material, workdir), cache=compiled)
    assert kill_when(process, reached)
    assert not (workdir / "results.json").exists()
    assert_ends_alike(stage, material, workdir, expected)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STEPS)
@pytest.mark.parametrize("number", range(20))
def test_killed_at_a_random_moment(
    material, compiled, undisturbed, seconds, tmp_path, stage, number
):
    """Every third time, it is killed again before it may finish."""
    expected, whole = undisturbed(stage), seconds(stage)
    draw = random.Random(f"{stage} {number}")
    workdir = tmp_path / "run"
    for _ in range(2 if number % 3 == 0 else 1):
        moment = draw.uniform(0, whole)
        process = tiny.start(*command(stage, material, workdir), cache=compiled)
        try:
            process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        print(f"{stage} {number}: killed at {moment:.2f} of {whole:.2f} s:", end=" ")
        print(progress(workdir))
    assert_ends_alike(stage, material, workdir, expected)
