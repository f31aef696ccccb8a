"""Compare the settings of the inner loop with the same steps written out."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from metajax import data
from metajax.config.groups import ModelSettings
from metajax.config.inner import InnerSettings
from metajax.config.settings import MetatrainSettings
from metajax.errors import InputError
from metajax.models import TransformerConfig
from metajax.runs.few_shot import FewShot, open_few_shot
from metajax.runs.inner import DEFAULTS, _check_what
from metajax.runs.source import Source, open_source
from metajax.runs.task_data import tokenized
from metajax.types import Task
from tests.workdirs import write_workdir

WORDS, HIDDEN, BLOCKS, CLASSES, RATE = 100, 4, 2, 3, 0.7
LABELS = np.array([0, 0, 1, 2, 1, 2])
PLAIN = {"inner_steps": 1, "inner_lr": RATE, "head": "prototypes", "algorithm": "maml"}
PLAIN = DEFAULTS | PLAIN


class Small:
    """A network for few-shot learning that compiles quickly; a key doubles its features."""

    head, remat, num_labels = "classification", False, (CLASSES,)
    problem_type, feature_size = None, HIDDEN
    family = SimpleNamespace(rotary=False)
    config = SimpleNamespace(
        hidden_size=HIDDEN, num_hidden_layers=BLOCKS, blocks=BLOCKS, family=family
    )

    def embed(self, params, batch):
        return params["embeddings"]["word"][batch["input_ids"]]

    def relative(self, params, batch):
        return None

    def run_layers(self, params, hidden, batch):
        layers = params["layers"]
        if not isinstance(layers, list):
            count = len(layers["qkv"]["kernel"])
            layers = [jax.tree.map(lambda leaf: leaf[n], layers) for n in range(count)]  # noqa: B023
        for block in layers:
            qkv = block["qkv"]
            product = hidden @ qkv["kernel"]
            if "down" in qkv:
                product += hidden @ qkv["down"] @ qkv["up"]
            hidden = jnp.tanh(product @ block["mlp"]["kernel"])
        return hidden

    def features(self, params, batch, rng=None):
        hidden = batch["hidden"] if "hidden" in batch else self.embed(params, batch)
        features = self.run_layers(params, hidden, batch).mean(1)
        return features if rng is None else 2 * features

    def __call__(self, params, batch, rng=None):
        classifier = params["classifier"]
        features = self.features(params, batch, rng)
        logits = features @ classifier["kernel"][0] + classifier["bias"][0]
        return SimpleNamespace(logits=logits)


MODEL = Small()


def small_params(*, classifier):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape))

    params = {
        "embeddings": {"word": normal(WORDS, HIDDEN)},
        "layers": {part: {"kernel": normal(BLOCKS, HIDDEN, HIDDEN)} for part in ("qkv", "mlp")},
        "pooler": {"bias": jnp.zeros(HIDDEN)},  # It is not read.
    }
    head = {"kernel": normal(1, HIDDEN, CLASSES), "bias": normal(1, CLASSES)}
    return params | ({"classifier": head} if classifier else {})


def small_task():
    rng = np.random.default_rng(1)
    texts = rng.integers(WORDS, size=(2, len(LABELS), 3))
    return Task(*({"input_ids": jnp.asarray(ids), "labels": jnp.asarray(LABELS)} for ids in texts))


def first_head(start, params, support):
    if start == "checkpoint":
        return params["classifier"]
    if start == "zero":
        return {"kernel": jnp.zeros((1, HIDDEN, CLASSES)), "bias": jnp.zeros((1, CLASSES))}
    features = MODEL.features(params, support)
    means = jnp.stack([features[c == LABELS].mean(0) for c in range(CLASSES)])
    return {"kernel": means.T[None], "bias": -(means**2).sum(1)[None] / 2}


def loss_of(params, batch):
    logits = MODEL(params, batch).logits
    picked = jax.nn.log_softmax(logits)[jnp.arange(len(logits)), batch["labels"]]
    return -picked.mean(), (logits.argmax(1) == batch["labels"]).mean()


def moving(inner, params, support):
    """Return the initial values that inner steps change, and a function to all parameters."""
    classifier = first_head(inner["head"], params, support)
    layers = params["layers"]
    kernel = layers["qkv"]["kernel"]
    if inner["algorithm"] == "anil":
        return {"classifier": classifier}, lambda moved: params | moved
    if inner["layers"] is not None:
        lower = BLOCKS - inner["layers"]
        upper = jax.tree.map(lambda leaf: leaf[lower:], layers)

        def joined(moved):
            join = lambda below, above: jnp.concatenate([below[:lower], above])  # noqa: E731
            return params | moved | {"layers": jax.tree.map(join, layers, moved["layers"])}

        return {"classifier": classifier, "layers": upper}, joined
    if inner["lora"] is not None:
        shape = (BLOCKS, HIDDEN, inner["lora"])
        down = jax.random.normal(jax.random.split(jax.random.key(0), 1)[0], shape, kernel.dtype)
        up = jnp.zeros((BLOCKS, inner["lora"], HIDDEN))
        moved = {"down": down / HIDDEN**0.5, "up": up, "classifier": classifier}

        def merged(moved):
            qkv = {"kernel": kernel + moved["down"] @ moved["up"]}
            return params | {"layers": layers | {"qkv": qkv}, "classifier": moved["classifier"]}

        return moved, merged
    return params | {"classifier": classifier}, lambda moved: moved


def written_out(inner, params, task):
    """Return the query loss, and its accuracy, the support losses and the adapted parameters."""
    constant = jax.lax.stop_gradient if inner["algorithm"] == "fomaml" else lambda x: x
    moved, whole = moving(inner, params, task.support)
    losses = []
    for _ in range(inner["inner_steps"]):
        step = jax.value_and_grad(lambda moved: loss_of(whole(moved), task.support)[0])
        loss, grads = step(moved)
        losses.append(loss)
        moved = jax.tree.map(lambda leaf, grad: leaf - RATE * constant(grad), moved, grads)
    loss, accuracy = loss_of(whole(moved), task.query)
    return loss, (accuracy, jnp.stack(losses), whole(moved))


CASES = {
    "maml": {},
    "maml of a head of zeros": {"head": "zero"},
    "first order": {"algorithm": "fomaml"},
    "first order of the checkpoint's head": {"algorithm": "fomaml", "head": "checkpoint"},
    "the head alone": {"algorithm": "anil"},
    "reptile": {"algorithm": "reptile"},
    "the upper block": {"layers": 1},
    "no block, in first order": {"layers": 0, "algorithm": "fomaml"},
    "adapters": {"lora": 2, "inner_steps": 2},
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", CASES)
def test_each_algorithm_is_what_it_says(case):
    """With a key, because the inner loop has no dropout."""
    changes = CASES[case]
    inner, task = PLAIN | changes, small_task()
    params = small_params(classifier=inner["head"] == "checkpoint")
    # What is resolved of the settings counts, and a change counts more.
    given = not changes.keys().isdisjoint({"head", "inner_steps"})
    few_shot = FewShot(MODEL, params, PLAIN if given else inner, Source(MODEL, params, {}))

    @jax.jit
    def both(params, task):
        algorithm = few_shot.algorithm(**changes) if given else few_shot.algorithm()
        found = algorithm.meta_grad(params, task, jax.random.key(1))
        adapted, _ = algorithm.adapt(params, task.support, jax.random.key(1))
        own = jax.value_and_grad(lambda *each: written_out(inner, *each), has_aux=True)
        return found, adapted, own(params, task)

    found, adapted, ((loss, (accuracy, losses, moved)), grads) = both(params, task)
    if case == "reptile":
        grads = jax.tree.map(lambda leaf, key: leaf - key, params, {k: moved[k] for k in params})
    close = lambda one, other: np.testing.assert_allclose(one, other, atol=1e-10)  # noqa: E731
    jax.tree.map(close, found[0], grads)
    jax.tree.map(close, adapted, moved)
    close(found[1].query_loss, loss)
    close(found[1].query_aux["accuracy"], accuracy)
    close(found[1].support_loss, losses)


def test_low_memory_takes_less_memory():
    def temporary_bytes(low_memory):
        params = small_params(classifier=False)
        few_shot = FewShot(MODEL, params, PLAIN, Source(MODEL, params, {}))
        algorithm = few_shot.algorithm(low_memory=low_memory, inner_steps=16, head="zero")
        texts = {"input_ids": jnp.zeros((2000, 3), int), "labels": jnp.zeros(2000, int)}
        compiled = jax.jit(algorithm.meta_grad).lower(params, Task(texts, texts), None).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(True) < temporary_bytes(False) / 3


def opened(spec, settings=(), **inner):
    settings = ModelSettings(model=str(spec), **dict(settings))
    return open_few_shot(settings.model, settings, InnerSettings(**inner), CLASSES)


def support_of(few_shot, path):
    return tiny.batch_of(*tokenized(data.load_tasks([str(path)]), few_shot.model, 16))


def test_a_task_begins_at_cosines_of_mean_features(material):
    """Of length sqrt(10), so that without inner steps the logits are 10 times a cosine."""
    few_shot = opened(material.bert, inner_steps=0)
    assert "classifier" not in few_shot.params
    support = support_of(few_shot, material.new)

    @jax.jit
    def run(params, support):
        adapted, _ = few_shot.algorithm().adapt(params, support, None)
        outputs = few_shot.model(adapted, support)
        return adapted["classifier"], outputs.last_hidden_state, outputs.logits

    head, hidden, logits = map(np.asarray, jax.tree.leaves(run(few_shot.params, support))[1:])
    mask = support["attention_mask"][:, :, None]
    features = (hidden * mask).sum(1) / mask.sum(1)
    features *= 10**0.5 / np.linalg.norm(features, axis=1, keepdims=True)
    means = np.stack([features[support["labels"] == label].mean(0) for label in range(CLASSES)])
    np.testing.assert_allclose(head[0], means.T, atol=1e-5)
    np.testing.assert_allclose(logits, features @ means.T - (means**2).sum(1) / 2, atol=1e-4)


def test_a_head_of_the_checkpoint_is_its_own_or_drawn_by_the_seed(material, tmp_path):
    own = tiny.write_model(tmp_path / "own", "classification", num_labels=(CLASSES,))
    kernel = open_source(str(own), head="classification", num_labels=(CLASSES,)).params[
        "classifier"
    ]["kernel"]
    drawn = [
        np.asarray(opened(spec, {"seed": seed}, head="checkpoint").params["classifier"]["kernel"])
        for spec, seed in ((own, 1), (material.bert, 1), (material.bert, 2))
    ]
    assert [each.shape for each in drawn] == [(1, 16, CLASSES)] * 3
    np.testing.assert_array_equal(drawn[0], kernel)
    assert np.abs(drawn[1] - drawn[2]).min() > 0


ENCODER = {"head": "encoder"}


def resolved(spec, **given):
    return opened(spec, **given).inner_settings()


def test_settings_given_come_before_the_weights_own_and_these_before_the_defaults(
    material, tmp_path
):
    assert resolved(material.bert) == DEFAULTS
    assert resolved(material.bert, inner_optimizer="adam")["inner_lr"] == 0.001
    for setting in dataclasses.fields(InnerSettings):
        default = DEFAULTS[setting.name]
        assert default in (None, ()) or f"else {default}" in setting.metadata["help"]
    other = DEFAULTS | {"inner_steps": 5, "inner_lr": 0.7, "head": "zero", "layers": 1}
    assert resolved(material.bert, **other) == other
    workdir = write_workdir(
        tmp_path / "run", material.bert, "metatrain", network=ENCODER, algorithm="fomaml", **other
    )
    assert resolved(workdir) == other
    few_shot = opened(workdir)
    assert few_shot.is_meta_trained
    assert few_shot.inner["algorithm"] == "fomaml"
    assert not opened(material.bert).is_meta_trained
    for name, value in (("inner_steps", 0), ("inner_lr", 0.2), ("head", "prototypes")):
        assert resolved(workdir, **{name: value}) == other | {name: value}
    # Of the two choices of what adapts, one takes the place of the other.
    assert resolved(workdir, layers=0) == other | {"layers": 0}
    assert resolved(workdir, lora=2) == other | {"layers": None, "lora": 2}
    settings = MetatrainSettings(model=str(workdir), tasks=("t",), workdir="w", algorithm="anil")
    inner = open_few_shot(settings.model, settings, settings, CLASSES).inner
    assert inner == other | {"algorithm": "anil", "layers": None}
    own = other | {"layers": None, "lora": 2}
    workdir = write_workdir(
        tmp_path / "adapters", material.bert, "metatrain", network=ENCODER, **own
    )
    assert resolved(workdir, layers=0) == other | {"layers": 0}


def test_weights_that_were_trained_otherwise_bring_no_settings(material, tmp_path):
    own = {"inner_lr": 0.7, "inner_steps": 5}
    workdir = write_workdir(tmp_path / "run", material.bert, "adapt", network=ENCODER, **own)
    assert resolved(workdir) == DEFAULTS
    assert not opened(workdir).is_meta_trained


def test_as_many_blocks_adapt_as_the_model_has_or_fewer(material):
    assert resolved(material.bert, layers=1)["layers"] == 1
    with pytest.raises(InputError, match="--layers 2: the model has 2 blocks"):
        opened(material.bert, layers=2)


def test_the_blocks_of_an_albert_adapt_together():
    config = TransformerConfig(model_type="albert")
    with pytest.raises(InputError, match="--layers 1: all blocks of this model share their"):
        _check_what(DEFAULTS | {"layers": 1}, config, 0)
    _check_what(DEFAULTS | {"layers": 0}, config, 0)
