"""A transformer as a pure function of (params, batch, rng)."""

import dataclasses
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from metajax.dtypes import at_least_float32
from metajax.models import files
from metajax.models.bert import count_blocks, run_blocks
from metajax.models.config import TransformerConfig
from metajax.models.context import context_of, shared_of
from metajax.models.contracts import (
    HEAD_KEY,
    Batch,
    DenseLayer,
    Head,
    Outputs,
    Params,
    Pooling,
    ProblemType,
    TransformerChanges,
    check_use,
)
from metajax.models.heads import head_features, pool
from metajax.models.layers import ACTIVATION, dropout
from metajax.models.metadata import check_labels
from metajax.models.parts import adapters_in, graph_of, make_part
from metajax.models.prefix import drop_prefix, show_prefix, unpack


@dataclasses.dataclass(frozen=True)
class Transformer:
    """A transformer with static settings. Its parameters are a nested dict (see `init`).

    Attributes:
        config: sizes and rates.
        head: "encoder" (none), "masked_lm", "causal_lm" (next tokens) or "classification".
        pooling: "pooler" (BERT's tanh layer on the first token; for a decoder, the last token),
            "mean" (over tokens), "cls" (the first token), "last" (the last one) or "weighted-mean"
            (over tokens; the n-th has the weight n).
        feature_norm: the Euclidean length to which `pooled` is scaled before a classification head;
            None means no scaling.
        num_labels: number of classes of each classification head; 1 means regression.
        label_names: names of each head's classes, if known.
        problem_type: the problem type of the only head, if `num_labels` does not determine it:
            "multi_label_classification" (one probability per class) or "regression" (of several
            values).
        remat: checkpoint each block (less memory in the backward pass, more time).
        dtype: dtype of the computation; None means the dtype of the parameters.
        source: the directory with the tokenizer.
        dense: a layer on the pooled vector [B, H], which makes it [B, D]; None means none.
        prompt: what sentence-transformers puts before each text. The network itself ignores it.
        siamese: whether each text of a pair is encoded by itself. A batch, which is packed, has 2 B
            texts, `pooled` is then `[2 B, D]`, and features compare the two of a pair: `[B, 2 D]`.

    Raises:
        InputError: head, pooling, dense, num_labels, feature_norm, label_names or problem_type
            cannot be used, or the config's family has no such head.

    Examples:
        >>> import jax, metajax
        >>> from metajax.models import TransformerConfig
        >>> config = TransformerConfig(vocab_size=9, hidden_size=12, num_hidden_layers=1)
        >>> model = metajax.Transformer(config)
        >>> tokens = jax.numpy.ones((2, 5), int)
        >>> batch = {"input_ids": tokens, "attention_mask": tokens, "token_type_ids": 0 * tokens}
        >>> model(model.init(jax.random.key(0)), batch).last_hidden_state.shape
        (2, 5, 12)
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
    dense: DenseLayer | None = None
    prompt: str = ""
    siamese: bool = False

    def __post_init__(self) -> None:
        check_use(self.config, self.head, self.pooling, self.dense, self.feature_norm)
        check_labels(self.num_labels, self.label_names, self.problem_type)

    def replace(self, **changes: Unpack["TransformerChanges"]) -> "Transformer":
        """Return the same model with other settings. `with_head` also changes the parameters.

        Args:
            **changes: any of the attributes.

        Raises:
            InputError: as in the class.
        """
        return dataclasses.replace(self, **changes)

    def init(self, rng: jax.Array) -> Params:
        """Initialize float32 parameters, normal with the configuration's `initializer_range`.

        Returns:
            A nested dict with these keys: `embeddings` (with `word` `[V, H]`, or `embedding_size`
            wide), `relative` (only if blocks share relative positions), `layers` (all N blocks
            stacked, `[N, ...]`; `[1, ...]` if they share their parameters), `pooler` (or
            `final_norm` in a decoder), `dense` (if there is one), and the key of the head:
            `masked_lm`, `lm_head` (unless it is tied to the embedding table), or `classifier` with
            `kernel` `[T, H, C]` and `bias` `[T, C]` for T heads with up to C classes.
        """
        names, sizes = self.parts, (self.num_labels, self.projection, self.dense, self.feature_size)
        keys = map(nnx.Rngs, jax.random.split(rng, len(names)))
        parts = {name: make_part(self.config, name, *sizes, key) for name, key in zip(names, keys)}
        return {name: nnx.to_pure_dict(nnx.state(part)) for name, part in parts.items()}

    @property
    def parts(self) -> tuple[str, ...]:
        """The top-level keys of the parameters."""
        tied = self.head == "causal_lm" and self.config.tie_word_embeddings
        head = None if tied else HEAD_KEY[self.head]
        family = self.config.family
        last = ["final_norm"] if family.final_norm else []
        last += [] if family.decoder else ["pooler"]
        last += ["dense"] if self.dense else []
        between = ["projection"] if head == "classifier" and self.projection else []
        shared = ["relative"] if family.relative else []
        return ("embeddings", *shared, "layers", *last, *between, *([head] if head else []))

    def __call__(self, params: Params, batch: Batch, rng: jax.Array | None = None) -> Outputs:
        """Run the model: a pure function that can be differentiated any number of times.

        Args:
            params: as `init` gives them, or with vectors before the text (`init_prefix`).
            batch: `input_ids`, `attention_mask` (0 at padding) and `token_type_ids`, int `[B, L]`.
                (The last one is ignored if `type_vocab_size` is 0.) Optional keys: `positions` int
                `[B, M]`, the tokens for masked-LM logits; `task` int `[B]`, the classification head
                of each example (default: the first); `class_mask` `[C]`, 0 for missing classes,
                whose logits are -1e9. A packed batch has several examples per row: `input_ids`,
                `token_type_ids`, `position_ids` (position within the example) and `example_ids`
                (index of the example; -1 at padding), int `[R, L]`, and `first_token` int `[B]`
                (start of each example in the flattened rows), but no `attention_mask`. A batch with
                `hidden` `[B, L, H]`, the result of `embed` and `run_layers`, needs no `input_ids`,
                `token_type_ids` and `position_ids`; `params["layers"]` are then the remaining
                blocks. With `relative` `[B, ...]`, the result of `relative` for each example, they
                need no `params["relative"]`.
            rng: the key of dropout; None means none.

        Raises:
            ValueError: rows are longer than the model has positions.
        """
        encoder_rng, head_rng = (None, None) if rng is None else jax.random.split(rng)
        hidden, pooled = self._encode(params, batch, encoder_rng)
        logits = None
        if self.head == "masked_lm":
            head = nnx.merge(self._graph("masked_lm"), params["masked_lm"])
            logits = head(hidden, batch.get("positions"), params["embeddings"]["word"])
        elif self.head == "causal_lm":
            logits = self.decode(params, hidden)
        elif self.head == "classification":
            features = head_features(self, pooled, batch)
            if self.projection:
                features = nnx.merge(self._graph("projection"), params["projection"])(features)
            head = nnx.merge(self._graph("classifier"), params["classifier"])
            logits = head(features, batch, head_rng)
        return Outputs(hidden, pooled, logits)

    def features(self, params: Params, batch: Batch, rng: jax.Array | None = None) -> jax.Array:
        """Return the features of a classification head, before dropout `[B, H]`; no head is needed.

        Args:
            params: parameters from `init`, with or without a head.
            batch: a batch as for a call, without `positions`, `task` and `class_mask`.
            rng: the key of dropout; None means none.

        Raises:
            ValueError: rows are longer than the model has positions.
        """
        encoder_rng = None if rng is None else jax.random.split(rng)[0]
        return head_features(self, self._encode(params, batch, encoder_rng)[1], batch)

    def hidden(self, params: Params, batch: Batch, rng: jax.Array | None = None) -> jax.Array:
        """Return a call's `last_hidden_state` `[B, L, H]`; a packed batch needs no `first_token`.

        Args:
            params: parameters from `init`, with or without a head.
            batch: a batch as for a call.
            rng: the key of dropout; None means none.

        Raises:
            ValueError: rows are longer than the model has positions.
        """
        return self._hidden(params, batch, None if rng is None else jax.random.split(rng)[0])

    def decode(self, params: Params, hidden: jax.Array) -> jax.Array:
        """Return a causal-LM head's logits of the next tokens, in at least float32.

        Args:
            params: parameters from `init`.
            hidden: `last_hidden_state` of any tokens `[..., H]`.

        Returns:
            `[..., V]`.
        """
        wide = at_least_float32(hidden.dtype)
        if not self.config.tie_word_embeddings:
            return nnx.merge(self._graph("lm_head"), params["lm_head"])(hidden, wide)
        word_VxH = params["embeddings"]["word"].astype(hidden.dtype)
        return jnp.matmul(hidden, word_VxH.T, preferred_element_type=wide)

    def embed(self, params: Params, batch: Batch, rng: jax.Array | None = None) -> jax.Array:
        """Return the input of the first block `[B, L, H]`, or `[B, P + L, H]` with a prefix.

        Raises:
            InputError: the parameters have a prefix, and the batch has packed documents.
            ValueError: rows are longer than the model has positions.
        """
        embeddings = nnx.merge(self._graph("embeddings"), params["embeddings"])
        x = embeddings(batch, params["prefix"]["vectors"] if "prefix" in params else None)
        x = x if self.dtype is None else x.astype(self.dtype)
        rate = self.config.embedding_dropout_prob
        x = dropout(x, self.config.hidden_dropout_prob if rate is None else rate, rng)
        return embeddings.project(x) if self.config.projects_embeddings else x

    def relative(self, params: Params, batch: Batch) -> jax.Array | None:
        """Return what all blocks read about relative positions; None in a family without them."""
        if not self.config.family.relative:
            return None
        if "relative" in batch:
            return batch["relative"][0]
        return nnx.merge(self._graph("relative"), params["relative"])()

    def run_layers(
        self,
        params: Params,
        hidden: jax.Array,
        batch: Batch,
        rng: jax.Array | None = None,
        *,
        first: int = 0,
    ) -> jax.Array:
        """Apply the blocks in `params["layers"]` to the result of `embed`.

        Args:
            params: `layers`, some blocks, stacked `[n, ...]` or in a list of n; and `relative` in a
                family that has it, unless the batch has it.
            hidden: the result of `embed`, or of other blocks.
            batch: its batch.
            rng: the key of dropout; None means none.
            first: the number of the first of these blocks in the model.
        """
        batch = show_prefix(batch, hidden)
        layers, relative = params["layers"], self.relative(params, batch)
        return run_blocks(
            self._graph("layers", adapters_in(layers)),
            layers,
            hidden,
            context_of(self.config, batch, hidden),
            rng,
            remat=self.remat,
            shared=None if relative is None else shared_of(self.config, relative, hidden),
            first=first if self.config.family.numbered else None,
            repeats=self.config.repeats,
        )

    def _encode(
        self, params: Params, batch: Batch, rng: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        if "prefix" in params and "first_token" in batch:
            batch = unpack(batch)
        hidden = self._hidden(params, batch, rng)
        pooled = self._pool(params, hidden, batch)
        if self.dense is not None:
            dense = nnx.merge(self._graph("dense"), params["dense"])
            pooled = ACTIVATION[self.dense.activation](dense(pooled))
        return hidden, pooled

    def _hidden(self, params: Params, batch: Batch, rng: jax.Array | None) -> jax.Array:
        embed_rng, layers_rng = (None, None) if rng is None else jax.random.split(rng)
        # If the first blocks are frozen, a batch may have their output.
        hidden = batch["hidden"] if "hidden" in batch else self.embed(params, batch, embed_rng)
        first = self.config.num_hidden_layers - count_blocks(params["layers"])
        hidden = self.run_layers(params, hidden, batch, layers_rng, first=first)
        hidden = drop_prefix(hidden, batch)
        if self.config.family.final_norm:
            hidden = nnx.merge(self._graph("final_norm"), params["final_norm"])(hidden)
        return hidden

    def _pool(self, params: Params, hidden: jax.Array, batch: Batch) -> jax.Array:
        if self.pooling != "pooler":
            return pool(self.pooling, hidden, batch)
        if self.config.family.decoder:
            return pool("last", hidden, batch)
        pooler = nnx.merge(self._graph("pooler"), params["pooler"])
        pooled = pooler(pool(self.config.classifier_pooling, hidden, batch))
        if self.config.family.block == "modernbert":
            return pooled
        return ACTIVATION[self.config.family.pooler_act](pooled)

    def _graph(self, name: str, adapted: tuple[str, ...] = ()) -> Any:
        sizes = (self.num_labels, self.projection, self.dense, self.feature_size)
        return graph_of(self.config, name, *sizes, adapted)

    @property
    def feature_size(self) -> int:
        """The number of features of a text: H, or D with a dense layer; of a pair, twice that."""
        return (self.dense.size if self.dense else self.config.hidden_size) * (1 + self.siamese)

    @property
    def tokenizer(self) -> Any:
        """The fast tokenizer of the directory, from transformers.

        Raises:
            InputError: the model has no directory, or no usable tokenizer is in it.
        """
        return files.tokenizer_for(self.source, self.config.vocab_size)
