"""What a directory is asked for, and what it says of its classes, its pooling and itself."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from metajax.errors import InputError
from metajax.models import (
    Transformer,
    convert,
    from_pretrained,
    has_classifier,
    hashes,
    read_model,
    save_pretrained,
    with_head,
)
from metajax.models.renaming import from_bert
from tests.models.helpers import (
    TINY,
    WORDS,
    assert_equal,
    make_params,
    write_directory,
    write_tokenizer,
)

KEY = jax.random.key(1)
HEADS = Transformer(
    TINY,
    head="classification",
    num_labels=(2, 3),
    label_names=(("x", "y"), ("a", "b", "c")),
    feature_norm=2.0,
)
ONE = HEADS.replace(num_labels=(3,), label_names=(("a", "b", "c"),), feature_norm=None)


def test_what_is_asked_for_goes_before_what_the_directory_says(tmp_path):
    save_pretrained(tmp_path, HEADS.replace(pooling="mean"), make_params(HEADS))
    path = str(tmp_path)
    noted = HEADS.replace(pooling="mean", source=path)
    assert read_model(path, "classification") == noted
    asked = {
        "pooling": "pooler",
        "feature_norm": 5.0,
        "label_names": (("p", "q"), ("r", "s", "t")),
    }
    model, params = from_pretrained(
        path, "classification", remat=True, dtype=jnp.bfloat16, param_dtype=jnp.float16, **asked
    )
    assert model == noted.replace(remat=True, dtype=jnp.bfloat16, **asked)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float16")}
    assert read_model(path, "classification", num_labels=4) == noted.replace(
        num_labels=(4,), label_names=None
    )


def test_heads_of_other_sizes_but_the_same_shape_are_not_kept(tmp_path):
    params = make_params(HEADS)
    save_pretrained(tmp_path, HEADS, params)
    model, other = from_pretrained(str(tmp_path), "classification", num_labels=(3, 3), rng=KEY)
    assert other["classifier"]["kernel"].shape == params["classifier"]["kernel"].shape
    expected = model.init(KEY)["classifier"]["kernel"]
    np.testing.assert_allclose(other["classifier"]["kernel"], expected, rtol=1e-6)
    assert_equal(other["layers"], params["layers"])


def test_what_is_missing_is_as_init_would_have_it(tmp_path):
    encoder = Transformer(TINY)
    save_pretrained(tmp_path, encoder, make_params(encoder))
    for given, used in ((KEY, KEY), (None, jax.random.key(0))):
        model, params = from_pretrained(str(tmp_path), "classification", num_labels=5, rng=given)
        expected = model.init(used)["classifier"]["kernel"]
        np.testing.assert_allclose(params["classifier"]["kernel"], expected, rtol=1e-6)
        _, moved = with_head(
            encoder, make_params(encoder), head="classification", num_labels=5, rng=given
        )
        np.testing.assert_array_equal(moved["classifier"]["kernel"], params["classifier"]["kernel"])


def test_with_head_changes_what_it_is_asked_to():
    params = make_params(ONE, dtype=jnp.bfloat16)
    same, kept = with_head(ONE, params, head="classification")
    assert same == ONE
    assert_equal(kept, params)
    model, other = with_head(
        ONE, params, head="classification", num_labels=4, pooling="mean", feature_norm=3.0
    )
    assert model == ONE.replace(num_labels=(4,), label_names=None, pooling="mean", feature_norm=3.0)
    assert {leaf.dtype for leaf in jax.tree.leaves(other)} == {jnp.dtype("bfloat16")}
    named, kept = with_head(ONE, params, head="classification", label_names=(("p", "q", "r"),))
    assert named.label_names == (("p", "q", "r"),)
    assert_equal(kept, params)
    again, _ = with_head(model, other, head="encoder")
    assert (again.pooling, again.feature_norm, again.num_labels) == ("mean", 3.0, (4,))


def test_classes_are_in_the_order_of_their_numbers(tmp_path):
    """The file may have them in any other, such as that of text."""
    tensors = convert.to_hugging_face(make_params(Transformer(TINY)))
    names = [f"n{i}" for i in range(11)]
    order = sorted(range(11), key=str)
    path = write_directory(tmp_path, tensors, id2label={str(i): names[i] for i in order})
    model = read_model(path, "classification")
    assert (model.num_labels, model.label_names) == ((11,), (tuple(names),))
    write_directory(tmp_path, tensors, id2label={"0": "LABEL_0", "1": "LABEL_1"})
    assert read_model(path).label_names is None
    write_directory(tmp_path, tensors, id2label={"0": "LABEL_0", "1": "yes"})
    assert read_model(path).label_names == (("LABEL_0", "yes"),)
    write_directory(tmp_path, tensors, num_labels=4)
    assert read_model(path).num_labels == (4,)
    write_directory(tmp_path, tensors)
    assert read_model(path).num_labels == (2,)


def test_whether_there_is_the_head_that_the_configuration_tells_of(tmp_path):
    params = make_params(ONE)
    save_pretrained(tmp_path / "one", ONE, params)
    save_pretrained(tmp_path / "two", HEADS, make_params(HEADS))
    encoder = {key: value for key, value in params.items() if key != "classifier"}
    save_pretrained(tmp_path / "none", Transformer(TINY), encoder)
    found = {each: has_classifier(str(tmp_path / each)) for each in ("one", "two", "none")}
    assert found == {"one": True, "two": True, "none": False}
    values = json.loads((tmp_path / "one" / "config.json").read_text())
    values["id2label"] = {"0": "a", "1": "b", "2": "c", "3": "d"}
    (tmp_path / "one" / "config.json").write_text(json.dumps(values))
    assert not has_classifier(str(tmp_path / "one"))


@pytest.mark.parametrize("model_type", ["roberta", "electra"])
def test_a_classifiers_own_dense_layer_takes_the_poolers_place(tmp_path, model_type):
    """Where a directory has both, in whatever order."""
    model = ONE.replace(config=ONE.config.__class__(**vars(TINY) | {"model_type": model_type}))
    params = make_params(model)
    tensors = convert.to_hugging_face(params)
    for name in ("weight", "bias"):
        tensors[f"classifier.{name}"] = tensors.pop(f"classifier.0.{name}")
    tensors = from_bert(tensors, model_type, model.config.first_position, "classification")
    pooler = {f"{model_type}.pooler.dense.weight": np.ones((8, 8), np.float32)}
    pooler[f"{model_type}.pooler.dense.bias"] = np.ones(8, np.float32)
    path = write_directory(tmp_path, tensors | pooler, model.config)
    _, found = from_pretrained(path, "classification", num_labels=3)
    assert_equal(found, params)


def test_hashes_tell_models_apart_and_nothing_else(tmp_path):
    save_pretrained(tmp_path, HEADS, make_params(HEADS))
    write_tokenizer(tmp_path)
    before = hashes(str(tmp_path))

    def digest(*names):
        parts = [hashlib.sha256((tmp_path / name).read_bytes()).digest() for name in names]
        return hashlib.sha256(b"".join(parts)).hexdigest()

    assert before == {
        "sha256": digest("model.safetensors", "classifier.safetensors"),
        "config_sha256": digest("config.json", "tokenizer_config.json", "vocab.txt"),
    }
    (tmp_path / "README.md").write_text("of no account")
    assert hashes(str(tmp_path)) == before


def test_a_vocabulary_larger_than_the_table_is_refused(tmp_path):
    write_tokenizer(tmp_path)
    Transformer(TINY, source=str(tmp_path)).tokenizer  # noqa: B018
    (tmp_path / "more").mkdir()
    write_tokenizer(tmp_path / "more")
    (tmp_path / "more" / "vocab.txt").write_text("\n".join([*WORDS, "w26"]) + "\n")
    with pytest.raises(InputError, match="has a token 31, but the model's last token is 30"):
        Transformer(TINY, source=str(tmp_path / "more")).tokenizer  # noqa: B018


def test_padding_is_the_end_of_text_where_a_tokenizer_has_none(tmp_path):
    tiny.write_gpt2(tmp_path)
    found = Transformer(TINY.__class__(vocab_size=400), source=str(tmp_path)).tokenizer
    assert found.pad_token == found.eos_token == "<|endoftext|>"
