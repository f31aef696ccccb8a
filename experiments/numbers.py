"""What the experiments without text share: the numbers they take, and the head of their tables."""

import argparse
from collections.abc import Iterable


def check_numbers(parser: argparse.ArgumentParser, seed: int, **counts: int) -> None:
    """Ends the program with one line where the seed, or a count of an option, cannot be."""
    if not 0 <= seed < 2**32:
        parser.error(f"--seed {seed}: give a number from 0 to {2**32 - 1}")
    for name, count in counts.items():
        if count < 1:
            parser.error(f"--{name} {count}: give 1 or more")


def steps_header(steps: Iterable[int]) -> str:
    """A column of 16 letters for each number of steps."""
    return "".join(f"{f'{k} steps' if k != 1 else '1 step':>16}" for k in steps)
