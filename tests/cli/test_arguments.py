"""The command line itself; the commands are tested in tests/commands."""

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

import metajax
from metajax.cli import main as cli
from metajax.cli.arguments import COMMANDS, parse
from metajax.commands.predict import predict
from metajax.config.fields import flag
from metajax.config.settings import MetatrainSettings, PredictSettings
from metajax.config.suggestions import _ALIASES
from metajax.errors import InputError
from metajax.reading import read_bytes

NO_HEAVY_IMPORT = """
import contextlib, sys
from metajax.cli.main import main
with contextlib.suppress(SystemExit):
    main(sys.argv[1:])
heavy = {"jax", "flax", "orbax", "transformers", "datasets", "numpy", "torch"} & sys.modules.keys()
assert not heavy, heavy
"""


@pytest.mark.parametrize("arguments", [["--help"], ["metatrain", "--help"], ["metatrain", "--x"]])
def test_help_imports_nothing_heavy(arguments):
    done = subprocess.run(
        [sys.executable, "-c", NO_HEAVY_IMPORT, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as done:
        parse(["--help"])
    assert done.value.code == 0
    out = capsys.readouterr().out
    assert all(f"\n    {name}" in out for name in COMMANDS)


def test_the_version(capsys):
    with pytest.raises(SystemExit) as done:
        parse(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"metajax {metajax.__version__}\n"


def shown(command, setting):
    """What help calls a setting that it explains."""
    kind = get_type_hints(COMMANDS[command])[setting.name]
    return flag(setting.name).replace("--", "--[no-]" if kind in (bool, bool | None) else "--", 1)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_names_every_option_and_has_an_example(name, capsys):
    with pytest.raises(SystemExit) as done:
        parse([name, "--help"])
    assert done.value.code == 0
    out = capsys.readouterr().out
    assert f"Example: metajax {name}" in out
    for setting in fields(COMMANDS[name]):
        assert shown(name, setting) in out or re.search(rf"\s{flag(setting.name)}\b", out)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_can_be_parsed(name):
    found, settings, _ = parse(COMMANDS[name].__doc__.split("Example: metajax ")[1].split())
    assert found == name
    assert isinstance(settings, COMMANDS[name])


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_screen_and_help_all_explains_the_rest(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    pages = {}
    for option in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            parse([name, option])
        pages[option] = capsys.readouterr().out
    lines = pages["--help"].splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 80
    for setting in fields(COMMANDS[name]):
        assert f"\n  {shown(name, setting)}" in pages["--help-all"]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ("metatrain --task", "did you mean --tasks? See metajax metatrain --help"),
        ("predict --confg", "did you mean --config? See metajax predict --help"),
        ("metatrain --no-rematt=", "did you mean --no-remat? See metajax metatrain --help"),
        # What other tools call it, if the command has it.
        ("adapt --learning-rate", "did you mean --inner-lr? See metajax adapt --help"),
        ("finetune --lr", "did you mean --learning-rate? See metajax finetune --help"),
        ("adapt --inner-rate=0.1", "did you mean --inner-lr? See metajax adapt --help"),
        ("adapt --learning_rate", "did you mean --inner-lr? See metajax adapt --help"),
        ("adapt --epochs", "did you mean --inner-steps? See metajax adapt --help"),
        ("metatrain --num-train-epochs", "did you mean --steps? See metajax metatrain --help"),
        ("metatrain --batch-size", "did you mean --meta-batch-size? See metajax metatrain --help"),
        ("pretrain --output-dir", "did you mean --workdir? See metajax pretrain --help"),
        ("predict --tasks", "did you mean --input? See metajax predict --help"),
        # Nothing, where nothing fits.
        ("adapt --batch-size", "see metajax adapt --help"),
        ("metatrain --xyzzy", "see metajax metatrain --help"),
    ],
)
def test_an_unknown_option_is_answered_with_one_of_the_same_meaning_or_spelling(arguments, hint):
    name, option = arguments.split()
    message = f"{option.split('=')[0]}: unknown option of {name}; {hint}"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        parse([name, option, "3"])


def test_all_meanings_are_settings_or_commands():
    settings = {field.name for command in COMMANDS.values() for field in fields(command)}
    known = set(" ".join(_ALIASES).split())
    assert known <= settings | set(COMMANDS)


@pytest.mark.parametrize(
    ("given", "items"),
    [
        ("linear knn", ("linear", "knn")),
        ("linear,knn", ("linear", "knn")),
        ("linear, knn", ("linear", "knn")),
        ("linear,knn, prototypes", ("linear", "knn", "prototypes")),
    ],
)
def test_a_list_takes_spaces_or_commas(given, items):
    common = ["evaluate", "--model", "m", "--tasks", "a.csv,b.csv", "--methods"]
    found = parse([*common, *given.split()]).settings
    assert (found.tasks, found.methods) == (("a.csv", "b.csv"), items)


def test_a_file_with_a_comma_in_its_name_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b.csv").touch()
    found = parse(["evaluate", "--model", "m", "--tasks", "a,b.csv", "c.csv,d.csv"]).settings
    assert found.tasks == ("a,b.csv", "c.csv", "d.csv")


def test_every_path_may_begin_with_a_tilde(tmp_path, monkeypatch):
    """A shell does not expand one after `=`, nor in a file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text("workdir: ~/run\ntasks: [~/a.csv, 'smlmt:~/b.txt', x~/c]\n")
    found = parse(["metatrain", "--model=~/bert", "--config=~/run.yaml"]).settings
    assert (found.model, found.workdir) == (f"{tmp_path}/bert", f"{tmp_path}/run")
    assert found.tasks == (f"{tmp_path}/a.csv", f"smlmt:{tmp_path}/b.txt", "x~/c")
    from_python = MetatrainSettings(model="~", tasks=("t",), workdir=Path("~/w"))
    assert (from_python.model, from_python.workdir) == (str(tmp_path), f"{tmp_path}/w")
    assert read_bytes("~/run.yaml") == (tmp_path / "run.yaml").read_bytes()


def test_a_name_cut_short_is_refused():
    with pytest.raises(InputError, match="--conf"):
        parse(
            [
                "metatrain",
                "--model",
                "m",
                "--tasks",
                "a.csv",
                "--workdir",
                "w",
                "--conf",
                "run.yaml",
            ]
        )


def test_arguments_become_typed_settings():
    text = "metatrain --model m --tasks a.csv b.csv --workdir w --ways 7 --inner-lr 1e-2 --remat"
    name, found, _ = parse(text.split())
    assert name == "metatrain"
    assert found == MetatrainSettings(
        model="m", tasks=("a.csv", "b.csv"), workdir="w", ways=7, inner_lr=0.01, remat=True
    )
    assert found.inner_steps is None
    assert found.shots == 1


def test_settings_are_checked_from_python_too():
    with pytest.raises(InputError, match="--shots 0: out of range; give a number of at least 1"):
        MetatrainSettings(model="m", tasks=("t",), workdir="w", shots=0)
    with pytest.raises(InputError, match=r"--tasks t.csv: wrong type; give a tuple: \('t.csv',\)"):
        MetatrainSettings(model="m", tasks="t.csv", workdir="w")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"shots": "1"}, "--shots '1': wrong type; give a whole number"),
        ({"shots": 1.5}, "--shots 1.5: wrong type; give a whole number"),
        ({"shots": True}, "--shots True: wrong type; give a whole number"),
        ({"inner_steps": "1"}, "--inner-steps '1': wrong type; give a whole number or None"),
        ({"seed": None}, "--seed None: wrong type; give a whole number"),
        ({"remat": 1}, "--remat 1: wrong type; give True or False"),
        ({"learning_rate": None}, "--learning-rate None: wrong type; give a number"),
        ({"model": 3}, "--model 3: wrong type; give a string"),
        ({"tasks": (1,)}, "--tasks 1: wrong type; give a string"),
        ({"tasks": ()}, "--tasks: empty; give one or more"),
    ],
)
def test_settings_of_another_kind_are_refused_from_python(setting, message):
    with pytest.raises(InputError, match=re.escape(message)):
        MetatrainSettings(**{"model": "m", "tasks": ("t",), "workdir": "w"} | setting)


def test_settings_take_paths_and_whole_numbers_for_numbers():
    found = MetatrainSettings(model=Path("m"), tasks=(Path("t"),), workdir=Path("w"), inner_lr=1)
    assert found == MetatrainSettings(model="m", tasks=("t",), workdir="w", inner_lr=1.0)


def test_help_comes_before_a_file_of_settings(capsys):
    pages = []
    for given in ([], ["--config", "none.yaml"]):
        with pytest.raises(SystemExit):
            parse(["pretrain", *given, "--help-all"])
        pages.append(capsys.readouterr().out)
    assert pages[0] == pages[1]
    assert "(default 0)" in pages[0]  # The seed's.


def test_lists_of_numbers_are_shown_on_a_line(capsys):
    labels, confusion = ["[ a, b ]", "[  1  ]"], [[1, 20], [3, 4]]
    cli._show("adapt", None, {"labels": labels, "loss": [0.5, 2e-5], "confusion": confusion})
    out = capsys.readouterr().out
    assert json.loads(out) == {"labels": labels, "loss": [0.5, 2e-5], "confusion": confusion}
    assert '"loss": [0.5, 2e-05],' in out
    assert "[1, 20],\n" in out


INTERRUPTED_WHILE_COLLECTING = """
import gc, signal, sys, time
from metajax.cli import main as cli

def stage(name, chosen):
    gc.callbacks.append(lambda *_: signal.raise_signal(signal.SIGINT))
    gc.collect()
    time.sleep(20)
    print("went on")

signal.signal(signal.SIGINT, signal.default_int_handler)
cli._run = stage
sys.argv[1:] = ["lineage", "--model", "m"]
cli.run()
"""


def test_an_interrupt_while_garbage_is_collected_stops_too():
    """Python drops what is raised there, and JAX has code that runs there."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_WHILE_COLLECTING], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "metajax: stopped\n")


OPENS_FILES = """
import os, sys
from metajax.cli import main as cli

def stage(name, chosen):
    number = os.open(chosen.output, os.O_WRONLY | os.O_CREAT)
    os.write(1, b"of a library")
    os.write(2, b"of a library")
    assert number > 2, number

cli._run = stage
sys.argv[1:] = ["export", "--model", "m", "--output", sys.argv[1]]
cli.run()
"""


def test_files_are_kept_apart_from_standard_streams_that_are_closed(tmp_path):
    command = f'exec "{sys.executable}" -c "$0" "$1" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", command, OPENS_FILES, str(tmp_path / "file")])
    assert done.returncode == 0
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
def test_predict_needs_the_streams_that_it_uses(stream, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, stream, None)
    monkeypatch.setattr("metajax.commands.predict.open_classifier", lambda *_: None)
    name, option = ("input", "--input") if stream == "stdin" else ("output", "--output")
    with pytest.raises(InputError, match=f"^standard {name}: is closed; give a file with {option}"):
        predict(PredictSettings(model="m"))
