"""Options and table headers of the experiments without text."""

import argparse
from collections.abc import Iterable


def check_numbers(parser: argparse.ArgumentParser, seed: int, **counts: int) -> None:
    """End the program with one line if the seed or a count is not valid."""
    if not 0 <= seed < 2**32:
        parser.error(f"--seed {seed}: give a number from 0 to {2**32 - 1}")
    for name, count in counts.items():
        if count < 1:
            parser.error(f"--{name} {count}: give 1 or more")


def steps_header(steps: Iterable[int]) -> str:
    """Return a header with a column of 16 letters per number of steps."""
    return "".join(f"{f'{k} steps' if k != 1 else '1 step':>16}" for k in steps)
