"""Tasks that are held out to choose the best checkpoint on."""

import zlib

import numpy as np
import pytest

from metajax.data import EpisodeSpec, TaskData, Tokens, check_episodes, hold_out_tasks
from metajax.data.text import with_tokens

SPEC = EpisodeSpec(ways=3, shots=1, queries=2)


def make_texts(name, classes, each=4, repeated=0, **changes):
    """A data set whose texts name their class; the first so many texts come twice."""
    labels = np.repeat(np.arange(classes), each).astype(np.int32)
    texts = [f"{name} {label} {row}" for row, label in enumerate(labels)]
    texts += texts[:repeated]
    labels = np.concatenate([labels, labels[:repeated]])
    names = tuple(f"c{number:02}" for number in range(classes))
    return TaskData(name, texts, None, labels, names, **changes)


def as_tokens(task):
    """Return a data set with one token for each text, which differs between texts."""
    ids = np.array([[zlib.crc32(text.strip().encode())] for text in task.texts])
    tokens = Tokens(ids, np.zeros(ids.shape, np.int8), np.ones(len(ids), np.int32), truncated=0)
    return with_tokens(task, tokens)


def make_task(*given, **changes):
    return as_tokens(make_texts(*given, **changes))


def names_of(held_out):
    return {name for task in held_out.validation for name in task.label_names}


def texts_of(tasks):
    return {
        task.tokens.input_ids[row, 0] for task in tasks for own in task.rows_by_class for row in own
    }


def labelled(task):
    found = {
        (task.tokens.input_ids[row, 0], task.label_names[label])
        for label, rows in enumerate(task.rows_by_class)
        for row in rows
    }
    rows = np.flatnonzero(task.labels >= 0)
    names = {(task.tokens.input_ids[row, 0], task.label_names[task.labels[row]]) for row in rows}
    assert found == names
    return found


def sizes_of(task):
    return [len(rows) for rows in task.rows_by_class]


def assert_apart(tasks, held_out):
    """Every example is in one of the parts, with its label."""
    parts = [
        set().union(*(labelled(task) for task in part))
        for part in (held_out.training, held_out.validation)
    ]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == set().union(*map(labelled, tasks))


@pytest.mark.parametrize(("large", "kind"), [(3, "data sets"), (2, "classes")])
def test_data_sets_with_fewer_classes_than_ways_are_not_held_out(large, kind):
    """They do not count as data sets for that either."""
    small = [make_task(f"s{number}", 2) for number in range(5)]
    tasks = [*small, *(make_task(f"l{number}", 6) for number in range(large))]
    for seed in range(5):
        held_out = hold_out_tasks(tasks, SPEC, seed, 0.3)
        assert held_out.kind == kind
        check_episodes(held_out.validation, SPEC)
        check_episodes(held_out.training, SPEC, mixed=True)
        assert {task.name for task in small} <= {task.name for task in held_out.training}


@pytest.mark.parametrize(
    ("count", "fraction", "held"), [(3, 0.25, 1), (8, 0.25, 2), (3, 0.5, 1), (9, 0.3, 2)]
)
def test_of_three_or_more_data_sets_whole_ones_are_held_out(count, fraction, held):
    tasks = [make_task(f"t{number}", 3) for number in range(count)]
    held_out = hold_out_tasks(tasks, SPEC, 0, fraction)
    assert held_out.kind == "data sets"
    assert len(held_out.validation) == held
    kept = {id(task) for task in held_out.training}
    assert [task for task in tasks if id(task) in kept] == held_out.training
    assert_apart(tasks, held_out)
    chosen = {tuple(t.name for t in hold_out_tasks(tasks, SPEC, s, fraction)[1]) for s in range(20)}
    assert len(chosen) > 1  # The seed decides.
    assert hold_out_tasks(tasks, SPEC, 0, fraction) == held_out  # The same objects.


def test_data_sets_of_hidden_words_are_held_out_only_if_there_are_no_others():
    words = [make_task(f"w{number}", 6, hides_words=True) for number in range(4)]
    labelled = [make_task(f"t{number}", 6) for number in range(4)]
    for seed in range(10):
        held_out = hold_out_tasks([*words, *labelled], SPEC, seed, 0.5)
        assert len(held_out.validation) == 2
        assert not any(task.hides_words for task in held_out.validation)
    assert len(hold_out_tasks(words, SPEC, 0, 0.5).validation) == 2
    # The only labelled ones are trained on.
    assert hold_out_tasks([*words, *labelled[:2]], SPEC, 0, 0.5).kind == "classes"


@pytest.mark.parametrize("keep_duplicates", [False, True])
def test_no_text_is_in_both_parts_whatever_its_labels(keep_duplicates):
    """A text with several labels is in no episode of either part, although each has one of them."""
    task = make_texts("a", 6, each=8, keep_duplicates=keep_duplicates)
    texts = [*task.texts[:-8], *(f" {text} " for text in task.texts[:8])]
    task = as_tokens(task._replace(texts=texts))
    splits = [hold_out_tasks([task], SPEC, seed, 0.5) for seed in range(10)]
    (held_out, *_) = (each for each in splits if len({"c00", "c05"} & names_of(each)) == 1)
    assert held_out.kind == "classes"
    parts = [texts_of(part) for part in (held_out.training, held_out.validation)]
    assert bool(parts[0] & parts[1]) == keep_duplicates
    sizes = [part[0].num_examples for part in (held_out.training, held_out.validation)]
    assert sum(sizes) == (len(texts) if keep_duplicates else len(texts) - 16)


@pytest.mark.parametrize(
    ("classes", "fraction", "held"), [(20, 0.25, 5), (20, 0.5, 10), (8, 0.25, 3), (6, 0.25, 3)]
)
def test_of_fewer_a_share_of_the_classes_is_held_out(classes, fraction, held):
    """At least as many as an episode has."""
    tasks = [make_task("a", classes), make_task("b", 5)]  # Too few to hold some out.
    held_out = hold_out_tasks(tasks, SPEC, 0, fraction)
    assert held_out.kind == "classes"
    (validation,) = held_out.validation
    assert len(validation.label_names) == held
    assert validation.name == "a"
    names = [*held_out.training[0].label_names, *validation.label_names]
    assert sorted(names) == sorted(tasks[0].label_names)
    assert held_out.training[1] is tasks[1]
    assert_apart(tasks, held_out)
    for part in (held_out.training, held_out.validation):
        check_episodes(part, SPEC)
    other = hold_out_tasks(tasks, SPEC, 1, fraction).validation[0]
    assert other.label_names != validation.label_names


@pytest.mark.parametrize("spec", [SPEC, EpisodeSpec(None, 1, 2)])
def test_with_too_few_classes_examples_are_held_out(spec):
    """No text is in both parts, also if the data set has it twice."""
    classes = 12 if spec.ways is None else 5
    task = make_task("a", classes, each=16, repeated=30)
    held_out = hold_out_tasks([task], spec, 0, 0.25)
    assert held_out.kind == "examples"
    assert_apart([task], held_out)
    counts = [sizes_of(part[0]) for part in (held_out.training, held_out.validation)]
    assert counts == [[12] * classes, [4] * classes]
    for part in (held_out.training, held_out.validation):
        check_episodes(part, spec)
    few = hold_out_tasks([make_task("a", classes, each=7)], spec, 0, 0.25)
    assert sizes_of(few.validation[0]) == [3] * classes


def test_nothing_is_held_out_if_episodes_need_everything():
    tasks = [make_task("a", 5, each=5), make_task("b", 3, each=5)]
    held_out = hold_out_tasks(tasks, SPEC, 0, 0.25)
    assert (held_out.training, held_out.validation) == (tasks, [])


def test_parts_share_tokens_and_keep_the_settings_of_a_data_set():
    task = make_task("a", 6, hides_words=True)._replace(weight=2.0)
    for spec in (SPEC, EpisodeSpec(None, 1, 1)):
        held_out = hold_out_tasks([task], spec, 0, 0.25)
        assert held_out.validation
        for part in (*held_out.training, *held_out.validation):
            assert (part.name, part.hides_words, part.weight) == ("a", True, 2.0)
            assert part.tokens is task.tokens
