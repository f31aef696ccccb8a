"""Damaged files of metajax give one line, as any other bad input does."""

import json
import shutil

import pytest
import tiny

from metajax.errors import InputError
from metajax.models import Transformer, files
from tests.stage_commands import pretrain_command

SETTINGS = {"seed": 0, "max_length": 128, "model": "m", "workdir": "w", "text": ["t"]}
SOUND = {
    "stage": "pretrain",
    "settings": SETTINGS,
    "data": {},
    "parent": {},
    "model": {},
    "versions": {},
}


def with_settings(**changes):
    return json.dumps(SOUND | {"settings": SETTINGS | changes})


@pytest.mark.parametrize(
    "content",
    [
        *("{", "[]", "{}", '{"stage": "pretrain"}'),
        json.dumps(SOUND | {"parent": {"record": 5}}),
        json.dumps(SOUND | {"parent": {"record": SOUND}}),
        json.dumps(SOUND | {"parent": {"path": "p", "record": SOUND | {"parent": 1}}}),
        json.dumps(SOUND | {"stage": "foo"}),
        json.dumps(SOUND | {"stage": []}),
        json.dumps(SOUND | {"settings": {}}),
        json.dumps(SOUND | {"pairs": ["no"]}),
        *(with_settings(seed=seed) for seed in (True, "0", -1)),
        *(with_settings(parts=parts) for parts in ("x", [1], 0)),
    ],
)
def test_a_record_that_is_none(refused, material, tmp_path, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(content)
    refused("is not the record of a run", *pretrain_command(material, tmp_path / "run"))
    refused("is not the record of a run", "export", "--model", tmp_path / "run", "--output", "out")
    refused("is not the record of a run", "lineage", "--model", tmp_path / "run")


def test_a_record_that_is_one(material, tmp_path):
    """Without this, the test above would prove nothing."""
    for content in (json.dumps(SOUND), with_settings(learning_rate=9, of_an_earlier_version=1)):
        (tmp_path / "run.json").write_text(content)
        assert "pretrain" in tiny.succeed("lineage", "--model", tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"inner_lr": "x"},
        {"inner_steps": -3},
        {"head": "zzz"},
        {"layers": 1.5},
        None,
    ],
)
def test_a_record_in_a_checkpoint(refused, chain, material, tmp_path, changes):
    run = shutil.copytree(chain.metatrain, tmp_path / "run")
    for file in run.glob("checkpoints/*/_CHECKPOINT_METADATA"):
        metadata = json.loads(file.read_text())
        if changes is None:
            del metadata["custom_metadata"]["settings"]
        else:
            metadata["custom_metadata"]["settings"] |= changes
        file.write_text(json.dumps(metadata))
    refused(
        r"checkpoints/4: is not the record of a run",
        *("evaluate", "--model", run, "--tasks", material.intents, "--queries", 3),
    )


def test_results_of_an_adaptation(refused, material, tmp_path):
    command = ("adapt", "--model", material.bert, "--tasks", material.new, "--inner-steps", 1)
    tiny.succeed(*command, "--workdir", tmp_path / "run")
    for content in ("[1]", '{"inner_lr": "x"}', '{"inner_lr": -1}', "{"):
        (tmp_path / "run" / "results.json").write_text(content)
        refused(r"results.json: .*restore (it|the file)", *command, "--workdir", tmp_path / "run")


NOTES = {
    "too few names": {"label_names": [["a"]]},
    "no names": {"label_names": []},
    "names of two heads": {"label_names": [["a", "b", "c"], ["d"]]},
    "no number": {"feature_norm": float("nan")},
    "too large": {"feature_norm": 1e400},
    "negative": {"feature_norm": -1},
    "a text for a list of names": {"label_names": ["yes"]},
    "a text for numbers": {"num_labels": "3"},
    "half a class": {"num_labels": [2.9]},
}


@pytest.mark.parametrize("case", NOTES)
def test_an_exported_models_notes(refused, chain, tmp_path, case):
    tiny.succeed("export", "--model", chain.adapt, "--output", tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    config["metajax"] |= NOTES[case]
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    refused(
        r'config.json: "metajax", "num_labels" or "problem_type" is not valid',
        *("predict", "--model", tmp_path / "hf"),
        stdin=b"w1\n",
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"feature_norm": 0.0},
        {"feature_norm": float("inf")},
        {"num_labels": (2,), "label_names": (("a",),)},
        {"num_labels": (1, 2), "label_names": (("a", "b"),)},
        {"num_labels": (2,), "label_names": ("ab",)},
        {"num_labels": (2,), "label_names": (3,)},
    ],
)
def test_the_same_in_python(settings):
    with pytest.raises(InputError, match=r"feature_norm is|label_names is"):
        Transformer(tiny.CONFIG, **settings)


def test_a_regression_has_no_names():
    assert Transformer(tiny.CONFIG, num_labels=(1, 2), label_names=((), None)).num_labels == (1, 2)


def test_a_token_that_the_model_has_not(refused, material, tmp_path):
    bert = shutil.copytree(material.bert, tmp_path / "bert")
    files.tokenizer(str(bert)).save_pretrained(bert)
    tokenizer = json.loads((bert / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["w1"] = 5000
    (bert / "tokenizer.json").write_text(json.dumps(tokenizer))
    files.tokenizer.cache_clear()
    command = ("adapt", "--model", bert, "--tasks", material.new, "--workdir", "run")
    refused("has a token 5000, but the model's last token is 94", *command)
