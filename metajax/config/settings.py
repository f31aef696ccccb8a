"""The settings of every command: one typed dataclass each, for Python and the command line.

The metadata of a field holds its help, bounds and choices. Fields with `affects_results=False` may
differ when a run is resumed, because they change no number. (The contents of files named by such
fields are compared by their hashes.)
"""

from dataclasses import dataclass

from metajax.config.fields import Settings, option
from metajax.config.groups import (
    AlgorithmSettings,
    BatchSettings,
    DrawSettings,
    EpisodeSettings,
    InnerSettings,
    ModelSettings,
    SizeSettings,
    TaskSettings,
    TrainSettings,
)

EPISODES = 600  # Of an evaluation, where nothing is said.


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(TrainSettings, BatchSettings):
    """Masked-language-model training on plain text."""

    text: tuple[str, ...] = option("plain text files", metavar="FILE", affects_results=False)
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
        affects_results=False,
    )
    epochs: float = option("passes over all tasks' examples", 3.0, above=0)
    steps: int | None = option("updates, instead of --epochs", None, minimum=1)
    batch_size: int = option("examples a step", 32, minimum=1)
    pooling: str | None = option(
        "what the heads read: BERT's pooler (GPT-2's last token), the mean over tokens or the "
        "first one (default: as the model's 1_Pooling says, or pooler)",
        None,
        choices=("pooler", "mean", "cls"),
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

    inner_lr: float | None = option(
        "SGD's rate (default: the largest that raises no step's loss; and no steps where their "
        "prototypes label more of the examples that are left out right)",
        None,
        above=0,
    )
    dev: str | None = option(
        "other labelled examples of the task, named like it: says how well they are labelled",
        None,
        metavar="TASK",
        affects_results=False,
    )
    workdir: str = option("where the adapted model is written", affects_results=False)


@dataclass(frozen=True, kw_only=True)
class PredictSettings(Settings):
    """Labels for new text."""

    model: str = option("the workdir of adapt or finetune, or a Hugging Face classifier")
    input: str = option(
        "a text a line, or a CSV, TSV, JSON-lines or Parquet file; - is standard input",
        "-",
        metavar="FILE",
    )
    output: str = option("label<TAB>probability a line; - is standard output", "-", metavar="FILE")
    task: str | None = option("which head, where finetune trained several", None)
    batch_size: int = option("texts at once", 64, minimum=1)
    max_length: int | None = option(
        "longer texts are cut to this many tokens (default: as many as the run's, or 128)",
        None,
        minimum=3,
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(ModelSettings, TaskSettings, DrawSettings, InnerSettings):
    """Methods compared on the same episodes."""

    methods: tuple[str, ...] = option(
        "checkpoint: the model given; without meta-training: same-steps (the same adaptation), "
        "prototypes, linear, knn (default: all that apply)",
        (),
        choices=("checkpoint", "same-steps", "prototypes", "linear", "knn"),
        metavar="METHOD",
    )
    # None is what was not given: draws of --splits have sizes of their own.
    ways: int | None = option(
        f"classes an episode (default {EpisodeSettings.ways})", None, minimum=2
    )
    shots: int | None = option(
        f"support examples of each class (default {EpisodeSettings.shots})", None, minimum=1
    )
    queries: int | None = option(
        f"query examples of each class (default {EpisodeSettings.queries})", None, minimum=1
    )
    episodes: int | None = option(f"how many (default {EPISODES})", None, minimum=2)
    splits: str | None = option(
        "a directory of published draws, in each file the support examples of one, with sizes of "
        "their own: all other examples of --tasks are classified (default: draw at random)",
        None,
        metavar="DIR",
    )
    curve: int | None = option(
        "accuracy of checkpoint and same-steps after 0, 1, ... up to this many inner steps",
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
