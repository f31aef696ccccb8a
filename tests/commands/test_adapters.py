"""What adapts, and what stays frozen: adapters in every stage."""

import json

import jax
import numpy as np
import pytest
import tiny

from metajax.models import from_pretrained
from metajax.runs.source import open_source
from metajax.training import checkpoint
from metajax.tree import paths
from tests.stage_commands import metatrain_command

KINDS = {
    "lora": ({"lora": 2}, {"layers/qkv/kernel"}),
    "lora of other kernels": (
        {"lora": 2, "lora_kernels": ("out", "up")},
        {"layers/out/kernel", "layers/up/kernel"},
    ),
    "prefix": ({"prefix": 3}, set()),
    "norms": ({"trainable": "norms"}, None),
    "mlps": (
        {"trainable": "mlps"},
        {f"layers/{name}/{leaf}" for name in ("up", "down") for leaf in ("kernel", "bias")},
    ),
}
QUICK = ("lora of other kernels", "mlps")


def frozen_command(material, workdir, kind, **changes):
    settings = {"freeze": True, "inner_steps": 2, "learning_rate": 0.01} | changes
    return metatrain_command(material, workdir, **KINDS[kind][0], **settings)


def moved(material, workdir):
    """The paths of the network's parameters that are not as in the weights of the base."""
    base, now = from_pretrained(str(material.bert))[1], open_source(str(workdir)).params
    now = {key: now[key] for key in base}
    pairs = zip(paths(base), jax.tree.leaves(base), jax.tree.leaves(now), strict=True)
    return {path for path, before, after in pairs if np.any(before != after)}


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[] if k in QUICK else pytest.mark.slow) for k in KINDS]
)
def test_a_frozen_base_is_trained_evaluated_adapted_and_used(kind, material, tmp_path):
    meta, new = tmp_path / "meta", tmp_path / "new"
    tiny.succeed(*frozen_command(material, meta, kind))
    assert set(checkpoint.load(meta / "checkpoints").params) == {"adapters"}
    changed = KINDS[kind][1]
    if changed is None:  # All norms and biases, but not the pooler's, which no loss reads.
        changed = set(paths(from_pretrained(str(material.bert))[1]))
        changed = {path for path in changed if path.endswith(("bias", "scale"))}
        changed = {path for path in changed if path.startswith(("layers", "embeddings"))}
    assert moved(material, meta) == changed
    tiny.succeed(
        *("evaluate", "--model", meta, "--tasks", material.intents, "--ways", 3, "--episodes", 2),
        *("--methods", "checkpoint", "same-steps", "--output", tmp_path / "rows.json"),
    )
    assert len(json.loads((tmp_path / "rows.json").read_text())) == 2
    adapting = ("adapt", "--model", meta, "--tasks", material.new, "--workdir", new)
    tiny.succeed(*adapting, "--inner-lr", 0.1)
    saved = checkpoint.load(new / "checkpoints").params
    assert (set(saved), set(saved["base"])) == ({"adapters", "base"}, {"classifier"})
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"{text}\n" for text, _ in tiny.examples(3, 2, seed=7, first=8)))
    guesses = tiny.succeed("predict", "--model", new, "--input", texts)
    if kind != "prefix":
        tiny.succeed("export", "--model", new, "--output", tmp_path / "exported")
        again = tiny.succeed("predict", "--model", tmp_path / "exported", "--input", texts)
        assert again == guesses


def test_a_run_from_before_these_settings_resumes(material, tmp_path):
    command = metatrain_command(material, tmp_path / "run", steps=1)
    tiny.succeed(*command)
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    for name in ("lora_kernels", "prefix", "trainable", "freeze", "inner_optimizer"):
        del record["settings"][name]
    del record["settings"]["inner_clip_norm"]
    path.write_text(json.dumps(record))
    tiny.succeed(*command)
