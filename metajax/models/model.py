"""A BERT, or what has its parts, as a pure function of (params, batch, rng)."""

import dataclasses
import functools
from typing import Any, Unpack

import jax
from flax import nnx

from metajax.dtypes import at_least_float32
from metajax.errors import InputError
from metajax.models import files
from metajax.models.attention import attention_bias
from metajax.models.bert import Block, Embeddings, run_blocks
from metajax.models.config import TransformerConfig
from metajax.models.contracts import (
    HEAD_KEY,
    Batch,
    Head,
    Outputs,
    Params,
    Pooling,
    ProblemType,
    TransformerChanges,
)
from metajax.models.gpt2 import PreNormBlock
from metajax.models.heads import (
    ClassificationHeads,
    MaskedLMHead,
    Projection,
    last_tokens,
    mean_pool,
    mean_pool_packed,
    rescale,
)
from metajax.models.layers import ACTIVATION, Dense, LayerNorm, dropout
from metajax.models.metadata import check_labels
from metajax.reading import is_number


@dataclasses.dataclass(frozen=True)
class Transformer:
    """A BERT: static settings only. Its parameters are a plain dict (see `init`).

    Attributes:
        config: sizes and rates.
        head: "encoder" (none), "masked_lm" or "classification".
        pooling: "pooler" (BERT's tanh layer on the first token; of a decoder, the last token as it
            is), "mean" (over tokens) or "cls" (the first token as it is).
        feature_norm: the Euclidean length that classification heads see `pooled` at; None
            leaves it as it is.
        num_labels: the classes of each classification head; 1 is regression.
        label_names: the names of each head's classes, where known.
        projection: the width of a network of two layers between the features and the classifier,
            as LEOPARD has it; None: there is none.
        problem_type: of the only head, where its size does not tell: "multi_label_classification"
            (each class has a probability of its own) or "regression" (of several values).
        remat: checkpoint each block (less memory in the backward pass, more time).
        dtype: of the computation; None means the parameters' own.
        source: the directory that holds the tokenizer.

    Raises:
        InputError: head, pooling, num_labels, feature_norm, label_names or problem_type cannot be
            used, or the config's family has no masked-LM head.

    Examples:
        >>> import jax, metajax
        >>> from metajax.models import TransformerConfig
        >>> config = TransformerConfig(
        ...     vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1,
        ...     intermediate_size=4, max_position_embeddings=8)
        >>> model = metajax.Transformer(config)
        >>> tokens = jax.numpy.ones((2, 5), int)
        >>> batch = {"input_ids": tokens, "attention_mask": tokens, "token_type_ids": 0 * tokens}
        >>> model(model.init(jax.random.key(0)), batch).last_hidden_state.shape
        (2, 5, 4)
    """

    config: TransformerConfig
    head: Head = "encoder"
    pooling: Pooling = "pooler"
    feature_norm: float | None = None
    num_labels: tuple[int, ...] = (2,)
    label_names: tuple[tuple[str, ...] | None, ...] | None = None
    projection: int | None = None
    problem_type: ProblemType | None = None
    remat: bool = False
    dtype: Any = None
    source: str | None = None

    def __post_init__(self) -> None:
        if self.head not in HEAD_KEY:
            raise InputError(f"head is {self.head!r}; it has to be one of {', '.join(HEAD_KEY)}")
        if self.head == "masked_lm" and not self.config.family.masked_lm:
            raise InputError(
                f"a model of type {self.config.model_type} has no masked-LM head; give one that "
                "has, such as a BERT, or leave pretrain out"
            )
        if self.pooling not in ("pooler", "mean", "cls"):
            raise InputError(f"pooling is {self.pooling!r}; it has to be pooler, mean or cls")
        norm = self.feature_norm
        if norm is not None and not (is_number(norm) and norm > 0):
            raise InputError(f"feature_norm is {norm!r}; it has to be a number above 0")
        check_labels(self.num_labels, self.label_names, self.problem_type)

    def replace(self, **changes: Unpack["TransformerChanges"]) -> "Transformer":
        """The same model with other settings; `with_head` changes the parameters to match.

        Args:
            **changes: any of the attributes.

        Raises:
            InputError: as for the class.
        """
        return dataclasses.replace(self, **changes)

    def init(self, rng: jax.Array) -> Params:
        """Fresh float32 parameters: normal with the configuration's `initializer_range`.

        Returns:
            A dict with these keys, and dicts of arrays below them: `embeddings` (among them `word`
            `[V, H]`, or as wide as `embedding_size`), `layers` (all N blocks in one, `[N, ...]`),
            `pooler` (of a decoder, `final_norm`), and that of the head: `masked_lm`, or
            `classifier` with `kernel` `[T, H, C]` and `bias` `[T, C]` of T heads, the largest of C
            classes.
        """
        names = self.parts
        keys = zip(names, jax.random.split(rng, len(names)))
        return {
            name: nnx.to_pure_dict(nnx.state(_part(self, name, nnx.Rngs(params=key))))
            for name, key in keys
        }

    @property
    def parts(self) -> tuple[str, ...]:
        """The first keys of the parameters."""
        head = HEAD_KEY[self.head]
        last = "final_norm" if self.config.family.decoder else "pooler"
        between = ["projection"] if head == "classifier" and self.projection else []
        return ("embeddings", "layers", last, *between, *([head] if head else []))

    def __call__(self, params: Params, batch: Batch, rng: jax.Array | None = None) -> Outputs:
        """Runs the model; pure, and differentiable as often as one likes.

        Args:
            params: as `init` gives them.
            batch: `input_ids`, `attention_mask` (0 at padding) and `token_type_ids`, int `[B, L]`.
                (The last is not read where `type_vocab_size` is 0.)
                Optionally `positions` int `[B, M]`, of the tokens to give masked-LM logits of;
                `task` int `[B]`, the classification head of each example (without, the first);
                `class_mask` `[C]`, 0 for a class that there is not, whose logit is then -1e9.
                Several examples may share a row: then `input_ids`, `token_type_ids`,
                `position_ids` (of a token within its example) and `example_ids` (which one that
                is, from 0; -1 at padding), int `[R, L]`, and `first_token` int `[B]`, where each
                begins in the flattened rows, and no `attention_mask`. With `hidden` `[B, L, H]`,
                the result of `embed` and `run_layers`, `params["layers"]` are the blocks after
                those, and no `input_ids`, `token_type_ids` or `position_ids` are read.
            rng: the key of dropout; None means none.

        Raises:
            ValueError: rows are longer than the model has positions.
        """
        encoder_rng, head_rng = (None, None) if rng is None else jax.random.split(rng)
        hidden, pooled = self._encode(params, batch, encoder_rng)
        logits = None
        if self.head == "masked_lm":
            head = nnx.merge(_graph(self, "masked_lm"), params["masked_lm"])
            logits = head(hidden, batch.get("positions"), params["embeddings"]["word"])
        elif self.head == "classification":
            features = rescale(pooled, self.feature_norm)
            if self.projection:
                features = nnx.merge(_graph(self, "projection"), params["projection"])(features)
            head = nnx.merge(_graph(self, "classifier"), params["classifier"])
            logits = head(features, batch, head_rng)
        return Outputs(hidden, pooled, logits)

    def features(self, params: Params, batch: Batch, rng: jax.Array | None = None) -> jax.Array:
        """What a classification head sees, before its dropout `[B, H]`; needs no head.

        Args:
            params: as `init` gives them, with a head or without.
            batch: what a call reads, but for `positions`, `task` and `class_mask`.
            rng: the key of dropout; None means none.

        Raises:
            ValueError: rows are longer than the model has positions.
        """
        encoder_rng = None if rng is None else jax.random.split(rng)[0]
        return rescale(self._encode(params, batch, encoder_rng)[1], self.feature_norm)

    def embed(self, params: Params, batch: Batch, rng: jax.Array | None = None) -> jax.Array:
        """What the first block sees `[B, L, H]`.

        Raises:
            ValueError: rows are longer than the model has positions.
        """
        embeddings = nnx.merge(_graph(self, "embeddings"), params["embeddings"])
        x = embeddings(batch)
        x = x if self.dtype is None else x.astype(self.dtype)
        rate = self.config.embedding_dropout_prob
        x = dropout(x, self.config.hidden_dropout_prob if rate is None else rate, rng)
        return embeddings.project(x) if self.config.embedding_size else x

    def run_layers(
        self, layers: Params, hidden: jax.Array, batch: Batch, rng: jax.Array | None = None
    ) -> jax.Array:
        """Some blocks, stacked `[n, ...]` or a list of n, on `[B, L, H]`."""
        causal = self.config.family.decoder
        bias = attention_bias(batch, at_least_float32(hidden.dtype), causal=causal)
        graph = _graph(self, "layers")
        return run_blocks(graph, layers, hidden, bias, rng, remat=self.remat)

    def _encode(
        self, params: Params, batch: Batch, rng: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        embed_rng, layers_rng = (None, None) if rng is None else jax.random.split(rng)
        # Where the first blocks are frozen, a batch may bring what they make of it.
        hidden = batch["hidden"] if "hidden" in batch else self.embed(params, batch, embed_rng)
        hidden = self.run_layers(params["layers"], hidden, batch, layers_rng)
        if self.config.family.decoder:
            hidden = nnx.merge(_graph(self, "final_norm"), params["final_norm"])(hidden)
        return hidden, self._pool(params, hidden, batch)

    def _pool(self, params: Params, hidden: jax.Array, batch: Batch) -> jax.Array:
        packed = "example_ids" in batch
        if self.pooling == "mean" and packed:
            count = batch["first_token"].shape[0]
            return mean_pool_packed(hidden, batch["example_ids"], count)
        if self.pooling == "mean":
            return mean_pool(hidden, batch["attention_mask"])
        flat = hidden.reshape(-1, hidden.shape[-1])
        if self.config.family.decoder and self.pooling == "pooler":
            return flat[last_tokens(batch)]
        first = flat[batch["first_token"]] if packed else hidden[:, 0]
        if self.pooling == "cls":
            return first
        activation = ACTIVATION[self.config.family.pooler_act]
        return activation(nnx.merge(_graph(self, "pooler"), params["pooler"])(first))

    @property
    def uses_pooler(self) -> bool:
        """Whether the logits, and so a loss, depend on BERT's pooler."""
        return self.head == "classification" and self.pooling == "pooler"

    @property
    def tokenizer(self) -> Any:
        """The directory's fast tokenizer (transformers).

        Raises:
            InputError: the model has no directory, or no usable tokenizer is in it.
        """
        tokenizer = files.tokenizer(self.source)
        largest = max(tokenizer.get_vocab().values(), default=0)
        if largest >= self.config.vocab_size:
            raise InputError(
                f"{self.source}: the tokenizer has a token {largest}, the model "
                f"{self.config.vocab_size} from 0; give the tokenizer that belongs to it"
            )
        return tokenizer


def _part(model: Transformer, name: str, rngs: nnx.Rngs) -> nnx.Module:
    """One of the parts that the parameters' first keys name."""
    config = model.config
    if name == "embeddings":
        return Embeddings(config, rngs=rngs)
    if name == "layers":
        keys = jax.random.split(rngs.params(), config.num_hidden_layers)
        block = PreNormBlock if config.family.decoder else Block
        return nnx.vmap(lambda key: block(config, rngs=nnx.Rngs(params=key)))(keys)
    if name == "final_norm":
        return LayerNorm(config.hidden_size, config.layer_norm_eps)
    if name == "pooler":
        size, scale = config.hidden_size, config.initializer_range
        return Dense(size, size, scale, rngs=rngs)
    if name == "masked_lm":
        return MaskedLMHead(config, rngs=rngs)
    if name == "projection":
        return Projection(config, model.projection or 0, rngs=rngs)
    size = model.projection or config.hidden_size
    return ClassificationHeads(config, model.num_labels, size, rngs=rngs)


# A structure without arrays, so that a call only has to put the parameters in.
@functools.lru_cache(maxsize=256)
def _graph(model: Transformer, name: str) -> Any:
    return nnx.graphdef(nnx.eval_shape(lambda: _part(model, name, nnx.Rngs(0))))
