"""Documents as tasks on the command line, against plain gradient steps in float64."""

import json
import math
import random
import shutil

import jax
import numpy as np
import pytest
import scipy.stats
import transformers

from metajax import data
from metajax.config.groups import ModelSettings
from metajax.config.inner import InnerSettings
from metajax.runs import document_losses
from metajax.runs.few_shot import open_few_shot
from tests import tiny
from tests.commands.test_decoders import write_llama
from tests.commands.test_numbers import assert_same, moved, ready  # noqa: F401
from tests.runs.test_document_losses import LENGTH, QUERIES, RATE, STEPS, Reference, text

pytestmark = pytest.mark.xdist_group("documents")  # They share their runs.

SIZES = dict(zip("abcdefgh", (30, 26, 28, 12, 24, 22, 9, 31)))  # Words.


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Documents with a few words each, one of which is too short; and a file that is no text."""
    directory = tmp_path_factory.mktemp("documents")
    for number, (name, size) in enumerate(SIZES.items()):
        draw = random.Random(number)
        words = draw.choices(tiny.WORDS, k=4)
        (directory / f"{name}.txt").write_text(" ".join(draw.choices(words, k=size)) + "\n")
    (directory / "short.txt").write_text("w1")
    (directory / "picture.png").write_bytes(b"\x89PNG\xff")
    return directory


def documents_of(folder, model):
    texts = data.load_documents(folder)
    documents = data.tokenize_documents(texts, model.tokenizer)
    return [each for each in documents if data.count_chunks(each, LENGTH) > 1]


def flags(**settings):
    own = {"inner_steps": STEPS, "inner_lr": RATE, "max_length": LENGTH} | settings
    return [
        item
        for name, value in own.items()
        if value is not None
        for item in (f"--{name.replace('_', '-')}", value)
    ]


def metatrain(llama, folder, workdir, **changes):
    settings = {"queries": QUERIES, "steps": 6, "save_every": 3, "meta_batch_size": 2}
    where = ("--model", llama, "--tasks", f"documents:{folder}", "--workdir", workdir)
    return ["metatrain", *where, *flags(**settings | {"learning_rate": 0.01} | changes)]


def evaluate(model, folder, output, *more, **changes):
    where = ("--model", model, "--tasks", f"documents:{folder}", "--output", output)
    settings = {"queries": QUERIES, "inner_steps": None, "inner_lr": None} | changes
    tiny.succeed("evaluate", *where, *flags(**settings), *more)
    return {row["method"]: row for row in json.loads(output.read_text())}


def opened(model, **inner):
    settings = ModelSettings(model=str(model))
    return open_few_shot(settings.model, settings, InnerSettings(**inner), None)


def expected(few_shot, documents, method, *, on_stream=False):
    """What the row of a method should have."""
    reference = Reference(few_shot.model, few_shot.params, on_stream=on_stream)
    with jax.enable_x64(True):
        rows = [reference.chunks(np.asarray(each.input_ids), method) for each in documents]
    nats = np.array([sum(n for n, _, tested in own if tested) for own in rows])
    tokens = np.array([sum(n for _, n, tested in own if tested) for own in rows])
    present = [[own[at] for own in rows if len(own) > at] for at in range(max(map(len, rows)))]
    num_bytes = sum(
        data.cut_chunks(document, LENGTH).num_bytes.sum(1)[: len(own)] @ [t for *_, t in own]
        for document, own in zip(documents, rows)
    )
    return {
        "loss": nats.sum() / tokens.sum(),
        "ci95": interval(nats, tokens),
        "bits_per_byte": nats.sum() / math.log(2) / num_bytes,
        "losses": list(nats / tokens),
        "chunks": [sum(r[0] for r in own) / sum(r[1] for r in own) for own in present],
        "tokens": tokens,
    }


def interval(nats, tokens):
    """Half the 95% interval of a ratio of two sums over documents."""
    errors, count = nats - nats.sum() / tokens.sum() * tokens, len(nats)
    spread = np.sqrt((errors**2).sum() / (count - 1) * count) / tokens.sum()
    return scipy.stats.t.ppf(0.975, count - 1) * spread


@pytest.fixture(scope="module")
def trained(llama, folder, tmp_path_factory):
    workdirs = {}
    with tiny.one_device():
        for name in ("maml", "test-time-training"):
            workdirs[name] = tmp_path_factory.mktemp("trained") / name
            own = {"queries": None} if name == "test-time-training" else {}
            tiny.succeed(*metatrain(llama, folder, workdirs[name], algorithm=name, **own))
    return workdirs


@pytest.mark.parametrize(
    ("name", "queries"), [("maml", QUERIES), ("maml", 0), ("test-time-training", None)]
)
def test_losses_are_those_of_plain_gradient_steps(
    llama, folder, trained, tmp_path, monkeypatch, name, queries
):
    """Three documents or chunks at a time, so that the last group overlaps the one before."""
    monkeypatch.setattr(document_losses, "_GROUP", 3)
    monkeypatch.setattr(document_losses, "_ROWS", 3)
    on_stream = not queries
    rows = evaluate(trained[name], folder, tmp_path / "rows.json", queries=queries)
    assert list(rows) == ["checkpoint", "same-steps", "none", "context"]
    meta, plain = opened(trained[name]), opened(llama)
    documents = documents_of(folder, meta.model)
    lengths = [data.count_chunks(each, LENGTH) for each in documents]
    assert min(lengths) < STEPS + QUERIES < max(lengths)
    assert len(documents) == len(SIZES)
    expect = {
        "checkpoint": (meta, "adapted"),
        "same-steps": (plain, "adapted"),
        "none": (plain, "none"),
        "context": (plain, "context"),
    }
    for method, (few_shot, kind) in expect.items():
        row, known = rows[method], expected(few_shot, documents, kind, on_stream=on_stream)
        for key in known.keys() - {"tokens"}:
            assert row[key] == pytest.approx(known[key], rel=1e-4), (method, key)
        assert row["documents"] == len(documents)
        assert row["inner_steps"] == (STEPS if kind == "adapted" else 0)
    same, first = rows["same-steps"], rows["checkpoint"]
    assert same["behind"] == pytest.approx(same["loss"] - first["loss"])
    assert same["behind"] > same["behind_ci95"] > 0
    tokens = expected(plain, documents, "none", on_stream=on_stream)["tokens"]
    leads = (np.array(same["losses"]) - first["losses"]) * tokens
    assert same["behind_ci95"] == pytest.approx(interval(leads, tokens))


def test_metatrain_samples_the_documents_that_it_does_not_measure_on(
    ready,  # noqa: F811
    llama,
    folder,
    tmp_path,
):
    command = metatrain(llama, folder, tmp_path / "run", seed=3, meta_batch_size=3)
    stage, params = ready(*command)
    training, held_out = data.split_documents(documents_of(folder, stage.model), 3, 1)
    assert len(training) == len(SIZES) - 1
    spec = data.StreamSpec(STEPS, QUERIES, LENGTH)
    for step in (0, 5):
        assert_same(stage.make_tasks(step), data.sample_streams(training, spec, 3, step, 3))
    few_shot = opened(llama)._replace(params=moved(params))
    known = expected(few_shot, held_out * 2, "adapted")
    assert stage.measure(moved(params)) == {
        "loss": pytest.approx(known["loss"], rel=1e-4),
        "bits_per_byte": pytest.approx(known["bits_per_byte"], rel=1e-4),
    }


def results_of(workdir):
    return json.loads((workdir / "results.json").read_text())


def test_a_run_on_documents_from_before_a_setting_goes_on(trained, llama, folder, tmp_path):
    run = shutil.copytree(trained["maml"], tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    for name in ("keep_duplicates", "lora_kernels", "held_out", "valid_every", "logit_scale"):
        del record["settings"][name]
    (run / "run.json").write_text(json.dumps(record))
    results = (run / "results.json").read_text()
    (run / "results.json").unlink()
    tiny.succeed(*metatrain(llama, folder, run, algorithm="maml"))
    assert (run / "results.json").read_text() == results


def test_metatrain_lowers_the_loss_of_held_out_documents(trained, folder):
    """The results after training are those of the checkpoint on the same documents."""
    for name, on_stream in (("maml", False), ("test-time-training", True)):
        results = results_of(trained[name])
        assert results["measured_on"] == "1 held-out documents"
        assert results["after"]["loss"] < 0.95 * results["before"]["loss"]
        few_shot = opened(trained[name])
        _, held_out = data.split_documents(documents_of(folder, few_shot.model), 0, 1)
        known = expected(few_shot, [*held_out, *held_out], "adapted", on_stream=on_stream)
        for key in ("loss", "bits_per_byte"):
            assert results["after"][key] == pytest.approx(known[key], rel=1e-4)


def test_an_interrupted_run_ends_as_an_undisturbed_one(
    llama, folder, trained, tmp_path, monkeypatch
):
    again = metatrain(llama, folder, tmp_path / "run", algorithm="maml")
    sample = data.sample_streams

    def interrupted(documents, spec, seed, step, *rest):
        if step == 4:
            raise KeyboardInterrupt
        return sample(documents, spec, seed, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(data, "sample_streams", interrupted)
        assert tiny.run(*again).status == 1
    assert "starts from step 3" in tiny.run(*again).err
    tiny.assert_same_bits(*map(tiny.training_state, (tmp_path / "run", trained["maml"])))
    assert results_of(tmp_path / "run") == results_of(trained["maml"])


def test_adapt_takes_one_pass_over_all_chunks(llama, folder, tmp_path):
    """Of one document, or a folder: a step a chunk."""
    rate = 0.1
    where = ("adapt", "--model", llama, "--max-length", LENGTH, "--inner-lr", rate)
    few_shot = opened(llama)
    texts = [folder / "a.txt", folder]
    for number, path in enumerate(texts):
        run = tmp_path / str(number)
        dev = ("--dev", f"documents:{folder / 'h.txt'}") if number else ()
        tiny.succeed(*where, "--tasks", f"documents:{path}", "--workdir", run, *dev)
        documents = data.tokenize_documents(data.load_documents(path), few_shot.model.tokenizer)
        chunks = [
            each.input_ids[at : at + LENGTH]
            for each in documents
            for at in range(0, len(each.input_ids) - 1, LENGTH - 1)
        ]
        reference, losses = Reference(few_shot.model, few_shot.params, on_stream=True), []
        with jax.enable_x64(True):
            before = sum(reference.nats(reference.params, chunk) for chunk in chunks)
            for chunk in chunks:
                losses.append(reference.nats(reference.params, chunk))
                grads = reference.gradient(reference.params, text(chunk), None)[0]
                step = lambda p, g: p - rate * g  # noqa: E731
                reference.params = jax.tree.map(step, reference.params, grads)
            after = sum(reference.nats(reference.params, chunk) for chunk in chunks)
        tokens = sum(len(chunk) - 1 for chunk in chunks)
        found = results_of(run)
        assert (found["documents"], found["chunks"]) == (len(documents), len(chunks))
        assert found["inner_lr"] == rate
        loss = {"before": before / tokens, "after": after / tokens}
        for when, value in loss.items():
            assert found[when]["tasks"]["loss"] == pytest.approx(value, rel=1e-3)
            assert ("dev" in found[when]) == bool(number)
        assert found["stream"]["loss"] == pytest.approx(sum(losses) / tokens, rel=1e-3)
        saved = opened(run).params
        gaps = jax.tree.map(lambda a, b: np.abs(np.subtract(a, b)).max(), saved, reference.params)
        assert max(jax.tree.leaves(gaps)) < 1e-3
        num_bytes = sum(data.cut_chunks(each, LENGTH).num_bytes.sum() for each in documents)
        bits = found["after"]["tasks"]["loss"] * tokens / math.log(2) / num_bytes
        assert found["after"]["tasks"]["bits_per_byte"] == pytest.approx(bits)


def test_inner_steps_limit_the_steps_of_adapt(llama, folder, tmp_path):
    where = ("--model", llama, "--workdir", tmp_path / "run", "--max-length", LENGTH)
    done = tiny.run("adapt", *where, "--tasks", f"documents:{folder}", "--inner-steps", 2)
    losses = [row["loss"] for row in tiny.rows_of(tmp_path / "run") if "loss" in row]
    assert len(losses) == 2
    found = results_of(tmp_path / "run")
    before, after = (found[when]["tasks"]["loss"] for when in ("before", "after"))
    assert f"2 steps at rate 0.1, loss {before:.3f} -> {after:.3f}" in done.err
    assert found["chunks"] > 2
    assert found["stream"]["loss"] == pytest.approx(sum(losses) / 2)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"ways": 3}, "--ways 3: does not apply to documents; remove --ways"),
        ({"head": "zero"}, "--head zero: does not apply to documents"),
        ({"layers": 1}, "--layers 1: does not apply to documents"),
        ({"classes": "file"}, "--classes file: does not apply to documents"),
        ({"inner_steps": 0}, "--inner-steps 0: documents need a chunk to adapt to; give 1 or more"),
        ({"algorithm": "proto-maml"}, "proto-maml: takes labelled tasks and no documents; use "),
        (
            {"algorithm": "test-time-training", "queries": 3},
            "--queries 3: test-time-training tests on the chunks that it adapts to; remove it",
        ),
    ],
)
def test_what_does_not_apply_is_refused(refused, llama, folder, tmp_path, given, line):
    command = metatrain(llama, folder, tmp_path / "run", **{"inner_lr": None} | given)
    refused(line, *command)


def test_documents_and_labels_are_not_mixed(refused, llama, folder, material, tmp_path):
    where = ("--model", llama, "--workdir", tmp_path / "run")
    documents = f"documents:{folder}"
    refused(
        f"--tasks {material.intents}: is a labelled task among documents; give only documents:",
        *("metatrain", *where, "--tasks", documents, material.intents),
    )
    refused(
        "test-time-training: takes documents and no labelled tasks; give --tasks documents:PATH",
        *("metatrain", *where, "--tasks", material.intents, "--algorithm", "test-time-training"),
    )
    refused(
        f"--dev {material.new}: is a labelled task, but --tasks has documents",
        *("adapt", *where, "--tasks", documents, "--dev", material.new),
    )
    refused(
        "--methods context: needs documents",
        *("evaluate", "--model", llama, "--tasks", material.intents, "--methods", "context"),
    )
    refused(
        "--queries 0: labelled tasks need queries to classify; give 1 or more",
        *("evaluate", "--model", llama, "--tasks", material.intents, "--queries", 0),
    )


def test_documents_need_a_decoder(refused, material, folder, tmp_path):
    message = "a model of type bert has no causal-LM head; give a decoder, such as a Llama"
    refused(message, *metatrain(material.bert, folder, tmp_path / "run"))


def test_documents_without_a_path_or_for_another_stage(refused, llama, folder, tmp_path):
    where = ("--model", llama, "--workdir", tmp_path / "run")
    refused(
        "documents: names no path; give documents:PATH", "adapt", *where, "--tasks", "documents:"
    )
    refused(
        "documents: names no path; give documents:PATH",
        *("pretrain", *where, "--text", "documents:"),
    )
    inside = folder / "runs" / "new"
    refused(
        f"--workdir {inside}: is in the folder of the documents, so that its files would become",
        *("adapt", "--model", llama, "--workdir", inside, "--tasks", f"documents:{folder}"),
    )
    assert not inside.parent.exists()
    refused(
        f"documents:{folder}: documents have no labels; give a labelled task",
        *("finetune", *where, "--tasks", f"documents:{folder}"),
    )


def test_documents_that_are_too_few(refused, llama, folder, tmp_path):
    one = f"documents:{folder / 'a.txt'}"
    size = ("--max-length", LENGTH)
    where = ("--model", llama, "--tasks", one, *size)
    refused("has one document of two chunks", "metatrain", *where, "--workdir", tmp_path / "run")
    refused("has one document of two chunks of 8 tokens", "evaluate", *where)
    short = f"documents:{folder / 'short.txt'}"
    refused(
        f"--tasks {short}: no document has two chunks of 8 tokens; give longer documents, or a ",
        *("evaluate", "--model", llama, "--tasks", short, *size),
    )
    (tmp_path / "empty").mkdir()
    empty = f"documents:{tmp_path / 'empty'}"
    refused("has no text file", "evaluate", "--model", llama, "--tasks", empty, *size)


def test_methods_that_do_not_apply(refused, llama, folder):
    where = ("evaluate", "--model", llama, "--tasks", f"documents:{folder}")
    size = ("--max-length", LENGTH, "--methods")
    refused("--methods knn: does not apply to documents", *where, *size, "knn")
    refused("is not meta-trained, but the method checkpoint", *where, *size, "checkpoint")
    refused(
        "--methods context: the stream and a chunk have 43 tokens, and the model 32 positions",
        *(*where, "--inner-steps", 5, *size, "context"),
    )


def test_documents_that_are_left_out_are_counted(llama, folder, tmp_path):
    where = ("evaluate", "--model", llama, "--tasks", f"documents:{folder}", "--methods", "none")
    err = tiny.run(*where, "--max-length", LENGTH).err
    assert "1 of 9 documents are shorter than two chunks of 8 tokens and are left out" in err
    assert "1 of 10 files are left out" in err
    (tmp_path / "one.txt").write_text((folder / "a.txt").read_text())
    specs = ["--tasks", f"documents:{folder}", f"documents:{tmp_path / 'one.txt'}"]
    err = tiny.run(*where[:3], *specs, *where[5:], "--max-length", LENGTH).err
    assert "1 of 10 documents are repeated" in err


def test_what_has_adapted_is_exported_and_is_no_classifier(refused, trained, folder, tmp_path):
    run, exported = tmp_path / "run", tmp_path / "exported"
    where = ("--tasks", f"documents:{folder / 'a.txt'}", "--workdir", run, "--max-length", LENGTH)
    tiny.succeed("adapt", "--model", trained["maml"], *where)
    assert results_of(run)["inner_lr"] == RATE  # As meta-trained.
    assert "LlamaForCausalLM" in tiny.succeed("export", "--model", run, "--output", exported)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported)
    ids = np.arange(1, 9)[None]
    inputs = transformers.BatchEncoding({"input_ids": ids}).convert_to_tensors("pt")
    few_shot = opened(run)
    batch = {"input_ids": ids, "attention_mask": ids * 0 + 1}
    ours = few_shot.model(few_shot.params, batch).logits
    np.testing.assert_allclose(ours, theirs(**inputs).logits.detach(), atol=1e-5)
    refused("has adapted to documents without labels", "predict", "--model", run)
    tiny.succeed("report", "--runs", run, trained["maml"], "--output", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "bits_per_byte" in page
    assert "held-out documents" in page


def test_the_report_shows_the_losses_by_chunk(refused, llama, folder, trained, tmp_path):
    file, page = tmp_path / "rows.json", tmp_path / "page.html"
    rows = evaluate(
        llama, folder, file, "--methods", "same-steps", "none", **{"inner_steps": STEPS}
    )
    command = ("report", "--runs", trained["maml"], "--evaluations", file, "--output", page)
    made = json.loads(tiny.succeed(*command))
    for name in ("chunks-1.svg", "gains-1.svg"):
        assert str(tmp_path / "page" / name) in made["pictures"]
    text = page.read_text()
    none = rows["none"]
    for shown in (
        "Loss by chunk",
        f"{none['loss']:.4f} ± {none['ci95']:.4f}",
        f"{none['behind']:.4f} ± {none['behind_ci95']:.4f}",
        f"{none['bits_per_byte']:.4f}",
        none["protocol"],
    ):
        assert shown in text
    for change, line in (
        ({"documents": 5}, "row 1: has 5 documents but 8 losses"),
        ({"loss": -1.0}, "row 1: loss: -1 is not from 0 to inf"),
        ({"chunks": "many"}, "is not an evaluation"),
    ):
        file.write_text(json.dumps([none | change]))
        refused(line, *command[:-1], tmp_path / "other.html")


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        ("--lora", 2, "--freeze", "--algorithm", "test-time-training"),
        ("--prefix", 3, "--algorithm", "test-time-training", "--low-memory"),
        ("--trainable", "norms", "--inner-optimizer", "adam"),
        ("--algorithm", "maml++"),
        ("--algorithm", "meta-sgd", "--lora", 2),
        ("--algorithm", "reptile"),
    ],
    ids=lambda given: " ".join(map(str, given)),
)
def test_what_adapts_and_how_can_be_chosen(llama, folder, tmp_path, given):
    """The adaptation lowers the loss, and the checkpoint adapts as it was trained."""
    meta, run = tmp_path / "meta", tmp_path / "run"
    size = ("--max-length", LENGTH)
    queries = () if "test-time-training" in given else ("--queries", QUERIES)
    tasks = ("--tasks", f"documents:{folder}", *size)
    more = ("--steps", 6, "--inner-steps", STEPS, "--learning-rate", 0.01, *queries, *given)
    tiny.succeed("metatrain", "--model", llama, "--workdir", meta, *tasks, *more)
    rows = evaluate(meta, folder, tmp_path / "rows.json", queries=QUERIES if queries else None)
    assert rows["checkpoint"]["loss"] < rows["same-steps"]["loss"] < rows["none"]["loss"]
    tiny.succeed("adapt", "--model", meta, "--workdir", run, *tasks)
    found = results_of(run)
    assert found["after"]["tasks"]["loss"] < found["before"]["tasks"]["loss"]
    if "--freeze" in given:
        exported = tmp_path / "adapters"
        tiny.succeed("export", "--model", run, "--format", "peft", "--output", exported)
        assert (exported / "adapter_model.safetensors").is_file()
