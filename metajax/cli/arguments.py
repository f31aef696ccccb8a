"""The command line's arguments: subcommands, their help, and settings from flags and files."""

import argparse
import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import metajax
from metajax.config import plan, results, settings
from metajax.config.fields import Settings, convert, flag, is_required, value_types
from metajax.config.files import read_config
from metajax.config.groups import DeviceSettings
from metajax.config.suggestions import suggestion
from metajax.errors import InputError
from metajax.reading import expand_home

COMMANDS: dict[str, type[Settings]] = {
    "pretrain": settings.PretrainSettings,
    "finetune": settings.FinetuneSettings,
    "metatrain": settings.MetatrainSettings,
    "adapt": settings.AdaptSettings,
    "predict": settings.PredictSettings,
    "evaluate": settings.EvaluateSettings,
    "plan": plan.PlanSettings,
    "lineage": results.LineageSettings,
    "report": results.ReportSettings,
    "export": results.ExportSettings,
    "demo": settings.DemoSettings,
}
_COMMON = ("--config", "--log-level", "--help", "--help-all")  # Flags that are not settings.


class Given(NamedTuple):
    """What a command line asks for."""

    command: str
    settings: Settings
    log_level: str


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


class _Formatter(argparse.HelpFormatter):
    """Formatter that separates paragraphs, does not break at hyphens, and shows a switch once."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, argparse.BooleanOptionalAction):
            return "--[no-]" + action.option_strings[0].removeprefix("--")
        return super()._format_action_invocation(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
        return "\n\n".join(
            textwrap.fill(each, width, break_on_hyphens=False) for each in paragraphs
        )

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class _ListAction(argparse.Action):
    """Action that stores a list, and refuses a second one, which argparse would keep."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        if hasattr(namespace, self.dest):
            raise InputError(f"{option}: given twice; list all values after one {option}")
        setattr(namespace, self.dest, values)


def build_parser(*, everything: bool = False) -> argparse.ArgumentParser:
    """Build the parser of all subcommands.

    Its values are strings, and options that are not given have no value. `parse` checks both.

    Args:
        everything: whether help explains the advanced settings or only names them.
    """
    parser = _Parser(
        prog="metajax",
        description="Meta-learning for language models. Each stage starts from an earlier one's "
        "workdir.",
        epilog="Start with `metajax demo`, which runs all stages. "
        "`metajax COMMAND --help` has an example.",
    )
    parser.add_argument("--version", action="version", version=f"metajax {metajax.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, kind in COMMANDS.items():
        description, _, example = inspect.cleandoc(kind.__doc__ or "").rpartition("\n\n")
        ordered = sorted(dataclasses.fields(kind), key=is_required, reverse=True)
        advanced = [field for field in ordered if field.metadata["advanced"] and not everything]
        usage = [f"{flag(field.name)} {_metavar(field)}" for field in ordered if is_required(field)]
        epilog = [example]
        if issubclass(kind, DeviceSettings):
            epilog[0] += " (on several hosts: on each, with --distributed; see docs/tpu.md)"
        if advanced:
            names = " ".join(flag(field.name) for field in advanced)
            epilog.append(f"Advanced settings (see --help-all): {names}")
        sub = commands.add_parser(
            name,
            help=description.split("\n")[0].rstrip("."),
            description=description,
            usage=" ".join(["metajax", name, *usage, "[...]"]),
            epilog="\n\n".join(epilog),
            formatter_class=_Formatter,
            add_help=False,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )
        for field in ordered:
            _add_setting(sub, field, explained=field not in advanced)
        _add_common(sub)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every subcommand that are not settings."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=None,
        help="YAML or TOML file of settings; flags override it",
    )
    parser.add_argument(
        "--log-level",
        metavar="LEVEL",
        default="info",
        choices=("debug", "info", "warning", "error"),
        help="debug, info, warning or error (default info)",
    )
    parser.add_argument("-h", "--help", action="help", help="show this help and exit")
    parser.add_argument("--help-all", action="help", help="explain advanced settings too")


def _add_setting(parser: argparse.ArgumentParser, setting: Any, *, explained: bool) -> None:
    types, is_tuple = value_types(setting)
    text, default = setting.metadata["help"], setting.default
    if default is not False and default not in (dataclasses.MISSING, None, ()):
        text += f" (default {default})"
    options: dict[str, Any] = {"metavar": _metavar(setting)}
    if types[0] is bool:
        options = {"action": argparse.BooleanOptionalAction}
    elif is_tuple:
        options |= {"action": _ListAction, "nargs": "+"}
    options["help"] = text if explained else argparse.SUPPRESS
    parser.add_argument(flag(setting.name), dest=setting.name, **options)


def _metavar(setting: Any) -> str:
    choices = setting.metadata["choices"] or ()
    given = setting.metadata["metavar"] or (choices and "{" + ",".join(choices) + "}")
    kind = value_types(setting)[0][0]
    return given or {int: "N", float: "X"}.get(kind, setting.name.upper())


def parse(arguments: Sequence[str] | None = None) -> Given:
    """Return the subcommand and its settings.

    Raises:
        InputError: the arguments cannot be used.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name = arguments[0] if arguments else "--help"
    if not name.startswith("-") and name not in COMMANDS:
        hint = suggestion(name, COMMANDS, "metajax --help")
        raise InputError(f"unknown command {name!r}; {hint}")
    parser = build_parser(everything="--help-all" in arguments)
    known, unknown = parser.parse_known_args(arguments)
    values = vars(known)
    name, level, config = (values.pop(key) for key in ("command", "log_level", "config"))
    kind = COMMANDS[name]
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown:
        option = unknown[0].split("=")[0]
        hint = suggestion(option, _flags(fields.values()), f"metajax {name} --help")
        raise InputError(f"{option}: unknown option of {name}; {hint}")
    given = {key: convert(fields[key], value) for key, value in values.items()}
    if config is not None:
        given = read_config(Path(expand_home(config)), kind) | given
    missing = [flag(key) for key in fields if is_required(fields[key]) and key not in given]
    if missing:
        raise InputError(f"{name}: required options are missing; add {', '.join(missing)}")
    try:
        return Given(name, kind(**given), level)
    except InputError as error:
        # Of settings that exclude one another, some may be the file's.
        if config is None:
            raise
        raise InputError(f"{config} and the command line: {error}") from None


def _flags(fields: Collection[Any]) -> list[str]:
    """Return all flags of a subcommand."""
    switches = [flag(each.name, off=True) for each in fields if each.type is bool]
    return [*(flag(each.name) for each in fields), *switches, *_COMMON]
