"""Make valid files invalid. Each mutation is a function of its random numbers only."""

import contextlib
import json
import random
import re
from collections.abc import Callable
from typing import Any

import yaml

CANARY = "fuzz_canary"  # A string that is executed or followed creates a file of this name.
_CODE = f"__import__('os').mkdir('{CANARY}')"

# Values that have broken readers of other programs.
STRINGS = [
    *("", " ", "\n", "\0", "\r", "\t", "'", '"', "\\", "%s%n", "{0.__class__}", "$(id)", "a\nb"),
    *(
        "\x1b[2J",
        "\x1b]0;title\x07",
        "\x9b31m",
        "\u2028",
        "\u202e",
        "\u200d",
        "\ufeff",
        "\U0001f468",
    ),
    *(
        "../../outside/bait",
        "/etc/passwd",
        "..",
        ".",
        "~",
        "a/../../outside",
        "C:\\x",
        "file:///etc",
    ),
    *("nan", "inf", "-0", "1e999", "0x10", "9" * 30, "9" * 5000, "-1", "1_0", "٣", "true", "null"),
    *("<script>alert(1)</script>", "&amp;", "]]>", "=cmd()", "--steps", "-", "*a", "!!python/none"),
    *(
        "text",
        "label",
        "w1",
        "x" * 300,
        "x" * 140_000,
        f"{CANARY}.Model",
        _CODE,
        "\ud800",
        "\uffff",
    ),
    f"!!python/object/apply:os.mkdir [{CANARY}]",
]
NUMBERS: list[Any] = [
    *(0, -1, 1, 2, 127, 255, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30),
    *(-(2**63), 0.5, -0.0, 1e-320, 1e308, float("inf"), float("nan"), 10**4299),
]
_RAW = [text.encode("utf-8", "surrogatepass") for text in STRINGS] + [
    *(
        b"\xff",
        b"\xc0\x80",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\r\n",
        b"[" * 5000,
        b'{"a":' * 2000,
    ),
    *(
        b"a: &a [*a, *a]\n",
        b"<<: *a\n",
        b"9" * 5000,
        b"\0" * 64,
        b"\xff" * 8,
        b"PAR1",
        b"\x80\x04.",
    ),
]
_NUMBER = re.compile(rb"-?\d+(\.\d+)?")


def value(draw: random.Random) -> Any:
    """Return a random JSON value."""
    kind = draw.randrange(9)
    if kind < 3:
        return draw.choice(STRINGS)
    if kind < 6:
        return draw.choice(NUMBERS)
    return draw.choice([None, True, False, [], {}, [[]], [1, "a"], {"a": {}}, _deep(draw)])


def _deep(draw: random.Random) -> Any:
    nested: Any = draw.choice([1, "a", None])
    for _ in range(draw.choice([3, 60, 400])):
        nested = [nested] if draw.random() < 0.5 else {"a": nested}
    return nested


def tree(draw: random.Random, root: Any) -> Any:
    """Replace one node or key of a JSON tree, in place."""
    parent, key, node = None, None, root
    while isinstance(node, dict | list) and node and draw.random() < 0.85:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        parent, key = node, draw.choice(keys)
        node = parent[key]
    if parent is None:
        return value(draw)
    kind = draw.randrange(7)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[draw.choice(STRINGS)] = parent.pop(key)
    elif kind == 2 and isinstance(parent, list):
        parent.extend([node] * draw.choice([1, 2, 100]))
    elif kind == 3:
        parent[key] = [node]
    elif kind == 4:
        parent[key] = str(node)
    elif kind == 5 and isinstance(parent, dict):
        parent[draw.choice(list(parent))] = node
    else:
        parent[key] = value(draw)
    return root


def octets(draw: random.Random, content: bytes, other: bytes) -> bytes:
    """Change, remove, repeat or insert (from `other`) a few bytes."""
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 1, 2, 4, 16])):
        at = draw.randrange(len(changed) + 1)
        # Headers and footers describe the content of a file.
        if draw.random() < 0.3:
            at = (
                min(at, draw.randrange(64))
                if draw.random() < 0.5
                else max(0, len(changed) - at % 64)
            )
        size = min(draw.choice([1, 1, 2, 4, 8, 64, 1000]), len(changed) - at)
        kind = draw.randrange(9)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            changed[at : at + size] = draw.randbytes(size)
        elif kind == 2:
            del changed[at : at + size]
        elif kind == 3:
            changed[at:at] = changed[at : at + size] * draw.choice([1, 2, 50])
        elif kind == 4:
            del changed[at:]
        elif kind == 5:
            begin = draw.randrange(len(other) + 1)
            changed[at:] = other[begin:]
        elif kind == 6:
            number = draw.choice([0, 1, 127, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**64 - 1])
            size = draw.choice([4, 8])
            changed[at : at + size] = (number % 2 ** (8 * size)).to_bytes(size, "little")
        elif kind == 7 and (numbers := list(_NUMBER.finditer(changed))):
            place = draw.choice(numbers)
            changed[place.start() : place.end()] = str(draw.choice(NUMBERS)).encode()
        else:
            changed[at:at] = draw.choice(_RAW)
    return bytes(changed)


def _json(draw: random.Random, content: bytes) -> bytes:
    document = json.loads(content)
    for _ in range(draw.choice([1, 1, 2, 3])):
        document = tree(draw, document)
    return json.dumps(document, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")


def _json_lines(draw: random.Random, content: bytes) -> bytes:
    lines = content.splitlines()
    at = draw.randrange(len(lines))
    lines[at] = _json(draw, lines[at])
    return b"\n".join(lines) + b"\n"


def _yaml(draw: random.Random, content: bytes) -> bytes:
    document = tree(draw, yaml.safe_load(content))
    return yaml.safe_dump(document, allow_unicode=True).encode("utf-8", "surrogatepass")


def _toml(draw: random.Random, content: bytes) -> bytes:
    lines = content.splitlines()
    at = draw.randrange(len(lines))
    name = lines[at].split(b"=")[0]
    lines[at] = name + b"= " + json.dumps(value(draw)).encode("utf-8", "surrogatepass")
    return b"\n".join(lines)


def _cells(separator: bytes) -> Callable[[random.Random, bytes], bytes]:
    """Replace one cell of a table."""

    def change(draw: random.Random, content: bytes) -> bytes:
        rows = [line.split(separator) for line in content.split(b"\n")]
        row = draw.choice(rows)
        row[draw.randrange(len(row))] = draw.choice(_RAW)
        return b"\n".join(separator.join(row) for row in rows)

    return change


def _safetensors(draw: random.Random, content: bytes) -> bytes:
    """Replace the header, and keep its length right."""
    size = int.from_bytes(content[:8], "little")
    header = _json(draw, content[8 : 8 + size])
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


_BY_SUFFIX: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "json": _json,
    "_METADATA": _json,
    "jsonl": _json_lines,
    "yaml": _yaml,
    "toml": _toml,
    "csv": _cells(b","),
    "tsv": _cells(b"\t"),
    "safetensors": _safetensors,
}


def mutate(draw: random.Random, name: str, content: bytes, other: bytes) -> bytes:
    """Mutate the content of a file, either in its format or in its bytes."""
    for suffix, change in _BY_SUFFIX.items():
        if name.endswith(suffix) and draw.random() < 0.6:
            # After another mutation the format may be broken. Then only bytes can be changed.
            with contextlib.suppress(ValueError, LookupError, RecursionError, yaml.YAMLError):
                return change(draw, content)
    return octets(draw, content, other)
