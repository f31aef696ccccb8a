"""The settings of `plan`, which has those of every stage that it can plan."""

import dataclasses
from dataclasses import dataclass

from metajax.algorithms import ALGORITHMS
from metajax.config.fields import flag_and_value, option
from metajax.config.groups import ModelSettings, ShardSettings, SizeSettings
from metajax.config.inner import AlgorithmSettings, InnerSettings
from metajax.config.settings import MetatrainSettings, PretrainSettings
from metajax.errors import InputError

# Settings of `plan` that only some stages have; all have the others.
_METATRAIN = [field.name for field in dataclasses.fields(AlgorithmSettings)]
_ADAPT = [field.name for field in dataclasses.fields(InnerSettings)]
_STAGES = {
    "pretrain": ("batch_size", "shards"),
    "finetune": ("batch_size", "shards", "ways"),
    "metatrain": (*_METATRAIN, "steps", "ways", "shots", "queries", "shards", "documents"),
    "adapt": (*_ADAPT, "ways", "shots", "documents"),
}


@dataclass(frozen=True, kw_only=True)
class PlanSettings(ModelSettings, SizeSettings, AlgorithmSettings, ShardSettings):
    """Estimate memory and FLOPs of a step before a run, by compiling it.

    All texts are assumed to have --max-length tokens; none is read. The time on a --target is a
    lower estimate. A step of adapt is one gradient, or of documents all inner steps.

    Example: metajax plan --model bert-base-uncased --shots 5 --low-memory --remat --memory 16GB
    """

    stage: str = option(
        "pretrain, finetune, metatrain or adapt",
        "metatrain",
        choices=tuple(_STAGES),
        metavar="STAGE",
    )
    batch_size: int | None = option(
        f"rows per step of pretrain and finetune (default {PretrainSettings.batch_size})",
        None,
        minimum=1,
    )
    steps: int = option(
        "outer steps of metatrain: for a TPU, a run of few tasks is compiled quickly, and its "
        "steps take longer and need more memory",
        MetatrainSettings.steps,
        minimum=1,
        advanced=True,
    )
    documents: bool = option(
        "tasks are documents, a chunk per inner step",
        False,
    )
    memory: str = option(
        "memory of a device, such as 16GB: report what fits (auto: what JAX lets programs use)",
        "auto",
        metavar="SIZE",
    )
    target: str | None = option(
        "machine to compile for (default: this one): v4, v5e, v5p, v6e, tpu7x (needs the extra "
        "plan-tpu), a100, h100, h200, b200 (plan-cuda); several: v5e:2x4, h100:8",
        None,
        metavar="CHIP[:TOPOLOGY]",
    )
    output: str | None = option("write the numbers to this JSON file", None, metavar="FILE")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shards > 1 and self.target is None:
            raise InputError(f"--shards {self.shards}: needs --target; add it")
        only_some = {name for names in _STAGES.values() for name in names}
        for setting in dataclasses.fields(self):
            name, value = setting.name, getattr(self, setting.name)
            if value == setting.default or name not in only_some:
                continue
            if name not in _STAGES[self.stage]:
                raise InputError(
                    f"{flag_and_value(name, value)}: {self.stage} does not take it; remove it"
                )
            if self.on_documents and name in ("ways", "shots", "head", "layers"):
                raise InputError(
                    f"{flag_and_value(name, value)}: does not apply to documents; remove it"
                )

    @property
    def on_documents(self) -> bool:
        """Whether the tasks are documents."""
        return self.documents or ALGORITHMS[self.algorithm].tests_on_stream

    @property
    def rows(self) -> int:
        """The number of blocks or examples per step of pretrain and finetune."""
        return self.batch_size or PretrainSettings.batch_size
