"""The notebook of the documentation runs, learns, and shows what it prints."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).parents[1]
NOTEBOOK = json.loads((ROOT / "docs/notebooks/quickstart.ipynb").read_text())
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
README = (ROOT / "README.md").read_text()


def stored(cell: dict) -> str:
    """The output that the notebook shows for a cell."""
    return "".join(line for output in cell["outputs"] for line in output["text"])


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]


@pytest.fixture(scope="module")
def printed() -> list[str]:
    """What each code cell prints, run in order in one namespace."""
    names: dict = {"__name__": "__main__"}
    found = []
    with tiny.one_device():
        for cell in CELLS:
            stream = io.StringIO()
            with contextlib.redirect_stdout(stream):
                exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
            found.append(stream.getvalue())
    return found


@pytest.mark.xdist_group("docs")
def test_it_learns_and_prints_what_it_shows(printed):
    loss_before, _, loss_after, _ = numbers(printed[0])
    assert loss_after < loss_before / 3
    (accuracies,) = [text for text in printed if "accuracy before" in text]
    before, _, after, _ = numbers(accuracies)
    assert before < 40 < 60 < after
    for text, cell in zip(printed, CELLS):
        assert re.sub(r"[\d.]+", "#", text) == re.sub(r"[\d.]+", "#", stored(cell))
        assert numbers(text) == pytest.approx(numbers(stored(cell)), rel=0.2, abs=0.05)


def test_the_readme_has_the_same_example():
    example, _ = re.findall(r"```python\n(import.*?)\n```", README, re.DOTALL)
    (output,) = re.findall(r"```text\n(query loss.*?)```", README, re.DOTALL)
    assert "".join(CELLS[0]["source"]) == example
    assert stored(CELLS[0]) == output


def test_it_is_a_notebook_of_format_4():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    for number, cell in enumerate(CELLS, start=1):
        assert cell["execution_count"] == number


def test_its_links_lead_somewhere():
    text = "".join(line for cell in NOTEBOOK["cells"] for line in cell["source"])
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert links
    assert not [link for link in links if not (ROOT / "docs/notebooks" / link).exists()]
