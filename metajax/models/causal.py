"""The loss of a causal language model, without the logits of all tokens at once.

Sizes in array names: B rows, L tokens, T = B L, C tokens of a chunk, H hidden, V vocabulary.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from metajax.dtypes import at_least_float32
from metajax.errors import InputError
from metajax.models.contracts import Batch, Params
from metajax.models.model import Transformer
from metajax.models.reparametrization import suits_layout
from metajax.types import LossFn


def causal_lm_loss(model: Transformer, *, chunk_tokens: int = 512) -> LossFn:
    """Cross-entropy of each text's next tokens (Radford et al. 2018, equation 1), as a mean.

    Logits are computed for one chunk of tokens at a time, and again in the backward pass. At any
    time, memory holds `[chunk_tokens, V]` of them instead of `[B, L, V]`. Loss and derivatives of
    any order are those of the loss without chunks.

    Args:
        model: a model with a causal-LM head.
        chunk_tokens: the number of tokens of a chunk.

    Returns:
        `(params, batch, rng) -> (loss, aux)`. The batch is a batch of the model with `input_ids`.
        Padding (`attention_mask`) is not predicted, nor is the first token of a text; in a packed
        batch (`example_ids`), no token is predicted from another example. Optional keys of the
        batch: `loss_mask` `[B, L]`, the weights of the tokens to predict (0: not predicted), in
        their own positions; `targets` int `[B, L]`, the token to predict after each token instead
        of its successor (-1: none), to which `loss_mask` does not apply. The loss is `[]`. aux has
        `accuracy` `[]` and `count` `[]`, the sum of the weights. Without any, all are 0.

    Raises:
        InputError: the model has no causal-LM head, or chunk_tokens is below 1.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from metajax.models import Transformer, TransformerConfig, causal_lm_loss
        >>> config = TransformerConfig(9, 12, 1, 2, type_vocab_size=0, model_type="llama")
        >>> model = Transformer(config, head="causal_lm")
        >>> batch = {"input_ids": jnp.array([[1, 2, 3], [4, 5, 0]])}
        >>> batch["attention_mask"] = jnp.array([[1, 1, 1], [1, 1, 0]])
        >>> loss, aux = causal_lm_loss(model)(model.init(jax.random.key(0)), batch, None)
        >>> loss.shape, float(aux["count"])
        ((), 3.0)
    """
    if model.head != "causal_lm":
        raise InputError(
            f"the model's head is {model.head!r}, but this loss needs next-token logits; give a "
            'model with head="causal_lm"'
        )
    if chunk_tokens < 1:
        raise InputError(f"chunk_tokens is {chunk_tokens}; it has to be at least 1")

    def loss_fn(
        params: Params, batch: Batch, rng: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        hidden_BxLxH = model.hidden(params, batch, rng)
        targets_BxL, weights_BxL = next_tokens(batch)
        weights_BxL = weights_BxL.astype(at_least_float32(hidden_BxLxH.dtype))

        def sums(hidden_CxH: jax.Array, targets_C: jax.Array, weights_C: jax.Array) -> jax.Array:
            # Without the barrier, JAX computes what depends on targets only, `[C, V]` per chunk,
            # once for all steps of an inner loop and keeps it.
            hidden_CxH, targets_C, weights_C = jax.lax.optimization_barrier(
                (hidden_CxH, targets_C, weights_C)
            )
            logits_CxV = model.decode(params, hidden_CxH)
            losses_C = optax.softmax_cross_entropy_with_integer_labels(logits_CxV, targets_C)
            correct_C = logits_CxV.argmax(-1) == targets_C
            return jnp.stack([losses_C, correct_C.astype(losses_C.dtype)]) @ weights_C

        tokens = (hidden_BxLxH, targets_BxL, weights_BxL)
        total, correct = _sum_of_chunks(sums, tokens, chunk_tokens)
        count = weights_BxL.sum()
        least = jnp.where(count > 0, count, 1)
        return total / least, {"accuracy": correct / least, "count": count}

    return suits_layout(loss_fn, model)


def next_tokens(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Return what each token predicts, and the weight of the prediction.

    Args:
        batch: a batch of `causal_lm_loss`.

    Returns:
        The id of the token to predict int `[B, L]`, 0 where there is none, and its weight `[B, L]`.
    """
    if "targets" in batch:
        return jnp.maximum(batch["targets"], 0), batch["targets"] >= 0
    if "example_ids" in batch:
        ids_BxL = batch["example_ids"]
        predicted = (ids_BxL[:, 1:] == ids_BxL[:, :-1]) & (ids_BxL[:, 1:] >= 0)
    else:
        mask_BxL = batch["attention_mask"] > 0
        predicted = mask_BxL[:, 1:] & mask_BxL[:, :-1]
    weights = predicted * batch["loss_mask"][:, 1:] if "loss_mask" in batch else predicted
    # The last token of a row predicts nothing.
    last = ((0, 0), (0, 1))
    return jnp.pad(batch["input_ids"][:, 1:], last), jnp.pad(weights, last)


def _sum_of_chunks(
    sums: Callable[..., jax.Array], tokens: tuple[jax.Array, ...], size: int
) -> jax.Array:
    """Add up a function of some tokens over chunks of all tokens.

    Args:
        sums: of `size` tokens, arrays `[C, ...]`. Tokens whose arrays are zero have to add nothing.
        tokens: arrays `[B, L, ...]`.
        size: C.
    """
    count = tokens[0].shape[0] * tokens[0].shape[1]
    size = min(size, count)
    padding = -count % size

    def chunks(array: jax.Array) -> jax.Array:
        flat = array.reshape(count, *array.shape[2:])
        padded = jnp.pad(flat, ((0, padding), *((0, 0) for _ in flat.shape[1:])))
        return padded.reshape(-1, size, *flat.shape[1:])

    # A scan prevents CSE.
    part = jax.checkpoint(sums, prevent_cse=False)
    parts = tuple(map(chunks, tokens))
    like = jax.eval_shape(sums, *(array[0] for array in parts))
    zero = jnp.zeros(like.shape, like.dtype)
    return jax.lax.scan(lambda total, chunk: (total + part(*chunk), None), zero, parts)[0]
