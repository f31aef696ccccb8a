"""`--config`: the settings of a file, with the names of the command line."""

import dataclasses
import json

import pytest
import tiny
import yaml

from metajax.arguments import COMMANDS, parse
from metajax.errors import InputError
from metajax.stages.settings import MetatrainSettings

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
    kind = COMMANDS[command].settings
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


BAD = {
    "unknown": ("wys: 3", r"run.yaml: wys: is no setting of this command: is it ways\?"),
    "not a number": ("ways: many", "run.yaml: argument --ways: invalid int value: 'many'"),
    "a list for one": ("ways: [2, 3]", "run.yaml: ways: is .*: give one, not a list"),
    "not true or false": ("remat: 3", "run.yaml: remat: is 3: write true or false"),
    "true for a number": ("ways: true", "run.yaml: ways: is True: give a number"),
    "nested": ("tasks: {a: 3}", "run.yaml: tasks: is .*: give a number"),
    "a list": ("- ways", "run.yaml: holds no settings"),
    "empty": ("", "run.yaml: holds no settings"),
    "not YAML": ("a: [1", "run.yaml: cannot be read"),
    "deep": ("[" * 10_000, "run.yaml: cannot be read"),
    "code": ("ways: !!python/object/apply:os.system ['true']", "run.yaml: cannot be read"),
    "options in a list": ("tasks: [a, --ways]", "run.yaml: tasks: is .*: in a list nothing may"),
    "twice": ("steps: 100\nsteps: 300", "run.yaml: cannot be read .steps is given twice"),
    "twice, in two spellings": ("inner-lr: 1\ninner_lr: 2", "run.yaml: inner_lr is given twice"),
    "bounds": ("ways: 1", "--ways 1: give a number of at least 2"),
}


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
