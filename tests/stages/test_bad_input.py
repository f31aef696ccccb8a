"""Bad input: exit status 2, one line that says what, where and what to do, and nothing written."""

import errno
import fcntl
import json
import os
import re
import shutil
import socket

import huggingface_hub
import jax
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from metajax.data import TaskData
from metajax.errors import InputError
from metajax.stages.tasks import relabel
from tests.stages.commands import finetune_command, metatrain_command, pretrain_command


def write(content: bytes, name: str):
    """Something for a file of that name to hold."""
    return lambda directory: (directory / name).write_bytes(content) and directory / name


ROW = b'{"text": "w1", "label": "a"}\n'
TASKS = {
    "missing": (lambda _: "none.csv", "none.csv: no such file"),
    "empty": (lambda d: (d / "e.csv").touch() or d / "e.csv", "e.csv: the file is empty"),
    "no columns": (write(b"one,two\n1,2\n", "c.csv"), "c.csv: has no column 'text' or 'sentence'"),
    "no label column": (write(b"text,two\n1,2\n", "c.csv"), "c.csv: has no column 'label'"),
    "no rows": (write(b"text,label\n", "c.csv"), "c.csv: has a header but no rows"),
    "no text": (write(b"text,label\nw1,a\n,b\n", "c.csv"), "c.csv:3: no 'text'"),
    "no label": (write(ROW + b'{"text": "w1"}\n', "c.jsonl"), "c.jsonl:2: no 'label'"),
    "not UTF-8": (
        write(b"text,label\nw1,a\nw\xe9,b\n", "c.csv"),
        "c.csv:3: byte 0xe9 is not UTF-8",
    ),
    "not JSON": (write(ROW + b"oops\n", "c.jsonl"), "c.jsonl:2: is not JSON"),
    "not Parquet": (write(b"PAR1oops", "c.parquet"), "c.parquet: is not a sound Parquet file"),
    "extension": (write(ROW, "c.docx"), "c.docx: unknown extension"),
    "one class": (write(ROW * 20, "c.jsonl"), "c.jsonl: has examples of 1 of the classes"),
    "a directory": (lambda d: d / "material", "material: .*unknown extension|is a directory"),
    "no GLUE task": (lambda _: "glue:nope", "glue:nope: no such task"),
    "no GLUE folder": (lambda _: "glue:rte", "has no folder RTE"),
    "no hub form": (lambda _: "hub:oops", "hub:oops: is not of the form"),
}


@pytest.mark.parametrize("stage", ["finetune", "metatrain", "adapt", "evaluate"])
@pytest.mark.parametrize("case", TASKS)
def test_tasks(refused, material, tmp_path, stage, case):
    make, message = TASKS[case]
    (tmp_path / "material").mkdir()
    where = () if stage == "evaluate" else ("--workdir", "run")
    tasks = ("--tasks", make(tmp_path), "--glue-dir", material.glue)
    refused(message, stage, "--model", material.bert, *tasks, *where)


@pytest.mark.parametrize("stage", ["metatrain", "evaluate"])
def test_episodes_that_cannot_be_drawn(refused, material, stage):
    where = () if stage == "evaluate" else ("--workdir", "run")
    command = (stage, "--model", material.bert, "--tasks", material.three, *where)
    refused("has 3 classes, fewer than 4 ways", *command, "--ways", 4)
    refused("has 8 examples, fewer than 4 shots and 5 queries", *command, "--ways", 3, "--shots", 4)


def test_classes_that_no_task_has(refused, material, tmp_path):
    (tmp_path / "classes.txt").write_text("topic1\nnope\n")
    command = metatrain_command(material, "run")
    refused(
        "classes.txt:2: no task has the label 'nope'",
        *(*command, "--classes", tmp_path / "classes.txt"),
    )
    refused("nowhere.txt: no such file", *command, "--classes", "nowhere.txt")


TEXTS = {
    "missing": (lambda _: "none.txt", "none.txt: no such file"),
    "empty": (lambda d: (d / "e.txt").touch() or "e.txt", "e.txt: the file is empty"),
    "blank": (write(b"\n  \n", "b.txt"), "b.txt: the file is empty"),
    "not UTF-8": (write(b"w1\n\xff\n", "b.txt"), "b.txt:2: byte 0xff is not UTF-8"),
    "too short": (write(b"w1 w2\n", "b.txt"), "the text fills one block"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_text(refused, material, tmp_path, case):
    make, message = TEXTS[case]
    refused(
        message, "pretrain", *("--model", material.bert, "--text", make(tmp_path), "--workdir", "r")
    )


def test_adapt_refuses_a_loss_that_is_no_number(refused, material, tmp_path):
    weights = tiny.write_model(tmp_path / "bert", head="encoder") / "model.safetensors"
    tensors = load_file(weights)
    tensors["embeddings.word_embeddings.weight"][:] = np.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    command = ("adapt", "--model", weights.parent, "--tasks", material.new, "--workdir", "run")
    refused("its loss is nan after the inner steps: give a smaller --inner-lr than 0.003", *command)


@pytest.mark.parametrize("name", ["notes.txt", "data", "data/train.txt"])
def test_the_demo_leaves_a_directory_of_others_alone(refused, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine\n")
    refused("is not empty and holds no demo", "demo", "--workdir", tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]
    assert (tmp_path / name).read_text() == "mine\n"


def test_notes_do_not_come_before_a_complaint(refused, material, tmp_path):
    """A head that is freshly initialised is worth a line, but not in front of an error."""
    encoder = tiny.write_model(tmp_path / "encoder", head="encoder")
    short = write(b"w1 w2\n", "short.txt")(tmp_path)
    command = ("pretrain", "--model", encoder, "--workdir", "run", "--steps", 1)
    refused("the text fills one block", *command, "--text", short)
    sizes = ("--batch-size", 4, "--max-length", 16)
    done = tiny.run(*command, *sizes, "--text", material.text)
    assert done.err.count("has no masked_lm: freshly initialised") == 1


def broken(change):
    """A copy of the model directory with something wrong."""

    def make(material, tmp_path):
        directory = shutil.copytree(material.bert, tmp_path / "model")
        change(directory)
        return directory

    return make


def truncate(directory):
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def configure(**changes):
    def change(directory):
        file = directory / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


MODELS = {
    "no config": (broken(lambda d: (d / "config.json").unlink()), "config.json: missing"),
    "no weights": (broken(lambda d: (d / "model.safetensors").unlink()), "model: no weights"),
    "truncated": (broken(truncate), "model.safetensors: truncated or not safetensors"),
    "not BERT": (broken(configure(model_type="llama")), "model_type is 'llama'"),
    "other sizes": (broken(configure(hidden_size=32)), "model"),
    "no tokenizer": (broken(lambda d: (d / "vocab.txt").unlink()), "no usable tokenizer"),
    "broken config": (
        broken(lambda d: (d / "config.json").write_text("{\n!")),
        r"config.json:2: not JSON",
    ),
    "no directory": (lambda *_: "./nowhere", "./nowhere: no such directory"),
    "a file": (lambda material, _: material.text, "this is a file"),
    "no hub id": (lambda *_: "spaces in it", "neither a directory nor a hub id"),
}


@pytest.mark.parametrize("stage", ["pretrain", "adapt", "evaluate"])
@pytest.mark.parametrize("case", MODELS)
def test_model(refused, material, tmp_path, case, stage):
    make, message = MODELS[case]
    commands = {
        "pretrain": ("--text", material.text, "--workdir", "run"),
        "adapt": ("--tasks", material.new, "--workdir", "run"),
        "evaluate": ("--tasks", material.intents, "--queries", 3),
    }
    refused(message, stage, "--model", make(material, tmp_path), *commands[stage])


@pytest.fixture
def offline(monkeypatch):
    """HF_HUB_OFFLINE=1, which is read at import; nobody may so much as look for the network."""

    def nothing(*_, **__):
        raise AssertionError("tried the network")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket, "getaddrinfo", nothing)
    monkeypatch.setattr(socket.socket, "connect", nothing)


def test_a_hub_id_while_offline(refused, material, offline):
    message = "the hub is out of reach; pass --model the path of a local directory"
    text = ("--text", material.text, "--workdir", "run")
    refused(message, "pretrain", "--model", "no-such-owner/no-such-model", *text)
    refused(message, "predict", "--model", "no-such-owner/no-such-model", stdin=b"w1\n")


def test_a_run_that_has_no_checkpoint_yet(refused, chain, material, tmp_path):
    run = shutil.copytree(chain.pretrain, tmp_path / "early")
    shutil.rmtree(run / "checkpoints")
    command = ("--tasks", material.new, "--workdir", "run")
    refused("holds no checkpoint yet", "adapt", "--model", run, *command)
    (run / "checkpoints").mkdir()
    refused("holds no checkpoint yet", "adapt", "--model", run, *command)
    refused("holds no checkpoint yet", "export", "--model", run, "--output", "out")


def test_workdir_of_another_stage(refused, chain, material):
    refused(
        "belongs to a pretrain run, not metatrain", *metatrain_command(material, chain.pretrain)
    )


def test_workdir_that_holds_something_else(refused, material, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    refused("is not empty and holds no run", *pretrain_command(material, tmp_path / "mine"))
    refused("is not empty and holds no run", *pretrain_command(material, material.bert))


def test_workdir_that_cannot_be_written(refused, material, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    refused("file: is not a directory", *pretrain_command(material, tmp_path / "file"))
    refused("file: is not a directory", *pretrain_command(material, tmp_path / "file" / "run"))
    # Permissions do not hold root back.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    refused("is not writable: name another", *pretrain_command(material, tmp_path / "run"))


NUMBERS = [
    ("pretrain", "--steps", -5, "give a number of at least 1"),
    ("pretrain", "--steps", 0, "give a number of at least 1"),
    ("pretrain", "--steps", 10**12, "give a number of at most"),
    ("pretrain", "--steps", "ten", "invalid int value: 'ten'"),
    ("pretrain", "--seed", -1, "give a number of at least 0"),
    ("pretrain", "--seed", 10**400, "give a number of at most"),
    ("pretrain", "--learning-rate", "nan", "give a finite number"),
    ("pretrain", "--learning-rate", "inf", "give a finite number"),
    ("pretrain", "--learning-rate", 0, "give a number above 0"),
    ("pretrain", "--batch-size", 0, "give a number of at least 1"),
    ("pretrain", "--mask-rate", 1.5, "give a number of at most 0.9"),
    ("pretrain", "--warmup", -0.1, "give a number of at least 0"),
    ("pretrain", "--max-length", 2, "give a number of at least 3"),
    ("pretrain", "--save-every", 0, "give a number of at least 1"),
    ("pretrain", "--keep", 0, "give a number of at least 1"),
    ("pretrain", "--dtype", "float8", "choose from float32, bfloat16"),
    ("metatrain", "--ways", 0, "give a number of at least 2"),
    ("metatrain", "--shots", 0, "give a number of at least 1"),
    ("metatrain", "--queries", 0, "give a number of at least 1"),
    ("metatrain", "--inner-steps", "x", "invalid int value: 'x'"),
    ("metatrain", "--inner-steps", -1, "give a number of at least 0"),
    ("metatrain", "--inner-lr", "nan", "give a finite number"),
    ("metatrain", "--meta-batch-size", 0, "give a number of at least 1"),
    ("metatrain", "--chunk-size", 0, "give a number of at least 1"),
    ("metatrain", "--algorithm", "sgd", "choose from maml, fomaml"),
    ("metatrain", "--head", "none", "choose from prototypes"),
    ("finetune", "--epochs", "inf", "give a finite number"),
    ("finetune", "--epochs", 0, "give a number above 0"),
    ("evaluate", "--episodes", 1, "give a number of at least 2"),
    ("evaluate", "--methods", "magic", "choose from maml"),
]


@pytest.mark.parametrize(("stage", "option", "value", "message"), NUMBERS)
def test_nonsense(refused, material, stage, option, value, message):
    data = ("--text", material.text) if stage == "pretrain" else ("--tasks", material.intents)
    where = () if stage == "evaluate" else ("--workdir", "run")
    command = (stage, "--model", material.bert, *data, *where)
    refused(f"{option}.*{re.escape(message)}", *command, option, value)


def test_options_that_are_none_or_missing(refused, material):
    command = pretrain_command(material, "run")
    refused("--stepz: is no setting of pretrain: is it --steps?", *command, "--stepz", 3)
    refused("the following arguments are required: --model, --text", "pretrain", "--workdir", "run")
    refused("required: COMMAND", *())
    refused("pretain: is no command: is it pretrain", "pretain")
    refused("pretain: is no command: is it pretrain", "pretain", "--help")


def test_work_that_cannot_be_split(refused, material, monkeypatch):
    eight = jax.devices()
    monkeypatch.setattr(jax, "local_devices", lambda: eight)
    refused(
        "--batch-size 12: use 8 or 16, a multiple of 8",
        *pretrain_command(material, "r", batch_size=12),
    )
    refused(
        "--batch-size 12: use 8 or 16, a multiple of 8",
        *finetune_command(material, "r", batch_size=12),
    )
    command = metatrain_command(material, "run", meta_batch_size=12)
    refused("--meta-batch-size 12: use 8 or 16, a multiple of 8", *command)
    command = metatrain_command(material, "run", meta_batch_size=32, chunk_size=3)
    refused("--chunk-size 3: does not divide the 4 episodes", *command)


def test_low_memory_is_for_maml(refused, material):
    command = metatrain_command(material, "run", algorithm="fomaml")
    refused("--low-memory: is for --algorithm maml alone", *command, "--low-memory")


def test_dev_files(refused, material, tmp_path):
    command = finetune_command(material, "run")
    dev = command.index(material.three_dev)
    message = "--dev names 2 files for 1 tasks without a dev set"
    refused(message, *command[:dev], "a.csv", *command[dev:])
    command[dev] = tiny.write_rows(tmp_path / "other.csv", tiny.examples(4, 2))
    refused("has the label 'topic3', which the training file has not", *command)


def test_a_dev_set_of_scores_is_refused_for_classes():
    scores = TaskData("dev", ["w1"], None, np.array([1.5]), ())
    classes = TaskData("dev", ["w1"], None, np.array([0]), ("a",))
    with pytest.raises(InputError, match="dev: has scores and no classes"):
        relabel(scores, classes)
    with pytest.raises(InputError, match="dev: has classes and the training file scores"):
        relabel(classes, scores)


def test_single_texts_where_pairs_were_learned(refused, chain, material, tmp_path):
    tasks = tmp_path / "pairs.csv"
    tasks.write_text("text,text_pair,label\nw1,w2,a\nw3,w4,b\n")
    adapt = ("adapt", "--model", material.bert, "--tasks")
    tiny.succeed(*adapt, tasks, "--workdir", tmp_path / "pairs")
    predict = ("predict", "--model", tmp_path / "pairs")
    assert tiny.succeed(*predict, stdin=b"w1\tw2\n")
    refused("has single texts, and the model learned from pairs", *predict, stdin=b"w1\n")
    refused(
        "has pairs, and the model learned from single texts",
        *("predict", "--model", chain.adapt),
        stdin=b"w1\tw2\n",
    )
    tasks.write_text("text,label\nw1,a\nw3,b\n")
    (tmp_path / "dev.csv").write_text("text,text_pair,label\nw1,w2,a\nw3,w4,b\n")
    dev = ("--dev", tmp_path / "dev.csv", "--workdir", "run")
    refused("dev.csv: has pairs and the training file single texts", *adapt, tasks, *dev)


def test_adapt_takes_one_task(refused, material):
    tasks = ("--tasks", material.new, material.three)
    refused("names 2 tasks", "adapt", "--model", material.bert, *tasks, "--workdir", "run")


def test_predict(refused, chain, material, tmp_path):
    predict = ("predict", "--model", chain.adapt)
    refused("is a pretrain run, which has no labels", "predict", "--model", chain.pretrain)
    refused("is a metatrain run, which has no labels", "predict", "--model", chain.metatrain)
    refused("has no classification head", "predict", "--model", material.bert)
    refused("standard input is empty|standard input: is empty", *predict)
    refused("standard input:2: give a text a line", *predict, stdin=b"w1\n\nw2\n")
    refused("standard input:1: is not UTF-8", *predict, stdin=b"\xff\n")
    refused("standard input:1: give a text a line", *predict, stdin=b"a\tb\tc\n")
    refused("standard input:2: has 2 texts, unlike the first", *predict, stdin=b"a\na\tb\n")
    refused("none.txt: no such file", *predict, "--input", "none.txt")
    refused("its directory does not exist", *predict, "--output", "no/labels.tsv", stdin=b"w1\n")
    refused("is a directory", *predict, "--output", tmp_path, stdin=b"w1\n")
    several = ("predict", "--model", chain.finetune)
    refused("--task: choose from glue:mrpc, ", *several, stdin=b"w1\n")
    refused("--task nope: choose from glue:mrpc, ", *several, "--task", "nope", stdin=b"w1\n")


def test_a_classifier_that_does_not_fit_its_config(refused, material, tmp_path):
    directory = tiny.write_model(tmp_path / "five", head="classification", num_labels=(5,))
    config = json.loads((directory / "config.json").read_text())
    del config["id2label"], config["label2id"]
    for changes, fits in (({}, False), ({"num_labels": 5}, True)):
        (directory / "config.json").write_text(json.dumps(config | changes))
        command = ("predict", "--model", directory)
        if fits:
            assert tiny.succeed(*command, stdin=b"w1\n").count("\n") == 1
        else:
            refused("has no classification head such as its config", *command, stdin=b"w1\n")


def test_a_tokenizer_of_another_model(refused, material, tmp_path):
    directory = tiny.write_model(tmp_path / "bert")
    with (directory / "vocab.txt").open("a") as file:
        file.write("more\n")
    command = ("adapt", "--tasks", material.new, "--workdir", "run", "--model", directory)
    refused("the tokenizer has a token 95, the model 95 from 0", *command)


def test_text_in_another_language(refused, material, tmp_path):
    (tmp_path / "text.txt").write_text("nothing here that the model knows\n" * 40)
    command = pretrain_command(material, "run")
    place = command.index("--text") + 1
    command[place] = tmp_path / "text.txt"
    refused("the model's vocabulary has no word of the part that is held out", *command)


def test_classes_that_leave_a_task_empty(refused, material, tmp_path):
    (tmp_path / "classes.txt").write_text("topic8\ntopic9\n")
    tasks = ("--tasks", material.new, material.three, "--classes", tmp_path / "classes.txt")
    command = ("finetune", "--model", material.bert, *tasks, "--workdir", "run")
    refused("three.csv: has none of the classes asked for", *command)


def test_evaluate(refused, chain, material, tmp_path):
    def command(model):
        return ("evaluate", "--model", model, "--tasks", material.intents, "--queries", 3)

    refused("has not been meta-trained", *command(chain.pretrain), "--methods", "maml", "knn")
    refused("its directory does not exist", *command(chain.metatrain), "--output", "no/rows.json")
    os.mkfifo(tmp_path / "pipe")  # Not to be replaced, and no more is /dev/null.
    refused("is not a plain file", *command(chain.metatrain), "--output", tmp_path / "pipe")
    refused("is read by this command", *command(chain.metatrain), "--output", material.intents)
    hidden = ("--tasks", f"smlmt:{material.text}", "--output", material.text)
    refused("is read by this command", "evaluate", "--model", chain.metatrain, *hidden)


def test_an_output_in_the_place_of_an_input(refused, chain, tmp_path):
    (tmp_path / "texts.txt").write_text("w1\n")
    same = ("--input", tmp_path / "texts.txt", "--output", tmp_path / "texts.txt")
    refused("texts.txt: is read by this command", "predict", "--model", chain.adapt, *same)
    for kept in ("run.json", "model/config.json", "checkpoints/1/params/manifest.ocdbt"):
        command = ("lineage", "--model", chain.adapt, "--output", chain.adapt / kept)
        refused("belongs to a run", *command)


def test_names_on_the_command_line(refused, material):
    command = pretrain_command(material, "run")
    refused("--text: is given 2 times: give all of it after one", *command, "--text", "b.txt")
    refused("has a NUL in it", *pretrain_command(material, "a\0b"))


def test_evaluate_where_the_weights_below_are_gone_or_others(refused, chain, material, tmp_path):
    bert = shutil.copytree(material.bert, tmp_path / "bert")
    settings = {"steps": 1, "algorithm": "anil"}
    tiny.succeed(*metatrain_command(material, tmp_path / "meta", bert, **settings))
    command = ("evaluate", "--model", tmp_path / "meta", "--tasks", material.intents)
    shutil.rmtree(bert)
    refused("it was meta-trained from cannot be read", *command, "--queries", 3)
    alone = ("--methods", "maml", "--ways", 3, "--queries", 3, "--episodes", 2)
    assert "maml " in tiny.succeed(*command, *alone)
    tiny.write_model(bert, head="encoder")
    refused("is not what .* was meta-trained from any more", *command, "--queries", 3)


def test_export(refused, chain, material, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    export = ("export", "--model", chain.adapt, "--output")
    refused("exists and is not an empty directory", *export, tmp_path / "full")
    refused("exists and is not an empty directory", *export, tmp_path / "full" / "thesis.tex")
    refused("is not the workdir of a run", "export", "--model", material.bert, "--output", "out")
    refused("choose from glue:mrpc", "export", "--model", chain.finetune, "--output", "out")
    (tmp_path / "mounted").mkdir()

    def busy(source, target):
        raise OSError(errno.EBUSY, "Device or resource busy")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", busy)
        refused("is a disk of its own: name a directory in it", *export, tmp_path / "mounted")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    refused("is not writable", *export, "out")


def test_paths_that_cannot_be(refused, chain):
    refused("file name too long", "export", "--model", "x" * 5000, "--output", "out")
    refused("file name too long", "predict", "--model", chain.adapt, "--input", "x" * 5000)


def test_two_runs_in_one_workdir(refused, material, tmp_path):
    command = pretrain_command(material, tmp_path / "run")
    tiny.succeed(*command)
    with (tmp_path / "run" / "run.json").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused("another process is running there: wait", *command)
    tiny.succeed(*command)


def test_a_disk_without_locks(material, tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    done = tiny.run(*pretrain_command(material, tmp_path / "run"))
    assert done.status == 0, done.err
    assert "cannot be locked ([Errno 37] No locks available): keep other runs out" in done.err


def test_devices_that_are_not_there(material, tmp_path):
    done = tiny.run(*pretrain_command(material, tmp_path / "run", shards=3))
    assert done.status == 2
    assert "--shards 3: a state cannot be sharded over 3 of 1 devices: give a divisor" in done.err
    done = tiny.run(*pretrain_command(material, tmp_path / "run", process_id=1))
    assert done.status == 2
    assert "--coordinator, --num-processes, --process-id: add --distributed" in done.err
    done = tiny.run(*pretrain_command(material, tmp_path / "run", parts=3))
    assert done.status == 2
    assert "--batch-size 4: use 3 or 6, a multiple of 3, the number of --parts" in done.err
    done = tiny.run(*pretrain_command(material, "s3://bucket/run"))
    assert done.status == 2
    assert "s3://bucket/run: is an address: name a directory, or gs://BUCKET/NAME" in done.err
