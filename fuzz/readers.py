"""The readers of files: for each its valid files and its share of the inputs."""

import contextlib
import functools
import io
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from fuzz import seeds
from metajax import data
from metajax.cli import main as cli
from metajax.cli.arguments import parse
from metajax.commands import predict
from metajax.config.groups import ModelSettings
from metajax.config.inner import InnerSettings
from metajax.config.settings import EvaluateSettings
from metajax.errors import InputError
from metajax.models import Transformer, files, from_pretrained, read_model
from metajax.reporting import data as report_data
from metajax.runs import classifier
from metajax.runs.eval_set import choose_protocol
from metajax.runs.few_shot import describe_few_shot, open_few_shot
from metajax.runs.metrics import MetricsLog
from metajax.runs.record import read_record
from metajax.runs.workdir import Run


class Reader(NamedTuple):
    """A reader of files.

    Attributes:
        share: share of the inputs, relative to other readers. Slow readers have less.
        seeds: valid input, made from the result of `seeds.build`.
        read: reads a directory. Its second argument is the result of `seeds.build`.
    """

    share: int
    seeds: Callable[[Path], Iterable[seeds.Files]]
    read: Callable[[Path, Path], Any]


def _tasks(spec: str, **settings: str) -> Callable[[Path, Path], Any]:
    """Read one task, possibly with other files of the directory."""

    def read(directory: Path, _: Path) -> None:
        named = {key: directory / name for key, name in settings.items()}
        kind, _, name = spec.rpartition(":")
        data.load_tasks([f"{kind}:{directory / name}" if kind else str(directory / name)], **named)

    return read


def _glue(directory: Path, _: Path) -> None:
    present = [path.name for path in directory.iterdir()]
    name = (present or ["MRPC"])[0]
    data.load_tasks([f"glue:{name}"], glue_dir=directory)


@functools.cache
def _encoder(root: Path) -> Transformer:
    return read_model(str(root / "bert"), "encoder")


def _draws(directory: Path, root: Path) -> None:
    settings = EvaluateSettings(
        model="bert", tasks=(str(directory / "tasks.jsonl"),), splits=str(directory / "splits")
    )
    tasks = data.load_tasks(settings.tasks)
    choose_protocol(settings, tasks).open(_encoder(root), 16)


def _config_file(name: str) -> Callable[[Path, Path], Any]:
    return lambda directory, _: parse(["pretrain", "--config", str(directory / name)])


def _tokenizer(directory: Path, _: Path) -> None:
    files.tokenizer.cache_clear()
    tokenizer = read_model(str(directory)).tokenizer
    data.tokenize(["w1 w2", "w3"], None, tokenizer, 16)
    data.tokenize(["w1 w2", "w3"], ["w4", "other"], tokenizer, 16)
    data.mask_rule(tokenizer)
    data.pack_blocks(["w1 w2", "w3"], tokenizer, 16)


def _command(*arguments: object) -> None:
    """Run a command and check that its output has no control characters."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main([str(argument) for argument in arguments])
    for line in (out.getvalue() + err.getvalue()).split("\n"):
        assert not controls(line), f"printed {line!r}"
    if status == 2:
        raise InputError(err.getvalue().removesuffix("\n"))
    assert status == 0, err.getvalue()


def controls(line: str) -> bool:
    """Return whether a line has control characters, several lines, or no text."""
    return any(c < " " or "\x7f" <= c < "\xa0" or c in "\u2028\u2029\u202e" for c in line) or any(
        "\ud800" <= c < "\ue000" for c in line
    )


def _records(directory: Path, _: Path) -> None:
    for run in report_data.read_runs([str(directory)]):
        run.series("loss")
        run.series("seconds")
        run.most("peak_memory_bytes")
    report_data.read_evaluation(directory / "rows.json")


def _lineage(directory: Path, _: Path) -> None:
    _command("lineage", "--model", directory)


def _report(directory: Path, _: Path) -> None:
    written = ("--evaluations", directory / "rows.json", "--output", directory / "page.html")
    _command("report", "--runs", directory, *written)


def _metrics(directory: Path, _: Path) -> None:
    record = read_record(directory)
    if record is not None:
        MetricsLog(Run(directory, record), 1, writes=False)


def _workdir(directory: Path, _: Path) -> None:
    describe_few_shot(str(directory), ModelSettings(model="run"), InnerSettings(), 3)


def _few_shot(directory: Path, root: Path) -> None:
    for file in (root / "meta").rglob("*"):  # Files that are not changed, mainly the weights.
        copy = directory / file.relative_to(root / "meta")
        if file.is_file() and not os.path.lexists(copy):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
    open_few_shot(str(directory), ModelSettings(model="run"), InnerSettings(), 3)


def _tensors(directory: Path, _: Path) -> None:
    for tensor in files.read_weights(directory).values():
        tensor.read()


def _checkpoint(directory: Path, _: Path) -> None:
    files.tokenizer.cache_clear()
    opened = classifier.open_classifier(str(directory), None)
    list(predict.label(opened, ["w1 w2"], None, 1))


READERS = {
    "csv": Reader(100, seeds.csv, _tasks("tasks.csv")),
    "tsv": Reader(100, seeds.tsv, _tasks("tasks.tsv")),
    "jsonl": Reader(120, seeds.jsonl, _tasks("tasks.jsonl")),
    "json": Reader(80, seeds.json_array, _tasks("tasks.json")),
    "parquet": Reader(100, seeds.parquet, _tasks("tasks.parquet")),
    "glue": Reader(80, seeds.glue, _glue),
    "smlmt": Reader(40, seeds.passages, _tasks("smlmt:text.txt")),
    "text": Reader(40, seeds.passages, lambda path, _: data.read_lines(path / "text.txt")),
    "predict": Reader(40, seeds.pairs, lambda path, _: predict.read_texts(str(path / "input.txt"))),
    "classes": Reader(40, seeds.classes, _tasks("tasks.jsonl", classes="classes.txt")),
    "splits": Reader(20, seeds.draws, _draws),
    "config": Reader(100, seeds.config, lambda path, _: read_model(str(path), "classification")),
    "yaml": Reader(60, seeds.yaml, _config_file("run.yaml")),
    "toml": Reader(60, seeds.toml, _config_file("run.toml")),
    "safetensors": Reader(100, seeds.weights, _tensors),
    "pytorch": Reader(40, seeds.pytorch, _tensors),
    "model": Reader(4, seeds.weights, lambda path, _: from_pretrained(str(path))),
    "tokenizer": Reader(8, seeds.tokenizers, _tokenizer),
    "records": Reader(40, seeds.records, _records),
    "lineage": Reader(20, seeds.descent, _lineage),
    "metrics": Reader(40, seeds.records, _metrics),
    "report": Reader(2, seeds.records, _report),
    "workdir": Reader(10, seeds.records, _workdir),
    "checkpoint": Reader(2, seeds.runs, _checkpoint),
    "few-shot": Reader(4, seeds.meta_trained, _few_shot),
}
