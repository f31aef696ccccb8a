"""What adapts, and what stays frozen: adapters in every stage."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny

from metajax.models import from_pretrained
from metajax.runs.source import open_source
from metajax.training import checkpoint
from metajax.tree import paths
from tests.stage_commands import metatrain_command

pytestmark = pytest.mark.xdist_group("chain")  # The group of the tests that use `chain`.

KINDS = {
    "lora": ({"lora": 2}, {"layers/qkv/kernel"}),
    "lora of other kernels": (
        {"lora": 2, "lora_kernels": ("out", "up")},
        {"layers/out/kernel", "layers/up/kernel"},
    ),
    "prefix": ({"prefix": 3}, set()),
    "norms": ({"trainable": "norms"}, None),
    "mlps": (
        {"trainable": "mlps"},
        {f"layers/{name}/{leaf}" for name in ("up", "down") for leaf in ("kernel", "bias")},
    ),
}
QUICK = "lora of other kernels"


def frozen_command(material, workdir, kind, **changes):
    settings = {"freeze": True, "inner_steps": 2, "learning_rate": 0.01} | changes
    return metatrain_command(material, workdir, **KINDS[kind][0], **settings)


def moved(material, workdir):
    """The paths of the network's parameters that are not as in the weights of the base."""
    base, now = from_pretrained(str(material.bert))[1], open_source(str(workdir)).params
    now = {key: now[key] for key in base}
    pairs = zip(paths(base), jax.tree.leaves(base), jax.tree.leaves(now), strict=True)
    return {path for path, before, after in pairs if np.any(before != after)}


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[] if k == QUICK else pytest.mark.slow) for k in KINDS]
)
def test_a_frozen_base_is_trained_evaluated_adapted_and_used(kind, material, tmp_path):
    meta, new = tmp_path / "meta", tmp_path / "new"
    tiny.succeed(*frozen_command(material, meta, kind))
    assert set(checkpoint.load(meta / "checkpoints").params) == {"adapters"}
    changed = KINDS[kind][1]
    if changed is None:  # All norms and biases, but not the pooler's, which no loss reads.
        changed = set(paths(from_pretrained(str(material.bert))[1]))
        changed = {path for path in changed if path.endswith(("bias", "scale"))}
        changed = {path for path in changed if path.startswith(("layers", "embeddings"))}
    assert moved(material, meta) == changed
    tiny.succeed(
        *("evaluate", "--model", meta, "--tasks", material.intents, "--ways", 3, "--episodes", 2),
        *("--methods", "checkpoint", "same-steps", "--output", tmp_path / "rows.json"),
    )
    assert len(json.loads((tmp_path / "rows.json").read_text())) == 2
    adapting = ("adapt", "--model", meta, "--tasks", material.new, "--workdir", new)
    tiny.succeed(*adapting, "--inner-lr", 0.1)
    saved = checkpoint.load(new / "checkpoints").params
    assert (set(saved), set(saved["base"])) == ({"adapters", "base"}, {"classifier"})
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"{text}\n" for text, _ in tiny.examples(3, 2, seed=7, first=8)))
    guesses = tiny.succeed("predict", "--model", new, "--input", texts)
    if kind == "prefix":
        done = tiny.run("export", "--model", new, "--output", tmp_path / "exported")
        line = f"{new}: has vectors before the text (--prefix), which have no place in Hugging Face"
        assert (done.status, line in done.err) == (2, True)
    else:
        tiny.succeed("export", "--model", new, "--output", tmp_path / "exported")
        again = tiny.succeed("predict", "--model", tmp_path / "exported", "--input", texts)
        assert again == guesses


def test_a_run_from_before_these_settings_resumes(chain, material, tmp_path):
    run = shutil.copytree(chain.metatrain, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    for name in ("lora_kernels", "prefix", "trainable", "freeze", "inner_optimizer"):
        del record["settings"][name]
    del record["settings"]["inner_clip_norm"]
    (run / "run.json").write_text(json.dumps(record))
    tiny.succeed(*metatrain_command(material, run, chain.pretrain))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["meta-sgd", "maml++", "imaml", "fomaml"])
@pytest.mark.parametrize("freeze", [True, False])
def test_algorithms_take_adapters_and_adam(algorithm, freeze, material, tmp_path):
    meta, new = tmp_path / "meta", tmp_path / "new"
    own = {"algorithm": algorithm, "inner_optimizer": "adam", "freeze": freeze}
    command = frozen_command(material, meta, "lora", **own)
    tiny.succeed(*(item for item in command if item != "False"))
    tiny.succeed("adapt", "--model", meta, "--tasks", material.new, "--workdir", new)
    assert np.isfinite(json.loads((new / "results.json").read_text())["loss_after"])
    if freeze and "rates" in (saved := checkpoint.load(meta / "checkpoints").params):
        assert set(saved["params"]) == {"adapters"}
        assert paths(saved["rates"]) == paths({"adapters": saved["params"]["adapters"]})


@pytest.fixture(scope="module")
def frozen(material, tmp_path_factory):
    """A run with LoRA adapters on a frozen base, and these adapters in PEFT's format."""
    root = tmp_path_factory.mktemp("frozen")
    with tiny.one_device():
        tiny.succeed(*frozen_command(material, root / "meta", "lora", steps=2))
        exported = ("--output", root / "peft", "--format", "peft")
        out = tiny.succeed("export", "--model", root / "meta", *exported)
    assert json.loads(out)["loads_in"] == "peft.PeftModel"
    return root


def test_adapters_in_the_format_of_peft_are_a_starting_point(frozen, material, tmp_path):
    """The same as that of the run that they come from."""
    found = []
    for name in ("meta", "peft"):
        adapting = ("adapt", "--model", frozen / name, "--tasks", material.new)
        own = ("--workdir", tmp_path / name, "--inner-steps", 2, "--inner-lr", 0.5)
        tiny.succeed(*adapting, *own)
        found.append(json.loads((tmp_path / name / "results.json").read_text())["loss_after"])
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    settings = json.loads((tmp_path / "peft" / "run.json").read_text())["settings"]
    assert (settings["lora"], settings["lora_kernels"], settings["freeze"]) == (2, ["qkv"], True)
    tiny.succeed("lineage", "--model", tmp_path / "peft")
    done = tiny.run("predict", "--model", frozen / "peft")
    assert (done.status, "peft: has adapters and no head; run finetune or" in done.err) == (2, True)


def test_peft_has_no_adapters_on_adapters(frozen, material, tmp_path):
    """PEFT would load one of the two."""
    run = tmp_path / "run"
    new = ("--lora", 3, "--freeze", "--inner-steps", 0)
    tiny.succeed(
        "adapt", "--model", frozen / "peft", "--tasks", material.new, "--workdir", run, *new
    )
    done = tiny.run("export", "--model", run, "--format", "peft", "--output", tmp_path / "out")
    assert done.status == 2
    assert f"{frozen / 'peft'}, the base of {run}, has adapters of its own; export it" in done.err
    tiny.succeed("export", "--model", run, "--output", tmp_path / "out")


def test_adapters_do_not_name_themselves_as_their_base(frozen, tmp_path):
    peft = shutil.copytree(frozen / "peft", tmp_path / "peft")
    file = peft / "adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": str(peft)}
    file.write_text(json.dumps(config))
    done = tiny.run("plan", "--model", peft)
    assert (done.status, "which has adapters only; write a whole model" in done.err) == (
        2,
        True,
    )


def test_the_base_must_be_there_and_unchanged(frozen, material, tmp_path):
    base = tiny.write_model(tmp_path / "base")
    tiny.succeed(*metatrain_command(material, tmp_path / "run", base, steps=1, lora=2, freeze=True))
    evaluating = ("adapt", "--model", tmp_path / "run", "--tasks", material.new)
    moved = base.rename(tmp_path / "moved")
    done = tiny.run(*evaluating, "--workdir", tmp_path / "new")
    assert done.status == 2
    assert "run: the base of its adapters cannot be read" in done.err
    tiny.write_model(base, seed=5)
    done = tiny.run(*evaluating, "--workdir", tmp_path / "new")
    assert done.status == 2
    assert f"the frozen weights at {base} have changed since; restore the old ones" in done.err
    assert moved.is_dir()


def test_what_makes_no_sense_is_refused(frozen, material, chain, tmp_path):
    for more, line in {
        "--freeze": "--freeze: chooses no parameters to meta-train; add --lora, --prefix or",
        "--freeze --layers 1": "--freeze: chooses no parameters to meta-train",
        "--lora 2 --prefix 2": "--lora 2: with --prefix 2 it is not clear what adapts; remove one",
        "--lora-kernels out up": "--lora-kernels out up: there are no adapters; add --lora RANK",
        "--lora 2 --lora-kernels gate": "--lora-kernels gate: the blocks of the model have no such "
        "kernel; choose from down out qkv up",
        "--prefix 500": "--prefix 500: leaves no place for text, because the model has",
        "--algorithm anil --prefix 2": "--prefix 2: anil does not take it; remove it, or use",
    }.items():
        command = metatrain_command(material, tmp_path / "run")
        done = tiny.run(*command, *more.split())
        assert (done.status, line in done.err) == (2, True), done.err
        assert not (tmp_path / "run").exists()
    exporting = ("export", "--output", tmp_path / "out", "--format", "peft", "--model")
    done = tiny.run(*exporting, chain.metatrain)
    assert (done.status, "has no LoRA adapters on frozen weights" in done.err) == (2, True)
    evaluating = ("evaluate", "--tasks", material.intents, "--inner-optimizer", "adam")
    done = tiny.run(*evaluating, "--ways", 3, "--curve", 2, "--model", material.bert)
    assert (done.status, "--curve: not available for adam; remove --curve" in done.err) == (2, True)
