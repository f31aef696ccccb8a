"""Compare few-shot classifiers on the same encoder, examples and test texts.

For each draw, a support set and test texts are written to files. Each contender reads them in a
process of its own, adapts and predicts. SetFit runs in another environment:

    python3 -m venv setfit && setfit/bin/pip install torch==2.13.0
    setfit/bin/pip install torch==2.13.0 setfit==1.2.0
    python -m benchmarks.few_shot --setfit-python setfit/bin/python \
        --model all-MiniLM-L6-v2 --data DATA --set sst2 --shots 8 --seeds 0 1 2

FastFit 1.2.1 runs in one more environment (`--fastfit-python`), with older libraries:

    fastfit/bin/pip install fast-fit==1.2.1 torch==2.13.0 transformers==4.39.3 \
        accelerate==0.28.0 datasets==2.21.0

Use a Python without PyTorch, as `pip install .` makes it: transformers imports PyTorch wherever it
is installed, which takes seconds and 0.2 GB. DATA is the folder with `glue` and `intents`.
`--classes 01/test` keeps the test classes of the split 01 of an intent set. SetFit has its own
defaults: one epoch of pairs, then logistic regression; `--setfit-iterations 20` has the 20 pairs of
each kind per example of SetFit's paper, which large support sets need. `METHOD+names` also has the
labels' names, and with `--shots 0` nothing else. `--meta-trained RUN` adds rows of the methods that
start from a run's weights; the run must not have seen the data set (experiments/transfer.py leaves
it out). Prints accuracies with their 95% intervals over draws, the paired difference to SetFit,
seconds to adapt (with loading and compiling), seconds for 1,000 predictions, and peak memory.
Before a contender's first run, another process imports its libraries, so that their bytecode is
cached. With `--output`, finished rows are not run again.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from metajax import data
from metajax.runs.workdir import write_atomically
from metajax.training.evaluation import estimate

GLUE = ("sst2", "cola", "mrpc", "rte")
INTENTS = {"banking77": "BANKING77", "clinc150": "CLINC150", "hwu64": "HWU64"}
OURS = ("contrastive", "finetune", "steps", "linear", "prototypes")
NAMED = tuple(f"{method}+names" for method in OURS)  # The labels' names are examples too.
META = ", meta-trained"
IMPORTS = {"setfit": "setfit", "fastfit": "fastfit.train"}  # Of the contenders.
OUR_IMPORTS = "metajax.estimator, safetensors.numpy, sklearn.linear_model, tokenizers, transformers"


def load(options: argparse.Namespace, name: str) -> tuple[data.TaskData, data.TaskData | None]:
    """Return a data set, and its own test texts if it has them."""
    root = Path(options.data)
    if name in GLUE:
        parts = [
            data.load_tasks([f"glue:{name}"], glue_dir=root / "glue", split=split)[0]
            for split in ("train", "validation")
        ]
        return parts[0], parts[1]
    folder = root / "intents" / INTENTS[name]
    classes = None
    if options.classes:
        split, part = options.classes.split("/")
        classes = folder / "few_shot" / split / f"labels.{part}.txt"
    return data.load_tasks([str(folder / "full.jsonl")], classes=classes)[0], None


def draw(
    options: argparse.Namespace, task: data.TaskData, test: data.TaskData | None, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of a support set, and of at most `--tested` other texts."""
    rng = np.random.default_rng(seed)
    shuffled = [rng.permutation(rows) for rows in task.drawn_rows()]
    support = np.concatenate([rows[: options.shots] for rows in shuffled])  # Perhaps empty.
    source = test or task
    rest = np.concatenate([rows[options.shots :] for rows in shuffled])
    rest = np.arange(len(source.labels)) if test else rest
    chosen = rng.permutation(rest)[: options.tested]
    return _rows(task, support), _rows(source, chosen)


def _rows(task: data.TaskData, rows: np.ndarray) -> list[dict[str, Any]]:
    return [
        {
            "text": task.texts[row] if task.pairs is None else [task.texts[row], task.pairs[row]],
            "label": int(task.labels[row]),
        }
        for row in rows
    ]


def run(
    options: argparse.Namespace,
    name: str,
    seed: int,
    rows: tuple[list[Any], list[Any]],
    labels: tuple[str, ...],
) -> dict[str, Any]:
    """Let a contender adapt and predict; return its accuracy, times and memory."""
    with TemporaryDirectory() as place:
        for part, own in zip(("support", "test"), rows):
            (Path(place) / f"{part}.json").write_text(json.dumps(own))
        named = [label.replace("_", " ") for label in labels] if name in NAMED else []
        (Path(place) / "names.json").write_text(json.dumps(named))
        others = {"setfit": options.setfit_python, "fastfit": options.fastfit_python}
        python = others.get(name, sys.executable)
        model = options.meta_trained if name.endswith(META) else options.model
        script = Path(__file__).parent / "few_shot_contender.py"
        command = [python, str(script), name.removesuffix(META), model, str(seed), place]
        command += [str(options.setfit_iterations)] * (options.setfit_iterations is not None)
        cache_bytecode(python, IMPORTS.get(name, OUR_IMPORTS))
        run_python(*command)
        result = json.loads((Path(place) / "result.json").read_text())
    truth = np.array([row["label"] for row in rows[1]])
    result["accuracy"] = float(np.mean(np.array(result.pop("predictions")) == truth))
    result["predict"] *= 1000 / len(truth)
    return result


@functools.cache
def cache_bytecode(python: str, modules: str) -> None:
    """Import modules once, so that no timed run compiles their sources."""
    run_python(python, "-c", f"import {modules}")


def run_python(*command: str) -> None:
    """Run a contender's Python, which keeps the bytecode of what it imports."""
    variables = {**os.environ}
    variables.pop("PYTHONDONTWRITEBYTECODE", None)  # Each process would compile all sources.
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1], env=variables)


class Finished:
    """Results by data set, shots, seed and method, kept in the file `--output` if it is given."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._rows: list[dict[str, Any]] = []
        if options.output and Path(options.output).exists():
            self._rows = json.loads(Path(options.output).read_text())

    def get(self, key: dict[str, Any], contend: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return a result of the file with the same key and settings, or that of `contend`."""
        names = ["model", "data", "classes", "tested"]
        names += ["setfit_iterations"] * (key["method"] == "setfit")
        names += ["meta_trained"] * key["method"].endswith(META)
        key = key | {name: getattr(self._options, name) for name in names}
        for row in self._rows:
            if key.items() <= row.items():
                return row
        self._rows.append(key | contend())
        if self._options.output:
            write_atomically(Path(self._options.output), json.dumps(self._rows, indent=2) + "\n")
        return self._rows[-1]


def show(title: str, results: dict[str, list[dict[str, Any]]]) -> None:
    """Print a row per contender, with the paired difference to SetFit if it took part."""
    print(f"{title:<28}{'accuracy':>16}{'ahead of SetFit':>18}{'fit s':>9}{'1,000 s':>9}{'GB':>7}")
    scores = {name: np.array([row["accuracy"] for row in rows]) for name, rows in results.items()}
    for name, rows in results.items():
        means = {key: np.mean([row[key] for row in rows]) for key in ("fit", "predict")}
        ahead = "" if "setfit" not in scores else percent(scores[name] - scores["setfit"])
        peak = max(row["peak_bytes"] for row in rows) / 1e9
        print(
            f"{name:<28}{percent(scores[name]):>16}{ahead:>18}{means['fit']:>9.1f}"
            f"{means['predict']:>9.2f}{peak:>7.2f}",
            flush=True,
        )


def percent(values: np.ndarray) -> str:
    """Return the mean of values in 0..1 and its 95% interval, in percent."""
    found = estimate(values)
    return f"{100 * found.mean:.2f} ± {100 * found.ci95:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--setfit-python", help="the Python of SetFit's environment")
    parser.add_argument("--fastfit-python", help="the Python of FastFit's environment")
    parser.add_argument(
        "--setfit-iterations", type=int, help="SetFit's num_iterations, instead of all pairs"
    )
    parser.add_argument("--model", required=True, help="the directory of a sentence encoder")
    parser.add_argument("--meta-trained", help="a run of metatrain from --model on other sets")
    parser.add_argument("--data", required=True, help="the folder with glue and intents")
    parser.add_argument("--set", nargs="+", choices=(*GLUE, *INTENTS), default=["sst2"])
    parser.add_argument("--classes", help="of an intent set, such as 01/test (default: all)")
    parser.add_argument("--shots", nargs="+", type=int, default=[8], help="examples per class")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(10)))
    parser.add_argument("--tested", type=int, default=1000, help="test texts at most")
    parser.add_argument(
        "--methods", nargs="+", choices=(*OURS, *NAMED), default=["contrastive", "linear"]
    )
    parser.add_argument("--output", help="a JSON file that keeps finished rows")
    options = parser.parse_args()
    if options.classes and options.classes.count("/") != 1:
        parser.error(f"--classes {options.classes}: is not SPLIT/PART; give, for example, 01/test")
    names = ["setfit"] * bool(options.setfit_python) + ["fastfit"] * bool(options.fastfit_python)
    names += options.methods
    names += [method + META for method in options.methods if options.meta_trained]
    finished = Finished(options)
    for name in options.set:
        task, test = load(options, name)
        for shots in options.shots:
            own = argparse.Namespace(**{**vars(options), "shots": shots})
            results: dict[str, list[dict[str, Any]]] = {each: [] for each in names}
            for seed in options.seeds:
                rows = draw(own, task, test, seed)
                for each in names:
                    key = {"set": name, "shots": shots, "seed": seed, "method": each}
                    contend = functools.partial(run, own, each, seed, rows, task.label_names)
                    results[each].append(finished.get(key, contend))
            show(f"{name}, {shots} per class", results)


if __name__ == "__main__":
    main()
