import shutil

import numpy as np
import pytest
import tiny

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


def test_small_tasks_and_hidden_words_keep_all_classes(opened):
    model, params = opened
    texts = [f"{word} {number}" for word in tiny.WORDS[:4] for number in range(3)]
    task = tokenize_task(own_task("words", texts), model.tokenizer, 16)
    for given, number in ((task, 0), (task, 4), (task._replace(hides_words=True), 3)):
        (found,) = similar_classes.with_similar_classes(model, params, [given], number)
        assert found.similar is None


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
