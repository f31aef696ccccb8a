"""Tests here run commands, each on one device and with programs that compile quickly."""

from tests.stage_fixtures import quick  # noqa: F401
