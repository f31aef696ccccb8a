"""A demo of the three stages, with a small public model and Python's own docstrings."""

import sys
import time
from pathlib import Path
from typing import NamedTuple, cast

import jax

from metajax.commands.adapt import adapt
from metajax.commands.evaluate import evaluate, table
from metajax.commands.metatrain import metatrain
from metajax.commands.predict import label
from metajax.commands.pretrain import pretrain
from metajax.commands.report import report
from metajax.config.settings import (
    AdaptSettings,
    DemoSettings,
    EvaluateSettings,
    MetatrainSettings,
    PretrainSettings,
    ReportSettings,
)
from metajax.errors import InputError
from metajax.reporting.plots import check_drawable
from metajax.runs.classifier import open_classifier
from metajax.runs.demo_data import DemoData, NewTask, fetch_weights, write_data, write_new_task
from metajax.runs.eval_set import Row
from metajax.runs.paths import on_disk
from metajax.runs.workdir import cache_directory, check_writable

_LENGTH = 24
_SHOTS = 5


class _Places(NamedTuple):
    """Output paths of the demo's stages."""

    pretrain: str
    metatrain: str
    adapt: str
    evaluation: str
    report: str


def demo(settings: DemoSettings) -> None:
    """Run pretrain, metatrain and adapt, and compare the result with no meta-training.

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
    names = ("pretrain", "metatrain", "adapt", "evaluation.json", "report.html")
    places = _Places(*(str(root / name) for name in names))
    classes = len(files.test_classes.read_text().split())
    _say(1, "pretrain: guess hidden words in Python's own docstrings")
    results = _pretrain(settings, weights, files, places)
    before, after = (results[name]["perplexity"] for name in ("before", "after"))
    print(f"perplexity on held-out docstrings: {before:,.0f} -> {after:,.0f}")
    _say(2, "metatrain: learn to tell modules apart from one docstring each")
    metatrain(_metatrain_settings(settings, files, places))
    _say(3, f"evaluate: the same on {classes} modules whose labels no stage has seen")
    rows = cast(list[Row], evaluate(_evaluate_settings(settings, files, places)))
    _say(4, "adapt: a new task of five held-out modules, from a few docstrings each")
    new = write_new_task(root / "data", files, _SHOTS)
    adapt(_adapt_settings(new, places))
    _show_predictions(places, new.questions)
    report(
        ReportSettings(
            runs=(places.pretrain, places.metatrain, places.adapt),
            evaluations=(places.evaluation,),
            output=places.report,
        )
    )
    print(f"\n5-way 1-shot accuracy on held-out modules, {rows[0].episodes} episodes:\n")
    print(table(rows))
    print(_closing(places, (time.perf_counter() - begun) / 60))


def _closing(places: _Places, minutes: float) -> str:
    """Return the last lines of the output: the paths of the results, and a next step."""
    return (
        "\ncheckpoint is the meta-trained model; the other methods start from the same weights "
        "without meta-training.\n"
        f"report       {places.report}  (learning curves, accuracy against inner steps)\n"
        f"checkpoints  {places.pretrain}, {places.metatrain}, {places.adapt}\n"
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
    print(f"\n[{number}/4] {text}", flush=True)


def _pretrain(
    settings: DemoSettings, weights: str, files: DemoData, places: _Places
) -> dict[str, dict[str, float]]:
    return pretrain(
        PretrainSettings(
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
        curve=3,
        output=places.evaluation,
    )


def _show_predictions(places: _Places, questions: list[tuple[str, str]]) -> None:
    texts = [text for text, _ in questions]
    predictions = label(open_classifier(places.adapt, None), texts, None, len(texts))
    print(f"\n{'predicted':<22} {'prob.':>6}  {'is from':<22} docstring")
    for (text, truth), guess in zip(questions, predictions):
        print(f"{guess.label:<22} {guess.probability:6.2f}  {truth:<22} {text[:60]}")
