r"""Leave one data set out: meta-train on the others, and adapt to it.

Claim: on all classes of a data set of intents, a small BERT that was meta-trained on two other sets
is ahead of its original weights, by intervals that exclude zero, and of multi-task fine-tuning. A
sentence encoder gains up to 4 points, or is level; with logits of ten times a cosine it can lose
accuracy (see experiments/drift.py).
Paper: leaving whole data sets out: Triantafillou et al. 2020 (arXiv:1903.03096), section 3;
averages of the weights before and after training (Wortsman et al. 2022, arXiv:2109.01903).
Command: python -m experiments.transfer --model BERT --data DATA --target BANKING77 \
    --root runs/transfer --methods protonet --multi-task --inner-lr 0.01 --learning-rate 1e-4 \
    --steps 300 --episodes 0 --heads prototypes linear --seeds 0
Hardware and time: one CPU core, about three minutes of CPU time per target and seed with a BERT of
two layers.
Expect: BANKING77, 5 examples per class, prototypes: 53 after meta-training, 45 after multi-task
fine-tuning, 39 with the original weights.

Each row is a set of weights with a classifier: prototypes, logistic regression, or three gradient
steps from prototypes (not with the rates that maml++ learns). The weights are the original ones,
those of a multi-task fine-tuning, and those of each way of meta-training, with averages of the
weights before and after it. The tests are draws of a support set with all classes of the target,
and episodes of five of its classes. All rows have the same ones. The interval of a lead is that of
the difference of each draw, in the mean over the training seeds. The last column has the lead of
each seed.

Sentences that a source shares with the target are left out of the source. `--valid` leaves one more
data set out and tests on that one, to choose settings without the target. Finished parts are not
run again. RESULTS.md explains DATA and BERT. `--extra` adds further sources; an episode of one of
GLUE's tasks has its two classes. experiments/unseen.py meta-trains on these alone.
"""

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optax

import metajax
from experiments.runs import SETS, Trained, command, exported, intent_sets, judged, percent, trained
from experiments.unlabelled import letters
from experiments.unseen import GLUE
from metajax import data
from metajax.config.settings import MetatrainSettings
from metajax.data.seeding import generator
from metajax.runs.demo_data import write_data
from metajax.training.evaluation import estimate

METHODS: dict[str, dict[str, Any]] = {  # All have 120 texts per step.
    "protonet": {"algorithm": "protonet"},  # Its logit scale is 20.
    "protonet, logit scale 10": {"algorithm": "protonet", "logit_scale": 10.0},
    "protonet, logit scale 50": {"algorithm": "protonet", "logit_scale": 50.0},
    "protonet, similar classes": {"algorithm": "protonet", "similar_classes": 10},
    "protonet, similar classes, logit scale 10": {
        "algorithm": "protonet",
        "similar_classes": 10,
        "logit_scale": 10.0,
    },
    "protonet, similar classes, logit scale 50": {
        "algorithm": "protonet",
        "similar_classes": 10,
        "logit_scale": 50.0,
    },
    "protonet, 40 ways": {
        "algorithm": "protonet",
        "ways": 40,
        "queries": 2,
        "meta_batch_size": 1,
        "logit_scale": 10.0,
    },
    "maml": {"algorithm": "maml"},
    "maml++": {"algorithm": "maml++"},
    "first-order maml": {"algorithm": "fomaml"},
    "first-order maml, similar classes": {"algorithm": "fomaml", "similar_classes": 10},
}
HEADS = ("prototypes", "linear", "same-steps")
BASELINES = ("knn", "finetune", "contrastive")
PER_CLASS = 30  # Texts of a class of the target.

Row = dict[str, Any]


def roles(target: str, *, valid: bool) -> tuple[str, list[str]]:
    """Return the data set to test on and the sources.

    With `valid`, the first source takes the place of the target, which is not used.
    """
    others = [name for name in SETS if name != target]
    return (others[0], others[1:]) if valid else (target, others)


def write_sources(
    intents: Path, names: Sequence[str], left_out: Sequence[str], root: Path
) -> list[str]:
    """Write data sets without the sentences that those left out have too; return the files.

    Sentences are the same if their letters and digits are.
    """
    unseen = {letters(row["sentence"]) for name in left_out for row in _rows(intents, name)}
    files = []
    for name in names:
        rows = _rows(intents, name)
        own = [row for row in rows if letters(row["sentence"]) not in unseen]
        print(
            f"{name}: {len(rows) - len(own)} of {len(rows)} sentences are also in "
            f"{' or '.join(left_out)} and are left out",
            flush=True,
        )
        files.append(_write(root / f"{name}-without-{'-'.join(left_out)}.jsonl", own))
    return files


def write_target(intents: Path, name: str, root: Path) -> str:
    """Write up to `PER_CLASS` sentences of each class of a data set, chosen at random."""
    rows = _rows(intents, name)
    by_class: dict[str, list[Row]] = {}
    for number in generator(0, "target").permutation(len(rows)):
        by_class.setdefault(rows[number]["label"], []).append(rows[number])
    some = [row for label in sorted(by_class) for row in by_class[label][:PER_CLASS]]
    return _write(root / f"{name}-{PER_CLASS}-per-class.jsonl", some)


def _rows(intents: Path, name: str) -> list[Row]:
    lines = (intents / name / "full.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _write(file: Path, rows: Sequence[Row]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def extra_sources(names: Sequence[str], files: Sequence[str], root: Path) -> list[str]:
    """Return further tasks: docstrings, words hidden in the sources' sentences, or GLUE's."""
    tasks = [f"glue:{name}" for name in GLUE] if "glue" in names else []
    if "docstrings" in names:
        tasks.append(str(write_data(root / "docstrings", seed=0).tasks))
    if "words" in names:
        text = root / f"text-{'-'.join(Path(file).stem for file in files)}.txt"
        lines = [line for file in files for line in Path(file).read_text("utf-8").splitlines()]
        sentences = (" ".join(json.loads(line)["sentence"].split()) for line in lines)
        text.write_text("".join(f"{sentence}\n" for sentence in sentences), encoding="utf-8")
        tasks.append(f"smlmt:{text}")
    return tasks


def source_weights(tasks: Sequence[str], power: float, **reading: Any) -> tuple[float, ...]:
    """Return the weight of each source: its number of texts to a power."""
    return tuple(float(len(task.labels)) ** power for task in data.load_tasks(tasks, **reading))


def averaged(start: str, run: Trained, share: float) -> str:
    """Export the average of the weights before and after a run; return the directory.

    Args:
        start: the weights before it.
        run: the run.
        share: of the weights after it, 0..1.
    """
    end = exported(run)
    if share == 1:
        return end
    model, before = metajax.from_pretrained(start)
    _, after = metajax.from_pretrained(end)
    metajax.save_pretrained(
        f"{end}-{share:g}", model, optax.incremental_update(after, before, share)
    )
    return f"{end}-{share:g}"


def all_weights(
    options: argparse.Namespace, files: Sequence[str], extra: Sequence[str], root: Path
) -> dict[str, list[str]]:
    """Train each way with each seed; return the directories of the weights by name."""
    shared = {"model": options.model, "max_length": 32}
    further: dict[str, Any] = (
        {"glue_dir": str(Path(options.data) / "glue")} if "glue" in options.extra else {}
    )
    training = {"steps": options.steps, "learning_rate": options.learning_rate}
    defaults = {"held_out": MetatrainSettings.held_out}
    if options.power is not None:
        further["source_weights"] = source_weights((*files, *extra), options.power, **further)
    name = "-".join(Path(file).stem for file in files)
    weights = {"original": [options.model]}
    for seed in options.seeds:
        for method in options.methods:
            settings = METHODS[method] | shared | further
            settings |= {"seed": seed, "tasks": (*files, *extra)}
            settings |= defaults if options.defaults else training
            if settings["algorithm"] != "protonet":  # It takes no inner steps.
                settings["inner_lr"] = options.inner_lr
            run = trained(root, f"{name}-{method.replace(' ', '-')}", "metatrain", **settings)
            for share in options.shares:
                part = "" if share == 1 else f", {share:g} of the way"
                weights.setdefault(f"{method}{part}", []).append(
                    averaged(options.model, run, share)
                )
        if options.multi_task:
            settings = shared | training | {"seed": seed, "tasks": tuple(files), "pooling": "mean"}
            run = trained(root, f"{name}-finetune", "finetune", **settings)
            weights.setdefault("multi-task", []).append(run.path)
    return weights


def sizes(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the settings of the draws of each kind and number of examples, by title."""
    kinds: dict[str, dict[str, Any]] = {}
    if options.draws:
        kinds["all classes"] = {"whole_tasks": True, "episodes": options.draws}
    if options.episodes:
        kinds["5-way"] = {"ways": 5, "episodes": options.episodes}
    return {
        f"{kind}, {shots}-shot": {**settings, "shots": shots, "queries": 5}
        for (kind, settings), shots in itertools.product(kinds.items(), options.shots)
    }


def compare(
    options: argparse.Namespace, weights: dict[str, list[str]], title: str, **asked: Any
) -> None:
    """Print the accuracy of each set of weights with each classifier, and its lead."""
    root = Path(options.root)
    plain: dict[str, np.ndarray] = {}
    print(f"{title:<48}{'accuracy':>16}{'ahead of original':>20}  by seed")
    for name, directories in weights.items():
        heads = (*options.heads, *(options.baselines if name == "original" else ()))
        by_seed = [judged(root, directory, *heads, **asked) for directory in directories]
        for number, head in enumerate(heads):
            accuracies = np.array([results[number].accuracies for results in by_seed])
            plain.setdefault(head, accuracies[0])
            lead = accuracies - plain[head]
            cells = f"{percent(estimate(accuracies.mean(0))):>16}"
            if name != "original":
                cells += f"{percent(estimate(lead.mean(0))):>20}  "
                cells += " ".join(f"{100 * each:+.2f}" for each in lead.mean(1))
            print(f"{name + ', ' + head:<48}{cells}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Train on all data sets but one, and print how the weights do on that one."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--model", required=True, help="the weights")
    made.add_argument("--data", required=True, help="the folder with intents (and glue)")
    made.add_argument("--target", choices=SETS, default="BANKING77", help="the set left out")
    made.add_argument("--valid", action="store_true", help="test on a source instead")
    made.add_argument("--extra", nargs="+", choices=("docstrings", "words", "glue"), default=[])
    made.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    made.add_argument("--shares", type=float, nargs="+", default=[1, 0.5], help="of averages")
    made.add_argument(
        "--power",
        type=float,
        help="draw each source in proportion to its number of texts to this power (default: as "
        "metatrain, to the square root of the number of examples that episodes use)",
    )
    made.add_argument("--multi-task", action="store_true", help="fine-tune on the sources too")
    made.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    made.add_argument("--baselines", nargs="*", choices=BASELINES, default=["knn"])
    made.add_argument("--steps", type=int, default=100, help="of a training without --defaults")
    made.add_argument("--learning-rate", type=float, default=5e-5, help="likewise")
    made.add_argument(
        "--defaults",
        action="store_true",
        help="meta-train with the steps, learning rate and validation of metatrain",
    )
    made.add_argument("--inner-lr", type=float, default=0.1, help="of all adaptation")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of each training")
    made.add_argument("--shots", type=int, nargs="+", default=[1, 5, 10])
    made.add_argument("--draws", type=int, default=10, help="of all classes")
    made.add_argument("--episodes", type=int, default=300, help="of five classes")
    made.add_argument("--root", default="runs/transfer", help="the folder of the runs")
    options = made.parse_args(arguments)
    root, intents = Path(options.root), intent_sets(options)
    root.mkdir(parents=True, exist_ok=True)
    tested, sources = roles(options.target, valid=options.valid)
    files = write_sources(intents, sources, sorted({options.target, tested}), root)
    weights = all_weights(options, files, extra_sources(options.extra, files, root), root)
    target = write_target(intents, tested, root)
    for title, settings in sizes(options).items():
        asked = {"tasks": (target,), "max_length": 32, "inner_lr": options.inner_lr, **settings}
        compare(options, weights, f"{tested}, {title}", **asked)


if __name__ == "__main__":
    command(main)
