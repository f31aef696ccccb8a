"""The training that pretrain, finetune and metatrain share: start or resume, step, save, report."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from metajax.config.groups import ModelSettings, TrainSettings
from metajax.errors import InputError, StoppedError
from metajax.models import Transformer, save_config
from metajax.models.parts import unused_parts
from metajax.platforms import target_platform, xla_options
from metajax.runs.best import (
    Validation,
    best_of,
    chosen_steps,
    log_by_source,
    progress_note,
    validated,
    verdict,
)
from metajax.runs.measurements import Clock, metrics_row, peak_memory
from metajax.runs.metrics import MetricsLog
from metajax.runs.parts import make_mesh
from metajax.runs.progress import Progress
from metajax.runs.signals import Stop, handle_signals
from metajax.runs.skipped import diagnosis, skipped_in_a_row
from metajax.runs.trackers import Profile, tracking
from metajax.runs.workdir import Run, begin, locked, read_results, write_results
from metajax.training import distributed
from metajax.training.checkpoint import Checkpoints
from metajax.training.optimizer import adamw, learning_rate
from metajax.training.outer import AlgorithmOrSchedule, Frozen, OuterState, initial_state
from metajax.training.parallel import OuterLoop, outer_loop
from metajax.types import Params, Task

_log = logging.getLogger("metajax")

MakeTasks = Callable[[int], Task]


class Stage(NamedTuple):
    """One training stage, ready to run.

    Attributes:
        run: from `open_run`.
        settings: settings of the optimizer, and how often to save.
        model: the network that is trained.
        algorithm: a MetaAlgorithm, or a function from the outer step to one.
        make_tasks: function from a step's number to its tasks.
        num_steps: number of outer steps.
        measure: `(params) -> JSON object`, called before the first step and after the last.
        measured_on: description of the data that `measure` or `validation` uses.
        chunk_size: see `metajax.outer_loop`.
        initialization: key of the network's parameters in the meta-parameters, or None.
        rates_factor: see `adamw`.
        frozen: see `metajax.outer_loop`.
        sources: function from a step's number to the source of each task of all processes; None if
            there is only one source.
        validation: used instead of `measure`, also between the steps; the best checkpoint is kept.
        short: whether to compile quickly; see `is_short`.
    """

    run: Run
    settings: TrainSettings
    model: Transformer
    algorithm: AlgorithmOrSchedule
    make_tasks: MakeTasks
    num_steps: int
    measure: Callable[[Params], dict[str, Any]]
    measured_on: str
    chunk_size: int | None = None
    initialization: str | None = None
    rates_factor: float | None = None
    frozen: Frozen = None
    sources: Callable[[int], Sequence[str]] | None = None
    validation: Validation | None = None
    short: bool = False


def train(stage: Stage, params: Params) -> dict[str, Any]:
    """Run a stage from its start, or from its newest checkpoint.

    Args:
        stage: the stage.
        params: initial parameters; their buffers are donated.

    Returns:
        The results of `measure` as `before` and `after`, and `measured_on`; with `validation` also
        the fields of `Best`. They are also written to `results.json`.
    """
    run, settings = stage.run, stage.settings
    first = distributed.is_first()
    if first:
        begin(run, lambda directory: save_config(directory, stage.model))
    with distributed.explain_host_errors():
        hosts = distributed.barrier()  # Now the workdir exists.
    outer = _outer_loop(stage)
    with (
        locked(run) if first else contextlib.nullcontext(),
        handle_signals() as stop,
        Checkpoints(
            run.checkpoints,
            keep=settings.keep,
            keep_every=settings.keep_every,
            record=run.record,
            frozen=stage.frozen,
        ) as checkpoints,
        distributed.explain_host_errors(),
    ):
        results = read_results(run.path)
        if results is not None:
            return results
        state = checkpoints.restore(outer.init(params, jax.random.key(settings.seed)))
        at = (run.path, int(state.step), stage.num_steps, hosts)
        _log.info("%s: starts from step %d of %d, %s", *at)
        results = _train_from(state, stage, outer, checkpoints, stop)
    if first:
        write_results(run, results)
    return results


def lower_step(stage: Stage, params: Params) -> jax.stages.Lowered:
    """Lower the first step of a stage, as `train` does, from arrays or their shapes."""
    optimizer, key = _optimizer(stage), jax.random.key(stage.settings.seed)

    def begin(params: Params) -> OuterState:
        return initial_state(stage.algorithm, optimizer, params, key, stage.frozen)

    return _outer_loop(stage).lower(jax.eval_shape(begin, params), stage.make_tasks(0))


def _outer_loop(stage: Stage) -> OuterLoop:
    return outer_loop(
        stage.algorithm,
        _optimizer(stage),
        chunk_size=stage.chunk_size,
        donate=True,
        compiler_options=compiler_options(stage.settings, short=stage.short),
        mesh=make_mesh(stage.settings.shards),
        frozen=stage.frozen,
    )


def _train_from(
    state: OuterState, stage: Stage, outer: OuterLoop, checkpoints: Checkpoints, stop: Stop
) -> dict[str, Any]:
    """Measure, take the remaining steps, and measure again.

    Raises:
        InputError: the metrics do not have the measurement before the first step, or the
            validation of the last.
        StoppedError: see `_take_steps`.
    """
    run, settings, first = stage.run, stage.settings, distributed.is_first()
    with (
        tracking(run, settings.track if first else (), int(state.step)) as track,
        MetricsLog(run, int(state.step), writes=first, also=track) as log,
    ):
        if not log.rows:
            with stop.at_once():
                before = _measured(stage, "before", state)
            log.write({"step": 0, **before})
        if "before" not in log.rows[0]:
            raise _lost_line(run, "first", "what was measured before the first step")
        if stage.validation is not None and checkpoints.latest_step is None:
            log.flush()
            checkpoints.save(state)  # Later stages may read the start.
        checkpoints.remove_surplus(chosen_steps(best_of(log.rows)))
        stop.check()
        state = _take_steps(stage, outer, state, log, checkpoints, stop)
        log_by_source(run.path, log.rows, best_of(log.rows))
        if stage.validation is not None:
            return _validated_results(stage, log)
        with stop.at_once():
            after = _measured(stage, "after", state)
        track({"step": stage.num_steps, **after})
    return {"measured_on": stage.measured_on, "before": log.rows[0]["before"], **after}


def _measured(stage: Stage, name: str, state: OuterState) -> dict[str, Any]:
    """Return the part of a row with what is measured, under a name."""
    params = distributed.all_gather(state.meta_params)
    if stage.validation is None:
        return {name: stage.measure(params)}
    # All processes have to choose the same checkpoint.
    accuracies = distributed.from_first(stage.validation.accuracies(params))
    return validated(name, accuracies, stage.validation.sources)


def _validated_results(stage: Stage, log: MetricsLog) -> dict[str, Any]:
    """Return the results of a stage with validation, and log which checkpoint is the best."""
    first, last, best = log.rows[0], log.rows[-1], best_of(log.rows)
    if best is None or "valid" not in last:
        raise _lost_line(stage.run, "last", "the validation of the last step")
    level = logging.INFO if best.kept_step else logging.WARNING
    _log.log(level, "%s: %s", stage.run.path, verdict(best))
    measured = {"before": first["before"], "after": last["valid"]}
    return {"measured_on": stage.measured_on, **measured, **best._asdict()}


def _lost_line(run: Run, which: str, content: str) -> InputError:
    return InputError(
        f"{run.path / 'metrics.jsonl'}: has lost its {which} line, {content}; restore it from a "
        "backup"
    )


def compiler_options(settings: ModelSettings, *, short: bool = False) -> dict[str, Any]:
    """Return XLA's options for a step: for less memory if the settings ask for it."""
    saves_memory = settings.remat or getattr(settings, "low_memory", False)
    if saves_memory and target_platform() == "cpu":
        return {"xla_cpu_enable_concurrency_optimized_scheduler": False}
    # A TPU's quickly compiled programs need more memory.
    return xla_options(quick=short and not saves_memory)


def _optimizer(stage: Stage) -> Any:
    settings = stage.settings
    schedule = learning_rate(
        settings.learning_rate, stage.num_steps, math.ceil(settings.warmup * stage.num_steps)
    )
    # Weight decay would shrink parts that the loss does not use.
    inside = "" if stage.initialization is None else f"{stage.initialization}/"
    unused = unused_parts(stage.model.head, stage.model.pooling)
    fixed = tuple(f"{inside}{base}{part}/" for part in unused for base in ("", "base/"))
    return adamw(
        schedule,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
        fixed=fixed,
        rates_factor=stage.rates_factor,
    )


def _take_steps(
    stage: Stage,
    outer: OuterLoop,
    state: OuterState,
    log: MetricsLog,
    checkpoints: Checkpoints,
    stop: Stop,
) -> OuterState:
    """Take the remaining outer steps. Log and save meanwhile.

    Raises:
        StoppedError: a signal came, or too many steps in a row were not finite; the state is saved.
    """
    first, save_every = int(state.step), stage.settings.save_every
    steps, shown = range(first, stage.num_steps), distributed.is_first()
    what, profiled = stage.run.record["stage"], stage.settings.profile and shown
    clock, compiled, best = Clock(), set[Any](), best_of(log.rows)
    last = _compiled_in(log)
    with (
        Progress(
            what, "step", stage.num_steps, done=first, shown=shown, compiled_in=last
        ) as progress,
        Profile(stage.run, steps, wanted=profiled) as profile,
    ):
        for step, tasks in _prefetched(stage.make_tasks, steps, clock):
            profile.before(step)
            shapes = tuple(leaf.shape for leaf in jax.tree.leaves(tasks))
            new = {} if shapes in compiled else {"compiled": True}
            if new:
                compiled.add(shapes)
                progress.compiling()
            state, metrics = outer.step(state, tasks)
            sources = None if stage.sources is None else stage.sources(step)
            row = metrics_row(step + 1, metrics, sources)  # Waits for the step.
            row |= clock.lap() | peak_memory() | new
            valid = _validated(stage, state, clock)
            log.write(row | valid)
            best = best_of(log.rows) if valid else best
            progress.update(progress_note(log.rows, best))
            if distributed.asked_to_stop(step):
                stop.asked = "SIGTERM"
            bad = skipped_in_a_row(log.rows)
            giving_up = bad >= stage.settings.max_skipped
            due = (step + 1) % save_every == 0 or step + 1 == stage.num_steps
            if due or stop.asked or giving_up or step + 1 in chosen_steps(best):
                log.flush()
                checkpoints.save(state, chosen_steps(best))
            if giving_up:
                raise StoppedError(diagnosis(stage.algorithm, state, step, tasks, bad))
            if stop.asked:
                raise StoppedError(
                    f"stopped by {stop.asked} after step {step + 1}, which is saved; "
                    "the same command resumes"
                )
    return state


def _compiled_in(log: MetricsLog) -> float | None:
    """Return the seconds of the last step that compiled, in this process or before."""
    compiled = (row.get("seconds") for row in reversed(log.rows) if row.get("compiled"))
    return next((seconds for seconds in compiled if seconds is not None), None)


def _validated(stage: Stage, state: OuterState, clock: Clock) -> dict[str, Any]:
    """Return the validation of a step; empty if none is due. Its time is not the next step's."""
    if stage.validation is None or not stage.validation.is_due(int(state.step), stage.num_steps):
        return {}
    valid = _measured(stage, "valid", state)
    return valid | {"valid_seconds": clock.lap()["seconds"]}


def _prefetched(make_tasks: MakeTasks, steps: range, clock: Clock) -> Iterator[tuple[int, Task]]:
    """Yield each step with its tasks. The tasks of the next step are made meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="data") as pool:
        coming = [pool.submit(make_tasks, step) for step in steps[:1]]
        for step in steps:
            tasks = clock.wait_for(coming.pop().result)
            if step + 1 in steps:
                coming.append(pool.submit(make_tasks, step + 1))
            yield step, tasks
