"""Tasks of hidden words, from plain text."""

import copy

import numpy as np
import pytest

from metajax.data import EpisodeSpec, TaskData, check_episodes, load_tasks, tokenize_task
from metajax.data.fingerprints import fingerprint
from metajax.data.smlmt import MASK, hidden_words
from metajax.errors import InputError


def write(path, lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def animals(path, each=20):
    lines = [
        f"line {n} has one {kind} and more of a {kind}s"
        for n in range(each)
        for kind in ("cat", "dog", "horse")
    ]
    return write(path, lines)


def test_each_line_serves_one_word_and_hides_it(tmp_path):
    rows = hidden_words(animals(tmp_path / "t.txt"))
    assert len(rows) == 60
    for passage, word in rows:
        assert MASK in passage
        # The plural is another word.
        assert f"{word}s" in passage
        assert f" {word} " not in passage
    assert {word for _, word in rows} == {"cat", "dog", "horse"}


def test_upper_case_and_punctuation_are_no_way_to_peek(tmp_path):
    lines = [
        line for n in range(20) for line in (f"The Cat, a {n} cat.", f"A dog? DOG {n}! Dog-dog")
    ]
    rows = hidden_words(write(tmp_path / "t.txt", lines))
    assert {word for _, word in rows} == {"cat", "dog"}
    assert not any("cat" in text.lower() or "dog" in text.lower() for text, _ in rows)


def test_a_line_is_about_the_rarest_of_its_words_that_enough_lines_have(tmp_path):
    lines = ["Cat dog horse of it"] * 20  # Cat and dog are equally frequent.
    lines += ["the horse, and the horse"] * 5 + ["of the the the ox"] * 20
    rows = hidden_words(write(tmp_path / "t.txt", lines), keep_duplicates=True)
    first, last = (f"{MASK} dog horse of it", "cat"), (f"of {MASK} {MASK} {MASK} ox", "the")
    # Horse and the are in 25 lines each, so five lines are about horse, which are too few.
    assert rows == [first] * 20 + [last] * 20


def test_a_word_has_three_letters_or_more_and_20_lines_of_its_own(tmp_path):
    # Emu is in 8 lines only. Dog is in 40 lines, but only 19 are about it.
    lines = ["dog, cat!"] * 20 + ["cat emu emu emu"] * 8 + ["a dog"] * 19 + ["dog owl"]
    rows = hidden_words(
        write(tmp_path / "t.txt", lines + ["it is owl"] * 19 + ["is it"] * 30), keep_duplicates=True
    )
    cats = [f"dog, {MASK}!"] * 20 + [f"{MASK} emu emu emu"] * 8
    owls = [f"dog {MASK}"] + [f"it is {MASK}"] * 19
    assert rows == [(text, "cat") for text in cats] + [(text, "owl") for text in owls]


def test_a_long_line_keeps_what_is_around_the_word(tmp_path):
    long = " ".join(f"{'a' * (n % 2 + 1)}" for n in range(300))
    lines = [f"{long} {kind} {long}" for _ in range(20) for kind in ("cat", "dog")]
    for passage, _ in hidden_words(write(tmp_path / "t.txt", lines), keep_duplicates=True):
        words = passage.split()
        assert len(words) == 25
        assert words[12] == MASK


def test_they_are_tasks_like_others(tmp_path):
    path = animals(tmp_path / "t.txt")
    (task,) = load_tasks([f"smlmt:{path}"])
    assert task.label_names == ("cat", "dog", "horse")
    assert np.bincount(task.labels).tolist() == [20, 20, 20]
    check_episodes([task], EpisodeSpec(ways=3, shots=5, queries=15))
    assert fingerprint(f"smlmt:{path}") == fingerprint(str(path))


def test_a_letter_that_grows_in_lower_case_is_found(tmp_path):
    lines = [line for n in range(20) for line in (f"to \u0130stanbul {n}", f"to Ankara {n}")]
    rows = hidden_words(write(tmp_path / "t.txt", lines), keep_duplicates=True)
    assert [text for text, _ in rows] == [f"to {MASK} {n // 2}" for n in range(40)]


def test_the_model_reads_its_own_mask(tmp_path, tokenizer):
    path = write(
        tmp_path / "t.txt", [line for _ in range(20) for line in ("w1 unbelievable", "w3 uns")]
    )
    (task,) = load_tasks([f"smlmt:{path}"], keep_duplicates=True)
    other = copy.deepcopy(tokenizer)
    other.mask_token = "w5"  # Some call it <mask>.
    for each in (tokenizer, other):
        ids = tokenize_task(task, each, 8).tokens.input_ids
        assert (ids == each.mask_token_id).any(axis=1).all()
        again = task._replace(texts=[f"{text} w2 {MASK}" for text in task.texts])
        ids = tokenize_task(again, each, 8).tokens.input_ids
        assert ((ids == each.mask_token_id).sum(axis=1) == 2).all()  # Every mask in a passage.
    other.mask_token = None
    with pytest.raises(InputError, match=r"t\.txt: the model's tokenizer has no mask token"):
        tokenize_task(task, other, 8)


def test_a_passage_that_is_cut_keeps_its_hidden_word(tokenizer):
    before = " ".join(["cat"] * 12)
    texts = [f"{before} {MASK} dog", f"{MASK} dog", f"dog {MASK} {before}"]
    labels = np.array([0, 1, 0], np.int32)
    task = TaskData("smlmt:x", texts, None, labels, ("a", "b"), hides_words=True)
    tokens = tokenize_task(task, tokenizer, 5).tokens
    assert (tokens.input_ids == tokenizer.mask_token_id).any(1).all()
    whole = tokenize_task(task, tokenizer, 40).tokens
    assert whole.lengths.max() > 12


def test_a_passage_comes_once_and_fits_one_word(tmp_path, caplog):
    lines = [f"{kind} number {n + at}" for n in range(20) for kind, at in (("cat", 0), ("dog", 50))]
    twice = [line for line in lines for _ in range(2)] + ["cat  number 3", "a cat number 3"]
    alike = ["cat ox", "dog ox"] * 20  # Nobody can tell which is hidden.
    path = write(tmp_path / "t.txt", twice + alike)
    with caplog.at_level("INFO"):
        (task,) = load_tasks([f"smlmt:{path}"])
    assert caplog.messages[0].startswith(f"{path}: 81 of 122 passages are repeated or fit several")
    assert task.texts[:2] == [f"{MASK} number 0", f"{MASK} number 50"]
    assert task.texts[-1] == f"a {MASK} number 3"
    assert len(task.texts) == len(set(task.texts)) == 41
    (every,) = load_tasks([f"smlmt:{path}"], keep_duplicates=True)
    assert len(every.texts) == 80 + 2 + 40


def test_next_to_labelled_tasks_the_classes_asked_for_are_theirs(tmp_path):
    hidden = f"smlmt:{animals(tmp_path / 't.txt')}"
    rows = write(tmp_path / "rows.csv", ["text,label", "w1,a", "w2,b", "w3,c", "w4,cat"])
    classes = write(tmp_path / "classes.txt", ["a", "b"])
    words, labelled = load_tasks([hidden, str(rows)], classes=classes)
    assert words.label_names == ("cat", "dog", "horse")
    assert labelled.label_names == ("a", "b")
    with pytest.raises(InputError, match=r"classes\.txt: --classes does not apply to hidden words"):
        load_tasks([hidden], classes=classes)
    with pytest.raises(InputError, match="no task has the label 'dog'"):
        load_tasks([hidden, str(rows)], classes=write(tmp_path / "other.txt", ["a", "b", "dog"]))


def test_too_little_text_is_refused(tmp_path):
    with pytest.raises(InputError, match="fewer than two words that can be hidden in 20 lines"):
        hidden_words(animals(tmp_path / "t.txt", each=19))
    with pytest.raises(InputError, match=r"missing\.txt"):
        load_tasks([f"smlmt:{tmp_path / 'missing.txt'}"])
