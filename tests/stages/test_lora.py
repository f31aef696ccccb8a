"""`--lora`: adapters in the inner loop, plain weights outside it."""

import json

import jax
import numpy as np
import pytest
import tiny

from metajax import data
from metajax.errors import InputError
from metajax.stages.few_shot import open_few_shot
from metajax.stages.groups import InnerSettings, ModelSettings
from metajax.stages.tasks import batch_of, tokenized
from tests.stages.commands import metatrain_command

RANK, RATE = 2, 0.05


def opened(material, **inner):
    settings = ModelSettings(model=str(material.bert))
    inner = {"lora": RANK, "inner_lr": RATE, "inner_steps": 2, **inner}
    return open_few_shot(settings.model, settings, InnerSettings(**inner), 3)


@pytest.fixture
def support(material):
    tasks = data.load_tasks([str(material.new)])
    return batch_of(tokenized(tasks, opened(material).model, 32)[0])


def test_adaptation_is_descent_in_the_factors_and_the_head(material, support):
    """Against the same two steps written out."""
    few_shot = opened(material)
    found, info = few_shot.algorithm().adapt(few_shot.params, support, None)
    start, _ = few_shot.algorithm(inner_steps=0, lora=None).adapt(few_shot.params, support, None)
    kernel = start["layers"]["qkv"]["kernel"]
    down = jax.random.normal(jax.random.split(jax.random.key(0), 1)[0], (*kernel.shape[:2], RANK))
    moved = {
        "down": down * kernel.shape[1] ** -0.5,
        "up": np.zeros((kernel.shape[0], RANK, kernel.shape[2]), np.float32),
        "classifier": start["classifier"],
    }

    def merged(moved):
        qkv = {**start["layers"]["qkv"], "kernel": kernel + moved["down"] @ moved["up"]}
        layers = {**start["layers"], "qkv": qkv}
        return {**start, "layers": layers, "classifier": moved["classifier"]}

    def loss(moved):
        logits = few_shot.model(merged(moved), support).logits
        picked = jax.nn.log_softmax(logits)[np.arange(len(logits)), support["labels"]]
        return -picked.mean()

    for step in range(2):
        value, grads = jax.value_and_grad(loss)(moved)
        np.testing.assert_allclose(info.support_loss[step], value, rtol=1e-5)
        moved = jax.tree.map(lambda leaf, grad: leaf - RATE * grad, moved, grads)
    assert np.abs(moved["up"]).max() > 1e-6
    expected = merged(moved)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


def test_the_rank_of_the_change(material, support):
    few_shot = opened(material, inner_lr=3.0)
    found, _ = few_shot.algorithm().adapt(few_shot.params, support, None)
    change = found["layers"]["qkv"]["kernel"] - few_shot.params["layers"]["qkv"]["kernel"]
    for block in np.asarray(change, np.float64):
        values = np.linalg.svd(block, compute_uv=False)
        assert values[RANK - 1] > 1e-4 > values[RANK] * 10


def test_the_stages_with_adapters(material, tmp_path):
    tiny.succeed(*metatrain_command(material, tmp_path / "meta", lora=RANK))
    command = ("--model", tmp_path / "meta", "--tasks", material.new)
    tiny.succeed("adapt", *command, "--workdir", tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["settings"]["lora"] == RANK
    assert tiny.succeed("predict", "--model", tmp_path / "run", stdin=b"w1 w2\n").count("\n") == 1


def test_choices_that_exclude_each_other(material, tmp_path):
    with pytest.raises(InputError, match=r"--layers 1: with --lora .* give one of the two"):
        opened(material, layers=1)
    done = tiny.run(*metatrain_command(material, tmp_path / "x", lora=2, algorithm="anil"))
    assert (done.status, "--lora 2: anil has no choice of what adapts" in done.err) == (2, True)


@pytest.mark.slow
def test_a_run_may_adapt_otherwise_than_its_parent(material, tmp_path):
    tiny.succeed(*metatrain_command(material, tmp_path / "anil", algorithm="anil", steps=1))
    parent = tmp_path / "anil"
    choices = ({"algorithm": "fomaml", "layers": 1}, {"lora": RANK}, {"layers": 1})
    for number, given in enumerate(choices):
        run = tmp_path / f"{number}"
        tiny.succeed(*metatrain_command(material, run, parent, steps=1, **given))
        command = ("evaluate", "--model", run, "--tasks", material.intents, "--episodes", 2)
        tiny.succeed(*command, "--methods", "maml", "finetune", "--ways", 3, "--queries", 3)
        parent = run
