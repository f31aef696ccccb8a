"""BERT as a pure function, from and to Hugging Face files."""

from metajax.models.config import BertConfig
from metajax.models.files import has_classifier, hashes
from metajax.models.losses import (
    classification_loss,
    masked_lm_loss,
    prototype_start,
    zero_start,
)
from metajax.models.pretrained import Bert, Outputs, from_pretrained, with_head
from metajax.models.reduction import mentioned_rows, upper_layers
from metajax.models.save import save_config, save_pretrained

__all__ = [
    "Bert",
    "BertConfig",
    "Outputs",
    "classification_loss",
    "from_pretrained",
    "has_classifier",
    "hashes",
    "masked_lm_loss",
    "mentioned_rows",
    "prototype_start",
    "save_config",
    "save_pretrained",
    "upper_layers",
    "with_head",
    "zero_start",
]
