"""Checkpoints: what is saved is what is restored, whatever happens meanwhile."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint.experimental.v1 as ocp
import pytest
import tiny

from metajax.algorithms.supervised import supervised
from metajax.errors import InputError, StoppedError
from metajax.training import checkpoint
from metajax.training.checkpoint import Checkpoints
from metajax.training.directories import can_be_listed
from metajax.training.optimizer import adamw, learning_rate
from metajax.training.outer import OuterState
from metajax.training.parallel import outer_loop
from metajax.types import Task

RECORD = {"stage": "test", "settings": {"steps": 3}, "parent": {"path": "x", "record": {}}}


def loss_fn(params, batch, rng):
    return jnp.mean((batch @ params["layer"]["kernel"] + params["layer"]["bias"]) ** 2), {}


def make_params(scale=1.0):
    return {"layer": {"kernel": scale * jnp.arange(6.0).reshape(3, 2), "bias": jnp.ones(2)}}


def make_loop(devices):
    optimizer = adamw(learning_rate(0.1, 10, 2), weight_decay=0.01, clip_norm=1.0)
    return outer_loop(supervised(loss_fn), optimizer, devices=devices, donate=True)


def make_tasks(step, count=8):
    random = np.random.default_rng(step)
    return Task(None, random.normal(size=(count, 4, 3)).astype(np.float32))


def host(state):
    """A copy that no step can overwrite."""
    state = state._replace(rng=jax.random.key_data(state.rng))
    return jax.tree.map(lambda leaf: np.array(leaf), state)


def advance(outer, state, steps):
    for step in steps:
        state, _ = outer.step(state, make_tasks(step))
    return state


def test_what_is_frozen_is_not_saved_and_comes_from_the_state(tmp_path):
    frozen = lambda path: path.endswith("bias")  # noqa: E731
    optimizer = optax.adam(0.1)
    outer = outer_loop(supervised(loss_fn), optimizer, devices=jax.devices()[:1], frozen=frozen)
    key = jax.random.key(5)
    states = [advance(outer, outer.init(make_params(), key), range(count)) for count in (2, 5)]
    settings = {"keep": 3, "record": RECORD, "frozen": frozen}
    with Checkpoints(tmp_path / "c", **settings) as checkpoints:
        checkpoints.save(states[0])
    saved = checkpoint.load(tmp_path / "c").params
    assert saved.keys() == {"layer"}
    assert saved["layer"].keys() == {"kernel"}
    with Checkpoints(tmp_path / "c", **settings) as checkpoints:
        restored = checkpoints.restore(outer.init(make_params(), key))
    assert np.array_equal(restored.meta_params["layer"]["bias"], make_params()["layer"]["bias"])
    again = advance(outer, restored, range(2, 5))
    jax.tree.map(np.testing.assert_array_equal, host(again), host(states[1]))


@pytest.mark.parametrize("count", [1, 8])
def test_saving_is_safe_while_the_next_step_overwrites_the_state(tmp_path, count):
    outer = make_loop(jax.devices()[:count])
    state = outer.init(make_params(), jax.random.key(5))
    saved = {}
    with Checkpoints(tmp_path / "c", keep=10, record=RECORD) as checkpoints:
        for step in range(4):
            state = advance(outer, state, [step])
            saved[step + 1] = host(state)
            checkpoints.save(state)  # and the next step is given its buffers at once
    for step, expected in saved.items():
        with ocp.training.Checkpointer((tmp_path / "c").absolute()) as orbax:
            found = tiny.load_checkpoint(orbax, step)
        tiny.assert_same_bits(found["params"], expected.meta_params)
    with Checkpoints(tmp_path / "c", keep=10, record=RECORD) as checkpoints:
        fresh = outer.init(make_params(0), jax.random.key(0))
        tiny.assert_same_bits(host(checkpoints.restore(fresh)), saved[4])


def test_restoring_keeps_types_and_goes_on_as_if_nothing_had_been(tmp_path):
    outer = make_loop(jax.devices()[:1])
    state = advance(outer, outer.init(make_params(), jax.random.key(5)), range(2))
    structure, dtype = jax.tree.structure(state), state.rng.dtype
    with Checkpoints(tmp_path / "c", keep=1, record=RECORD) as checkpoints:
        checkpoints.save(state)
    undisturbed = host(advance(outer, state, range(2, 5)))
    with Checkpoints(tmp_path / "c", keep=1, record=RECORD) as checkpoints:
        found = checkpoints.restore(outer.init(make_params(0), jax.random.key(0)))
    assert jax.tree.structure(found) == structure  # the optimizer's NamedTuples among it
    assert found.rng.dtype == dtype == jax.random.key(0).dtype
    assert found.step.dtype == jnp.int32
    tiny.assert_same_bits(host(advance(outer, found, range(2, 5))), undisturbed)


@pytest.mark.parametrize(("before", "after"), [(1, 8), (8, 1)])
def test_restoring_on_another_number_of_devices(tmp_path, before, after):
    outer = make_loop(jax.devices()[:before])
    state = advance(outer, outer.init(make_params(), jax.random.key(5)), range(2))
    expected = host(state)
    with Checkpoints(tmp_path / "c", keep=1, record=RECORD) as checkpoints:
        checkpoints.save(state)
    outer = make_loop(jax.devices()[:after])
    with Checkpoints(tmp_path / "c", keep=1, record=RECORD) as checkpoints:
        state = checkpoints.restore(outer.init(make_params(0), jax.random.key(0)))
    tiny.assert_same_bits(host(state), expected)
    assert len(state.meta_params["layer"]["bias"].devices()) == after
    assert int(advance(outer, state, [2]).step) == 3
    # A later stage reads them on the first device.
    params = checkpoint.load(tmp_path / "c").params
    tiny.assert_same_bits(params, expected.meta_params)
    assert params["layer"]["bias"].devices() == {jax.devices()[0]}


def small_state(step):
    return OuterState(jnp.int32(step), {"w": jnp.full(3, step)}, (), jax.random.key(0))


def test_the_newest_are_kept(tmp_path):
    with Checkpoints(tmp_path / "c", keep=2, record=RECORD) as checkpoints:
        for step in (1, 2, 5, 9):
            checkpoints.save(small_state(step))
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"5", "9"}
    saved = checkpoint.load(tmp_path / "c")
    assert (saved.step, saved.record) == (9, RECORD)
    np.testing.assert_array_equal(saved.params["w"], [9, 9, 9])


def test_without_a_checkpoint_the_state_is_as_it_was(tmp_path):
    state = small_state(0)
    with Checkpoints(tmp_path / "c", keep=2, record=RECORD) as checkpoints:
        assert checkpoints.latest_step is None
        assert checkpoints.restore(state) is state


def test_what_a_killed_save_leaves_is_ignored_and_removed(tmp_path):
    with Checkpoints(tmp_path / "c", keep=5, record=RECORD) as checkpoints:
        checkpoints.save(small_state(1))
    left = tmp_path / "c" / "2.orbax-checkpoint-tmp-1"
    (left / "params").mkdir(parents=True)
    (left / "params" / "half").write_bytes(b"...")
    assert checkpoint.load(tmp_path / "c").step == 1
    with Checkpoints(tmp_path / "c", keep=5, record=RECORD) as checkpoints:
        assert checkpoints.latest_step == 1
        checkpoints.save(small_state(2))
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"1", "2"}
    assert checkpoint.load(tmp_path / "c").step == 2


def test_loading_writes_nothing(tmp_path):
    with Checkpoints(tmp_path / "c", keep=5, record=RECORD) as checkpoints:
        checkpoints.save(small_state(1))
    before = tiny.tree_of(tmp_path)
    checkpoint.load(tmp_path / "c")
    assert tiny.tree_of(tmp_path) == before


def test_loading_nothing_says_what_to_do(tmp_path):
    for step in (None, 0):
        with pytest.raises(InputError, match="nowhere: has no checkpoint yet"):
            checkpoint.load(tmp_path / "nowhere", step)
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: has no checkpoint yet"):
        checkpoint.load(tmp_path / "empty")


def test_any_optimizer_state_is_restored(tmp_path):
    """Those with an empty state, and those with trees and keys of their own."""
    params = make_params()
    for number, optimizer in enumerate(
        [optax.sgd(0.1), optax.adam(0.1), optax.add_noise(0.1, 0.5, jax.random.key(0))]
    ):
        state = OuterState(jnp.int32(1), params, optimizer.init(params), jax.random.key(3))
        with Checkpoints(tmp_path / str(number), keep=1, record=RECORD) as checkpoints:
            checkpoints.save(state)
        with Checkpoints(tmp_path / str(number), keep=1, record=RECORD) as checkpoints:
            tiny.assert_same_bits(checkpoints.restore(state), state)


def truncate(checkpoint):
    """Cuts each of its larger files in half."""
    for path in checkpoint.rglob("*"):
        if path.is_file() and path.stat().st_size > 200:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose_a_file(checkpoint):
    files = [path for path in (checkpoint / "params").rglob("d/*") if path.is_file()]
    max(files, key=lambda path: path.stat().st_size).unlink()


def lose_the_metadata(checkpoint):
    (checkpoint / "params" / "_METADATA").unlink()


IGNORE_ABANDONED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@IGNORE_ABANDONED
@pytest.mark.usefixtures("abandoned")
@pytest.mark.parametrize("damage", [truncate, lose_a_file, lose_the_metadata])
def test_a_damaged_checkpoint_is_named_and_set_aside(tmp_path, caplog, damage):
    with Checkpoints(tmp_path / "c", keep=5, record=RECORD) as checkpoints:
        for step in (1, 2):
            checkpoints.save(small_state(step))
    damage(tmp_path / "c" / "2")
    assert checkpoint.load(tmp_path / "c").step == 1
    assert "checkpoint 2 cannot be read" in caplog.text
    with Checkpoints(tmp_path / "c", keep=5, record=RECORD) as checkpoints:
        assert int(checkpoints.restore(small_state(0)).step) == 1
        checkpoints.save(small_state(2))
    assert f"set aside as {tmp_path / 'damaged-2'}" in caplog.text
    assert (tmp_path / "damaged-2").is_dir()
    assert checkpoint.load(tmp_path / "c").step == 2


@IGNORE_ABANDONED
@pytest.mark.usefixtures("abandoned")
def test_nothing_is_set_aside_where_nothing_can_be_read(tmp_path):
    with Checkpoints(tmp_path / "c", keep=5, record=RECORD) as checkpoints:
        checkpoints.save(small_state(1))
    truncate(tmp_path / "c" / "1")
    with pytest.raises(InputError, match="c: none of its checkpoints can be read"):
        checkpoint.load(tmp_path / "c")
    with (
        Checkpoints(tmp_path / "c", keep=5, record=RECORD) as checkpoints,
        pytest.raises(StoppedError, match="none of its checkpoints can be read"),
    ):
        checkpoints.restore(small_state(0))
    assert (tmp_path / "c" / "1").is_dir()


def test_what_can_be_read_at_the_second_try_is_not_damaged(tmp_path, caplog):
    """As after a hiccup of the network."""
    with Checkpoints(tmp_path / "c", keep=5, record=RECORD) as checkpoints:
        for step in (1, 2):
            checkpoints.save(small_state(step))
    with Checkpoints(tmp_path / "c", keep=5, record=RECORD) as checkpoints:
        load, asked = checkpoints._orbax.load_checkpointables, []

        def hiccup(step, wanted):
            asked.append(step)
            if len(asked) == 1:
                raise OSError("timed out")
            return load(step, wanted)

        checkpoints._orbax.load_checkpointables = hiccup
        assert int(checkpoints.restore(small_state(0)).step) == 2
    assert asked == [2, 2]
    assert "cannot be read" not in caplog.text
    assert {path.name for path in tmp_path.iterdir()} == {"c"}


@IGNORE_ABANDONED
@pytest.mark.usefixtures("abandoned")
def test_what_cannot_be_reached_is_not_damaged(tmp_path, monkeypatch):
    """A directory that does not answer, as a bucket may not: nothing older is read in its place."""
    with Checkpoints(tmp_path / "c", keep=5, record=RECORD) as checkpoints:
        for step in (1, 2):
            checkpoints.save(small_state(step))
    truncate(tmp_path / "c" / "2")  # Stands for an answer that does not come.
    with Checkpoints(tmp_path / "c", keep=5, record=RECORD) as checkpoints:
        monkeypatch.setattr(checkpoint, "can_be_listed", lambda directory: False)
        with pytest.raises(StoppedError, match=r"c: cannot be read at present .*step 2 is safe"):
            checkpoints.restore(small_state(0))
    with pytest.raises(StoppedError, match=r"c: cannot be read at present .*step 2 is safe"):
        checkpoint.load(tmp_path / "c")
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"1", "2"}


def test_a_directory_that_raises_or_is_empty_cannot_be_listed(tmp_path, monkeypatch):
    assert not can_be_listed(tmp_path)
    (tmp_path / "1").mkdir()
    assert can_be_listed(tmp_path)
    assert not can_be_listed(tmp_path / "2")

    def refuse(path):
        raise OSError("Stale file handle")

    monkeypatch.setattr(type(tmp_path), "iterdir", refuse)
    assert not can_be_listed(tmp_path)


@pytest.mark.parametrize(
    ("saved", "safe"), [((), "nothing is saved yet"), ((1, 2), "step 2 is safe")]
)
def test_a_save_that_fails_names_the_newest_step_that_is_safe(tmp_path, saved, safe):
    def full(*arguments, **settings):
        raise OSError(28, "No space left on device")

    with Checkpoints(tmp_path / "c", keep=5, record=RECORD) as checkpoints:
        for step in saved:
            checkpoints.save(small_state(step))
    with Checkpoints(tmp_path / "c", keep=5, record=RECORD) as checkpoints:
        checkpoints._orbax.save_checkpointables_async = full
        with pytest.raises(StoppedError, match=f"No space left on device.*, {safe}"):
            checkpoints.save(small_state(9))
        checkpoints._orbax.close()


def save_two_with_metadata(directory, content):
    """Steps 1 and 2, the second one's metadata replaced."""
    with Checkpoints(directory, keep=5, record=RECORD) as checkpoints:
        for step in (1, 2):
            checkpoints.save(small_state(step))
    (directory / "2" / "_CHECKPOINT_METADATA").write_text(content)


@IGNORE_ABANDONED
@pytest.mark.usefixtures("abandoned")
@pytest.mark.parametrize("content", ['{"custom_metadata": {"a": 1}, "label": 1}', "[]"])
def test_metadata_that_orbax_refuses(tmp_path, caplog, content):
    """One that is to be read is passed over; a run waits for someone to look."""
    save_two_with_metadata(tmp_path / "c", content)
    assert checkpoint.load(tmp_path / "c").step == 1
    assert "checkpoint 2 cannot be read" in caplog.text
    with pytest.raises(StoppedError, match=r"c: cannot be opened .* move away the checkpoint"):
        Checkpoints(tmp_path / "c", keep=5, record=RECORD)
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"1", "2"}


def test_a_checkpoint_that_lost_its_record_is_enough_for_its_own_run(tmp_path, caplog):
    save_two_with_metadata(tmp_path / "c", "{}")
    assert checkpoint.load(tmp_path / "c").step == 1
    assert "checkpoint 2 cannot be read" in caplog.text
    with Checkpoints(tmp_path / "c", keep=5, record=RECORD) as checkpoints:
        assert int(checkpoints.restore(small_state(0)).step) == 2


def test_some_are_kept_for_good(tmp_path):
    with Checkpoints(tmp_path / "c", keep=1, keep_every=4, record=RECORD) as checkpoints:
        for step in range(1, 8):
            checkpoints.save(small_state(step))
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"4", "7"}


def test_the_chosen_are_kept_as_long_as_they_are_chosen(tmp_path):
    with Checkpoints(tmp_path / "c", keep=1, record=RECORD) as checkpoints:
        for step, chosen in enumerate([(), (1,), (1,), (1, 4), (5,)], start=1):
            checkpoints.save(small_state(step), chosen)
            if step == 4:
                checkpoints._wait()
                assert {path.name for path in (tmp_path / "c").iterdir()} == {"1", "4"}
        checkpoints.save(small_state(6), (5,))
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"5", "6"}
    with Checkpoints(tmp_path / "c", keep=1, record=RECORD) as checkpoints:
        checkpoints.restore(small_state(0))
        checkpoints.remove_surplus((5,))
        assert {path.name for path in (tmp_path / "c").iterdir()} == {"5", "6"}
        checkpoints.remove_surplus()
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"6"}


@IGNORE_ABANDONED
@pytest.mark.usefixtures("abandoned")
def test_one_step_is_read_and_no_other_in_its_place(tmp_path):
    with Checkpoints(tmp_path / "c", keep=5, record=RECORD) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(small_state(step))
    saved = checkpoint.load(tmp_path / "c", 2)
    assert saved.step == 2
    np.testing.assert_array_equal(saved.params["w"], [2, 2, 2])
    truncate(tmp_path / "c" / "2")
    for step, problem in ((2, "cannot be read .*"), (7, "is missing")):
        message = f"c: checkpoint {step}, which its run chose, {problem}; restore it"
        with pytest.raises(InputError, match=message):
            checkpoint.load(tmp_path / "c", step)


@pytest.mark.parametrize("left", ["all of it", "no metadata", "one file", "nothing"])
def test_what_a_killed_removal_leaves_is_removed(tmp_path, left):
    """A run killed between its last save and the removal of what is older has no save to come."""
    with Checkpoints(tmp_path / "c", keep=3, keep_every=4, record=RECORD) as checkpoints:
        for step in (4, 5, 6, 7):
            checkpoints.save(small_state(step))
    oldest = [path for path in (tmp_path / "c" / "5").rglob("*") if path.is_file()]
    gone = {
        "all of it": [],
        "no metadata": [path for path in oldest if "METADATA" in path.name],
        "one file": oldest[:-1],
        "nothing": oldest,
    }
    for path in gone[left]:
        path.unlink()
    with Checkpoints(tmp_path / "c", keep=2, keep_every=4, record=RECORD) as checkpoints:
        assert int(checkpoints.restore(small_state(0)).step) == 7
        checkpoints.remove_surplus()
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"4", "6", "7"}
    assert checkpoint.load(tmp_path / "c").step == 7


def test_what_cannot_be_removed_is_named(tmp_path, caplog, monkeypatch):
    def refused(step):
        raise PermissionError(13, "Permission denied", str(tmp_path / "c" / str(step)))

    with Checkpoints(tmp_path / "c", keep=2, record=RECORD) as checkpoints:
        for step in (1, 2):
            checkpoints.save(small_state(step))
    with Checkpoints(tmp_path / "c", keep=1, record=RECORD) as checkpoints:
        monkeypatch.setattr(checkpoints._orbax, "delete", refused)
        assert int(checkpoints.restore(small_state(0)).step) == 2
        checkpoints.remove_surplus()
    assert "checkpoint 1 cannot be removed (Permission denied)" in caplog.text
