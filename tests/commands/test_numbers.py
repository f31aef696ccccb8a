"""Check the numbers of the training stages against a second computation.

Most tests prepare a stage as its command does, and then look at its batches and measurements
instead of training.
"""

import importlib
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.metrics
import tiny

from metajax import data
from metajax.algorithms.supervised import supervised
from metajax.commands.finetune import GLUE_METRICS
from metajax.commands.pretrain import held_out_loss
from metajax.config.settings import MetatrainSettings
from metajax.runs.few_shot import open_few_shot
from metajax.runs.task_data import tokenized
from metajax.types import Task
from tests.stage_commands import finetune_command, metatrain_command, pretrain_command

SEED = 3


@pytest.fixture
def ready(monkeypatch):
    """Prepare a stage with its command, and return the arguments of `train`."""

    def get(*command):
        caught = []
        module = importlib.import_module(f"metajax.commands.{command[0]}")
        with monkeypatch.context() as patch:
            patch.setattr(module, "train", lambda *given: caught.append(given) or {})
            tiny.succeed(*command)
        return caught[0]

    return get


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def moved(params):
    """Other parameters than those that a stage starts from."""

    def move(leaf):
        return leaf + 0.1 * np.cos(np.arange(leaf.size, dtype=np.float32)).reshape(leaf.shape)

    return jax.tree.map(move, params)


def draws(stage, params):
    """Return whether a step draws random numbers, which means dropout."""
    task = jax.tree.map(lambda leaf: leaf[0], stage.make_tasks(0))
    program = jax.make_jaxpr(stage.algorithm.meta_grad)(params, task, jax.random.key(0))
    return "random_bits" in str(program)


def cross_entropy(logits, labels):
    logits = np.asarray(logits, np.float64)
    return scipy.special.logsumexp(logits, axis=-1) - np.take_along_axis(
        logits, labels[..., None], -1
    ).squeeze(-1)


def test_pretrain_masks_and_measures_as_it_is_told(ready, material, tmp_path):
    """With words of two tokens, so that whole words make a difference."""
    bert = tiny.write_model(tmp_path / "bert")
    vocabulary = (bert / "vocab.txt").read_text().replace("w89\n", "##x\n")
    (bert / "vocab.txt").write_text(vocabulary)
    text = tiny.write_text(tmp_path / "text.txt", lines=40)
    text.write_text(text.read_text().replace(" ", "x ").replace("w89", "w8"))
    own = SimpleNamespace(bert=bert, text=text)
    changes = {"seed": SEED, "mask_rate": 0.3, "held_out": 0.2, "parts": 2}
    command = pretrain_command(own, tmp_path / "run", **changes)
    stage, params = ready(*command, "--whole-word")
    tokenizer = stage.model.tokenizer
    blocks = data.pack_blocks(data.read_lines((str(text),)), tokenizer, 16)
    training, held_out = data.held_out(blocks, SEED, 0.2)
    rule = data.mask_rule(tokenizer, rate=0.3, whole_word=True)
    for step in (0, 7):
        batch = data.pretraining_batch(training, rule, SEED, step, 4)
        halves = {key: np.stack([leaf[:2], leaf[2:]]) for key, leaf in batch.items()}
        assert_same(stage.make_tasks(step), Task(None, halves))
    batch = data.mask_tokens(held_out, rule, SEED, 0)
    assert len(batch["targets"]) > 4
    assert draws(stage, params)
    params = moved(params)
    logits = np.asarray(jax.jit(stage.model)(params, batch).logits)
    there = batch["targets"] >= 0
    loss = cross_entropy(logits[there], batch["targets"][there]).mean()
    found = stage.measure(params)
    assert found == pytest.approx(
        {
            "loss": loss,
            "perplexity": math.exp(loss),
            "accuracy": (logits.argmax(-1) == batch["targets"])[there].mean(),
        },
        rel=1e-4,
    )
    assert stage.num_steps == 6


def test_held_out_loss_is_the_mean_over_targets():
    """The batches have different numbers of targets, and the last one repeats blocks."""
    rng = np.random.default_rng(0)
    count, length = 41, 12
    ids = rng.integers(5, 90, size=(count, length)).astype(np.int32)
    maskable = np.arange(length) < rng.integers(1, length + 1, size=(count, 1))
    maskable[32:] &= np.arange(length) < 3
    blocks = data.Blocks(ids, np.ones_like(ids), maskable, maskable)
    rule = data.MaskRule(4, np.arange(5, 90, dtype=np.int32), 0.5)

    def loss_fn(params, batch, rng):
        weights = batch["targets"] >= 0
        number = weights.sum()
        mean = lambda values: (values * weights).sum() / number  # noqa: E731
        right = mean(batch["targets"] % 2)
        return params * mean(batch["targets"]), {"accuracy": right, "count": number * 1.0}

    found = held_out_loss(supervised(loss_fn), jnp.float32(0.01), blocks, rule, SEED)
    batches = [
        data.mask_tokens(data.take(blocks, slice(first, last)), rule, SEED, step)["targets"]
        for first, last, step in ((0, 32, 0), (9, 41, 32))
    ]
    targets = np.concatenate([each[each >= 0] for each in batches])
    assert found == pytest.approx(
        {
            "loss": targets.mean() / 100,
            "perplexity": math.exp(targets.mean() / 100),
            "accuracy": (targets % 2).mean(),
        },
        rel=1e-5,
    )


@pytest.mark.parametrize(
    ("changes", "more", "spec"),
    [
        ({"ways": 3, "shots": 2, "queries": 3, "seed": SEED}, (), data.EpisodeSpec(3, 2, 3)),
        ({"ways": 2, "shots": 1, "queries": 4}, ("--whole-tasks",), data.EpisodeSpec(None, 1, 4)),
    ],
)
def test_metatrain_draws_the_episodes_that_were_asked_for(
    ready, material, tmp_path, changes, more, spec
):
    changes = changes | {"meta_batch_size": 3, "steps": 5, "max_length": 6}
    stage, _ = ready(*metatrain_command(material, tmp_path / "run", **changes), *more)
    tasks = data.load_tasks([str(material.intents)])
    examples = tokenized(tasks, stage.model, 6)
    seed = changes.get("seed", 0)
    plan = data.plan_episodes(examples, spec, seed, 3, 5)
    for step in (0, 4):
        drawn = data.sample_episodes(examples, spec, seed, step, 3)
        assert_same(stage.make_tasks(step), data.gather(examples, drawn, plan))
    assert stage.num_steps == 5
    assert stage.model.num_labels == (6 if more else 3,)


def test_metatrain_measures_on_episodes_that_no_step_sees(ready, material, tmp_path):
    changes = {"seed": SEED, "steps": 5, "inner_steps": 0}
    stage, params = ready(*metatrain_command(material, tmp_path / "run", **changes))
    model = stage.model
    examples = tokenized(data.load_tasks([str(material.intents)]), model, 32)
    spec = data.EpisodeSpec(3, 1, 3)
    drawn = data.sample_episodes(examples, spec, SEED, 5, 32)
    tasks = data.gather(examples, drawn, data.plan_episodes(examples, spec, SEED, 32, 2))
    settings = MetatrainSettings(model="m", tasks=("t",), workdir="w", inner_steps=0)
    few_shot = open_few_shot(str(material.bert), settings, settings, 3)
    algorithm = few_shot.algorithm()

    @jax.jit
    def guesses(params, tasks):
        def one(task):
            adapted, _ = algorithm.adapt(params, task.support, None)
            return model(adapted, task.query).logits.argmax(1)

        return jax.lax.map(one, tasks)

    def expected(params):
        right = np.asarray(guesses(params, tasks)) == tasks.query["labels"]
        values = right.mean(1)
        interval = scipy.stats.t.ppf(0.975, 31) * values.std(ddof=1) / 32**0.5
        return pytest.approx({"accuracy": values.mean(), "ci95": interval}, rel=1e-5)

    assert stage.measure(params) == expected(params)
    other = moved(params)
    assert stage.measure(other) == expected(other) != expected(params).expected


@pytest.mark.parametrize("name", ["fomaml", "reptile"])
def test_metatrain_follows_the_algorithm_that_was_asked_for(ready, material, tmp_path, name):
    changes = {"algorithm": name, "inner_lr": 0.05, "inner_steps": 2}
    stage, params = ready(*metatrain_command(material, tmp_path / "run", **changes))
    settings = MetatrainSettings(model="m", tasks=("t",), workdir="w", **changes)
    few_shot = open_few_shot(str(material.bert), settings, settings, 3)
    task = jax.tree.map(lambda leaf: leaf[0], stage.make_tasks(0))

    def program(algorithm):
        return str(jax.make_jaxpr(algorithm.meta_grad)(params, task, jax.random.key(0)))

    # `test_few_shot.py` has the numbers of these programs.
    assert program(stage.algorithm) == program(few_shot.algorithm())
    assert program(stage.algorithm) != program(few_shot.algorithm(algorithm="maml"))


def test_metatrain_saves_memory_where_it_is_told_to(ready, material, tmp_path):
    """The program of a step is another one then."""
    command = metatrain_command(material, tmp_path / "run", chunk_size=1)
    sizes = []
    for more in ((), ("--low-memory",)):
        stage, params = ready(*command, *more)
        task = jax.tree.map(lambda leaf: leaf[0], stage.make_tasks(0))
        program = jax.make_jaxpr(stage.algorithm.meta_grad)(params, task, jax.random.key(0))
        sizes.append(str(program).count("\n"))
        assert "random_bits" not in str(program)  # The inner loop has no dropout.
        assert stage.chunk_size == 1
    assert sizes[0] != sizes[1]


def write_glue(directory, length=30):
    """Four tasks of GLUE with different metrics, and dev sets in another order."""
    tiny.write_glue(directory)
    texts = [text for text, _ in tiny.examples(3, length // 3, seed=6)]
    for split, rows in (("train", texts[:9]), ("dev", texts[9:])):
        for name, header, line in (
            ("CoLA", "", "x\t{label}\t\t{text}"),
            ("STS-B", "score\tsentence1\tsentence2\n", "{score}\t{text}\tw8 w9"),
            ("QQP", "question1\tquestion2\tis_duplicate\n", "{text}\tw1 w2\t{label}"),
        ):
            (directory / name).mkdir(exist_ok=True)
            lines = [
                line.format(label=int(n % 5 < 2), score=(n * 7 % 11) / 2, text=text)
                for n, text in enumerate(rows)
            ]
            (directory / name / f"{split}.tsv").write_text(header + "\n".join(lines) + "\n")
    return directory


METRICS = {
    "accuracy": sklearn.metrics.accuracy_score,
    "f1": sklearn.metrics.f1_score,
    "matthews": sklearn.metrics.matthews_corrcoef,
    "pearson": lambda *each: scipy.stats.pearsonr(*each).statistic,
    "spearman": lambda *each: scipy.stats.spearmanr(*each).statistic,
}
# Wang et al. 2019, table 1.
PUBLISHED = {
    "glue:cola": ["matthews"],
    "glue:sst2": ["accuracy"],
    "glue:mrpc": ["accuracy", "f1"],
    "glue:stsb": ["pearson", "spearman"],
    "glue:qqp": ["accuracy", "f1"],
    "glue:mnli": ["accuracy"],
    "glue:qnli": ["accuracy"],
    "glue:rte": ["accuracy"],
    "glue:wnli": ["accuracy"],
}


def test_each_glue_task_has_its_published_metrics():
    assert {name: list(GLUE_METRICS.get(name, ["accuracy"])) for name in PUBLISHED} == PUBLISHED
    assert GLUE_METRICS.keys() <= PUBLISHED.keys()


def test_finetune_takes_and_judges_each_task_by_its_own_head(ready, material, tmp_path):
    """The classes of a dev set are numbered as in the training file, even if it lacks the first."""
    glue = write_glue(tmp_path / "glue")
    rows = [row for row in tiny.examples(3, 8, seed=9) if row[1] != "topic0"]
    own = SimpleNamespace(**vars(material) | {"glue": glue})
    own.three_dev = tiny.write_rows(tmp_path / "dev.csv", rows)
    command = finetune_command(own, tmp_path / "run", seed=SEED, parts=2)
    at = command.index("--steps")
    command[at : at + 2] = ["--epochs", 1.1, "--max-length", 7]
    at = command.index("glue:mrpc")
    names = ["glue:cola", "glue:mrpc", "glue:stsb", "glue:qqp"]
    command[at : at + 1] = names
    stage, params = ready(*command)
    assert stage.model.num_labels == (2, 2, 1, 2, 3)
    assert stage.model.label_names[-1] == ("topic0", "topic1", "topic2")
    assert stage.run.record["pairs"] == [False, True, True, True, False]
    specs = [*names, str(material.three)]
    files = [*(f"--tasks {spec}" for spec in specs), f"--dev {own.three_dev}"]
    assert list(stage.run.record["data"]) == files
    training = data.load_tasks(specs, glue_dir=glue)
    examples = tokenized(training, stage.model, 7)
    count = 9 + 24 + 9 + 9 + 24
    assert stage.num_steps == math.ceil(1.1 * count / 8)
    plan = data.plan_batches(examples, SEED, 8, 2, stage.num_steps)
    for step in (0, 5):
        batch = data.supervised_batch(examples, SEED, step, 8)
        assert_same(stage.make_tasks(step), Task(None, data.packed_parts(batch, 2, plan)))

    assert draws(stage, params)

    dev = data.load_tasks(names, glue_dir=glue, split="validation")
    texts = [task.texts for task in dev] + [[text for text, _ in rows]]
    pairs = [task.pairs for task in dev] + [None]
    labels = [task.labels for task in dev]
    labels.append(np.array([int(label[-1]) for _, label in rows]))
    encoded = [
        stage.model.tokenizer(
            text, pair, max_length=7, truncation=True, padding="max_length", return_tensors="np"
        )
        for text, pair in zip(texts, pairs)
    ]
    batch = {key: np.concatenate([dict(each)[key] for each in encoded]) for key in encoded[0]}
    batch["task"] = np.repeat(np.arange(len(texts)), list(map(len, texts)))
    # Heads that separate the texts.
    head, forward = params["classifier"], jax.jit(stage.model)
    kernel = np.random.default_rng(SEED).normal(size=head["kernel"].shape).astype(np.float32)
    params = params | {"classifier": {"kernel": kernel, "bias": head["bias"]}}
    scores = np.asarray(forward(params, batch).logits)
    means = [scores[batch["task"] == number].mean(0) for number in range(len(specs))]
    params["classifier"]["bias"] = -np.stack(means)
    logits = np.asarray(forward(params, batch).logits)

    found = stage.measure(params)
    assert list(found) == specs
    for number, name in enumerate(specs):
        scores = logits[batch["task"] == number]
        guesses = scores[:, 0] if name == "glue:stsb" else scores.argmax(1)
        expected = {
            metric: METRICS[metric](labels[number], guesses)
            for metric in PUBLISHED.get(name, ["accuracy"])
        }
        assert found[name] == pytest.approx(expected, abs=1e-6)
        assert all(0 < abs(value) < 1 for value in expected.values())


def test_finetune_judges_the_tasks_that_have_a_dev_set(ready, material, tmp_path):
    command = finetune_command(material, tmp_path / "run")
    at = command.index("--tasks")
    command[at : at + 5] = ["--tasks", material.three, "glue:mrpc"]
    stage, params = ready(*command, "--pooling", "mean")
    assert stage.model.pooling == "mean"
    (found,) = stage.measure(params).items()
    assert (found[0], list(found[1])) == ("glue:mrpc", ["accuracy", "f1"])
