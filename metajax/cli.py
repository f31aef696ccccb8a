"""The command line: arguments to settings, settings to stages, errors to messages."""

import argparse
import dataclasses
import errno
import importlib
import json
import os
import sys
import traceback
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from metajax.errors import InputError, StoppedError, one_line
from metajax.stages import settings
from metajax.stages.config import read_config
from metajax.stages.groups import DeviceSettings
from metajax.stages.option import Settings, flag
from metajax.stages.run import cache_directory
from metajax.terminal import notes, refusal


class Command(NamedTuple):
    """A subcommand: what it is for, its settings and an example."""

    help: str
    settings: type[Settings]
    example: str


COMMANDS = {
    "pretrain": Command(
        "masked-language-model training on plain text",
        settings.PretrainSettings,
        "metajax pretrain --model bert-base-uncased --text corpus.txt --workdir runs/pretrain",
    ),
    "finetune": Command(
        "supervised training on one task or many",
        settings.FinetuneSettings,
        "metajax finetune --model runs/pretrain --tasks glue:mrpc --workdir runs/mrpc",
    ),
    "metatrain": Command(
        "MAML over few-shot episodes",
        settings.MetatrainSettings,
        "metajax metatrain --model runs/pretrain --tasks intents.jsonl --workdir runs/maml",
    ),
    "adapt": Command(
        "a few gradient steps on a new task's examples",
        settings.AdaptSettings,
        "metajax adapt --model runs/maml --tasks examples.csv --workdir runs/mine",
    ),
    "predict": Command(
        "labels for new text, a text a line",
        settings.PredictSettings,
        "metajax predict --model runs/mine --input texts.txt",
    ),
    "evaluate": Command(
        "methods compared on the same episodes",
        settings.EvaluateSettings,
        "metajax evaluate --model runs/maml --tasks intents.jsonl --classes test.txt",
    ),
    "plan": Command(
        "memory and arithmetic of metatrain, before a run",
        settings.PlanSettings,
        "metajax plan --model bert-base-uncased --shots 5 --low-memory --remat --memory 16GB",
    ),
    "lineage": Command(
        "what a model came from, down to the Hugging Face weights",
        settings.LineageSettings,
        "metajax lineage --model runs/mine",
    ),
    "report": Command(
        "one HTML page with the curves, tables and lineage of runs, and pictures",
        settings.ReportSettings,
        "metajax report --runs runs/maml runs/mine --evaluations result.json --output report.html",
    ),
    "export": Command(
        "Hugging Face format from any stage",
        settings.ExportSettings,
        "metajax export --model runs/mine --output mine-hf",
    ),
    "demo": Command(
        "all of it on small weights and Python's own docstrings",
        settings.DemoSettings,
        "metajax demo",
    ),
}


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}: see {self.prog} --help")


def build_parser(*, whole: bool = True) -> argparse.ArgumentParser:
    """The parser of all subcommands; unless `whole`, nothing is required."""
    parser = _Parser(
        prog="metajax",
        description="Meta-learning for language models. Each stage reads the last one's workdir.",
        epilog="metajax demo shows everything at once; metajax COMMAND --help has an example.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.help,
            description=(command.settings.__doc__ or "").strip(),
            epilog=f"example: {command.example}{_HOSTS if _trains(command) else ''}",
        )
        sub.add_argument(
            "--config",
            metavar="FILE",
            help="YAML or TOML with settings by these names; those given here win",
        )
        for setting in dataclasses.fields(command.settings):
            kind = typing.get_type_hints(command.settings)[setting.name]
            _add_option(sub, setting, kind, whole)
    return parser


_HOSTS = (
    "; on several hosts, the same on each with --distributed and a --workdir that all of them see: "
    "docs/tpu.md and docs/gpu.md"
)


def _trains(command: Command) -> bool:
    return issubclass(command.settings, DeviceSettings)


def _add_option(parser: argparse.ArgumentParser, setting: Any, kind: Any, whole: bool) -> None:
    options: dict[str, Any] = {"help": _help(setting), "dest": setting.name}
    required = setting.default is dataclasses.MISSING
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        arguments = [item for item in typing.get_args(kind) if item not in (type(None), ...)]
        if typing.get_origin(kind) is tuple:
            options["nargs"] = "+"
        options["type"] = kind if isinstance(kind, type) and not arguments else arguments[0]
        options["metavar"] = setting.metadata["metavar"] or _metavar(setting, options["type"])
    if isinstance(kind, types.UnionType) or not required:
        options["default"] = setting.default
    parser.add_argument(flag(setting.name), required=required and whole, **options)


def _metavar(setting: Any, kind: type) -> str:
    choices = setting.metadata["choices"]
    if choices:
        return "{" + ",".join(choices) + "}"
    return {int: "N", float: "X"}.get(kind, setting.name.upper())


def _help(setting: Any) -> str:
    text = setting.metadata["help"]
    default = setting.default
    if default in (dataclasses.MISSING, None, (), False):
        return text
    shown = " ".join(default) if isinstance(default, tuple) else default
    return f"{text} (default {shown})"


def _with_config(arguments: list[str]) -> list[str]:
    """The arguments, with those of `--config` before them.

    Raises:
        InputError: the file cannot be used.
    """
    if not any(argument.split("=")[0] == "--config" for argument in arguments):
        return arguments
    parser = build_parser(whole=False)
    name, file = (getattr(parser.parse_args(arguments), key) for key in ("command", "config"))
    found = [name, *read_config(Path(file), COMMANDS[name].settings)]
    try:
        parser.parse_args(found)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    at = arguments.index(name)
    return [*arguments[:at], *found, *arguments[at + 1 :]]


def parse(arguments: Sequence[str] | None = None) -> tuple[str, Settings]:
    """The subcommand and its settings.

    Raises:
        InputError: they cannot be used.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    values = vars(build_parser().parse_args(_with_config(arguments)))
    name = values.pop("command")
    values.pop("config")
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    return name, COMMANDS[name].settings(**given)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Returns:
        The exit status: 0 done, 2 the input is at fault (one line on standard error says what),
        1 stopped. Anything else raises, which ends Python with 1 too.
    """
    # JAX reads it when it is imported: what one run compiled, the next one loads.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_directory() / "xla"))
    # That PyTorch is missing is as it should be.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        name, chosen = parse(arguments)
        with notes():
            results = _run(name, chosen)
        _show(name, chosen, results)
        sys.stdout.flush()
    except StoppedError as error:
        print(f"metajax: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "metajax: stopped; the same command resumes from the last checkpoint", file=sys.stderr
        )
        return 1
    except BrokenPipeError:
        # Whoever read our output has enough of it: leave nothing for the exit to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError) as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            where = one_line(error.filename or "the disk")
            print(f"metajax: {where}: no room; what was saved is safe", file=sys.stderr)
            return 1
        complaint = refusal(error)
        if complaint is None:
            raise
        print(f"metajax: error: {complaint}", file=sys.stderr)
        return 2
    return 0


def run() -> NoReturn:
    """The command `metajax`: `main`, and then the end of the process."""
    try:
        status = main()
    except Exception:
        traceback.print_exc()
        status = 1
    if status:
        # At once: where a save has failed, Orbax's threads wait for it for minutes, and where
        # one of several processes fails, JAX waits for the others.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _run(name: str, chosen: Settings) -> Any:
    if hasattr(chosen, "distributed"):
        from metajax.stages import hosts  # It imports JAX.

        hosts.join(chosen)
    module = importlib.import_module(f"metajax.stages.{name}")
    return getattr(module, name)(chosen)


def _show(name: str, chosen: Any, results: Any) -> None:
    if name == "evaluate":
        from metajax.stages.evaluate import table

        print(table(results))
    elif name == "lineage":
        from metajax.stages.lineage import summary as lines

        print(lines(results))
    elif name == "plan":
        from metajax.stages.plan import summary

        print(summary(results))
    elif results is not None:
        print(json.dumps(results, indent=2))
        if hasattr(chosen, "workdir"):
            print(f"written to {chosen.workdir}")
