"""Options of the experiments on text, and stages that run once and are kept in a folder.

A stopped stage resumes. A finished stage, or an evaluation with results, does not run again. So the
command of an experiment can be killed and repeated. Other settings give other runs. An evaluation
is repeated if data or weights have changed. If the code has changed, or to train again, pass
another `--root`.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from metajax import data
from metajax.commands.evaluate import evaluate
from metajax.commands.export import export
from metajax.commands.finetune import finetune
from metajax.commands.metatrain import metatrain
from metajax.commands.pretrain import pretrain
from metajax.config.results import ExportSettings
from metajax.config.settings import (
    EvaluateSettings,
    FinetuneSettings,
    MetatrainSettings,
    PretrainSettings,
)
from metajax.errors import InputError, StoppedError, one_line
from metajax.models import hashes
from metajax.reporting.plots import compared_accuracies
from metajax.runs.document_eval import DocumentRow
from metajax.runs.eval_set import Row
from metajax.training.evaluation import Estimate, estimate

SETS = ("BANKING77", "CLINC150", "HWU64")  # Data sets of intents.
_STAGES: dict[str, tuple[Any, Any]] = {
    "pretrain": (pretrain, PretrainSettings),
    "finetune": (finetune, FinetuneSettings),
    "metatrain": (metatrain, MetatrainSettings),
}


def parser(description: str, root: str, **defaults: Any) -> argparse.ArgumentParser:
    """Return the parser of the shared options. `defaults` are defaults of numbers."""
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("--model", required=True, help="the weights")
    made.add_argument("--data", required=True, help="the folder with intents and glue")
    made.add_argument("--split", default="01", help="of the classes")
    made.add_argument("--steps", type=int, help="of each training stage")
    made.add_argument("--learning-rate", type=float, help="of each training stage")
    made.add_argument("--seed", type=int, default=0, help="of each training stage")
    made.add_argument("--inner-lr", type=float, help="of all adaptation")
    made.add_argument("--episodes", type=int, default=600)
    made.add_argument("--valid", action="store_true", help="test on the validation classes")
    made.add_argument("--root", default=f"runs/{root}", help="the folder of the runs")
    made.set_defaults(**defaults)
    return made


def intent_sets(options: argparse.Namespace) -> Path:
    """Return the folder of the data sets of intents."""
    return Path(options.data) / "intents"


def command(main: Callable[[], None]) -> None:
    """Run an experiment; end with one line and exit status 2 if the input is wrong."""
    try:
        main()
    except (InputError, OSError, StoppedError) as error:
        print(f"{Path(sys.argv[0]).stem}: {one_line(error)}", file=sys.stderr)
        sys.exit(1 if isinstance(error, StoppedError) else 2)


def side_by_side(run: Callable[[Any], Any], each: Sequence[Any]) -> Iterator[Any]:
    """Yield the result of each run, in order. On a CPU, several processes run at the same time.

    A step of a small network cannot use all cores, so there is one process more than cores. SIGTERM
    stops all of them.
    """
    workers = min(len(each), len(os.sched_getaffinity(0)) + 1)
    if workers < 2 or jax.default_backend() != "cpu":
        yield from map(run, each)
        return

    def stop(number: int, frame: Any) -> None:
        for process in multiprocessing.active_children():
            process.terminate()

    before = signal.signal(signal.SIGTERM, stop)
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            yield from pool.map(run, each)
    finally:
        signal.signal(signal.SIGTERM, before)


def of_classes(directory: Path, split: str, part: str) -> dict[str, Any]:
    """Return the examples of a data set for a part of its classes: train, valid or test."""
    return {
        "tasks": (str(directory / "full.jsonl"),),
        "classes": str(directory / "few_shot" / split / f"labels.{part}.txt"),
    }


def judging(options: argparse.Namespace, directory: Path, **settings: Any) -> dict[str, Any]:
    """The episodes that all methods are tested on, with unseen classes."""
    test_settings = of_classes(directory, options.split, "valid" if options.valid else "test")
    test_settings |= {"episodes": options.episodes, "max_length": 64, "inner_lr": options.inner_lr}
    return test_settings | settings


class Trained(NamedTuple):
    """A run: its working directory, and the wall time of its steps in seconds with compilation."""

    path: str
    seconds: float


class Result(NamedTuple):
    """The accuracies (0..1) of a method on the episodes.

    Attributes:
        accuracies: [E].
        seconds: time of all episodes, including compilation and the features of all texts.
        training: seconds of training.
    """

    accuracies: np.ndarray
    seconds: float
    training: float = 0.0


def trained(root: Path, name: str, stage: str, **settings: Any) -> Trained:
    """Run a training stage in `root`, with the settings of `metajax STAGE`.

    Without `held_out`, metatrain trains on all classes, because most tables are of such runs.
    """
    run, make = _STAGES[stage]
    workdir = root / f"{name}-{digest(settings)}"
    print(f"{stage} in {workdir}", flush=True)
    usual = {"held_out": 0.0} if stage == "metatrain" else {}
    run(make(workdir=str(workdir), **(usual | settings)))
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return Trained(str(workdir), sum(row.get("seconds", 0.0) for row in rows))


def exported(run: Trained) -> str:
    """Export a run's weights in Hugging Face format, next to the run."""
    directory = f"{run.path}-weights"
    shutil.rmtree(directory, ignore_errors=True)
    export(ExportSettings(model=run.path, output=directory))
    return directory


def judged(root: Path, model: str, *methods: str, **settings: Any) -> list[Result]:
    """Evaluate methods on the same episodes; see `evaluated`.

    Two calls with the same tasks, sizes and seed have the same episodes.
    """
    rows = evaluated(root, model, *methods, **settings)
    return [Result(np.array(row.accuracies), row.seconds) for row in rows]


def evaluated(root: Path, model: str, *methods: str, **settings: Any) -> list[Any]:
    """Run `metajax evaluate`; keep the rows in `root`."""
    settings = {"model": model, "methods": methods, **settings}
    files_read = [*settings["tasks"], *filter(None, [settings.get("classes")])]
    if settings.get("splits"):
        files_read += sorted(map(str, Path(settings["splits"]).iterdir()))
    read = [data.fingerprint(path) for path in files_read]
    key = digest({**settings, "read": [*read, _identity(Path(model))]})
    file = root / f"{'-'.join(methods)}-{key}.json"
    if not file.is_file():
        print(f"evaluate {' '.join(methods)} of {model}", flush=True)
        evaluate(EvaluateSettings(output=str(file), **settings))
    kind = DocumentRow if settings["tasks"][0].startswith("documents:") else Row
    return [kind(**row) for row in json.loads(file.read_text(encoding="utf-8"))]


def _identity(model: Path) -> Any:
    """Return what identifies weights: the losses and times of a run, or else hashes."""
    log = model / "metrics.jsonl"
    return data.fingerprint(str(log)) if log.is_file() else hashes(str(model))


def digest(settings: Mapping[str, Any]) -> str:
    """Return a short name for settings."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def percent(share: Estimate) -> str:
    """Format a share (0..1), or a difference of shares, and its interval as percentages."""
    return f"{100 * share.mean:.2f} ± {100 * share.ci95:.2f}"


def show(options: argparse.Namespace, results: Mapping[str, Result], title: str) -> None:
    """Print the results, the best first, and how far the best one is ahead on the same episodes.

    Draw a picture in `--root`, as PNG and SVG, named after the title and the options.
    """
    title += f", seed {options.seed}" if options.seed else ""
    title += ", valid" if options.valid else ""
    ranked = sorted(results.items(), key=lambda item: -item[1].accuracies.mean())
    estimates = {name: estimate(result.accuracies) for name, result in ranked}
    best = ranked[0][1].accuracies
    width = max(32, len(title))
    print(f"{title:<{width}}{'accuracy':>16}{'behind the best':>18}{'trained':>10}{'episode':>10}")
    for name, result in ranked:
        cells = [
            f"{percent(estimates[name]):>16}",
            f"{percent(estimate(best - result.accuracies)):>18}",
            f"{f'{result.training:.0f} s' if result.training else '-':>10}",
            f"{f'{1000 * result.seconds / len(best):.0f} ms':>10}",
        ]
        print(f"{name:<{width}}" + "".join(cells), flush=True)
    name = title.replace(",", "").replace(" ", "-")
    compared_accuracies(Path(options.root) / f"{name}-{digest(vars(options))}", estimates)
