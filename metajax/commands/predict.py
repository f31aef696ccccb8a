"""Predict labels and probabilities for new text."""

import codecs
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metajax.config.fields import flag_and_value
from metajax.config.settings import PredictSettings
from metajax.data.readers import TABLES
from metajax.data.tasks import load_texts
from metajax.errors import InputError, printable
from metajax.runs.classifier import Classifier, logits_of, open_classifier
from metajax.runs.workdir import writable, write_atomically


class Prediction(NamedTuple):
    """The prediction for a text.

    Attributes:
        label: the most probable label, or that of texts below a threshold. For a multi-label head,
            a tuple of all labels above 0.5. For a regression, "value".
        scores: (label, probability) pairs of all labels, the most probable first; of a multi-label
            head in the head's order. For a regression, ("value", value), or (name, value) pairs of
            several values in the head's order.
        ranked: whether the first of the scores belongs to the label or would without a threshold.
            False for a multi-label head and for a regression with several values.
    """

    label: str | tuple[str, ...]
    scores: tuple[tuple[str, float], ...]
    ranked: bool


def predict(settings: PredictSettings) -> None:
    """Write a line for each text of the input.

    In plain text, each line is a text; a tab separates the two texts of a pair. In a table (.csv,
    .tsv, .jsonl, .parquet), the text column is read. All of the input is read before anything is
    written.

    With `settings.threshold`, the label of a text whose highest probability is lower is
    `settings.none_label`; in TSV it stands before this probability.

    As TSV, a line is `label<TAB>probability`, repeated for each of the `settings.top` labels. For a
    multi-label head, the labels above 0.5, or "none", are followed by `label=probability` for all.
    Characters of a label that do not print are written as escapes, so that each text has exactly
    one line. As JSON Lines, a line is an object with the `label` and the `scores`: pairs of label
    and probability for the `settings.top` labels, the most probable first. For a multi-label head
    it has the list `labels` instead of `label`, and the `scores` of all labels.

    Raises:
        InputError: the input cannot be used.
    """
    target = None if settings.output == "-" else writable(settings.output, settings.input)
    if target is None and sys.stdout is None:
        raise InputError("standard output: is closed; give a file with --output")
    if settings.input == "-" and sys.stdin is None:
        raise InputError("standard input: is closed; give a file with --input")
    classifier = open_classifier(settings.model, settings.task)
    if settings.max_length is not None:
        classifier = classifier._replace(max_length=settings.max_length)
    _check_one_label(settings, classifier)
    write = _as_tsv if settings.format == "tsv" else _as_json
    texts, pairs = read_texts(settings.input, *classifier.columns)
    predictions = label(classifier, texts, pairs, settings.batch_size)
    predictions = (_or_none(prediction, settings) for prediction in predictions)
    lines = (f"{write(prediction, settings.top)}\n" for prediction in predictions)
    if target is None:
        sys.stdout.writelines(lines)
    else:
        write_atomically(target, "".join(lines))


def _check_one_label(settings: PredictSettings, classifier: Classifier) -> None:
    """Check the settings that need one label per text."""
    model = classifier.model
    several = model.problem_type or model.num_labels[classifier.head] == 1
    for name, given in (("top", settings.top > 1), ("threshold", settings.threshold is not None)):
        if given and several:
            shown = flag_and_value(name, getattr(settings, name))
            raise InputError(
                f"{shown}: {settings.model} does not give one label per text; remove it"
            )
    if settings.threshold is not None and settings.none_label in _names_of(classifier):
        raise InputError(
            f"--none-label {settings.none_label}: {settings.model} has this label; give another"
        )


def _names_of(classifier: Classifier) -> Sequence[str]:
    """Return the names of the head's labels; LABEL_0, LABEL_1, ... if the model has none."""
    model, head = classifier.model, classifier.head
    names = model.label_names and model.label_names[head]
    return names or [f"LABEL_{i}" for i in range(model.num_labels[head])]


def _or_none(prediction: Prediction, settings: PredictSettings) -> Prediction:
    """Replace the label of a text whose highest probability is below the threshold."""
    if settings.threshold is None or not prediction.scores[0][1] < settings.threshold:
        return prediction
    return prediction._replace(label=settings.none_label)


def _as_tsv(prediction: Prediction, top: int) -> str:
    scores = [(printable(name), f"{score:.4f}") for name, score in prediction.scores]
    label = prediction.label
    label = printable(label if isinstance(label, str) else ", ".join(label) or "none")
    if prediction.ranked:
        scores[0] = label, scores[0][1]
        return "\t".join(itertools.chain.from_iterable(scores[:top]))
    return "\t".join([label, *map("=".join, scores)])


def _as_json(prediction: Prediction, top: int) -> str:
    label, scores, ranked = prediction
    several = not isinstance(label, str)
    shown = sorted(scores, key=lambda score: -score[1]) if several else scores
    row = {"labels" if several else "label": label, "scores": shown[:top] if ranked else shown}
    return printable(json.dumps(row, ensure_ascii=False), as_json=True)


def label(
    classifier: Classifier, texts: list[str], pairs: list[str] | None, batch_size: int
) -> Iterator[Prediction]:
    """Yield the prediction for each text, in order.

    Raises:
        InputError: the texts are pairs but the classifier was trained on single texts, or vice
            versa.
    """
    names = _names_of(classifier)
    for logits in logits_of(classifier, texts, pairs, batch_size):
        yield _judged(classifier.model.problem_type, names, logits)


def _judged(problem_type: str | None, names: Sequence[str], logits: np.ndarray) -> Prediction:
    """Convert the logits of a text to a prediction, as the pipeline of transformers does."""
    if problem_type == "multi_label_classification":
        sigmoid = (1 + np.tanh(logits.astype(float) / 2)) / 2
        above = tuple(name for name, score in zip(names, sigmoid) if score > 0.5)
        return Prediction(above, tuple(zip(names, sigmoid.tolist())), False)
    if problem_type == "regression":
        return Prediction("value", tuple(zip(names, logits.tolist())), False)
    if len(logits) == 1:
        return Prediction("value", (("value", float(logits[0])),), True)
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    best = np.argsort(-shares, kind="stable")
    return Prediction(names[best[0]], tuple((names[i], float(shares[i])) for i in best), True)


def read_texts(
    source: str, text_column: str | None = None, pair_column: str | None = None
) -> tuple[list[str], list[str] | None]:
    """Read the texts of a file or of standard input (`-`), and the second texts if there are any.

    Args:
        source: path of a table, recognized by its extension, or of plain text.
        text_column: column of the texts in a table. None uses the default name.
        pair_column: column of the second texts in a table. None uses the default name.

    Raises:
        InputError: the texts cannot be read.
    """
    if Path(source).suffix.lower() in TABLES:
        return load_texts(source, text=text_column, pair=pair_column)
    if source == "-":
        content, name = sys.stdin.buffer.read(), "standard input"
    elif Path(source).is_file():
        content, name = Path(source).read_bytes(), source
    else:
        raise InputError(f"{source}: no such file; give a text file, or - for standard input")
    content = content.removeprefix(codecs.BOM_UTF8)
    lines = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            raise InputError(f"{name}:{number}: is not UTF-8; save the file as UTF-8") from None
    while lines and not lines[-1].strip():
        lines.pop()
    rows: list[list[str]] = []
    for number, line in enumerate(lines, start=1):
        row = line.split("\t")
        if not line.strip():
            raise InputError(f"{name}:{number}: is empty; write a text or remove the line")
        if not all(field.strip() for field in row) or len(row) > 2:
            raise InputError(
                f"{name}:{number}: is not one text; give one text per line, or two with a tab "
                "between them"
            )
        if len(row) != len(rows[0] if rows else row):
            raise InputError(
                f"{name}:{number}: has {len(row)} texts, unlike the first line; give the same "
                "number in all lines"
            )
        rows.append(row)
    if not rows:
        raise InputError(f"{name}: is empty; give one text per line")
    columns = [list(column) for column in zip(*rows)]
    return columns[0], columns[1] if len(columns) == 2 else None
