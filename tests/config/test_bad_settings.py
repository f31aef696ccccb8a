"""Settings out of bounds: one line that names the setting and says what to give.

tests/cli/test_arguments.py has what Python may give, tests/config/test_files.py the faults of
files, and tests/commands/test_bad_input.py what the commands make of them.
"""

import re

import jax
import pytest

from metajax.cli.arguments import parse
from metajax.config.settings import MetatrainSettings, PretrainSettings
from metajax.errors import InputError
from metajax.runs.parts import check_split, with_parts

REQUIRED = {
    "pretrain": "pretrain --model m --text t --workdir w",
    "finetune": "finetune --model m --tasks t --workdir w",
    "metatrain": "metatrain --model m --tasks t --workdir w",
    "evaluate": "evaluate --model m --tasks t",
}


@pytest.mark.parametrize(
    ("command", "option", "value", "message"),
    [
        ("pretrain", "--steps", -5, "give a number of at least 1"),
        ("pretrain", "--steps", 0, "give a number of at least 1"),
        ("pretrain", "--steps", 10**12, "give a number of at most"),
        ("pretrain", "--steps", "ten", "'ten': wrong type; give a whole number"),
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
        ("metatrain", "--inner-steps", "x", "'x': wrong type; give a whole number or None"),
        ("metatrain", "--inner-steps", -1, "give a number of at least 0"),
        ("metatrain", "--inner-lr", "nan", "give a finite number"),
        ("metatrain", "--meta-batch-size", 0, "give a number of at least 1"),
        ("metatrain", "--chunk-size", 0, "give a number of at least 1"),
        ("metatrain", "--algorithm", "sgd", "choose from maml, fomaml"),
        ("metatrain", "--head", "none", "choose from prototypes"),
        ("finetune", "--epochs", "inf", "give a finite number"),
        ("finetune", "--epochs", 0, "give a number above 0"),
        ("evaluate", "--episodes", 1, "give a number of at least 2"),
        ("evaluate", "--methods", "magic", "choose from checkpoint"),
    ],
)
def test_values(command, option, value, message):
    with pytest.raises(InputError, match=f"{option}.*{re.escape(message)}"):
        parse([*REQUIRED[command].split(), option, str(value)])


def test_nothing_else_is_wrong_with_them():
    for command, given in REQUIRED.items():
        assert parse(given.split()).command == command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            f"{REQUIRED['pretrain']} --stepz 3",
            r"^--stepz: unknown option of pretrain; did you mean --steps\?",
        ),
        ("pretrain --workdir w", "^pretrain: required options are missing; add --model, --text$"),
        ("", "^the following arguments are required: COMMAND; see metajax --help"),
        ("pretain", "^unknown command 'pretain'; did you mean pretrain"),
        ("pretain --help", "^unknown command 'pretain'; did you mean pretrain"),
        (
            f"{REQUIRED['pretrain']} --text b.txt",
            "^--text: given twice; list all values after one --text",
        ),
        (
            "pretrain --model m --text t --workdir a\0b",
            "^--workdir a\0b: contains a NUL character; remove it",
        ),
        (
            f"{REQUIRED['metatrain']} --algorithm fomaml --low-memory",
            "^--low-memory: fomaml does not take it; remove it, or use --algorithm maml or",
        ),
        (
            f"{REQUIRED['pretrain']} --process-id 1",
            "^--coordinator, --num-processes, --process-id: need --distributed; add it",
        ),
    ],
)
def test_options(arguments, message):
    with pytest.raises(InputError, match=message):
        parse(arguments.split(" ") if arguments else [])


def test_memory_is_spared_where_the_gradient_passes_through_the_steps():
    known = {"model": "m", "tasks": ("t",), "workdir": "w", "low_memory": True}
    assert MetatrainSettings(**known).low_memory
    with pytest.raises(InputError, match=r"^--low-memory: reptile does not take it"):
        MetatrainSettings(**known, algorithm="reptile")


def test_work_that_cannot_be_split(monkeypatch):
    eight = jax.devices()
    monkeypatch.setattr(jax, "local_devices", lambda: eight)
    for size, nearest in (
        (12, "8 or 16"),
        (9, "8 or 16"),
        (15, "8 or 16"),
        (7, "8"),
        (17, "16 or 24"),
    ):
        with pytest.raises(
            InputError, match=f"^--b {size}: is not a multiple of 8, .*; use {nearest}$"
        ):
            check_split("--b", size)
    with pytest.raises(InputError, match=r"^--chunk-size 3: does not divide the 4 episodes"):
        check_split("--b", 32, 3)
    with pytest.raises(InputError, match=r"^--chunk-size 8: does not divide the 4 episodes"):
        check_split("--b", 32, 8)
    check_split("--b", 32, 2)
    known = {"model": "m", "text": ("t",), "workdir": "w"}
    for given, parts in (({}, 8), ({"parts": 16}, 16)):
        settings, found = with_parts(PretrainSettings(**known, batch_size=32, **given))
        assert found == settings.parts == parts
    with pytest.raises(
        InputError,
        match=r"^--batch-size 12: is not a multiple of 8, the number of devices; use 8 or 16",
    ):
        with_parts(PretrainSettings(**known, batch_size=12))
    with pytest.raises(InputError, match=r"^--batch-size 24: .* number of --parts; use 16 or 32"):
        with_parts(PretrainSettings(**known, batch_size=24, parts=16))
    with pytest.raises(InputError, match=r"^--parts 12: is not a multiple of 8, .*; use 8 or 16"):
        with_parts(PretrainSettings(**known, batch_size=24, parts=12))
