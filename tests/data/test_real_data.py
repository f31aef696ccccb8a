"""The published files, where they are: METAJAX_DATA=DIRECTORY pytest -m slow tests/data."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from metajax.data import (
    EpisodeSpec,
    check_episodes,
    gather,
    load_tasks,
    mask_rule,
    pack_blocks,
    plan_episodes,
    pretraining_batch,
    sample_episodes,
    tokenize_task,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("METAJAX_DATA" not in os.environ, reason="METAJAX_DATA is not set"),
]


@pytest.fixture
def data():
    return Path(os.environ["METAJAX_DATA"])


@pytest.mark.parametrize(
    ("name", "train", "development", "positive"),
    [
        ("CoLA", 8551, 1043, 721),
        ("MRPC", (3667, 3668), 408, 279),
        ("RTE", 2490, 277, 131),
        ("SST-2", 67349, 872, 444),
        ("STS-B", 5749, 1500, None),
    ],
)
def test_glue_has_its_published_sizes(data, name, train, development, positive):
    (first,) = load_tasks([f"glue:{name}"], glue_dir=data / "glue")
    (second,) = load_tasks([f"glue:{name}"], glue_dir=data / "glue", split="validation")
    assert len(first.texts) in np.atleast_1d(train)
    assert len(second.texts) == development
    if positive is not None:
        assert second.labels.sum() == positive
    else:
        assert (first.labels.min(), first.labels.max()) == (0, 5)


@pytest.mark.parametrize(("name", "size"), [("BANKING77", 77), ("CLINC150", 150), ("HWU64", 64)])
def test_intents_split_into_disjoint_classes(data, name, size):
    folder = data / "intents" / name
    parts = [
        load_tasks([str(folder / "full.jsonl")], classes=folder / f"few_shot/01/labels.{part}.txt")
        for part in ("train", "valid", "test")
    ]
    names = [set(task.label_names) for (task,) in parts]
    assert len(set.union(*names)) == sum(map(len, names)) == size


def per_call(call):
    call(0)
    begin = time.perf_counter()
    for step in range(1, 51):
        call(step)
    return (time.perf_counter() - begin) / 50


def test_batches_take_milliseconds(data, tokenizer):
    """The bound is loose, for machines are shared; on an idle one it is below 0.002."""
    tasks = load_tasks([str(data / "intents/BANKING77/full.jsonl")])
    spec = EpisodeSpec(5, 5, 5)
    check_episodes(tasks, spec)
    tokenized = [tokenize_task(task, tokenizer, 64) for task in tasks]
    plan = plan_episodes(tokenized, spec, 0, 4, 100)
    step = lambda n: gather(tokenized, sample_episodes(tokenized, spec, 0, n, 4), plan)  # noqa: E731
    assert per_call(step) < 0.02
    blocks = pack_blocks(tasks[0].texts, tokenizer, 128)
    for whole_word in (False, True):
        rule = mask_rule(tokenizer, whole_word=whole_word)
        assert per_call(lambda n, rule=rule: pretraining_batch(blocks, rule, 0, n, 32)) < 0.02
