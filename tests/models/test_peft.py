"""Adapters in PEFT's format, against weights merged by hand in transformers' networks."""

import dataclasses
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from metajax.algorithms import lora
from metajax.errors import InputError
from metajax.models import Transformer, load_adapters, save_adapters, save_pretrained
from tests.models.helpers import (
    ENCODERS,
    LLAMAS,
    TINY,
    assert_equal,
    llama_settings,
    make_batch,
    make_params,
)

MODELS = [
    ("llama", "causal_lm"),
    ("qwen3", "encoder"),
    ("bert", "masked_lm"),
    ("bert", "classification"),
    ("distilbert", "encoder"),
    ("gpt2", "causal_lm"),
    ("modernbert", "classification"),
    ("deberta-v2", "masked_lm"),
]
LINE = r"^[^\n]*: [^\n]+; [^\n]+$"


def make_model(model_type, head, **changes):
    own = {"model_type": model_type, **ENCODERS.get(model_type, {})}
    own = llama_settings(model_type) if model_type in LLAMAS else own
    types = 2 if model_type == "bert" else 0
    config = dataclasses.replace(TINY, **{**own, "type_vocab_size": types})
    return Transformer(config, head=head, num_labels=(3,), **changes)


def with_adapters(model, names=None, rank=2, dtype=jnp.float64):
    """Random parameters and random factors for the blocks' dense layers of these names."""
    params = make_params(model, dtype=dtype)
    if "bias" in params.get("classifier", {}) and not model.config.family.classifier_bias:
        params["classifier"]["bias"] *= 0

    def target(path):
        *_, name, last = ("", *path.split("/"))
        return path.startswith("layers/") and last == "kernel" and (not names or name in names)

    params = lora.init(params, rank=rank, target=target, rng=jax.random.key(0))
    random = np.random.RandomState(3)
    draw = lambda leaf: jnp.asarray(random.normal(size=leaf.shape) * 0.3, dtype)  # noqa: E731
    return params | {"adapters": jax.tree.map(draw, params["adapters"])}


def read(directory):
    config = json.loads((directory / "adapter_config.json").read_text())
    return config, safetensors.numpy.load_file(directory / "adapter_model.safetensors")


def write(directory, tensors, **changes):
    """A LoRA as PEFT writes it, with settings that only it has."""
    directory.mkdir(exist_ok=True)
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 6,
        "bias": "none",
        "target_modules": ["query"],
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {},
        "init_lora_weights": True,
        "layers_pattern": None,
        "revision": None,
        **changes,
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    safetensors.numpy.save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def random_lora(sizes, rank=2, layers=2, seed=0):
    """Tensors of modules of BERT: from the module's name to its sizes."""
    random, tensors = np.random.RandomState(seed), {}
    for number in range(layers):
        for module, (size_in, size_out) in sizes.items():
            stem = f"base_model.model.bert.encoder.layer.{number}.{module}"
            tensors[f"{stem}.lora_A.weight"] = random.normal(size=(rank, size_in))
            tensors[f"{stem}.lora_B.weight"] = random.normal(size=(size_out, rank)) * 0.3
    return tensors


ATTENTION = {f"attention.self.{name}": (8, 8) for name in ("query", "value")}
BERT = make_model("bert", "masked_lm")


@pytest.mark.parametrize(("model_type", "head"), MODELS)
def test_the_same_bits_come_back(model_type, head, tmp_path, x64):
    model = make_model(model_type, head)
    params = with_adapters(model)
    save_adapters(tmp_path, model, params)
    again = load_adapters(tmp_path, model, params["base"])
    assert_equal(again, params)
    assert again["adapters"]["layers"]["up"]["kernel"]["up"].dtype == jnp.float64


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_narrower_types_come_back_too(dtype, tmp_path):
    params = with_adapters(BERT, dtype=dtype)
    save_adapters(tmp_path, BERT, params)
    assert_equal(load_adapters(tmp_path, BERT, params["base"]), params)


def test_different_ranks_become_the_largest(tmp_path, x64):
    params = with_adapters(BERT, ("qkv", "out"))
    wide = with_adapters(BERT, ("out",), rank=3)["adapters"]["layers"]["out"]
    params["adapters"]["layers"]["out"] = wide
    save_adapters(tmp_path, BERT, params)
    assert read(tmp_path)[0]["r"] == read(tmp_path)[0]["lora_alpha"] == 3
    again = load_adapters(tmp_path, BERT, params["base"])
    assert_equal(again["adapters"]["layers"]["out"], wide)
    assert_equal(lora.merge(again), lora.merge(params))


@pytest.mark.parametrize(
    ("model_type", "names", "targets"),
    [
        ("llama", ("query", "value"), ["q_proj", "v_proj"]),
        ("bert", ("qkv",), ["key", "query", "value"]),
        ("bert", ("out",), ["attention.output.dense"]),
        # All others end like attention.output.dense.
        ("bert", ("down",), ["0.output.dense", "1.output.dense"]),
        ("gpt2", ("qkv", "out"), ["c_attn", "attn.c_proj"]),
        ("modernbert", ("qkv", "up", "out"), ["attn.Wo", "Wqkv", "Wi"]),
        ("deberta-v2", ("qkv",), ["key_proj", "query_proj", "value_proj"]),
    ],
)
def test_target_modules_name_the_adapted_modules_only(model_type, names, targets, tmp_path):
    model = make_model(model_type, "encoder")
    save_adapters(tmp_path, model, with_adapters(model, names, dtype=jnp.float32))
    assert read(tmp_path)[0]["target_modules"] == targets


@pytest.mark.parametrize(
    ("model_type", "head", "changes", "expected"),
    [
        ("llama", "causal_lm", {}, ("CAUSAL_LM", "model.layers.0.self_attn.q_proj")),
        ("llama", "encoder", {}, ("FEATURE_EXTRACTION", "layers.0.self_attn.q_proj")),
        ("bert", "classification", {}, (None, "bert.encoder.layer.0.attention.self.query")),
        # save_pretrained writes a BertModel for it.
        (
            "bert",
            "classification",
            {"pooling": "mean"},
            ("FEATURE_EXTRACTION", "encoder.layer.0.attention.self.query"),
        ),
        ("gpt2", "causal_lm", {}, ("CAUSAL_LM", "transformer.h.0.attn.c_attn")),
    ],
)
def test_the_files_are_for_the_class_of_the_head(model_type, head, changes, expected, tmp_path):
    model = make_model(model_type, head, **changes).replace(source="base")
    save_adapters(tmp_path, model, with_adapters(model, dtype=jnp.float32))
    config, tensors = read(tmp_path)
    assert (config["peft_type"], config["bias"], config["r"]) == ("LORA", "none", 2)
    assert config["base_model_name_or_path"] == "base"
    assert config["fan_in_fan_out"] == (model_type == "gpt2")
    assert config["task_type"] == expected[0]
    assert tensors[f"base_model.model.{expected[1]}.lora_A.weight"].shape == (2, 8)


def theirs_with(model, params, directory, monkeypatch):
    """The base of transformers in float64; skips without PyTorch."""
    pytest.importorskip("torch")
    from benchmarks import parity
    from tests.models import test_llama

    if model.config.family.block == "llama":
        return test_llama.load_theirs(model, params, directory, monkeypatch)
    save_pretrained(directory, model, params)
    kind = parity.class_of(model.config.model_type, model.head)
    options = {"dtype": test_llama.torch.float64, "attn_implementation": "eager"}
    module = importlib.import_module(kind.__module__)
    if model.config.family.block in ("modernbert", "deberta"):
        monkeypatch.setattr(module, "torch", parity.Float64Torch())
    theirs = kind.from_pretrained(directory, **options).eval()
    if model.config.family.rotary:
        rotate = parity.llama.apply_rotary_pos_emb
        monkeypatch.setattr(module, "apply_rotary_pos_emb", rotate)
        parity.widen_rotation(theirs)
    return theirs


def merge_by_hand(theirs, directory, scaling):
    """Add scaling B A to the weights of the modules that the files name."""
    import torch

    _, tensors = read(directory)
    for name, down in tensors.items():
        if name.endswith(".lora_A.weight"):
            stem = name.removesuffix(".lora_A.weight")
            product = torch.tensor(scaling * tensors[f"{stem}.lora_B.weight"] @ down)
            module = theirs.get_submodule(stem.removeprefix("base_model.model."))
            turned = type(module).__name__ == "Conv1D"
            module.weight.data += product.T if turned else product
    return theirs


def outputs_of(theirs, model, batch):
    import torch

    names = ["input_ids", "attention_mask"]
    names += ["token_type_ids"] if model.config.type_vocab_size else []
    found = theirs(**{name: torch.tensor(np.asarray(batch[name])).long() for name in names})
    found = found.last_hidden_state if model.head == "encoder" else found.logits
    return found.detach().numpy()


def assert_close(model, params, theirs, batch=None):
    batch = make_batch() if batch is None else batch
    ours, base = jax.jit(model)(lora.attach(params), batch), jax.jit(model)(params["base"], batch)
    mask = np.asarray(batch["attention_mask"])[:, :, None]
    expected = outputs_of(theirs, model, batch)
    found, plain = (x.last_hidden_state if x.logits is None else x.logits for x in (ours, base))
    weight = 1 if expected.ndim == 2 else mask
    assert (np.abs(found - expected) * weight).max() < 1e-12
    assert (np.abs(plain - expected) * weight).max() > 1e-3


@pytest.mark.parametrize(("model_type", "head"), MODELS)
def test_logits_are_those_of_weights_merged_by_hand(model_type, head, tmp_path, x64, monkeypatch):
    model = make_model(model_type, head)
    params = with_adapters(model)
    theirs = theirs_with(model, params["base"], tmp_path / "base", monkeypatch)
    save_adapters(tmp_path / "lora", model, params)
    assert_close(model, params, merge_by_hand(theirs, tmp_path / "lora", 1.0))


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}])
def test_a_lora_of_peft_with_its_own_scaling(settings, tmp_path, x64, monkeypatch):
    """Alpha is 6 and r 2; query and value have an A each, and key has no adapter."""
    base = make_params(BERT, dtype=jnp.float64)
    theirs = theirs_with(BERT, base, tmp_path / "base", monkeypatch)
    tensors = random_lora(ATTENTION | {"intermediate.dense": (8, 12)})
    params = load_adapters(write(tmp_path / "lora", tensors, **settings), BERT, base)
    kernel = params["adapters"]["layers"]["qkv"]["kernel"]
    assert (kernel["down"].shape, kernel["up"].shape) == ((2, 8, 4), (2, 4, 24))
    scaling = 6 / np.sqrt(2) if settings else 3
    assert_close(BERT, params, merge_by_hand(theirs, tmp_path / "lora", scaling))
    # Written again, each module has the joint A.
    save_adapters(tmp_path / "again", BERT, params)
    again = load_adapters(tmp_path / "again", BERT, base)["adapters"]
    assert_equal(again["layers"]["qkv"], params["adapters"]["layers"]["qkv"])


def test_the_prefix_of_a_class_with_a_head_does_not_matter(tmp_path):
    params = with_adapters(make_model("llama", "causal_lm"), dtype=jnp.float32)
    save_adapters(tmp_path, make_model("llama", "causal_lm"), params)
    encoder = make_model("llama", "encoder")
    base = {key: value for key, value in params["base"].items() if key != "lm_head"}
    again = load_adapters(tmp_path, encoder, base)
    assert_equal(again["adapters"]["layers"], params["adapters"]["layers"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["classifier"]}, "modules_to_save"),
        ({"rank_pattern": {"query": 4}}, "rank_pattern"),
        ({"alpha_pattern": {"query": 4}}, "alpha_pattern"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"r": 0}, "r is 0"),
        ({"r": True}, "r is True"),
        ({"r": 4}, r"is \[2, 8\], expected \[4, 8\]"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"lora_alpha": float("inf")}, "lora_alpha|not JSON"),
    ],
)
def test_other_settings_are_refused_in_one_line(changes, message, tmp_path):
    path = write(tmp_path, random_lora(ATTENTION), **changes)
    with pytest.raises(InputError, match=message) as error:
        load_adapters(path, BERT, make_params(BERT))
    error.match(LINE)


def another(**changes):
    tensors = random_lora(ATTENTION)
    for name, change in changes.items():
        key = next(key for key in tensors if name in key)
        tensors[key] = change(tensors[key])
    return tensors


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (random_lora({"attention.self.query": (16, 16)}), r"is \[2, 16\], expected \[2, 8\]"),
        (random_lora(ATTENTION, layers=3), "layer.2.attention.self.query"),
        (random_lora(ATTENTION, layers=1), "layer.1.attention.self.query.* is missing"),
        (random_lora({"self_attn.q_proj": (8, 8)}), "self_attn.q_proj.* is not an adapter"),
        ({"base_model.model.lora_embedding_A": np.ones((2, 31))}, "lora_embedding_A"),
        ({}, "no tensor"),
        (another(lora_B=lambda value: value * np.nan), "lora_B.weight has numbers that are not"),
        (another(lora_A=lambda value: value[0]), r"is \[8\], expected \[2, 8\]"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_in_one_line(tensors, message, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        load_adapters(write(tmp_path, tensors), BERT, make_params(BERT))
    error.match(LINE)


def test_a_directory_without_weights_is_refused(tmp_path):
    write(tmp_path, random_lora(ATTENTION))
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"adapter_model.safetensors: missing; "):
        load_adapters(tmp_path, BERT, make_params(BERT))


def test_adapters_of_other_layers_cannot_be_written(tmp_path):
    params = lora.init(
        make_params(BERT), rank=2, target=lambda path: "kernel" in path, rng=jax.random.key(0)
    )
    with pytest.raises(InputError, match="blocks' kernels only") as error:
        save_adapters(tmp_path / "new", BERT, params)
    error.match(LINE)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize(("model_type", "head"), MODELS)
def test_peft_loads_it_with_the_same_logits(model_type, head, tmp_path, x64, monkeypatch):
    import peft  # takes seconds

    model = make_model(model_type, head)
    params = with_adapters(model)
    theirs = theirs_with(model, params["base"], tmp_path / "base", monkeypatch)
    save_adapters(tmp_path / "lora", model, params)
    options = {"autocast_adapter_dtype": False}
    loaded = peft.PeftModel.from_pretrained(theirs, tmp_path / "lora", **options)
    assert_close(model, params, loaded)
    assert_close(model, params, loaded.merge_and_unload())
    # What peft writes is what we wrote.
    peft.PeftModel.from_pretrained(
        theirs_with(model, params["base"], tmp_path / "base", monkeypatch),
        tmp_path / "lora",
        **options,
    ).save_pretrained(tmp_path / "theirs")
    assert_equal(load_adapters(tmp_path / "theirs", model, params["base"]), params)
