"""The settings that several stages share, in groups; see `metajax/config/settings.py`."""

import importlib.util
from dataclasses import dataclass

from metajax.config.fields import Settings, option
from metajax.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings):
    """Where the weights come from."""

    model: str = option(
        "a hub id, a local Hugging Face directory, or the workdir of an earlier stage",
        affects_results=False,
    )
    seed: int = option("everything random is a function of it and the step", 0, minimum=0)
    max_length: int = option("tokens of a text, the rest is cut off", 128, minimum=3)
    dtype: str = option(
        "what the network computes in; parameters stay float32",
        "float32",
        choices=("float32", "bfloat16"),
        advanced=True,
    )
    remat: bool = option("recompute blocks going back: less memory, more time", False)


@dataclass(frozen=True, kw_only=True)
class TaskSettings(Settings):
    """Labelled data."""

    tasks: tuple[str, ...] = option(
        "CSV, TSV, JSON-lines or Parquet files; glue:NAME; hub:OWNER/NAME[/CONFIG]; smlmt:FILE "
        "(plain text, its words to guess)",
        metavar="TASK",
        affects_results=False,
    )
    glue_dir: str | None = option(
        "the classic GLUE TSV layout, for glue:NAME (default: the hub's copy)",
        None,
        affects_results=False,
        advanced=True,
    )
    text_column: str | None = option("default: text, or else sentence", None, advanced=True)
    pair_column: str | None = option(
        "the second text's; default: text_pair, where it is", None, advanced=True
    )
    label_column: str | None = option("default: label", None, advanced=True)
    classes: str | None = option(
        "keep only the labels in this file, a label a line",
        None,
        metavar="FILE",
        affects_results=False,
    )


@dataclass(frozen=True, kw_only=True)
class SizeSettings(Settings):
    """The size of an episode."""

    ways: int = option("classes an episode", 5, minimum=2)
    shots: int = option("support examples of each class", 1, minimum=1)
    queries: int = option("query examples of each class", 5, minimum=1)


@dataclass(frozen=True, kw_only=True)
class DrawSettings(Settings):
    """What episodes are drawn from."""

    whole_tasks: bool = option(
        "each data set is a task: all its classes, whatever --ways", False, advanced=True
    )
    keep_duplicates: bool = option(
        "draw equal texts too: one may be in support and query at once, which makes accuracies too "
        "high (default: each text once, and none that has several labels)",
        False,
        advanced=True,
    )


@dataclass(frozen=True, kw_only=True)
class EpisodeSettings(DrawSettings, SizeSettings):
    """N-way K-shot episodes."""


@dataclass(frozen=True, kw_only=True)
class DeviceSettings(Settings):
    """Which devices a run has, of one host or of many; none of it changes a number."""

    shards: int = option(
        "devices that parameters and optimizer state are sharded over (default 1: none)",
        1,
        minimum=1,
        affects_results=False,
        advanced=True,
    )
    distributed: bool = option(
        "one of several hosts, each of which is given the same command; on TPU VMs, Slurm and Open "
        "MPI this is enough",
        False,
        affects_results=False,
        advanced=True,
    )
    coordinator: str | None = option(
        "elsewhere: the first host's address",
        None,
        metavar="HOST:PORT",
        affects_results=False,
        advanced=True,
    )
    num_processes: int | None = option(
        "elsewhere: how many", None, minimum=1, affects_results=False, advanced=True
    )
    process_id: int | None = option(
        "elsewhere: which of them this is, from 0",
        None,
        minimum=0,
        affects_results=False,
        advanced=True,
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
        "a directory or gs://BUCKET/NAME; run again, it resumes",
        affects_results=False,
    )
    learning_rate: float = option("AdamW's peak", 5e-5, above=0)
    warmup: float = option("share of the steps", 0.1, minimum=0, maximum=1, advanced=True)
    weight_decay: float = option("not on LayerNorms and biases", 0.01, minimum=0, advanced=True)
    clip_norm: float = option("largest norm of the gradient", 1.0, above=0, advanced=True)
    save_every: int = option("steps between checkpoints", 100, minimum=1, affects_results=False)
    keep: int = option(
        "newest checkpoints kept", 2, minimum=1, affects_results=False, advanced=True
    )
    keep_every: int | None = option(
        "checkpoints of steps that are multiples of this are kept too",
        None,
        minimum=1,
        affects_results=False,
        advanced=True,
    )
    track: tuple[str, ...] = option(
        "tensorboard, wandb: the metrics there too",
        (),
        choices=("tensorboard", "wandb"),
        metavar="LOGGER",
        affects_results=False,
    )
    profile: bool = option(
        "trace three steps into the workdir's profile/, for TensorBoard and Perfetto",
        False,
        affects_results=False,
        advanced=True,
    )
    max_skipped: int = option(
        "steps in a row, skipped for a loss or gradient that is not finite, after which to stop",
        10,
        minimum=1,
        affects_results=False,
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.track:
            package = {"tensorboard": "tensorboardX"}.get(name, name)
            if importlib.util.find_spec(package) is None:
                raise InputError(
                    f"--track {name}: needs {package}: install it with `pip install {package}`"
                )


@dataclass(frozen=True, kw_only=True)
class BatchSettings(Settings):
    """How a batch is split over devices."""

    parts: int | None = option(
        "equal shares of a batch, each with dropout of its own: with the same number a run is the "
        "same on any number of devices (default: one a device, and as before on resuming)",
        None,
        minimum=1,
        affects_results=False,
        advanced=True,
    )


@dataclass(frozen=True, kw_only=True)
class InnerSettings(Settings):
    """How the inner loop adapts. Left out: as the checkpoint was meta-trained."""

    inner_steps: int | None = option("gradient steps (default 3)", None, minimum=0)
    inner_lr: float | None = option("SGD's rate (default 0.1)", None, above=0)
    head: str | None = option(
        "where the classification head starts (default prototypes)",
        None,
        choices=("prototypes", "zero", "checkpoint"),
        advanced=True,
    )
    layers: int | None = option(
        "blocks that adapt, from the top (default: all, and the embeddings)",
        None,
        minimum=0,
        advanced=True,
    )
    lora: int | None = option(
        "of low-rank adapters, which then adapt in place of the weights (default: none)",
        None,
        minimum=1,
        metavar="RANK",
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
        "episodes computed at once on a device: less is slower and smaller",
        None,
        minimum=1,
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low_memory and self.algorithm != "maml":
            raise InputError(
                f"--low-memory: is for --algorithm maml alone, {self.algorithm} needs none of it: "
                "leave it out"
            )
