"""Make tasks from plain text: which of N words is hidden (SMLMT; Bansal et al. 2020).

https://arxiv.org/abs/2009.08445, section 3: choose N words, hide each one in sentences that contain
it, and classify the sentences by the hidden word. Here a text becomes a labelled data set whose
classes are words. Episodes are sampled from it as from any other data set.
"""

import collections
import itertools
import logging
import re
from pathlib import Path

import numpy as np

from metajax.data.duplicates import find_duplicates
from metajax.data.readers import numbered_lines
from metajax.errors import InputError

_log = logging.getLogger("metajax")
MASK = "[MASK]"  # In a passage; a model reads the mask token of its own tokenizer.
# A word is a class if it has this many passages: enough for the usual shots and queries.
FEWEST = 20
_WORD = re.compile(r"[^\W\d_]{3,}")
_AROUND = 12  # Words kept on each side of the hidden word, so that most texts are not truncated.


def hidden_words(path: str | Path, *, keep_duplicates: bool = False) -> list[tuple[str, str]]:
    """Return passages of a text, each with one hidden word.

    Each line gives at most one passage, so that no line belongs to two classes. The hidden word is
    the least frequent one that occurs in enough lines. If the word is repeated in the passage, it
    is hidden everywhere.

    Args:
        path: plain text with one sentence or paragraph per line.
        keep_duplicates: whether to keep repeated passages, and passages that fit several words.

    Returns:
        (passage, word) pairs in the order of the lines. At least two words have 20 passages or
        more.

    Raises:
        InputError: the text cannot be read or is too short.
    """
    lines = [line for _, line in numbered_lines(path)]
    words = [[word.lower() for word in _WORD.findall(line)] for line in lines]
    lines_with = collections.Counter(word for each in words for word in set(each))
    rows = []
    for line, known in zip(lines, words):
        eligible = [word for word in known if lines_with[word] >= FEWEST]
        if eligible:
            word = min(eligible, key=lambda word: (lines_with[word], word))
            rows.append((_hide(line, word), word))
    if rows and not keep_duplicates:
        passages, hidden = zip(*rows)
        once = find_duplicates(passages, None, hidden).once
        if not once.all():
            _log.warning(
                "%s: %d of %d passages are repeated or fit several words, and are not used",
                *(path, np.sum(~once), len(once)),
            )
        rows = list(itertools.compress(rows, once))
    own = collections.Counter(word for _, word in rows)
    rows = [row for row in rows if own[row[1]] >= FEWEST]
    if len({word for _, word in rows}) < 2:
        raise InputError(
            f"{path}: has fewer than two words that can be hidden in {FEWEST} lines each; "
            "give more text, one sentence per line"
        )
    return rows


def _hide(line: str, word: str) -> str:
    """Return the passage around a word of a line, with the word masked."""

    def hide(match: re.Match[str]) -> str:
        return MASK if match.group().lower() == word else match.group()

    tokens = line.split()
    hidden = [_WORD.sub(hide, token) for token in tokens]
    at = next(n for n, pair in enumerate(zip(tokens, hidden)) if pair[0] != pair[1])
    return " ".join(hidden[max(0, at - _AROUND) : at + _AROUND + 1])
