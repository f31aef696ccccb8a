"""Compare finetune and pretrain with transformers in PyTorch: same weights, data, settings.

The two sides train one after the other, each in a separate process (`--turns` times for
pretraining). PyTorch runs the loop of transformers' examples: AdamW without decay on biases and
LayerNorms, linear warm-up and decay, clipping at 1, dropout, and batches padded to their longest
text.

    python -m benchmarks.stages finetune --model DIR --glue-dir DIR --epochs 3
    python -m benchmarks.stages pretrain --model DIR --text FILE --steps 30 --turns 3

Needs the `test` extra (PyTorch). Prints a table and, with --output, writes it as JSON.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BATCH = 32
RATE = 5e-5


def metajax_finetune(options: argparse.Namespace) -> dict[str, Any]:
    from metajax.commands.finetune import finetune
    from metajax.config.settings import FinetuneSettings

    with tempfile.TemporaryDirectory() as folder:
        results = finetune(
            FinetuneSettings(
                model=options.model,
                tasks=("glue:mrpc",),
                glue_dir=options.glue_dir,
                workdir=folder,
                epochs=options.epochs,
                batch_size=BATCH,
                max_length=options.max_length,
                learning_rate=RATE,
                seed=options.seed,
                save_every=10**9,
            )
        )
        seconds = step_seconds(Path(folder))
    return {"step_seconds": seconds, **results["after"]["glue:mrpc"]}


def metajax_pretrain(options: argparse.Namespace) -> dict[str, Any]:
    from metajax.commands.pretrain import pretrain
    from metajax.config.settings import PretrainSettings

    with tempfile.TemporaryDirectory() as folder:
        results = pretrain(
            PretrainSettings(
                model=options.model,
                text=(options.text,),
                workdir=folder,
                steps=options.steps,
                batch_size=BATCH,
                max_length=options.max_length,
                learning_rate=RATE,
                seed=options.seed,
                save_every=10**9,
            )
        )
        seconds = step_seconds(Path(folder))
    return {"step_seconds": seconds, "loss": results["after"]["loss"]}


def with_masked_lm_head(model: str, folder: str) -> str:
    """Write the same weights for both sides; the head is new if the model has none."""
    import metajax

    metajax.save_pretrained(folder, *metajax.from_pretrained(model, head="masked_lm"))
    return folder


def step_seconds(workdir: Path) -> float:
    """Return the median seconds of the steps, which excludes compilation."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(row["seconds"] for row in rows if "seconds" in row)


def pytorch_finetune(options: argparse.Namespace) -> dict[str, Any]:
    import sklearn.metrics
    import torch
    import transformers

    from metajax import data

    torch.manual_seed(options.seed)
    torch.set_num_threads(2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    model = transformers.BertForSequenceClassification.from_pretrained(options.model)
    splits = {}
    for split in ("train", "validation"):
        (task,) = data.load_tasks(["glue:mrpc"], glue_dir=options.glue_dir, split=split)
        splits[split] = data.tokenize_task(task, tokenizer, options.max_length)
    count = -(-round(options.epochs * len(splits["train"].labels)) // BATCH)
    order = torch.cat(
        [torch.randperm(len(splits["train"].labels)) for _ in range(int(options.epochs) + 1)]
    )

    def batch_of(split: str, rows: Any) -> dict[str, Any]:
        tokens = splits[split].tokens
        length = int(tokens.lengths[rows].max())
        return {
            "input_ids": torch.tensor(tokens.input_ids[rows, :length], dtype=torch.long),
            "token_type_ids": torch.tensor(tokens.token_type_ids[rows, :length], dtype=torch.long),
            "attention_mask": torch.arange(length) < torch.tensor(tokens.lengths[rows, None]),
            "labels": torch.tensor(splits[split].labels[rows], dtype=torch.long),
        }

    def loss_of(step: int) -> Any:
        rows = order[step * BATCH : (step + 1) * BATCH].numpy()
        return model(**batch_of("train", rows)).loss

    seconds = torch_train(model, loss_of, count)
    model.eval()
    labels, guesses = splits["validation"].labels, []
    with torch.no_grad():
        for first in range(0, len(labels), 64):
            rows = range(first, min(first + 64, len(labels)))
            guesses += model(**batch_of("validation", list(rows))).logits.argmax(-1).tolist()
    return {
        "step_seconds": seconds,
        "accuracy": sklearn.metrics.accuracy_score(labels, guesses),
        "f1": sklearn.metrics.f1_score(labels, guesses),
    }


def pytorch_pretrain(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    import transformers

    from metajax import data

    torch.manual_seed(options.seed)
    torch.set_num_threads(2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    model = transformers.BertForMaskedLM.from_pretrained(options.model)
    blocks = data.pack_blocks(data.read_lines(options.text), tokenizer, options.max_length)
    training, held_out = data.held_out(blocks, options.seed)
    rule = data.mask_rule(tokenizer)

    def inputs(batch: dict[str, Any]) -> dict[str, Any]:
        tensors = {key: torch.tensor(value, dtype=torch.long) for key, value in batch.items()}
        positions, targets = tensors.pop("positions"), tensors.pop("targets")
        labels = torch.full_like(tensors["input_ids"], -100)
        rows, columns = torch.nonzero(targets >= 0, as_tuple=True)
        labels[rows, positions[rows, columns]] = targets[rows, columns]
        return {**tensors, "labels": labels}

    def loss_of(step: int) -> Any:
        batch = data.pretraining_batch(training, rule, options.seed, step, BATCH)
        return model(**inputs(batch)).loss

    seconds = torch_train(model, loss_of, options.steps)
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for first in range(0, len(held_out.input_ids), BATCH):
            rows = data.take(held_out, slice(first, first + BATCH))
            batch = inputs(data.mask_tokens(rows, rule, options.seed, first))
            targets = int((batch["labels"] >= 0).sum())
            total, count = total + float(model(**batch).loss) * targets, count + targets
    return {"step_seconds": seconds, "loss": total / count}


def torch_train(model: Any, loss_of: Any, count: int) -> float:
    """Train as transformers' examples do, and return the median seconds of the steps."""
    import torch
    import transformers

    plain = [p for name, p in model.named_parameters() if "bias" in name or "LayerNorm" in name]
    decayed = [
        p for name, p in model.named_parameters() if "bias" not in name and "LayerNorm" not in name
    ]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, -(-count // 10), count)
    model.train()
    seconds = []
    for step in range(count):
        start = time.perf_counter()
        loss = loss_of(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


SIDES = {
    "finetune": {"metajax": metajax_finetune, "pytorch": pytorch_finetune},
    "pretrain": {"metajax": metajax_pretrain, "pytorch": pytorch_pretrain},
}


def versions() -> dict[str, str]:
    import importlib.metadata

    names = ("metajax", "jax", "flax", "optax", "torch", "transformers")
    return {name: importlib.metadata.version(name) for name in names} | {
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stage", choices=SIDES)
    parser.add_argument("--model", required=True, help="a Hugging Face directory")
    parser.add_argument("--glue-dir", help="for finetune: GLUE's TSV layout")
    parser.add_argument("--text", help="for pretrain: a plain text file")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--turns", type=int, default=1, help="runs of each side, in turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="write the results as JSON")
    parser.add_argument("--side", help=argparse.SUPPRESS)  # One side, in a separate process.
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.side:
        print(json.dumps(SIDES[options.stage][options.side](options)))
        return
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES[options.stage]}
    with tempfile.TemporaryDirectory() as folder:
        model = options.model
        if options.stage == "pretrain":
            model = with_masked_lm_head(model, folder)
        for _ in range(options.turns):
            for side, side_runs in runs.items():
                command = [sys.executable, "-m", "benchmarks.stages", *sys.argv[1:]]
                command += ["--model", model, "--side", side]
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
                side_runs.append(json.loads(done.stdout.strip().splitlines()[-1]))
    names = list(runs["pytorch"][0])
    print(f"{'':10}" + "".join(f"{name:>14}" for name in names))
    medians = {
        side: {name: statistics.median(run[name] for run in side_runs) for name in names}
        for side, side_runs in runs.items()
    }
    for side, row in medians.items():
        print(f"{side:10}" + "".join(f"{row[name]:14.4f}" for name in names))
    ratio = medians["metajax"]["step_seconds"] / medians["pytorch"]["step_seconds"]
    print(f"\nseconds a step, metajax / pytorch: {ratio:.2f}")
    if options.output:
        report = {"settings": vars(options), "versions": versions(), "runs": runs, "ratio": ratio}
        Path(options.output).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
