"""Write working directories as stages do, but with untrained weights."""

import dataclasses

import jax
import jax.numpy as jnp

from metajax.config.groups import ModelSettings
from metajax.models import save_config
from metajax.runs.few_shot import open_few_shot
from metajax.runs.record import SETTINGS, make_record
from metajax.runs.source import describe, open_source
from metajax.runs.workdir import begin, open_run, write_results
from metajax.training.checkpoint import Checkpoints
from metajax.training.outer import OuterState


def write_workdir(workdir, bert, stage, *, network, pairs=(), **settings):
    """Write a working directory and return its path.

    Args:
        workdir: the path.
        bert: Hugging Face weights.
        stage: its name.
        network: arguments for `open_source`. A classifier gets large weights, to separate texts.
            None: the meta-parameters are those of the settings, for three classes.
        pairs: as in a record.
        **settings: settings that differ from the defaults.
    """
    where = {"model": str(bert), "tasks": ("tasks.csv",), "workdir": str(workdir)}
    settings = SETTINGS[stage](**where | settings)
    frozen = None
    if network is None:
        few_shot = open_few_shot(settings.model, settings, settings, 3)
        settings = dataclasses.replace(settings, **few_shot.inner_settings())
        source, params, frozen = few_shot.source, few_shot.meta_params, few_shot.frozen
    else:
        source = open_source(str(bert), ModelSettings(model=str(bert), seed=1), **network)
        params = dict(source.params)
    if "classifier" in params:
        params["classifier"] = jax.tree.map(lambda leaf: 50 * leaf, params["classifier"])
    record = make_record(
        stage, settings, data={}, parent=source.record, model=describe(source.model), pairs=pairs
    )
    run = open_run(str(workdir), record)
    begin(run, lambda directory: save_config(directory, source.model))
    with Checkpoints(run.checkpoints, keep=1, record=record, frozen=frozen) as checkpoints:
        checkpoints.save(OuterState(jnp.int32(1), params, (), jax.random.key(0)))
    write_results(run, {})
    return workdir
