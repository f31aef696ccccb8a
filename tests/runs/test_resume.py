"""A stopped run ends like an undisturbed one. A run with changed settings is refused."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

from metajax import data, from_pretrained
from metajax.models import DenseLayer
from metajax.training import checkpoint
from tests.stage_commands import COMMANDS, metatrain_command, pretrain_command

SAMPLERS = {
    "pretrain": "pretraining_batch",
    "metatrain": "sample_episodes",
    "finetune": "supervised_batch",
}


def stop_at(monkeypatch, stage, step):
    """Interrupt a run when it reads the data of a step."""
    sample = getattr(data, SAMPLERS[stage])

    def interrupted(*arguments, **settings):
        position = {"pretrain": 3, "metatrain": 3, "finetune": 2}[stage]
        if arguments[position] == step:
            raise KeyboardInterrupt
        return sample(*arguments, **settings)

    monkeypatch.setattr(data, SAMPLERS[stage], interrupted)


def results(workdir):
    return json.loads((workdir / "results.json").read_text())


def losses(workdir):
    return [(row["step"], row.get("loss")) for row in tiny.rows_of(workdir)]


@pytest.mark.parametrize(
    "stage",
    [
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("pretrain", "finetune")),
        "metatrain",
    ],
)
def test_an_interrupted_run_ends_as_an_undisturbed_one(
    chain, material, tmp_path, monkeypatch, stage
):
    # Step 3 is after the checkpoint of step 2. Its row must not occur twice.
    model = {"pretrain": material.bert}.get(stage, chain.pretrain)
    command = COMMANDS[stage](material, tmp_path / "run")
    command[command.index("--model") + 1] = model
    with monkeypatch.context() as patch:
        stop_at(patch, stage, 3)
        stopped = tiny.run(*command)
    assert stopped.status == 1
    assert "the same command resumes" in stopped.err
    assert not (tmp_path / "run" / "results.json").exists()
    resumed = tiny.run(*command)
    assert resumed.status == 0
    assert "starts from step 2" in resumed.err
    undisturbed = getattr(chain, stage)
    state = tiny.training_state(tmp_path / "run")
    tiny.assert_same_bits(state, tiny.training_state(undisturbed))
    assert losses(tmp_path / "run") == losses(undisturbed)
    results = [
        json.loads((d / "results.json").read_text()) for d in (tmp_path / "run", undisturbed)
    ]
    assert results[0] == results[1]
    assert {p.name for p in (tmp_path / "run").iterdir()} == {p.name for p in undisturbed.iterdir()}


def test_a_pooler_that_no_loss_depends_on_stays_as_it_was(chain, material):
    """Weight decay would shrink it; finetune's heads read it."""
    poolers = [
        checkpoint.load(run / "checkpoints").params["pooler"]
        for run in (chain.pretrain, chain.metatrain, chain.finetune)
    ]
    original = from_pretrained(str(material.bert))[1]["pooler"]
    tiny.assert_same_bits(poolers[:2], [original, original])
    assert np.any(poolers[2]["kernel"] != original["kernel"])


def contents(directory):
    return {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_a_finished_run_does_nothing_and_says_the_same(chain, material):
    before = contents(chain.pretrain)
    again = tiny.run(*pretrain_command(material, chain.pretrain))
    assert again.out == chain.out["pretrain"]
    assert again.err == ""
    assert contents(chain.pretrain) == before


@pytest.fixture
def finished(chain, tmp_path):
    """A copy of a finished pretrain run."""
    return shutil.copytree(chain.pretrain, tmp_path / "run")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps": 7}, "--steps was 6, is now 7"),
        ({"batch_size": 8}, "--batch-size was 4, is now 8"),
        ({"learning_rate": 1e-4}, "--learning-rate was 5e-05, is now 0.0001"),
        ({"seed": 3}, "--seed was 0, is now 3"),
        ({"dtype": "bfloat16"}, "--dtype was float32, is now bfloat16"),
        ({"held_out": 0.2}, "--held-out was 0.05, is now 0.2"),
    ],
)
def test_a_changed_setting_is_refused_by_name(finished, material, setting, message):
    before = contents(finished)
    done = tiny.run(*pretrain_command(material, finished, **setting))
    assert done.status == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert contents(finished) == before


def test_settings_that_change_no_number_may_change(finished, material):
    assert tiny.run(*pretrain_command(material, finished, save_every=5, keep=1)).status == 0


def test_changed_data_are_refused_and_moved_data_are_not(finished, material, tmp_path):
    moved = shutil.copy(material.text, tmp_path / "moved.txt")
    material.text, kept = moved, material.text
    try:
        assert tiny.run(*pretrain_command(material, finished)).status == 0
        tiny.write_text(tmp_path / "moved.txt", seed=99)
        done = tiny.run(*pretrain_command(material, finished))
    finally:
        material.text = kept
    assert done.status == 2
    assert f"the contents of --text {moved} have changed" in done.err


def test_other_weights_are_refused(finished, material, tmp_path, chain):
    command = pretrain_command(material, finished)
    command[command.index("--model") + 1] = chain.metatrain
    done = tiny.run(*command)
    assert done.status == 2
    assert "--model has other weights" in done.err
    # The same weights elsewhere are the same weights.
    command[command.index("--model") + 1] = shutil.copytree(material.bert, tmp_path / "bert")
    assert tiny.run(*command).status == 0


def test_what_a_kill_before_the_record_leaves_is_taken_over(material, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".run.json.part").write_text("{")
    tiny.succeed(*pretrain_command(material, tmp_path / "run", steps=1))
    assert not list((tmp_path / "run").glob(".*"))


def test_a_row_that_a_kill_cut_short_is_dropped(chain, material, tmp_path):
    """So are the rows after the checkpoint. Results of a finished run are made again."""
    run = shutil.copytree(chain.pretrain, tmp_path / "run")
    (run / "results.json").unlink()
    shutil.rmtree(run / "checkpoints" / "6")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    tiny.succeed(*pretrain_command(material, run))
    assert losses(run) == losses(chain.pretrain)
    tiny.assert_same_bits(tiny.training_state(run), tiny.training_state(chain.pretrain))


def test_damaged_results_get_one_line(finished, material):
    (finished / "results.json").write_text('{"before": {"lo')
    done = tiny.run(*pretrain_command(material, finished))
    assert done.status == 2
    assert done.err.endswith("results.json: is not JSON; restore it from a backup\n")


def test_metrics_without_their_first_line_get_one_line(finished, material):
    (finished / "results.json").unlink()
    shutil.rmtree(finished / "checkpoints" / "6")
    rows = (finished / "metrics.jsonl").read_text().splitlines(keepends=True)
    (finished / "metrics.jsonl").write_text("".join(rows[1:]))
    done = tiny.run(*pretrain_command(material, finished))
    assert done.status == 2
    assert "metrics.jsonl: has lost its first line" in done.err


@pytest.fixture
def old_metatrain(chain, material, tmp_path):
    """A run from before some settings, and the command that resumes it."""
    run = shutil.copytree(chain.metatrain, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    names = ("keep_duplicates", "lora_kernels", "held_out", "valid_every", "logit_scale")
    for name in (*names, "valid", "valid_classes", "source_weights", "similar_classes"):
        del record["settings"][name]
    (run / "run.json").write_text(json.dumps(record))
    (run / "results.json").unlink()
    command = metatrain_command(material, run, chain.pretrain)
    at = command.index("--held-out")
    del command[at : at + 2]
    return run, command


def test_a_run_of_metatrain_from_before_a_setting_goes_on(old_metatrain, chain):
    run, command = old_metatrain
    done = tiny.run(*command)
    assert done.status == 0, done.err
    assert results(run) == results(chain.metatrain)


def test_a_run_of_adapt_from_before_a_setting_goes_on(chain, material, tmp_path):
    run = shutil.copytree(chain.adapt, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    for name in ("weights", "class_weight", "calibrate", "time_limit", "regression"):
        del record["settings"][name]
    (run / "run.json").write_text(json.dumps(record))
    before = contents(run)
    command = ("adapt", "--model", chain.metatrain, "--tasks", material.new, "--workdir", run)
    done = tiny.run(*command, "--inner-lr", 0.1)
    assert done.status == 0, done.err
    assert contents(run).keys() == before.keys()


def test_a_changed_prompt_or_dense_layer_is_refused(material, tmp_path):
    """Its file is not the config, whose hash the record has."""
    changes = {"pooling": "mean", "dense": DenseLayer(6), "prompt": "w7 "}
    model = tiny.write_model(tmp_path / "encoder", head="encoder", **changes)
    command = pretrain_command(SimpleNamespace(bert=model, text=material.text), tmp_path / "run")
    tiny.succeed(*command)
    for name, old, new, said in (
        (
            "config_sentence_transformers.json",
            "w7 ",
            "w8 ",
            "prompt of --model was 'w7 ', is now 'w8 '",
        ),
        ("2_Dense/config.json", "Tanh", "ReLU", "dense of --model was "),
    ):
        file = model / name
        known = file.read_text()
        file.write_text(known.replace(old, new))
        done = tiny.run(*command)
        file.write_text(known)
        assert (done.status, said in done.err) == (2, True), done.err
    assert tiny.run(*command).status == 0


@pytest.mark.parametrize(
    ("flag", "value", "before", "now"),
    [
        ("--source-weights", 2, [], [2.0]),
        ("--similar-classes", 4, 0, 4),
        ("--held-out", 0.5, 0.0, 0.5),
    ],
)
def test_a_setting_that_did_not_exist_cannot_be_given_to_a_run(
    old_metatrain, flag, value, before, now
):
    _, command = old_metatrain
    done = tiny.run(*command, flag, value)
    assert done.status == 2
    assert f"has a run with other settings ({flag} was {before}, is now {now}); " in done.err
