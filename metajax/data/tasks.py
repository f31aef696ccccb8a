"""Load tasks from files, from GLUE's classic layout and from the hub."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metajax.data.columns import (
    label_column,
    score_column,
    several_labels_column,
    sorted_names,
    text_column,
)
from metajax.data.duplicates import Duplicates, find_duplicates
from metajax.data.glue import GLUE, glue_name, glue_path, read_glue
from metajax.data.hub import hub_address, read_hub
from metajax.data.normalization import normalize
from metajax.data.readers import Table, numbered_lines, read_table
from metajax.data.smlmt import hidden_words
from metajax.errors import InputError


class _Examples(NamedTuple):
    name: str
    texts: list[str]
    pairs: list[str] | None
    labels: np.ndarray
    label_names: tuple[str, ...]
    hides_words: bool = False
    keep_duplicates: bool = False


class TaskData(_Examples):
    """A labelled data set of N examples.

    Attributes:
        name: the spec that it was loaded from, with the usual spelling of GLUE names ("glue:mrpc").
        texts: N texts.
        pairs: N second texts, or None for single texts.
        labels: int32 [N], indices into label_names; float32 [N] for a regression; int32 [N, C] of
            0 and 1 if a text can have several labels. Episodes need one label per text.
        label_names: the classes in the order of their ids; empty for a regression.
        hides_words: whether "[MASK]" in the texts stands for a hidden word, as in `smlmt:` tasks.
        keep_duplicates: whether episodes use all examples. By default they use one example of each
            text, and no text with several labels. Otherwise a text could be in both support and
            query set.

    Examples:
        >>> import numpy as np
        >>> from metajax.data import TaskData
        >>> task = TaskData("films", ["good", "dull"], None, np.array([1, 0], np.int32), ("-", "+"))
        >>> [(text, task.label_names[label]) for text, label in zip(task.texts, task.labels)]
        [('good', '+'), ('dull', '-')]
    """

    @functools.cached_property  # Of many texts, it takes seconds.
    def duplicates(self) -> Duplicates:
        """Return which examples have the same text."""
        return find_duplicates(self.texts, self.pairs, self.labels)

    def take(self, rows: np.ndarray) -> "TaskData":
        """Return the data set with some of its rows, int64 [n]."""
        return self._replace(
            texts=[self.texts[row] for row in rows],
            pairs=None if self.pairs is None else [self.pairs[row] for row in rows],
            labels=self.labels[rows],
        )

    def take_classes(self, classes: Sequence[int] | np.ndarray) -> "TaskData":
        """Return the data set with some of its classes, given in the order of their ids."""
        taken = self.take(np.flatnonzero(np.isin(self.labels, classes)))
        return taken._replace(
            labels=np.searchsorted(classes, taken.labels).astype(np.int32),
            label_names=tuple(self.label_names[number] for number in classes),
        )

    def drawn_rows(self) -> tuple[np.ndarray, ...]:
        """Return the rows of each class that episodes are sampled from, int64 [n_c]."""
        if not self.label_names or self.labels.ndim > 1:
            return ()
        drawn = np.ones(len(self.texts), bool)
        if not self.keep_duplicates:
            drawn = self.duplicates.once
        rows = np.flatnonzero(drawn)
        rows = rows[np.argsort(self.labels[rows], kind="stable")]
        bounds = np.searchsorted(self.labels[rows], np.arange(len(self.label_names) + 1))
        return tuple(np.split(rows, bounds)[1:-1])


class _Columns(NamedTuple):
    text: str | None
    pair: str | None
    label: str | None


def load_tasks(
    specs: Sequence[str],
    *,
    glue_dir: str | Path | None = None,
    split: str = "train",
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    classes: str | Path | Sequence[str | Path] | None = None,
    label_separator: str | None = None,
    regression: bool = False,
    keep_duplicates: bool = False,
) -> list[TaskData]:
    r"""Load one task per spec, in order.

    The classes of a file are sorted (by value if all look like numbers). The classes of GLUE, and
    of a hub data set that declares them, keep their published order.

    Args:
        specs: paths of CSV, TSV, JSON-lines or Parquet files, "glue:NAME",
            "hub:OWNER/NAME[/CONFIG]", or "smlmt:FILE" for plain text (see `hidden_words`).
        glue_dir: directory with GLUE's classic TSV layout. By default the hub's copy is used.
        split: "train" or "validation", for glue: and hub:. Files are always read completely.
        text_column: the column of the text. The default is `text` if it exists, else `sentence`.
        pair_column: the column of the second text. The default is `text_pair` if it exists.
        label_column: the column of the label. The default is `label`.
        classes: files with the labels to keep, one per line. Examples with other labels are
            removed. All words of "smlmt:" tasks are kept.
        label_separator: what stands between the labels of a text, which can then have any number.
        regression: whether the labels of files and of hub data sets are numbers to predict.
        keep_duplicates: whether an episode may contain a text several times (see `TaskData`).

    Returns:
        One TaskData per spec.

    Raises:
        InputError: something in the files cannot be used. The message says where.

    Examples:
        >>> import pathlib, tempfile
        >>> from metajax.data import load_tasks
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = pathlib.Path(directory, "films.csv")
        ...     _ = path.write_text("text,label\ngood film,yes\nbad film,no\n")
        ...     (task,) = load_tasks([str(path)])
        >>> task.texts, task.labels.tolist(), task.label_names
        (['good film', 'bad film'], [1, 0], ('no', 'yes'))
    """
    columns = _Columns(text_column, pair_column, label_column)
    how = (glue_dir, split, columns, label_separator, regression, keep_duplicates)
    loaded = [_load(str(spec), *how) for spec in specs]
    tasks = [task._replace(keep_duplicates=keep_duplicates) for task in loaded]
    if classes is not None and label_separator is not None:
        raise InputError("--classes: needs one label for each text; remove it")
    if classes is not None:
        paths = [classes] if isinstance(classes, str | Path) else classes
        tasks = _keep_classes(tasks, paths, all_known=split == "train")
    for task in tasks:
        present = np.arange(len(task.label_names))
        if task.labels.ndim == 1:
            present = np.unique(task.labels)
        if split == "train" and task.label_names and len(present) < 2:
            names = [task.label_names[label] for label in present]
            raise InputError(
                f"{task.name}: has examples of only {len(present)} of the chosen classes "
                f"({', '.join(map(repr, names)) or 'none'}); give at least two"
            )
    return tasks


def load_texts(
    path: str | Path, *, text: str | None = None, pair: str | None = None
) -> tuple[list[str], list[str] | None]:
    """Read the texts, and second texts if there are any, of a task file; ignore labels.

    Args:
        path: a CSV, TSV, JSON-lines or Parquet file.
        text: the column of the text, as for `load_tasks`.
        pair: the column of the second text.

    Raises:
        InputError: something in the file cannot be used. The message says where.
    """
    table = read_table(path)
    return _texts(table, _find_columns(table, _Columns(text, pair, None), labelled=False))


def _texts(table: Table, columns: _Columns) -> tuple[list[str], list[str] | None]:
    assert columns.text is not None
    texts = text_column(table, columns.text)
    return texts, None if columns.pair is None else text_column(table, columns.pair)


def _load(
    spec: str,
    glue_dir: str | Path | None,
    split: str,
    columns: _Columns,
    label_separator: str | None,
    regression: bool,
    keep_duplicates: bool,
) -> TaskData:
    if label_separator is not None and (regression or spec.startswith(("glue:", "smlmt:"))):
        raise InputError(f"{spec}: has one label for each text; remove --label-separator")
    if spec.startswith("glue:"):
        return _load_glue(glue_name(spec[5:]), glue_dir, split)
    if spec.startswith("smlmt:"):
        return _hidden_words(spec, keep_duplicates)
    if spec.startswith("documents:"):
        raise InputError(f"{spec}: documents have no labels; give a labelled task")
    order: tuple[str, ...] | None = None
    if spec.startswith("hub:"):
        columns = columns._replace(label=columns.label or "label")
        table, classes = read_hub(*hub_address(spec, split))
        order = classes.get(columns.label or "")
    else:
        table = read_table(spec)
    columns = _find_columns(table, columns)
    if label_separator is not None:
        return _several_labels(spec, table, columns, label_separator)
    return _task(spec, table, columns, () if regression else order)


def _hidden_words(spec: str, keep_duplicates: bool) -> TaskData:
    path = spec.removeprefix("smlmt:")
    texts, words = zip(*hidden_words(path, keep_duplicates=keep_duplicates))
    names = tuple(sorted(set(words)))
    ids = {word: i for i, word in enumerate(names)}
    labels = np.array([ids[word] for word in words], np.int32)
    return TaskData(spec, list(texts), None, labels, names, hides_words=True)


def _load_glue(key: str, glue_dir: str | Path | None, split: str) -> TaskData:
    task = GLUE[key]
    if glue_dir is not None:
        table = read_glue(glue_path(key, glue_dir, split), task)
        columns = _Columns(*task.columns, task.label)
    else:
        table, _ = read_hub(*hub_address(f"glue:{key}", split))
        columns = _Columns(*task.hub_columns, "label")
    return _task(f"glue:{key}", table, _find_columns(table, columns), task.labels)


def _find_columns(table: Table, wanted: _Columns, *, labelled: bool = True) -> _Columns:
    text = wanted.text or ("text" if "text" in table.names else "sentence")
    pair = wanted.pair or ("text_pair" if "text_pair" in table.names else None)
    columns = _Columns(text, pair, (wanted.label or "label") if labelled else None)
    how = "name the text column in the first line, or give plain text (.txt), one text per line"
    if labelled:
        how = (
            "name the columns in the first line, or choose them with --text-column, "
            "--pair-column and --label-column"
        )
    for name in columns:
        if name is not None and name not in table.names:
            alternative = "'text' or 'sentence'" if name == text and not wanted.text else repr(name)
            names = ", ".join(repr(name[:40]) for name in table.names[:12])
            raise InputError(f"{table.source}: has no column {alternative}, only {names}; {how}")
    return columns


def _task(
    name: str, table: Table, columns: _Columns, order: tuple[str, ...] | None = None
) -> TaskData:
    """Build a task with label names in the given order; () is a regression, None sorts."""
    assert columns.label is not None
    texts, pairs = _texts(table, columns)
    if order == ():
        return TaskData(name, texts, pairs, score_column(table, columns.label), ())
    labels = label_column(table, columns.label)
    names = (
        sorted_names(set(labels)) if order is None else tuple(dict.fromkeys(map(normalize, order)))
    )
    ids = {label: i for i, label in enumerate(names)}
    if order is not None:  # GLUE writes some classes as numbers
        ids = {str(i): i for i in range(len(names))} | ids
    for row, label in enumerate(labels):
        if label not in ids:
            raise InputError(
                f"{table.place(row)}: unknown label {label!r}; use one of {', '.join(names)}"
            )
    return TaskData(name, texts, pairs, np.array([ids[x] for x in labels], np.int32), names)


def _several_labels(name: str, table: Table, columns: _Columns, separator: str) -> TaskData:
    assert columns.label is not None
    texts, pairs = _texts(table, columns)
    own = several_labels_column(table, columns.label, separator)
    names = sorted_names({label for labels in own for label in labels})
    if not names:
        raise InputError(f"{name}: no text has a label; check --label-column and --label-separator")
    ids = {label: i for i, label in enumerate(names)}
    matrix = np.zeros((len(texts), len(names)), np.int32)
    for row, labels in enumerate(own):
        matrix[row, [ids[label] for label in labels]] = 1
    return TaskData(name, texts, pairs, matrix, names)


def _keep_classes(
    tasks: list[TaskData], paths: Sequence[str | Path], *, all_known: bool
) -> list[TaskData]:
    """Keep only the listed classes. With `all_known`, each of them has to exist."""
    kept = {
        normalize(label): f"{path}:{line}" for path in paths for line, label in numbered_lines(path)
    }
    labelled = [task for task in tasks if not task.hides_words]
    if not labelled:
        raise InputError(f"{paths[0]}: --classes does not apply to hidden words; remove it")
    known = {label for task in labelled for label in task.label_names}
    for label, place in kept.items():
        if all_known and label not in known:
            raise InputError(f"{place}: no task has the label {label!r}; fix or remove it")
    return [task if task.hides_words else _keep(task, kept) for task in tasks]


def _keep(task: TaskData, kept: dict[str, str]) -> TaskData:
    if not task.label_names:
        raise InputError(f"{task.name}: is a regression and has no classes to keep; remove it")
    old = [i for i, name in enumerate(task.label_names) if name in kept]
    if not old:
        raise InputError(f"{task.name}: has none of the chosen classes; remove it")
    return task.take_classes(old)
