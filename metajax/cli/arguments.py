"""The command line's arguments to settings: subcommands, their help, files of settings."""

import argparse
import dataclasses
import os
import sys
import textwrap
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import metajax
from metajax.config import settings
from metajax.config.fields import Settings, flag, suggestion
from metajax.config.files import read_config
from metajax.config.groups import DeviceSettings
from metajax.errors import InputError
from metajax.reading import expand_home


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


class Given(NamedTuple):
    """What a command line asks for."""

    command: str
    settings: Settings
    log_level: str


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}: see {self.prog} --help")


class _Paragraphs(argparse.HelpFormatter):
    """Leaves the lines of an epilog apart and names of settings whole; names a switch once."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, argparse.BooleanOptionalAction):
            return "--[no-]" + action.option_strings[0].removeprefix("--")
        return super()._format_action_invocation(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(
            textwrap.fill(line, width, break_on_hyphens=False) for line in text.split("\n")
        )


def build_parser(*, whole: bool = True, everything: bool = False) -> argparse.ArgumentParser:
    """The parser of all subcommands.

    Args:
        whole: without it, nothing is required.
        everything: whether help explains the rare settings, and not only names them.
    """
    parser = _Parser(
        prog="metajax",
        description="Meta-learning for language models. Each stage reads the last one's workdir.",
        epilog=f"example: {COMMANDS['demo'].example}, which shows everything at once; "
        "metajax COMMAND --help has one of each.",
    )
    version = f"metajax {metajax.__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        found = dataclasses.fields(command.settings)
        rare = [] if everything else [setting for setting in found if setting.metadata["advanced"]]
        needed = [setting for setting in found if setting.default is dataclasses.MISSING]
        usage = [f"{flag(setting.name)} {_metavar(setting, str)}" for setting in needed]
        sub = commands.add_parser(
            name,
            help=command.help,
            description=(command.settings.__doc__ or "").strip(),
            usage=" ".join(["metajax", name, *usage, "[...]"]),
            epilog=_epilog(command, rare),
            formatter_class=_Paragraphs,
            add_help=False,
            allow_abbrev=False,
        )
        kinds = typing.get_type_hints(command.settings)
        for setting in (*needed, *(setting for setting in found if setting not in needed)):
            shown = setting not in rare
            _add_option(sub, setting, kinds[setting.name], whole=whole, shown=shown)
        _add_common(sub)
    return parser


def _epilog(command: Command, rare: Sequence[Any]) -> str:
    lines = [f"example: {command.example}"]
    if issubclass(command.settings, DeviceSettings):
        lines[0] += "; on several hosts the same on each, with --distributed: docs/tpu.md"
    if rare:
        names = " ".join(flag(setting.name) for setting in rare)
        lines.append(f"There are also {names}: --help-all explains them.")
    return "\n".join(lines)


def _add_common(parser: argparse.ArgumentParser) -> None:
    """What every subcommand takes besides its settings."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML or TOML with settings by these names; those given here win",
    )
    parser.add_argument(
        "--log-level",
        metavar="LEVEL",
        default="info",
        choices=("debug", "info", "warning", "error"),
        help="what to tell: debug (libraries' notes too), info, warning or error (default info)",
    )
    parser.add_argument("-h", "--help", action="help", help="show this page")
    parser.add_argument("--help-all", action="help", help="show all settings")


def _add_option(
    parser: argparse.ArgumentParser, setting: Any, kind: Any, *, whole: bool, shown: bool
) -> None:
    options: dict[str, Any] = {
        "help": _help(setting) if shown else argparse.SUPPRESS,
        "dest": setting.name,
    }
    required = setting.default is dataclasses.MISSING
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        arguments = [item for item in typing.get_args(kind) if item not in (type(None), ...)]
        if typing.get_origin(kind) is tuple:
            options["nargs"] = "+"
        options["type"] = kind if isinstance(kind, type) and not arguments else arguments[0]
        options["metavar"] = _metavar(setting, options["type"])
    if isinstance(kind, types.UnionType) or not required:
        options["default"] = setting.default
    parser.add_argument(flag(setting.name), required=required and whole, **options)


def _metavar(setting: Any, kind: type) -> str:
    if setting.metadata["metavar"]:
        return setting.metadata["metavar"]
    choices = setting.metadata["choices"]
    if choices:
        return "{" + ",".join(choices) + "}"
    return {int: "N", float: "X"}.get(kind, setting.name.upper())


def _help(setting: Any) -> str:
    text = setting.metadata["help"]
    default = setting.default
    if default is False or default in (dataclasses.MISSING, None, ()):
        return text
    shown = " ".join(default) if isinstance(default, tuple) else default
    return f"{text} (default {shown})"


def _check_names(arguments: Sequence[str]) -> None:
    """Names that there are not, which argparse comes to after those that are missing, or twice.

    Raises:
        InputError: there is no such subcommand; a name is none of its settings; or files, of which
            argparse would keep the last, are given in two places.
    """
    name = arguments[0] if arguments else "--help"
    if not name.startswith("-") and name not in COMMANDS:
        hint = suggestion(name, COMMANDS, "metajax --help")
        raise InputError(f"unknown command {name!r}; {hint}")
    if name.startswith("-") or {"-h", "--help", "--help-all"} & set(arguments):
        return
    kinds = typing.get_type_hints(COMMANDS[name].settings)
    names = [*map(flag, kinds), "--config", "--log-level", "--help", "--help-all"]
    names += [flag(key, off=True) for key, kind in kinds.items() if kind is bool]
    given = [argument.split("=")[0] for argument in arguments[1:]]
    for option in given:
        if option.startswith("--") and option not in (*names, "--"):
            hint = suggestion(option, names, f"metajax {name} --help")
            raise InputError(f"{option}: unknown option of {name}; {hint}")
    for option in [flag(key) for key, kind in kinds.items() if typing.get_origin(kind) is tuple]:
        if given.count(option) > 1:
            times = given.count(option)
            raise InputError(f"{option}: is given {times} times: give all of it after one")


def _with_config(arguments: list[str]) -> list[str]:
    """The arguments, with those of `--config` before them.

    Raises:
        InputError: the file cannot be used.
    """
    names = {argument.split("=")[0] for argument in arguments}
    if "--config" not in names or names & {"-h", "--help", "--help-all"}:
        return arguments
    parser = build_parser(whole=False)
    name, file = (getattr(parser.parse_args(arguments), key) for key in ("command", "config"))
    found = [name, *read_config(Path(expand_home(file)), COMMANDS[name].settings)]
    try:
        parser.parse_args(found)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    at = arguments.index(name)
    return [*arguments[:at], *found, *arguments[at + 1 :]]


def _items(given: list[str]) -> tuple[str, ...]:
    """A list's items, between spaces or commas; a file that has a comma in its name is one."""
    items: list[str] = []
    for text in given:
        if os.path.exists(expand_home(text)):
            items.append(text)
        else:
            items += filter(None, (item.strip() for item in text.split(",")))
    return tuple(items)


def parse(arguments: Sequence[str] | None = None) -> Given:
    """The subcommand and its settings.

    Raises:
        InputError: they cannot be used.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _check_names(arguments)
    parser = build_parser(everything="--help-all" in arguments)
    values = vars(parser.parse_args(_with_config(arguments)))
    name, level = values.pop("command"), values.pop("log_level")
    values.pop("config")
    given = {key: _items(v) if isinstance(v, list) else v for key, v in values.items()}
    return Given(name, COMMANDS[name].settings(**given), level)
