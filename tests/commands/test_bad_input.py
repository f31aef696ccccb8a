"""Bad input to a command gives exit status 2 and one line: where, what is wrong, how to fix it.

Nothing is written before all input has been read. The messages are tested with the code that raises
them: tests/data/test_bad_files.py, tests/models/test_bad_directories.py, test_bad_settings.py,
test_config.py. This file has one fault for each command and kind of input, and faults that only a
command can find.
"""

import errno
import fcntl
import json
import os
import shutil
import socket

import huggingface_hub
import jax
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from metajax.commands.predict import label
from metajax.errors import InputError
from metajax.runs.classifier import open_classifier
from metajax.runs.workdir import check_writable, writable
from tests.stage_commands import finetune_command, metatrain_command, pretrain_command

# Faults that only appear after the weights and the last row have been read.
NO_MODEL = ("cut", "model.safetensors: ")
NO_RUN = ("./nowhere", "./nowhere: is not the working directory of a run")
NO_TASKS = ("bad.csv", "bad.csv:26: ")
NO_CLASSES = ("one.txt", "one.txt:2: no task has the label 'nope'")
NO_WORKDIR = ("file", "file: is not a directory; give another")
NO_SETTINGS = ("bad.yaml", "bad.yaml: contains no settings")
NO_SEED = (-1, "--seed -1: out of range; give a number of at least 0")
NO_OUTPUT = ("no/out", "no/out: its directory does not exist")

# For each command, options with a wrong value and the message.
WIRING = {
    "pretrain": {
        "--model": NO_MODEL,
        "--text": ("none.txt", "none.txt: no such file"),
        "--workdir": NO_WORKDIR,
        "--config": NO_SETTINGS,
        "--seed": NO_SEED,
    },
    "finetune": {
        "--model": NO_MODEL,
        "--tasks": NO_TASKS,
        "--dev": ("other.csv", "other.csv: has the label 'topic3', but the training file does"),
        "--classes": NO_CLASSES,
        "--workdir": NO_WORKDIR,
        "--config": NO_SETTINGS,
        "--seed": NO_SEED,
    },
    "metatrain": {
        "--model": NO_MODEL,
        "--tasks": NO_TASKS,
        "--classes": NO_CLASSES,
        "--ways": (4, "has 3 classes, fewer than 4 ways"),
        "--shots": (6, "has 8 examples, fewer than 6 shots and 3 queries"),
        "--workdir": NO_WORKDIR,
        "--config": NO_SETTINGS,
        "--seed": NO_SEED,
    },
    "adapt": {
        "--model": NO_MODEL,
        "--tasks": NO_TASKS,
        "--dev": ("other.csv", "other.csv: has the label 'topic3', but the training file does"),
        "--classes": NO_CLASSES,
        "--workdir": NO_WORKDIR,
        "--config": NO_SETTINGS,
        "--seed": NO_SEED,
    },
    "evaluate": {
        "--model": NO_MODEL,
        "--tasks": NO_TASKS,
        "--classes": NO_CLASSES,
        "--splits": ("no", "--splits no: is not a directory"),
        "--ways": (4, "has 3 classes, fewer than 4 ways"),
        "--shots": (6, "has 8 examples, fewer than 6 shots and 3 queries"),
        "--methods": ("checkpoint", "is not meta-trained, but the method checkpoint needs a"),
        "--output": NO_OUTPUT,
        "--config": NO_SETTINGS,
        "--seed": NO_SEED,
    },
    "plan": {
        "--model": ("./nowhere", "./nowhere: no such directory"),
        "--steps": (0, "--steps 0: out of range; give a number of at least 1"),
        "--memory": ("much", "--memory much: is not an amount of memory; give one such as 16GB"),
        "--output": NO_OUTPUT,
        "--config": NO_SETTINGS,
        "--seed": NO_SEED,
    },
    "predict": {
        "--model": NO_MODEL,
        "--input": ("none.txt", "none.txt: no such file"),
        "--task": ("nope", "--task nope: unknown task; choose from "),
        "--output": NO_OUTPUT,
        "--config": NO_SETTINGS,
        "--batch-size": (0, "--batch-size 0: out of range; give a number of at least 1"),
        "--top": (0, "--top 0: out of range; give a number of at least 1"),
        "--threshold": (2, "--threshold 2.0: out of range; give a number of at most 1"),
        "--format": ("csv", "--format csv: unknown value; choose from tsv, jsonl"),
    },
    "export": {
        "--model": NO_RUN,
        "--output": ("full", "full: exists and is not an empty directory"),
        "--config": NO_SETTINGS,
    },
    "lineage": {"--model": NO_RUN, "--output": NO_OUTPUT, "--config": NO_SETTINGS},
    "report": {
        "--runs": NO_RUN,
        "--evaluations": ("none.json", "none.json: no such file"),
        "--output": ("no/r.html", "no/r.html: its directory does not exist"),
        "--config": NO_SETTINGS,
    },
    "demo": {
        "--workdir": NO_WORKDIR,
        "--config": NO_SETTINGS,
        "--seed": NO_SEED,
    },
}


@pytest.fixture
def sound(material, tmp_path):
    """Correct options of each command, and the files that wrong options name."""
    (tmp_path / "file").touch()
    shutil.copytree(material.bert, tmp_path / "cut")
    weights = (tmp_path / "cut" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(weights[:-100])
    (tmp_path / "bad.csv").write_text(material.three.read_text() + "no label\n")
    (tmp_path / "bad.yaml").write_text("- steps\n")
    (tmp_path / "one.txt").write_text("topic1\nnope\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    tiny.write_rows(tmp_path / "other.csv", tiny.examples(4, 2))
    run = {"--model": material.bert, "--workdir": "run"}
    tasks = {"--model": material.bert, "--tasks": material.three}
    return {
        "pretrain": run | {"--text": material.text},
        "finetune": run | tasks,
        "metatrain": run | tasks | {"--ways": 3, "--queries": 3},
        "adapt": run | tasks,
        "evaluate": tasks | {"--ways": 3, "--queries": 3},
        "plan": {"--model": material.bert},
    }


@pytest.mark.parametrize("command", WIRING)
def test_each_input_of_each_command(refused, request, sound, command):
    options = sound.get(command)
    if options is None and command != "demo":
        run = request.getfixturevalue("chain").adapt
        options = {"--runs" if command == "report" else "--model": run}
        options |= {"--output": "out"} if command == "export" else {}
    for option, (value, message) in WIRING[command].items():
        given = {**(options or {}), option: value}
        refused(message, command, *(item for pair in given.items() for item in pair))


def test_places_of_tasks_and_names_of_columns(refused, material, tmp_path):
    command = ("finetune", "--model", material.bert, "--workdir", "run")
    refused(
        "/glue: has no folder RTE", *command, "--tasks", "glue:rte", "--glue-dir", material.glue
    )
    columns = ("--text-column", "x", "--pair-column", "y", "--label-column", "z")
    for row, first in ((",,", "x"), ("w3,,", "y"), ("w3,w4,", "z")):
        (tmp_path / "c.csv").write_text(f"x,y,z\nw1,w2,a\n{row}\n")
        refused(f"c.csv:3: no '{first}'", *command, "--tasks", "c.csv", *columns)


@pytest.mark.parametrize("steps", [0, 1])
def test_adapt_refuses_a_loss_that_is_no_number(material, tmp_path, steps):
    weights = tiny.write_model(tmp_path / "bert", head="encoder") / "model.safetensors"
    tensors = load_file(weights)
    tensors["embeddings.word_embeddings.weight"][:] = 3e38  # Their sum is infinite.
    save_file(tensors, weights, metadata={"format": "pt"})
    command = ("adapt", "--model", weights.parent, "--tasks", material.new, "--inner-steps", steps)
    done = tiny.run(*command, "--workdir", tmp_path / "run")
    assert done.status == 2
    message = "metajax: error: --model: the loss on the examples is nan; give other weights"
    assert done.err.splitlines()[-1] == message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["notes.txt", "data", "data/train.txt"])
def test_the_demo_leaves_a_directory_of_others_alone(refused, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine\n")
    refused("is not empty and has no demo", "demo", "--workdir", tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]
    assert (tmp_path / name).read_text() == "mine\n"


@pytest.fixture
def encoder(tmp_path):
    """A model without a masked-LM head, which would be initialized with a warning."""
    return tiny.write_model(tmp_path / "encoder", head="encoder")


def test_notes_do_not_come_before_a_complaint(refused, encoder, tmp_path):
    (tmp_path / "short.txt").write_text("w1 w2\n")
    command = ("pretrain", "--model", encoder, "--text", "short.txt", "--workdir", "run")
    refused("the text fills only one block", *command)


def test_a_disk_without_locks(chain, encoder, material, tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    command = pretrain_command(material, tmp_path / "run")  # Compiled for the chain.
    command[command.index("--model") + 1] = encoder
    done = tiny.run(*command)
    assert done.status == 0, done.err
    assert "cannot be locked ([Errno 37] No locks available); do not start another run" in done.err
    assert done.err.count("has no masked_lm: freshly initialized") == 1


@pytest.fixture
def offline(monkeypatch):
    """HF_HUB_OFFLINE=1, which is read at import. Nothing may try to use the network."""

    def nothing(*_, **__):
        raise AssertionError("tried the network")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket, "getaddrinfo", nothing)
    monkeypatch.setattr(socket.socket, "connect", nothing)


def test_a_hub_id_while_offline(refused, material, offline):
    message = (
        "no-such-model: not in the hub's cache, and HF_HUB_OFFLINE .*; unset the variable, or pass "
        "--model the path of a local directory"
    )
    text = ("--text", material.text, "--workdir", "run")
    refused(message, "pretrain", "--model", "no-such-owner/no-such-model", *text)
    refused(message, "predict", "--model", "no-such-owner/no-such-model", stdin=b"w1\n")


def test_a_run_that_has_no_checkpoint_yet(refused, chain, material, tmp_path):
    run = shutil.copytree(chain.pretrain, tmp_path / "early")
    shutil.rmtree(run / "checkpoints")
    command = ("--tasks", material.new, "--workdir", "run")
    refused("has no checkpoint yet", "adapt", "--model", run, *command)
    (run / "checkpoints").mkdir()
    refused("has no checkpoint yet", "adapt", "--model", run, *command)
    refused("has no checkpoint yet", "export", "--model", run, "--output", "out")


def test_workdir_of_another_stage(refused, chain, material):
    refused(
        "belongs to a pretrain run, not to metatrain", *metatrain_command(material, chain.pretrain)
    )


def test_workdir_that_holds_something_else(refused, material, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    refused("is not empty and has no run", *pretrain_command(material, tmp_path / "mine"))
    refused("is not empty and has no run", *pretrain_command(material, material.bert))


def test_directories_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match="/file: is not a directory; give another"):
            check_writable(place)
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for place in (tmp_path / "link", tmp_path / "link" / "run"):
        with pytest.raises(InputError, match=r"link: links to .*gone, which does not exist"):
            check_writable(place)
    check_writable(tmp_path / "new" / "run")
    # Root ignores permissions.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="is not writable; give another"):
        check_writable(tmp_path / "new" / "run")
    with pytest.raises(InputError, match="its directory is not writable; give a file in another"):
        writable(str(tmp_path / "new.txt"))


def test_a_command_is_required(refused):
    refused("required: COMMAND", *())


def test_work_that_cannot_be_split(refused, material, monkeypatch):
    eight = jax.devices()
    monkeypatch.setattr(jax, "local_devices", lambda: eight)
    message = "--batch-size 12: is not a multiple of 8, the number of devices; use 8 or 16"
    refused(message, *pretrain_command(material, "r", batch_size=12))
    refused(message, *finetune_command(material, "r", batch_size=12))
    for command in (metatrain_command(material, "run"), ["plan", "--model", material.bert]):
        message = "--meta-batch-size 12: is not a multiple of 8, the number of devices; use 8 or 16"
        refused(message, *command, "--meta-batch-size", 12)
        message = "--chunk-size 3: does not divide the 4 episodes"
        refused(message, *command, "--meta-batch-size", 32, "--chunk-size", 3)


def test_a_dev_file_for_each_task(refused, material):
    command = finetune_command(material, "run")
    dev = command.index(material.three_dev)
    message = "--dev: 2 files given for 1 tasks without a built-in dev set"
    refused(message, *command[:dev], "a.csv", *command[dev:])


def test_single_texts_where_pairs_were_learned(refused, chain, material, tmp_path):
    predict = (
        "predict",
        "--model",
        chain.finetune,
        "--task",
    )  # A model of pairs and one of single texts.
    for task, sound, other in (("glue:mrpc", "w1\tw2", "w1"), (material.three, "w1", "w1\tw2")):
        assert tiny.succeed(*predict, task, stdin=f"{sound}\n".encode())
        found, wanted = ("pairs", "single texts") if "\t" in other else ("single texts", "pairs")
        message = f"has {found}, but the model was trained on {wanted}"
        refused(message, *predict, task, stdin=f"{other}\n".encode())
    message = "has pairs, but the model was trained on single texts"
    refused(message, "predict", "--model", chain.adapt, stdin=b"w1\tw2\n")
    (tmp_path / "dev.csv").write_text("text,text_pair,label\nw1,w2,topic8\nw3,w4,topic9\n")
    dev = ("--dev", "dev.csv", "--workdir", "run")
    message = "dev.csv: has pairs and the training file single texts"
    refused(message, "adapt", "--model", material.bert, "--tasks", material.new, *dev)


def test_adapt_takes_one_task(refused, material):
    tasks = ("--tasks", material.new, material.three)
    refused(
        "2 tasks given, but adapt takes one",
        "adapt",
        "--model",
        material.bert,
        *tasks,
        "--workdir",
        "run",
    )


def test_models_that_label_nothing(refused, chain, material):
    for name in ("pretrain", "metatrain"):
        with pytest.raises(InputError, match=f"is a {name} run without labels; run adapt"):
            open_classifier(str(getattr(chain, name)), None)
    message = "lacks the classification head that its config"
    refused(message, "predict", "--model", material.bert, stdin=b"w1\n")
    for task, said in (
        (None, "--task: is missing; choose from glue:mrpc, "),
        ("no", "--task no: unknown task; choose from glue:mrpc, "),
    ):
        with pytest.raises(InputError, match=said):
            open_classifier(str(chain.finetune), task)


def test_a_classifier_of_more_classes_than_its_config_tells_of(material, tmp_path):
    directory = tiny.write_model(tmp_path / "five", head="classification", num_labels=(5,))
    config = json.loads((directory / "config.json").read_text())
    del config["id2label"], config["label2id"]
    (directory / "config.json").write_text(json.dumps(config | {"num_labels": 2}))
    with pytest.raises(InputError, match="lacks the classification head that its config"):
        open_classifier(str(directory), None)
    for more in ({}, {"num_labels": 5}):
        (directory / "config.json").write_text(json.dumps(config | more))
        [found] = label(open_classifier(str(directory), None), ["w1"], None, 1)
        assert found.label in [f"LABEL_{i}" for i in range(5)]


def test_standard_input(refused, chain):
    predict = ("predict", "--model", chain.adapt)
    refused("standard input: is empty; give one text per line", *predict)
    refused("standard input:1: is not UTF-8", *predict, stdin=b"\xff\n")
    refused("standard input:2: has 2 texts, unlike the first", *predict, stdin=b"a\na\tb\n")


def test_text_in_another_language(refused, material, tmp_path):
    (tmp_path / "text.txt").write_text("nothing here that the model knows\n" * 40)
    command = pretrain_command(material, "run")
    command[command.index("--text") + 1] = tmp_path / "text.txt"
    refused("the model's vocabulary has no word of the held-out part", *command)


def test_files_that_must_not_be_written_over(chain, tmp_path):
    (tmp_path / "in.txt").touch()
    os.mkfifo(tmp_path / "pipe")  # A pipe must not be replaced, and neither must /dev/null.
    kept = ("run.json", "model/config.json", "checkpoints/1/params/manifest.ocdbt")
    for name, message in {
        tmp_path / "no" / "rows.json": "its directory does not exist",
        tmp_path: "is a directory",
        tmp_path / "pipe": "is not a plain file",
        tmp_path / "in.txt": "is read by this command",
        **{chain.adapt / name: "belongs to a run" for name in kept},
    }.items():
        with pytest.raises(InputError, match=f"{name}: {message}; give "):
            writable(str(name), str(tmp_path / "other"), str(tmp_path / "in.txt"))
    assert writable(str(tmp_path / "in.txt"), str(tmp_path / "other")) == tmp_path / "in.txt"


def test_an_output_in_the_place_of_an_input(refused, chain, material, tmp_path):
    (tmp_path / "in.txt").write_text("w1\n")
    message, same = "in.txt: is read by this command; give", ("--output", "in.txt")
    refused(message, "predict", "--model", chain.adapt, "--input", "in.txt", *same)
    evaluate = ("evaluate", "--model", material.bert, *same, "--tasks")
    refused(message, *evaluate, "in.txt")
    refused(message, *evaluate, "smlmt:in.txt")
    refused(message, *evaluate, material.three, "--classes", "in.txt")
    refused(message, *evaluate, material.three, "--splits", ".")
    kept = chain.adapt / "run.json"
    refused("belongs to a run", "lineage", "--model", chain.adapt, "--output", kept)


def test_evaluate_where_the_weights_below_are_gone_or_others(refused, chain, material, tmp_path):
    run, below = shutil.copytree(chain.metatrain, tmp_path / "meta"), tmp_path / "below"
    for file in run.glob("checkpoints/*/_CHECKPOINT_METADATA"):
        metadata = json.loads(file.read_text())
        metadata["custom_metadata"]["parent"]["path"] = str(below)
        file.write_text(json.dumps(metadata))
    command = ("evaluate", "--model", run, "--tasks", material.intents, "--ways", 3, "--queries", 3)
    refused(f"the original weights, .* cannot be read .{below}: no such", *command)
    # Compiled for the fixture `evaluation`.
    alone = ("--methods", "checkpoint", "--episodes", 10, "--curve", 2)
    assert "checkpoint " in tiny.succeed(*command, *alone)
    tiny.write_model(below, head="encoder")
    refused(f"{below}: has changed since .*meta was trained from it; restore", *command)


def test_export(refused, chain, tmp_path, monkeypatch):
    (tmp_path / "thesis.tex").touch()
    export = ("export", "--model", chain.adapt, "--output")
    refused("exists and is not an empty directory", *export, tmp_path / "thesis.tex")
    refused("choose from glue:mrpc", "export", "--model", chain.finetune, "--output", "out")
    (tmp_path / "mounted").mkdir()

    def busy(source, target):
        raise OSError(errno.EBUSY, "Device or resource busy")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", busy)
        refused("is a mount point; give a directory in it", *export, tmp_path / "mounted")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    refused("is not writable", *export, "out")


def test_paths_that_cannot_be(refused, chain):
    refused("file name too long", "export", "--model", "x" * 5000, "--output", "out")
    refused("file name too long", "predict", "--model", chain.adapt, "--input", "x" * 5000)


def test_two_runs_in_one_workdir(refused, chain, material, tmp_path):
    command = pretrain_command(material, shutil.copytree(chain.pretrain, tmp_path / "run"))
    with (tmp_path / "run" / "run.json").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused("another process is running there; wait", *command)
    tiny.succeed(*command)


def test_devices_that_are_not_there(refused, material, tmp_path):
    for changes, message in (
        (
            {"shards": 3},
            "--shards 3: a state cannot be sharded over 3 of 1 devices; give a divisor",
        ),
        ({"process_id": 1}, "--coordinator, --num-processes, --process-id: need --distributed"),
        ({"parts": 3}, "--batch-size 4: is not a multiple of 3, the number of --parts; use 3 or 6"),
    ):
        done = tiny.run(*pretrain_command(material, tmp_path / "run", **changes))
        assert done.status == 2
        assert message in done.err
    message = "s3://bucket/run: is an address; give a directory, or gs://BUCKET/NAME"
    refused(message, *pretrain_command(material, "s3://bucket/run"))
