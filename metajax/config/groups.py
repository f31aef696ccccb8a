"""Groups of settings that several commands share (see `settings.py` and `plan.py`)."""

import importlib.util
from dataclasses import dataclass

from metajax.config.fields import Settings, option
from metajax.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings):
    """The model and how it computes."""

    model: str = option(
        "hub id, Hugging Face directory or earlier workdir",
        affects_results=False,
    )
    seed: int = option("random seed", 0, minimum=0)
    max_length: int = option("truncate texts to this many tokens", 128, minimum=3)
    dtype: str = option(
        "precision of the computation; parameters stay float32",
        "float32",
        choices=("float32", "bfloat16"),
        advanced=True,
    )
    remat: bool = option("recompute activations: less memory, more time", False)


@dataclass(frozen=True, kw_only=True)
class TaskSettings(Settings):
    """Labelled data."""

    tasks: tuple[str, ...] = option(
        "CSV, TSV, JSON Lines or Parquet files; glue:NAME; hub:OWNER/NAME[/CONFIG]; smlmt:FILE "
        "(plain text); documents:PATH (text files, for a decoder)",
        metavar="TASK",
        affects_results=False,
    )
    glue_dir: str | None = option(
        "directory of GLUE's TSV files, for glue:NAME (default: download from the hub)",
        None,
        affects_results=False,
        advanced=True,
    )
    text_column: str | None = option(
        "column of the text (default: text, else sentence)", None, advanced=True
    )
    pair_column: str | None = option(
        "column of the second text (default: text_pair, if present)", None, advanced=True
    )
    label_column: str | None = option("column of the label (default: label)", None, advanced=True)
    classes: str | None = option(
        "keep only the labels in this file (one per line)",
        None,
        metavar="FILE",
        affects_results=False,
    )


@dataclass(frozen=True, kw_only=True)
class SizeSettings(Settings):
    """The size of an episode."""

    ways: int = option("classes per episode", 5, minimum=2)
    shots: int = option("support examples per class", 1, minimum=1)
    queries: int = option("query examples per class, or chunks", 5, minimum=1)


@dataclass(frozen=True, kw_only=True)
class DrawSettings(Settings):
    """How episodes are sampled."""

    whole_tasks: bool = option(
        "use each data set as one task with all its classes; ignores --ways", False, advanced=True
    )
    keep_duplicates: bool = option(
        "keep duplicate texts: the same text can be in support and query, which inflates accuracy "
        "(default: each text once, and no text with several labels)",
        False,
        advanced=True,
    )


@dataclass(frozen=True, kw_only=True)
class EpisodeSettings(DrawSettings, SizeSettings):
    """N-way K-shot episodes."""


@dataclass(frozen=True, kw_only=True)
class ShardSettings(Settings):
    """How devices share the state of a run."""

    shards: int = option(
        "devices to shard parameters and optimizer state over (1: no sharding)",
        1,
        minimum=1,
        affects_results=False,
        advanced=True,
    )


@dataclass(frozen=True, kw_only=True)
class DeviceSettings(ShardSettings):
    """The devices of a run, on one host or several. They do not change its results."""

    distributed: bool = option(
        "this is one of several hosts that run the same command; TPU VMs, Slurm and Open MPI need "
        "no other flag",
        False,
        affects_results=False,
        advanced=True,
    )
    coordinator: str | None = option(
        "address of the first host, except on TPU VMs, Slurm and Open MPI",
        None,
        metavar="HOST:PORT",
        affects_results=False,
        advanced=True,
    )
    num_processes: int | None = option(
        "number of processes (with --coordinator)",
        None,
        minimum=1,
        affects_results=False,
        advanced=True,
    )
    process_id: int | None = option(
        "index of this process, from 0 (with --coordinator)",
        None,
        minimum=0,
        affects_results=False,
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        where = (self.coordinator, self.num_processes, self.process_id)
        if not self.distributed and any(value is not None for value in where):
            raise InputError(
                "--coordinator, --num-processes, --process-id: need --distributed; add it"
            )


@dataclass(frozen=True, kw_only=True)
class TrainSettings(ModelSettings, DeviceSettings):
    """The optimizer (AdamW with linear warmup and linear decay to zero) and the checkpoints."""

    workdir: str = option(
        "directory or gs://BUCKET/NAME (resumes if it exists)",
        affects_results=False,
    )
    learning_rate: float = option("peak learning rate of AdamW", 5e-5, above=0)
    warmup: float = option(
        "fraction of steps with linear warmup", 0.1, minimum=0, maximum=1, advanced=True
    )
    weight_decay: float = option(
        "weight decay of AdamW, not applied to LayerNorms and biases",
        0.01,
        minimum=0,
        advanced=True,
    )
    clip_norm: float = option("maximum norm of the gradient", 1.0, above=0, advanced=True)
    save_every: int = option(
        "steps between checkpoints", 100, minimum=1, affects_results=False, advanced=True
    )
    keep: int = option(
        "number of newest checkpoints to keep", 2, minimum=1, affects_results=False, advanced=True
    )
    keep_every: int | None = option(
        "keep the checkpoints of every N-th step too",
        None,
        minimum=1,
        affects_results=False,
        advanced=True,
    )
    track: tuple[str, ...] = option(
        "also log metrics to tensorboard or wandb",
        (),
        choices=("tensorboard", "wandb"),
        metavar="LOGGER",
        affects_results=False,
        advanced=True,
    )
    profile: bool = option(
        "write a trace of three steps to the workdir's profile/, for TensorBoard and Perfetto",
        False,
        affects_results=False,
        advanced=True,
    )
    max_skipped: int = option(
        "stop after this many consecutive steps skipped for a non-finite loss or gradient",
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
                    f"--track {name}: {package} is not installed; run `pip install {package}`"
                )


@dataclass(frozen=True, kw_only=True)
class BatchSettings(Settings):
    """How a batch is split."""

    parts: int | None = option(
        "number of equal parts of a batch, each with its own dropout; with the same number, "
        "results are the same on any number of devices (default: one per device; as before when "
        "resuming)",
        None,
        minimum=1,
        affects_results=False,
        advanced=True,
    )


@dataclass(frozen=True, kw_only=True)
class MemorySettings(Settings):
    """How much memory a step may use."""

    memory: str = option(
        "memory of a device, such as 16GB: a new run takes --chunk-size, --low-memory and --remat "
        "as far as needed to fit (auto: that of the device; on a CPU, no limit)",
        "auto",
        metavar="SIZE",
        affects_results=False,
        advanced=True,
    )
