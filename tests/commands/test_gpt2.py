"""The stages with a GPT-2: a decoder, meta-trained through adapters."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from metajax import data
from metajax.config.groups import ModelSettings
from metajax.config.inner import InnerSettings
from metajax.errors import InputError
from metajax.models import files
from metajax.runs.few_shot import open_few_shot
from metajax.runs.source import open_source
from metajax.runs.task_data import tokenized
from metajax.types import Task
from tests.stage_commands import finetune_command, metatrain_command

RANK, RATE = 2, 0.05


def opened(material, **inner):
    settings = ModelSettings(model=str(material.gpt2))
    inner = InnerSettings(**{"lora": RANK, "inner_lr": RATE, "inner_steps": 1, **inner})
    few_shot = open_few_shot(settings.model, settings, inner, 3)
    return few_shot._replace(params=jax.tree.map(jnp.float64, few_shot.params))


def task_of(material, few_shot):
    """Support and query of the same three classes."""
    tasks = data.load_tasks([str(material.three), str(material.three_dev)])
    return Task(*(tiny.batch_of(task) for task in tokenized(tasks, few_shot.model, 16)))


@pytest.mark.usefixtures("x64")
def test_merged_adapters_are_the_factors(material):
    """Adaptation only changes the head and, by a low-rank product, the fused kernel."""
    few_shot = opened(material, inner_lr=1.0)
    support = task_of(material, few_shot).support
    found, _ = jax.jit(few_shot.algorithm().adapt)(few_shot.params, support, None)
    kernel = found["layers"]["qkv"]["kernel"]
    for block in np.asarray(kernel - few_shot.params["layers"]["qkv"]["kernel"]):
        values = np.linalg.svd(block, compute_uv=False)
        assert values[RANK - 1] > 1e-6 > values[RANK] * 1e6
    same = few_shot.params["layers"] | {
        "qkv": few_shot.params["layers"]["qkv"] | {"kernel": kernel}
    }
    tiny.assert_same_bits(
        {key: value for key, value in found.items() if key != "classifier"},
        few_shot.params | {"layers": same},
    )


@pytest.mark.usefixtures("x64")
def test_the_meta_gradient_against_finite_differences(material):
    few_shot = opened(material)
    task, algorithm = task_of(material, few_shot), few_shot.algorithm()
    leaves, treedef = jax.tree.flatten(few_shot.params)
    random = np.random.RandomState(0)
    direction = treedef.unflatten([random.standard_normal(leaf.shape) for leaf in leaves])
    run = jax.jit(algorithm.meta_grad)

    def query_loss(step):
        moved = jax.tree.map(lambda leaf, along: leaf + step * along, few_shot.params, direction)
        return float(run(moved, task, None)[1].query_loss)

    grads = run(few_shot.params, task, None)[0]
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: float((g * d).sum()), grads, direction)))
    measured = (query_loss(1e-6) - query_loss(-1e-6)) / 2e-6
    assert abs(slope) > 1e-3
    np.testing.assert_allclose(slope, measured, rtol=1e-6)


def test_padding_is_the_end_of_text(material, tmp_path):
    model = open_source(str(material.gpt2)).model
    assert model.tokenizer.pad_token_id == model.tokenizer.eos_token_id
    tokens = data.tokenize(["w1", "w2 w3 w4"], None, model.tokenizer, 8)
    assert tokens.input_ids[0, tokens.lengths[0]] == model.tokenizer.eos_token_id
    (tmp_path / "vocab.json").write_text('{"a": 0, "<unk>": 1}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    without = {"tokenizer_class": "GPT2Tokenizer", "eos_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(without))
    with pytest.raises(InputError, match="has no token for padding"):
        files.tokenizer(str(tmp_path))


def test_what_makes_no_sense(refused, material):
    where = ("--model", material.gpt2, "--workdir", "run", "--text", material.text)
    refused("a decoder predicts next tokens", "pretrain", *where, "--whole-word")
    refused("nothing between the two texts", *finetune_command(material, "run", material.gpt2))


@pytest.mark.slow
def test_it_goes_through_the_stages(material, tmp_path):
    meta, mine = tmp_path / "meta", tmp_path / "mine"
    tiny.succeed(*metatrain_command(material, meta, material.gpt2, lora=RANK))
    tiny.succeed("adapt", "--model", meta, "--tasks", material.new, "--workdir", mine)
    (tmp_path / "texts.txt").write_text("w48 w49 w50\nw60 w61\n")
    out = tiny.succeed("predict", "--model", mine, "--input", tmp_path / "texts.txt")
    assert len(out.splitlines()) == 2
    command = ("--tasks", material.new, "--ways", 3, "--shots", 1, "--queries", 1)
    scores = tmp_path / "scores.json"
    tiny.succeed("evaluate", "--model", meta, *command, "--episodes", 4, "--output", scores)
    rows = json.loads(scores.read_text())
    assert {row["method"] for row in rows} == {
        "checkpoint",
        "same-steps",
        "prototypes",
        "linear",
        "knn",
    }
    tiny.succeed("export", "--model", mine, "--output", tmp_path / "hf")
    assert (
        tiny.succeed("predict", "--model", tmp_path / "hf", "--input", tmp_path / "texts.txt")
        == out
    )
    import transformers

    _, info = transformers.GPT2Model.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values()), info
    (row,) = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")(["w48 w49"])["input_ids"]
    assert row


@pytest.mark.slow
def test_whole_networks_train_too(material, tmp_path):
    """Without adapters, in little memory, and with a head on the last token."""
    meta, tuned = tmp_path / "meta", tmp_path / "tuned"
    tiny.succeed(*metatrain_command(material, meta, material.gpt2, steps=2), "--low-memory")
    command = ("--tasks", material.three, "--dev", material.three_dev, "--steps", 2)
    tiny.succeed("finetune", "--model", meta, "--workdir", tuned, *command, "--batch-size", 8)
    out = tiny.succeed("predict", "--model", tuned, stdin=b"w48 w49 w50\nw1\n")
    tiny.succeed("export", "--model", tuned, "--output", tmp_path / "hf")
    assert tiny.succeed("predict", "--model", tmp_path / "hf", stdin=b"w48 w49 w50\nw1\n") == out
