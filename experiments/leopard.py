r"""Meta-train BERT-base on GLUE and adapt to LEOPARD's tasks, from the support sets it published.

Claim: second-order meta-training of all layers of BERT-base on GLUE, as in `--config`, is level
with the best published second-order MAML or better: mean accuracy over 12 tasks with 4, 8 and 16
examples per class.
Paper: tasks and support sets: Bansal, Jha & McCallum 2020 (LEOPARD, arXiv:1911.03863); the numbers
to compare with: Ding et al. 2021 (PACMAML, arXiv:2105.14099), table 2, top.
Command: python -m experiments.leopard --model bert-base-cased --draws leopard/data/json \
    --config experiments/leopard-h100.yaml --root runs/leopard
Hardware and time: one H100 with 80 GB, or eight v5e chips with leopard-v5e-8.yaml. Not run yet. As
estimated by `metajax plan`, meta-training takes at least 29 minutes on the H100 and 18 on the v5e,
without compilation. The test on 360 support sets uses one device. Its time is not known; half an
hour on an H100 is a guess.
Expect: at 4, 8 and 16 examples MAML has 48.21, 53.52 and 57.38 there, PACMAML 51.58, 55.68 and
59.18, and H-SMLMT (arXiv:2009.08445) 48.61, 52.92 and 57.90.

Stages: with `--text`, continued pretraining on plain text; meta-training; adaptation to each
support set and a test on the task's whole test set. A stopped command resumes. DRAWS is the folder
data/json of https://github.com/iesl/leopard: a folder per task with NAME_eval.json and, per support
set I with K examples per class, NAME_train_I_K.json.

Meta-training draws episodes from CoLA, MRPC, RTE, SST-2, QQP, QNLI and MNLI (from the hub, or
`--glue-dir`), and with `--snli` from SNLI (its file snli_1.0_train.jsonl), in proportion to the
square root of their size. As in LEOPARD, each pair of classes of a data set with three classes is a
task too. The configs are also those of `metajax plan`, which shows that the step fits:

    metajax plan --config experiments/leopard-h100.yaml --model bert-base-cased \
        --steps 2000 --target h100
    metajax plan --config experiments/leopard-v5e-8.yaml --model bert-base-cased \
        --steps 2000 --target v5e:2x4
"""

import argparse
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from experiments.runs import command, evaluated, trained
from metajax import data
from metajax.config.files import read_config
from metajax.config.settings import MetatrainSettings
from metajax.data.readers import read_table
from metajax.errors import InputError

TASKS = (
    *("conll", "restaurant", "airline", "disaster", "emotion"),
    *("political_bias", "political_audience", "political_message"),
    *("rating_books", "rating_dvd", "rating_electronics", "rating_kitchen"),
)
GLUE = ("cola", "mrpc", "rte", "sst2", "qqp", "qnli", "mnli")
PAPER = {
    "MAML (PACMAML's paper)": {4: 48.21, 8: 53.52, 16: 57.38},
    "PACMAML": {4: 51.58, 8: 55.68, 16: 59.18},
}
TESTING = ("inner_lr", "max_length", "dtype", "remat")  # Settings of both training and testing.


def sub_tasks(task: data.TaskData, root: Path) -> list[str]:
    """Write a data set with all its classes and with each pair of them; return the files.

    SNLI marks examples without a label by "-". They are left out.
    """
    root.mkdir(parents=True, exist_ok=True)
    names = [name for name in task.label_names if name != "-"]
    columns = (task.texts, task.pairs or task.texts, task.labels)
    files = []
    for kept in (names, *itertools.combinations(names, 2)):
        file = root / f"{'-'.join(kept)}.jsonl"
        with file.open("w", encoding="utf-8") as out:
            for text, pair, label in zip(*columns):
                if (name := task.label_names[label]) in kept:
                    row = {"text": text, "text_pair": pair, "label": name}
                    out.write(json.dumps(row) + "\n")
        files.append(str(file))
    return files


def training_tasks(options: argparse.Namespace, root: Path) -> list[str]:
    """Return the data sets to meta-train on."""
    tasks = [f"glue:{name}" for name in options.glue if name != "mnli"]
    if "mnli" in options.glue:
        [mnli] = data.load_tasks(["glue:mnli"], glue_dir=options.glue_dir)
        tasks += sub_tasks(mnli, root / "mnli")
    if options.snli:
        columns: dict[str, Any] = {"text_column": "sentence1", "pair_column": "sentence2"}
        [snli] = data.load_tasks([options.snli], label_column="gold_label", **columns)
        tasks += sub_tasks(snli, root / "snli")
    return tasks


def published(options: argparse.Namespace, task: str, shots: int) -> dict[str, Any]:
    """Return the settings of `metajax evaluate` for the support sets of one size of a task.

    Raises:
        InputError: they are missing or cannot be used.
    """
    folder = Path(options.draws) / task
    tests, draws = (
        sorted(folder.glob(pattern)) for pattern in ("*_eval.json", f"*_train_*_{shots}.json")
    )
    if len(tests) != 1 or not draws:
        raise InputError(
            f"{folder}: has {len(tests)} files *_eval.json and {len(draws)} files "
            f"*_train_*_{shots}.json; give --draws data/json of LEOPARD's repository"
        )
    directory = Path(options.root) / "draws" / f"{task}-{shots}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for file in draws:
        shutil.copy(file, directory)
    columns: dict[str, Any] = {"text_column": "sentence1"}
    if "sentence2" in read_table(tests[0]).names:
        columns["pair_column"] = "sentence2"
    # A wrong file is found now, not after hours of training.
    [examples] = data.load_tasks([tests[0].as_posix()], **columns)
    data.join_draws(examples, data.load_tasks([str(file) for file in draws], **columns))
    return {"tasks": (str(tests[0]),), "splits": str(directory), **columns}


def meta_trained(options: argparse.Namespace, config: dict[str, Any], root: Path) -> str:
    """Pretrain if there is text, and meta-train; return the working directory."""
    model = options.model
    if options.text:
        model = trained(
            root,
            "pretrain",
            "pretrain",
            model=model,
            text=tuple(options.text),
            steps=options.pretraining,
            seed=options.seed,
            **{name: config[name] for name in ("max_length", "dtype", "remat") if name in config},
        ).path
    settings = config | {
        "model": model,
        "tasks": tuple(training_tasks(options, root)),
        "glue_dir": options.glue_dir,
        "whole_tasks": True,
        "steps": options.steps,
        "learning_rate": options.learning_rate,
        "seed": options.seed,
    }
    return trained(root, "metatrain", "metatrain", **settings).path


def show(accuracies: dict[tuple[str, int], np.ndarray], options: argparse.Namespace) -> None:
    """Print the mean accuracy over the support sets of each task, and the mean over the tasks."""

    def line(name: str, values: list[float]) -> None:
        print(f"{name:<28}" + "".join(f"{value:>12.2f}" for value in values), flush=True)

    print(f"{'accuracy':<28}" + "".join(f"{f'{shots} examples':>12}" for shots in options.shots))
    table = [
        [100 * accuracies[task, shots].mean() for shots in options.shots] for task in options.tasks
    ]
    for task, row in zip(options.tasks, table):
        line(task, row)
    line(f"mean over {len(table)} tasks", list(np.mean(table, axis=0)))
    for name, numbers in PAPER.items():
        line(name, [numbers.get(shots, np.nan) for shots in options.shots])


def main(arguments: list[str] | None = None) -> None:
    """Meta-train on GLUE, adapt to each published support set, and print the accuracies."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--model", required=True, help="BERT-base")
    made.add_argument("--draws", required=True, help="the folder data/json of LEOPARD's repository")
    made.add_argument("--config", required=True, help="settings of the step for one machine")
    made.add_argument("--glue-dir", help="GLUE's TSV files (default: the hub)")
    made.add_argument("--glue", nargs="+", choices=GLUE, default=list(GLUE), help="to train on")
    made.add_argument("--snli", help="SNLI's training file, to meta-train on it too")
    made.add_argument("--text", nargs="+", help="plain text, to pretrain on it first")
    made.add_argument("--tasks", nargs="+", default=list(TASKS), help="of --draws")
    made.add_argument("--shots", nargs="+", type=int, default=[4, 8, 16])
    made.add_argument("--method", choices=("checkpoint", "same-steps"), default="checkpoint")
    made.add_argument("--pretraining", type=int, default=1000, help="steps on --text")
    made.add_argument("--steps", type=int, default=2000, help="of meta-training")
    made.add_argument("--learning-rate", type=float, default=2e-5, help="of meta-training")
    made.add_argument("--test-steps", type=int, default=20, help="steps on a support set")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--root", default="runs/leopard", help="the folder of the runs")
    options = made.parse_args(arguments)
    root = Path(options.root)
    config = read_config(Path(options.config), MetatrainSettings)
    for name in ("steps", "learning_rate", "seed"):
        if name in config:
            made.error(f"{options.config}: {name}: give --{name.replace('_', '-')} instead")
    sizes = list(itertools.product(options.tasks, options.shots))
    asked = {size: published(options, *size) for size in sizes}
    run = meta_trained(options, config, root)
    testing = {name: config[name] for name in TESTING if name in config}
    testing["inner_steps"] = options.test_steps
    accuracies = {}
    for size, settings in asked.items():
        [row] = evaluated(root, run, options.method, **settings, **testing)
        accuracies[size] = np.array(row.accuracies)
    show(accuracies, options)


if __name__ == "__main__":
    command(main)
