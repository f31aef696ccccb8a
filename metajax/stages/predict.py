"""Labels and probabilities for new text."""

import codecs
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from metajax import data
from metajax.errors import InputError, printable
from metajax.stages.run import writable, write_atomically
from metajax.stages.settings import PredictSettings
from metajax.stages.source import Classifier, open_classifier, text_length
from metajax.stages.tasks import tokenized


class Prediction(NamedTuple):
    """The likeliest label of a text and its probability (0..1); for a regression, its value."""

    label: str
    probability: float


def predict(settings: PredictSettings) -> None:
    """Writes `label<TAB>probability` for each line of the input.

    A tab in a line separates the two texts of a pair. What does not print in a label is written as
    an escape, so that a text has one line whatever its label. Nothing is written before all of the
    input has been read.

    Raises:
        InputError: the input cannot be used.
    """
    target = None if settings.output == "-" else writable(settings.output, settings.input)
    if target is None and sys.stdout is None:
        raise InputError("standard output: is closed; name a file with --output")
    classifier = open_classifier(settings.model, settings.task)
    if settings.max_length is not None:
        classifier = classifier._replace(max_length=settings.max_length)
    texts, pairs = read_texts(settings.input)
    lines = (
        f"{printable(found.label)}\t{found.probability:.4f}\n"
        for found in label(classifier, texts, pairs, settings.batch_size)
    )
    if target is None:
        sys.stdout.writelines(lines)
    else:
        write_atomically(target, "".join(lines))


def label(
    classifier: Classifier, texts: list[str], pairs: list[str] | None, batch_size: int
) -> Iterator[Prediction]:
    """The prediction for each text, in order.

    Raises:
        InputError: they are pairs where the classifier learned from single texts, or the reverse.
    """
    model, params, head, max_length, in_pairs = classifier
    if in_pairs is not None and in_pairs != (pairs is not None):
        found, wanted = ("single texts", "pairs") if in_pairs else ("pairs", "single texts")
        raise InputError(
            f"the input: has {found}, and the model learned from {wanted}: give those (a tab "
            "stands between the two texts of a pair)"
        )
    task = data.TaskData("the input", texts, pairs, np.zeros(len(texts), np.int32), ("",))
    (examples,) = tokenized([task], model, text_length(model, max_length))
    logits = jax.jit(lambda params, batch: model(params, batch).logits)
    names = model.label_names and model.label_names[head]
    done = 0
    for batch in data.supervised_eval_batches(examples, batch_size, head=head):
        scores = np.asarray(logits(params, batch))[: len(texts) - done, : model.num_labels[head]]
        done += len(scores)
        if scores.shape[1] == 1:
            yield from (Prediction("value", float(score)) for score in scores[:, 0])
            continue
        shares = np.exp(scores - scores.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        for row in shares:
            best = int(row.argmax())
            yield Prediction(names[best] if names else str(best), float(row[best]))


def read_texts(source: str) -> tuple[list[str], list[str] | None]:
    """The texts of a file or of standard input (`-`), and the second texts if there are any.

    Raises:
        InputError: they cannot be read.
    """
    if source == "-" and sys.stdin is None:
        raise InputError("standard input: is closed; name a file with --input")
    if source == "-":
        content, name = sys.stdin.buffer.read(), "standard input"
    elif Path(source).is_file():
        content, name = Path(source).read_bytes(), source
    else:
        raise InputError(f"{source}: no such file: name a text file, or - for standard input")
    content = content.removeprefix(codecs.BOM_UTF8)
    rows: list[list[str]] = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            row = line.decode("utf-8").split("\t")
        except UnicodeDecodeError:
            raise InputError(f"{name}:{number}: is not UTF-8: convert the file") from None
        if not all(field.strip() for field in row) or len(row) > 2:
            raise InputError(
                f"{name}:{number}: give a text a line (or two, with a tab between them)"
            )
        if len(row) != len(rows[0] if rows else row):
            raise InputError(f"{name}:{number}: has {len(row)} texts, unlike the first line")
        rows.append(row)
    if not rows:
        raise InputError(f"{name}: is empty: give a text a line")
    columns = [list(column) for column in zip(*rows)]
    return columns[0], columns[1] if len(columns) == 2 else None
