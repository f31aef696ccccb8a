"""What a terminal is told cannot command it, and is one line."""

import logging

import pytest

from metajax.errors import InputError, one_line, printable
from metajax.terminal import notes, refusal


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("\x9b31m\x07", "\\x9b31m\\x07"),
        ("a\nb\tc\0", "a\\nb\\tc\\x00"),
        ("\u202egnp.exe\u2066", "\\u202egnp.exe\\u2066"),
        ("\ud800\uffff\u2028", "\\ud800\\uffff\\u2028"),
        ("naïve\xa0日本 می‌روم 👩‍🔬", "naïve\xa0日本 می‌روم 👩‍🔬"),
    ],
)
def test_only_what_does_not_print_is_escaped(text, shown):
    assert printable(text) == shown


def test_a_refusal_is_a_printable_line():
    assert refusal(InputError("a\n b\x1b[2J\r\nc")) == "a b\\x1b[2J c"
    assert refusal(FileNotFoundError(2, "Gone", "a\x1bb")) == "a\\x1bb: gone: name another"
    assert refusal(OSError(28, "full", "file")) is None
    assert refusal(ValueError("ours")) is None


def test_a_long_line_keeps_both_ends():
    line = one_line("begin " + "x" * 10**6 + " end")
    assert len(line) < 1100
    assert line.startswith("begin x")
    assert line.endswith("x end")


def test_notes_are_printable_lines(capsys):
    with notes("info"):
        logging.getLogger("metajax").warning("%s: odd", "a\x1b[2J\nb")
    assert capsys.readouterr().err == "metajax: a\\x1b[2J b: odd\n"
