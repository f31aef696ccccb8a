"""Compare the network's outputs with those of transformers, for each family of models.

    python -m benchmarks.parity                       # random weights, saved by transformers
    python -m benchmarks.parity bert-base my-encoder  # directories of weights

Prints the largest difference on texts of unequal lengths, relative to the largest output, in
float32 and in float64. For a directory the outputs are hidden states, or a decoder's logits.
--output writes it as JSON. This needs PyTorch.
"""

import argparse
import contextlib
import importlib
import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from transformers.models.llama import modeling_llama as llama

from metajax.models import TransformerConfig, from_pretrained
from metajax.models.families import FAMILIES

CLASSES = {
    "encoder": "Model",
    "masked_lm": "ForMaskedLM",
    "classification": "ForSequenceClassification",
}
# Settings of the families that differ from BERT's.
CHANGES: dict[str, dict[str, Any]] = {
    "roberta": {"pad_token_id": 1, "type_vocab_size": 1},
    "xlm-roberta": {"pad_token_id": 1, "type_vocab_size": 1},
    "distilbert": {"type_vocab_size": 0},
    "mpnet": {"pad_token_id": 1, "type_vocab_size": 0},
    "electra": {"embedding_size": 64},
    "albert": {"embedding_size": 64, "hidden_act": "gelu_new"},
    "gpt2": {"type_vocab_size": 0},
    "deberta-v2": {"type_vocab_size": 0, "position_buckets": 32},
    "modernbert": {
        **{"type_vocab_size": 0, "hidden_dropout_prob": 0.0, "local_attention": 16},
        **dict.fromkeys(("norm_bias", "mlp_bias", "classifier_bias"), False),
    },
    **{
        name: {"hidden_act": "silu", "num_key_value_heads": 2, **family.fixed}
        for name, family in FAMILIES.items()
        if family.block == "llama"
    },
}


def class_of(model_type: str, head: str) -> Any:
    """Return the class of transformers."""
    family = FAMILIES[model_type]
    ending = family.causal_lm if head == "causal_lm" else CLASSES[head]
    return getattr(transformers, f"{family.classes}{ending}")


def heads_of(model_type: str) -> list[str]:
    """Return the heads that a family has."""
    family = FAMILIES[model_type]
    has = {"masked_lm": family.masked_lm, "causal_lm": family.causal_lm is not None}
    return [head for head in (*CLASSES, "causal_lm") if has.get(head, True)]


def make_config(model_type: str, layers: int, hidden: int) -> TransformerConfig:
    """Return a family's configuration."""
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": 4 * hidden}
    heads = {"num_attention_heads": max(1, hidden // 64), "max_position_embeddings": 130}
    changes = CHANGES.get(model_type, {})
    return TransformerConfig(vocab_size=1000, model_type=model_type, **sizes, **heads, **changes)


def write(config: TransformerConfig, head: str, directory: Path, scale: float = 0.1) -> Any:
    """Save a model of transformers with random weights and three labels."""
    kind = class_of(config.model_type, head)
    theirs = kind(kind.config_class(**config.to_dict(), num_labels=3)).eval()
    with torch.no_grad():
        for number, parameter in enumerate(theirs.parameters()):
            drawn = np.random.RandomState(number).standard_normal(parameter.shape)
            parameter.copy_(torch.tensor(scale * drawn + (parameter.ndim == 1)))
    theirs.save_pretrained(directory)
    return theirs


def make_batch(config: TransformerConfig) -> dict[str, np.ndarray]:
    """Return four texts of 8 to 64 tokens."""
    mask = (np.arange(64) < np.array([[8], [20], [50], [64]])).astype(np.int32)
    ids = np.random.RandomState(0).randint(2, config.vocab_size, mask.shape)
    return {"input_ids": np.where(mask, ids, config.pad_token_id), "attention_mask": mask}


class Float64Torch:
    """PyTorch with float64 for float32, which transformers' norms and rotations insist on."""

    def __getattr__(self, name: str) -> Any:
        """Return float64 for float32, and everything else as it is."""
        return torch.float64 if name in ("float32", "float") else getattr(torch, name)


@contextlib.contextmanager
def in_float64(kind: Any) -> Iterator[None]:
    """Let transformers load and run a network in float64 throughout."""
    names = (kind.__module__, "transformers.modeling_rope_utils")
    modules: list[Any] = [importlib.import_module(name) for name in names]
    own = vars(modules[0]).get("apply_rotary_pos_emb")
    try:
        for module in modules:
            module.torch = Float64Torch()
        if own is not None:  # ModernBERT's narrows to float32.
            modules[0].apply_rotary_pos_emb = llama.apply_rotary_pos_emb
        yield
    finally:
        if own is not None:
            modules[0].apply_rotary_pos_emb = own
        for module in modules:
            module.torch = torch


def widen_rotation(theirs: Any) -> None:
    """Compute the frequencies again, within `in_float64`: loading narrows them."""
    rotary = getattr(theirs, "model", theirs).rotary_emb
    if isinstance(rotary.rope_type, dict):  # ModernBERT's, for each kind of layers.
        for kind in rotary.rope_type:
            own = rotary.compute_default_rope_parameters(theirs.config, layer_type=kind)[0]
            setattr(rotary, f"{kind}_inv_freq", own)
        return
    scaled = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS
    compute = scaled.get(rotary.rope_type, rotary.compute_default_rope_parameters)
    rotary.inv_freq = compute(theirs.config)[0]


def run_theirs(kind: Any, directory: str, bits: int, batch: dict[str, torch.Tensor]) -> Any:
    """Return the outputs of transformers' network."""
    theirs = kind.from_pretrained(directory, dtype=getattr(torch, f"float{bits}")).eval()
    if bits == 64 and FAMILIES[theirs.config.model_type].rotary:
        widen_rotation(theirs)
    with torch.no_grad():
        return theirs(**batch)


def difference(directory: str, head: str, bits: int) -> float:
    """Return the largest difference of the outputs, relative to their largest output."""
    with jax.enable_x64(bits == 64):
        model, params = from_pretrained(directory, head)
        batch = make_batch(model.config)
        kind = class_of(model.config.model_type, head)
        given = {key: torch.tensor(value).long() for key, value in batch.items()}
        name = "last_hidden_state" if head == "encoder" else "logits"
        with in_float64(kind) if bits == 64 else contextlib.nullcontext():
            expected = run_theirs(kind, directory, bits, given)[name].numpy()
        params = jax.tree.map(lambda leaf: leaf.astype(f"float{bits}"), params)
        model = model.replace(dtype=jnp.dtype(f"float{bits}"))
        batch["token_type_ids"] = np.zeros_like(batch["input_ids"])
        ours = np.asarray(getattr(jax.jit(model)(params, batch), name))
    if head != "classification":
        ours, expected = (each[batch["attention_mask"] > 0] for each in (ours, expected))
    return float(np.abs(ours - expected).max() / np.abs(expected).max())


def rows(directories: list[str], layers: int, hidden: int) -> Iterator[dict[str, Any]]:
    """Yield name, head and differences of each comparison."""
    if directories:
        for directory in directories:
            decoder = from_pretrained(directory)[0].config.family.decoder
            yield row(directory, directory, "causal_lm" if decoder else "encoder")
        return
    for model_type in FAMILIES:
        for head in heads_of(model_type):
            with tempfile.TemporaryDirectory() as directory:
                write(make_config(model_type, layers, hidden), head, Path(directory))
                yield row(model_type, directory, head)


def row(name: str, directory: str, head: str) -> dict[str, Any]:
    """Compare one model."""
    differences = {f"float{bits}": difference(directory, head, bits) for bits in (32, 64)}
    return {"model": name, "head": head, **differences}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directories", nargs="*", help="weights to compare; default: random ones")
    parser.add_argument("--layers", type=int, default=6, help="of the random ones")
    parser.add_argument("--hidden", type=int, default=384, help="features of the random models")
    parser.add_argument("--output", help="write the rows as JSON")
    options = parser.parse_args()
    compared = []
    print(f"{'model':<24}{'head':<16}{'float32':>12}{'float64':>12}")
    for each in rows(options.directories, options.layers, options.hidden):
        compared.append(each)
        name, head, *differences = each.values()
        print(f"{name:<24}{head:<16}" + "".join(f"{d:>12.1e}" for d in differences), flush=True)
    if options.output:
        Path(options.output).write_text(json.dumps({"rows": compared}, indent=2) + "\n")
    # Written like this, a NaN also fails.
    sys.exit(not all(each["float64"] < 1e-12 and each["float32"] < 1e-4 for each in compared))


if __name__ == "__main__":
    # Only in this process.
    logging.getLogger("metajax").setLevel(logging.ERROR)  # Warnings about a new head are expected.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    main()
