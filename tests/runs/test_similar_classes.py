import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny

from metajax.commands import metatrain as training
from metajax.config.settings import MetatrainSettings
from metajax.data import TaskData, tokenize_task
from metajax.errors import InputError
from metajax.models import from_pretrained
from metajax.runs import similar_classes
from tests.stage_commands import metatrain_command


def own_task(name, texts):
    """A task with a class of three texts for each word."""
    labels = np.repeat(np.arange(len(texts) // 3), 3).astype(np.int32)
    return TaskData(name, texts, None, labels, tuple(map(str, range(len(texts) // 3))))


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    model = tiny.write_model(tmp_path_factory.mktemp("model"))
    return from_pretrained(str(model), pooling="mean", feature_norm=3.0)


def test_the_similar_classes_have_the_largest_cosine_of_their_means(opened):
    """The features are computed text by text here."""
    model, params = opened
    texts = [f"{word} {other}" for word in tiny.WORDS[:5] for other in tiny.WORDS[5:8]]
    task = tokenize_task(own_task("words", texts), model.tokenizer, 16)
    (found,) = similar_classes.with_similar_classes(model, params, [task], 3)
    means = np.zeros((5, model.config.hidden_size))
    for number, rows in enumerate(task.rows_by_class):
        for row in rows:
            ids = task.tokens.input_ids[row, : task.tokens.lengths[row]]
            one = {"input_ids": ids[None].astype(np.int32)}
            one |= {"token_type_ids": np.zeros_like(one["input_ids"])}
            features = model.features(
                params, one | {"attention_mask": np.ones_like(one["input_ids"])}
            )
            means[number] += np.asarray(features[0], float)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_array_equal(found.similar, np.argsort(-(means @ means.T), axis=1)[:, :3])
    np.testing.assert_array_equal(found.similar[:, 0], np.arange(5))


def test_a_class_is_the_first_of_its_own(opened):
    """Although another has the same texts."""
    model, params = opened
    texts = [f"{word} {number}" for word in tiny.WORDS[:4] for number in range(3)]
    twice = own_task("words", 2 * texts)._replace(keep_duplicates=True)
    task = tokenize_task(twice, model.tokenizer, 16)
    (found,) = similar_classes.with_similar_classes(model, params, [task], 2)
    np.testing.assert_array_equal(found.similar[:, 0], np.arange(8))
    np.testing.assert_array_equal(found.similar[:, 1], (np.arange(8) + 4) % 8)


def test_small_tasks_and_hidden_words_keep_all_classes(opened, caplog):
    model, params = opened
    texts = [f"{word} {number}" for word in tiny.WORDS[:5] for number in range(3)]
    large = tokenize_task(own_task("large", texts), model.tokenizer, 16)
    small = tokenize_task(own_task("small", texts[:12]), model.tokenizer, 16)
    hidden = large._replace(name="hidden", hides_words=True)
    tasks = [small, large, hidden]
    found = similar_classes.with_similar_classes(model, params, tasks, 0)
    assert [task.similar for task in found] == [None] * 3
    with caplog.at_level("WARNING", logger="metajax"):
        found = similar_classes.with_similar_classes(model, params, tasks, 4)
    assert [task.similar is None for task in found] == [True, False, True]
    assert "--similar-classes 4: does not apply to small, hidden, with" in caplog.text
    with pytest.raises(InputError, match="--similar-classes 4: no data set has more classes to"):
        similar_classes.with_similar_classes(model, params, [small, hidden], 4)


def losses(run):
    return [row["loss"] for row in tiny.rows_of(run) if "loss" in row]


def test_metatrain_draws_similar_classes_and_resumes_with_them(material, tmp_path):
    changes = {"similar_classes": 3, "algorithm": "protonet", "inner_steps": 0}
    whole, resumed, random = (tmp_path / name for name in ("whole", "resumed", "random"))
    tiny.succeed(*metatrain_command(material, whole, **changes))
    shutil.copytree(whole, resumed)
    (resumed / "results.json").unlink()
    shutil.rmtree(resumed / "checkpoints" / "4")
    tiny.succeed(*metatrain_command(material, resumed, **changes))
    tiny.succeed(*metatrain_command(material, random, **changes | {"similar_classes": 0}))
    assert losses(whole) == losses(resumed) != losses(random)


def test_a_host_that_is_lost_is_explained(material, tmp_path, monkeypatch):
    def lost(*_):
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        raise jax.errors.JaxRuntimeError("gone")

    monkeypatch.setattr(training, "with_similar_classes", lost)
    command = metatrain_command(material, tmp_path / "run", similar_classes=3)
    done = tiny.run(*command)
    assert done.status == 1
    assert "process 0 of 2 could not continue with the others (gone)" in done.err


@pytest.mark.parametrize("held_out", [0, 0.25])
def test_accuracies_are_measured_on_random_classes(material, tmp_path, monkeypatch, held_out):
    """Those of validation, or without it of training."""
    stages, drawn = [], []
    sampler = training.episode_sampler

    def noting(examples, *given):
        drawn.append(examples)
        return sampler(examples, *given)

    infos = SimpleNamespace(query_aux={"accuracy": np.zeros(4)})
    monkeypatch.setattr(training, "train", lambda stage, params: stages.append(stage) or {})
    monkeypatch.setattr(training, "episode_sampler", noting)
    monkeypatch.setattr(training, "run_episodes", lambda *given, **settings: infos)
    command = metatrain_command(material, tmp_path / "run", similar_classes=4, held_out=held_out)
    file = tiny.write_rows(tmp_path / "nine.jsonl", tiny.examples(9, 8))
    command[command.index("--tasks") + 1] = file
    tiny.succeed(*command)
    (stage,) = stages
    stage.measure({})
    (trained,), (measured,) = drawn
    assert trained.similar.shape == (6 if held_out else 9, 4)
    assert measured.similar is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"similar_classes": 4}, "4: is fewer than 5 ways; give more, or 0 for all"),
        ({"similar_classes": 9, "whole_tasks": True}, "9: has no effect with --whole-tasks"),
    ],
)
def test_wrong_numbers_of_similar_classes(changes, message):
    with pytest.raises(InputError, match=f"--similar-classes {message}"):
        MetatrainSettings(model="m", workdir="w", tasks=("t",), **changes)
