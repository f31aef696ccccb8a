"""Pretraining of decoders: next tokens of packed documents."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
import scipy.special
import tiny
import transformers

from metajax import data, save_pretrained
from metajax.commands import pretrain
from metajax.models import Transformer
from metajax.types import Task
from tests.commands.test_numbers import assert_same, draws, moved, ready  # noqa: F401
from tests.models.helpers import llama_settings
from tests.stage_commands import metatrain_command

pytestmark = pytest.mark.xdist_group("decoders")  # They share their runs.

SEED = 3
END = "<|endoftext|>"


def write_llama(directory):
    """A random Llama in Hugging Face format, with byte-level pairs."""
    pairs = tiny.byte_level_pairs([END])
    config = dataclasses.replace(
        tiny.CONFIG,
        **llama_settings("llama"),
        vocab_size=pairs.get_vocab_size(),
        bos_token_id=0,
        eos_token_id=0,
    )
    model = Transformer(config, head="causal_lm")
    save_pretrained(directory, model, model.init(jax.random.key(7)))
    pairs.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


@pytest.fixture(scope="module")
def models(material, tmp_path_factory):
    return {
        "gpt2": material.gpt2,
        "llama": write_llama(tmp_path_factory.mktemp("models") / "llama"),
    }


def command(material, model, workdir, **changes):
    settings = {"steps": 4, "batch_size": 4, "max_length": 16, "save_every": 2, "keep": 2}
    flags = [
        item
        for name, value in (settings | changes).items()
        for item in (f"--{name.replace('_', '-')}", value)
    ]
    return ["pretrain", "--model", model, "--text", material.text, "--workdir", workdir, *flags]


def results_alone(directory, documents, tokenizer):
    """Compute the results with transformers, from each part of a document alone, in float64."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory).double().eval()
    nats, right, num_bytes = [], [], 0
    for ids, numbers in zip(documents.input_ids, documents.example_ids):
        for number in range(numbers.max() + 1):
            own = ids[numbers == number].astype(int)
            inputs = transformers.BatchEncoding({"input_ids": own[None]}).convert_to_tensors("pt")
            logits = theirs(**inputs).logits[0, :-1].detach().numpy()
            chosen = np.take_along_axis(logits, own[1:, None], 1)[:, 0]
            nats += list(scipy.special.logsumexp(logits, axis=-1) - chosen)
            right += list(logits.argmax(-1) == own[1:])
            num_bytes += len(tokenizer.decode(own[1:], skip_special_tokens=True).encode())
    return {
        "loss": np.mean(nats),
        "perplexity": math.exp(np.mean(nats)),
        "accuracy": np.mean(right),
        "bits_per_byte": sum(nats) / math.log(2) / num_bytes,
    }


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_pretrain_predicts_next_tokens_as_it_is_told(
    ready,  # noqa: F811
    models,
    material,
    tmp_path,
    monkeypatch,
    name,
):
    """The results are those of each document alone; the last of several batches is not full."""
    monkeypatch.setattr(pretrain, "_HELD_OUT_BATCH", 6)
    changes = {"seed": SEED, "held_out": 0.4, "parts": 2}
    stage, params = ready(*command(material, models[name], tmp_path / "run", **changes))
    tokenizer = stage.model.tokenizer
    blocks = data.pack_documents(data.read_lines(str(material.text)), tokenizer, 16)
    training, held_out = data.held_out(blocks, SEED, 0.4)
    assert len(held_out.input_ids) > 12
    assert len(held_out.input_ids) % 6
    for step in (0, 7):
        batch = data.next_token_batch(training, SEED, step, 4)
        halves = {key: np.stack([leaf[:2], leaf[2:]]) for key, leaf in batch.items()}
        assert_same(stage.make_tasks(step), Task(None, halves))
    assert draws(stage, params)
    assert stage.run.record["model"]["head"] == "causal_lm"
    params = moved(params)
    save_pretrained(tmp_path / "hf", stage.model, params)
    expected = results_alone(tmp_path / "hf", held_out, tokenizer)
    assert stage.measure(params) == pytest.approx(expected, rel=1e-4)
    assert stage.num_steps == 4


@pytest.fixture(scope="module")
def pretrained(models, material, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pretrained") / "run"
    with tiny.one_device():
        tiny.succeed(*command(material, models["llama"], workdir, learning_rate=0.03))
    return workdir


def test_documents_of_a_folder_are_text(models, material, tmp_path):
    """Also with newlines, which are predicted too. A document per line is the same."""
    for number, text in enumerate(["w1 w2 w3 w4\nw5", "w6 w7"]):
        (tmp_path / f"{number}.txt").write_text(text)
    rows = [{"text": "w1 w2 w3 w4\nw5"}, {"text": "w6 w7"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert pretrain._read([f"documents:{tmp_path / 'rows.jsonl'}"]) == [r["text"] for r in rows]
    (folder := tmp_path / "folder").mkdir()
    for number in range(2):
        (tmp_path / f"{number}.txt").rename(folder / f"{number}.txt")
    assert pretrain._read([f"documents:{folder}"]) == [row["text"] for row in rows]
    given = command(material, models["llama"], tmp_path / "run", steps=1, held_out=0.5)
    given[given.index("--text") + 1] = f"documents:{folder}"
    tiny.succeed(*given, "--max-length", 6)


def test_pretraining_reports_and_lowers_the_loss(pretrained):
    results = json.loads((pretrained / "results.json").read_text())
    names = ["loss", "perplexity", "accuracy", "bits_per_byte"]
    assert list(results["before"]) == list(results["after"]) == names
    for name in ("loss", "perplexity", "bits_per_byte"):
        assert results["after"][name] < 0.95 * results["before"][name]


def test_an_interrupted_run_ends_as_an_undisturbed_one(
    pretrained, models, material, tmp_path, monkeypatch
):
    again = command(material, models["llama"], tmp_path / "run", learning_rate=0.03)
    sample = data.next_token_batch

    def interrupted(documents, seed, step, batch_size):
        if step == 3:
            raise KeyboardInterrupt
        return sample(documents, seed, step, batch_size)

    with monkeypatch.context() as patch:
        patch.setattr(data, "next_token_batch", interrupted)
        assert tiny.run(*again).status == 1
    assert "starts from step 2" in tiny.run(*again).err
    tiny.assert_same_bits(*map(tiny.training_state, (tmp_path / "run", pretrained)))
    found, expected = ((d / "results.json").read_text() for d in (tmp_path / "run", pretrained))
    assert found == expected


def test_pretrain_exports_a_causal_lm(pretrained, tmp_path):
    out = tiny.succeed("export", "--model", pretrained, "--output", tmp_path / "hf")
    assert "LlamaForCausalLM" in out
    _, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not any(info.values()), info
    assert "pretrain" in tiny.succeed("lineage", "--model", pretrained)


@pytest.mark.slow
def test_later_stages_start_from_it(pretrained, material, tmp_path):
    """They classify by the last token."""
    meta, tuned, more = (tmp_path / name for name in ("meta", "tuned", "more"))
    tiny.succeed(*metatrain_command(material, meta, pretrained, steps=2))
    files = ("--tasks", material.three, "--dev", material.three_dev, "--steps", 2)
    tiny.succeed("finetune", "--model", pretrained, "--workdir", tuned, *files, "--batch-size", 8)
    assert tiny.succeed("predict", "--model", tuned, stdin=b"w48 w49\n").startswith("topic")
    tiny.succeed(*command(material, pretrained, more, steps=1))
    before, after = (json.loads((run / "results.json").read_text()) for run in (pretrained, more))
    assert after["before"] == pytest.approx(before["after"], rel=1e-5)


@pytest.mark.parametrize(
    ("given", "shown"),
    [(("--mask-rate", 0.3), "--mask-rate 0.3"), (("--whole-word",), "--whole-word")],
)
def test_settings_of_masking_are_refused(refused, models, material, tmp_path, given, shown):
    message = f"{shown}: a decoder predicts next tokens and masks none"
    refused(message, *command(material, models["llama"], tmp_path / "run"), *given)


def test_text_without_anything_to_predict(refused, models, tmp_path):
    """Each document is one token, so only its end is predicted, which has no bytes."""
    text = tmp_path / "text.txt"
    text.write_text("w\n" * 30)
    where = ("--model", models["llama"], "--workdir", tmp_path / "run", "--max-length", 4)
    refused("has no token to predict", "pretrain", *where, "--text", text)
