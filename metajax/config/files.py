"""Settings in a file (`--config`), with the names of the command line and of Python."""

import collections
import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import yaml

from metajax.config.fields import Settings, check, convert
from metajax.config.suggestions import suggestion
from metajax.errors import InputError
from metajax.reading import read_bytes

_LARGEST = 1 << 20  # Bytes of a file.
_DEEPEST = 20  # Nested collections; settings need one.


def read_config(path: Path, settings: type[Settings]) -> dict[str, Any]:
    """Read the settings in a file.

    Args:
        path: YAML, or TOML if its suffix is `.toml`. Its keys are names of settings
            (`learning_rate` or `learning-rate`); null stands for the default.
        settings: the settings that the command has.

    Returns:
        Values by the name of the setting, of the setting's type.

    Raises:
        InputError: the file cannot be read, or contains anything but valid settings.
    """
    fields = {field.name: field for field in dataclasses.fields(settings)}
    values: dict[str, Any] = {}
    for key, value in _parse(path).items():
        name = str(key).replace("-", "_")
        if name in values:
            raise InputError(f"{path}: {name}: given twice; remove one")
        if name not in fields:
            hint = suggestion(name, fields, "--help of the command")
            raise InputError(f"{path}: {key}: unknown setting; {hint}")
        values[name] = value if value is None else convert(fields[name], value)
        if value is not None:
            check(fields[name], values[name], f"{path}: {key}")
    return {name: value for name, value in values.items() if value is not None}


def write_config(settings: dict[str, Any]) -> str:
    """Return settings as YAML that `read_config` reads."""
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def _parse(path: Path) -> dict[Any, Any]:
    content = read_bytes(path)
    if len(content) > _LARGEST:
        raise InputError(f"{path}: has {len(content)} bytes; give a YAML or TOML file of settings")
    try:
        text = content.decode("utf-8")
        values = tomllib.loads(text) if path.suffix.lower() == ".toml" else _parse_yaml(text)
        str(values)  # Fails on integers of too many digits, which no message could show.
    except RecursionError:
        raise InputError(f"{path}: cannot be read (nested too deeply); fix it") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); fix it") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: contains no settings; write one per line, as in 'steps: 300'")
    return values


def _parse_yaml(text: str) -> Any:
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        # A few lines of nested aliases can expand beyond any memory.
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it has an alias (*NAME), which settings do not need")
        # The parser's time grows with the square of the depth.
        starts = isinstance(event, yaml.CollectionStartEvent)
        depth += starts - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise RecursionError
    loader = yaml.SafeLoader(text)
    root = loader.get_single_node()
    if isinstance(root, yaml.MappingNode):
        names = [key.value for key, _ in root.value if isinstance(key, yaml.ScalarNode)]
        twice = [name for name, count in collections.Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f"{twice[0]} is given twice")
    return None if root is None else loader.construct_document(root)
