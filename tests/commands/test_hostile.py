"""Hostile input: no code runs, and nothing is read or written elsewhere.

More tests are in tests/models/test_bad_directories.py (model directories) and
tests/data/test_bad_files.py (data files).
"""

import json
import shutil

import tiny

from fuzz.readers import controls


def test_a_model_that_leads_elsewhere(refused, material, tmp_path):
    model = shutil.copytree(material.bert, tmp_path / "model")
    (model / "evil.py").write_text(tiny.HARM)
    shutil.move(model / "model.safetensors", tmp_path / "secret.safetensors")
    index = {"weight_map": {"x": "../secret.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    message = r"index\.json: .*not a plain file name"
    command = ("--model", model, "--tasks", material.intents)
    refused(message, "evaluate", *command)
    refused(message, "metatrain", *command, "--workdir", "run")
    refused(message, "predict", "--model", model, stdin=b"w1\n")


LABELS = ["a\x1b[2J\x1b]0;owned\x07", "b\nmetajax: error: no", "c\r\u202egpj", "<script>d</script>"]


def test_labels_that_command_a_terminal(material, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"text": f"w{i} w{4 * i + j}", "label": label}
        for i, label in enumerate(LABELS)
        for j in range(4)
    ]
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ("--model", material.bert, "--tasks", tasks)
    sizes = ("--ways", 4, "--queries", 2, "--episodes", 2, "--methods", "prototypes")
    commands = [
        ("evaluate", *common, *sizes, "--output", "rows.json"),
        ("adapt", *common, "--workdir", "run", "--inner-steps", 0),
        ("predict", "--model", "run"),
        ("lineage", "--model", "run"),
        ("report", "--runs", "run", "--evaluations", "rows.json", "--output", "page.html"),
    ]
    for command in commands:
        done = tiny.run(*command, stdin=b"w1 w2\n")
        assert done.status == 0, done.err
        for line in (done.out + done.err).split("\n"):
            assert not controls(line.replace("\t", " ")), repr(line)
            assert not line.startswith("metajax: error")
    assert "<script>d" not in (tmp_path / "page.html").read_text()
