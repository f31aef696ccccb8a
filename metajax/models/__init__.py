"""BERT and its relatives as a pure function, from and to Hugging Face files."""

from metajax.models.config import BertConfig
from metajax.models.files import hashes
from metajax.models.losses import (
    classification_loss,
    masked_lm_loss,
    prototype_init,
    zero_init,
)
from metajax.models.model import Bert, Outputs
from metajax.models.notes import has_classifier
from metajax.models.pretrained import from_pretrained, read_model, with_head
from metajax.models.reparametrization import (
    compose,
    mentioned_rows,
    separate_layers,
    upper_layers,
)
from metajax.models.save import save_config, save_pretrained

__all__ = [
    "Bert",
    "BertConfig",
    "Outputs",
    "classification_loss",
    "compose",
    "from_pretrained",
    "has_classifier",
    "hashes",
    "masked_lm_loss",
    "mentioned_rows",
    "prototype_init",
    "read_model",
    "save_config",
    "save_pretrained",
    "separate_layers",
    "upper_layers",
    "with_head",
    "zero_init",
]
