"""`python -m metajax`."""

from metajax.cli.main import run

run()
