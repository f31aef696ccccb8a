"""`--config`: the settings of a file, with the names of the command line."""

import dataclasses
import json

import pytest
import tiny
import yaml

from metajax.cli.arguments import COMMANDS, parse
from metajax.config.fields import flag
from metajax.config.files import read_config
from metajax.config.settings import MetatrainSettings
from metajax.errors import InputError

YAML = """
model: bert
tasks: [a.csv, b.csv]  # a comment
workdir: run
learning-rate: 2e-5
low_memory: true
remat: false
classes:
"""
TOML = """
model = "bert"
tasks = ["a.csv", "b.csv"]
workdir = "run"
learning_rate = 2e-5
low_memory = true
"""


@pytest.mark.parametrize(("name", "text"), [("run.yaml", YAML), ("run.toml", TOML)])
def test_a_file_is_as_good_as_the_command_line(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    command = ["--model", "bert", "--tasks", "a.csv", "b.csv", "--workdir", "run"]
    command += ["--learning-rate", "2e-5", "--low-memory"]
    expected = parse(["metatrain", *command])
    assert parse(["metatrain", "--config", str(tmp_path / name)]) == expected
    assert expected[1] == MetatrainSettings(
        model="bert",
        tasks=("a.csv", "b.csv"),
        workdir="run",
        learning_rate=2e-5,
        low_memory=True,
    )


def test_the_command_line_wins(tmp_path):
    (tmp_path / "run.yaml").write_text(YAML)
    given = ["--no-low-memory", "--tasks", "c.csv", f"--config={tmp_path / 'run.yaml'}"]
    _, found, _ = parse(["metatrain", *given, "--learning-rate", "1e-3"])
    assert (found.low_memory, found.tasks, found.learning_rate) == (False, ("c.csv",), 1e-3)
    assert found.model == "bert"


@pytest.mark.parametrize("command", COMMANDS)
def test_all_settings_can_be_written_and_read(tmp_path, command):
    kind = COMMANDS[command]
    required = {
        field.name: ["x"] if "tuple" in str(field.type) else "x"
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(required))
    _, settings, _ = parse([command, "--config", str(tmp_path / "run.yaml")])
    whole = json.loads(json.dumps(dataclasses.asdict(settings)))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(whole))
    assert parse([command, "--config", str(tmp_path / "run.yaml")])[1] == settings


MODEL = {"seed": 0, "max_length": 128, "dtype": "float32", "remat": False}
COLUMNS = dict.fromkeys(("text_column", "pair_column", "label_column"))
TASKS = {"glue_dir": None, **COLUMNS, "classes": None}
DEVICES = {"shards": 1, "distributed": False}
DEVICES |= dict.fromkeys(("coordinator", "num_processes", "process_id"))
INNER = {"lora_kernels": (), "prefix": None, "trainable": None, "freeze": None}
INNER |= dict.fromkeys(("inner_steps", "inner_lr", "head", "layers", "lora"))
INNER |= dict.fromkeys(("inner_optimizer", "inner_clip_norm"))
SIZES = {"ways": 5, "shots": 1, "queries": 5}
TRAINING = MODEL | DEVICES
TRAINING |= {"learning_rate": 5e-5, "warmup": 0.1, "weight_decay": 0.01, "clip_norm": 1.0}
TRAINING |= {"save_every": 100, "keep": 2, "keep_every": None, "max_skipped": 10}
TRAINING |= {"track": (), "profile": False}
ALGORITHM = {
    "rates_learning_rate": None,
    "algorithm": "maml",
    "low_memory": False,
    "meta_batch_size": 4,
    "chunk_size": None,
}
# What a user who leaves a setting out has in common with the next one, whatever the version.
DEFAULTS = {
    "pretrain": TRAINING
    | {"steps": 1000, "batch_size": 32, "parts": None}
    | {"mask_rate": 0.15, "whole_word": False, "held_out": 0.05},
    "finetune": TRAINING
    | TASKS
    | {"dev": (), "epochs": 3.0, "steps": None, "batch_size": 32, "parts": None}
    | {"pooling": None},
    "metatrain": TRAINING
    | TASKS
    | SIZES
    | INNER
    | ALGORITHM
    | {"whole_tasks": False, "keep_duplicates": False, "learning_rate": 2e-5, "steps": 300}
    | {"memory": "auto", "valid": (), "valid_classes": None, "held_out": 0.25, "valid_every": 100}
    | {"logit_scale": None, "source_weights": (), "similar_classes": 0},
    "adapt": MODEL
    | TASKS
    | INNER
    | {"dev": None, "method": "steps", "tasks": (), "label_names": None, "label_separator": None}
    | {"weights": "checkpoint", "class_weight": None, "calibrate": False, "time_limit": 300.0}
    | {"regression": False},
    "predict": {"input": "-", "output": "-", "task": None, "batch_size": 64, "max_length": None}
    | {"format": "tsv", "top": 1, "threshold": None, "none_label": "none"},
    "plan": MODEL
    | SIZES
    | INNER
    | ALGORITHM
    | {"memory": "auto", "output": None, "target": None, "shards": 1}
    | {"stage": "metatrain", "batch_size": None, "steps": 300, "documents": False},
}
# Where the work is done and what is kept of it: a run may be resumed with others.
FREE = {
    "model",
    "workdir",
    "tasks",
    "label_names",
    "classes",
    "glue_dir",
    "text",
    "dev",
    "parts",
    *DEVICES,
}
FREE |= {"save_every", "keep", "keep_every", "track", "profile", "max_skipped", "memory"}
FREE |= {"valid", "valid_classes"}


@pytest.mark.parametrize("command", DEFAULTS)
def test_what_is_left_out_is_as_documented(command):
    fields = dataclasses.fields(COMMANDS[command])
    found = {each.name: each.default for each in fields}
    required = [name for name, default in found.items() if default is dataclasses.MISSING]
    assert {name: found[name] for name in found if name not in required} == DEFAULTS[command]
    if command not in ("predict", "plan"):
        free = {each.name for each in fields if not each.metadata["affects_results"]}
        assert free == FREE & found.keys()


# The last value that is taken, and the first that is not.
BOUNDS = {
    "pretrain": {
        "seed": (0, -1),
        "max_length": (3, 2),
        "learning_rate": (1e-9, 0.0),
        "warmup": (1.0, 1.01),
        "weight_decay": (0.0, -0.01),
        "clip_norm": (1e-9, 0.0),
        "mask_rate": (0.9, 0.91),
        "held_out": (0.5, 0.51),
        "steps": (2**31 - 1, 2**31),
        "save_every": (1, 0),
        "keep": (1, 0),
    },
    "metatrain": {
        "ways": (2, 1),
        "shots": (1, 0),
        "queries": (1, 0),
        "inner_steps": (0, -1),
        "inner_lr": (1e-9, 0.0),
        "layers": (0, -1),
        "lora": (1, 0),
        "prefix": (1, 0),
        "inner_clip_norm": (1e-9, 0.0),
        "meta_batch_size": (1, 0),
        "held_out": (0.5, 0.51),
        "valid_every": (1, 0),
        "logit_scale": (1e-9, 0.0),
    },
    "finetune": {"epochs": (0.01, 0.0), "batch_size": (1, 0), "steps": (1, 0)},
}


@pytest.mark.parametrize("command", BOUNDS)
def test_settings_are_taken_up_to_their_bounds(command):
    given = [command, "--model", "m", "--workdir", "w"]
    given += ["--text" if command == "pretrain" else "--tasks", "t"]
    for name, (last, first) in BOUNDS[command].items():
        assert getattr(parse([*given, f"{flag(name)}={last}"])[1], name) == last
        with pytest.raises(InputError, match=f"{flag(name)} .*: out of range; give a number "):
            parse([*given, f"{flag(name)}={first}"])


def test_switches_of_a_file_may_be_off(tmp_path):
    """And a list of one is a list."""
    (tmp_path / "run.yaml").write_text("whole-word: false\ntext: [a.txt]\ntrack: []\n")
    given = ["--model", "m", "--workdir", "w", "--config", str(tmp_path / "run.yaml")]
    found = parse(["pretrain", *given])[1]
    assert (found.whole_word, found.text, found.track) == (False, ("a.txt",), ())
    assert parse(["pretrain", *given, "--whole-word"])[1].whole_word


def test_values_of_a_file_may_be_off(tmp_path):
    """Zero and false are values; null is the default."""
    (tmp_path / "run.yaml").write_text(
        "inner_steps: 0\nremat: false\nweight_decay: 0\nlora: null\n"
    )
    assert read_config(tmp_path / "run.yaml", MetatrainSettings) == {
        "inner_steps": 0,
        "remat": False,
        "weight_decay": 0.0,
    }


BAD = {
    "unknown": ("wys: 3", r"run.yaml: wys: unknown setting; did you mean ways\?"),
    "not a number": ("ways: many", "run.yaml: ways 'many': wrong type; give a whole number"),
    "a list for one": ("ways: [2, 3]", r"run.yaml: ways \[2, 3\]: wrong type; give a whole number"),
    "not true or false": ("remat: 3", "run.yaml: remat 3: wrong type; give True or False"),
    "true for a number": ("ways: true", "run.yaml: ways True: wrong type; give a whole number"),
    "true for a fraction": ("warmup: true", "run.yaml: warmup True: wrong type; give a number"),
    "true for a name": ("workdir: yes", "run.yaml: workdir True: wrong type; give a string"),
    "nested": ("tasks: {a: 3}", "run.yaml: tasks {'a': 3}: wrong type; give a string"),
    "a list": ("- ways", "run.yaml: contains no settings"),
    "empty": ("", "run.yaml: contains no settings"),
    "not YAML": ("a: [1", "run.yaml: cannot be read"),
    "deep": ("[" * 10_000, "run.yaml: cannot be read"),
    "code": ("ways: !!python/object/apply:os.system ['true']", "run.yaml: cannot be read"),
    "not a choice": ("dtype: float8", "run.yaml: dtype float8: unknown value; choose from float32"),
    "too many digits": (f"seed: 0x{'f' * 5000}", "run.yaml: cannot be read"),
    "zero": ("ways: 0", "run.yaml: ways 0: out of range; give a number of at least 2"),
    "empty, but required": ("tasks: []", "run.yaml: tasks: empty; give one or more"),
    "twice": ("steps: 100\nsteps: 300", "run.yaml: cannot be read .steps is given twice"),
    "twice, in two spellings": ("inner-lr: 1\ninner_lr: 2", "run.yaml: inner_lr: given twice"),
    "bounds": ("ways: 1", "run.yaml: ways 1: out of range; give a number of at least 2"),
}


def test_values_of_a_file_have_the_type_of_the_setting(tmp_path):
    """YAML reads 2e-5 as a string and a year as a number; a list's items are never flags."""
    text = "learning-rate: 2e-5\ninner_lr: 1\nworkdir: 2024\nmodel: m\ntasks: [a, --ways, 'b, c']\n"
    (tmp_path / "run.yaml").write_text(text)
    assert read_config(tmp_path / "run.yaml", MetatrainSettings) == {
        "learning_rate": 2e-5,
        "inner_lr": 1.0,
        "workdir": "2024",
        "model": "m",
        "tasks": ("a", "--ways", "b", "c"),
    }
    (tmp_path / "run.yaml").write_text("model: m\ntasks: a,b\nworkdir: w\n")
    assert parse(["metatrain", f"--config={tmp_path / 'run.yaml'}"]).settings.tasks == ("a", "b")


@pytest.mark.parametrize("case", BAD)
def test_bad_files(tmp_path, case):
    text, message = BAD[case]
    (tmp_path / "run.yaml").write_text(text)
    given = ["--model", "m", "--tasks", "t", "--workdir", "w"]
    with pytest.raises(InputError, match=message):
        parse(["metatrain", *given, "--config", str(tmp_path / "run.yaml")])


def test_a_missing_file():
    with pytest.raises(InputError, match=r"none.yaml: no such file"):
        parse(["metatrain", "--config", "none.yaml"])


def test_a_run_writes_its_settings_and_resumes_from_them(chain, tmp_path):
    config = chain.metatrain / "config.yaml"
    assert yaml.safe_load(config.read_text())["inner_lr"] == 0.1  # Also what was left open.
    tiny.succeed("metatrain", "--config", config)
    config = chain.pretrain / "config.yaml"
    tiny.succeed("pretrain", "--config", config)
    tiny.succeed("pretrain", "--config", config, "--workdir", tmp_path / "again")
    found = [tiny.training_state(workdir) for workdir in (chain.pretrain, tmp_path / "again")]
    tiny.assert_same_bits(*found)
