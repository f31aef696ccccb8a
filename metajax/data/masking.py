"""Masked language modelling: choose and hide tokens, at random in each step."""

import math
from typing import Any, NamedTuple, TypeVar

import numpy as np

from metajax.data.documents import Documents
from metajax.data.seeding import generator, shuffled_rows
from metajax.data.text import Blocks
from metajax.errors import InputError

_Blocks = TypeVar("_Blocks", Blocks, Documents)


class MaskRule(NamedTuple):
    """How tokens are hidden (Devlin et al. 2019, https://arxiv.org/abs/1810.04805).

    Attributes:
        mask_id: the mask token.
        replacements: int32 [R]; tokens to choose random replacements from.
        rate: the share of maskable tokens to choose.
        whole_word: whether to choose whole words instead of tokens.

    Examples:
        >>> import numpy as np
        >>> from metajax.data import MaskRule
        >>> rule = MaskRule(mask_id=4, replacements=np.arange(5, 100, dtype=np.int32))
        >>> rule.rate, rule.whole_word
        (0.15, False)
    """

    mask_id: int
    replacements: np.ndarray
    rate: float = 0.15
    whole_word: bool = False


def mask_rule(tokenizer: Any, *, rate: float = 0.15, whole_word: bool = False) -> MaskRule:
    """Return the mask rule of a tokenizer. Random replacements are never special tokens.

    Args:
        tokenizer: the model's tokenizer, from transformers.
        rate: the share of maskable tokens to choose.
        whole_word: whether to choose whole words instead of tokens.

    Raises:
        InputError: the tokenizer has no mask token, or rate is not between 0 and 1.

    Examples:
        >>> from transformers import BertTokenizer
        >>> from metajax.data import mask_rule
        >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "film"]
        >>> tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
        >>> rule = mask_rule(tokenizer)
        >>> rule.mask_id, rule.replacements.tolist()
        (4, [5, 6, 7])
    """
    if tokenizer.mask_token_id is None:
        raise InputError("the tokenizer has no mask token; give a masked language model")
    if not 0 < rate < 1:
        raise InputError(f"the mask rate {rate} is not between 0 and 1; give a share such as 0.15")
    ordinary = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
    return MaskRule(tokenizer.mask_token_id, ordinary.astype(np.int32), rate, whole_word)


def mask_tokens(blocks: Blocks, rule: MaskRule, seed: int, step: int) -> dict[str, np.ndarray]:
    """Hide tokens in B blocks of length L, as a function of (seed, step).

    In each row a share `rate` of the maskable tokens is chosen (rounded, at least one token). 80%
    of the chosen tokens become the mask token, 10% a random token, and 10% stay. With whole words,
    words are chosen in random order as long as they fit into this number of tokens.

    Args:
        blocks: the blocks.
        rule: the rule from `mask_rule`.
        seed: the run's seed.
        step: which step.

    Returns:
        input_ids, attention_mask, token_type_ids int32 [B, L]; positions and targets int32 [B, M]
        with M = ceil(rate * L), in ascending order. Unused targets are -1.

    Examples:
        >>> import numpy as np
        >>> from metajax.data import Blocks, MaskRule, mask_tokens
        >>> ids, ones = np.arange(24, dtype=np.int32).reshape(3, 8), np.ones((3, 8), np.int32)
        >>> blocks = Blocks(ids, ones, word_start=ones > 0, maskable=ones > 0)
        >>> rule = MaskRule(mask_id=99, replacements=np.arange(24), rate=0.25)
        >>> batch = mask_tokens(blocks, rule, seed=0, step=0)
        >>> hidden = np.take_along_axis(ids, batch["positions"], 1)
        >>> batch["targets"].shape, bool((batch["targets"] == hidden).all())
        ((3, 2), True)
    """
    B, L = blocks.input_ids.shape
    M = math.ceil(rule.rate * L)
    rng = generator(seed, "mask", step)
    count = np.clip(np.rint(rule.rate * blocks.maskable.sum(1)), 1, M).astype(np.int64)
    choose = _choose_words if rule.whole_word else _choose_tokens
    chosen = choose(blocks, rng.random((B, L)), count, M)

    positions = np.argsort(~chosen, axis=1, kind="stable")[:, :M]
    valid = np.arange(M) < chosen.sum(1)[:, None]
    positions = np.where(valid, positions, 0).astype(np.int32)
    originals = np.take_along_axis(blocks.input_ids, positions, 1)
    fate = rng.random((B, M))
    random_ids = rule.replacements[rng.integers(len(rule.replacements), size=(B, M))]
    hidden = np.where(fate < 0.8, rule.mask_id, np.where(fate < 0.9, random_ids, originals))
    input_ids = blocks.input_ids.copy()
    input_ids[chosen] = hidden[valid]  # both in ascending order of row and position
    return {
        "input_ids": input_ids,
        "attention_mask": blocks.attention_mask,
        "token_type_ids": np.zeros((B, L), np.int32),
        "positions": positions,
        "targets": np.where(valid, originals, -1).astype(np.int32),
    }


def pretraining_batch(
    blocks: Blocks, rule: MaskRule, seed: int, step: int, batch_size: int
) -> dict[str, np.ndarray]:
    """Return the masked batch of one step. Each epoch has every block once, with new masks.

    `shuffled_rows` defines the order.

    Args:
        blocks: N blocks of length L.
        rule: the rule from `mask_rule`.
        seed: the run's seed.
        step: which step.
        batch_size: B.

    Returns:
        The result of `mask_tokens` for B blocks: leaves [B, L] and [B, M].

    Examples:
        >>> import numpy as np
        >>> from metajax.data import Blocks, MaskRule, pretraining_batch
        >>> ids, ones = np.arange(24, dtype=np.int32).reshape(3, 8), np.ones((3, 8), np.int32)
        >>> blocks = Blocks(ids, ones, word_start=ones > 0, maskable=ones > 0)
        >>> rule = MaskRule(mask_id=99, replacements=np.arange(24), rate=0.25)
        >>> batch = pretraining_batch(blocks, rule, seed=0, step=0, batch_size=2)
        >>> batch["input_ids"].shape, batch["targets"].shape
        ((2, 8), (2, 2))
    """
    rows = shuffled_rows(seed, step, batch_size, len(blocks.input_ids))
    return mask_tokens(take(blocks, rows), rule, seed, step)


def held_out(blocks: _Blocks, seed: int, share: float = 0.05) -> tuple[_Blocks, _Blocks]:
    """Split blocks into a training set and an evaluation set, with at least one block each.

    Args:
        blocks: N blocks of length L, of `pack_blocks` or `pack_documents`.
        seed: the run's seed.
        share: share of blocks to hold out.

    Returns:
        Training blocks [N - M, L] and evaluation blocks [M, L], in their order. M is N * share,
        rounded.

    Raises:
        InputError: there is only one block.

    Examples:
        >>> import numpy as np
        >>> from metajax.data import Blocks, held_out
        >>> ids, ones = np.arange(24, dtype=np.int32).reshape(3, 8), np.ones((3, 8), np.int32)
        >>> blocks = Blocks(ids, ones, word_start=ones > 0, maskable=ones > 0)
        >>> train, evaluation = held_out(blocks, seed=0)
        >>> train.input_ids.shape, evaluation.input_ids.shape
        ((2, 8), (1, 8))
    """
    size = len(blocks.input_ids)
    if size < 2:
        raise InputError(
            f"the text fills only one block of {blocks.input_ids.shape[1]} tokens, so none is left "
            "for evaluation; give more text or a shorter length"
        )
    order = generator(seed, "held out").permutation(size)
    count = min(max(round(share * size), 1), size - 1)
    return take(blocks, np.sort(order[count:])), take(blocks, np.sort(order[:count]))


def take(blocks: _Blocks, rows: np.ndarray | slice) -> _Blocks:
    """Return some of N blocks.

    Args:
        blocks: N blocks, of `pack_blocks` or `pack_documents`.
        rows: rows to return: int [M], or a slice.

    Raises:
        IndexError: a row is N or more.

    Examples:
        >>> import numpy as np
        >>> from metajax.data import Blocks, take
        >>> ids, ones = np.arange(24, dtype=np.int32).reshape(3, 8), np.ones((3, 8), np.int32)
        >>> blocks = Blocks(ids, ones, word_start=ones > 0, maskable=ones > 0)
        >>> take(blocks, np.array([2, 0])).input_ids[:, 0].tolist()
        [16, 0]
    """
    return type(blocks)(*(array[rows] for array in blocks))


def _choose_tokens(blocks: Blocks, scores: np.ndarray, count: np.ndarray, _: int) -> np.ndarray:
    """Return bool [B, L]: in each row, the `count` maskable tokens with the smallest scores."""
    order = np.argsort(np.where(blocks.maskable, scores, 2.0), axis=1, kind="stable")
    chosen = np.zeros_like(blocks.maskable)
    np.put_along_axis(chosen, order, np.arange(order.shape[1]) < count[:, None], axis=1)
    return chosen & blocks.maskable


def _choose_words(blocks: Blocks, scores: np.ndarray, count: np.ndarray, most: int) -> np.ndarray:
    """Return bool [B, L]: in each row, whole words in order of score that fit into `count`.

    If even the shortest word does not fit, it is chosen, unless it has more than `most` tokens.
    """
    B, L = scores.shape
    rows = np.arange(B)
    words = np.maximum(np.cumsum(blocks.word_start, axis=1) - 1, 0)
    sizes = np.zeros((B, L), np.int64)
    np.add.at(sizes, (rows[:, None], words), blocks.maskable)
    shortest = np.where(sizes > 0, sizes, L).min(axis=1)
    left = np.minimum(np.maximum(count, shortest), most)
    order = np.argsort(np.where(sizes > 0, scores, 2.0), axis=1, kind="stable")
    taken = np.zeros((B, L), bool)
    for column in order.T:
        size = sizes[rows, column]
        fits = size <= left
        taken[rows, column] = fits
        left -= size * fits
        if not left.any():
            break
    return np.take_along_axis(taken, words, axis=1) & blocks.maskable
