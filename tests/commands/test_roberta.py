"""The stages with a RoBERTa: its names, positions, padding and byte-level tokenizer."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import pytest
import tiny
from tokenizers.processors import RobertaProcessing

from metajax.models import Transformer, save_pretrained
from tests.stage_commands import metatrain_command, pretrain_command

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def write_roberta(directory):
    tokenizer = tiny.byte_level_pairs(SPECIAL)
    tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    config = dataclasses.replace(
        tiny.CONFIG,
        model_type="roberta",
        vocab_size=tokenizer.get_vocab_size(),
        pad_token_id=1,
        type_vocab_size=1,
    )
    model = Transformer(config=config, head="masked_lm")
    save_pretrained(directory, model, model.init(jax.random.key(7)))
    tokenizer.save(str(directory / "tokenizer.json"))
    names = ("bos", "pad", "eos", "unk", "mask", "cls", "sep")
    tokens = dict(zip((f"{name}_token" for name in names), [*SPECIAL, "<s>", "</s>"]))
    settings = {"tokenizer_class": "RobertaTokenizer", **tokens}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


@pytest.mark.slow
def test_it_goes_through_the_stages(material, tmp_path):
    material = SimpleNamespace(**{**vars(material), "bert": write_roberta(tmp_path / "roberta")})
    pretrained, meta, mine = (tmp_path / name for name in ("pretrained", "meta", "mine"))
    tiny.succeed(*pretrain_command(material, pretrained, steps=2))
    tiny.succeed(*metatrain_command(material, meta, pretrained, steps=2))
    tiny.succeed("adapt", "--model", meta, "--tasks", material.new, "--workdir", mine)
    (tmp_path / "texts.txt").write_text("w48 w49 w50\nw60 w61\n")
    out = tiny.succeed("predict", "--model", mine, "--input", tmp_path / "texts.txt")
    assert len(out.splitlines()) >= 2
    tiny.succeed("export", "--model", mine, "--output", tmp_path / "hf")
    import transformers

    _, info = transformers.RobertaModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values()), info
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    (row,) = tokenizer(["w48 w49"])["input_ids"]
    assert (row[0], row[-1]) == (0, 2)
