"""Fixtures of the tests that run commands, such as the whole chain of stages, run once."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny

from tests.stage_commands import finetune_command, metatrain_command, pretrain_command


@pytest.fixture(scope="session")
def compiled(tmp_path_factory) -> Path:
    """A cache for processes that are killed, and may leave a part of a compiled program there."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="session")
def material(tmp_path_factory) -> SimpleNamespace:
    """A model, text and tasks on disk."""
    root = tmp_path_factory.mktemp("material")
    return SimpleNamespace(
        bert=tiny.write_model(root / "bert"),
        gpt2=tiny.write_gpt2(root / "gpt2"),
        text=tiny.write_text(root / "text.txt"),
        intents=tiny.write_rows(root / "intents.jsonl", tiny.examples(6, 8)),
        three=tiny.write_rows(root / "three.csv", tiny.examples(3, 8)),
        three_dev=tiny.write_rows(root / "three_dev.csv", tiny.examples(3, 4, seed=9)),
        new=tiny.write_rows(root / "new.tsv", tiny.examples(3, 2, seed=5, first=8)),
        glue=tiny.write_glue(root / "glue"),
    )


@pytest.fixture(scope="session")
def chain(material, tmp_path_factory) -> SimpleNamespace:
    """The workdirs of pretrain -> metatrain -> adapt and pretrain -> finetune."""
    root = tmp_path_factory.mktemp("chain")
    places = {name: root / name for name in ("pretrain", "metatrain", "adapt", "finetune")}
    with tiny.one_device():
        out = {
            "pretrain": tiny.succeed(*pretrain_command(material, places["pretrain"])),
            "metatrain": tiny.succeed(
                *metatrain_command(material, places["metatrain"], places["pretrain"])
            ),
            "finetune": tiny.succeed(
                *finetune_command(material, places["finetune"], places["pretrain"])
            ),
            "adapt": tiny.succeed(
                "adapt",
                *("--model", places["metatrain"], "--tasks", material.new),
                *("--workdir", places["adapt"], "--inner-lr", 0.1),
            ),
        }
    return SimpleNamespace(**places, out=out)


@pytest.fixture(scope="session")
def evaluation(chain, material, tmp_path_factory) -> SimpleNamespace:
    """All methods on ten episodes: the output of `evaluate` and the file that it wrote."""
    path = tmp_path_factory.mktemp("evaluation") / "rows.json"
    with tiny.one_device():
        out = tiny.succeed(
            *("evaluate", "--model", chain.metatrain, "--tasks", material.intents, "--ways", 3),
            *("--queries", 3, "--episodes", 10, "--curve", 2, "--output", path),
        )
    return SimpleNamespace(out=out, path=path)


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Run a command in an empty directory and check everything that is true for each refusal."""
    monkeypatch.chdir(tmp_path)

    def run(message, *arguments, **settings):
        before = tiny.tree_of(tmp_path)
        done = tiny.run(*arguments, **settings)
        assert (done.status, done.out) == (2, "")
        assert re.fullmatch("metajax: error: .+\n", done.err), done.err
        assert re.search(message, done.err), done.err
        assert tiny.tree_of(tmp_path) == before

    return run
