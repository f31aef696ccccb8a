"""The settings of each command: one dataclass for Python, the command line and `--config`.

A class's docstring is the command's help. A field declares its help, bounds and choices once, in
its metadata (see `option`). Fields with `affects_results=False` may change when a run is resumed,
because they do not change the results. The files that they name are compared by their hashes.
"""

from dataclasses import dataclass

from metajax.config.fields import Settings, option
from metajax.config.groups import (
    BatchSettings,
    DrawSettings,
    EpisodeSettings,
    MemorySettings,
    ModelSettings,
    TaskSettings,
    TrainSettings,
)
from metajax.config.inner import AlgorithmSettings, InnerSettings, MethodSettings
from metajax.errors import InputError

EPISODES = 600  # Episodes of an evaluation, by default.


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(TrainSettings, BatchSettings):
    """Pretrain on plain text: an encoder guesses masked tokens, a decoder each next token.

    Example: metajax pretrain --model bert-base-uncased --text corpus.txt --workdir runs/pretrain
    """

    text: tuple[str, ...] = option(
        "plain text files, a document per line; or documents:PATH (text files, a document each)",
        metavar="FILE",
        affects_results=False,
    )
    steps: int = option("optimizer steps", 1000, minimum=1)
    batch_size: int = option("blocks of --max-length tokens per step", 32, minimum=1)
    mask_rate: float = option("fraction of tokens to mask (encoders)", 0.15, above=0, maximum=0.9)
    whole_word: bool = option("mask whole words instead of single tokens (encoders)", False)
    held_out: float = option(
        "fraction of the text held out to measure the loss", 0.05, above=0, maximum=0.5
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(TrainSettings, TaskSettings, BatchSettings):
    """Train one encoder with one head per task on labelled data.

    Example: metajax finetune --model runs/pretrain --tasks glue:mrpc --workdir runs/mrpc
    """

    dev: tuple[str, ...] = option(
        "files to evaluate on, one per task in the same order (glue: and hub: have their own)",
        (),
        metavar="FILE",
        affects_results=False,
    )
    epochs: float = option("passes over the examples of all tasks", 3.0, above=0)
    steps: int | None = option("optimizer steps, instead of --epochs", None, minimum=1)
    batch_size: int = option("examples per step", 32, minimum=1)
    pooling: str | None = option(
        "input of the heads: pooler (BERT's pooler, GPT-2's last token), mean, cls (the first "
        "token), last, or weighted-mean; default: as the model's 1_Pooling says, else pooler",
        None,
        choices=("pooler", "mean", "cls", "last", "weighted-mean"),
    )


@dataclass(frozen=True, kw_only=True)
class MetatrainSettings(
    TrainSettings, TaskSettings, EpisodeSettings, AlgorithmSettings, MemorySettings
):
    """Meta-train an initialization that adapts in a few gradient steps.

    Example: metajax metatrain --model runs/pretrain --tasks intents.jsonl --workdir runs/maml
    """

    learning_rate: float = option("peak outer learning rate of AdamW", 2e-5, above=0)
    steps: int = option("outer steps", 300, minimum=1)
    logit_scale: float | None = option(
        "with protonet: the logits of a prototype are this times a cosine (default: 20); a larger "
        "one gives wrong and close queries more weight; later stages use 10",
        None,
        above=0,
        advanced=True,
    )
    similar_classes: int = option(
        "draw the classes of an episode from this many that are the most similar by the features "
        "of the original weights; 0: from all",
        0,
        minimum=0,
        advanced=True,
    )
    source_weights: tuple[float, ...] = option(
        "for each of --tasks, how often episodes come from it, relative to the others; 0: never "
        "(default: the square root of its number of examples)",
        (),
        minimum=0,
        metavar="WEIGHT",
        advanced=True,
    )
    valid: tuple[str, ...] = option(
        "tasks to validate on (default: some of --tasks)", (), metavar="TASK", affects_results=False
    )
    valid_classes: str | None = option(
        "keep only the labels in this file of --valid",
        None,
        metavar="FILE",
        affects_results=False,
        advanced=True,
    )
    held_out: float = option(
        "without --valid: fraction of the data sets, if there are three or more, or of the classes "
        "of each, that are held out for validation; 0: none, later stages read the last checkpoint",
        0.25,
        minimum=0,
        maximum=0.5,
        advanced=True,
    )
    valid_every: int = option(
        "steps between validations; later stages read the best checkpoint, or the weights from "
        "before if none is significantly better",
        100,
        minimum=1,
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_weights(self.tasks, self.source_weights)
        if self.whole_tasks and self.similar_classes:
            raise InputError(
                f"--similar-classes {self.similar_classes}: has no effect with --whole-tasks, "
                "which takes all classes; remove one of them"
            )
        if 0 < self.similar_classes < self.ways:
            raise InputError(
                f"--similar-classes {self.similar_classes}: is fewer than {self.ways} ways; give "
                "more, or 0 for all"
            )
        if self.valid_classes is not None and not self.valid:
            raise InputError(
                f"--valid-classes {self.valid_classes}: needs --valid; add it, with the file of "
                "--tasks if these classes are there"
            )
        if self.valid and self.held_out != MetatrainSettings.held_out:
            raise InputError(
                f"--held-out {self.held_out:g}: has no effect with --valid; remove one of them"
            )


def _check_weights(tasks: tuple[str, ...], weights: tuple[float, ...]) -> None:
    if weights and len(weights) != len(tasks):
        raise InputError(
            f"--source-weights: has {len(weights)} weights for {len(tasks)} data sets; give one "
            "for each of --tasks"
        )
    if weights and not any(weights):
        raise InputError("--source-weights: are all 0; give at least one a weight above 0")


@dataclass(frozen=True, kw_only=True)
class AdaptSettings(ModelSettings, TaskSettings, MethodSettings):
    """Adapt a model to a new task with a few gradient steps on its examples.

    Example: metajax adapt --model runs/maml --tasks examples.csv --workdir runs/mine
    """

    inner_lr: float | None = option(
        "learning rate of SGD (default: the largest that does not raise the loss of any step; no "
        "steps at all if prototypes alone classify more left-out examples correctly; on documents: "
        "as meta-trained, else 0.1)",
        None,
        above=0,
    )
    tasks: tuple[str, ...] = option(
        "CSV, TSV, JSON Lines or Parquet file; glue:NAME; hub:OWNER/NAME[/CONFIG]; documents:PATH "
        "(text files, for a decoder); not needed with --label-names",
        (),
        metavar="TASK",
        affects_results=False,
    )
    label_names: str | None = option(
        'JSON object {"label": "its name or description"}: each counts as one more example',
        None,
        metavar="FILE",
        affects_results=False,
    )
    label_separator: str | None = option(
        "what stands between the labels of a text, such as ';', so that it can have any number",
        None,
        metavar="TEXT",
        if_empty="give what stands between the labels, such as ';'",
        advanced=True,
    )
    dev: str | None = option(
        "other examples of the task, to report the accuracy on, or other documents",
        None,
        metavar="TASK",
        affects_results=False,
    )
    workdir: str = option("directory for the adapted model", affects_results=False)


@dataclass(frozen=True, kw_only=True)
class PredictSettings(Settings):
    """Predict the labels of new texts.

    Example: metajax predict --model runs/mine --input texts.txt
    """

    model: str = option("workdir of adapt or finetune, or a Hugging Face classifier")
    input: str = option(
        "file with one text per line, or CSV, TSV, JSON Lines or Parquet; - is standard input",
        "-",
        metavar="FILE",
    )
    output: str = option("file for one line per text; - is standard output", "-", metavar="FILE")
    format: str = option(
        "tsv: label<TAB>probability; jsonl: a JSON object with label (or labels) and scores",
        "tsv",
        choices=("tsv", "jsonl"),
    )
    top: int = option(
        "labels per text, the most probable first, if the model gives one label per text",
        1,
        minimum=1,
        metavar="K",
    )
    threshold: float | None = option(
        "label texts as --none-label if their highest probability is lower (adapt --calibrate "
        "reports a threshold)",
        None,
        above=0,
        maximum=1,
        metavar="P",
    )
    none_label: str = option(
        "label of texts below --threshold", "none", metavar="NAME", if_empty="give a label"
    )
    task: str | None = option("which head to use, if finetune trained several", None)
    batch_size: int = option("texts per batch", 64, minimum=1)
    max_length: int | None = option(
        "truncate texts to this many tokens (default: as in the run, else 128)", None, minimum=3
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(ModelSettings, TaskSettings, DrawSettings, InnerSettings):
    """Compare methods on the same few-shot episodes.

    Example: metajax evaluate --model runs/maml --tasks intents.jsonl --classes test.txt
    """

    methods: tuple[str, ...] = option(
        "checkpoint: the given model; baselines without meta-training: same-steps (the same "
        "adaptation), prototypes, linear, knn, finetune, contrastive; on documents: none (no "
        "adaptation), context (no adaptation, but the model reads the stream too) (default: all "
        "that apply but finetune and contrastive)",
        (),
        choices=(
            *("checkpoint", "same-steps", "prototypes", "linear", "knn"),
            *("finetune", "contrastive", "none", "context"),
        ),
        metavar="METHOD",
    )
    # None means not given: the files of --splits have their own sizes.
    ways: int | None = option(
        f"classes per episode (default {EpisodeSettings.ways})", None, minimum=2
    )
    shots: int | None = option(
        f"support examples per class (default {EpisodeSettings.shots})", None, minimum=1
    )
    queries: int | None = option(
        f"query examples per class, or chunks; 0: test each chunk of the stream before the step on "
        f"it (default {EpisodeSettings.queries})",
        None,
        minimum=0,
    )
    episodes: int | None = option(f"number of episodes (default {EPISODES})", None, minimum=2)
    splits: str | None = option(
        "directory of published support sets, one file per episode; all other examples of --tasks "
        "are classified (default: random episodes)",
        None,
        metavar="DIR",
    )
    curve: int | None = option(
        "report the accuracy of checkpoint and same-steps after 0, 1, ..., STEPS inner steps",
        None,
        minimum=1,
        metavar="STEPS",
    )
    output: str | None = option("write the results to this JSON file", None, metavar="FILE")


@dataclass(frozen=True, kw_only=True)
class DemoSettings(Settings):
    """Run all stages on the docstrings of Python, and on its source files as documents.

    Example: metajax demo
    """

    workdir: str = option("directory for the demo (resumes if it exists)", "demo")
    model: str | None = option(
        "directory of other weights than all-MiniLM-L6-v2", None, metavar="DIR"
    )
    seed: int = option("seed of the demo", 0, minimum=0)
