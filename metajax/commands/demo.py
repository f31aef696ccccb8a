"""A demo of the stages, on Python's own docstrings and source files."""

import sys
import time
from pathlib import Path
from typing import NamedTuple, Self, cast

import jax

from metajax.commands.adapt import adapt
from metajax.commands.evaluate import evaluate, table
from metajax.commands.metatrain import metatrain
from metajax.commands.predict import label
from metajax.commands.pretrain import pretrain
from metajax.commands.report import report
from metajax.config.results import ReportSettings
from metajax.config.settings import (
    AdaptSettings,
    DemoSettings,
    EvaluateSettings,
    MetatrainSettings,
    PretrainSettings,
)
from metajax.errors import InputError
from metajax.reporting.plots import check_drawable
from metajax.runs.classifier import open_classifier
from metajax.runs.demo_data import DemoData, NewTask, fetch_weights, write_data, write_new_task
from metajax.runs.demo_documents import DocumentData, write_documents
from metajax.runs.document_eval import DocumentRow
from metajax.runs.eval_set import Row
from metajax.runs.paths import on_disk
from metajax.runs.workdir import cache_directory, check_writable, read_results

_LENGTH = 24
_SHOTS = 5
_CHUNK = 64  # Tokens of a chunk of a document.
_METHODS = ("checkpoint", "same-steps", "none")


class _Places(NamedTuple):
    """Output paths of the demo's stages."""

    pretrain: str
    metatrain: str
    adapt: str
    pretrain_decoder: str
    metatrain_decoder: str
    evaluation: str
    documents: str
    report: str

    @classmethod
    def of(cls, root: Path) -> Self:
        runs = ("pretrain", "metatrain", "adapt", "pretrain-decoder", "metatrain-decoder")
        files = ("evaluation.json", "documents.json", "report.html")
        return cls(*(str(root / name) for name in (*runs, *files)))

    @property
    def runs(self) -> tuple[str, ...]:
        """The working directories."""
        return self[:5]


def demo(settings: DemoSettings) -> None:
    """Run the stages on docstrings and on documents, and compare with no meta-training.

    Raises:
        InputError: the weights cannot be downloaded, or the workdir cannot be used.
    """
    begun = time.perf_counter()
    root = on_disk(settings.workdir)
    check_writable(root)
    check_drawable()
    _check_own(root)
    weights = settings.model or str(fetch_weights(cache_directory()))
    files = write_data(root / "data", settings.seed)
    documents = write_documents(root / "data", files, settings.seed)
    places = _Places.of(root)
    rows = _label_docstrings(settings, weights, files, places)
    read = _read_documents(settings, documents, places)
    report(
        ReportSettings(
            runs=places.runs,
            evaluations=(places.documents, places.evaluation),
            output=places.report,
        )
    )
    print(f"\n5-way 1-shot accuracy on held-out modules, {rows[0].episodes} episodes:\n")
    print(table(rows))
    print("\nloss on source files of held-out modules, with an inner step after each chunk:\n")
    print(table(read))
    print(_closing(places, (time.perf_counter() - begun) / 60))


def _label_docstrings(
    settings: DemoSettings, weights: str, files: DemoData, places: _Places
) -> list[Row]:
    """Run the stages of an encoder that labels docstrings with their modules."""
    _say(1, "pretrain: guess hidden words in Python's own docstrings")
    _pretrain_on("docstrings", _pretrain_settings(settings, weights, files, places))
    _say(2, "metatrain: learn to tell modules apart from one docstring each")
    metatrain(_metatrain_settings(settings, files, places))
    classes = len(files.test_classes.read_text().split())
    _say(3, f"evaluate: the same on {classes} modules whose labels no stage has seen")
    rows = cast(list[Row], evaluate(_evaluate_settings(settings, files, places)))
    _say(4, "adapt: a new task of five held-out modules, from a few docstrings each")
    new = write_new_task(files.text.parent, files, _SHOTS)
    adapt(_adapt_settings(new, places))
    _show_predictions(places, new.questions)
    return rows


def _read_documents(
    settings: DemoSettings, files: DocumentData, places: _Places
) -> list[DocumentRow]:
    """Run the stages of a decoder that adapts to a source file while it reads it."""
    _say(5, "pretrain: a small decoder from scratch on source files of Python")
    _pretrain_on("source files", _pretrain_decoder_settings(settings, files, places))
    _say(6, "metatrain: learn to adapt to a source file, with a step after each chunk")
    metatrain(_metatrain_decoder_settings(settings, files, places))
    _say(7, "evaluate: the same on source files of the held-out modules")
    return cast(list[DocumentRow], evaluate(_evaluate_decoder_settings(settings, files, places)))


def _closing(places: _Places, minutes: float) -> str:
    """Return the last lines of the output: the paths of the results, and a next step."""
    results = read_results(Path(places.metatrain)) or {}
    start = (
        "On docstrings, checkpoint has the weights from before meta-training, because no "
        "checkpoint was better on the validation tasks.\n"
    )
    return (
        "\ncheckpoint is the meta-trained model; the other methods start from the same weights "
        "without meta-training. none does not adapt.\n"
        f"{start if results.get('kept_step') == 0 else ''}"
        f"report       {places.report}  (learning curves, loss by chunk)\n"
        f"checkpoints  {', '.join(places.runs)}\n"
        f"took         {minutes:.1f} minutes\n\n"
        "next: label a text of your own\n"
        "  echo 'Open a network connection.' | "
        f"{sys.executable} -m metajax predict --model {places.adapt}"
    )


def _check_own(root: Path) -> None:
    """Refuse a directory with other files than a demo's, because the demo might overwrite them."""
    data = root / "data"
    there = [path for path in root.iterdir() if path != data] if root.is_dir() else []
    if data.exists():
        there += data.iterdir() if data.is_dir() else [data]
    if there and not DemoData.of(data).text.is_file():
        raise InputError(f"{root}: is not empty and has no demo; give a new --workdir")


def _say(number: int, text: str) -> None:
    print(f"\n[{number}/7] {text}", flush=True)


def _pretrain_on(texts: str, settings: PretrainSettings) -> None:
    results = pretrain(settings)
    before, after = (results[name]["perplexity"] for name in ("before", "after"))
    print(f"perplexity on held-out {texts}: {before:,.0f} -> {after:,.0f}")


def _pretrain_settings(
    settings: DemoSettings, weights: str, files: DemoData, places: _Places
) -> PretrainSettings:
    return PretrainSettings(
        model=weights,
        text=(str(files.text),),
        workdir=places.pretrain,
        seed=settings.seed,
        steps=40,
        batch_size=_for_all_devices(16),
        max_length=64,
        # A low rate, so that the new masked-LM head does not spoil the sentence encoder.
        learning_rate=2e-5,
        save_every=20,
    )


def _for_all_devices(size: int) -> int:
    """Round a size up to a multiple of the number of devices."""
    return -(-size // jax.local_device_count()) * jax.local_device_count()


def _metatrain_settings(
    settings: DemoSettings, files: DemoData, places: _Places
) -> MetatrainSettings:
    return MetatrainSettings(
        model=places.pretrain,
        tasks=(str(files.tasks),),
        classes=str(files.train_classes),
        workdir=places.metatrain,
        seed=settings.seed,
        max_length=_LENGTH,
        steps=24,
        meta_batch_size=_for_all_devices(2),
        learning_rate=5e-5,
        save_every=8,
    )


def _adapt_settings(new: NewTask, places: _Places) -> AdaptSettings:
    return AdaptSettings(
        model=places.metatrain,
        tasks=(str(new.tasks),),
        dev=str(new.dev),
        workdir=places.adapt,
        max_length=_LENGTH,
    )


def _evaluate_settings(
    settings: DemoSettings, files: DemoData, places: _Places
) -> EvaluateSettings:
    return EvaluateSettings(
        model=places.metatrain,
        tasks=(str(files.tasks),),
        classes=str(files.test_classes),
        seed=settings.seed,
        max_length=_LENGTH,
        episodes=56,
        output=places.evaluation,
    )


def _pretrain_decoder_settings(
    settings: DemoSettings, files: DocumentData, places: _Places
) -> PretrainSettings:
    return PretrainSettings(
        model=str(files.decoder),
        text=(f"documents:{files.train}",),
        workdir=places.pretrain_decoder,
        seed=settings.seed,
        steps=600,
        batch_size=_for_all_devices(16),
        max_length=_CHUNK,
        learning_rate=5e-3,
        held_out=0.02,
        save_every=300,
    )


def _metatrain_decoder_settings(
    settings: DemoSettings, files: DocumentData, places: _Places
) -> MetatrainSettings:
    return MetatrainSettings(
        model=places.pretrain_decoder,
        tasks=(f"documents:{files.train}",),
        workdir=places.metatrain_decoder,
        algorithm="test-time-training",
        seed=settings.seed,
        max_length=_CHUNK,
        inner_steps=16,
        inner_lr=1.0,
        inner_clip_norm=1.0,
        trainable="mlps",
        steps=80,
        meta_batch_size=_for_all_devices(4),
        learning_rate=4e-3,
        save_every=40,
    )


def _evaluate_decoder_settings(
    settings: DemoSettings, files: DocumentData, places: _Places
) -> EvaluateSettings:
    return EvaluateSettings(
        model=places.metatrain_decoder,
        tasks=(f"documents:{files.test}",),
        methods=_METHODS,
        seed=settings.seed,
        max_length=_CHUNK,
        output=places.documents,
    )


def _show_predictions(places: _Places, questions: list[tuple[str, str]]) -> None:
    texts = [text for text, _ in questions]
    predictions = label(open_classifier(places.adapt, None), texts, None, len(texts))
    print(f"\n{'predicted':<22} {'prob.':>6}  {'is from':<22} docstring")
    for (text, truth), guess in zip(questions, predictions):
        print(f"{guess.label:<22} {guess.scores[0][1]:6.2f}  {truth:<22} {text[:60]}")
