"""metatrain on several data sets at once."""

import gc
import json
import shutil

import numpy as np
import pytest
import tiny

from metajax.commands import finetune as fine_tuning
from metajax.commands import metatrain as training
from metajax.data import TaskData
from metajax.errors import StoppedError
from metajax.training import distributed
from tests.stage_commands import finetune_command, metatrain_command

STEPS = {"steps": 6, "save_every": 3, "algorithm": "fomaml"}
TIMES = {"seconds", "data_wait", "peak_memory_bytes", "valid_seconds", "compiled"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two data sets with enough classes to hold some of each out."""
    folder = tmp_path_factory.mktemp("sources")
    return [tiny.write_rows(folder / f"{n}.csv", tiny.examples(6, 6, seed=n)) for n in range(2)]


def command_on(files, material, workdir, **changes):
    command = metatrain_command(material, workdir, **STEPS | changes)
    at = command.index("--tasks") + 1
    command[at : at + 1] = files
    return command


def rows_of(workdir):
    return [
        {name: value for name, value in row.items() if name not in TIMES}
        for row in tiny.rows_of(workdir)
    ]


@pytest.mark.parametrize("algorithm", ["maml", "protonet"])
def test_a_source_with_fewer_classes_than_ways(files, material, tmp_path, algorithm):
    two = tiny.write_rows(tmp_path / "two.csv", tiny.examples(2, 6, seed=2))
    settings = {"ways": 3, "held_out": 0.25, "meta_batch_size": 3, "algorithm": algorithm}
    command = command_on([files[0], two], material, tmp_path / "run", **settings)
    if algorithm == "protonet":
        at = command.index("--inner-steps")  # It takes none.
        del command[at : at + 2]
    done = tiny.run(*command)
    assert done.status == 0, done.err
    assert f"{two}: has 2 classes, fewer than 3 ways; its episodes have all of them" in done.err
    _, *rows = rows_of(tmp_path / "run")
    assert {name for row in rows for name in row["sources"]} == {str(files[0]), str(two)}
    assert all(np.isfinite(each["loss"]) for row in rows for each in row["sources"].values())
    done = tiny.run(*command_on([two], material, tmp_path / "alone", ways=3))
    assert done.status == 2
    assert "has 2 classes, fewer than 3 ways; ask for fewer" in done.err


def test_each_source_is_measured(files, material, tmp_path):
    run, parts = tmp_path / "run", tmp_path / "parts"
    settings = {"held_out": 0.25, "valid_every": 3, "meta_batch_size": 3}
    done = tiny.run(*command_on(files, material, run, **settings))
    assert done.status == 0, done.err
    names = {str(file) for file in files}
    before, *rows = rows_of(run)
    for row in rows:
        assert row["sources"].keys() <= names
        assert sum(each["tasks"] for each in row["sources"].values()) == 3
        for name in ("loss", "accuracy"):
            total = sum(each["tasks"] * each[name] for each in row["sources"].values())
            assert row[name] == pytest.approx(total / 3, rel=1e-5)
    assert {name for row in rows for name in row["sources"]} == names
    for row in (before, rows[2], rows[5]):
        by_source = row["valid_sources"]
        assert by_source.keys() == names
        assert sum(each["tasks"] for each in by_source.values()) == 64
        total = sum(each["tasks"] * each["accuracy"] for each in by_source.values())
        assert total / 64 == pytest.approx(sum(row["valid_accuracies"]) / 64)
    assert "by source, last 6 steps: " in done.err
    assert "by source, gains at step " in done.err
    # A run that resumes has the same rows, also if the files have moved.
    shutil.copytree(run, parts)
    (parts / "results.json").unlink()
    shutil.rmtree(parts / "checkpoints" / "6")
    (tmp_path / "moved").mkdir()
    moved = [shutil.copy(file, tmp_path / "moved") for file in files]
    done = tiny.run(*command_on(moved, material, parts, **settings))
    assert done.status == 0, done.err
    assert "by source, gains at step " in done.err
    assert rows_of(parts) == [before, *rows]


def test_one_source_is_not_named(files, material, tmp_path):
    done = tiny.run(*command_on(files[:1], material, tmp_path / "run", held_out=0.25, steps=1))
    assert done.status == 0, done.err
    assert not any(name in json.dumps(rows_of(tmp_path / "run")) for name in ("sources",))
    assert "by source" not in done.err


def test_the_sources_are_in_the_order_of_the_devices(files, material, tmp_path, monkeypatch):
    stages = []
    monkeypatch.setattr(training, "train", lambda stage, params: stages.append(stage) or {})
    command = command_on(files, material, tmp_path / "run", meta_batch_size=16)
    tiny.succeed(*command)
    backwards = np.arange(16)[::-1]
    monkeypatch.setattr(distributed, "tasks_by_device", lambda total: backwards[:total])
    tiny.succeed(*command)
    found = [stage.sources(3) for stage in stages]
    assert found[0] == found[1][::-1] != found[1]


def test_weights_are_for_training(files, material, tmp_path):
    """Validation draws by size, as without them."""
    weights = ("--source-weights", "0,2.5")
    settings = {"held_out": 0.25, "steps": 2}
    tiny.succeed(*command_on(files, material, tmp_path / "run", **settings), *weights)
    before, *rows = rows_of(tmp_path / "run")
    assert {name for row in rows for name in row["sources"]} == {str(files[1])}
    assert before["valid_sources"].keys() == {str(file) for file in files}
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["settings"]["source_weights"] == [0, 2.5]


def test_weights_are_not_those_of_the_data_sets_of_valid(files, material, tmp_path, monkeypatch):
    stages = []
    monkeypatch.setattr(training, "train", lambda stage, params: stages.append(stage) or {})
    command = command_on(files, material, tmp_path / "run")
    at = command.index("--held-out")
    del command[at : at + 2]
    other = tiny.write_rows(tmp_path / "other.csv", tiny.examples(3, 6, first=8))
    tiny.succeed(*command, "--valid", other, "--source-weights", 0, 1)
    (stage,) = stages
    assert set(stage.sources(0)) == {str(files[1])}
    assert stage.validation.sources is None  # It has one.


def test_weights_that_leave_nothing_to_train_on(files, material, tmp_path, monkeypatch):
    """Of three data sets, one is held out. With --valid, all are trained on."""
    monkeypatch.setattr(training, "train", lambda stage, params: {})
    three = [*files, tiny.write_rows(tmp_path / "2.csv", tiny.examples(6, 6, seed=2))]
    results = []
    for number in range(3):
        weights = [str(int(place == number)) for place in range(3)]
        command = command_on(three, material, tmp_path / "run", held_out=0.25)
        results.append(tiny.run(*command, "--source-weights", *weights))
    assert sorted(result.status for result in results) == [0, 0, 2]
    (refused,) = (result for result in results if result.status)
    assert "is held out for validation, and the others have the weight 0; give" in refused.err


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("1", "--source-weights: has 1 weights for 2 data sets; give one for each of --tasks"),
        ("0 0", "--source-weights: are all 0; give at least one a weight above 0"),
        ("1 -1", "--source-weights -1.0: out of range; give a number of at least 0"),
        ("1 nan", "--source-weights nan: not finite; give a finite number"),
        ("1 x", "--source-weights 'x': wrong type; give a number"),
    ],
)
def test_weights_that_cannot_be(files, material, tmp_path, weights, message):
    command = command_on(files, material, tmp_path / "run")
    done = tiny.run(*command, "--source-weights", *weights.split())
    assert done.status == 2
    assert message in done.err
    assert done.err.count("\n") == 1


def count_tasks():
    gc.collect()
    return sum(issubclass(type(each), TaskData) for each in gc.get_objects())


@pytest.mark.parametrize(
    ("module", "command"), [(training, metatrain_command), (fine_tuning, finetune_command)]
)
def test_texts_are_not_kept_while_training(module, command, material, tmp_path, monkeypatch):
    before, while_training = count_tasks(), []

    def train(stage, params):
        while_training.append(count_tasks())
        raise StoppedError("enough")

    monkeypatch.setattr(module, "train", train)
    assert tiny.run(*command(material, tmp_path / "run")).status == 1
    assert while_training == [before]
