"""Accuracy by inner step, in one pass, against an evaluation with each number of steps."""

import jax
import numpy as np
import pytest

from metajax import data
from metajax.config.groups import ModelSettings
from metajax.config.inner import InnerSettings
from metajax.runs.few_shot import open_few_shot
from metajax.runs.task_data import tokenized
from metajax.training.evaluation import run_episodes

EPISODES, STEPS = 6, 2
CHOICES = {
    "maml from zero": {"head": "zero"},
    "prototypes and adapters": {"lora": 2},
    "anil": {"algorithm": "anil"},
    "reptile": {"algorithm": "reptile"},
    "the upper blocks": {"layers": 1},
}
QUICK = ("maml from zero", "prototypes and adapters")


def _choice(name):
    return pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)


@pytest.mark.parametrize("name", [_choice(name) for name in CHOICES])
def test_the_curve_is_what_each_number_of_steps_gives(material, name):
    settings = ModelSettings(model=str(material.bert))
    inner = InnerSettings(inner_lr=1.0, inner_steps=STEPS)
    few_shot = open_few_shot(settings.model, settings, inner, 3)
    few_shot = few_shot._replace(inner=few_shot.inner | CHOICES[name])
    examples = tokenized(data.load_tasks([str(material.intents)]), few_shot.model, 32)
    spec = data.EpisodeSpec(ways=3, shots=1, queries=6)
    episodes = data.sample_episodes(examples, spec, 0, 0, EPISODES)
    tasks = data.gather(examples, episodes, data.plan_episodes(examples, spec, 0, EPISODES, 1))
    curve = np.asarray(few_shot.curve(STEPS)(few_shot.params, tasks))
    assert curve.shape == (EPISODES, STEPS + 1)
    assert all(np.any(curve[:, 0] != curve[:, step]) for step in range(1, STEPS + 1))
    for steps in range(STEPS + 1):
        algorithm = few_shot.algorithm(inner_steps=steps)
        found = run_episodes(algorithm, few_shot.params, tasks, jax.random.key(0))
        np.testing.assert_allclose(found.query_aux["accuracy"], curve[:, steps], atol=1e-6)
