"""Tasks that are held out to choose the best checkpoint on."""

import numpy as np
import pytest

from metajax.data import EpisodeSpec, TaskData, check_episodes, hold_out_tasks

SPEC = EpisodeSpec(ways=3, shots=1, queries=2)


def make_task(name, classes, each=4, repeated=0, **changes):
    """A data set whose texts name their class; the first so many texts come twice."""
    labels = np.repeat(np.arange(classes), each).astype(np.int32)
    texts = [f"{name} {label} {row}" for row, label in enumerate(labels)]
    texts += texts[:repeated]
    labels = np.concatenate([labels, labels[:repeated]])
    names = tuple(f"c{number:02}" for number in range(classes))
    return TaskData(name, texts, None, labels, names, **changes)


def names_of(held_out):
    return {name for task in held_out.validation for name in task.label_names}


def labelled(task):
    return {(text, task.label_names[label]) for text, label in zip(task.texts, task.labels)}


def assert_apart(tasks, held_out):
    """Every example is in one of the parts, with its label."""
    parts = [
        set().union(*(labelled(task) for task in part))
        for part in (held_out.training, held_out.validation)
    ]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == set().union(*map(labelled, tasks))


@pytest.mark.parametrize(
    ("count", "fraction", "held"), [(3, 0.25, 1), (8, 0.25, 2), (3, 0.5, 1), (9, 0.3, 2)]
)
def test_of_three_or_more_data_sets_whole_ones_are_held_out(count, fraction, held):
    tasks = [make_task(f"t{number}", 3) for number in range(count)]
    held_out = hold_out_tasks(tasks, SPEC, 0, fraction)
    assert held_out.kind == "data sets"
    assert len(held_out.validation) == held
    assert [task for task in tasks if task in held_out.training] == held_out.training
    assert_apart(tasks, held_out)
    chosen = {tuple(t.name for t in hold_out_tasks(tasks, SPEC, s, fraction)[1]) for s in range(20)}
    assert len(chosen) > 1  # The seed decides.
    assert hold_out_tasks(tasks, SPEC, 0, fraction) == held_out


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
    task = make_task("a", 6, each=8, keep_duplicates=keep_duplicates)
    task = task._replace(texts=[*task.texts[:-8], *(f" {text} " for text in task.texts[:8])])
    splits = [hold_out_tasks([task], SPEC, seed, 0.5) for seed in range(10)]
    (held_out, *_) = (each for each in splits if len({"c00", "c05"} & names_of(each)) == 1)
    assert held_out.kind == "classes"
    parts = [
        {task.texts[row].strip() for task in part for rows in task.drawn_rows() for row in rows}
        for part in (held_out.training, held_out.validation)
    ]
    assert bool(parts[0] & parts[1]) == keep_duplicates
    sizes = [len(part[0].texts) for part in (held_out.training, held_out.validation)]
    assert sum(sizes) == (len(task.texts) if keep_duplicates else len(task.texts) - 16)


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
    counts = [
        np.bincount(part.labels, minlength=classes).tolist()
        for part in (held_out.training[0], held_out.validation[0])
    ]
    assert counts == [[12] * classes, [4] * classes]
    for part in (held_out.training, held_out.validation):
        check_episodes(part, spec)
    few = hold_out_tasks([make_task("a", classes, each=7)], spec, 0, 0.25)
    assert np.bincount(few.validation[0].labels).tolist() == [3] * classes


def test_nothing_is_held_out_if_episodes_need_everything():
    tasks = [make_task("a", 5, each=5), make_task("b", 3, each=5)]
    held_out = hold_out_tasks(tasks, SPEC, 0, 0.25)
    assert (held_out.training, held_out.validation) == (tasks, [])


def test_pairs_and_settings_of_a_data_set_are_kept():
    task = make_task("a", 6, keep_duplicates=True, hides_words=True)
    task = task._replace(pairs=[text.upper() for text in task.texts])
    held_out = hold_out_tasks([task], SPEC, 0, 0.25)
    for part in (*held_out.training, *held_out.validation):
        assert (part.keep_duplicates, part.hides_words) == (True, True)
        assert part.pairs == [text.upper() for text in part.texts]
