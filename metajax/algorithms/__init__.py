"""Meta-learning algorithms, one family per file, what they are built from, and their registry."""

from metajax.algorithms.registry import ALGORITHMS, Entry

__all__ = ["ALGORITHMS", "Entry"]
