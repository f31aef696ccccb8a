"""Faults to plant in the code. Each changes a number or breaks a guarantee; none crashes.

A list is a TOML file of tables `[[mutant]]`: `file`, the `old` text, which is in the file once, the
`new` text, and the `tests` of which at least one must fail.
"""

import tomllib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
LISTS = tuple(sorted(path.stem for path in Path(__file__).parent.glob("*.toml")))


class Mutant(NamedTuple):
    """One planted fault."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def planted(self, text: str) -> str:
        """Return the file's text with the fault."""
        found = text.count(self.old)
        if found != 1:
            raise ValueError(f"{self.file}: old text {found} times, not once: {self.old!r}")
        return text.replace(self.old, self.new)


def read(name: str) -> list[Mutant]:
    """Return the mutants of a list."""
    path = Path(__file__).parent / f"{name}.toml"
    tables = tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]
    return [Mutant(**table | {"tests": tuple(table["tests"])}) for table in tables]
