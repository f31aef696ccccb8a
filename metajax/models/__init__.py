"""Transformers as pure functions, read from and written to Hugging Face files."""

from metajax.models.causal import causal_lm_loss
from metajax.models.config import TransformerConfig
from metajax.models.contracts import DenseLayer, Outputs
from metajax.models.contrastive import contrastive_loss, cosine_loss
from metajax.models.hashing import hashes
from metajax.models.losses import (
    classification_loss,
    masked_lm_loss,
    multi_label_loss,
    prototype_init,
    zero_init,
)
from metajax.models.metadata import has_classifier
from metajax.models.model import Transformer
from metajax.models.peft import load_adapters, save_adapters
from metajax.models.prefix import init_prefix, is_prefix
from metajax.models.pretrained import from_pretrained, read_model, with_head
from metajax.models.reparametrization import (
    compose,
    mentioned_rows,
    separate_layers,
    upper_layers,
)
from metajax.models.save import save_config, save_pretrained

Bert, BertConfig = Transformer, TransformerConfig  # Aliases: their earlier names.

__all__ = [
    "DenseLayer",
    "Outputs",
    "Transformer",
    "TransformerConfig",
    "causal_lm_loss",
    "classification_loss",
    "compose",
    "contrastive_loss",
    "cosine_loss",
    "from_pretrained",
    "has_classifier",
    "hashes",
    "init_prefix",
    "is_prefix",
    "load_adapters",
    "masked_lm_loss",
    "mentioned_rows",
    "multi_label_loss",
    "prototype_init",
    "read_model",
    "save_adapters",
    "save_config",
    "save_pretrained",
    "separate_layers",
    "upper_layers",
    "with_head",
    "zero_init",
]
