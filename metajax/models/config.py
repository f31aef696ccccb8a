"""The configuration of a network: the settings in Hugging Face's config.json that it needs."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from metajax.errors import InputError
from metajax.models.config_values import completed, read_value
from metajax.models.families import family_of
from metajax.models.family import Family
from metajax.models.rotary import RopeScaling

# Keys that change the network if they are set.
_REFUSED = {
    "is_decoder": ("a decoder", "use an encoder"),
    "add_cross_attention": ("a model with cross-attention", "use an encoder"),
    "is_encoder_decoder": ("an encoder-decoder", "use an encoder"),
    "quantization_config": (
        "a quantized model",
        "give its weights in float32, float16 or bfloat16",
    ),
}
# Keys with only one supported value, because another one changes the network.
_DEMANDED = {"position_embedding_type": "absolute"}
# Fields that only some families have a setting for; None means the value of another field.
_OF_SOME = {
    "embedding_size": "hidden_size",
    "embedding_dropout_prob": "hidden_dropout_prob",
    "bos_token_id": "pad_token_id",
    "eos_token_id": "pad_token_id",
    "num_key_value_heads": "num_attention_heads",
}
# Fields that only some families have a setting for; the others have the default.
_OF_OTHERS = (
    *("head_dim", "attention_bias", "sliding_window", "rope_theta", "rope_scaling"),
    *("local_rope_theta", "global_attn_every_n_layers", "local_attention", "norm_bias"),
    *("mlp_bias", "classifier_bias", "decoder_bias", "classifier_pooling", "position_buckets"),
)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The sizes and rates of a BERT; names and defaults are Hugging Face's.

    Other families use BERT's names too. Values are checked when a file is read (`from_dict`), not
    here.

    Attributes:
        vocab_size: V, the rows of the embedding table.
        hidden_size: H, a multiple of `num_attention_heads`.
        num_hidden_layers: N, the blocks.
        num_attention_heads: attention heads per block.
        intermediate_size: the width of the feed-forward layers.
        hidden_act: "gelu", "gelu_new", "gelu_pytorch_tanh", "relu" or "silu".
        hidden_dropout_prob: dropout of the embeddings and of the layers' outputs.
        attention_probs_dropout_prob: dropout of the attention probabilities.
        classifier_dropout: dropout before a classification head; None: `hidden_dropout_prob`.
        max_position_embeddings: largest number of tokens of a text.
        type_vocab_size: number of token types; 0 in a family without them.
        layer_norm_eps: added to each variance.
        pad_token_id: id of the padding token.
        initializer_range: the standard deviation of new weights.
        tie_word_embeddings: whether a language-model head decodes with the embedding table.
        embedding_size: the table's width; None: H.
        embedding_dropout_prob: dropout of the embeddings; None: `hidden_dropout_prob`.
        bos_token_id: id of the first token, used only by transformers; None: `pad_token_id`.
        eos_token_id: id of the last token, or several, likewise.
        model_type: the family: "bert", "roberta", "xlm-roberta", "distilbert", "mpnet", "electra",
            "albert", "gpt2", "llama", "mistral", "qwen2", "qwen3", "modernbert" or "deberta-v2".
        num_key_value_heads: of a llama, mistral, qwen2 or qwen3, like the following: heads of keys
            and values, which several query heads share; None: `num_attention_heads`.
        head_dim: features of a head; None: H / `num_attention_heads`.
        attention_bias: whether the dense layers of attention have biases (in a qwen2, not the last
            one).
        sliding_window: the last tokens that a token sees, itself among them; None: all.
        rope_theta: the base of the rotary positions (in a modernbert, of global attention).
        rope_scaling: their scaling, if any.
        local_rope_theta: of a modernbert, like the following: the base in local attention.
        global_attn_every_n_layers: every how many blocks attention is global, from the first on.
        local_attention: width of the window around a token that local attention sees.
        norm_bias: whether norms have biases.
        mlp_bias: whether the feed-forward layers have biases.
        classifier_bias: whether the dense layer before a head's norm has a bias.
        decoder_bias: whether the masked-LM head's decoder has a bias.
        classifier_pooling: what the pooler reads: "cls" (the first token) or "mean".
        position_buckets: of a deberta-v2: the embeddings of distances in each direction.

    Examples:
        >>> from metajax.models import TransformerConfig
        >>> config = TransformerConfig(hidden_size=4, num_attention_heads=1)
        >>> values = config.to_dict()
        >>> values["hidden_size"], values["vocab_size"], values["model_type"]
        (4, 30522, 'bert')
        >>> TransformerConfig.from_dict(values, "config.json") == config
        True
    """

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
    embedding_size: int | None = None
    embedding_dropout_prob: float | None = None
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    model_type: str = "bert"
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    attention_bias: bool = False
    sliding_window: int | None = None
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    local_rope_theta: float = 10000.0
    global_attn_every_n_layers: int = 3
    local_attention: int = 128
    norm_bias: bool = True
    mlp_bias: bool = True
    classifier_bias: bool = True
    decoder_bias: bool = True
    classifier_pooling: Literal["cls", "mean"] = "cls"
    position_buckets: int = 256

    @property
    def family(self) -> Family:
        """How the model type differs from BERT.

        Raises:
            InputError: no family has this model type.
        """
        return family_of(self.model_type, "TransformerConfig")

    @property
    def first_position(self) -> int:
        """The row of the family's position table that belongs to the first token."""
        return self.pad_token_id + 1 if self.family.positions_after_padding else 0

    @property
    def projects_embeddings(self) -> bool:
        """Whether a dense layer widens the embeddings to `hidden_size`."""
        return self.embedding_size is not None or self.family.projects_embeddings

    @property
    def blocks(self) -> int:
        """The number of blocks with parameters of their own."""
        return 1 if self.family.one_block else self.num_hidden_layers

    @property
    def repeats(self) -> int:
        """How many times a text passes through these blocks."""
        return self.num_hidden_layers // self.blocks

    @property
    def head_size(self) -> int:
        """The number of features of an attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def key_value_heads(self) -> int:
        """The number of heads of keys and values."""
        return self.num_key_value_heads or self.num_attention_heads

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> "TransformerConfig":
        """Read a Hugging Face configuration.

        Args:
            values: the content of config.json. `auto_map` (remote code) is ignored.
            where: the file, for error messages.

        Raises:
            InputError: the model is not supported, or a value is missing or not valid.
        """
        family = family_of(values.get("model_type"), where)
        values = completed({**family.defaults, **values}, family, where)
        for key, (what, how) in _REFUSED.items():
            if values.get(key):
                raise InputError(f"{where}: {key} is set, and {what} is not supported; {how}")
        for key, only in {**_DEMANDED, **family.demanded}.items():
            if values.get(key, only) != only:
                raise InputError(
                    f"{where}: {key} is {values[key]!r}, but only {only!r} is supported; give a "
                    "model with this value"
                )
        settings = {
            field.name: read_value(
                values, field, family.settings.get(field.name, field.name), where
            )
            for field in dataclasses.fields(cls)
            if field.name not in {"model_type", *_unsaid(family)}
        }
        for name, other in _OF_SOME.items():
            if name in settings and settings[name] == settings[other]:
                settings[name] = None
        config = cls(model_type=values["model_type"], **family.fixed, **settings)
        most = _usable_positions(config, where)
        plain = config.head_size == config.hidden_size / config.num_attention_heads
        head_dim = None if plain else config.head_dim
        return dataclasses.replace(config, max_position_embeddings=most, head_dim=head_dim)

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration in the format of config.json; `from_dict` reads it."""
        values = dataclasses.asdict(self)
        values["max_position_embeddings"] += self.first_position
        for name, other in _OF_SOME.items():
            values[name] = values[other] if values[name] is None else values[name]
        own_rate = self.family.settings.get("classifier_dropout")
        if self.classifier_dropout is None and own_rate in self.family.defaults:
            values["classifier_dropout"] = (
                self.hidden_dropout_prob
            )  # In this family it cannot be null.
        values["head_dim"] = self.head_size
        if self.rope_scaling is not None:
            numbers = values["rope_scaling"].items()
            values["rope_scaling"] = {name: value for name, value in numbers if value is not None}
        unsaid = _unsaid(self.family)
        spelled = {
            self.family.settings.get(name, name): value
            for name, value in values.items()
            if name not in unsaid
        }
        # The values that a model of this family needs, where transformers has others by default.
        demanded = self.family.demanded.items()
        spelled |= {key: only for key, only in demanded if key in self.family.defaults}
        if not self.family.position_table:
            return spelled
        return {"position_embedding_type": "absolute", **spelled}


def _unsaid(family: Family) -> set[str]:
    """Return the fields that config.json of a family has no setting for."""
    return {*family.fixed, *_OF_SOME, *_OF_OTHERS} - family.settings.keys()


def _usable_positions(config: TransformerConfig, where: str) -> int:
    """Return the largest number of tokens of a text.

    Raises:
        InputError: there is no position left, or sizes do not fit one another.
    """
    heads, groups = config.num_attention_heads, config.key_value_heads
    if heads % groups:
        raise InputError(
            f"{where}: num_attention_heads {heads} is not a multiple of num_key_value_heads "
            f"{groups}; fix one of them"
        )
    if config.family.rotary and config.head_size % 2:
        raise InputError(
            f"{where}: head_dim is {config.head_size}; it has to be even for rotary positions"
        )
    largest = 2 * config.max_position_embeddings - 3
    if config.family.block == "deberta" and not 2 <= config.position_buckets <= largest:
        raise InputError(
            f"{where}: position_buckets is {config.position_buckets}; with max_position_embeddings "
            f"{config.max_position_embeddings}, it has to be from 2 to {largest}"
        )
    if config.head_dim is None and config.hidden_size % heads:
        raise InputError(
            f"{where}: hidden_size {config.hidden_size} is not a multiple of "
            f"num_attention_heads {heads}; fix one of them"
        )
    if config.pad_token_id >= config.vocab_size:
        raise InputError(
            f"{where}: pad_token_id {config.pad_token_id} is outside the vocabulary of "
            f"{config.vocab_size}; fix one of them"
        )
    most = config.max_position_embeddings - config.first_position
    if most < 1:
        raise InputError(
            f"{where}: max_position_embeddings {config.max_position_embeddings} leaves no "
            "position for a token; fix it"
        )
    return most
