"""What a terminal is told cannot command it, and is one line."""

import errno
import logging

import pytest

from metajax.cli.logging import input_error_line, log_to_stderr
from metajax.errors import InputError, one_line, printable, reason_of


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


def test_an_input_error_is_a_printable_line():
    assert input_error_line(InputError("a\n b\x1b[2J\r\nc")) == "a b\\x1b[2J c"
    assert (
        input_error_line(FileNotFoundError(2, "Gone", "a\x1bb"))
        == "a\\x1bb: gone; give another path"
    )
    assert input_error_line(OSError(28, "full", "file")) is None
    assert input_error_line(ValueError("ours")) is None


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.EISDIR])
def test_a_path_that_cannot_be_used_is_the_inputs_fault(number):
    assert input_error_line(OSError(number, "Not So", "here")) == "here: not so; give another path"
    assert input_error_line(OSError(number, "Not So")) is None  # Of no path: some other fault.


def test_a_long_line_keeps_both_ends():
    line = one_line("begin " + "x" * 10**6 + " end")
    assert line == "begin " + "x" * 494 + " ... " + "x" * 496 + " end"
    assert one_line("y" * 1000) == "y" * 1000
    assert len(one_line("y" * 1001)) == 1005


def test_a_reason_is_the_first_line_cut_short():
    assert reason_of(ValueError("\n  first\x1b \nsecond")) == "first\\x1b "
    assert reason_of(ValueError("z" * 201)) == "z" * 200
    assert reason_of(KeyError()) == "KeyError"
    assert reason_of(TimeoutError(" \n ")) == "TimeoutError"


def test_json_has_escapes_of_its_own():
    assert printable("a\x1b\x7f日", as_json=True) == "a\\u001b\\u007f日"


def test_records_are_printable_lines(capsys):
    with log_to_stderr("info"):
        logging.getLogger("metajax").warning("%s: odd", "a\x1b[2J\nb")
    assert capsys.readouterr().err == "metajax: a\\x1b[2J b: odd\n"


SAID = ("debug", "info", "warning", "error")


@pytest.mark.parametrize("level", SAID)
def test_records_below_the_level_are_left_out(capsys, level):
    log = logging.getLogger("metajax")
    with log_to_stderr(level):
        for name in SAID:
            getattr(log, name)("at %s", name)
        assert logging.getLogger("metajax.progress").getEffectiveLevel() == getattr(
            logging, level.upper()
        )
    lines = capsys.readouterr().err.splitlines()
    wanted = [name for name in SAID[SAID.index(level) :] if name != "debug"]
    assert lines == [f"metajax: at {name}" for name in wanted]


@pytest.mark.parametrize("debug", [False, True])
def test_other_libraries_are_shown_at_debug_only(capsys, debug):
    """Existing handlers get errors; afterwards everything is as before."""
    root, orbax = logging.getLogger(), logging.getLogger("absl")
    before = list(root.handlers)
    with log_to_stderr("debug" if debug else "info"):
        assert orbax.level == (logging.INFO if debug else logging.CRITICAL)
        assert root.level == (logging.INFO if debug else logging.ERROR)
        logging.getLogger("other").info("told")
    assert capsys.readouterr().err == ("told\n" if debug else "")
    assert root.handlers == before
    assert logging.getLogger("metajax").propagate
    assert not logging.getLogger("metajax").handlers
    assert logging.getLogger("metajax.progress").level == logging.NOTSET


def test_records_wait_until_a_command_begins(capsys):
    log = logging.getLogger("metajax")
    with log_to_stderr("warning"):
        log.warning("early")
        assert not capsys.readouterr().err
        log.info("begins")
        assert capsys.readouterr().err == "metajax: early\n"


def test_bad_input_gets_one_line(capsys):
    """Earlier records are dropped."""

    def read():
        logging.getLogger("metajax").warning("early")
        raise InputError("no")

    with pytest.raises(InputError), log_to_stderr("info"):
        read()
    assert not capsys.readouterr().err
