"""The demo's documents, which are source files of Python's modules, and a decoder from scratch."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Self

import jax
import tokenizers

from metajax.data.seeding import generator
from metajax.models import Transformer, TransformerConfig, save_pretrained
from metajax.runs.demo_data import DemoData, module_files
from metajax.runs.workdir import write_atomically

_LEAST, _MOST = 4000, 6000  # Characters of a file: shorter ones are not used, longer ones are cut.
_OF_MODULE = {"train": 12, "test": 4}  # Files of a module, at most.
_TEST_FILES = 100
_HEADS = 4
_END = "<|end|>"


class DocumentData(NamedTuple):
    """The files of the demo's part on documents.

    Attributes:
        decoder: directory of a random Llama and its vocabulary, in Hugging Face format.
        train: JSON lines with `text`, a source file of a module that is not held out.
        test: the same of the modules that are held out.
    """

    decoder: Path
    train: Path
    test: Path

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Return the paths of the files in a folder."""
        return cls(folder / "decoder", folder / "train.jsonl", folder / "test.jsonl")


def write_documents(folder: Path, data: DemoData, seed: int) -> DocumentData:
    """Write source files as documents, and a decoder for them, if they do not exist.

    Args:
        folder: the folder to write to.
        data: its `test_classes` are the modules to hold out.
        seed: determines which files of a module are used, and the decoder's weights.
    """
    files = DocumentData.of(folder)
    if files.test.is_file():
        return files
    texts = _sources(set(data.test_classes.read_text().split()), seed)
    write_decoder(files.decoder, texts["train"], seed, vocabulary=512, width=64, blocks=2)
    files.train.write_text(_as_rows(texts["train"]))
    # Written last and atomically: if it exists, the other files are complete.
    write_atomically(files.test, _as_rows(texts["test"][:_TEST_FILES]))
    return files


def _sources(held_out: set[str], seed: int) -> dict[str, list[str]]:
    """Return the beginnings of source files to train on, and of modules that are held out.

    They are in random order. A text that several files have is used once.
    """
    parts: dict[str, dict[str, None]] = {"train": {}, "test": {}}
    files, used = list(module_files()), Counter[str]()
    for n in generator(seed, "demo documents").permutation(len(files)):
        module, path = files[n]
        part = "test" if module in held_out else "train"
        text = path.read_text("utf-8", errors="ignore")[:_MOST]
        known = any(text in own for own in parts.values())
        if len(text) >= _LEAST and not known and used[module] < _OF_MODULE[part]:
            parts[part][text] = None
            used[module] += 1
    return {part: list(own) for part, own in parts.items()}


def _as_rows(texts: Iterable[str]) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def write_decoder(
    directory: Path, texts: Iterable[str], seed: int, *, vocabulary: int, width: int, blocks: int
) -> Transformer:
    """Write a random Llama with a byte-pair vocabulary of some texts, in Hugging Face format.

    Args:
        directory: the directory to write to.
        texts: what the vocabulary is made from.
        seed: determines the weights.
        vocabulary: number of tokens, at most.
        width: features of the model.
        blocks: number of blocks.
    """
    pairs = tokenizers.ByteLevelBPETokenizer()
    pairs.train_from_iterator(texts, vocabulary, special_tokens=[_END], show_progress=False)
    config = TransformerConfig(
        model_type="llama",
        vocab_size=pairs.get_vocab_size(),
        hidden_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=_HEADS,
        num_key_value_heads=_HEADS,
        intermediate_size=3 * width,
        max_position_embeddings=2048,
        type_vocab_size=0,
        layer_norm_eps=1e-5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        hidden_act="silu",
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = Transformer(config, head="causal_lm")
    save_pretrained(directory, model, model.init(jax.random.key(seed)))
    pairs.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": _END}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return model
