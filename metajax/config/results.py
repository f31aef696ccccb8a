"""The settings of the commands that export or show finished runs."""

from dataclasses import dataclass

from metajax.config.fields import Settings, option


@dataclass(frozen=True, kw_only=True)
class ExportSettings(Settings):
    """Export a model in Hugging Face format.

    Example: metajax export --model runs/mine --output mine-hf
    """

    model: str = option("workdir of any stage")
    output: str = option("new or empty directory to write", metavar="DIR")
    format: str = option(
        "huggingface: the whole model; sentence-transformers: the same, with its pooling and a "
        "model card; peft: the LoRA adapters of --lora with --freeze alone",
        "huggingface",
        choices=("huggingface", "sentence-transformers", "peft"),
    )
    task: str | None = option("which head to use, if finetune trained several", None)


@dataclass(frozen=True, kw_only=True)
class LineageSettings(Settings):
    """List the runs that a model came from, with their seeds and settings.

    Example: metajax lineage --model runs/mine
    """

    model: str = option("workdir of any stage")
    output: str | None = option("write the lineage to this JSON file", None, metavar="FILE")


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Settings):
    """Write one HTML page with the curves, tables and lineage of finished or running runs.

    Example: metajax report --runs runs/maml runs/mine --evaluations rows.json --output report.html
    """

    runs: tuple[str, ...] = option("workdirs of any stages", metavar="WORKDIR")
    evaluations: tuple[str, ...] = option(
        "outputs of evaluate --output, to show tables of methods and (with --curve) curves",
        (),
        metavar="FILE",
    )
    output: str = option(
        "the page to write; its pictures go to the same directory", "report.html", metavar="FILE"
    )
