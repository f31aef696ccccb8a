"""What the experiments on text share: options, and stages run once, kept in a folder, compared.

A stage that was stopped resumes, one that has ended is not run again, and neither is an evaluation
whose results lie there: an experiment's command can be killed and given again. Other settings are
other runs, and an evaluation is made anew where data or weights have changed; for changed code, or
to train anew, give another `--root`.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metajax import data
from metajax.commands.evaluate import evaluate
from metajax.commands.export import export
from metajax.commands.finetune import finetune
from metajax.commands.metatrain import metatrain
from metajax.commands.pretrain import pretrain
from metajax.config.settings import (
    EvaluateSettings,
    ExportSettings,
    FinetuneSettings,
    MetatrainSettings,
    PretrainSettings,
)
from metajax.errors import InputError, StoppedError, one_line
from metajax.models import files
from metajax.reporting.plots import compared_accuracies
from metajax.runs.eval_set import Row
from metajax.training.evaluation import Estimate, estimate

SETS = ("BANKING77", "CLINC150", "HWU64")  # Of intents.
_STAGES: dict[str, tuple[Any, Any]] = {
    "pretrain": (pretrain, PretrainSettings),
    "finetune": (finetune, FinetuneSettings),
    "metatrain": (metatrain, MetatrainSettings),
}


def parser(description: str, root: str, **defaults: Any) -> argparse.ArgumentParser:
    """The options that the experiments share; `defaults` are those of numbers."""
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("--model", required=True, help="the weights")
    made.add_argument("--data", required=True, help="the folder that holds intents, glue")
    made.add_argument("--split", default="01", help="of the classes")
    made.add_argument("--steps", type=int, help="of each training stage")
    made.add_argument("--learning-rate", type=float, help="of each training stage")
    made.add_argument("--seed", type=int, default=0, help="of each training stage")
    made.add_argument("--inner-lr", type=float, help="of all adaptation")
    made.add_argument("--episodes", type=int, default=600)
    made.add_argument("--valid", action="store_true", help="judge on the validation classes")
    made.add_argument("--root", default=f"runs/{root}", help="where the runs are kept")
    made.set_defaults(**defaults)
    return made


def intent_sets(options: argparse.Namespace) -> Path:
    """Where the sets of intents are, a folder each."""
    return Path(options.data) / "intents"


def command(main: Callable[[], None]) -> None:
    """Runs an experiment; what was given wrong ends it with one line and exit status 2."""
    try:
        main()
    except (InputError, OSError, StoppedError) as error:
        print(f"{Path(sys.argv[0]).stem}: {one_line(error)}", file=sys.stderr)
        sys.exit(1 if isinstance(error, StoppedError) else 2)


def of_classes(directory: Path, split: str, part: str) -> dict[str, Any]:
    """A set's examples of the classes for `part` of the work: train, valid or test."""
    return {
        "tasks": (str(directory / "full.jsonl"),),
        "classes": str(directory / "few_shot" / split / f"labels.{part}.txt"),
    }


def judging(options: argparse.Namespace, directory: Path, **settings: Any) -> dict[str, Any]:
    """What all that is compared is judged on: episodes of classes that no training has seen."""
    found = of_classes(directory, options.split, "valid" if options.valid else "test")
    found |= {"episodes": options.episodes, "max_length": 64, "inner_lr": options.inner_lr}
    return found | settings


class Trained(NamedTuple):
    """A stage's run: its workdir, and the wall time of its steps in seconds, compiling included."""

    path: str
    seconds: float


class Result(NamedTuple):
    """A method's accuracies (0..1) on the episodes.

    Attributes:
        accuracies: [E].
        seconds: of all episodes, with what is done once for them: compiling, features of all texts.
        training: seconds of training.
    """

    accuracies: np.ndarray
    seconds: float
    training: float = 0.0


def trained(root: Path, name: str, stage: str, **settings: Any) -> Trained:
    """Runs a training stage in `root`, with what `metajax STAGE --help` calls its settings."""
    run, make = _STAGES[stage]
    workdir = root / f"{name}-{_digest(settings)}"
    print(f"{stage} in {workdir}", flush=True)
    run(make(workdir=str(workdir), **settings))
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return Trained(str(workdir), sum(row.get("seconds", 0.0) for row in rows))


def exported(run: Trained) -> str:
    """A run's weights in Hugging Face format, next to it."""
    directory = f"{run.path}-weights"
    shutil.rmtree(directory, ignore_errors=True)
    export(ExportSettings(model=run.path, output=directory))
    return directory


def judged(root: Path, model: str, *methods: str, **settings: Any) -> list[Result]:
    """The methods' results on the same episodes, kept in `root`.

    With the same tasks, sizes and seed, the episodes of two calls are the same too.
    """
    settings = {"model": model, "methods": methods, **settings}
    read = [data.fingerprint(path) for path in (*settings["tasks"], settings["classes"])]
    key = _digest({**settings, "read": [*read, _identity(Path(model))]})
    file = root / f"{'-'.join(methods)}-{key}.json"
    if not file.is_file():
        print(f"evaluate {' '.join(methods)} of {model}", flush=True)
        evaluate(EvaluateSettings(output=str(file), **settings))
    rows = [Row(**row) for row in json.loads(file.read_text(encoding="utf-8"))]
    return [Result(np.array(row.accuracies), row.seconds) for row in rows]


def _identity(model: Path) -> Any:
    """Of a run its losses and when they were; of other weights their hashes."""
    log = model / "metrics.jsonl"
    return data.fingerprint(str(log)) if log.is_file() else files.hashes(str(model))


def _digest(settings: Mapping[str, Any]) -> str:
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def percent(found: Estimate) -> str:
    """A share (0..1), or a difference of two, with its interval, in hundredths."""
    return f"{100 * found.mean:.2f} ± {100 * found.ci95:.2f}"


def show(options: argparse.Namespace, results: Mapping[str, Result], title: str) -> None:
    """Prints the results, best first, and by how much the best is ahead, episode by episode.

    Their picture goes into `--root` as PNG and SVG, named after the title and the options.
    """
    title += f", seed {options.seed}" if options.seed else ""
    title += ", valid" if options.valid else ""
    ranked = sorted(results.items(), key=lambda item: -item[1].accuracies.mean())
    found = {name: estimate(result.accuracies) for name, result in ranked}
    best = ranked[0][1].accuracies
    width = max(32, len(title))
    print(f"{title:<{width}}{'accuracy':>16}{'behind the best':>18}{'trained':>10}{'episode':>10}")
    for name, result in ranked:
        cells = [
            f"{percent(found[name]):>16}",
            f"{percent(estimate(best - result.accuracies)):>18}",
            f"{f'{result.training:.0f} s' if result.training else '-':>10}",
            f"{f'{1000 * result.seconds / len(best):.0f} ms':>10}",
        ]
        print(f"{name:<{width}}" + "".join(cells), flush=True)
    name = title.replace(",", "").replace(" ", "-")
    compared_accuracies(Path(options.root) / f"{name}-{_digest(vars(options))}", found)
