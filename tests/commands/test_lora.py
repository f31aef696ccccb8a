"""`--lora`: adapters in the inner loop, plain weights outside it."""

import json

import pytest
import tiny

from metajax.config.groups import ModelSettings
from metajax.config.inner import InnerSettings
from metajax.errors import InputError
from metajax.runs.few_shot import open_few_shot
from tests.stage_commands import metatrain_command

RANK, RATE = 2, 0.05


def opened(material, **inner):
    settings = ModelSettings(model=str(material.bert))
    inner = {"lora": RANK, "inner_lr": RATE, "inner_steps": 2, **inner}
    return open_few_shot(settings.model, settings, InnerSettings(**inner), 3)


def test_the_stages_with_adapters(material, tmp_path):
    tiny.succeed(*metatrain_command(material, tmp_path / "meta", lora=RANK))
    command = ("--model", tmp_path / "meta", "--tasks", material.new)
    tiny.succeed("adapt", *command, "--workdir", tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["settings"]["lora"] == RANK
    assert tiny.succeed("predict", "--model", tmp_path / "run", stdin=b"w1 w2\n").count("\n") == 1


def test_choices_that_exclude_each_other(material, tmp_path):
    with pytest.raises(InputError, match=r"--layers 1: with --lora .* remove one of them"):
        opened(material, layers=1)
    done = tiny.run(*metatrain_command(material, tmp_path / "x", lora=2, algorithm="anil"))
    assert (done.status, "--lora 2: anil does not take it; remove it" in done.err) == (2, True)


@pytest.mark.slow
def test_a_run_may_adapt_otherwise_than_its_parent(material, tmp_path):
    tiny.succeed(*metatrain_command(material, tmp_path / "anil", algorithm="anil", steps=1))
    parent = tmp_path / "anil"
    choices = ({"algorithm": "fomaml", "layers": 1}, {"lora": RANK}, {"layers": 1})
    for number, given in enumerate(choices):
        run = tmp_path / f"{number}"
        tiny.succeed(*metatrain_command(material, run, parent, steps=1, **given))
        command = ("evaluate", "--model", run, "--tasks", material.intents, "--episodes", 2)
        tiny.succeed(*command, "--methods", "checkpoint", "same-steps", "--ways", 3, "--queries", 3)
        parent = run
