"""Meta-learning algorithms, one family per file, and what they are built from."""
