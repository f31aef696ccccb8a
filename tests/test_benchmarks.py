"""The benchmarks' scripts run, at a tiny size."""

import json
import sys

import pytest

from benchmarks import memory


def test_memory(monkeypatch, capsys, tmp_path):
    sizes = ["--support", "4", "--query", "8", "--length", "16"]
    engines = ["--engine", "first-order", "--steps", "1", "2"]
    output = tmp_path / "memory.json"
    arguments = ["memory", "--model", "tiny", *engines, *sizes, "--output", str(output)]
    monkeypatch.setattr(sys, "argv", arguments)
    memory.main()
    rows = json.loads(output.read_text())["rows"]
    assert [row["steps"] for row in rows] == [1, 2]
    assert rows[0]["total"] == sum(rows[0][k] for k in ("arguments", "results", "temporary"))
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_help_is_the_docstring(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["memory", "--help"])
    with pytest.raises(SystemExit):
        memory.main()
    assert "python -m benchmarks.memory" in capsys.readouterr().out
