"""The tasks of the GLUE benchmark: label order, file layout, columns on the hub.

Wang et al. 2019, https://openreview.net/forum?id=rJ4km2R5t7. The files of the classic TSV layout
differ from one another. None of them uses quoting.
"""

from pathlib import Path
from typing import NamedTuple

from metajax.data.readers import Table, read_text, rows_table
from metajax.errors import InputError


class GlueTask(NamedTuple):
    """Layout of one GLUE task, in the classic files and in the hub's copy.

    Attributes:
        directory: its folder in the classic layout.
        labels: label names in their published order; empty for a regression.
        columns: columns of the text and of the second text (or None) in the files.
        label: the label column in the files.
        hub_columns: the same columns in the hub's copy, where the label column is "label".
        names: the columns' names if the files have no header.
        development: name of the development split, in the files and on the hub.
        drop_broken: whether to skip rows that lack a field instead of refusing the file.
    """

    directory: str
    labels: tuple[str, ...]
    columns: tuple[str, str | None]
    label: str = "label"
    hub_columns: tuple[str, str | None] = ("sentence1", "sentence2")
    names: tuple[str, ...] = ()
    development: tuple[str, str] = ("dev", "validation")
    drop_broken: bool = False


HUB_NAME = "nyu-mll/glue"
_ENTAILMENT = ("entailment", "not_entailment")
_SENTENCES = ("sentence1", "sentence2")
GLUE = {
    "cola": GlueTask(
        "CoLA",
        ("unacceptable", "acceptable"),
        ("sentence", None),
        hub_columns=("sentence", None),
        names=("source", "label", "mark", "sentence"),
    ),
    "mnli": GlueTask(
        "MNLI",
        ("entailment", "neutral", "contradiction"),
        _SENTENCES,
        label="gold_label",
        hub_columns=("premise", "hypothesis"),
        development=("dev_matched", "validation_matched"),
    ),
    "mrpc": GlueTask(
        "MRPC", ("not_equivalent", "equivalent"), ("#1 String", "#2 String"), label="Quality"
    ),
    "qnli": GlueTask(
        "QNLI", _ENTAILMENT, ("question", "sentence"), hub_columns=("question", "sentence")
    ),
    "qqp": GlueTask(
        "QQP",
        ("not_duplicate", "duplicate"),
        ("question1", "question2"),
        label="is_duplicate",
        hub_columns=("question1", "question2"),
        drop_broken=True,  # The published train.tsv has a few; it is usual to leave them out.
    ),
    "rte": GlueTask("RTE", _ENTAILMENT, _SENTENCES),
    "sst2": GlueTask(
        "SST-2", ("negative", "positive"), ("sentence", None), hub_columns=("sentence", None)
    ),
    "stsb": GlueTask("STS-B", (), _SENTENCES, label="score"),
    "wnli": GlueTask("WNLI", ("not_entailment", "entailment"), _SENTENCES),
}


def glue_name(name: str) -> str:
    """Return a GLUE task's key; ignore case, hyphens and underscores.

    Raises:
        InputError: GLUE has no task of this name.
    """
    key = _plain(name)
    if key not in GLUE:
        raise InputError(f"glue:{name}: unknown GLUE task; use one of {', '.join(GLUE)}")
    return key


def glue_path(key: str, glue_dir: str | Path, split: str) -> Path:
    """Return the path of one split in the classic layout.

    Raises:
        InputError: the directory or the task's folder in it is missing.
    """
    try:
        folders = sorted(entry for entry in Path(glue_dir).iterdir() if entry.is_dir())
    except OSError as error:
        raise InputError(f"{glue_dir}: cannot be read ({error.strerror}); check the path") from None
    for folder in folders:
        if _plain(folder.name) == key:
            name = GLUE[key].development[0] if split == "validation" else split
            return folder / f"{name}.tsv"
    raise InputError(
        f"{glue_dir}: has no folder {GLUE[key].directory}; give the directory that contains it"
    )


def read_glue(path: Path, task: GlueTask) -> Table:
    """Read a file of the classic layout.

    Raises:
        InputError: the file cannot be read, or a row has too many or too few fields.
    """
    names = list(task.names)
    rows: list[list[str]] = []
    lines: list[int] = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        row = line.removesuffix("\r").split("\t")
        if not names:
            names = row
        elif task.drop_broken and not (len(row) == len(names) and all(row)):
            continue
        elif len(row) == len(names):
            rows.append(row)
            lines.append(number)
        else:
            raise InputError(
                f"{path}:{number}: has {len(row)} fields instead of {len(names)}; "
                f"use the original {task.directory} file of GLUE"
            )
    return rows_table(path, names, rows, lines)


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
