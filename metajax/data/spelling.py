"""What is one text or one label, however it is written."""

import re
import unicodedata

# They print nothing: soft hyphen, zero-width space, direction marks, word joiner, byte-order mark.
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u2060\ufeff]")
_JOINERS = "\u200c\u200d"  # Zero-width too; within a word they are spelling, and within emoji.


def normalise(text: str) -> str:
    """Returns a text in NFC, without invisible characters, its white space single spaces."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text))
    return " ".join(text.split()).strip(f" {_JOINERS}")


def alike(label: str) -> str:
    """Returns what labels that look alike have in common.

    Those that differ in case, in invisible characters, in a number's decimals that are zero, or in
    Unicode's variants of a character, such as full-width ones.
    """
    label = normalise(unicodedata.normalize("NFKC", label).casefold())
    label = "".join(c for c in label if unicodedata.category(c) != "Cf")
    return re.sub(r"^\+?(-?\d+)\.0*$", r"\1", label)
