"""Valid files for each reader, by name."""

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from fuzz.mutate import CANARY
from metajax.cli import main as cli
from metajax.models import Transformer, TransformerConfig, files, save_pretrained

Files = dict[str, bytes]

_WORDS = [f"w{number}" for number in range(40)]
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_ROWS = [(f"w{n} w{n + 1} w{n % 7}", f"topic{n % 3}") for n in range(12)]


def build(root: Path) -> None:
    """Create a model, its tokenizer in the other format, and a run."""
    config = TransformerConfig(
        vocab_size=45,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=32,
    )
    bert, rows = root / "bert", root / "rows.jsonl"
    model = Transformer(
        config, head="classification", num_labels=(3,), label_names=(("a", "b", "c"),)
    )
    save_pretrained(bert, model, model.init(jax.random.key(0)))
    (bert / "vocab.txt").write_text("\n".join(_SPECIAL + _WORDS) + "\n")
    (bert / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    files.tokenizer(str(bert)).save_pretrained(root / "tokenizer")
    (root / "outside").mkdir()
    (root / "outside" / "bait").write_bytes((bert / "model.safetensors").read_bytes())
    rows.write_bytes(_json_lines())
    what = ("--model", bert, "--tasks", rows, "--dev", rows, "--max-length", 16)
    _run("adapt", *what, "--inner-steps", 2, "--workdir", root / "run")


def _run(*arguments: object) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        assert cli.main([str(argument) for argument in arguments]) == 0


def _tree(directory: Path, *patterns: str) -> Files:
    """Read the files of a directory whose names match."""
    paths = [path for pattern in patterns for path in sorted(directory.glob(pattern))]
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths if path.is_file()}


def _json_lines() -> bytes:
    return "".join(json.dumps({"text": text, "label": n}) + "\n" for text, n in _ROWS).encode()


def _delimited(separator: str) -> bytes:
    lines = [separator.join(row) for row in [("text", "label"), *_ROWS]]
    return "\n".join([*lines, f'"quoted ""twice"""{separator}topic1', ""]).encode()


def csv(_: Path) -> Iterator[Files]:
    """Return CSV files."""
    yield {"tasks.csv": _delimited(",")}


def tsv(_: Path) -> Iterator[Files]:
    """Return TSV files."""
    yield {"tasks.tsv": _delimited("\t")}


def jsonl(_: Path) -> Iterator[Files]:
    """Return JSON-lines files."""
    yield {"tasks.jsonl": _json_lines()}


def json_array(_: Path) -> Iterator[Files]:
    """Return JSON files with an array of objects."""
    rows = [{"text": text, "label": n} for text, n in _ROWS]
    yield {"tasks.json": json.dumps(rows, indent=1).encode()}


def parquet(_: Path) -> Iterator[Files]:
    """Return Parquet files with several types of columns and several codecs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts, labels = zip(*_ROWS)
    count = len(texts)
    tables: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"text": texts, "label": labels}, {}),
        ({"text": texts, "label": [*range(count)]}, {"compression": "zstd"}),
        ({"text": texts, "text_pair": texts, "label": labels}, {"compression": "gzip"}),
        ({"text": texts, "label": pa.array(labels).dictionary_encode()}, {"version": "1.0"}),
        ({"text": texts, "label": labels, "more": [[1, 2]] * count, "half": [0.5] * count}, {}),
        ({"text": texts, "label": labels, "raw": [b"bytes"] * count, "no": [None] * count}, {}),
        ({"text": texts, "label": labels, "deep": [{"a": [{"b": 1}]}] * count}, {}),
    ]
    for columns, settings in tables:
        sink = io.BytesIO()
        pq.write_table(pa.table(columns), sink, **settings)
        yield {"tasks.parquet": sink.getvalue()}


def glue(_: Path) -> Iterator[Files]:
    """Return GLUE's classic layout, with four tasks that differ in their format."""
    yield {"CoLA/train.tsv": b"".join(b"gj04\t%d\t\tw%d w2.\n" % (n % 2, n) for n in range(9))}
    for name, header in (
        ("MRPC", b"Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"),
        ("QQP", b"is_duplicate\tid\tqid\tquestion1\tquestion2"),
        ("STS-B", b"score\tindex\tgenre\tsentence1\tsentence2"),
    ):
        rows = b"".join(b"%d\t1\t2\tw%d w1\tw3\n" % (n % 2, n) for n in range(9))
        yield {f"{name}/train.tsv": header + b"\n" + rows}


def passages(_: Path) -> Iterator[Files]:
    """Return plain text with enough lines for three hidden words."""
    lines = [f"some {('river', 'mountain', 'bridge')[n % 3]} was w{n} there" for n in range(75)]
    yield {"text.txt": "\n".join(lines).encode()}


def pairs(_: Path) -> Iterator[Files]:
    """Return texts for `predict`."""
    yield {"input.txt": b"w1 w2\nw3\n"}
    yield {"input.txt": b"w1 w2\tw3\nw4\tw5 w6\n"}


def classes(_: Path) -> Iterator[Files]:
    """Return a task and its labels to keep."""
    yield {"tasks.jsonl": _json_lines(), "classes.txt": b"topic0\ntopic2\n"}


def draws(_: Path) -> Iterator[Files]:
    """Return a task and two draws of its support set."""
    six = b"".join(_json_lines().splitlines(keepends=True)[:6])
    yield {
        "tasks.jsonl": _json_lines(),
        "splits/1.tsv": b"text\tlabel\nw1 w2\ttopic0\nw2\ttopic1\nw3\ttopic2\n",
        "splits/2.jsonl": six,
    }


_SETTINGS: dict[str, Any] = {
    **{"model": "bert", "workdir": "run", "text": ["a.txt", "b.txt"], "steps": 300},
    **{"learning_rate": 5e-5, "remat": True, "dtype": "float32", "clip-norm": 1.0},
}


def yaml(_: Path) -> Iterator[Files]:
    """Settings of pretrain."""
    lines = (f"{name}: {json.dumps(value)}\n" for name, value in _SETTINGS.items())
    yield {"run.yaml": "".join(lines).encode()}


def toml(_: Path) -> Iterator[Files]:
    """Settings of pretrain."""
    lines = (f"{name} = {json.dumps(value)}\n" for name, value in _SETTINGS.items())
    yield {"run.toml": "".join(lines).encode()}


def config(root: Path) -> Iterator[Files]:
    """Return a config.json, one with remote code, and the pooling of sentence-transformers."""
    content = json.loads((root / "bert" / "config.json").read_text())
    pooling = json.dumps({"pooling_mode_mean_tokens": True, "word_embedding_dimension": 8})
    notes = {"pooling": "mean", "feature_norm": 3.0, "num_labels": [2], "label_names": [["a", "b"]]}
    for more in ({"auto_map": {"AutoModel": f"{CANARY}.Model"}}, {"metajax": notes}):
        yield {
            "config.json": json.dumps(content | more).encode(),
            "1_Pooling/config.json": pooling.encode(),
        }


def weights(root: Path) -> Iterator[Files]:
    """Return a model in one file, and in a shard with an index."""
    files = _tree(root / "bert", "config.json", "model.safetensors")
    yield files
    shard = "model-00001-of-00001.safetensors"
    index = {"metadata": {"total_size": 9}, "weight_map": {"pooler.dense.bias": shard}}
    yield {
        "config.json": files["config.json"],
        shard: files["model.safetensors"],
        "model.safetensors.index.json": json.dumps(index).encode(),
    }


def pytorch(root: Path) -> Iterator[Files]:
    """Return a model as PyTorch saves it, in the new and the old format."""
    import torch

    tensors = files.read_weights(root / "bert")
    state = {name: torch.from_numpy(value.read()) for name, value in tensors.items()}
    for zipped in (True, False):
        sink = io.BytesIO()
        torch.save(state, sink, _use_new_zipfile_serialization=zipped)
        yield _tree(root / "bert", "config.json") | {"pytorch_model.bin": sink.getvalue()}


def tokenizers(root: Path) -> Iterator[Files]:
    """Return a tokenizer as a vocabulary and as tokenizer.json."""
    model = _tree(root / "bert", "config.json")
    yield model | _tree(root / "bert", "vocab.txt", "tokenizer_config.json")
    yield model | _tree(root / "tokenizer", "*.json", "vocab.txt")


def descent(root: Path) -> Iterator[Files]:
    """Return the record of a run that started from another run."""
    run = json.loads((root / "run" / "run.json").read_text())
    parent = {"path": str(root / "run"), "step": 2, "record": run}
    yield {"run.json": json.dumps(run | {"parent": parent}).encode()}


def records(root: Path) -> Iterator[Files]:
    """Return the files of a run without its checkpoints, and an evaluation."""
    row: dict[str, Any] = {"tasks": "t", "protocol": "p", "method": "knn", "inner_steps": 0}
    row |= {"ways": 3, "shots": 1, "queries": 5, "episodes": 2, "accuracy": 0.5, "ci95": 0.1}
    row |= {"behind": 0.0, "behind_ci95": 0.0, "seconds": 1.0, "accuracies": [0.4, 0.6]}
    row |= {"curve": [0.4, 0.5], "curve_ci95": [0.1, 0.1]}
    yield _tree(root / "run", "run.json", "metrics.jsonl", "results.json", "model/*") | {
        "rows.json": json.dumps([row, row | {"method": "maml"}]).encode()
    }


def runs(root: Path) -> Iterator[Files]:
    """Return a run with its checkpoint."""
    yield _tree(root / "run", "run.json", "results.json", "model/*", "checkpoints/**/*")


def meta_trained(root: Path) -> Iterator[Files]:
    """Return the records of a meta-trained run: run.json, and the one in its checkpoint."""
    small = ("--ways", 3, "--queries", 3, "--inner-steps", 1, "--steps", 1, "--meta-batch-size", 1)
    what = ("--model", root / "bert", "--tasks", root / "rows.jsonl", "--max-length", 16)
    command = ("metatrain", *what, *small, "--workdir", root / "meta")
    # In another process, because a forked process does not have the threads of its parent.
    python = [sys.executable, "-m", "metajax", *map(str, command)]
    subprocess.run(python, check=True, capture_output=True)
    yield _tree(root / "meta", "run.json", "model/config.json", "checkpoints/*/_*METADATA")
