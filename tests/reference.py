"""Few-shot methods in PyTorch and scikit-learn, and a model to compare them on."""

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.torch
import sklearn.linear_model
import tiny
import torch
import transformers

from metajax.config.settings import MetatrainSettings
from metajax.models import Transformer, save_config, save_pretrained
from metajax.runs.few_shot import open_few_shot
from metajax.runs.record import make_record
from metajax.runs.source import describe
from metajax.runs.workdir import begin, open_run, write_results
from metajax.training.checkpoint import Checkpoints
from metajax.training.outer import OuterState


def uneven_examples(classes: int, each: int, seed: int, first: int = 0) -> list[tuple[str, str]]:
    """(text, label) in random order, of 2 to 14 words; most are words of the class."""
    draw = random.Random(seed)
    rows = []
    for number in range(first, first + classes):
        own = tiny.WORDS[6 * number : 6 * number + 6]
        for _ in range(each):
            words = draw.choices(own, k=draw.randint(1, 8)) + draw.choices(tiny.WORDS, k=4)
            draw.shuffle(words)
            rows.append((" ".join(words[: draw.randint(2, 14)]), f"topic{number}"))
    draw.shuffle(rows)
    return rows


def meta_trained(root: Path, **inner) -> SimpleNamespace:
    """Original weights, and the workdir of a `metatrain` with completely different weights.

    `tuned` has the second ones in Hugging Face format.
    """
    original = tiny.write_model(root / "original")
    workdir = root / "metatrain"
    settings = MetatrainSettings(
        model=str(original), tasks=("none",), workdir=str(workdir), ways=3, **inner
    )
    few_shot = open_few_shot(settings.model, settings, settings, 3)
    parent, model = few_shot.source.record, describe(few_shot.model)
    record = make_record("metatrain", settings, data={}, parent=parent, model=model)
    run = open_run(settings.workdir, record)
    begin(run, lambda directory: save_config(directory, few_shot.model))
    encoder = Transformer(config=tiny.CONFIG, source=str(original))  # Its tokenizer.
    params = encoder.init(jax.random.key(8))
    with Checkpoints(run.checkpoints, keep=1, record=record) as checkpoints:
        checkpoints.save(OuterState(jnp.asarray(1), params, jnp.zeros(1), jax.random.key(0)))
    write_results(run, {"before": {}, "after": {}})
    save_pretrained(root / "tuned", encoder, params)
    return SimpleNamespace(original=original, workdir=workdir, tuned=root / "tuned")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch with one thread, because the products are too small for several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Reference:
    """A BERT in float64, written out from the weights of a Hugging Face directory.

    Args:
        directory: a model with the sizes of `tiny.CONFIG` and a tokenizer.
        max_length: largest number of tokens of a text.
    """

    def __init__(self, directory: Path, max_length: int) -> None:
        stored = safetensors.torch.load_file(directory / "model.safetensors")
        self._weights = {
            name.removeprefix("bert."): value.double()
            for name, value in stored.items()
            if name.removeprefix("bert.").startswith(("embeddings", "encoder"))
        }
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        self._max_length = max_length
        self._known: dict[str, np.ndarray] = {}

    def feature(self, text: str) -> np.ndarray:
        """The mean over a text's tokens, scaled to length 1."""
        if text not in self._known:
            self._known[text] = self._features(self._weights, [text])[0].numpy()
        return self._known[text]

    def baseline(self, method, support, labels, query) -> np.ndarray:
        """The labels that a classifier on frozen features gives the query texts."""
        x, y = (np.stack([self.feature(text) for text in texts]) for texts in (support, query))
        labels = np.asarray(labels)
        if method == "linear":
            return sklearn.linear_model.LogisticRegression(max_iter=1000).fit(x, labels).predict(y)
        if method == "prototypes":
            x = np.stack([x[labels == c].mean(0) for c in range(labels.max() + 1)])
            labels = np.arange(len(x))
        return labels[np.argmin(np.linalg.norm(y[:, None] - x[None], axis=-1), 1)]

    def adapted(self, support, labels, query, truths, *, rate: float, steps: int) -> list[float]:
        """Query accuracies after 0, 1, ... steps of SGD from a head of prototypes."""
        labels = torch.as_tensor(np.array(labels, np.int64))
        features = 10**0.5 * self._features(self._weights, support)
        ways = range(int(labels.max()) + 1)
        kernel = torch.stack([features[labels == way].mean(0) for way in ways], 1)
        learnt = self._weights | {"kernel": kernel, "bias": -(kernel**2).sum(0) / 2}

        def logits(texts):
            return 10**0.5 * self._features(learnt, texts) @ learnt["kernel"] + learnt["bias"]

        found = []
        for step in range(steps + 1):
            found.append(np.mean(logits(query).argmax(1).numpy() == np.asarray(truths)))
            if step < steps:
                learnt = {name: value.detach().requires_grad_() for name, value in learnt.items()}
                loss = torch.nn.functional.cross_entropy(logits(support), labels)
                grads = torch.autograd.grad(loss, list(learnt.values()))
                learnt = {
                    name: (value - rate * grad).detach()
                    for (name, value), grad in zip(learnt.items(), grads)
                }
        return found

    def _features(self, weights, texts) -> torch.Tensor:
        batch = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self._max_length,
            return_tensors="pt",
        )
        mask = batch["attention_mask"][:, :, None]
        hidden = _hidden(weights, batch["input_ids"], batch["attention_mask"])
        mean = (hidden * mask).sum(1) / mask.sum(1)
        return mean / mean.norm(dim=1, keepdim=True)


def _hidden(weights, ids, mask) -> torch.Tensor:
    """BERT's last hidden state [B, L, H] of single texts; Devlin et al. 2019."""

    def dense(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x, name):
        name, eps = f"{name}.LayerNorm", tiny.CONFIG.layer_norm_eps
        given = (weights[f"{name}.weight"], weights[f"{name}.bias"])
        return torch.nn.functional.layer_norm(x, x.shape[-1:], *given, eps)

    def heads(x):
        return x.unflatten(-1, (tiny.CONFIG.num_attention_heads, -1)).transpose(1, 2)

    word, position, kind = (
        weights[f"embeddings.{name}_embeddings.weight"]
        for name in ("word", "position", "token_type")
    )
    x = norm(word[ids] + position[: ids.shape[1]] + kind[0], "embeddings")
    hidden = (1.0 - mask[:, None, None, :]) * -1e30
    for number in range(tiny.CONFIG.num_hidden_layers):
        layer = f"encoder.layer.{number}"
        q, k, v = (
            heads(dense(x, f"{layer}.attention.self.{name}")) for name in ("query", "key", "value")
        )
        weighted = (q @ k.mT / q.shape[-1] ** 0.5 + hidden).softmax(-1) @ v
        attended = dense(weighted.transpose(1, 2).flatten(2), f"{layer}.attention.output.dense")
        x = norm(x + attended, f"{layer}.attention.output")
        inner = torch.nn.functional.gelu(dense(x, f"{layer}.intermediate.dense"))
        x = norm(x + dense(inner, f"{layer}.output.dense"), f"{layer}.output")
    return x
