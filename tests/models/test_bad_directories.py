"""Model directories that are damaged or mean harm, at their readers: no code runs, nothing leaks.

tests/commands/test_bad_input.py has what the commands make of it.
"""

import contextlib
import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import safetensors
import tiny

from metajax.errors import InputError
from metajax.models import files, from_pretrained, has_classifier


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("sound") / "model")


@pytest.fixture
def model(sound, tmp_path, monkeypatch):
    """A copy of the model, in a directory where nothing else may be written."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(sound, tmp_path / "model")


def check_refusal(message, read, name, how=r"[;:,] [a-z]+ "):
    """It says what is wrong in a line and then what to do, and nothing is written."""
    before = tiny.tree_of(Path())
    with pytest.raises(InputError, match=message) as caught:
        read(str(name))
    (line,) = str(caught.value).splitlines()
    assert re.search(how, line), line
    assert tiny.tree_of(Path()) == before


def remove(name):
    return lambda model: (model / name).unlink()


def truncate(model):
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def configure(name="config.json", **changes):
    def change(model):
        file = model / name
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def write(name, content):
    return lambda model: (model / name).write_bytes(content)


REMOTE = {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("config.json"), "config.json: missing; give a complete model directory"),
        (remove("model.safetensors"), "model: no weights"),
        (truncate, "model.safetensors: truncated or not safetensors"),
        (configure(model_type="phi3"), "config.json: model_type is 'phi3'"),
        (configure(hidden_size=32), r"^model: .*is \[.*16\], expected \[.*32\]"),
        (write("config.json", b"{\n!"), r"config.json:2: not JSON"),
        (
            configure(model_type="evil", trust_remote_code=True, **REMOTE),
            "config.json: model_type is 'evil'",
        ),
    ],
)
def test_directories(model, change, message):
    change(model)
    (model / "evil.py").write_text(tiny.HARM)
    check_refusal(message, from_pretrained, "model")


def test_names_of_directories(model):
    (model / "text.txt").touch()
    check_refusal("^./nowhere: no such directory", from_pretrained, "./nowhere")
    check_refusal("text.txt: is a file", from_pretrained, "model/text.txt")
    check_refusal("neither a directory nor a hub id", from_pretrained, "spaces in it")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/dev/zero", "..", "a/../../b"])
def test_a_sharded_index_that_leads_out_of_the_model(model, name):
    shutil.move(model / "model.safetensors", "secret.safetensors")
    with safetensors.safe_open("secret.safetensors", "numpy") as file:
        index = {"weight_map": dict.fromkeys(file.keys(), name)}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    check_refusal(r"index\.json: .*not a plain file name", from_pretrained, "model")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pickle_in_place_of_weights(model, name):
    pytest.importorskip("torch")
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(pickle.dumps(tiny.Harm()))
    check_refusal(f"{name}: truncated", from_pretrained, "model")


def test_no_tokenizer(model):
    (model / "vocab.txt").unlink()
    check_refusal("^model: no usable tokenizer; add", files.tokenizer, "model")


def test_a_tokenizer_that_names_remote_code(model):
    """It is read as what its files say, or refused, and the code is left alone."""
    (model / "evil.py").write_text(tiny.HARM)
    whole = files.tokenizer(str(shutil.copytree(model, "whole")))
    whole.save_pretrained("whole")  # With the tokenizer.json that transformers can do with.
    names = {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.E", None]}}
    before = tiny.tree_of(Path())
    for directory in (model, Path("whole").absolute()):
        configure("tokenizer_config.json", **names, trust_remote_code=True)(directory)
        with contextlib.suppress(InputError):
            files.tokenizer(str(directory))
    assert tiny.tree_of(Path()) == before


def test_a_tokenizer_of_another_model(model):
    with (model / "vocab.txt").open("a") as file:
        file.write("more\n")
    read = lambda name: from_pretrained(name)[0].tokenizer  # noqa: E731
    check_refusal("the tokenizer has a token 95, but the model's last token is 94", read, "model")


def test_a_classifier_that_does_not_fit_its_config(model):
    """Where that tells of none, the weights do."""
    directory = tiny.write_model(Path("five"), head="classification", num_labels=(5,))
    config = json.loads((directory / "config.json").read_text())
    del config["id2label"], config["label2id"]
    for more, fits in (({}, True), ({"num_labels": 2}, False), ({"num_labels": 5}, True)):
        (directory / "config.json").write_text(json.dumps(config | more))
        assert has_classifier("five") == fits
    assert not has_classifier(str(model))
