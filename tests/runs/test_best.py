"""Which checkpoint later stages read, as a function of the rows of the metrics."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from metajax.errors import InputError
from metajax.runs.best import (
    Best,
    best_of,
    chosen_steps,
    progress_note,
    step_to_read,
    summary,
    validated,
    verdict,
)
from metajax.training.checkpoint import Checkpoints
from metajax.training.outer import OuterState

EPISODES = 40
NOISE = np.random.default_rng(0).normal(size=(4, EPISODES)) / 50


def rows_of(*gains, start=0.5):
    """Rows of a run that gains so much at steps 10, 20, ... on validation episodes."""
    rows = [{"step": 0, **validated("before", start + NOISE[0])}]
    for number, gain in enumerate(gains, start=1):
        rows.append({"step": 10 * number - 1, "loss": 1.0})
        accuracies = start + gain + NOISE[0] + NOISE[number]
        rows.append({"step": 10 * number, "loss": 0.25, **validated("valid", accuracies)})
    return json.loads(json.dumps(rows))


def test_the_summary_is_students_interval():
    values = 0.5 + NOISE[0]
    interval = scipy.stats.t.ppf(0.975, EPISODES - 1) * values.std(ddof=1) / EPISODES**0.5
    assert summary(values) == pytest.approx({"accuracy": values.mean(), "ci95": interval})


def test_the_best_is_kept_with_an_interval_for_all_that_were_compared():
    best = best_of(rows_of(0.1, 0.3, 0.2))
    paired = 0.3 + NOISE[2]
    quantile = scipy.stats.t.ppf(1 - 0.05 / 2 / 3, EPISODES - 1)
    interval = quantile * paired.std(ddof=1) / EPISODES**0.5
    assert best == pytest.approx(Best(20, 20, paired.mean(), interval))
    assert chosen_steps(best) == (0, 20)


@pytest.mark.parametrize("gain", [-0.3, 0.0, 0.002])
def test_the_start_is_kept_unless_the_interval_of_the_gain_is_above_zero(gain):
    best = best_of(rows_of(gain, gain - 0.1))
    assert (best.best_step, best.kept_step) == (10, 0)
    assert best.gain == pytest.approx(gain + NOISE[1].mean())
    assert abs(best.gain) < best.gain_ci95 or gain < 0
    assert chosen_steps(best) == (0, 10)  # A later validation may narrow it down.


def test_what_is_significantly_better_than_one_start_may_be_the_luckiest_of_many():
    """A gain whose own interval is above zero, but not that of the best of three."""
    paired = NOISE[1]
    own = scipy.stats.t.ppf(0.975, EPISODES - 1) * paired.std(ddof=1) / EPISODES**0.5
    gain = 1.1 * own - paired.mean()
    assert best_of(rows_of(gain)).kept_step == 10
    assert best_of(rows_of(gain, -0.1, -0.1)).kept_step == 0


def test_of_equal_checkpoints_the_first_is_the_best():
    rows = rows_of(0.2, 0.2)
    rows[-1]["valid"] = rows[2]["valid"]
    assert best_of(rows).best_step == 10


def test_before_the_first_validation_there_is_no_best():
    for rows in ([], rows_of(), [*rows_of(), {"step": 1, "loss": 1.0}]):
        assert best_of(rows) is None
    assert best_of(rows_of(0.1, 0.2)[1:]) is None  # The start is lost.
    assert chosen_steps(None) == (0,)


def test_validations_of_different_episodes_are_refused():
    rows = rows_of(0.1)
    rows[-1]["valid_accuracies"].pop()
    with pytest.raises(InputError, match="its validations differ in their numbers of episodes"):
        best_of(rows)
    rows[-1]["valid_accuracies"] = []
    assert best_of(rows) is None


def test_what_is_said():
    rows = rows_of(0.3, 0.1)
    best = best_of(rows)
    at = 100 * rows[-1]["valid"]["accuracy"]
    assert progress_note(rows, best) == (
        f"loss 0.2500, valid {at:.1f}% (best +{100 * best.gain:.1f} points at step 10)"
    )
    assert progress_note([{"step": 1, "skipped": True}], None) == "skipped"
    kept = verdict(Best(10, 10, 0.0312, 0.0104))
    assert "of step 10, is 3.12 ± 1.04 points ahead of the start" in kept
    assert kept.endswith("; later stages read it")
    harm = verdict(Best(10, 0, -0.0312, 0.0104))
    assert "of step 10, is 3.12 ± 1.04 points behind the start" in harm
    assert "meta-training lowered the accuracy on the validation tasks; later" in harm
    assert harm.endswith("later stages read the weights from before meta-training")
    unclear = verdict(Best(10, 0, -0.0104, 0.0312))
    assert "points behind the start on the validation tasks, which does not show a gain" in unclear


@pytest.fixture
def workdir(tmp_path):
    """Checkpoints of steps 0, 10 and 15."""
    with Checkpoints(tmp_path / "checkpoints", keep=5, record={"stage": "x"}) as checkpoints:
        for step in (0, 10, 15):
            params = {"w": jnp.full(2, step)}
            checkpoints.save(OuterState(jnp.int32(step), params, (), jax.random.key(0)))
    return tmp_path


def write(workdir, rows):
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_later_stage_reads_what_the_results_say(workdir):
    write(workdir, rows_of(0.3))
    for results, step in (({"kept_step": 0}, 0), ({"kept_step": 10}, 10), ({}, None)):
        (workdir / "results.json").write_text(json.dumps(results))
        assert step_to_read(workdir) == step
    (workdir / "results.json").write_text('{"kept_step": "../elsewhere"}')
    with pytest.raises(InputError, match="has no results of a run; restore it"):
        step_to_read(workdir)


def test_a_later_stage_reads_the_best_saved_so_far_of_a_run_that_goes_on(workdir):
    """Step 20 is better still, but its checkpoint is not there yet."""
    write(workdir, rows_of(0.3, 0.5))
    assert step_to_read(workdir) == 10
    write(workdir, rows_of(-0.3, 0.5))
    assert step_to_read(workdir) == 0
    write(workdir, [{"step": 0, "before": {}}, {"step": 10, "loss": 1.0}])
    assert step_to_read(workdir) is None
    (workdir / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="has no metrics of a step"):
        step_to_read(workdir)
