"""Each experiment runs for one step, so that it keeps working."""

import importlib
import itertools
import json
import os
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import metajax
from experiments import (
    documents,
    drift,
    gradmem,
    intents,
    leopard,
    navigation,
    orders,
    runs,
    sinusoid,
    stages,
    transfer,
    unlabelled,
    unseen,
)
from metajax import Estimate
from metajax.commands.evaluate import Row
from metajax.config.files import read_config
from metajax.config.plan import PlanSettings
from metajax.config.settings import EvaluateSettings, MetatrainSettings
from metajax.data import (
    EpisodeSpec,
    TaskData,
    TokenizedTask,
    Tokens,
    load_tasks,
    sample_episodes,
)
from metajax.errors import InputError
from metajax.models import Transformer
from metajax.tree import paths

ROOT = Path(__file__).parents[1]
SHARED = {"numbers", "orders", "runs"}
NAMES = sorted({path.stem for path in (ROOT / "experiments").glob("[!_]*.py")} - SHARED)


def test_docstrings_say_what_to_expect():
    assert len(NAMES) > 5
    lacking = [
        f"{name}: {heading}"
        for name in NAMES
        for heading in ("Claim:", "Paper:", "Command:", "Hardware and time:", "Expect:")
        if f"\n{heading} " not in importlib.import_module(f"experiments.{name}").__doc__
    ]
    assert not lacking


@pytest.mark.parametrize(
    "names",
    [
        ["first order"],
        pytest.param([], marks=pytest.mark.slow, id="all"),  # The test below traces these.
    ],
)
def test_sinusoid_takes_a_step(capsys, monkeypatch, names):
    monkeypatch.setattr(sinusoid, "PAPER", {1: 0.67})  # Without training, more inner steps diverge.
    given = ["--algorithms", *names] if names else []
    sinusoid.main(["--steps", "1", "--episodes", "100", *given])
    header, *rows, paper = capsys.readouterr().out.splitlines()
    assert header.split()[-1] == "training"
    assert [row[:16].strip() for row in rows] == (names or list(sinusoid.LEARNERS))
    assert all(row.count("±") + row.count("diverges") == 1 for row in rows)
    assert paper.split() == ["the", "paper", "0.67"]


def test_every_sinusoid_learner_trains_and_adapts():
    """Only traced, because compiling them takes ten seconds."""
    for name, learner in sinusoid.LEARNERS.items():
        meta_params = jax.eval_shape(lambda learner=learner: sinusoid.train(learner, 0, 1))
        task = jax.tree.map(lambda x: x[0], sinusoid.waves(jax.random.key(0), 1, 5, 5))
        algorithm = learner.make(learner.judged[0], 0.01)
        adapt = lambda params, a=algorithm, t=task: a.adapt(params, t.support, None)  # noqa: E731
        adapted, info = jax.eval_shape(adapt, meta_params)
        assert jax.tree.structure(adapted) == jax.tree.structure(sinusoid.init(jax.random.key(0)))
        assert info.support_loss.shape[0] == learner.judged[0], name


def test_sinusoid_anneals_maml_plus_plus(monkeypatch):
    asked, maml_plus_plus = [], metajax.maml_plus_plus

    def ask(*given, **settings):
        asked.append(settings)
        return maml_plus_plus(*given, **settings)

    monkeypatch.setattr(metajax, "maml_plus_plus", ask)
    jax.eval_shape(lambda: sinusoid.train(sinusoid.LEARNERS["maml++"], 0, 1))
    for settings in asked:
        assert isinstance(settings.pop("step"), jax.core.Tracer)
        assert settings == {"multi_step": 7500}
    assert asked


def test_sinusoid_judges_at_learned_rates_alone(capsys, monkeypatch):
    monkeypatch.setattr(sinusoid, "train", lambda *_: None)
    monkeypatch.setattr(sinusoid, "judge", lambda *_: Estimate(0.5, 0.25))
    sinusoid.main([])
    header, *rows, _ = capsys.readouterr().out.splitlines()
    names = [name.strip() for name in header.split("  ") if name]
    assert names == ["squared error", "1 step", "5 steps", "10 steps", "training"]
    judged = {row[:16].strip(): row.count("±") for row in rows}
    assert judged == dict.fromkeys(sinusoid.LEARNERS, 3) | {"meta-sgd": 1, "maml++": 2}


@pytest.mark.parametrize(
    "names",
    [
        ["no inner steps"],
        pytest.param([], marks=pytest.mark.slow, id="all"),  # The tests below trace these.
    ],
)
def test_gradmem_takes_a_step(capsys, names):
    given = ["--methods", *names] if names else []
    sizes = ["--pairs", "2", "--vectors", "1", "--inner-steps", "1", "--steps", "1"]
    gradmem.main(["--seed", "7", "--episodes", "2", *sizes, *given])
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[-1] == "training"
    if not names:
        assert rows.pop().startswith("seed 7: cosine between the meta-gradients of a task")
    assert [row[:16].strip() for row in rows] == (names or list(gradmem.METHODS))
    assert [row.count("±") for row in rows] == ([2] if names else [2, 3, 3])


SIZES = gradmem.Sizes(pairs=3, vectors=2, inner_steps=2, inner_lr=1.0)


def test_the_cosine_between_orders_is_that_of_a_quadratic():
    """After one step on half the weighted squared distance."""

    def loss_fn(params, batch, rng):
        return jnp.sum(batch["scale"] * (params - batch["target"]) ** 2) / 2, {}

    second, first = (
        metajax.maml(loss_fn, optax.sgd(0.5), 1, first_order=flag) for flag in (False, True)
    )
    scale = jnp.array([[1.0, 4.0], [1.0, 3.0]])
    batch = {"scale": scale, "target": jnp.zeros((2, 2))}
    found = orders.cosine(second, first, jnp.array([1.0, 1.0]), metajax.Task(batch, batch))
    # Adapted: 1 - scale / 2. First order: scale times this. Second: (1 - scale / 2) times that.
    adapted = 1 - np.asarray(scale) / 2
    pair = np.asarray(scale) * adapted, np.asarray(scale) * adapted**2
    known = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(*pair)]
    assert found.mean == pytest.approx(np.mean(known), rel=1e-5)


@pytest.mark.parametrize("method", gradmem.METHODS)
def test_every_gradmem_method_trains(method):
    """Only traced, because compiling takes half a minute."""
    outer = gradmem.trainer(SIZES, method)
    trained = jax.eval_shape(lambda: gradmem.train(outer, SIZES, 0, 1))
    assert trained["prefix"]["vectors"].shape == (2, 64)


def test_gradmem_tests_on_tasks_that_training_never_draws():
    tasks = [
        gradmem.draw(jax.random.key(1), 50, 5, held_out=held_out) for held_out in (True, False)
    ]
    for task, held_out in zip(tasks, (True, False)):
        pairs = task.query["input_ids"]
        keys, values = pairs[..., 0], pairs[..., 1] - 10
        assert pairs.shape == (50, 5, 2)
        np.testing.assert_array_equal(task.support["input_ids"], pairs.reshape(50, 1, 10))
        assert all(len(set(row)) == 5 and max(row) < 10 for row in keys.tolist())
        assert values.min() >= 0
        assert values.max() < gradmem.VALUES
        assert ((values.sum(1) % gradmem.VALUES == 0) == held_out).all()
        # The loss is on the values alone.
        np.testing.assert_array_equal(task.query["loss_mask"], (pairs >= 10).astype(int))
        assert task.support["loss_mask"].sum() == 50 * 5


@pytest.mark.parametrize(
    ("experiment", "given", "said"),
    [
        (sinusoid, "--episodes 150", "--episodes 150: give a multiple of 100"),
        (sinusoid, "--episodes 0", "--episodes 0: give a multiple of 100"),
        (sinusoid, "--steps 0", "--steps 0: give 1 or more"),
        (sinusoid, "--seed -1", "--seed -1: give a number from 0 to 4294967295"),
        (gradmem, "--pairs 16 1", "--pairs 1: give 2 or more"),
        (gradmem, "--inner-steps 0", "--inner-steps 0: give 1 or more"),
        (gradmem, "--inner-lr nan", "--inner-lr nan: give a number above 0"),
        (gradmem, "--seed 0 -1", "--seed -1: give a number from 0 to 4294967295"),
        (navigation, "--episodes 0", "--episodes 0: give 1 or more"),
        (navigation, "--trajectories 20 0", "--trajectories 0: give 1 or more"),
        (navigation, "--steps -3", "--steps -3: give 1 or more"),
        (navigation, f"--seed {2**64}", f"--seed {2**64}: give a number from 0 to 4294967295"),
    ],
)
def test_bad_numbers_are_refused(capsys, monkeypatch, experiment, given, said):
    monkeypatch.setattr(experiment, "train", None)  # Nothing is trained before this.
    with pytest.raises(SystemExit) as ended:
        experiment.main(given.split())
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: {said}")


@pytest.fixture
def material(tmp_path):
    """A model, and data sets of intents and GLUE tasks in the real layout."""
    model = tiny.write_model(tmp_path / "bert")
    # A word consists of letters.
    letters = str.maketrans("0123456789", "abcdefghij")
    words = [word.translate(letters) for word in tiny.WORDS]
    (model / "vocab.txt").write_text("\n".join(tiny.SPECIAL + words) + "\n")
    for name in unlabelled.SETS:
        few_shot = tmp_path / name / "few_shot" / "01"
        few_shot.mkdir(parents=True)
        rows = tiny.examples(classes=15, each=40)
        lines = [
            json.dumps({"sentence": text.translate(letters), "label": label})
            for text, label in rows
        ]
        (tmp_path / name / "full.jsonl").write_text("\n".join(lines) + "\n")
        for part, first in {"train": 0, "test": 5, "valid": 10}.items():
            classes = [f"topic{number}" for number in range(first, first + 5)]
            (few_shot / f"labels.{part}.txt").write_text("\n".join(classes) + "\n")
    given = ["--model", str(model), "--steps", "1", "--episodes", "2"]
    given += ["--root", str(tmp_path / "runs")]
    (tmp_path / "intents").symlink_to(tmp_path)
    return SimpleNamespace(root=tmp_path, given=given)


@pytest.mark.slow
def test_documents_take_a_step(tmp_path, capsys, monkeypatch):
    """On packages of tiny files, of which each part has two."""
    files = [(f"package{number}", f"def f{number}(x):\n    return x\n" * 9) for number in range(40)]
    monkeypatch.setattr(documents, "sources", lambda: iter(files))
    monkeypatch.setattr(documents, "LENGTH", 12)
    sizes = {"vocabulary": 300, "width": 16, "blocks": 2, "pretraining": 1, "batch-size": 4}
    sizes |= {"steps": 1, "tasks": 1, "inner-steps": 4}
    given = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    for _ in range(2):  # The second time all is there.
        documents.main(["--root", str(tmp_path / "runs"), "--seeds", "3", *given])
        lines = capsys.readouterr().out.splitlines()
        table = lines[
            lines.index(next(x for x in lines if x.startswith("test packages, seed 3"))) :
        ]
        kinds = ("", ", dynamic evaluation", ", context of 45 tokens")
        names = {f"pretrained longer{kind}" for kind in kinds}
        names |= {"second order", "first order", "first order, as many steps"}
        assert {line[:44].strip() for line in table[1:7]} == names
        [counted] = [line for line in lines if line.startswith("GFLOP: ")]
        cost = {word.split()[-2]: float(word.split()[-1]) for word in counted.split(",")}
        assert cost["second"] > cost["first"] > cost["pretrain"] > 0
        assert cost["wide"] > documents.WIDE * cost["pretrain"]
        [ours] = [line for line in table[1:7] if line.startswith("second order")]
        assert ours.endswith("0.0000 ± 0.0000")
        assert len(table[-1].removeprefix("first order, as many steps").split()) == 4


def _with_process(number):
    return number, os.getpid()


def test_runs_side_by_side_keep_their_order():
    """Each in a process of its own; one alone stays in this process."""
    found = list(runs.side_by_side(_with_process, [3, 1, 2]))
    assert [number for number, _ in found] == [3, 1, 2]
    assert os.getpid() not in {process for _, process in found}
    assert list(runs.side_by_side(_with_process, [5])) == [(5, os.getpid())]


def test_copies_of_training_files_are_not_tested_on():
    train = ["first long line\nsecond long line\n", "third long line\nshort\n"]
    new = [f"new long line {number}" for number in range(7)]
    own = "\n".join([*new, "first long line", "  second long line", "third long line"])
    copied = "\n".join([*new[:6], "first long line", "second long line", "third long line"])
    assert documents.without_copies([own, copied], train) == [own]


def test_packages_are_in_one_part_each():
    found = {
        name: documents.part_of(name) for name, _ in itertools.islice(documents.sources(), 300)
    }
    assert set(found.values()) <= {"train", "valid", "test"}
    assert len(found) > 10


@pytest.mark.slow
def test_navigation_takes_a_step(capsys, monkeypatch):
    monkeypatch.setattr(navigation, "PAPER", {1: -11.68})
    navigation.main(["--steps", "1", "--episodes", "2", "--trajectories", "3"])
    header, *rows, paper = capsys.readouterr().out.splitlines()
    assert header.split() == ["return", "trajectories", "1", "step", "training"]
    assert [row.split()[:2] for row in rows] == [[name, "3"] for name in navigation.METHODS]
    assert not any("nan" in row for row in rows)
    assert paper.split() == ["the", "paper", "40", "-11.68"]


def test_navigation_ends_at_the_goal():
    still = navigation.init(jax.random.key(0)) | {"log_std": jnp.full(2, -10.0)}
    paths = navigation.rollout(still, jnp.array([0.0, 0.005]), jax.random.key(1), 4, 3)
    np.testing.assert_array_equal(paths.alive[:, 0], [True, False, False])
    np.testing.assert_allclose(paths.reward.sum(0), -0.005, atol=1e-4)
    still["layers"][-1]["bias"] = jnp.array([5.0, 0.0])  # Clipped to a velocity of 0.1.
    paths = navigation.rollout(still, jnp.array([0.0, 0.0]), jax.random.key(1), 4, 3)
    assert paths.alive.all()
    np.testing.assert_allclose(paths.reward[:, 0], [-0.1, -0.2, -0.3], atol=1e-4)


def test_navigation_estimates_both_derivatives_of_the_return(monkeypatch):
    """In one step from the origin the action depends only on the last bias and the deviation."""
    monkeypatch.setattr(navigation, "SIZES", (2, 2, 2))
    goal, params = jnp.array([0.1, -0.05]), navigation.init(jax.random.key(0))
    point = jnp.array([0.3, 0.2, -0.3, -0.5])

    def loss(point, key):
        last = params["layers"][-1] | {"bias": point[:2]}
        changed = {"layers": [params["layers"][0], last], "log_std": point[2:]}
        return navigation.loss_fn(changed, goal, key, trajectories=100_000, horizon=1)[0]

    side = jnp.linspace(-5, 5, 501)
    actions = jnp.stack(jnp.meshgrid(side, side), -1)
    reward = -jnp.linalg.norm(0.1 * jnp.clip(actions, -1, 1) - goal, axis=-1)

    def expected_return(point):
        density = jax.scipy.stats.norm.pdf(actions, point[:2], jnp.exp(point[2:])).prod(-1)
        return jnp.sum(reward * density) * (side[1] - side[0]) ** 2

    for derivative, atol in ((jax.grad, 5e-4), (jax.hessian, 2e-3)):
        found = jax.jit(derivative(loss))(point, jax.random.key(1))
        wanted = jax.jit(derivative(expected_return))(point)
        assert abs(wanted).max() > 10 * atol
        np.testing.assert_allclose(-found, wanted, atol=atol)


@pytest.fixture
def asked(monkeypatch):
    """Record the settings of the stages; nothing runs."""
    asked = []

    def train(root, name, stage, **settings):
        runs._STAGES[stage][1](workdir="w", **settings)  # It would refuse unknown settings.
        asked.append(settings)
        return runs.Trained(str(root / name), 1.0)

    def judge(root, model, *methods, **settings):
        EvaluateSettings(model=model, methods=methods, **settings)
        asked.append(settings)
        return [runs.Result(np.zeros(2), 1.0) for _ in methods]

    for module in (intents, transfer, unlabelled, stages, unseen):
        monkeypatch.setattr(module, "trained", train)
        monkeypatch.setattr(module, "judged", judge)
    for module in (intents, unlabelled, stages, unseen):
        monkeypatch.setattr(module, "show", lambda *_: None)
    for module in (intents, transfer, unseen):
        monkeypatch.setattr(module, "exported", lambda run: run.path)
    return asked


@pytest.mark.parametrize("name", ["intents", "unlabelled", "stages", "unseen"])
@pytest.mark.parametrize("part", ["valid", "test"])
def test_no_training_sees_what_is_judged(material, asked, name, part):
    flags = ["--valid"] if part == "valid" else []
    module = importlib.import_module(f"experiments.{name}")
    module.main([*material.given, "--data", str(material.root), *flags])
    trainings = [settings for settings in asked if "steps" in settings]
    judgements = [settings for settings in asked if "episodes" in settings]
    assert trainings
    assert judgements
    assert len(trainings) + len(judgements) == len(asked)
    held_out = set()
    for settings in judgements:
        assert settings["classes"].endswith(f"labels.{part}.txt")
        classes = Path(settings["classes"]).read_text().splitlines()
        rows = map(json.loads, Path(settings["tasks"][0]).read_text().splitlines())
        held_out |= {row["sentence"] for row in rows if row["label"] in classes}
    assert held_out
    for settings in trainings:
        source = settings["tasks" if "tasks" in settings else "text"][0].removeprefix("smlmt:")
        if source.endswith("full.jsonl"):
            assert settings["classes"].endswith("labels.train.txt")
        elif not source.startswith("glue:"):
            assert not held_out & set(Path(source).read_text().splitlines())


def test_sentences_without_labels_are_of_no_held_out_class(material):
    other = material.root / "CLINC150" / "full.jsonl"
    kept, both = "wa wb wc", "wd we wf"
    other.write_text(
        "".join(
            json.dumps({"sentence": text, "label": label}) + "\n"
            for text, label in [(kept, "topic0"), (both, "topic1"), (f"{both.upper()}!", "topic9")]
        )
    )
    unlabelled.write_text(material.root, "01", material.root / "t.txt", ("CLINC150", "HWU64"))
    lines = (material.root / "t.txt").read_text().splitlines()
    assert lines[0] == kept
    assert both not in lines
    rows = map(json.loads, (material.root / "HWU64" / "full.jsonl").read_text().splitlines())
    held_out = {row["sentence"] for row in rows if row["label"] >= "topic5"}
    assert held_out
    assert not held_out & set(lines)


def test_transfer_has_the_defaults_of_metatrain(material, asked):
    given = [*material.given, "--data", str(material.root), "--target", "HWU64", "--shares", "1"]
    transfer.main([*given, "--seeds", "0", "--methods", "protonet", "--defaults"])
    (settings,) = (settings for settings in asked if "algorithm" in settings)
    assert settings["held_out"] == MetatrainSettings.held_out
    assert not settings.keys() & {"steps", "learning_rate"}


def test_glue_can_be_a_further_source_of_transfer(material, asked):
    given = [*material.given, "--data", str(material.root), "--target", "HWU64", "--shares", "1"]
    transfer.main([*given, "--seeds", "0", "--methods", "protonet", "--extra", "glue"])
    (settings,) = (settings for settings in asked if "algorithm" in settings)
    *intents, cola, mrpc, rte, sst2 = settings["tasks"]
    assert len(intents) == 2
    assert (cola, mrpc, rte, sst2) == ("glue:cola", "glue:mrpc", "glue:rte", "glue:sst2")
    assert settings["glue_dir"] == str(material.root / "glue")


def test_sources_of_transfer_are_drawn_by_a_power_of_their_size(material, asked):
    given = [*with_different_sets(material), "--target", "HWU64", "--shares", "1"]
    file = material.root / "CLINC150" / "full.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:30]))
    for power in ("0", "2"):
        transfer.main([*given, "--seeds", "0", "--methods", "protonet", "--power", power])
    weights = [settings["source_weights"] for settings in asked if "algorithm" in settings]
    assert weights == [(1.0, 1.0), (240.0**2, 30.0**2)]


def sentences(files):
    """Return the letters of the sentences of data sets and plain texts."""
    lines = [line for file in files for line in Path(file).read_text().splitlines()]
    return {unlabelled.letters(x if x[0] != "{" else json.loads(x)["sentence"]) for x in lines}


@pytest.mark.parametrize("valid", [False, True])
def test_no_source_of_transfer_has_a_sentence_of_the_sets_left_out(material, asked, capsys, valid):
    own = {name: f"wa {letter}" for name, letter in zip(transfer.SETS, ("wb", "wc", "wd"))}
    for name, sentence in own.items():
        rows = [(sentence, "topic0"), ("we", "topic1")]
        rows += [("Wf!" if name == "HWU64" else "wf", "topic1")]
        lines = [json.dumps({"sentence": text, "label": label}) + "\n" for text, label in rows]
        (material.root / name / "full.jsonl").write_text("".join(lines))
    given = [*material.given, "--data", str(material.root), "--target", "CLINC150", "--shares", "1"]
    given += ["--multi-task", "--seeds", "3", "4", *(["--valid"] if valid else [])]
    transfer.main([*given, "--extra", "words", "--methods", "protonet"])
    trainings = [settings for settings in asked if "steps" in settings]
    judgements = [settings for settings in asked if "episodes" in settings]
    # Four weights (two seeds each) and the original ones, with 2 kinds of 3 numbers of shots.
    assert (len(trainings), len(judgements)) == (4, 5 * 6)
    assert {settings["seed"] for settings in trainings} == {3, 4}
    tested = "BANKING77" if valid else "CLINC150"
    (left_out,) = {settings["tasks"] for settings in judgements}
    assert sentences(left_out) == set(map(unlabelled.letters, (own[tested], "we", "wf")))
    kept = {"HWU64"} | (set() if valid else {"BANKING77"})
    for settings in trainings:
        files = [file.removeprefix("smlmt:") for file in settings["tasks"]]
        assert sentences(files) == {unlabelled.letters(own[name]) for name in kept}
    assert f"HWU64: 2 of 3 sentences are also in {'BANKING77 or ' if valid else ''}CLINC150" in (
        capsys.readouterr().out
    )


def test_transfer_tests_on_some_sentences_of_each_class(material, monkeypatch):
    monkeypatch.setattr(transfer, "PER_CLASS", 7)
    [task] = load_tasks([transfer.write_target(material.root, "HWU64", material.root)])
    assert np.bincount(task.labels).tolist() == [7] * 15
    [every] = load_tasks([str(material.root / "HWU64" / "full.jsonl")])
    label_of = {x: every.label_names[n] for x, n in zip(every.texts, every.labels)}
    assert all(label_of[x] == task.label_names[n] for x, n in zip(task.texts, task.labels))


def test_an_average_of_weights_is_between_them(material, monkeypatch):
    monkeypatch.setattr(transfer, "exported", lambda run: run.path)
    start, end = (tiny.write_model(material.root / f"weights{n}", seed=n) for n in (1, 2))
    run = runs.Trained(str(end), 1.0)
    assert transfer.averaged(str(start), run, 1) == str(end)
    quarter = transfer.averaged(str(start), run, 0.25)
    before, after, mean = (metajax.from_pretrained(str(x))[1] for x in (start, end, quarter))
    expected = jax.tree.map(lambda a, b: a + (b - a) / 4, before, after)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), mean, expected)


def test_transfer_compares_with_the_same_classifier_of_the_original_weights(
    material, monkeypatch, capsys
):
    found = {"plain": [0.5, 0.25], "one": [0.75, 0.25], "two": [0.5, 0.5]}

    def judge(root, model, *methods, **settings):
        offsets = {"prototypes": 0.0, "linear": 0.25, "knn": 0.5}
        return [runs.Result(np.array(found[model]) + offsets[method], 1.0) for method in methods]

    monkeypatch.setattr(transfer, "judged", judge)
    options = Namespace(root="r", heads=["prototypes", "linear"], baselines=["knn"])
    weights = {"original": ["plain"], "protonet": ["one", "two"]}
    transfer.compare(options, weights, "CLINC150", tasks=("t",))
    _, *rows = capsys.readouterr().out.splitlines()
    assert [row[:48].strip() for row in rows] == [
        *("original, prototypes", "original, linear", "original, knn"),
        *("protonet, prototypes", "protonet, linear"),
    ]
    for row, accuracy in zip(rows[3:], ("50.00", "75.00")):
        # The leads are (0.25, 0) and (0, 0.25), so 0.125 for both draws in the mean.
        words = row[48:].split()
        assert words[0] == accuracy
        assert words[3:] == ["12.50", "±", "0.00", "+12.50", "+12.50"]


def test_drift_measures_by_the_nearest_prototype():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4, 15, 3)) + 2 * rng.normal(size=(4, 1, 3))
    [found] = drift.accuracies(features, 5, 1)
    rows = drift.generator(0, "draw", 5, 0).permuted(np.tile(np.arange(15), (4, 1)), axis=1)
    means = np.stack([features[c, rows[c, :5]].mean(0) for c in range(4)])
    right = [
        np.linalg.norm(features[c, n] - means, axis=1).argmin() == c
        for c in range(4)
        for n in rows[c, 5:]
    ]
    assert 0.3 < np.mean(right) < 1
    assert found == np.mean(right)


def test_drift_measures_cosines_within_and_between_classes(monkeypatch):
    features = np.random.default_rng(0).normal(size=(3 * 15, 4))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    monkeypatch.setattr(drift, "features_of", lambda *_: features)
    measured = drift.measure(None, None, {"CLINC150": drift.Pool(None, 3)}, 1)["CLINC150"]
    cosines, same = features @ features.T, np.kron(np.eye(3), np.ones((15, 15)))
    apart = same - np.eye(45)
    np.testing.assert_allclose(measured["within"], (cosines * apart).sum() / apart.sum())
    np.testing.assert_allclose(measured["between"], (cosines * (1 - same)).sum() / (1 - same).sum())
    blocks = cosines.reshape(3, 15, 3, 15).mean((1, 3))
    nearest = [blocks[0, 1:].max(), blocks[1, ::2].max(), blocks[2, :2].max()]
    np.testing.assert_allclose(measured["nearest"], np.mean(nearest))


def test_drift_mixes_the_classes_of_data_sets():
    parts = [
        TokenizedTask("a", tokens_of([3, 1]), np.array([1, 0]), ("x", "y"), rows_of([1], [0])),
        TokenizedTask(
            "b", tokens_of([1, 2, 5]), np.array([0, 0, 1]), ("x", "z"), rows_of([0, 1], [2])
        ),
    ]
    mixed = drift.mix(parts)
    assert mixed.label_names == ("a x", "a y", "b x", "b z")
    assert [rows.tolist() for rows in mixed.rows_by_class] == [[1], [0], [2, 3], [4]]
    assert mixed.labels.tolist() == [1, 0, 2, 2, 3]
    assert mixed.tokens.lengths.tolist() == [3, 1, 1, 2, 5]
    expected = np.pad(parts[0].tokens.input_ids, [(0, 0), (0, 2)])
    np.testing.assert_array_equal(mixed.tokens.input_ids[:2], expected)
    np.testing.assert_array_equal(mixed.tokens.input_ids[2:], parts[1].tokens.input_ids)


def train_tiny(monkeypatch, variant, steps):
    """The start, and what each step of a variant yields, on two data sets of five classes."""
    monkeypatch.setattr(drift, "TEXTS", 24)
    tasks = []
    for first in range(2):
        tokens = tokens_of([4] * 40)
        tokens = tokens._replace(input_ids=tokens.input_ids + 40 * first)
        labels, names = np.arange(40) % 5, tuple("abcde")
        rows = rows_of(*(np.flatnonzero(labels == label) for label in range(5)))
        tasks.append(TokenizedTask(f"set {first}", tokens, labels, names, rows))
    model = Transformer(tiny.CONFIG, pooling="mean")
    start = model.init(jax.random.key(0))
    return start, list(drift.train(model, start, tasks, variant, steps, 0))


def tasks_of_steps(monkeypatch, variant, steps):
    """The tasks of each step."""
    fake = SimpleNamespace(
        init=lambda start, key: SimpleNamespace(meta_params=start),
        step=lambda state, tasks: (state, tasks),
    )
    monkeypatch.setattr(metajax, "outer_loop", lambda *args, **settings: fake)
    return [tasks for _, tasks in train_tiny(monkeypatch, variant, steps)[1]]


def with_different_sets(material):
    """Write sets of intents that share no sentence; return the flags to read them."""
    for seed, name in enumerate(transfer.SETS):
        rows = [
            {"sentence": x, "label": y} for x, y in tiny.examples(classes=6, each=40, seed=seed)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (material.root / name / "full.jsonl").write_text(lines)
    return [*material.given[:2], "--data", str(material.root), "--root", f"{material.root}/drift"]


def test_drift_mixes_only_where_there_are_two_data_sets(material, monkeypatch, capsys):
    monkeypatch.setattr(drift, "run", lambda *_: [])
    monkeypatch.setattr(drift, "measure", lambda *_: {})
    monkeypatch.setattr(drift, "show", lambda title, *_: print(title))
    monkeypatch.setattr(drift, "summary", lambda *_: None)
    given = with_different_sets(material)
    for sets in (["CLINC150"], ["CLINC150", "HWU64"]):
        drift.main([*given, "--train", *sets])
        assert ("mixed sets, seed 0" in capsys.readouterr().out) == (len(sets) == 2)
    with pytest.raises(SystemExit):
        drift.main([*given, "--variants", "mixed sets"])
    assert "--variants mixed sets: needs two data sets; name two" in capsys.readouterr().err


def test_drift_alternates_between_numbers_of_ways(monkeypatch):
    steps = tasks_of_steps(monkeypatch, drift.Variant(ways=(2, 4), queries=2), 4)
    assert [tasks.support["labels"].shape for tasks in steps] == [(4, 2), (2, 4)] * 2


def test_drift_alternates_between_numbers_of_shots(monkeypatch):
    steps = tasks_of_steps(monkeypatch, drift.Variant(ways=(3,), shots=(1, 3), queries=1), 4)
    assert [tasks.support["labels"].shape for tasks in steps] == [(4, 3), (2, 9)] * 2


def test_all_variants_of_drift_have_as_many_texts_in_a_step():
    for variant in drift.VARIANTS.values():
        for ways, shots in itertools.product(variant.ways, variant.shots):
            assert drift.TEXTS % (ways * (shots + variant.queries)) == 0


@pytest.mark.parametrize("mixed", [False, True])
def test_drift_mixes_data_sets_in_an_episode(monkeypatch, mixed):
    steps = tasks_of_steps(monkeypatch, drift.Variant(ways=(4,), queries=2, mixed=mixed), 4)
    sets = [
        len(np.unique(ids[ids > 0] > 40))
        for tasks in steps
        for ids in np.asarray(tasks.support["input_ids"])
    ]
    assert max(sets) == (2 if mixed else 1)


def test_drift_has_the_names_of_classes_as_support_examples(tmp_path):
    model, _ = metajax.from_pretrained(tiny.write_model(tmp_path))
    tasks, names = [], ("w80_w70", "w81_w70", "w82_w70")
    for first in range(2):
        tokens = tokens_of([3, 5, 4] * 4)
        tokens = tokens._replace(input_ids=tokens.input_ids + first)
        labels = np.arange(12) // 3 % 3
        rows = rows_of(*(np.flatnonzero(labels == label) for label in range(3)))
        plain = TokenizedTask(f"set {first}", tokens, labels, names[::-1] if first else names, rows)
        tasks.append(drift.with_names(plain, model.tokenizer))
    spec = EpisodeSpec(ways=2, shots=1, queries=2)
    sampler = drift.name_sampler(tasks, spec, 0, 3, 10)
    for step in range(4):
        drawn, found = sample_episodes(tasks, spec, 0, step, 3), sampler(step)
        for t, task in enumerate(drawn.task):
            ids = found.support["input_ids"][t].reshape(-1)
            firsts = found.support["first_token"][t]
            named = [int(ids[first + 1]) - 5 for first in firsts]
            assert {int(ids[first + 2]) - 5 for first in firsts} == {70}
            for way, word in enumerate(named):
                [label] = {*tasks[task].labels[drawn.query[t][drawn.query_labels[t] == way]]}
                assert tasks[task].label_names[label] == f"w{word}_w70"
            assert set(np.asarray(found.query["input_ids"][t]).flat) <= {*range(8)}


def test_drift_measures_the_mean_of_the_weights_after_each_step(monkeypatch):
    metrics = SimpleNamespace(query_loss=0.0, query_aux={"accuracy": 0.0})
    steps = [({"w": jnp.array([value])}, metrics) for value in (1.0, 2.0, 6.0)]
    monkeypatch.setattr(drift, "train", lambda *_: iter(steps))
    monkeypatch.setattr(drift, "measure", lambda model, params, *_: {"w": float(params["w"][0])})
    material = drift.Material(None, {"w": jnp.array([2.0])}, [], {})
    rows = drift.run(Namespace(steps=3, draws=1), material, drift.Variant(), 0)
    found = {row["at"]: row["w"] for row in rows}
    assert found["mean of all steps"] == pytest.approx(3.0)
    assert found["0.5 of the way"] == pytest.approx(4.0)


def test_drift_trains_only_adapters_with_lora(monkeypatch):
    start, steps = train_tiny(monkeypatch, drift.Variant(ways=(4,), queries=2, lora=2), 2)
    end, _ = steps[-1]
    changed = {
        path: bool((old != new).any())
        for path, old, new in zip(paths(start), jax.tree.leaves(start), jax.tree.leaves(end))
    }
    assert changed == {path: drift.is_block_kernel(path) for path in changed}


def tokens_of(lengths):
    ids = np.tri(len(lengths), max(lengths), dtype=np.int32) + 5
    ids[np.arange(max(lengths)) >= np.array(lengths)[:, None]] = 0
    return Tokens(ids, np.zeros_like(ids, np.int8), np.array(lengths), truncated=0)


def rows_of(*rows):
    return tuple(map(np.array, rows))


def test_drift_trains_lower_blocks_more_slowly():
    params = {
        "embeddings": {"word": jnp.ones((4, 3))},
        "layers": {"kernel": jnp.ones((3, 2, 2)), "bias": jnp.ones((3, 2))},
    }
    updates = []
    for rates in (1.0, 0.5):
        optimizer = drift.optimizer_of(drift.Variant(block_rates=rates), params, 10)
        state = optimizer.init(params)
        for _ in range(2):  # The rate of the first step is 0.
            update, state = optimizer.update(params, state, params)
        updates.append(update)
    plain, slower = updates
    assert (plain["layers"]["bias"] < 0).all()
    np.testing.assert_allclose(slower["embeddings"]["word"], plain["embeddings"]["word"] / 8)
    for name in ("kernel", "bias"):
        for block, share in enumerate((0.25, 0.5, 1)):
            expected = share * plain["layers"][name][block]
            np.testing.assert_allclose(slower["layers"][name][block], expected)


@pytest.mark.slow
def test_drift_and_transfer_take_a_step(material, capsys):
    given = with_different_sets(material)
    asked = [*given, "--steps", "2", "--draws", "2", "--variants"]
    asked += ["tutorial", "pull 0.05", "lora 8, rate 5e-4", "block rates 0.7", "5 to 20 ways"]
    asked += ["mixed sets", "label names", "--train", "CLINC150", "HWU64"]
    drift.main(asked)
    table = capsys.readouterr().out
    assert "run pull 0.05 seed 0" in table
    drift.main(asked)
    again = capsys.readouterr().out
    assert [line for line in table.splitlines() if not line.startswith("run ")] == (
        again.splitlines()
    )
    assert "0.5 of the way" in again
    given = [*material.given, "--data", str(material.root), "--seeds", "0", "--draws", "2"]
    given += ["--methods", "protonet", "--heads", "prototypes", "--baselines", "--shots", "1"]
    transfer.main(given)
    printed = capsys.readouterr().out.splitlines()
    title, *rows = [line for line in printed if not line.startswith("evaluate ")][-4:]
    assert title.startswith("BANKING77, 5-way, 1-shot")
    assert [row[:48].strip() for row in rows] == [
        "original, prototypes",
        "protonet, prototypes",
        "protonet, 0.5 of the way, prototypes",
    ]


def test_other_settings_data_or_weights_are_judged_anew(material, monkeypatch, tmp_path):
    judged = []

    def judge(settings):
        judged.append(settings)
        row = dict.fromkeys(Row._fields, 0) | {"accuracies": [0.5, 1.0], "seconds": 2.0}
        Path(settings.output).write_text(json.dumps([row]))

    monkeypatch.setattr(runs, "evaluate", judge)
    model = tmp_path / "bert"
    asked = runs.of_classes(tmp_path / "HWU64", "01", "test")
    for _ in range(2):
        (result,) = runs.judged(tmp_path, str(model), "knn", **asked)
        np.testing.assert_array_equal(result.accuracies, [0.5, 1.0])
    assert len(judged) == 1
    runs.judged(tmp_path, str(model), "knn", **asked, shots=2)
    assert len(judged) == 2
    tiny.write_model(model, head="encoder")
    runs.judged(tmp_path, str(model), "knn", **asked)
    assert len(judged) == 3
    with (tmp_path / "HWU64" / "full.jsonl").open("a") as file:
        file.write('{"sentence": "wa", "label": "topic5"}\n')
    runs.judged(tmp_path, str(model), "knn", **asked)
    assert len(judged) == 4
    with Path(asked["classes"]).open("a") as file:
        file.write("topic0\n")
    runs.judged(tmp_path, str(model), "knn", **asked)
    assert len(judged) == 5
    draws = tmp_path / "draws"
    draws.mkdir()
    for text in ("w1", "w2"):
        (draws / "0.txt").write_text(text)
        runs.judged(tmp_path, str(model), "knn", **asked, splits=str(draws))
    assert len(judged) == 7
    for seconds in (1, 2):  # The same run, made again.
        (model / "metrics.jsonl").write_text(f'{{"seconds": {seconds}}}\n')
        runs.judged(tmp_path, str(model), "knn", **asked)
    assert len(judged) == 9


def test_methods_are_compared_episode_by_episode(capsys, tmp_path):
    best = np.array([0.6, 0.8, 1.0, 0.6])
    found = {"other": runs.Result(best - [0.2, 0, 0.2, 0], 2.0), "best": runs.Result(best, 1.0)}
    options = Namespace(seed=1, valid=True, root=str(tmp_path))
    runs.show(options, found, "episodes")
    title, *rows = capsys.readouterr().out.splitlines()
    assert title.startswith("episodes, seed 1, valid ")
    assert [row.split()[0] for row in rows] == ["best", "other"]
    # The deviation of (0.2, 0, 0.2, 0) is 0.2 / sqrt(3), and Student's t of three is 3.182.
    assert " ".join(rows[1].split()[4:7]) == "10.00 ± 18.37"
    (picture,) = tmp_path.glob("episodes-seed-1-valid-*.svg")
    assert "other" in picture.read_text()
    assert picture.with_suffix(".png").is_file()


def test_second_order_is_compared_with_first(material, monkeypatch, capsys):
    values = iter([0.5, 0.25, 0.75, 0.25])  # In the order of the methods.
    monkeypatch.setattr(intents, "trained", lambda root, name, *_, **__: runs.Trained(name, 1.0))
    judge = lambda *_, **__: [runs.Result(next(values) + np.array([0, 0.2]), 1.0)]  # noqa: E731
    monkeypatch.setattr(intents, "judged", judge)
    monkeypatch.setattr(intents, "show", lambda *_: None)
    methods = ["proto-maml", "first-order proto-maml", "maml", "first-order maml"]
    given = [*material.given, "--data", str(material.root), "--baselines", "--methods", *methods]
    intents.main(given)
    assert capsys.readouterr().out.splitlines() == [
        "proto-maml ahead of first order by 25.00 ± 0.00",
        "maml ahead of first order by 50.00 ± 0.00",
    ]


def test_wrong_input_to_an_experiment_is_one_line(material, monkeypatch, capsys):
    given = [*material.given, "--data", str(material.root), "--split", "09"]
    for main in (unlabelled.main, intents.main):
        with pytest.raises(SystemExit) as end:
            runs.command(lambda main=main: main(given))
        assert end.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "labels.train.txt" in line


@pytest.mark.slow
def test_intents_and_unlabelled_take_a_step(material, capsys):
    given, methods = [*material.given, "--data", str(material.root)], ["protonet", "anil"]
    asked = [*given, "--methods", *methods, "--baselines", "linear"]
    intents.main(asked)
    table = capsys.readouterr().out.splitlines()[-4:]
    assert table[0].startswith("BANKING77 01, 1-shot")
    assert {line[:32].strip() for line in table[1:]} == {*methods, "linear, untrained"}
    # Everything is kept: the same command prints the same table, and runs nothing.
    intents.main(asked)
    again = capsys.readouterr().out.splitlines()
    assert again[-4:] == table
    assert not any(line.startswith("evaluate") for line in again)
    unlabelled.main([*given, "--sets", "HWU64"])
    assert "hidden words" in capsys.readouterr().out


@pytest.mark.slow
def test_unseen_and_stages_take_a_step(material, capsys, monkeypatch):
    stages.main([*material.given, "--data", str(material.root)])
    rows = capsys.readouterr().out.splitlines()[-6:]
    names = {
        "original weights",
        "original weights, prototypes",
        "pretrained",
        "fine-tuned",
        "meta-trained",
        "all three",
    }
    assert {row[:32].strip() for row in rows} == names

    tiny.write_glue(material.root / "glue")
    monkeypatch.setattr(unseen, "GLUE", ("mrpc",))
    sizes = ["--ways", "2", "3", "--shots", "4", "--root", str(material.root / "unseen")]
    unseen.main([*material.given, "--data", str(material.root), *sizes])
    out = capsys.readouterr().out
    assert "2-way 4-shot" in out
    assert "3-way 4-shot" in out
    assert out.count("fine-tuned on GLUE, prototypes") == 2
    unseen.main([*material.given, "--data", str(material.root), *sizes, "--set", "docstrings"])
    assert "docstrings, 3-way 4-shot" in capsys.readouterr().out


@pytest.fixture
def published(tmp_path):
    """GLUE with MRPC and MNLI, support sets in LEOPARD's format, a model and a config, all tiny."""
    glue = tiny.write_glue(tmp_path / "glue")
    (glue / "MNLI").mkdir()
    labels = itertools.cycle(("entailment", "neutral", "contradiction"))
    rows = [(*text.split(" ", 1), next(labels)) for text, _ in tiny.examples(1, 24)]
    lines = ["sentence1\tsentence2\tgold_label", *map("\t".join, rows)]
    (glue / "MNLI" / "train.tsv").write_text("\n".join(lines) + "\n")
    for task, classes in {"pairs": 2, "texts": 4}.items():
        folder = tmp_path / "json" / task
        folder.mkdir(parents=True)
        for name, first in (("train_0_4", 1), ("train_1_4", 2), ("train_0_16", 3), ("eval", 4)):
            rows = [
                {"sentence1": text, "label": label, "processed_sent": "[CLS]"}
                | ({"sentence2": "w3 w4"} if task == "pairs" else {})
                for text, label in tiny.examples(classes, 3, seed=first)
            ]
            (folder / f"{task}_c_{name}.json").write_text(json.dumps(rows))
    settings = {"inner_steps": 1, "ways": 3, "shots": 1, "queries": 1, "meta_batch_size": 2}
    settings |= {"algorithm": "maml", "max_length": 16}
    lines = [f"{name}: {value}" for name, value in settings.items()]
    (tmp_path / "step.yaml").write_text("\n".join(lines) + "\n")
    given = ["--model", tiny.write_model(tmp_path / "bert"), "--draws", tmp_path / "json"]
    given += ["--config", tmp_path / "step.yaml", "--glue", "mrpc", "mnli", "--glue-dir", glue]
    given += ["--tasks", "pairs", "texts", "--shots", "4", "--steps", "1", "--test-steps", "1"]
    return SimpleNamespace(root=tmp_path, given=[*map(str, given), "--root", f"{tmp_path}/runs"])


@pytest.mark.slow
def test_leopard_takes_a_step(published, capsys):
    leopard.main([*published.given, "--tasks", "pairs"])
    *_, task, mean, _, _ = capsys.readouterr().out.splitlines()
    assert task.startswith("pairs")
    assert mean.startswith("mean over 1 tasks")
    assert 0 <= float(task[28:]) == float(mean[28:]) <= 100


def test_leopard_takes_the_number_of_steps_from_the_command_line(published, capsys):
    config = published.root / "step.yaml"
    config.write_text(config.read_text() + "steps: 500\n")
    with pytest.raises(SystemExit) as end:
        leopard.main(published.given)
    assert end.value.code == 2
    assert f"{config}: steps: give --steps instead" in capsys.readouterr().err


def test_leopard_asks_for_the_same_again(published, monkeypatch, capsys):
    asked, accuracies = [], {"pairs": (0.5, 0.25), "texts": (1.0, 0.75)}

    def train(root, name, stage, **settings):
        runs._STAGES[stage][1](workdir="w", **settings)
        asked.append((stage, settings))
        return runs.Trained(str(root / name), 1.0)

    def judge(root, model, method, **settings):
        EvaluateSettings(model=model, methods=(method,), **settings)
        asked.append((method, settings))
        return [SimpleNamespace(accuracies=accuracies[Path(settings["tasks"][0]).parent.name])]

    monkeypatch.setattr(leopard, "trained", train)
    monkeypatch.setattr(leopard, "evaluated", judge)
    text = str(tiny.write_text(published.root / "text.txt"))
    for _ in range(2):
        leopard.main([*published.given, "--text", text])
        head, *rows = capsys.readouterr().out.splitlines()
        assert head.split() == ["accuracy", "4", "examples"]
        assert {row[:28].strip(): float(row[28:]) for row in rows} == {
            "pairs": 37.5,
            "texts": 87.5,
            "mean over 2 tasks": 62.5,
            "MAML (PACMAML's paper)": 48.21,
            "PACMAML": 51.58,
        }
    (_, pretraining), (_, training), (_, pairs), (_, texts) = asked[:4]
    assert asked[4:] == asked[:4]
    assert pretraining["model"] == str(published.root / "bert")
    assert pretraining["text"] == (text,)
    assert training["model"] == str(published.root / "runs" / "pretrain")
    assert training["whole_tasks"]
    loaded = load_tasks(training["tasks"], glue_dir=training["glue_dir"])
    assert [len(task.label_names) for task in loaded] == [2, 3, 2, 2, 2]
    columns = {"text_column": "sentence1"}
    assert columns.items() <= texts.items()
    assert "pair_column" not in texts
    assert (columns | {"pair_column": "sentence2"}).items() <= pairs.items()
    names = sorted(file.name for file in Path(pairs["splits"]).iterdir())
    assert names == ["pairs_c_train_0_4.json", "pairs_c_train_1_4.json"]
    assert pairs["tasks"] == (str(published.root / "json" / "pairs" / "pairs_c_eval.json"),)
    assert {"inner_steps": 1, "max_length": 16}.items() <= pairs.items()


def test_each_pair_of_classes_is_a_task_of_leopard(tmp_path):
    names = ("-", "contradiction", "entailment", "neutral")
    snli = TaskData(
        "snli", ["a", "b", "c", "d"], ["p", "q", "r", "s"], np.array([3, 0, 1, 2]), names
    )
    tasks = load_tasks(leopard.sub_tasks(snli, tmp_path / "snli"))
    assert [(task.texts, task.pairs, task.label_names) for task in tasks] == [
        (["a", "c", "d"], ["p", "r", "s"], names[1:]),
        (["c", "d"], ["r", "s"], ("contradiction", "entailment")),
        (["a", "c"], ["p", "r"], ("contradiction", "neutral")),
        (["a", "d"], ["p", "s"], ("entailment", "neutral")),
    ]


def test_leopard_reads_all_support_sets_before_it_trains(published, monkeypatch):
    monkeypatch.setattr(leopard, "trained", None)
    message = r"json/nope: has 0 files \*_eval.json and 0 files \*_train_\*_4.json; give --draws"
    with pytest.raises(InputError, match=message):
        leopard.main([*published.given, "--tasks", "pairs", "nope"])
    file = published.root / "json" / "texts" / "texts_c_train_1_4.json"
    file.write_text(file.read_text().replace("topic3", "topic2"))
    with pytest.raises(InputError, match=r"texts_c_train_1_4.json: has other classes than"):
        leopard.main(published.given)


@pytest.mark.parametrize("machine", ["h100", "v5e-8"])
def test_the_plan_of_leopard_is_of_the_step_that_it_trains(machine):
    file = ROOT / "experiments" / f"leopard-{machine}.yaml"
    planned = read_config(file, PlanSettings)
    assert planned == read_config(file, MetatrainSettings)
    PlanSettings(model="m", **planned)
    assert planned["ways"] == 3  # The classes of MNLI and SNLI, with --whole-tasks.
    assert planned["meta_batch_size"] % 8 == 0
