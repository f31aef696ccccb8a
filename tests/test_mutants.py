"""The lists of planted faults fit the code; `make mutants` plants them."""

import ast
import sys
from collections import Counter

import pytest

from tests.mutants import LISTS, ROOT, __main__, read

MUTANTS = [mutant for name in LISTS for mutant in read(name)]


def test_each_mutant_applies():
    for mutant in MUTANTS:
        ast.parse(mutant.planted((ROOT / mutant.file).read_text()))


def test_the_tests_named_exist():
    for mutant in MUTANTS:
        for test in mutant.tests:
            path, *names = test.split("[")[0].split("::")
            assert all(f"def {name}(" in (ROOT / path).read_text() for name in names), test


def test_no_mutant_is_listed_twice():
    assert max(Counter((each.file, each.old, each.new) for each in MUTANTS).values()) == 1


def test_a_match_without_faults_is_refused(monkeypatch, capsys):
    """Without names of tests, pytest would run all."""
    monkeypatch.setattr(sys, "argv", ["mutants", "data", "--match", "no such text"])
    monkeypatch.setattr(__main__, "prepare", lambda: pytest.fail("tests would run"))
    with pytest.raises(SystemExit) as end:
        __main__.main()
    assert end.value.code == 2
    assert "no fault has this in its file or new text" in capsys.readouterr().err


@pytest.mark.parametrize("name", LISTS)
def test_every_list_is_of_the_package(name):
    assert all(mutant.file.startswith("metajax/") for mutant in read(name))
