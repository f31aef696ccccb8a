"""Every code block of README and docs/ does what it says, with a tiny model and tiny data.

The blocks of a page run in order, in a directory with the files that the pages name. A block's
language decides how it is tested:

- python: executed; a page's blocks share their names. Loops of 100 steps or more take two, and so
  do `steps=100` or more.
- sh: `metajax` commands run, with a small step or two (plan is only parsed); of `make`, `pip` and
  `python -m` it is checked that target, extra, module and options exist. Other programs need
  `<!-- not run: WHY -->` before the block; then its `metajax` commands are only parsed.
- console: what a command printed; the lines that begin with $ are checked like a block not run.
- any with title="NAME": the block is that file's content.
- text: not code.
"""

import argparse
import dataclasses
import importlib
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import metajax
from docs import pictures
from experiments import sinusoid
from metajax.cli.arguments import parse
from tests.commands.test_decoders import write_llama

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md"] + [
    str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))
]
RESULTS = [
    str(path.relative_to(ROOT))
    for folder in ("experiments", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.md"))
]
# Appended to the settings of a command, so that pages share compiled programs.
_EPISODES = "--ways 3 --shots 1 --queries 2 --max-length 16"
SMALL = {
    "pretrain": "--steps 1 --batch-size 4 --max-length 16 --learning-rate 1e-3",
    "metatrain": f"--steps 1 --meta-batch-size 2 --inner-steps 1 --algorithm anil {_EPISODES}"
    " --learning-rate 1e-3",
    "finetune": "--steps 1 --batch-size 4 --max-length 16 --pooling pooler",
    "evaluate": f"--episodes 2 --methods checkpoint {_EPISODES}",
}
SMALL_DOCUMENTS = {
    "metatrain": "--steps 1 --meta-batch-size 1 --inner-steps 1 --queries 1 --max-length 8",
    "evaluate": "--methods none --queries 1 --max-length 8",
    "adapt": "--inner-steps 2 --max-length 8",
}
PARSED = {"demo", "plan"}  # They take minutes; tests/commands/test_plan.py runs plan.


class Block(NamedTuple):
    """A fenced block: `line` is its first one within the page."""

    line: int
    language: str
    title: str | None
    run: bool
    text: str


def blocks(text: str) -> list[Block]:
    found = []
    for match in re.finditer(r"^( *)```(.*)\n((?:.*\n)*?) *```$", text, re.M):
        language, _, rest = match[2].partition(" ")
        title = re.fullmatch(r'title="(.+)"', rest)
        marked = re.search(r"<!-- not run: .+ -->\n+$", text[: match.start()])
        line = text[: match.start()].count("\n") + 2
        found.append(Block(line, language, title and title[1], not marked, match[3]))
    return found


def commands(text: str) -> Iterator[tuple[list[str], str]]:
    """Yield the words of each command of a shell script, and the separator after it."""
    lines = text.replace("\\\n", " ").splitlines()
    while lines:
        joined, found = lines.pop(0), None
        while found is None:
            try:
                found = shlex.split(joined, comments=True)
            except ValueError:  # A quotation continues in the next line.
                joined += "\n" + lines.pop(0)
        words: list[str] = []
        for word in [*found, ";"]:
            if word in ("&&", "|", ";"):
                if words:
                    yield words, word
                words = []
            else:
                words.append(word)


def run_shell(text: str, run: bool) -> None:
    piped = b""
    for words, separator in commands(text):
        while re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        output = run_command(words, piped, run)
        piped = output.encode() if separator == "|" else b""


def run_command(words: list[str], piped: bytes, run: bool) -> str:
    """Run or check a command, and return its output."""
    program, *arguments = words
    if program == "metajax":
        parse(arguments)
        if not run or arguments[0] in PARSED:
            return ""
        small = SMALL.get(arguments[0], "").split()
        if "--splits" in arguments:  # The draws have their own sizes.
            small = ["--methods", "knn", "--max-length", "16"]
        if any(word.startswith("documents:") for word in arguments):
            small = SMALL_DOCUMENTS[arguments[0]].split()
        if "--lora" in arguments:  # ANIL has no adapters.
            small = [word.replace("anil", "fomaml") for word in small]
        small += ["--curve", "1"] if "--curve" in arguments else []
        return tiny.succeed(*arguments, *small, stdin=piped)
    if program == "echo":
        return " ".join(arguments) + "\n"
    if program == "printf":
        return arguments[0].encode().decode("unicode_escape")
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        wrong = {word for word in arguments if "=" not in word} - set(targets)
        assert not wrong, f"make has no target {wrong}"
    elif program == "pip":
        settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extras = re.findall(r"[a-z0-9]+", "".join(re.findall(r"\[(.*)\]", arguments[-1])))
        assert set(extras) <= settings["optional-dependencies"].keys()
    elif program == "python" and arguments[0] == "-m":
        check_module(*arguments[1:])
    else:
        assert not run, f"cannot run {program}: mark the block <!-- not run: WHY -->"
        check_foreign(words)
    return ""


def check_foreign(words: list[str]) -> None:
    """Parse the `metajax` commands among the arguments of another program."""
    for index, word in enumerate(words):
        if Path(word).name == "metajax" and words[index + 1 : index + 2] != []:
            parse(words[index + 1 :])
        elif " " in word and "metajax " in word:
            run_shell(word.replace(".venv/bin/", ""), run=False)


class ParsedError(Exception):
    """A script has parsed its arguments."""


def check_module(name: str, *arguments: str) -> None:
    """Check that a script exists and accepts the arguments, without running it."""
    parse_args = argparse.ArgumentParser.parse_args

    def stop(self, *given, **settings):
        parse_args(self, *given, **settings)
        raise ParsedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(ParsedError):
            importlib.import_module(name).main()


def run_page(page: str, text: str) -> dict:
    """Run a page's blocks in the current directory, and return the names of its Python."""
    names: dict = {"__name__": "__main__"}
    for block in blocks(text):
        place = f"{page}:{block.line}"
        try:
            if block.title:
                Path(block.title).parent.mkdir(exist_ok=True)
                Path(block.title).write_text(block.text)
            elif block.language == "python":
                code = re.sub(r"range\(\d{3,}\)", "range(2)", block.text)
                code = re.sub(r"\bsteps=\d{3,}", "steps=2", code)
                exec(compile("\n" * (block.line - 1) + code, page, "exec"), names)
            elif block.language == "sh":
                run_shell(block.text, block.run)
            elif block.language == "console":
                lines = block.text.replace("\\\n", " ").splitlines()
                run_shell("\n".join(line[2:] for line in lines if line[:2] == "$ "), run=False)
            else:
                assert block.language == "text", "say what the block is: sh, python, text, ..."
        except BaseException as error:
            error.add_note(f"in the block at {place}")
            raise
    return names


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A directory with all files that pages name."""
    monkeypatch.setattr(tiny, "CONFIG", dataclasses.replace(tiny.CONFIG, num_hidden_layers=1))
    for name in ("bert-base-uncased", "path/to/bert"):
        tiny.write_model(tmp_path / name)
    tiny.write_model(
        tmp_path / "sentence-transformers/all-MiniLM-L6-v2", head="encoder", pooling="mean"
    )
    write_llama(tmp_path / "HuggingFaceTB/SmolLM2-135M")
    for number in range(3):
        (tmp_path / "notes").mkdir(exist_ok=True)
        tiny.write_text(tmp_path / "notes" / f"{number}.txt", lines=3, seed=number)
    tiny.write_passages(tmp_path / "corpus.txt")
    tiny.write_rows(tmp_path / "intents.jsonl", tiny.examples(8, 6))
    for name, classes in {"train.txt": range(4), "test.txt": range(4, 8)}.items():
        (tmp_path / name).write_text("".join(f"topic{number}\n" for number in classes))
    tiny.write_rows(tmp_path / "examples.csv", tiny.examples(3, 2, first=8))
    (tmp_path / "texts.txt").write_text("w50 w51\nw56 w57\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made_before(page: str) -> str:
    """The commands of other pages that a page builds on."""
    if page != "docs/guides/export.md":
        return ""
    model = "--model sentence-transformers/all-MiniLM-L6-v2"
    return f"metajax adapt {model} --tasks examples.csv --workdir runs/mine\n"


def check_algorithm(names: dict) -> None:
    algorithm = names["my_algorithm"](lambda p, b, rng: ((p - b) ** 2 / 2, {}), optax.sgd(0.5), 1)
    grads, _ = algorithm.meta_grad(jnp.float32(0), metajax.Task(1.0, 1.0), None)
    assert float(grads) == -0.25


def check_exported(names: dict) -> None:
    np.testing.assert_allclose(names["scores"][0], names["logits"], atol=1e-5)
    assert names["classifier"].config.id2label[0] == "topic10"


# These pages run whole stages. So does the README, which always runs.
LONG = tuple(
    f"docs/{page}.md"
    for page in (
        "tutorial",
        "guides/own-csv",
        "guides/unlabelled",
        "guides/documents",
        "guides/decoder-lora",
        "guides/export",
    )
)


def check_adapters(names: dict) -> None:
    np.testing.assert_allclose(names["ours"], names["logits"], atol=1e-5)
    with names["adapted"].disable_adapter():  # It has learned something.
        without = names["adapted"](**names["batch"]).logits.detach()
    assert abs(without - names["logits"]).max() > 1e-4


# Checks of the names that a page defined.
CHECKS = {
    "docs/guides/decoder-lora.md": check_adapters,
    "docs/algorithms.md": check_algorithm,
    "docs/guides/export.md": check_exported,
}


def code_of(page: str) -> list[Block]:
    """The blocks of a page that are more than text."""
    return [block for block in blocks((ROOT / page).read_text()) if block.language != "text"]


@pytest.mark.xdist_group("docs")  # One worker compiles for all pages.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT uses it.
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page in LONG else ())
        for page in filter(code_of, PAGES)
    ],
)
def test_every_block_runs(page, desk):
    run_shell(made_before(page), run=True)
    names = run_page(page, (ROOT / page).read_text())
    CHECKS.get(page, lambda names: None)(names)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("```\nx\n```\n", "say what the block is"),
        ("```python\n1 / 0\n```\n", "division by zero"),
        ("```sh\nmetajax adapt --modle x\n```\n", "did you mean --model?"),
        ("```sh\nmetajax lineage --model nowhere\n```\n", "nowhere"),
        ("```sh\nsrun metajax demo\n```\n", "mark the block"),
        ("<!-- not run: Slurm -->\n\n```sh\nsrun metajax dmeo\n```\n", "dmeo"),
        ("```sh\nmake tset\n```\n", "tset"),
        ("```sh\npip install -e '.[gpu]'\n```\n", "gpu"),
        ("```console\n$ python -m benchmarks.memroy\n```\n", "memroy"),
    ],
)
def test_a_broken_block_fails(block, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((Exception, SystemExit), match=message) as caught:
        run_page("page", f"# Page\n\n{block}")
    assert "in the block at page:" in caught.value.__notes__[0]


def test_performance_shows_recorded_numbers():
    logs = (ROOT / "benchmarks/logs").glob("*.md")
    recorded = {line for path in logs for line in path.read_text().splitlines()}
    page = blocks((ROOT / "docs/performance.md").read_text())
    shown = [line for b in page if b.language == "console" for line in b.text.splitlines()]
    assert len(shown) > 20
    assert not [line for line in shown if line not in recorded]


def test_pages_quote_recorded_numbers():
    files = [*(ROOT / "experiments").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]
    recorded = {n for file in files for n in re.findall(r"\d+\.\d+", file.read_text())}
    measured = (ROOT / "README.md").read_text().partition("| Measured")[2].partition("\n\n")[0]
    chosen = (ROOT / "docs/guides/which-algorithm.md").read_text()
    quoted = re.findall(r"\d+\.\d+", measured + chosen)
    assert len(quoted) > 70
    assert not set(quoted) - recorded


def test_no_merge_left_its_marks():
    pages = [*PAGES, *RESULTS, "CHANGELOG.md"]
    marks = re.compile("^(<{7}|={7}$|>{7})", re.MULTILINE)
    assert not [page for page in pages if marks.search((ROOT / page).read_text())]


def test_papers_are_all_listed():
    page = (ROOT / "docs/papers.md").read_text()
    files = [*(ROOT / "metajax").rglob("*.py"), *(ROOT / "experiments").glob("*.py")]
    named = [(path, n) for path in files for n in re.findall(r"\d{4}\.\d{5}", path.read_text())]
    assert len(named) > 20
    assert not [f"{path}: {number}" for path, number in named if number not in page]


@pytest.mark.parametrize("page", ["README.md", *RESULTS])
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text())
    assert links
    assert not [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]


def test_pages_of_the_site_link_to_pages_of_the_site():
    site = set(re.findall(r"[\w/.-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    outside = site & {*RESULTS, "CONTRIBUTING.md"}
    assert len(outside) > 20
    for page in outside:
        for link in re.findall(r"\]\(([^)#:]+\.md)", (ROOT / page).read_text()):
            target = (ROOT / page).parent.joinpath(link).resolve().relative_to(ROOT)
            assert str(target).removeprefix("docs/") in site, f"{page}: {link}"


def test_results_link_to_every_log():
    for folder in ("experiments", "benchmarks"):
        page = (ROOT / folder / "RESULTS.md").read_text()
        logs = sorted((ROOT / folder / "logs").glob("*.md"))
        assert len(logs) > 5
        assert not [log.name for log in logs if f"](logs/{log.name}" not in page]


def test_pictures_are_drawn(tmp_path, monkeypatch):
    still = sinusoid.init(jax.random.key(0))
    monkeypatch.setattr(pictures, "train", lambda *given, **settings: still)
    for name, draw in pictures.PICTURES.items():
        path = tmp_path / f"{name}.svg"
        draw(path)
        assert path.stat().st_size > 1000
        assert (ROOT / "docs/pictures" / path.name).is_file()
