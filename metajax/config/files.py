"""Settings from a file (`--config`): the same names as on the command line and in Python.

The file's settings become arguments before those of the command line, so that both are checked by
one parser and the command line wins.
"""

import collections
import dataclasses
import tomllib
import typing
from pathlib import Path
from typing import Any

import yaml

from metajax.config.fields import Settings, flag, suggestion
from metajax.errors import InputError
from metajax.reading import read_bytes

_LARGEST = 1 << 20  # Bytes of a file of settings.
_DEEPEST = 20  # Settings are lists at most.


def read_config(path: Path, settings: type[Settings]) -> list[str]:
    """A file's settings as arguments of the command line.

    Args:
        path: YAML, or TOML by its suffix: settings by name (`learning_rate` or `learning-rate`);
            null stands for the default.
        settings: those that there are.

    Raises:
        InputError: the file cannot be read, or holds something else than settings.
    """
    found = _parse(path)
    fields = {field.name: field for field in dataclasses.fields(settings)}
    arguments = []
    names = [str(key).replace("-", "_") for key in found]
    for (key, value), name in zip(found.items(), names):
        if names.count(name) > 1:
            raise InputError(f"{path}: {name} is given twice: leave one out")
        if name not in fields:
            hint = suggestion(name, fields, "--help of the command")
            raise InputError(f"{path}: {key}: unknown setting; {hint}")
        if value is not None:
            arguments += _arguments(f"{path}: {key}", fields[name], value)
    return arguments


def write_config(settings: dict[str, Any]) -> str:
    """Settings as the text of a file that `read_config` reads."""
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def _parse(path: Path) -> dict[Any, Any]:
    content = read_bytes(path)
    if len(content) > _LARGEST:
        raise InputError(f"{path}: has {len(content)} bytes: name a YAML or TOML file of settings")
    try:
        text = content.decode("utf-8")
        found = tomllib.loads(text) if path.suffix.lower() == ".toml" else _parse_yaml(text)
    except RecursionError:
        raise InputError(f"{path}: cannot be read (it is nested too deeply); fix it") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); fix it") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: holds no settings: write one a line, such as 'steps: 300'")
    return found


def _parse_yaml(text: str) -> Any:
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        # A few lines of aliases of aliases stand for more than any memory holds.
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it has an alias (*NAME), and settings need none")
        # The parser's time grows with the square of the depth.
        opens = isinstance(event, yaml.CollectionStartEvent)
        depth += opens - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise RecursionError
    loader = yaml.SafeLoader(text)
    whole = loader.get_single_node()
    if isinstance(whole, yaml.MappingNode):
        keys = [key.value for key, _ in whole.value if isinstance(key, yaml.ScalarNode)]
        twice = [key for key, count in collections.Counter(keys).items() if count > 1]
        if twice:
            raise ValueError(f"{twice[0]} is given twice")
    return None if whole is None else loader.construct_document(whole)


def _arguments(where: str, field: dataclasses.Field[Any], value: Any) -> list[str]:
    name = flag(field.name)
    if field.type is bool:
        if not isinstance(value, bool):
            raise InputError(f"{where}: is {value}: write true or false")
        return [flag(field.name, off=not value)]
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, bool) or not isinstance(item, str | int | float) for item in items):
        raise InputError(f"{where}: is {value}: give a number, a text or a list of them")
    if isinstance(value, list) and typing.get_origin(field.type) is not tuple:
        raise InputError(f"{where}: is {value}: give one, not a list")
    if len(items) == 1:
        return [f"{name}={items[0]}"]
    if any(str(item).startswith("-") for item in items):
        raise InputError(f"{where}: is {value}: in a list nothing may start with -: put ./ before")
    return [name, *map(str, items)] if items else []  # An empty list is the default.
