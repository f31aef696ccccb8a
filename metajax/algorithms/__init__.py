"""Meta-learning algorithms, one family per file, their building blocks, and their registry."""

from metajax.algorithms.registry import ALGORITHMS, Entry

__all__ = ["ALGORITHMS", "Entry"]
