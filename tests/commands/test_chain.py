"""Each stage reads the workdir of the stage before it, and writes its files."""

import hashlib
import io
import json
import re
import shutil
import sys
import warnings

import jax
import numpy as np
import pytest
import scipy.stats
import tiny
import transformers

import metajax
from metajax.cli import main as cli
from metajax.commands import metatrain as training
from metajax.models import hashes
from metajax.runs.classifier import open_classifier
from metajax.runs.source import open_source
from metajax.training import checkpoint
from tests.stage_commands import metatrain_command


def record_of(workdir):
    return json.loads((workdir / "run.json").read_text())


@pytest.mark.parametrize(
    ("stage", "steps", "kept"),
    [("pretrain", 6, {"4", "6"}), ("metatrain", 4, {"2", "4"}), ("finetune", 4, {"2", "4"})],
)
def test_what_a_training_stage_leaves(chain, stage, steps, kept):
    workdir = getattr(chain, stage)
    files = {path.name for path in workdir.iterdir()}
    written = {"run.json", "config.yaml", "metrics.jsonl", "results.json"}
    assert files == written | {"model", "checkpoints"}
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == kept
    first, *rows = tiny.rows_of(workdir)
    results = json.loads((workdir / "results.json").read_text())
    assert first == {"step": 0, "before": results["before"]}
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    for row in rows:
        assert row["loss"] > 0
        assert row["grad_norm"] > 0
        assert row["seconds"] > 0
        assert 0 <= row["data_wait"] <= 1
        assert row["peak_memory_bytes"] > 1e7  # Python alone needs this much.
    assert chain.out[stage] == f"{json.dumps(results, indent=2)}\nwritten to {workdir}\n"


def test_what_pretrain_reports(chain):
    results = json.loads((chain.pretrain / "results.json").read_text())
    for found in (results["before"], results["after"]):
        assert found.keys() == {"loss", "perplexity", "accuracy"}
        assert np.isclose(found["perplexity"], np.exp(found["loss"]))
    assert results["before"]["loss"] != results["after"]["loss"]


def test_what_metatrain_reports(chain):
    results = json.loads((chain.metatrain / "results.json").read_text())
    for found in (results["before"], results["after"]):
        assert found.keys() == {"accuracy", "ci95"}
        assert 0 < found["accuracy"] <= 1
    assert results["measured_on"].startswith("new episodes of the training classes (")
    rows = tiny.rows_of(chain.metatrain)[1:]
    assert all(len(row["support_loss"]) == 1 and 0 <= row["accuracy"] <= 1 for row in rows)


def test_finetune_reports_each_tasks_own_metrics(chain, material):
    results = json.loads((chain.finetune / "results.json").read_text())
    for found in (results["before"], results["after"]):
        assert found.keys() == {"glue:mrpc", str(material.three)}
        assert found["glue:mrpc"].keys() == {"accuracy", "f1"}
        assert found[str(material.three)].keys() == {"accuracy"}


def test_the_record_says_what_the_run_is(chain, material):
    record = record_of(chain.pretrain)
    assert record["stage"] == "pretrain"
    assert record["settings"]["steps"] == 6
    assert record["settings"]["seed"] == 0
    assert record["settings"]["weight_decay"] == 0.01  # a default
    assert record["versions"]["jax"] == jax.__version__
    digest = hashlib.sha256(material.text.read_bytes()).hexdigest()
    assert record["data"] == {f"--text {material.text}": digest}
    # The settings of the inner loop are those that were used, not None.
    assert record_of(chain.metatrain)["settings"]["inner_lr"] == 0.1


def test_lineage_leads_down_to_the_weights(chain, material):
    saved = checkpoint.load(chain.adapt / "checkpoints")
    assert saved.record == record_of(chain.adapt)
    assert saved.record["stage"] == "adapt"
    metatrain = saved.record["parent"]
    assert (metatrain["path"], metatrain["step"]) == (str(chain.metatrain), 4)
    assert metatrain["record"]["stage"] == "metatrain"
    pretrain = metatrain["record"]["parent"]
    assert (pretrain["path"], pretrain["step"]) == (str(chain.pretrain), 6)
    assert pretrain["record"]["stage"] == "pretrain"
    digest = hashlib.sha256()
    for name in ("model.safetensors", "pooler.safetensors"):
        digest.update(hashlib.sha256((material.bert / name).read_bytes()).digest())
    weights = pretrain["record"]["parent"]
    assert (weights["path"], weights["sha256"]) == (str(material.bert), digest.hexdigest())


def test_a_stage_starts_from_the_parameters_of_its_parent(chain, material, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(training, "train", lambda stage, params: started.append(params) or {})
    tiny.succeed(*metatrain_command(material, tmp_path / "run", chain.pretrain))
    parent = checkpoint.load(chain.pretrain / "checkpoints").params
    for part in ("embeddings", "layers"):
        jax.tree.map(np.testing.assert_array_equal, started[0][part], parent[part])


def test_adapt_names_its_labels_and_learns(chain):
    results = json.loads((chain.adapt / "results.json").read_text())
    assert results["labels"] == ["topic10", "topic8", "topic9"]
    assert results["examples"] == 6
    assert len(results["loss"]) == 1  # one inner step, as in meta-training
    assert tiny.rows_of(chain.adapt) == [{"step": 1, "loss": results["loss"][0]}]
    assert record_of(chain.adapt)["model"]["label_names"] == [results["labels"]]


def test_adapt_says_when_its_steps_are_too_large(chain, material, tmp_path):
    command = ("adapt", "--model", chain.metatrain, "--tasks", material.new)
    done = tiny.run(*command, "--inner-lr", 1000, "--workdir", tmp_path / "large")
    assert "the steps increased the loss on the examples from " in done.err
    assert "give a smaller --inner-lr than 1000, and a new --workdir" in done.err
    done = tiny.run(*command, "--inner-lr", 0.01, "--workdir", tmp_path / "small")
    assert "increased the loss" not in done.err
    assert f"{tmp_path / 'small'}: 1 steps at rate 0.01, loss " in done.err


def test_adapt_again_does_the_same(chain, material):
    command = ("--model", chain.metatrain, "--tasks", material.new, "--workdir", chain.adapt)
    command += ("--inner-lr", 0.1)
    before = checkpoint.load(chain.adapt / "checkpoints").params
    assert tiny.succeed("adapt", *command) == chain.out["adapt"]
    tiny.assert_same_bits(checkpoint.load(chain.adapt / "checkpoints").params, before)


def predictions(out):
    rows = [line.split("\t") for line in out.splitlines()]
    assert all(re.fullmatch(r"[01]\.\d{4}", probability) for _, probability in rows)
    return [label for label, _ in rows]


def test_predict_labels_each_line(chain, material, tmp_path):
    texts = [text for text, _ in tiny.examples(3, 2, seed=5, first=8)]
    labels = [label for _, label in tiny.examples(3, 2, seed=5, first=8)]
    stdin = "\n".join(texts).encode()
    found = predictions(tiny.succeed("predict", "--model", chain.adapt, stdin=stdin))
    assert set(found) <= set(labels)
    # The examples that it adapts to, at a rate for this small network.
    adapt = ("adapt", "--model", chain.metatrain, "--tasks", material.new, "--inner-lr", 0.03)
    tiny.succeed(*adapt, "--workdir", tmp_path / "gently")
    gently = predictions(tiny.succeed("predict", "--model", tmp_path / "gently", stdin=stdin))
    assert np.mean(np.array(gently) == labels) >= 0.8
    (tmp_path / "texts.txt").write_bytes(stdin)
    files = ("--input", tmp_path / "texts.txt", "--output", tmp_path / "labels.tsv")
    # Batches that the texts do not fill change nothing.
    out = tiny.succeed("predict", "--model", chain.adapt, *files, "--batch-size", 4)
    assert out == ""
    assert predictions((tmp_path / "labels.tsv").read_text()) == found


def export(workdir, output, *more):
    found = json.loads(tiny.succeed("export", "--model", workdir, "--output", output, *more))
    assert hasattr(transformers, found["loads_in"])
    return found["head"]


def load_quietly(kind, directory):
    """Load a directory in transformers, and fail on any message about its weights."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, info = getattr(transformers, kind).from_pretrained(
            directory, output_loading_info=True
        )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    model.eval()

    def logits(batch):
        with torch.no_grad():
            return model(**{k: torch.tensor(np.asarray(v)) for k, v in batch.items()})

    return logits


BATCH = {
    "input_ids": np.array([[2, 10, 11, 12, 3], [2, 20, 21, 3, 0]]),
    "attention_mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]),
    "token_type_ids": np.zeros((2, 5), int),
}


def test_pretrain_exports_a_masked_lm(chain, tmp_path):
    assert export(chain.pretrain, tmp_path / "out") == "masked_lm"
    theirs = load_quietly("BertForMaskedLM", tmp_path / "out")(BATCH).logits
    source = open_source(str(chain.pretrain))
    ours = source.model(source.params, BATCH).logits
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-4)


@pytest.mark.parametrize("stage", ["metatrain", "adapt"])
def test_few_shot_stages_export_an_encoder(chain, tmp_path, stage):
    """The head of adapt is in another file: BertForSequenceClassification does not support it."""
    head = export(getattr(chain, stage), tmp_path / "out")
    assert head == {"metatrain": "encoder", "adapt": "classification"}[stage]
    theirs = load_quietly("BertModel", tmp_path / "out")(BATCH).last_hidden_state
    model, params = metajax.from_pretrained(str(tmp_path / "out"))
    np.testing.assert_allclose(model(params, BATCH).last_hidden_state[0], theirs[0], atol=1e-4)
    if stage == "adapt":
        texts = b"w50 w51\nw60\n"
        assert tiny.succeed("predict", "--model", tmp_path / "out", stdin=texts) == tiny.succeed(
            "predict", "--model", chain.adapt, stdin=texts
        )


@pytest.mark.parametrize("classes", [2, 3])
def test_finetune_exports_a_head(chain, material, tmp_path, classes):
    task = {2: "glue:mrpc", 3: str(material.three)}[classes]
    assert export(chain.finetune, tmp_path / "out", "--task", task) == "classification"
    theirs = load_quietly("BertForSequenceClassification", tmp_path / "out")(BATCH).logits
    source = open_source(str(chain.finetune))
    head = {2: 0, 3: 1}[classes]
    ours = source.model(source.params, BATCH | {"task": np.full(2, head)}).logits[:, :classes]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert list(config["id2label"].values()) == list(source.model.label_names[head])


def test_export_to_the_current_directory(chain, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export(chain.adapt, ".")
    assert (tmp_path / "here" / "config.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_labels_in_any_script(material, tmp_path, monkeypatch):
    rows = [("w1 w2", "Gerät"), ("w3 w4", "日本"), ("w5", "a\u202eb")]
    tasks = tiny.write_rows(tmp_path / "tasks.jsonl", rows)
    command = ("adapt", "--model", material.bert, "--tasks", tasks, "--workdir", tmp_path / "run")
    out = tiny.succeed(*command, "--inner-steps", 0)
    assert '"Gerät"' in out
    assert '"日本"' in out
    assert '"a\\u202eb"' in out
    # If a terminal lacks these letters, they are escaped.
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    (tmp_path / "texts.txt").write_text("w3 w4\n")
    given = ["predict", "--model", tmp_path / "run", "--input", tmp_path / "texts.txt"]
    monkeypatch.setattr(sys, "argv", ["metajax", *map(str, given)])
    monkeypatch.setattr(sys, "stdout", stdout)
    with pytest.raises(SystemExit) as ended:
        cli.run()
    assert ended.value.code == 0
    assert stdout.buffer.getvalue().startswith(b"\\u65e5\\u672c\t")


KEYS = [
    "tasks",
    "protocol",
    "method",
    "ways",
    "shots",
    "queries",
    "inner_steps",
    "episodes",
    "accuracy",
]
MORE_KEYS = ["ci95", "behind", "behind_ci95", "seconds", "accuracies", "curve", "curve_ci95"]


def test_evaluate_compares_all_methods(material, evaluation):
    rows = json.loads(evaluation.path.read_text())
    assert all(list(row) == [*KEYS, *MORE_KEYS] for row in rows)
    methods = ["checkpoint", "same-steps", "prototypes", "linear", "knn"]
    assert [row["method"] for row in rows] == methods
    for row in rows:
        assert row["tasks"] == str(material.intents)
        assert (row["ways"], row["shots"], row["queries"], row["episodes"]) == (3, 1, 3, 10)
        assert row["inner_steps"] == (1 if row["method"] in ("checkpoint", "same-steps") else 0)
        assert 0 <= row["accuracy"] <= 1
        assert 0 <= row["ci95"] <= 1
        assert row["seconds"] >= 0
        if row["method"] in ("checkpoint", "same-steps"):
            assert len(row["curve"]) == len(row["curve_ci95"]) == 3
            after = row["curve"][row["inner_steps"]], row["curve_ci95"][row["inner_steps"]]
            assert after == pytest.approx((row["accuracy"], row["ci95"]))
        else:
            assert row["curve"] == row["curve_ci95"] == []
        # On the same episodes.
        behind = np.subtract(rows[0]["accuracies"], row["accuracies"])
        assert row["behind"] == pytest.approx(behind.mean(), abs=1e-12)
        interval = scipy.stats.t.ppf(0.975, 9) * behind.std(ddof=1) / 10**0.5
        assert row["behind_ci95"] == pytest.approx(interval, abs=1e-12)
    assert any(row["behind_ci95"] > 0 for row in rows)
    said, _, *lines = evaluation.out.splitlines()
    assert said.startswith("10 episodes drawn at random with seed 0: 3 ways, 1 shots")
    assert sorted(line.split()[0] for line in lines[:5]) == sorted(methods)
    assert [line.split(" by ")[0] for line in lines[5:]] == [
        f"checkpoint ahead of {line.split()[0]}"
        for line in lines[:5]
        if not line.startswith("checkpoint")
    ]


def test_evaluate_leaves_out_maml_where_nothing_was_meta_trained(chain, material, tmp_path):
    out = tiny.succeed(
        *("evaluate", "--model", chain.pretrain, "--tasks", material.intents, "--ways", 3),
        *("--queries", 3, "--episodes", 8, "--inner-steps", 1),
    )
    methods = {line.split()[0] for line in out.splitlines()[2:6]}
    assert methods == {"same-steps", "prototypes", "linear", "knn"}


def test_over_long_text_is_cut_and_said_once(chain, material, tmp_path):
    rows = tiny.examples(2, 8)
    rows[3] = (" ".join(["w5"] * 90), rows[3][1])
    long = tiny.write_rows(tmp_path / "long.jsonl", rows)
    done = tiny.run(
        *("finetune", "--model", material.bert, "--tasks", long, "--dev", long, "--steps", 1),
        *("--batch-size", 4, "--max-length", 500, "--workdir", tmp_path / "run"),
    )
    assert done.status == 0
    assert done.err.count("2 of 32 texts were cut to 32 tokens") == 1
    # predict cuts texts to the length of the run.
    assert open_classifier(str(tmp_path / "run"), None).max_length == 500


@pytest.mark.parametrize("dev", [False, True])
def test_finetune_on_some_classes(material, tmp_path, dev):
    """The dev set may lack a label, or there is no dev set."""
    (tmp_path / "classes.txt").write_text("topic0\ntopic1\ntopic2\n")
    rows = [row for row in tiny.examples(4, 4, seed=9) if row[1] != "topic2"]
    more = ("--dev", tiny.write_rows(tmp_path / "dev.csv", rows)) if dev else ()
    tiny.succeed(
        *("finetune", "--model", material.bert, "--tasks", material.three, *more, "--steps", 1),
        *("--classes", tmp_path / "classes.txt", "--workdir", tmp_path / "run"),
    )
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["after"]) == ([str(material.three)] if dev else [])


def test_a_run_that_has_not_ended_is_named(chain, tmp_path, caplog):
    half = shutil.copytree(chain.pretrain, tmp_path / "half")
    (half / "results.json").unlink()
    assert open_source(str(half)).record["step"] == 6
    assert "half: is not finished; using the checkpoint of step 6" in caplog.text


@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm": "anil"},
        pytest.param({"algorithm": "reptile"}, marks=pytest.mark.slow),
        pytest.param({"algorithm": "fomaml", "layers": 0}, marks=pytest.mark.slow),
    ],
)
def test_other_algorithms_train_and_adapt(material, tmp_path, settings):
    tiny.succeed(*metatrain_command(material, tmp_path / "meta", steps=1, **settings))
    tiny.succeed(
        *("adapt", "--model", tmp_path / "meta", "--tasks", material.new),
        *("--workdir", tmp_path / "new"),
    )
    rows = tiny.rows_of(tmp_path / "meta")
    assert rows[-1]["step"] == 1
    assert rows[-1]["grad_norm"] > 0


def test_a_model_knows_what_it_came_from(chain, material, tmp_path):
    output = tmp_path / "lineage.json"
    out = tiny.succeed("lineage", "--model", chain.adapt, "--output", output)
    rows = json.loads(output.read_text())
    assert [row["stage"] for row in rows] == ["adapt", "metatrain", "pretrain", None]
    assert [row.get("step") for row in rows] == [None, 4, 6, None]
    assert [row["path"] for row in rows[:3]] == [
        str(getattr(chain, stage)) for stage in ("adapt", "metatrain", "pretrain")
    ]
    assert all(row["settings"]["seed"] == 0 for row in rows[:3])
    own = hashes(str(material.bert))["sha256"]
    assert rows[3]["sha256"] == own
    assert f"sha256 {own[:16]}" in out
    assert f"metatrain  {chain.metatrain}, step 4" in out
    assert "--meta-batch-size 2" in out
    done = tiny.run("lineage", "--model", material.bert)
    assert done.status == 2
    assert "is not the working directory of a run" in done.err
