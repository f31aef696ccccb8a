"""The settings of every stage: one typed dataclass each, the same from Python and the command line.

A field's metadata holds its help and what it may be. Fields marked `matters=False` may differ when
a run is resumed: they change no number. (What the files named by the others hold is compared by
their hashes.)
"""

from dataclasses import dataclass

from metajax.errors import InputError
from metajax.stages.option import Settings, option


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings):
    """Where the weights come from."""

    model: str = option(
        "a hub id, a local Hugging Face directory, or the workdir of an earlier stage",
        matters=False,
    )
    seed: int = option("everything random is a function of it and the step", 0, minimum=0)
    max_length: int = option("longer texts are cut to this many tokens", 128, minimum=3)
    dtype: str = option(
        "what the network computes in; parameters stay float32",
        "float32",
        choices=("float32", "bfloat16"),
    )
    remat: bool = option("recompute each block in the backward pass: less memory, more time", False)


@dataclass(frozen=True, kw_only=True)
class TaskSettings(Settings):
    """Labelled data."""

    tasks: tuple[str, ...] = option(
        "CSV, TSV, JSON-lines or Parquet files; glue:NAME; hub:OWNER/NAME[/CONFIG]; smlmt:FILE, "
        "plain text, of which to guess hidden words",
        metavar="TASK",
        matters=False,
    )
    glue_dir: str | None = option(
        "the classic GLUE TSV layout, for glue:NAME (default: the hub's copy)", None, matters=False
    )
    text_column: str | None = option("default: text, or else sentence", None)
    pair_column: str | None = option("the second text's; default: text_pair, where it is", None)
    label_column: str | None = option("default: label", None)
    classes: str | None = option(
        "keep only the labels listed in this file, a label a line",
        None,
        metavar="FILE",
        matters=False,
    )


@dataclass(frozen=True, kw_only=True)
class SizeSettings(Settings):
    """The size of an episode."""

    ways: int = option("classes an episode", 5, minimum=2)
    shots: int = option("support examples of each class", 1, minimum=1)
    queries: int = option("query examples of each class", 5, minimum=1)


@dataclass(frozen=True, kw_only=True)
class EpisodeSettings(SizeSettings):
    """N-way K-shot episodes."""

    whole_tasks: bool = option("each data set is a task: all its classes, whatever --ways", False)


@dataclass(frozen=True, kw_only=True)
class DeviceSettings(Settings):
    """Which devices a run has, of one host or of many; none of it changes a number."""

    shards: int = option(
        "devices that parameters and optimizer state are sharded over (default 1: none)",
        1,
        minimum=1,
        matters=False,
    )
    distributed: bool = option(
        "one of several hosts, each of which is given the same command; on TPU VMs, Slurm and Open "
        "MPI this is enough",
        False,
        matters=False,
    )
    coordinator: str | None = option(
        "elsewhere: the first host's address", None, metavar="HOST:PORT", matters=False
    )
    num_processes: int | None = option("elsewhere: how many", None, minimum=1, matters=False)
    process_id: int | None = option(
        "elsewhere: which of them this is, from 0", None, minimum=0, matters=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        where = (self.coordinator, self.num_processes, self.process_id)
        if not self.distributed and any(value is not None for value in where):
            raise InputError("--coordinator, --num-processes, --process-id: add --distributed")


@dataclass(frozen=True, kw_only=True)
class TrainSettings(ModelSettings, DeviceSettings):
    """The optimizer (AdamW: linear warm-up, then linear decay to zero) and what is kept."""

    workdir: str = option(
        "where the run is written, a directory or gs://BUCKET/NAME; run again, it resumes",
        matters=False,
    )
    learning_rate: float = option("AdamW's peak", 5e-5, above=0)
    warmup: float = option("share of the steps", 0.1, minimum=0, maximum=1)
    weight_decay: float = option("not on LayerNorms and biases", 0.01, minimum=0)
    clip_norm: float = option("largest norm of the gradient", 1.0, above=0)
    save_every: int = option("steps between checkpoints", 100, minimum=1, matters=False)
    keep: int = option("newest checkpoints kept", 2, minimum=1, matters=False)
    keep_every: int | None = option(
        "checkpoints of steps that are multiples of this are kept too",
        None,
        minimum=1,
        matters=False,
    )
    max_skipped: int = option(
        "steps in a row, skipped for a loss or gradient that is not finite, after which to stop",
        10,
        minimum=1,
        matters=False,
    )


@dataclass(frozen=True, kw_only=True)
class BatchSettings(Settings):
    """How a batch is split over devices."""

    parts: int | None = option(
        "equal shares of a batch, each with dropout of its own: with the same number a run is the "
        "same on any number of devices (default: one a device, and as before on resuming)",
        None,
        minimum=1,
        matters=False,
    )


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(TrainSettings, BatchSettings):
    """Masked-language-model training on plain text."""

    text: tuple[str, ...] = option("plain text files", metavar="FILE", matters=False)
    steps: int = option("updates", 1000, minimum=1)
    batch_size: int = option("blocks of --max-length tokens a step", 32, minimum=1)
    mask_rate: float = option("share of the tokens to guess", 0.15, above=0, maximum=0.9)
    whole_word: bool = option("mask whole words", False)
    held_out: float = option("share of the text kept for measuring", 0.05, above=0, maximum=0.5)


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(TrainSettings, TaskSettings, BatchSettings):
    """Supervised training: one encoder, one head a task."""

    dev: tuple[str, ...] = option(
        "files to report on, one a task in order (glue: and hub: tasks bring their own)",
        (),
        metavar="FILE",
        matters=False,
    )
    epochs: float = option("passes over all tasks' examples", 3.0, above=0)
    steps: int | None = option("updates, instead of --epochs", None, minimum=1)
    batch_size: int = option("examples a step", 32, minimum=1)
    pooling: str = option(
        "what the heads read: BERT's pooler, or the mean over tokens",
        "pooler",
        choices=("pooler", "mean"),
    )


@dataclass(frozen=True, kw_only=True)
class InnerSettings(Settings):
    """How the inner loop adapts. Left out: as the checkpoint was meta-trained."""

    inner_steps: int | None = option("gradient steps (default 3)", None, minimum=0)
    inner_lr: float | None = option("SGD's rate (default 0.3)", None, above=0)
    head: str | None = option(
        "where the classification head starts (default prototypes)",
        None,
        choices=("prototypes", "zero", "checkpoint"),
    )
    layers: int | None = option(
        "blocks that adapt, from the top (default: all, and the embeddings)", None, minimum=0
    )


@dataclass(frozen=True, kw_only=True)
class AlgorithmSettings(Settings):
    """How the meta-gradient is computed."""

    algorithm: str = option(
        "maml is exact second order, fomaml first order; anil adapts the head alone; reptile",
        "maml",
        choices=("maml", "fomaml", "anil", "reptile"),
    )
    low_memory: bool = option("maml in less memory, exact too but slower", False)
    meta_batch_size: int = option("episodes a step", 4, minimum=1)
    chunk_size: int | None = option(
        "episodes computed at once on a device: less is slower and smaller", None, minimum=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low_memory and self.algorithm != "maml":
            raise InputError(
                f"--low-memory: is for --algorithm maml alone, {self.algorithm} needs none of it: "
                "leave it out"
            )


@dataclass(frozen=True, kw_only=True)
class MetatrainSettings(
    TrainSettings, TaskSettings, EpisodeSettings, InnerSettings, AlgorithmSettings
):
    """MAML over episodes."""

    learning_rate: float = option("AdamW's peak, in the outer loop", 2e-5, above=0)
    steps: int = option("outer steps", 300, minimum=1)


@dataclass(frozen=True, kw_only=True)
class PlanSettings(ModelSettings, SizeSettings, InnerSettings, AlgorithmSettings):
    """What a step of metatrain takes, from the compiler: nothing is run, no weights are read."""

    memory: str | None = option(
        "how much there is: says what fits; 16GB or 15.5GiB", None, metavar="SIZE"
    )
    output: str | None = option("write the numbers as JSON", None, metavar="FILE")


@dataclass(frozen=True, kw_only=True)
class AdaptSettings(ModelSettings, TaskSettings, InnerSettings):
    """A few gradient steps on a new task's examples."""

    dev: str | None = option(
        "other labelled examples of the task, named like it: says how well they are labelled",
        None,
        metavar="TASK",
        matters=False,
    )
    workdir: str = option("where the adapted model is written", matters=False)


@dataclass(frozen=True, kw_only=True)
class PredictSettings(Settings):
    """Labels for new text."""

    model: str = option("the workdir of adapt or finetune, or a Hugging Face classifier")
    input: str = option("a text a line; - is standard input", "-", metavar="FILE")
    output: str = option("label<TAB>probability a line; - is standard output", "-", metavar="FILE")
    task: str | None = option("which head, where finetune trained several", None)
    batch_size: int = option("texts at once", 64, minimum=1)
    max_length: int | None = option(
        "longer texts are cut to this many tokens (default: as many as the run's, or 128)",
        None,
        minimum=3,
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(ModelSettings, TaskSettings, EpisodeSettings, InnerSettings):
    """Methods compared on the same episodes."""

    methods: tuple[str, ...] = option(
        "maml: the checkpoint; the rest: the weights it was trained from, without meta-training "
        "(default: all there are)",
        (),
        choices=("maml", "finetune", "protonet", "linear", "knn"),
        metavar="METHOD",
    )
    episodes: int = option("how many", 600, minimum=2)
    curve: int | None = option(
        "maml's and finetune's accuracy after 0, 1, ... of this many inner steps too; takes about "
        "as long again",
        None,
        minimum=1,
        metavar="STEPS",
    )
    output: str | None = option("write the rows as JSON", None, metavar="FILE")


@dataclass(frozen=True, kw_only=True)
class ExportSettings(Settings):
    """Hugging Face format."""

    model: str = option("the workdir of any stage")
    output: str = option("the directory to write; new or empty", metavar="DIR")
    task: str | None = option("which head, where finetune trained several", None)


@dataclass(frozen=True, kw_only=True)
class LineageSettings(Settings):
    """What a model came from: each run with its seed and settings, down to the first weights."""

    model: str = option("the workdir of any stage")
    output: str | None = option("write all of it as JSON", None, metavar="FILE")


@dataclass(frozen=True, kw_only=True)
class DemoSettings(Settings):
    """The three stages on weights and text that every machine can have."""

    workdir: str = option("where the demo is written; run again, it resumes", "demo")
    model: str | None = option("other weights than all-MiniLM-L6-v2", None, metavar="DIR")
    seed: int = option("another seed, another run", 0, minimum=0)


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Settings):
    """One HTML page on runs, finished or not: curves, tables and lineage; pictures beside it."""

    runs: tuple[str, ...] = option("workdirs of any stages", metavar="WORKDIR")
    evaluations: tuple[str, ...] = option(
        "what evaluate --output wrote, for the tables of methods and, with --curve, the curves",
        (),
        metavar="FILE",
    )
    output: str = option("the page; the pictures go beside it", "report.html", metavar="FILE")
