"""Normalize texts and labels that are written differently but mean the same."""

import re
import unicodedata

# Not visible: soft hyphen, zero-width space, direction marks, word joiner, byte-order mark.
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u2060\ufeff]")
_JOINERS = "\u200c\u200d"  # Invisible too, but part of the spelling of words and emoji.


def normalize(text: str) -> str:
    """Return a text in NFC, without invisible characters, and with single spaces."""
    if text.isascii():
        return " ".join(text.split())
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text))
    return " ".join(text.split()).strip(f" {_JOINERS}")


def lookalike_key(label: str) -> str:
    """Return the same key for labels that look alike.

    They may differ in case, in invisible characters, in the zero decimals of a number, or in
    Unicode's variants of a character, for example full-width ones.
    """
    label = normalize(unicodedata.normalize("NFKC", label).casefold())
    label = "".join(c for c in label if unicodedata.category(c) != "Cf")
    return re.sub(r"^\+?(-?\d+)\.0*$", r"\1", label)
