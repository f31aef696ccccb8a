"""Hooks of mkdocs: pages outside docs/, the notebook, and the help of all commands."""

import json
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from metajax.cli.arguments import build_parser

_ROOT = Path(__file__).parents[1]
_OUTSIDE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/RESULTS.md",
    "experiments/RESULTS.md",
    *(
        str(path.relative_to(_ROOT))
        for folder in ("benchmarks", "experiments")
        for path in sorted((_ROOT / folder / "logs").glob("*.md"))
    ),
)
_NOTEBOOK = "notebooks/quickstart.ipynb"


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in docs/, their pictures, and a page for the notebook."""
    pictures = sorted(_ROOT.glob("experiments/pictures/*.svg"))
    for name in (*_OUTSIDE, *(str(path.relative_to(_ROOT)) for path in pictures)):
        files.append(File.generated(config, name, abs_src_path=str(_ROOT / name)))
    notebook = json.loads((_ROOT / "docs" / _NOTEBOOK).read_text())
    page = _NOTEBOOK.replace(".ipynb", ".md")
    files.append(File.generated(config, page, content=notebook_page(notebook)))
    return files


def notebook_page(notebook: dict[str, Any]) -> str:
    """Convert a notebook with text output to a Markdown page."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        printed = "".join(line for output in cell.get("outputs", ()) for line in output["text"])
        parts += [f"```text\n{printed}```"] * bool(printed)
    title, *rest = parts
    name = Path(_NOTEBOOK).name
    return "\n\n".join([title, f"[Download the notebook]({name}).", *rest]) + "\n"


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Convert links between docs/ and the rest of the repository to links of the site."""
    if page.file.src_uri in _OUTSIDE:
        markdown = re.sub(r"\]\(((?:\.\./)*)docs/", r"](\1", markdown)
    else:
        up = "../" * page.file.src_uri.count("/")
        for name in _OUTSIDE:
            markdown = markdown.replace(f"]({up}../{name}", f"]({up}{name}")
    if page.file.src_uri != _NOTEBOOK.replace(".ipynb", ".md"):
        name = Path(_NOTEBOOK).name
        markdown = markdown.replace(f"{name})", f"{Path(name).stem}.md)")
    return re.sub("<!-- commands -->", lambda _: _commands(), markdown)


def _commands() -> str:
    """Return the help of all commands, as `--help-all` prints it."""
    os.environ.update(COLUMNS="88", NO_COLOR="1")
    (commands,) = (
        action.choices
        for action in build_parser(everything=True)._actions
        if isinstance(action.choices, dict)
    )
    return "\n".join(
        f"## `metajax {name}`\n\n```text\n{parser.format_help()}```\n"
        for name, parser in commands.items()
    )
