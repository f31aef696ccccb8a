"""`python -m metajax`."""

from metajax.cli import run

run()
