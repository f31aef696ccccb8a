"""Where the weights of a stage come from, and which of them it passes on."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

import metajax
from metajax.commands import finetune as finetuning
from metajax.commands.export import export
from metajax.commands.lineage import entries, lineage
from metajax.config.groups import ModelSettings
from metajax.config.inner import InnerSettings
from metajax.config.results import ExportSettings, LineageSettings
from metajax.config.settings import FinetuneSettings
from metajax.errors import InputError
from metajax.models import Transformer, hashes, save_config
from metajax.runs.classifier import open_classifier
from metajax.runs.described import describe_source
from metajax.runs.few_shot import describe_few_shot, open_few_shot
from metajax.runs.record import make_record
from metajax.runs.source import describe, open_source, text_length
from metajax.runs.workdir import begin, open_run, write_results
from metajax.training import checkpoint
from metajax.training.checkpoint import Checkpoints
from metajax.training.outer import OuterState
from tests.workdirs import write_workdir

# Different from the defaults in everything that a record has.
HEADS = {
    "head": "classification",
    "pooling": "mean",
    "feature_norm": 2.5,
    "num_labels": (2, 3),
    "label_names": (("no", "yes"), ("a", "b", "c")),
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("weights") / "bert")


@pytest.fixture(scope="module")
def run(bert, tmp_path_factory):
    """A finetune run of two tasks, with two checkpoints; its model and their parameters."""
    path = tmp_path_factory.mktemp("run") / "run"
    model = Transformer(config=tiny.CONFIG, source=str(bert), **HEADS)
    settings = FinetuneSettings(
        model=bert, tasks=("first.csv", "second.csv"), workdir=path, max_length=20, seed=4, steps=7
    )
    data = {"--tasks first.csv": "1" * 64, "--tasks second.csv": "2" * 64}
    parent = {"path": str(bert), **hashes(str(bert))}
    record = make_record(
        "finetune", settings, data=data, parent=parent, model=describe(model), pairs=[True, False]
    )
    opened = open_run(str(path), record)
    begin(opened, lambda directory: save_config(directory, model))
    newest = metajax.from_pretrained(str(bert))[1] | {
        "classifier": {
            "kernel": jnp.arange(96, dtype=jnp.float32).reshape(2, 16, 3),
            "bias": jnp.arange(6, dtype=jnp.float32).reshape(2, 3),
        }
    }
    params = [jax.tree.map(jnp.zeros_like, newest), newest]
    with Checkpoints(opened.checkpoints, keep=2, record=record) as checkpoints:
        for step, each in zip((5, 7), params):
            checkpoints.save(OuterState(jnp.int32(step), each, (), jax.random.key(0)))
    write_results(opened, {"before": {}, "after": {}})
    return SimpleNamespace(path=path, model=model, record=record, params=params)


def test_a_stage_starts_from_the_newest_checkpoint_as_its_run_describes_it(run):
    source = open_source(str(run.path))
    assert {name: getattr(source.model, name) for name in HEADS} == HEADS
    assert source.model.config == tiny.CONFIG
    tiny.assert_same_bits(source.params, run.params[1])
    assert source.record == {"path": str(run.path), "step": 7, "record": run.record}


def test_the_settings_reach_the_network_and_the_seed_its_new_head(run, bert):
    """The same new head on a run's weights and on Hugging Face's, another one for another seed."""
    head = {"head": "classification", "num_labels": (4,), "pooling": "pooler"}
    new = []
    for path, weights in ((run.path, run.params[1]), (bert, metajax.from_pretrained(str(bert))[1])):
        for seed in (0, 3):
            settings = ModelSettings(model=path, seed=seed, dtype="bfloat16", remat=seed == 3)
            model, params, *_ = open_source(str(path), settings, **head)
            assert (model.dtype, model.remat) == (jnp.bfloat16, seed == 3)
            assert {name: getattr(model, name) for name in head} == head
            new.append(params.pop("classifier"))
            tiny.assert_same_bits(params, {part: weights[part] for part in params})
    tiny.assert_same_bits(new[:2], new[2:])
    assert np.all(new[0]["kernel"] != new[1]["kernel"])


def test_a_source_is_described_as_it_is_opened(run, bert):
    head = {"head": "classification", "num_labels": (4,), "feature_norm": 1.5}
    for path in (run.path, bert):
        settings = ModelSettings(model=path, dtype="bfloat16", remat=True)
        opened = open_source(str(path), settings, **head)
        described = describe_source(str(path), settings, **head)
        assert described.model.replace(source=None) == opened.model.replace(source=None)
        looks = [
            jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), source.params)
            for source in (opened, described)
        ]
        assert looks[0] == looks[1]


def test_a_head_of_another_type_is_not_that_of_a_task(bert, tmp_path, caplog):
    """It is new, as without a classifier, and a message says so."""
    model, params = metajax.from_pretrained(str(bert), "classification", num_labels=3)
    params["classifier"] = jax.tree.map(lambda leaf: leaf + 1, params["classifier"])
    settings = ModelSettings(model=str(bert))
    head = {"head": "classification", "num_labels": (3,)}
    for problem_type in (None, "multi_label_classification", "regression"):
        caplog.clear()
        path = tmp_path / str(problem_type)
        metajax.save_pretrained(path, model.replace(problem_type=problem_type), params)
        opened = open_source(str(path), settings, **head)
        assert opened.model.problem_type is None
        assert describe_source(str(path), settings, **head).model == opened.model
        kept = (opened.params["classifier"]["kernel"] == params["classifier"]["kernel"]).all()
        assert kept == (problem_type is None)
        tiny.assert_same_bits(opened.params["layers"], params["layers"])
        said = f"{path}: its head is for {problem_type} and is not used"
        assert caplog.messages == (
            [] if kept else [said, "with_head: has no classifier: freshly initialized"]
        )


def pool(directory, mode):
    (directory / "1_Pooling").mkdir(exist_ok=True)
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": mode}))


def test_few_shot_stages_pool_as_the_weights_say_or_by_the_mean(tmp_path, caplog):
    directory = tiny.write_model(tmp_path / "bert")
    settings = ModelSettings(model=str(directory))

    def pooling(spec):
        found = [
            open_(str(spec), settings, InnerSettings(), 2).model.pooling
            for open_ in (open_few_shot, describe_few_shot)
        ]
        assert found[0] == found[1]
        return found[0]

    assert pooling(directory) == "mean"
    note = f"{directory}: names no pooling (1_Pooling); mean is used"
    assert caplog.messages == [note, note]
    for mode in ("mean", "cls"):
        pool(directory, mode)
        assert pooling(directory) == mode
        # A meta-trained model adapts as in training. Other runs have no chosen settings.
        for stage, network, expected in (
            ("metatrain", {"pooling": mode}, mode),
            ("metatrain", {"pooling": "pooler"}, "pooler"),
            ("finetune", {"pooling": mode}, mode),
            ("finetune", {"pooling": "pooler"}, "mean"),
        ):
            run = tmp_path / f"{stage} {mode} {network['pooling']}"
            write_workdir(run, directory, stage, network={"head": "encoder", **network})
            assert pooling(run) == expected
    pool(directory, "max")
    with pytest.raises(InputError, match="pooling by max is not supported"):
        pooling(directory)


@pytest.mark.parametrize("given", [None, "pooler", "cls"])
def test_finetune_pools_as_the_weights_say_unless_it_is_told(tmp_path, monkeypatch, caplog, given):
    directory = tiny.write_model(tmp_path / "bert")
    tasks = (str(tiny.write_rows(tmp_path / "t.csv", tiny.examples(2, 3))),)
    pool(directory, "mean")
    settings = FinetuneSettings(
        model=directory, tasks=tasks, workdir=tmp_path / "run", steps=1, pooling=given
    )
    monkeypatch.setattr(finetuning, "train", lambda stage, params: stage)
    stage = finetuning.finetune(settings)
    assert stage.model.pooling == (given or "mean")
    assert stage.run.record["settings"]["pooling"] == (given or "mean")
    assert stage.run.record["model"]["pooling"] == (given or "mean")
    assert not [line for line in caplog.messages if "1_Pooling" in line]


def test_what_weights_do_not_say_of_pooling_is_said_once(bert, tmp_path, monkeypatch, caplog):
    tasks = (str(tiny.write_rows(tmp_path / "t.csv", tiny.examples(2, 3))),)
    monkeypatch.setattr(finetuning, "train", lambda stage, params: stage)
    settings = FinetuneSettings(model=bert, tasks=tasks, workdir=tmp_path / "run", steps=1)
    assert finetuning.finetune(settings).model.pooling == "pooler"
    said = [line for line in caplog.messages if "1_Pooling" in line]
    assert said == [f"{bert}: names no pooling (1_Pooling); pooler is used"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_checkpoint_that_is_not_finite_is_refused(bert, tmp_path, monkeypatch, value):
    network = {"head": "encoder"}
    write_workdir(tmp_path / "run", bert, "metatrain", network=network)
    saved = checkpoint.load(tmp_path / "run" / "checkpoints")
    saved.params["pooler"]["bias"] = saved.params["pooler"]["bias"].at[3].set(value)
    monkeypatch.setattr(checkpoint, "load", lambda *_: saved)
    message = r"run: the checkpoint of step 1 has parameters that are not finite \(pooler/bias\);"
    with pytest.raises(InputError, match=message):
        open_source(str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("task", "head", "pairs"), [("first.csv", 0, True), ("second.csv", 1, False)]
)
def test_a_task_has_its_own_head(run, tmp_path, task, head, pairs):
    found = open_classifier(str(run.path), task)
    assert (found.head, found.pairs, found.max_length) == (head, pairs, 20)
    tiny.assert_same_bits(found.params, run.params[1])
    # Exported, it is the only one.
    classes, names = HEADS["num_labels"][head], HEADS["label_names"][head]
    told = export(ExportSettings(model=run.path, output=tmp_path / "out", task=task))
    assert told == {
        "output": str(tmp_path / "out"),
        "head": "classification",
        "loads_in": "BertModel",
    }
    model, params = metajax.from_pretrained(str(tmp_path / "out"), head="classification")
    assert (model.num_labels, model.label_names) == ((classes,), (names,))
    assert (model.pooling, model.feature_norm) == ("mean", 2.5)
    for name, own in run.params[1]["classifier"].items():
        expected = own[head : head + 1, ..., :classes]
        np.testing.assert_array_equal(params["classifier"][name], expected)
    np.testing.assert_array_equal(params["embeddings"]["word"], run.params[1]["embeddings"]["word"])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    kept = load_file(tmp_path / "out" / "classifier.safetensors")
    assert any(classes in tensor.shape for tensor in kept.values())


def test_a_task_that_has_no_head_is_refused(run):
    for task, problem in ((None, ": is missing"), ("third.csv", " third.csv: unknown task")):
        with pytest.raises(InputError, match=f"--task{problem}; choose from first.csv, second.csv"):
            open_classifier(str(run.path), task)


def test_texts_are_as_long_as_asked_for_and_as_the_model_has_positions():
    assert [text_length(Transformer(tiny.CONFIG), length) for length in (16, 32, 500)] == [
        16,
        32,
        32,
    ]
    # The two texts of a pair share a row, which cannot be longer than the model has positions.
    siamese = Transformer(tiny.CONFIG, siamese=True)
    assert [text_length(siamese, length) for length in (8, 16, 500)] == [8, 16, 16]


def test_the_lineage_of_a_run(run, bert, tmp_path):
    output = tmp_path / "lineage.json"
    rows = lineage(LineageSettings(model=run.path, output=output))
    assert json.loads(output.read_text()) == rows
    first, weights = rows
    kept = ("stage", "settings", "data", "versions")
    assert first == {k: run.record[k] for k in kept} | {"path": str(run.path), "step": None}
    assert weights == {"stage": None, "path": str(bert), **hashes(str(bert))}
    (title, values), (last, digests) = entries(rows)
    assert title == f"finetune  {run.path}"
    # The seed, settings that are not defaults, and the files.
    assert values == {
        "seed": 4,
        "--max-length": 20,
        "--steps": 7,
        "--tasks first.csv": "1" * 16,
        "--tasks second.csv": "2" * 16,
    }
    assert last == f"Hugging Face weights  {bert}"
    assert digests == {name: digest[:16] for name, digest in hashes(str(bert)).items()}
