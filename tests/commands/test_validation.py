"""metatrain keeps the checkpoint that is best on validation tasks, or the start."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

from metajax.commands import metatrain as training
from metajax.data import tasks
from metajax.runs import task_data
from metajax.runs.best import best_of
from metajax.runs.source import open_source
from metajax.runs.validation import VALIDATED_EPISODES
from metajax.training import checkpoint
from tests.stage_commands import metatrain_command

STEPS = {"steps": 6, "save_every": 3, "held_out": 0.25, "algorithm": "fomaml"}


def results_of(workdir):
    return json.loads((workdir / "results.json").read_text())


def checkpoints_of(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


@pytest.fixture
def scripted(monkeypatch):
    """Let validations have these mean accuracies, one after another."""

    def script(*means):
        coming = iter(means)
        noise = np.random.default_rng(0).normal(size=VALIDATED_EPISODES) / 100

        def accuracies_of(*given):
            return lambda params: next(coming) + noise

        monkeypatch.setattr(training, "_accuracies", accuracies_of)

    return script


def test_the_best_is_kept_and_read_by_later_stages(scripted, material, tmp_path):
    """It is neither the newest checkpoint nor one that --save-every would save."""
    scripted(0.5, 0.6, 0.9, 0.7)
    run = tmp_path / "run"
    done = tiny.run(*metatrain_command(material, run, valid_every=2, keep=1, **STEPS))
    assert done.status == 0, done.err
    assert checkpoints_of(run) == [0, 4, 6]
    results = results_of(run)
    assert list(results) == [
        *("measured_on", "before", "after", "best_step", "kept_step", "gain", "gain_ci95"),
    ]
    assert (results["best_step"], results["kept_step"]) == (4, 4)
    assert results["gain"] == pytest.approx(0.4)
    assert results["before"]["accuracy"] == pytest.approx(0.5, abs=0.01)
    assert results["after"]["accuracy"] == pytest.approx(0.7, abs=0.01)
    assert "of step 4, is 40.00 ± 0.00 points ahead of the start" in done.err
    source = open_source(str(run))
    assert source.record["step"] == 4
    best = checkpoint.load(run / "checkpoints", 4).params
    tiny.assert_same_bits(source.params, best)
    last = checkpoint.load(run / "checkpoints").params
    assert np.any(best["embeddings"]["word"] != last["embeddings"]["word"])
    adapt = ("adapt", "--model", run, "--tasks", material.new, "--workdir", tmp_path / "new")
    tiny.succeed(*adapt)
    record = json.loads((tmp_path / "new" / "run.json").read_text())
    assert record["parent"]["step"] == 4
    # Without results, the run ends in the same way.
    (run / "results.json").unlink()
    tiny.succeed(*metatrain_command(material, run, valid_every=2, keep=1, **STEPS))
    assert results_of(run) == results


def test_a_run_that_gets_worse_keeps_the_start_and_says_so(scripted, material, tmp_path):
    scripted(0.5, 0.45, 0.3, 0.2)
    run = tmp_path / "run"
    done = tiny.run(*metatrain_command(material, run, valid_every=2, keep=1, **STEPS))
    assert done.status == 0, done.err
    results = results_of(run)
    assert (results["best_step"], results["kept_step"]) == (2, 0)
    assert results["gain"] == pytest.approx(-0.05)
    assert "of step 2, is 5.00 ± 0.00 points behind the start" in done.err
    assert "later stages read the weights from before meta-training" in done.err
    assert open_source(str(run)).record["step"] == 0
    # These are the weights that it began with, whatever later stages are.
    start = open_source(str(material.bert), head="encoder").params
    for part in ("embeddings", "layers"):
        tiny.assert_same_bits(open_source(str(run)).params[part], start[part])
    evaluate = ("evaluate", "--model", run, "--tasks", material.intents, "--ways", 3)
    out = tmp_path / "rows.json"
    done = tiny.run(*evaluate, "--queries", 3, "--episodes", 4, "--output", out)
    assert done.status == 0, done.err
    assert f"{run}: uses the weights from before meta-training, because no checkpoint" in done.err
    rows = {row["method"]: row["accuracies"] for row in json.loads(out.read_text())}
    assert rows["checkpoint"] == rows["same-steps"]


def test_validation_is_on_classes_that_no_step_sees(material, tmp_path, monkeypatch):
    stages = []
    monkeypatch.setattr(training, "train", lambda stage, params: stages.append(stage) or {})
    drawn = []
    sampler = training.episode_sampler

    def noting(examples, *given):
        drawn.append(examples)
        return sampler(examples, *given)

    monkeypatch.setattr(training, "episode_sampler", noting)
    tiny.succeed(*metatrain_command(material, tmp_path / "run", valid_every=7, **STEPS))
    (stage,) = stages
    assert stage.validation.every == 7
    accuracies = stage.validation.accuracies(open_source(str(material.bert)).params)
    assert accuracies.shape == (VALIDATED_EPISODES,)
    (trained,), (validated,) = drawn
    assert len(trained.label_names) == len(validated.label_names) == 3
    assert not set(trained.label_names) & set(validated.label_names)
    held_out = stage.run.record["held_out"]
    names = list(validated.label_names)
    assert held_out == {
        "kind": "classes",
        "tasks": [{"task": str(material.intents), "classes": names, "examples": 24}],
    }
    assert stage.measured_on == f"64 episodes of validation tasks: 3 classes of {material.intents}"
    due = [step for step in range(1, 11) if stage.validation.is_due(step, 10)]
    assert due == [7, 10]


def test_validation_takes_as_many_episodes_at_once_as_the_memory_plan_says(
    material, tmp_path, monkeypatch
):
    stages, calls = [], []
    monkeypatch.setattr(training, "train", lambda stage, params: stages.append(stage) or {})
    monkeypatch.setattr(training, "device_memory", lambda settings: 10**9)
    monkeypatch.setattr(training, "choose_plan", lambda *_: {"chunk_size": 1})
    monkeypatch.setattr(training, "default_chunk_size", lambda total: total)

    def run_episodes(algorithm, params, tasks, rng, *, chunk_size):
        calls.append((tasks, chunk_size))
        return SimpleNamespace(query_aux={"accuracy": np.zeros(VALIDATED_EPISODES)})

    monkeypatch.setattr(training, "run_episodes", run_episodes)
    command = metatrain_command(material, tmp_path / "run", **STEPS | {"meta_batch_size": 16})
    tiny.succeed(*command)
    for _ in range(2):
        stages[0].validation.accuracies({})
    (tasks, chunk_size), (again, _) = calls
    assert chunk_size == 1
    assert again is tasks  # They are not drawn again.


def test_tokens_and_repeated_texts_do_not_depend_on_what_is_held_out(
    material, tmp_path, monkeypatch
):
    """A large data set is tokenized once for all runs, and searched for duplicates once in each."""
    searched = []
    find_duplicates = tasks.find_duplicates
    monkeypatch.setattr(
        tasks, "find_duplicates", lambda *given: searched.append(1) or find_duplicates(*given)
    )
    monkeypatch.setattr(training, "train", lambda stage, params: {})
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    runs = [{"seed": 0}, {"seed": 1}, {"held_out": 0.5}, {"held_out": 0}, {"ways": 4}]
    for many, files in ((49, 0), (48, 1)):  # The file has 48 texts.
        monkeypatch.setattr(task_data, "MANY", many)
        for number, changes in enumerate(runs):
            run = tmp_path / f"{many}-{number}"
            done = tiny.run(*metatrain_command(material, run, **STEPS | changes))
            assert done.status == 0, done.err
            assert len(list(tmp_path.glob("cache/metajax/*.arrow"))) == files
            assert ("tokens are read from, or kept in" in done.err) == (files == 1)
            assert len(searched) == 1
            searched.clear()


def test_validation_tasks_can_be_given(material, tmp_path, monkeypatch):
    stages = []
    monkeypatch.setattr(training, "train", lambda stage, params: stages.append(stage) or {})
    given = {**STEPS, "valid": str(material.new), "shots": 1, "queries": 1}
    command = metatrain_command(material, tmp_path / "run", **given)
    tiny.succeed(*command)
    record = stages[0].run.record
    assert record["held_out"]["kind"] == "--valid"
    (task,) = record["held_out"]["tasks"]
    assert task["task"] == str(material.new)
    assert f"--valid {material.new}" in record["data"]
    for name, numbers in (("train", range(3)), ("valid", range(3, 6))):
        (tmp_path / f"{name}.txt").write_text("".join(f"topic{n}\n" for n in numbers))
    given["valid"] = str(material.intents)
    command = metatrain_command(material, tmp_path / "run", **given)
    command += ["--classes", tmp_path / "train.txt"]
    tiny.succeed(*command, "--valid-classes", tmp_path / "valid.txt")
    (task,) = stages[1].run.record["held_out"]["tasks"]
    assert task["classes"] == ["topic3", "topic4", "topic5"]
    assert f"--valid-classes {tmp_path / 'valid.txt'}" in stages[1].run.record["data"]
    done = tiny.run(*command)
    assert done.status == 2
    assert "--valid and --tasks share the label 'topic0'; choose different" in done.err
    copy = shutil.copy(material.intents, tmp_path / "copy.jsonl")
    done = tiny.run(*metatrain_command(material, tmp_path / "run", **given | {"valid": copy}))
    assert done.status == 2
    assert "copy.jsonl: --valid and --tasks share the label 'topic0'; choose different" in done.err


def test_validation_texts_that_are_trained_on_are_counted(material, tmp_path, monkeypatch):
    """They may have other labels in another file."""
    monkeypatch.setattr(training, "train", lambda stage, params: {})
    rows = tiny.examples(6, 12, seed=1)
    valid = tiny.write_rows(tmp_path / "valid.csv", rows)
    command = metatrain_command(material, tmp_path / "run", **STEPS | {"valid": valid})
    command[command.index("--tasks") + 1] = tiny.write_rows(tmp_path / "train.csv", rows[:-6])
    done = tiny.run(*command)
    assert done.status == 0, done.err
    assert f"valid.csv: {len(rows) - 6} of {len(rows)} validation texts are also" in done.err


def test_what_is_held_out_has_no_effect_with_valid(material, tmp_path):
    given = STEPS | {"valid": material.new, "held_out": 0.4}
    done = tiny.run(*metatrain_command(material, tmp_path / "run", **given))
    assert done.status == 2
    assert "--held-out 0.4: has no effect with --valid; remove one of them" in done.err


@pytest.mark.parametrize(
    ("changes", "message", "validates"),
    [
        ({}, "held out for validation: 3 classes of ", True),
        ({"ways": 4}, "too few classes to hold out: validation is on other examples", True),
        ({"ways": 4, "queries": 5}, "nothing can be held out for validation, because", False),
        ({"held_out": 0}, None, False),
    ],
)
def test_what_is_held_out_is_said(material, tmp_path, monkeypatch, changes, message, validates):
    stages = []
    monkeypatch.setattr(training, "train", lambda stage, params: stages.append(stage) or {})
    done = tiny.run(*metatrain_command(material, tmp_path / "run", **STEPS | changes))
    assert done.status == 0, done.err
    assert (stages[0].validation is not None) == validates
    assert ("held_out" in stages[0].run.record) == validates
    if message is None:
        assert "held out" not in done.err
        assert "validation" not in done.err
    else:
        assert message in done.err


def test_whole_tasks_are_validated_with_the_shapes_of_the_largest(material, tmp_path):
    """The data set that is held out may have fewer classes than another."""
    files = [
        tiny.write_rows(tmp_path / f"{n}.csv", tiny.examples(classes, 4, seed=n))
        for n, classes in enumerate((2, 3, 4))
    ]
    command = metatrain_command(material, tmp_path / "run", **STEPS | {"steps": 1})
    at = command.index("--tasks") + 1
    command[at : at + 1] = files
    tiny.succeed(*command, "--whole-tasks")
    rows = tiny.rows_of(tmp_path / "run")
    assert len(rows[-1]["valid_accuracies"]) == VALIDATED_EPISODES
    kinds = json.loads((tmp_path / "run" / "run.json").read_text())["held_out"]["kind"]
    assert kinds == "data sets"


def test_a_resumed_run_chooses_as_an_undisturbed_one(material, tmp_path):
    """It stops after a validation whose checkpoint is not saved."""
    settings = STEPS | {"valid_every": 1, "keep": 1}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    tiny.succeed(*metatrain_command(material, whole, **settings))
    rows = tiny.rows_of(whole)
    assert [row["step"] for row in rows if "valid_accuracies" in row] == list(range(7))
    shutil.copytree(whole, parts)
    (parts / "results.json").unlink()
    for step in checkpoints_of(parts):
        if step not in (0,):
            shutil.rmtree(parts / "checkpoints" / str(step))
    text = (parts / "metrics.jsonl").read_text().splitlines(keepends=True)
    (parts / "metrics.jsonl").write_text("".join(text[:4]) + text[4][:30])
    done = tiny.run(*metatrain_command(material, parts, **settings))
    assert done.status == 0, done.err
    assert "starts from step 0 of 6" in done.err
    assert results_of(parts) == results_of(whole)
    assert checkpoints_of(parts) == checkpoints_of(whole)
    best = best_of(tiny.rows_of(parts))
    assert results_of(parts).items() >= best._asdict().items()


@pytest.mark.parametrize("lost", ["first", "last"])
def test_metrics_without_a_validation_get_one_line(material, tmp_path, lost):
    run = tmp_path / "run"
    tiny.succeed(*metatrain_command(material, run, **STEPS | {"steps": 1}))
    (run / "results.json").unlink()
    first, last = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(last if lost == "first" else first)
    done = tiny.run(*metatrain_command(material, run, **STEPS | {"steps": 1}))
    assert done.status == 2
    assert f"metrics.jsonl: has lost its {lost} line" in done.err
