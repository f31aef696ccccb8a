"""A stage gives the same results on any number of devices, replicated or sharded."""

import jax
import problems
import pytest
import tiny

from metajax.training import checkpoint
from tests.stage_commands import COMMANDS

SETTINGS = {
    "pretrain": {"steps": 10, "batch_size": 8, "parts": 8},
    "finetune": {"steps": 10, "batch_size": 8, "parts": 8},
    "metatrain": {"steps": 10, "meta_batch_size": 8, "algorithm": "fomaml"},
}


def params_after(stage, material, workdir, devices, shards):
    some = jax.devices()[:devices]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: some)
        patch.setattr(jax, "local_device_count", lambda: devices)
        settings = SETTINGS[stage] | {"save_every": 10, "shards": shards}
        tiny.succeed(*COMMANDS[stage](material, workdir, **settings))
        return checkpoint.load(workdir / "checkpoints").params


@pytest.mark.parametrize(
    ("stage", "places"),
    [
        ("pretrain", [(8, 4)]),
        pytest.param("pretrain", [(2, 1), (4, 1), (8, 1), (2, 2)], marks=pytest.mark.slow),
        pytest.param("finetune", [(2, 1), (4, 2), (8, 1), (8, 8)], marks=pytest.mark.slow),
        pytest.param("metatrain", [(2, 1), (4, 2), (8, 1), (8, 8)], marks=pytest.mark.slow),
    ],
)
def test_a_stage_is_the_same_on_any_devices(material, tmp_path, stage, places):
    expected = params_after(stage, material, tmp_path / "one", 1, 1)
    for devices, shards in places:
        workdir = tmp_path / f"{devices}-{shards}"
        found = params_after(stage, material, workdir, devices, shards)
        assert problems.relative_gap(found, expected) < 1e-6
