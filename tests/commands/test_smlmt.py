"""Meta-training on hidden words next to labelled examples; docs/guides/ has them alone."""

import json

import pytest
import tiny

from tests.stage_commands import metatrain_command


@pytest.mark.slow
def test_hidden_words_and_labelled_examples_meta_train_together(material, tmp_path):
    hidden = f"smlmt:{tiny.write_passages(tmp_path / 't.txt')}"
    classes = tmp_path / "classes.txt"
    classes.write_text("topic0\ntopic1\ntopic2\n")
    command = metatrain_command(material, tmp_path / "run", steps=2)
    command.insert(command.index("--tasks") + 1, hidden)
    results = json.loads(tiny.succeed(*command, "--classes", classes).rpartition("written to")[0])
    assert 0 < results["after"]["accuracy"] <= 1
    assert [row["step"] for row in tiny.rows_of(tmp_path / "run")] == [0, 1, 2]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    files = {f"--tasks {hidden}", f"--tasks {material.intents}", f"--classes {classes}"}
    assert record["data"].keys() == files
