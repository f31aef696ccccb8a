"""The scripts of the benchmarks run with tiny sizes."""

import importlib
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import benchmarks
from benchmarks import (
    choice,
    compile_time,
    faults,
    few_shot,
    gpu,
    labels,
    many_texts,
    memory,
    peers,
    profile_step,
    scaling,
    similarity,
    steps,
    streams,
    traffic,
)
from metajax.data import TaskData
from metajax.runs.method_choice import CANDIDATES
from metajax.training.hlo import parse
from metajax.training.traffic import read_traffic


@pytest.mark.slow
def test_memory(monkeypatch, capsys, tmp_path):
    sizes = ["--support", "4", "--query", "8", "--length", "16"]
    engines = ["--engine", "first-order", "--steps", "1", "2", "--tasks", "1", "2"]
    output = tmp_path / "memory.json"
    arguments = ["memory", "--model", "tiny", *engines, *sizes, "--output", str(output)]
    monkeypatch.setattr(sys, "argv", arguments)
    memory.main()
    rows = json.loads(output.read_text())["rows"]
    assert [row["steps"] for row in rows] == [1, 1, 2, 2]
    assert [row["tasks"] for row in rows] == [1, 2, 1, 2]
    assert rows[0]["total"] == sum(rows[0][k] for k in ("arguments", "results", "temporary"))
    assert len(capsys.readouterr().out.splitlines()) == 5


SMALL = ["--model", "tiny", "--turns", "1", "--support", "4", "--query", "4", "--length", "8"]


def test_steps(monkeypatch, capsys, tmp_path):
    output, picture = tmp_path / "steps.json", tmp_path / "steps.png"
    arguments = ["steps", *SMALL, "--engine", "first-order", "--steps", "1"]
    arguments += ["--output", str(output), "--picture", str(picture)]
    monkeypatch.setattr(sys, "argv", arguments)
    steps.main()
    (row,) = json.loads(output.read_text())["rows"]
    assert row["copies_a_step"] is None
    assert row["temporary"] > 0
    assert len(row["all_seconds"]) == 1
    assert picture.stat().st_size > 1000
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_streams(monkeypatch, capsys, tmp_path):
    output = tmp_path / "streams.json"
    sizes = ["--width", "8", "--layers", "1", "--examples", "4", "--turns", "1"]
    arguments = ["streams", "--engine", "low-memory", "first-order", "--steps", "2", *sizes]
    monkeypatch.setattr(sys, "argv", [*arguments, "--output", str(output)])
    streams.main()
    rows = json.loads(output.read_text())["rows"]
    assert [(row["engine"], row["steps"]) for row in rows] == [
        ("low-memory", 2),
        ("first-order", 2),
    ]
    assert all(row["copies"] > 0 and row["seconds"] > 0 for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.slow
def test_many_texts(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["many_texts", "--texts", "50000", "--files", "5"])
    many_texts.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:2] for row in rows] == [["| 1,000", "1"], ["| 50,000", "5"], ["| 50,000", "5"]]
    assert [int(row[2]) > 0 for row in rows] == [False, False, True]


@pytest.mark.slow
def test_steps_of_little_memory(monkeypatch, tmp_path):
    output = tmp_path / "steps.json"
    arguments = ["steps", *SMALL, "--steps", "1", "3", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", arguments)
    steps.main()
    first, third = json.loads(output.read_text())["rows"]
    assert first["copies_a_step"] is None
    assert third["copies_a_step"] < 1


@pytest.mark.slow
def test_profile(monkeypatch, capsys, tmp_path):
    output = tmp_path / "profile.json"
    command = ["profile_step", "--case", "tiny", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", command)
    profile_step.main()
    found = json.loads(output.read_text())
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert found["gflops"] > 0
    assert "matrix products" in capsys.readouterr().out


@pytest.mark.slow
def test_peers_have_the_same_meta_gradient(monkeypatch, capsys, tmp_path):
    output = tmp_path / "peers.json"
    command = ["peers", "--peer-python", sys.executable, "--case", "tiny", "--peers", "torch.func"]
    command += ["--order", "second", "first", "--turns", "1", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", command)
    peers.main()
    rows = json.loads(output.read_text())["rows"]
    assert [row["contender"] for row in rows] == ["metajax", "torch.func"] * 2
    assert max(row["gap"] for row in rows) < 1e-5
    assert len(capsys.readouterr().out.splitlines()) == 5


@pytest.mark.slow
def test_gpu_at_a_tiny_size(monkeypatch, capsys, tmp_path):
    output = tmp_path / "gpu.json"
    command = ["gpu", "--model", "tiny", "--engine", "low-memory", "--dtype", "bfloat16"]
    command += ["--support", "4", "--query", "4", "--length", "8", "--steps", "2", "--turns", "2"]
    command += ["--tasks", "2", "--peak-tflops", "0.001", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", [*command, "--profile", str(tmp_path / "profile")])
    gpu.main()
    assert list(tmp_path.glob("profile/tiny-low-memory-bfloat16/**/*.xplane.pb"))
    (row,) = json.loads(output.read_text())["rows"]
    assert row["utilisation"] == pytest.approx(row["flops"] / row["seconds"] / 1e9)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_every_script_starts(monkeypatch, capsys):
    """Its help is its docstring."""
    started = set()
    for path in sorted(Path(benchmarks.__path__[0]).glob("*.py")):
        if "argparse" not in path.read_text():
            continue  # Code that the scripts share.
        module = importlib.import_module(f"benchmarks.{path.stem}")
        monkeypatch.setattr(sys, "argv", [path.stem, "--help"])
        with pytest.raises(SystemExit) as end:
            module.main()
        assert not end.value.code
        assert module.__doc__.splitlines()[0] in " ".join(capsys.readouterr().out.split())
        started.add(path.stem)
    assert started >= {"faults", "gpu", "memory", "parity", "peers", "profile_step", "steps"}


@pytest.mark.slow
def test_faults(monkeypatch, capsys, tmp_path):
    output = tmp_path / "faults.json"
    command = ["faults", "--fault", "term", "truncated", "--terms", "1", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as end:
        faults.main()
    assert not end.value.code
    rows = json.loads(output.read_text())["rows"]
    assert [row["fault"] for row in rows] == ["term", "truncated"]
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_scaling(monkeypatch, capsys, tmp_path):
    output = tmp_path / "scaling.json"
    command = ["scaling", "--model", "tiny", "--chip", "v5e", "--count", "1", "256", "512"]
    monkeypatch.setattr(sys, "argv", [*command, "--output", str(output)])
    scaling.main()
    one, group, two = json.loads(output.read_text())["rows"]
    assert (one["traffic_seconds"], one["efficiency"]) == (0, 1)
    # 255 / 256 of the parameters are sent twice. Between two groups it is half of this.
    within = group["bytes"] / 200e9
    assert group["traffic_seconds"] == pytest.approx(within)
    size = group["bytes"] / 2 * 256 / 255
    assert two["traffic_seconds"] == pytest.approx(within + size / 800e9)
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_kernels_by_kind():
    """Of a product, a slice of a stack, a copy in another order, and a sum."""

    def step(x, stack, index):
        return x @ x, stack.at[index].set(x), jnp.tanh(x).sum(), stack.T

    x, stack = jnp.ones((8, 8)), jnp.ones((3, 8, 8))
    text = jax.jit(step, donate_argnums=1).lower(x, stack, 1).compile().as_text()
    program, _ = parse(text)
    named = {name: each for one in program.values() for name, each in one.instructions.items()}
    kinds = [traffic.kind_of(program, named[each.name]) for each in read_traffic(text).kernels]
    assert set(kinds) >= {"products", "stacks of blocks or steps", "elementwise, sums and others"}
    assert kinds.count("products") == 1


@pytest.mark.parametrize("benchmark", [traffic, compile_time])
def test_an_unknown_target_is_named(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", "--target", "h99"])
    with pytest.raises(SystemExit) as end:
        benchmark.main()
    assert end.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error: --target h99: is not a known chip; choose from v4," in last


@pytest.mark.slow
def test_traffic(monkeypatch, capsys, tmp_path):
    pytest.importorskip("jax_cuda13_plugin")
    output = tmp_path / "traffic.json"
    command = ["traffic", "--model", "tiny", "--support", "4", "--query", "4", "--length", "8"]
    command += ["--steps", "2", "--tasks", "2", "--engine", "default", "low-memory"]
    monkeypatch.setattr(sys, "argv", [*command, "--kernels", "3", "--output", str(output)])
    traffic.main()
    rows = json.loads(output.read_text())["rows"]
    for row in rows:
        assert sum(row["kinds"].values()) == pytest.approx(row["bytes"])
        assert sum(row["parts"].values()) == pytest.approx(row["bytes"])
        assert sum(row["operations"].values()) == pytest.approx(row["bytes"])
        assert set(row["parts"]) == {"attention", "feed_forward", "layer_norm", "the rest"}
    default, low_memory = rows
    assert default["flops"] < low_memory["flops"]
    assert default["kernels"] < low_memory["kernels"]
    assert "products" in capsys.readouterr().out


def test_parity(monkeypatch, capsys, tmp_path):
    pytest.importorskip("torch")
    from benchmarks import parity

    parity.write(parity.make_config("electra", 1, 64), "classification", tmp_path / "model")
    command = ["parity", str(tmp_path / "model"), "--output", str(tmp_path / "parity.json")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as end:
        parity.main()
    assert not end.value.code
    [row] = json.loads((tmp_path / "parity.json").read_text())["rows"]
    assert 0 < row["float64"] < 1e-13 < row["float32"] < 1e-5
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.slow
def test_few_shot_classifiers_on_the_same_draws(monkeypatch, capsys, tmp_path):
    intents = tmp_path / "data" / "intents" / "HWU64"
    intents.mkdir(parents=True)
    rows = [{"sentence": text, "label": label} for text, label in tiny.examples(4, 6)]
    (intents / "full.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, output = tiny.write_model(tmp_path / "model"), tmp_path / "rows.json"
    command = ["few_shot", "--model", str(model), "--data", str(tmp_path / "data")]
    command += ["--set", "hwu64", "--seeds", "0", "1", "--output", str(output)]
    command += ["--methods", "linear", "prototypes+names", "--shots", "2"]
    other = tiny.write_model(tmp_path / "other", seed=1)
    monkeypatch.setattr(sys, "argv", [*command, "--meta-trained", str(other)])
    few_shot.main()
    found = json.loads(output.read_text())
    names = ("linear", "prototypes+names", "linear, meta-trained", "prototypes+names, meta-trained")
    assert [(row["seed"], row["method"]) for row in found] == [
        (seed, method) for seed in (0, 1) for method in names
    ]
    assert all(0 <= row["accuracy"] <= 1 < row["peak_bytes"] for row in found)
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 5

    def fail(*given, **settings):
        raise AssertionError("a finished row was run again")

    monkeypatch.setattr(few_shot, "run", fail)
    few_shot.main()
    assert capsys.readouterr().out == printed
    monkeypatch.setattr(sys, "argv", command)
    few_shot.main()
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.slow
def test_several_labels_and_unequal_classes(monkeypatch, capsys, tmp_path):
    rows = [{"sentence": text, "label": label} for text, label in tiny.examples(4, 9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, output = tiny.write_model(tmp_path / "model"), tmp_path / "found.json"
    command = ["labels", "--model", str(model), "--data", str(tmp_path / "rows.jsonl")]
    command += ["--shots", "4", "--seeds", "0", "1", "--tested", "8", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", command)
    labels.main()
    found = json.loads(output.read_text())
    assert len(found) == 2 * (4 + 8)
    assert all(0 <= row["macro-F1"] <= 1 for row in found)
    assert {"micro-F1" in row for row in found if row["kind"] == "unequal"} == {False}
    assert len(capsys.readouterr().out.splitlines()) == 1 + 4 + 1 + 8


@pytest.mark.slow
def test_chosen_methods_and_calibrated_probabilities(monkeypatch, capsys, tmp_path):
    intents = tmp_path / "intents" / "HWU64"
    intents.mkdir(parents=True)
    rows = [{"sentence": text, "label": label} for text, label in tiny.examples(4, 8)]
    (intents / "full.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["choice", "--model", str(tiny.write_model(tmp_path / "model"))]
    command += ["--data", str(tmp_path), "--seeds", "0", "1", "--tested", "8", "--methods"]
    monkeypatch.setattr(sys, "argv", [*command, "linear", "linear, calibrated", "choose"])
    choice.main()
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 * 3 + 1 + 3
    chosen = [line.split(" s ")[1] for line in printed if ", choose" in line]
    assert {*chosen} <= {*CANDIDATES}
    plain, calibrated = (line.split() for line in printed[7:9])
    assert plain[1:3] == calibrated[2:4]  # Dividing the logits keeps the predictions.


@pytest.mark.slow
def test_similarity_of_sentences(monkeypatch, capsys, tmp_path):
    folder = tmp_path / "glue" / "STS-B"
    folder.mkdir(parents=True)
    first, second = (tiny.examples(4, 5), tiny.examples(4, 5)[::-1])
    lines = [f"{a}\t{b}\t{row % 6}" for row, ((a, _), (b, _)) in enumerate(zip(first, second))]
    for part in ("train", "dev"):
        text = "\n".join(["sentence1\tsentence2\tscore", *lines]) + "\n"
        (folder / f"{part}.tsv").write_text(text)
    command = ["similarity", "--model", str(tiny.write_model(tmp_path / "model"))]
    command += ["--data", str(tmp_path), "--examples", "8", "--seeds", "0", "1"]
    monkeypatch.setattr(sys, "argv", command)
    similarity.main()
    title, cosine, *ours = capsys.readouterr().out.splitlines()
    assert title.startswith("STS-B, 8 pairs")
    assert cosine.split()[3] == "0.00"  # The same for all draws.
    assert [row.split()[0] for row in ours] == ["linear", "finetune"]


def test_joined_texts_have_the_labels_of_their_parts():
    texts = [f"{label} {number}" for label in "abcd" for number in range(6)]
    numbers = np.repeat(np.arange(4), 6).astype(np.int32)
    task = TaskData("letters", texts, None, numbers, tuple("abcd"))
    support, test = labels.several(task, 2, 9, np.random.default_rng(0))
    for made in (support, test):
        for text, own in zip(made.texts, made.labels):
            parts = text.split(" and ")
            assert sorted(part[0] for part in parts) == ["abcd"[c] for c in np.flatnonzero(own)]
    used = [
        {part for text in made.texts for part in text.split(" and ")} for made in (support, test)
    ]
    assert len(support.texts) == 4
    assert len(test.texts) == 9
    assert used[0].isdisjoint(used[1])
    assert test.labels.sum(1).tolist() == [1, 2, 3] * 3


def test_classes_of_unequal_sizes():
    texts = [f"{label} {number}" for label in "abcd" for number in range(12)]
    numbers = np.repeat(np.arange(4), 12).astype(np.int32)
    task = TaskData("letters", texts, None, numbers, tuple("abcd"))
    support, test = labels.unequal(task, 8, 12, np.random.default_rng(0))
    assert np.bincount(support.labels).tolist() == [1, 2, 4, 8]
    assert np.bincount(test.labels).tolist() == [3, 3, 3, 3]
    assert set(support.texts).isdisjoint(test.texts)
    assert all(text[0] == "abcd"[label] for text, label in zip(support.texts, support.labels))
