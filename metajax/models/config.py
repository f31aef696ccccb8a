"""What a BERT looks like: the part of a Hugging Face config.json that the network needs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from metajax.errors import InputError

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")

# Keys that make a different network when they are set.
_REFUSED = {
    "is_decoder": "a decoder",
    "add_cross_attention": "a model with cross-attention",
    "is_encoder_decoder": "an encoder-decoder",
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The sizes and rates of a BERT; names and defaults are Hugging Face's."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> "BertConfig":
        """Reads a Hugging Face configuration.

        Args:
            values: what config.json holds. `auto_map` (remote code) is never followed.
            where: the file, for error messages.

        Raises:
            InputError: not a BERT encoder that this package implements, or a value that
                is missing or makes no sense.
        """
        if values.get("model_type") != "bert":
            raise InputError(
                f"{where}: model_type is {values.get('model_type')!r}, but only 'bert' is "
                "supported; give a BERT model"
            )
        for key, what in _REFUSED.items():
            if values.get(key):
                raise InputError(
                    f"{where}: {key} is set, and {what} is not supported; use an encoder"
                )
        position = values.get("position_embedding_type", "absolute")
        if position != "absolute":
            raise InputError(
                f"{where}: position_embedding_type is {position!r}, but only 'absolute' is "
                "supported; give a BERT with absolute positions"
            )
        if values.get("hidden_act", "gelu") not in ACTIVATIONS:
            raise InputError(
                f"{where}: hidden_act is {values['hidden_act']!r}; supported: "
                + ", ".join(ACTIVATIONS)
            )
        config = cls(**{f.name: _read(values, f, where) for f in dataclasses.fields(cls)})
        if config.hidden_size % config.num_attention_heads:
            raise InputError(
                f"{where}: hidden_size {config.hidden_size} is not a multiple of "
                f"num_attention_heads {config.num_attention_heads}; correct one of them"
            )
        if config.pad_token_id >= config.vocab_size:
            raise InputError(
                f"{where}: pad_token_id {config.pad_token_id} is outside the vocabulary of "
                f"{config.vocab_size}; correct one of them"
            )
        return config

    def to_dict(self) -> dict[str, Any]:
        """The configuration as config.json spells it (`from_dict` reads it back)."""
        return {
            "model_type": "bert",
            "position_embedding_type": "absolute",
            **dataclasses.asdict(self),
        }


# A size cannot be guessed: these have to be in the file.
_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)


def _read(values: Mapping[str, Any], field: dataclasses.Field[Any], where: str) -> Any:
    """One checked value of the configuration, or its default."""
    name = field.name
    if name in _REQUIRED and name not in values:
        raise InputError(f"{where}: {name} is missing; add it, or give a complete BERT config.json")
    value = values.get(name, field.default)
    if name == "hidden_act":
        return value
    if name == "tie_word_embeddings":
        problem = None if isinstance(value, bool) else "true or false"
    elif value is None and name in ("classifier_dropout", "pad_token_id"):
        return field.default  # both may be null in the file
    elif name.endswith(("dropout_prob", "dropout")):
        problem = None if _is_number(value) and 0 <= value < 1 else "a number from 0 up to 1"
    elif name in ("layer_norm_eps", "initializer_range"):
        problem = None if _is_number(value) and 0 < value < 1 else "a number between 0 and 1"
    else:
        least = 0 if name == "pad_token_id" else 1
        whole = isinstance(value, int) and not isinstance(value, bool)
        problem = None if whole and value >= least else f"a whole number of at least {least}"
    if problem:
        raise InputError(f"{where}: {name} is {value!r}; it has to be {problem}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
