"""The GLUE benchmark's tasks: published label order, file layout, hub columns.

Wang et al. 2019, https://openreview.net/forum?id=rJ4km2R5t7. The files of the classic
TSV layout differ in their columns; none uses quoting.
"""

from pathlib import Path
from typing import NamedTuple

from metajax.data.readers import Table, read_text, rows_table
from metajax.errors import InputError


class GlueTask(NamedTuple):
    """The layout of one GLUE task in the classic files and in the hub's copy.

    Attributes:
        directory: Its folder in the classic layout.
        labels: Label names in published order; empty for a regression.
        columns: Text and pair (or None) columns in the files.
        label: The label column in the files.
        hub_columns: Text and pair columns in the hub's copy, whose labels are "label".
        names: The columns' names where the files have no header.
        development: The name of the development split, file and hub.
        drop_broken: Leave out rows that lack a field instead of refusing the file.
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
    """Returns a GLUE task's key; case, hyphens and underscores do not matter.

    Raises:
        InputError: If GLUE has no such task.
    """
    key = _plain(name)
    if key not in GLUE:
        raise InputError(f"glue:{name}: no such task; one of {', '.join(GLUE)}")
    return key


def glue_path(key: str, glue_dir: str | Path, split: str) -> Path:
    """Returns the file of one split in the classic layout.

    Raises:
        InputError: If the directory or the task's folder in it is missing.
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
        f"{glue_dir}: has no folder {GLUE[key].directory}; give the directory that holds it"
    )


def read_glue(path: Path, task: GlueTask) -> Table:
    """Reads one file of the classic layout.

    Raises:
        InputError: If it is unreadable or a row has too many or too few fields.
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
                f"give GLUE's own {task.directory} file"
            )
    return rows_table(path, names, rows, lines)


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
