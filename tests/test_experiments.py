"""Each experiment takes one step, so that none rots."""

import importlib
from pathlib import Path

import pytest

from experiments import sinusoid

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "experiments").glob("[!_]*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_docstring_says_what_to_expect(name):
    text = importlib.import_module(f"experiments.{name}").__doc__
    for heading in ("Claim:", "Paper:", "Command:", "Hardware and time:", "Expect:"):
        assert f"\n{heading} " in text


def test_sinusoid_takes_a_step(capsys, monkeypatch):
    monkeypatch.setattr(sinusoid, "PAPER", {1: 0.67})  # Untrained, more inner steps diverge.
    sinusoid.main(["--steps", "1", "--episodes", "100"])
    header, second, first, paper = capsys.readouterr().out.splitlines()
    assert header.split()[-1] == "training"
    assert second.startswith("second order")
    assert first.startswith("first order")
    assert paper.split() == ["the", "paper", "0.67"]
