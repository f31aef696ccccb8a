"""The scale of the logits that a prototypical network is trained with."""

import json
from operator import itemgetter

import jax
import numpy as np
import pytest
import scipy.special
import tiny

from metajax.commands import metatrain as training
from metajax.commands.adapt import adapt
from metajax.config.settings import AdaptSettings, MetatrainSettings
from metajax.runs.episodes import episode_sampler, episode_spec
from metajax.runs.few_shot import open_few_shot
from metajax.runs.task_data import load, tokenized
from tests.stage_commands import metatrain_command

SETTINGS = {"algorithm": "protonet", "steps": 1, "inner_steps": 0}


def without_dropout(folder):
    """Write a model whose loss does not depend on a key."""
    file = tiny.write_model(folder) / "config.json"
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    file.write_text(json.dumps(json.loads(file.read_text()) | rates))
    return folder


def first_loss(model, material, scale):
    """Compute the loss of the first step from the cosines of its episodes."""
    settings = MetatrainSettings(
        **{"model": str(model), "workdir": "run", "tasks": (str(material.intents),)},
        **{"ways": 3, "queries": 3, "meta_batch_size": 2, "algorithm": "protonet"},
    )
    few_shot = open_few_shot(settings.model, settings, settings, 3)
    examples = tokenized(load(settings, split="train"), few_shot.model, 128)
    tasks = episode_sampler(examples, episode_spec(settings), 0, 2, 1, slice(0, 2))(0)
    losses, unit = [], few_shot.model.replace(feature_norm=1.0)
    for number in range(2):
        support, query = (jax.tree.map(itemgetter(number), part) for part in tasks[:2])
        own, other = (
            np.asarray(unit.features(few_shot.params, each), float) for each in (support, query)
        )
        truth = np.asarray(query["labels"])
        means = np.stack([own[np.asarray(support["labels"]) == way].mean(0) for way in range(3)])
        distances = ((other[:, None] - means) ** 2).sum(2)
        shares = scipy.special.log_softmax(-scale / 2 * distances, 1)
        losses.append(-shares[np.arange(len(truth)), truth].mean())
    return np.mean(losses)


@pytest.mark.parametrize("scale", [None, 50])
def test_the_loss_has_the_scale_and_adapt_the_usual_one(material, tmp_path, scale):
    given = {} if scale is None else {"logit_scale": scale}
    run, model = tmp_path / "run", without_dropout(tmp_path / "model")
    done = tiny.run(*metatrain_command(material, run, model, **SETTINGS, **given))
    assert done.status == 0, done.err
    _, row = tiny.rows_of(run)
    assert row["loss"] == pytest.approx(first_loss(model, material, scale or 20), rel=1e-5)
    record = json.loads((run / "run.json").read_text())
    assert record["model"]["feature_norm"] == pytest.approx(np.sqrt(scale or 20))
    adapted = tmp_path / "adapted"
    adapt(AdaptSettings(model=str(run), tasks=(str(material.intents),), workdir=str(adapted)))
    record = json.loads((adapted / "run.json").read_text())
    assert record["model"]["feature_norm"] == pytest.approx(np.sqrt(10))


def test_a_run_resumes_with_the_scale_that_it_began_with(material, tmp_path):
    run, given = tmp_path / "run", SETTINGS | {"steps": 2}
    tiny.succeed(*metatrain_command(material, run, **given, logit_scale=10))
    (run / "results.json").unlink()
    tiny.succeed(*metatrain_command(material, run, **given))
    assert json.loads((run / "run.json").read_text())["settings"]["logit_scale"] == 10
    done = tiny.run(*metatrain_command(material, run, **given, logit_scale=20))
    assert (done.status, "--logit-scale" in done.err) == (2, True)


def test_inner_steps_have_the_usual_scale(material, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "tokenized", None)  # It is refused before texts are tokenized.
    changes = SETTINGS | {"algorithm": "fomaml", "inner_steps": 1, "logit_scale": 50}
    done = tiny.run(*metatrain_command(material, tmp_path / "run", **changes))
    assert done.status == 2
    assert "--logit-scale 50: needs --algorithm protonet; omit it" in done.err
