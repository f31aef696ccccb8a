"""The inputs and outputs of a network, and the values of its settings."""

from typing import Any, Literal, NamedTuple, TypedDict, get_args

import jax

from metajax.errors import InputError
from metajax.models.config import TransformerConfig
from metajax.reading import is_number

Params = dict[str, Any]
Batch = dict[str, jax.Array]
Head = Literal["encoder", "masked_lm", "causal_lm", "classification"]
Activation = Literal["linear", "tanh", "relu", "gelu", "silu", "sigmoid"]
Pooling = Literal["pooler", "mean", "cls", "last", "weighted-mean"]
ProblemType = Literal["multi_label_classification", "regression"]

HEAD_KEY = {
    "encoder": None,
    "masked_lm": "masked_lm",
    "causal_lm": "lm_head",  # Only if it is not tied to the embedding table.
    "classification": "classifier",
}


class Outputs(NamedTuple):
    """The outputs of a model.

    Attributes:
        last_hidden_state: `[B, L, H]`, or `[R, L, H]` for a packed batch without a prefix.
        pooled: `[B, H]`, with the model's pooling.
        logits: classification `[B, C]`; masked LM `[B, M, V]` at the batch's positions, or `[B, L,
            V]`; causal LM `[B, L, V]`; None without a head. At least float32.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from metajax.models import Transformer, TransformerConfig
        >>> config = TransformerConfig(9, hidden_size=12, num_hidden_layers=1)
        >>> model = Transformer(config, head="masked_lm")
        >>> ids = jnp.ones((2, 5), int)
        >>> batch = {"input_ids": ids, "attention_mask": ids, "token_type_ids": 0 * ids}
        >>> outputs = model(model.init(jax.random.key(0)), batch)
        >>> outputs.last_hidden_state.shape, outputs.pooled.shape, outputs.logits.shape
        ((2, 5, 12), (2, 12), (2, 5, 9))
    """

    last_hidden_state: jax.Array
    pooled: jax.Array
    logits: jax.Array | None


class DenseLayer(NamedTuple):
    """A dense layer on the pooled vector, which sentence-transformers calls `Dense`.

    Attributes:
        size: D, the number of its outputs.
        activation: what is applied to them; "linear" is nothing.
        bias: whether it has a bias.

    Examples:
        >>> import jax
        >>> from metajax.models import DenseLayer, Transformer, TransformerConfig
        >>> config = TransformerConfig(9, hidden_size=12, num_hidden_layers=1)
        >>> model = Transformer(config, pooling="mean", dense=DenseLayer(6))
        >>> model.init(jax.random.key(0))["dense"]["kernel"].shape
        (12, 6)
    """

    size: int
    activation: Activation = "tanh"
    bias: bool = True


class TransformerChanges(TypedDict, total=False):
    """The attributes of a `Transformer`, for `replace`."""

    config: TransformerConfig
    head: Head
    pooling: Pooling
    dense: DenseLayer | None
    feature_norm: float | None
    num_labels: tuple[int, ...]
    label_names: tuple[tuple[str, ...] | None, ...] | None
    projection: int | None
    problem_type: ProblemType | None
    remat: bool
    dtype: Any
    source: str | None
    prompt: str
    siamese: bool


def check_use(
    config: TransformerConfig,
    head: str,
    pooling: str,
    dense: DenseLayer | None,
    feature_norm: float | None,
) -> None:
    """Check the head, the features and the dense layer of a `Transformer`.

    Raises:
        InputError: they cannot be used, or the config's family has no such head.
    """
    if head not in HEAD_KEY:
        raise InputError(f"head is {head!r}; it has to be one of {', '.join(HEAD_KEY)}")
    if head == "masked_lm" and not config.family.masked_lm:
        raise InputError(
            f"a model of type {config.model_type} has no masked-LM head; give one that "
            "has, such as a BERT, or skip pretrain"
        )
    if head == "causal_lm" and config.family.causal_lm is None:
        raise InputError(
            f"a model of type {config.model_type} has no causal-LM head; give a decoder, "
            "such as a Llama"
        )
    if pooling not in get_args(Pooling):
        raise InputError(
            f"pooling is {pooling!r}; it has to be one of {', '.join(get_args(Pooling))}"
        )
    if dense is not None and pooling == "pooler" and not config.family.decoder:
        raise InputError(
            "pooling is 'pooler', but the model has a Dense layer, which reads another vector; "
            "leave the pooling out"
        )
    if dense is not None and not (isinstance(dense.size, int) and dense.size >= 1):
        raise InputError(f"the size of dense is {dense.size!r}; it has to be a number above 0")
    if dense is not None and dense.activation not in get_args(Activation):
        raise InputError(
            f"the activation of dense is {dense.activation!r}; it has to be one of "
            f"{', '.join(get_args(Activation))}"
        )
    if feature_norm is not None and not (is_number(feature_norm) and feature_norm > 0):
        raise InputError(f"feature_norm is {feature_norm!r}; it has to be a number above 0")
