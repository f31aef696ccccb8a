"""A tiny model, tokenizer, text and tasks, and functions that run commands."""

import contextlib
import dataclasses
import io
import json
import logging
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest
from tokenizers import ByteLevelBPETokenizer

from metajax.cli.main import main
from metajax.data import TokenizedTask, supervised_eval_batches
from metajax.models import Transformer, TransformerConfig, save_pretrained

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"w{i}" for i in range(90)]
CONFIG = TransformerConfig(
    vocab_size=len(SPECIAL) + len(WORDS),
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=32,
)


HARM = "open('harm', 'w')"


class Harm:
    """If unpickled, it writes a file in the current directory."""

    def __reduce__(self):
        return exec, (HARM,)


def write_model(directory: Path, head="masked_lm", seed=7, **changes) -> Path:
    """A random BERT in Hugging Face format, with a tokenizer."""
    model = Transformer(config=CONFIG, head=head, **changes)
    save_pretrained(directory, model, model.init(jax.random.key(seed)))
    (directory / "vocab.txt").write_text("\n".join(SPECIAL + WORDS) + "\n")
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    return directory


def byte_level_pairs(special: list[str]) -> ByteLevelBPETokenizer:
    """A tokenizer of the words."""
    pairs = ByteLevelBPETokenizer()
    pairs.train_from_iterator(
        [" ".join(WORDS)] * 4, vocab_size=400, special_tokens=special, show_progress=False
    )
    return pairs


def write_gpt2(directory: Path) -> Path:
    """A random GPT-2 in Hugging Face format, with byte-level pairs."""
    pairs = byte_level_pairs(["<|endoftext|>"])
    config = dataclasses.replace(
        CONFIG,
        model_type="gpt2",
        vocab_size=pairs.get_vocab_size(),
        type_vocab_size=0,
        hidden_act="gelu_new",
        classifier_dropout=0.0,
    )
    model = Transformer(config)
    save_pretrained(directory, model, model.init(jax.random.key(7)))
    pairs.save_model(str(directory))
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    return directory


def examples(classes: int, each: int, seed=0, first=0) -> list[tuple[str, str]]:
    """(text, label) pairs; each class has its most frequent words."""
    draw = random.Random(seed)
    rows = []
    for number in range(first, first + classes):
        own = WORDS[6 * number : 6 * number + 6]
        for _ in range(each):
            words = draw.choices(own, k=4) + draw.choices(WORDS, k=2)
            rows.append((" ".join(words), f"topic{number}"))
    draw.shuffle(rows)
    return rows


def write_rows(path: Path, rows) -> Path:
    """Labelled text as JSON lines, CSV or TSV."""
    if path.suffix == ".jsonl":
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    else:
        separator = {".csv": ",", ".tsv": "\t"}[path.suffix]
        lines = [separator.join(row) for row in [("text", "label"), *rows]]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_glue(directory: Path) -> Path:
    """MRPC, two classes of pairs, in the classic layout."""
    (directory / "MRPC").mkdir(parents=True)
    for split, count in (("train", 24), ("dev", 10)):
        rows = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
        for i, (text, _) in enumerate(examples(1, count, seed=count)):
            rows.append(f"{i % 2}\t{i}\t{i}\t{text}\t{text if i % 2 else 'w80 w81'}")
        (directory / "MRPC" / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    return directory


def write_text(path: Path, lines=60, seed=3) -> Path:
    """Plain text."""
    draw = random.Random(seed)
    path.write_text("".join(" ".join(draw.choices(WORDS, k=10)) + "\n" for _ in range(lines)))
    return path


def write_passages(path: Path, seed=3) -> Path:
    """Plain text with three words that can be hidden: each is in 20 lines."""
    draw = random.Random(seed)
    lines = [[*draw.choices(WORDS, k=9), ("cat", "dog", "horse")[n % 3]] for n in range(60)]
    path.write_text("".join(" ".join(words) + "\n" for words in lines))
    return path


def batch_of(task: TokenizedTask) -> dict[str, Any]:
    """All examples of a data set as one batch."""
    return next(iter(supervised_eval_batches(task, len(task.labels))))


class Finished(NamedTuple):
    """The result of a command."""

    status: int
    out: str
    err: str


def run(*arguments, stdin=b"") -> Finished:
    """Run a command in this process, with its log on standard error."""
    out, err = io.StringIO(), io.StringIO()
    levels = [(logger, logger.level) for logger in map(logging.getLogger, (None, "metajax"))]
    old_stdin, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(stdin))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main([str(argument) for argument in arguments])
    finally:
        sys.stdin = old_stdin
        for logger, level in levels:
            logger.setLevel(level)
    return Finished(status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def one_device() -> Iterator[None]:
    """Use one device in a fixture that several tests share."""
    first = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: first)
        patch.setattr(jax, "local_device_count", lambda: 1)
        yield


def succeed(*arguments, **settings) -> str:
    """Run a command that has to succeed, and return its standard output."""
    done = run(*arguments, **settings)
    assert done.status == 0, done.err
    return done.out


def start(*arguments, cache: Path, **environment) -> subprocess.Popen:
    """Start a command in another process."""
    own = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "XDG_CACHE_HOME": str(cache),
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "metajax", *map(str, arguments)],
        env=os.environ | own | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def finish(process: subprocess.Popen) -> Finished:
    """Wait for a process."""
    out, err = process.communicate(timeout=300)
    return Finished(process.returncode, out, err)


def rows_of(workdir: Path) -> list[dict]:
    """The metrics of a run."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def training_state(workdir: Path):
    """Restore the newest checkpoint of a run, with its step."""
    with ocp.training.Checkpointer(workdir.absolute() / "checkpoints") as orbax:
        return load_checkpoint(orbax, orbax.latest.step)


def load_checkpoint(orbax: ocp.training.Checkpointer, step: int):
    """Restore both items of a checkpoint on the first device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        orbax.checkpointables_metadata(step).metadata,
    )
    return orbax.load_checkpointables(step, abstract)


def tree_of(directory: Path) -> set[str]:
    """Return all files and directories below a directory."""
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def assert_same_bits(left, right) -> None:
    """Check that two trees are equal, bit for bit."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right)):
        assert one.dtype == other.dtype
        if jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
