"""The registry has every algorithm, and the documentation and the contract tests have its rows."""

from pathlib import Path

import metajax
from metajax.algorithms import ALGORITHMS
from tests.algorithms.test_algorithms import TABLE

PAGE = Path(__file__).parents[2] / "docs/guides/which-algorithm.md"
# Not an inner loop, but ordinary training under the same interface.
OUTSIDE = {"supervised"}


def test_every_algorithm_of_the_library_is_in_it():
    public = {
        name
        for module, names in metajax._MODULES.items()
        if module.startswith("algorithms.")
        for name in names
    }
    assert {entry.constructor for entry in ALGORITHMS.values()} == public - OUTSIDE


def test_the_contract_tests_have_a_row_of_each():
    assert ALGORITHMS.keys() <= TABLE.keys()


def test_the_documentation_has_its_table():
    lines = PAGE.read_text().splitlines()
    for name, entry in ALGORITHMS.items():
        flags = " ".join(f"`--{setting.replace('_', '-')}`" for setting in entry.settings)
        row = f"| `{name}` | `metajax.{entry.constructor}` | {entry.use} | {flags or 'none'} |"
        assert row in lines
