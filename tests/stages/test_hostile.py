"""What someone who means harm would give: no code runs, nothing is read or written elsewhere."""

import json
import pickle
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import tiny

from benchmarks.fuzz.readers import controls


@pytest.fixture
def model(material, tmp_path):
    return shutil.copytree(material.bert, tmp_path / "model")


@pytest.fixture
def refuses(refused, material):
    """A command that reads the model, in a directory in which nothing may change."""

    def run(message, model):
        refused(message, "evaluate", *("--model", model, "--tasks", material.intents))

    return run


@pytest.mark.parametrize("name", ["../secret.safetensors", "/dev/zero", "..", "a/../../b"])
def test_a_sharded_index_that_leads_out_of_the_model(refuses, model, name):
    shutil.move(model / "model.safetensors", model.parent / "secret.safetensors")
    with safetensors.safe_open(model.parent / "secret.safetensors", "numpy") as file:
        index = {"weight_map": dict.fromkeys(file.keys(), name)}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    refuses(r"index\.json: .*not a plain file name", model)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pickle_in_place_of_weights(refuses, model, name):
    pytest.importorskip("torch")
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(pickle.dumps(tiny.Harm()))
    refuses(f"{name}: truncated", model)


def _configure(model, name, **values):
    file = model / name
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | values))


def test_a_config_that_names_remote_code(refuses, model):
    (model / "evil.py").write_text(tiny.HARM)
    code = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    _configure(model, "config.json", model_type="evil", auto_map=code, trust_remote_code=True)
    refuses("model_type is 'evil'", model)


def test_a_tokenizer_that_names_remote_code(material, model, tmp_path, monkeypatch):
    """It is read as what its files say, and the code is left alone."""
    monkeypatch.chdir(tmp_path)
    (model / "evil.py").write_text(tiny.HARM)
    names = {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.E", None]}}
    _configure(model, "tokenizer_config.json", **names, trust_remote_code=True)
    before = tiny.tree_of(tmp_path)
    done = tiny.run("evaluate", "--model", model, "--tasks", material.intents, "--episodes", 2)
    assert done.status in (0, 2), done.err
    assert "Traceback" not in done.err
    assert tiny.tree_of(tmp_path) == before


def test_a_few_kilobytes_that_hold_gigabytes(refused, material, tmp_path):
    bomb = tmp_path / "bomb.parquet"
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int8()), ["w1 " * 20_000])
    label = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int8()), ["a"])
    pq.write_table(pa.table({"text": text, "label": label}), bomb, compression="zstd")
    assert bomb.stat().st_size < 100_000
    refused(
        "bomb.parquet: is not a sound Parquet file",
        *("evaluate", "--model", material.bert, "--tasks", bomb),
    )


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
    sizes = ("--ways", 4, "--queries", 2, "--episodes", 2, "--methods", "protonet")
    commands = [
        ("evaluate", *common, *sizes, "--output", "rows.json"),
        ("adapt", *common, "--workdir", "run"),
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
