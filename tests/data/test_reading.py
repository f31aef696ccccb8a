"""Values of JSON files."""

import sys

import pytest

from metajax.reading import is_number

LARGEST = int(sys.float_info.max)


@pytest.mark.parametrize(
    ("value", "finite", "any_float"),
    [
        (0, True, True),
        (-2.5, True, True),
        (LARGEST, True, True),
        (2 * LARGEST, False, False),  # No float holds it.
        (float("nan"), False, True),
        (float("-inf"), False, True),
        (True, False, False),
        ("1", False, False),
        (None, False, False),
    ],
)
def test_what_is_a_number(value, finite, any_float):
    assert is_number(value) is finite
    assert is_number(value, finite=False) is any_float
