"""`--model`: a hub id, a Hugging Face directory, or the workdir of an earlier stage."""

import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from metajax.algorithms import ALGORITHMS, lora
from metajax.config.groups import ModelSettings
from metajax.errors import InputError
from metajax.models import (
    Transformer,
    TransformerConfig,
    from_pretrained,
    hashes,
    load_adapters,
    with_head,
)
from metajax.models.contracts import HEAD_KEY, DenseLayer, Head
from metajax.models.files import base_of, read_json
from metajax.models.hashing import adapter_hashes
from metajax.models.metadata import encodes_texts
from metajax.models.pretrained import HeadOptions
from metajax.runs.adapters import adapter_kind, adapter_settings, make_adapters
from metajax.runs.best import step_to_read
from metajax.runs.paths import address, in_bucket, local, to_path
from metajax.runs.record import check_record, identity, read_record
from metajax.tree import overlay, path_name
from metajax.types import LossFn, Params

_log = logging.getLogger("metajax")

_HEADS = (*HEAD_KEY.values(), "projection")  # Keys of parameters that belong to a head.
DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}


class Source(NamedTuple):
    """A network, its weights, and their origin.

    Attributes:
        model: the network.
        params: its parameters.
        record: `parent` in the record of a run that starts from the weights. For Hugging Face
            weights, their address and hashes. For a workdir, its path, step and record.
        learned: other meta-trained parameters, such as the rates of the inner steps, or None.
        split: `{"base", "adapters"}`, which `params` merges, or None if there are no adapters.
        adapter_settings: the settings that describe the adapters; empty if there are none.
        base: address of the frozen base of the adapters, or None.
    """

    model: Transformer
    params: Params
    record: dict[str, Any]
    learned: dict[str, Any] | None = None
    split: Params | None = None
    adapter_settings: Mapping[str, Any] = MappingProxyType({})
    base: str | None = None

    @property
    def meta_settings(self) -> dict[str, Any]:
        """The settings of the run that meta-trained the weights; empty if there is none."""
        return _meta_settings(self.record.get("record", {}))

    @property
    def encodes_texts(self) -> bool:
        """Whether pairs are best read text by text: a sentence encoder that no stage has trained.

        Also a run that has adapted one to pairs.
        """
        if "record" in self.record:
            return bool(self.record["record"].get("model", {}).get("siamese"))
        return "base" not in self.record and encodes_texts(self.record["path"])

    def continues(self, inner: Mapping[str, Any]) -> bool:
        """Whether the settings of an inner loop ask for the adapters that the weights have."""
        return adapter_kind(self.adapter_settings) == adapter_kind(inner)

    def split_for(self, inner: Mapping[str, Any]) -> Params:
        """Return `{"base", "adapters"}` for an inner loop: as learned, or with new adapters."""
        if self.split is not None and self.continues(inner):
            return self.split
        adapters = make_adapters(self.model, inner)
        assert adapters is not None
        return adapters.split(self.params)


def _meta_settings(record: dict[str, Any]) -> dict[str, Any]:
    return record["settings"] if record.get("stage") == "metatrain" else {}


def open_source(
    spec: str, settings: ModelSettings | None = None, **head: Unpack[HeadOptions]
) -> Source:
    """Open `--model` with the head that a stage needs.

    Args:
        spec: `--model`.
        settings: dtype, remat, and the seed for parts of the head that the weights lack.
        **head: `head`, `num_labels`, `label_names`, `pooling` and `feature_norm`, as for
            `metajax.from_pretrained`. Without `head`, a workdir keeps its head.

    Raises:
        InputError: the model cannot be used.
    """
    path, record = find(spec)
    if record is None and (base := base_of(path)) is not None:
        return _open_peft(path, _open_base(path, base, settings, **head))
    rng, runtime = jax.random.key(0), {}
    if settings is not None:
        rng = jax.random.key(settings.seed)
        runtime = {"remat": settings.remat, "dtype": DTYPES[settings.dtype]}
    if record is None:
        model, params = from_pretrained(spec, rng=rng, **runtime, **head)
        if "num_labels" in head:
            model, params = _for_tasks(model, params, rng)
        where = address(path) if path.is_dir() else spec
        return Source(model, params, {"path": where, **hashes(spec)})
    from metajax.training import checkpoint  # Slow to import, because of Orbax.

    chosen = step_to_read(path)
    saved = checkpoint.load(path / "checkpoints", chosen)
    check_record(saved.record, path / "checkpoints" / str(saved.step))
    if not (path / "results.json").is_file():
        _log.warning("%s: is not finished; using the checkpoint of step %d", path, saved.step)
    elif chosen == 0:
        _log.warning(
            "%s: uses the weights from before meta-training, because no checkpoint was better on "
            "the validation tasks",
            path,
        )
    _check_finite(saved.params, f"{path}: the checkpoint of step {saved.step}")
    model = rebuild(path / "model", record["model"]).replace(**runtime)
    params, learned = _initialization(saved.params, saved.record)
    parent = {"path": address(path), "step": saved.step, "record": saved.record}
    if "adapters" in params:
        inner = adapter_settings(saved.record["settings"])
        source = Source(model, params.get("base", {}), parent, learned)
        if inner["freeze"]:
            base, where = _frozen_base(path, saved.record, inner)
            source = source._replace(params=overlay(base, source.params), base=where)
        return _with_adapters(source, params["adapters"], inner, rng, head)
    if head:
        model, params = with_head(model, params, rng=rng, **head)
    return Source(model, params, parent, learned)


def _with_adapters(
    base: Source, learned: Params, inner: dict[str, Any], rng: jax.Array, head: HeadOptions
) -> Source:
    """Return the source with adapters on its parameters.

    Args:
        base: the source of the other parameters.
        learned: the adapters.
        inner: settings that describe the adapters, and `freeze`.
        rng: key for parts of the head that the base lacks.
        head: as for `open_source`.
    """
    adapters = make_adapters(base.model, inner)
    assert adapters is not None  # The settings are those of a run that had them.
    split = {"base": base.params, "adapters": learned}
    model, params = base.model, adapters.merge(split)
    if head:
        model, params = with_head(model, params, rng=rng, **head)
        own = {key: leaf for key, leaf in base.params.items() if key not in _HEADS}
        # The head, if the base lacks it, but nothing that the adapters have.
        kept = (key for key in params if key in own or key not in learned)
        rest = {key: own.get(key, params[key]) for key in kept}
        split["base"] = rest
    return base._replace(model=model, params=params, split=split, adapter_settings=inner)


def _frozen_base(path: Path, record: dict[str, Any], inner: dict[str, Any]) -> tuple[Params, str]:
    """Read the base that a run kept frozen, from where the run read it. Return its address too.

    Args:
        path: the run.
        record: its record.
        inner: settings that describe its adapters.

    Raises:
        InputError: they cannot be read, or are other weights now.
    """
    parent = record["parent"]
    settings = ModelSettings(model=parent["path"], seed=record["settings"]["seed"])
    head: Head = "causal_lm" if record["model"]["head"] == "causal_lm" else "encoder"
    source = _open_base(path, parent["path"], settings, head=head)
    if identity(source.record) != identity(parent):
        raise InputError(
            f"{path}: the frozen weights at {parent['path']} have changed since; restore the old "
            "ones"
        )
    where = source.base if source.continues(inner) else None
    return source.split_for(inner)["base"], where or parent["path"]


def _open_base(
    path: Path, base: str, settings: ModelSettings | None, **head: Unpack[HeadOptions]
) -> Source:
    """Open the base of adapters.

    Raises:
        InputError: it cannot be used.
    """
    try:
        return open_source(base, settings, **head)
    except InputError as error:
        raise InputError(
            f"{path}: the base of its adapters cannot be read ({error}); restore it at this place"
        ) from None


def _open_peft(path: Path, base: Source) -> Source:
    """Open a directory of LoRA adapters in PEFT's format."""
    split = load_adapters(path, base.model, base.params)
    record = {"path": address(path), **adapter_hashes(path), "base": identity(base.record)}
    return Source(
        base.model,
        lora.merge(split),
        record,
        split=split,
        adapter_settings=lora_settings(split),
        base=base.record["path"],
    )


def lora_settings(split: Params) -> dict[str, Any]:
    """Return the settings that describe LoRA adapters."""
    blocks = split["adapters"]["layers"]
    downs = {name: kernel["down"] for name in blocks if (kernel := blocks[name].get("kernel"))}
    rank = max(down.shape[-1] for down in downs.values())
    return {"lora": rank, "lora_kernels": tuple(downs), "freeze": True}


def _initialization(
    meta_params: Params, record: dict[str, Any]
) -> tuple[Params, dict[str, Any] | None]:
    """Split meta-parameters into the network's parameters and the others."""
    key = ALGORITHMS[_meta_settings(record).get("algorithm") or "maml"].initialization
    if key is None:
        return meta_params, None
    return meta_params[key], {name: leaf for name, leaf in meta_params.items() if name != key}


def _check_finite(params: Params, where: str) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not np.isfinite(leaf).all():
            raise InputError(
                f"{where} has parameters that are not finite ({path_name(path)}); train again with "
                "a lower learning rate"
            )


def _for_tasks(model: Transformer, params: Params, rng: jax.Array) -> tuple[Transformer, Params]:
    """Replace a head of another kind by a head for one label or value per text."""
    if model.problem_type is None:
        return model, params
    _log.warning("%s: its head is for %s and is not used", model.source, model.problem_type)
    params = {key: value for key, value in params.items() if key != "classifier"}
    model = model.replace(problem_type=None)
    return with_head(model, params, head="classification", rng=rng)


def find(spec: str) -> tuple[Path, dict[str, Any] | None]:
    """Return the path of `--model`, and the record of the run there if there is one."""
    path = to_path(spec)
    record = read_record(path)
    if record is None and in_bucket(path):
        raise InputError(f"{spec}: has no run; in a bucket, give the working directory of a run")
    return path, record


def rebuild(directory: Path, described: dict[str, Any]) -> Transformer:
    """Build the model from the files of `save_config` and the values of `describe`."""
    directory = local(directory)
    file = directory / "config.json"
    try:
        config = TransformerConfig.from_dict(read_json(file), str(file))
        settings = {name: _tuples(value) for name, value in described.items()}
        if "dense" in settings:
            settings["dense"] = DenseLayer(*settings["dense"])
        return Transformer(config=config, source=str(directory), **settings)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{file}: does not describe this run's model ({error}); restore it from a backup"
        ) from None


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def describe(model: Transformer) -> dict[str, Any]:
    """Return the fields of a network that a run's record needs besides the config."""
    names = ("head", "pooling", "feature_norm", "num_labels", "label_names", "projection")
    kind = {} if model.problem_type is None else {"problem_type": model.problem_type}
    # Only sentence encoders have these.
    own = ("dense", "prompt", "siamese")
    encoder = {name: value for name in own if (value := getattr(model, name))}
    return {name: getattr(model, name) for name in names} | kind | encoder


def text_length(model: Transformer, max_length: int, *, prefix: int = 0) -> int:
    """Limit the tokens per text to the positions of the model, without those of a prefix.

    A siamese network reads the two texts of a pair in one row.
    """
    room = model.config.max_position_embeddings - prefix
    return min(max_length, room // 2 if model.siamese else room)


def without_dropout(loss_fn: LossFn) -> LossFn:
    """Return the loss without a key, so that the network does not use dropout."""
    return lambda params, batch, rng: loss_fn(params, batch, None)
