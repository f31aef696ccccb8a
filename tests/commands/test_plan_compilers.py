"""Steps that TPUs' compiler compiles for `plan`. No device is needed."""

import importlib.util

import pytest
import tiny

from metajax.algorithms import ALGORITHMS
from metajax.config.plan import PlanSettings
from metajax.models import Transformer, TransformerConfig, save_config
from metajax.runs import cost

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optimized")]
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
# The step of docs/tpu.md: one task per chip.
REAL = {
    "dtype": "bfloat16",
    "inner_steps": 5,
    "ways": 4,
    "shots": 4,
    "queries": 12,
    "max_length": 128,
    "low_memory": True,
    "remat": True,
}
SCALARS = 32  # Bytes: losses and other numbers of a task.
POOLER = tiny.CONFIG.hidden_size * (tiny.CONFIG.hidden_size + 1)  # Its parameters.


def tiny_step(material, target, algorithm, tasks):
    """Measure a step of an algorithm, with one task on each device."""
    entry = ALGORITHMS[algorithm]
    settings = {"inner_steps": 2} if "inner_steps" in entry.settings else {}
    model = material.gpt2 if entry.tests_on_stream else material.bert
    settings |= {} if entry.tests_on_stream else {"ways": 2, "queries": 2}
    settings |= {"algorithm": algorithm, "target": target, "meta_batch_size": tasks}
    return cost.measure(PlanSettings(model=str(model), max_length=8, **settings))


def check_one_mean(found, zeros, tasks):
    """Check that the devices average the gradients once; known zeros may be left out."""
    ((kind, collective),) = found.estimate.collectives.items()
    gradients = found.state // 12  # The state has the parameters and two moments.
    assert kind == "all-reduce"
    assert 4 * (gradients - zeros) <= collective["bytes"] <= 4 * gradients + SCALARS * tasks
    return collective["count"]


@needs_libtpu
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_on_four_tpus(material, algorithm):
    found = tiny_step(material, "v5e:2x2", algorithm, 4)
    # Episodes do not read BERT's pooler. Meta-SGD has rates for it too.
    poolers = 0 if ALGORITHMS[algorithm].tests_on_stream else 1 + (algorithm == "meta-sgd")
    assert check_one_mean(found, poolers * POOLER, 4) == 1


@needs_libtpu
def test_a_small_model_on_256_tpus(material):
    check_one_mean(tiny_step(material, "v5e:16x16", "maml", 256), POOLER, 256)


def write_config(folder, **sizes):
    """Write the settings of a BERT, without weights."""
    save_config(folder, Transformer(TransformerConfig(vocab_size=30522, **sizes)))
    return str(folder)


@needs_libtpu
def test_bert_base_on_256_tpus(tmp_path):
    """The memory and the communication in docs/tpu.md."""
    settings = REAL | {"target": "v5e:16x16", "meta_batch_size": 256}
    found = cost.measure(PlanSettings(model=write_config(tmp_path), **settings))
    assert found.total == pytest.approx(4.1e9, rel=0.02)
    check_one_mean(found, 0, 256)


@needs_libtpu
def test_bert_large_in_shards_on_eight_tpus(tmp_path):
    """The memory and the communication in docs/tpu.md."""
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    model = write_config(tmp_path, **large, intermediate_size=4096)
    settings = REAL | {"target": "v5e:2x4", "meta_batch_size": 8, "shards": 8}
    found = cost.measure(PlanSettings(model=model, **settings))
    parameters = cost.count_parameters(PlanSettings(model=model, **settings))
    assert found.state == pytest.approx(12 * parameters / 8, rel=0.01)
    assert found.total == pytest.approx(10.6e9, rel=0.02)
    for kind in ("all-gather", "reduce-scatter"):
        assert found.estimate.collectives[kind]["bytes"] == pytest.approx(4 * parameters, rel=0.01)
