"""What the experiments on text share: stages run once, kept in a folder, and compared.

A stage that was stopped resumes, one that has ended is not run again, and neither is an evaluation
whose results lie there: an experiment's command can be killed and given again.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metajax.evaluate import estimate
from metajax.report import compared_accuracies
from metajax.stages.evaluate import Row, evaluate
from metajax.stages.export import export
from metajax.stages.finetune import finetune
from metajax.stages.metatrain import metatrain
from metajax.stages.pretrain import pretrain
from metajax.stages.settings import (
    EvaluateSettings,
    ExportSettings,
    FinetuneSettings,
    MetatrainSettings,
    PretrainSettings,
)

_STAGES: dict[str, tuple[Any, Any]] = {
    "pretrain": (pretrain, PretrainSettings),
    "finetune": (finetune, FinetuneSettings),
    "metatrain": (metatrain, MetatrainSettings),
}


class Trained(NamedTuple):
    """A stage's run: its workdir, and the seconds that its steps took."""

    path: str
    seconds: float


class Result(NamedTuple):
    """A method's accuracies (0..1) on the episodes; seconds: of all of them, of training."""

    accuracies: np.ndarray
    seconds: float
    training: float = 0.0


def trained(root: Path, name: str, stage: str, **settings: Any) -> Trained:
    """Runs a training stage in `root/name`, with what `metajax STAGE --help` calls its settings."""
    run, make = _STAGES[stage]
    workdir = root / name
    print(f"{stage} in {workdir}", flush=True)
    run(make(workdir=str(workdir), **settings))
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return Trained(str(workdir), sum(row.get("seconds", 0.0) for row in rows))


def exported(run: Trained) -> str:
    """A run's weights in Hugging Face format, next to it."""
    directory = f"{run.path}-weights"
    if not Path(directory).is_dir():
        export(ExportSettings(model=run.path, output=directory))
    return directory


def judged(root: Path, model: str, *methods: str, **settings: Any) -> list[Result]:
    """The methods' results on the same episodes, kept in `root`.

    With the same tasks, sizes and seed, the episodes of two calls are the same too.
    """
    settings = {"model": model, "methods": methods, **settings}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    file = root / f"{'-'.join(methods)}-{digest.hexdigest()[:12]}.json"
    if not file.is_file():
        print(f"evaluate {' '.join(methods)} of {model}", flush=True)
        evaluate(EvaluateSettings(output=str(file), **settings))
    rows = [Row(**row) for row in json.loads(file.read_text(encoding="utf-8"))]
    return [Result(np.array(row.accuracies), row.seconds) for row in rows]


def show(root: Path, results: Mapping[str, Result], title: str) -> None:
    """Prints the results, best first, and by how much the best is ahead, episode by episode.

    Their picture goes into `root` as PNG and SVG.
    """
    ranked = sorted(results.items(), key=lambda item: -item[1].accuracies.mean())
    best = ranked[0][1].accuracies
    print(f"{title:<24}{'accuracy':>16}{'behind the best':>18}{'trained':>10}{'episode':>10}")
    for name, result in ranked:
        mean, behind = estimate(result.accuracies), estimate(best - result.accuracies)
        cells = [
            f"{f'{100 * mean.mean:.2f} ± {100 * mean.ci95:.2f}':>16}",
            f"{f'{100 * behind.mean:.2f} ± {100 * behind.ci95:.2f}':>18}",
            f"{f'{result.training:.0f} s' if result.training else '-':>10}",
            f"{f'{1000 * result.seconds / len(best):.0f} ms':>10}",
        ]
        print(f"{name:<24}" + "".join(cells), flush=True)
    found = {name: estimate(result.accuracies) for name, result in ranked}
    compared_accuracies(root / title.replace(",", "").replace(" ", "-"), found)
