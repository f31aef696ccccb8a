"""What each stage compiles, from shapes, for `plan`. All texts have `--max-length` tokens."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from metajax import data
from metajax.algorithms.inner_loop import mean_recomputed_steps
from metajax.algorithms.supervised import supervised
from metajax.config.inner import InnerSettings
from metajax.config.plan import PlanSettings
from metajax.models import causal_lm_loss, classification_loss, masked_lm_loss
from metajax.models.contracts import Pooling
from metajax.platforms import is_short
from metajax.runs.descent import describe_gradient, fold, pack
from metajax.runs.described import describe_source, is_decoder, pooling_of
from metajax.runs.document_tasks import stream_spec
from metajax.runs.few_shot import FewShot, describe_few_shot
from metajax.runs.source import text_length
from metajax.training.outer import AlgorithmOrSchedule, Frozen
from metajax.types import Batch, Params, Task


class Training(NamedTuple):
    """A step of an outer loop.

    Attributes:
        params: the network's parameters.
        algorithm: a MetaAlgorithm, or a function from the outer step to one.
        start: from the network's parameters to the initialization that the algorithm trains.
        task: one task; its leaves lack the axis of tasks.
        num_tasks: tasks of a step, on all devices.
        chunk_size: see `metajax.outer_loop`.
        frozen: see `metajax.outer_loop`.
        repeated_steps: see `mean_recomputed_steps`.
        short: whether to compile quickly; see `is_short`.
    """

    params: Params
    algorithm: AlgorithmOrSchedule
    start: Callable[[Params], Params]
    task: Task
    num_tasks: int
    chunk_size: int | None = None
    frozen: Frozen = None
    repeated_steps: float = 1
    short: bool = False

    def tasks(self, count: int) -> Task:
        """Return a batch of tasks, with leaves [count, ...]."""
        return jax.tree.map(lambda leaf: leaf.update(shape=(count, *leaf.shape)), self.task)


class Adaptation(NamedTuple):
    """The program that `adapt` runs: a gradient, or all its steps.

    Attributes:
        params: the network's parameters.
        function: what is compiled.
        arguments: its arguments; the first one is overwritten if `donates`.
        kept: what is in memory while it runs besides the examples.
        examples: the examples that it takes.
        donates: whether the result overwrites the first argument.
    """

    params: Params
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    kept: Any
    examples: Batch
    donates: bool


def describe_training(settings: PlanSettings, devices: int) -> Training:
    """Describe a step of pretrain, finetune or metatrain on some devices."""
    describe = {"pretrain": _pretrain, "finetune": _finetune, "metatrain": _metatrain}
    return describe[settings.stage](settings, devices)


def describe_adaptation(settings: PlanSettings) -> Adaptation:
    """Describe what adapt compiles: see `Adaptation`."""
    few_shot = described(settings)
    if not settings.documents and few_shot.entry.plain_steps:
        function, arguments, kept = describe_gradient(
            few_shot, fold(_examples(settings, few_shot))[0]
        )
        return Adaptation(few_shot.params, function, arguments, kept, arguments[3], donates=True)
    if settings.documents:
        support = _stream(settings, few_shot).support
    else:
        support = jax.tree.map(lambda leaf: leaf[0], pack(_examples(settings, few_shot), 1))
    adapt = few_shot.algorithm().adapt
    meta_params = jax.eval_shape(
        lambda params: _with(few_shot, params).meta_params, few_shot.params
    )
    arguments = (meta_params, shapes_of(support))
    return Adaptation(
        few_shot.params,
        lambda params, support: adapt(params, support, None),
        arguments,
        meta_params,
        arguments[1],
        donates=False,
    )


def described(settings: PlanSettings) -> FewShot:
    """Describe the network and inner loop of metatrain or adapt."""
    inner: InnerSettings = settings
    if settings.stage == "adapt":  # The algorithm is that of the model.
        names = (field.name for field in dataclasses.fields(InnerSettings))
        inner = InnerSettings(**{name: getattr(settings, name) for name in names})
    classes = None if settings.on_documents else settings.ways
    return describe_few_shot(settings.model, settings, inner, classes)


def shapes_of(tree: Any) -> Any:
    """Return the shapes of arrays."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def _pretrain(settings: PlanSettings, devices: int) -> Training:
    causal = is_decoder(settings.model)
    source = describe_source(settings.model, settings, head="causal_lm" if causal else "masked_lm")
    model = source.model
    rows = np.ones((settings.rows // devices, text_length(model, settings.max_length)), np.int32)
    if causal:
        loss_fn = causal_lm_loss(model)
        batch = data.document_batch(data.Documents(rows, rows, rows, rows))
    else:
        loss_fn = masked_lm_loss(model)
        rule = data.MaskRule(mask_id=0, replacements=np.zeros(1, np.int32))
        batch = data.mask_tokens(data.Blocks(rows, rows, rows > 0, rows > 0), rule, 0, 0)
    return Training(
        source.params, supervised(loss_fn), _unchanged, Task(None, shapes_of(batch)), devices
    )


def _finetune(settings: PlanSettings, devices: int) -> Training:
    source = describe_source(
        settings.model,
        settings,
        head="classification",
        num_labels=(settings.ways,),
        pooling=cast(Pooling, pooling_of(settings.model, "pooler")),
    )
    model, size = source.model, settings.rows // devices
    examples = _texts(size, text_length(model, settings.max_length), settings.ways)
    batch = data.supervised_batch([examples], 0, 0, size)
    packed = data.packed_parts(batch, 1, data.plan_batches([examples], 0, size, 1, steps=1))
    query = jax.tree.map(lambda leaf: leaf[0], packed)
    algorithm = supervised(classification_loss(model))
    return Training(source.params, algorithm, _unchanged, Task(None, shapes_of(query)), devices)


def _metatrain(settings: PlanSettings, devices: int) -> Training:
    few_shot = described(settings)
    few_shot = few_shot._replace(inner=few_shot.inner | {"low_memory": settings.low_memory})
    return Training(
        few_shot.params,
        few_shot.schedule(settings.steps),
        lambda params: _with(few_shot, params).start,
        _stream(settings, few_shot) if settings.on_documents else _episode(settings, few_shot),
        settings.meta_batch_size,
        settings.chunk_size,
        few_shot.frozen,
        mean_recomputed_steps(few_shot.inner["inner_steps"]),
        is_short(settings.steps * settings.meta_batch_size // devices),
    )


def _with(few_shot: FewShot, params: Params) -> FewShot:
    return few_shot._replace(source=few_shot.source._replace(params=params), params=params)


def _unchanged(params: Params) -> Params:
    return params


def _texts(count: int, length: int, classes: int) -> data.TokenizedTask:
    """Return examples of equal length, of which each class has about as many."""
    tokens = data.Tokens(
        np.ones((count, length), np.int32),
        np.zeros((count, length), np.int8),
        np.full(count, length),
        truncated=0,
    )
    names = tuple(map(str, range(classes)))
    return data.TokenizedTask("", tokens, np.arange(count) % classes, names, ())


def _examples(settings: PlanSettings, few_shot: FewShot) -> data.TokenizedTask:
    """Return the labelled examples that adapt takes."""
    length = few_shot.text_length(settings.max_length)
    return _texts(settings.ways * settings.shots, length, settings.ways)


def _episode(settings: PlanSettings, few_shot: FewShot) -> Task:
    """Return the shapes of an episode, with one text per row."""
    length = few_shot.text_length(settings.max_length)

    def batch(examples: int) -> dict[str, jax.ShapeDtypeStruct]:
        tokens = ("input_ids", "token_type_ids", "position_ids", "example_ids")
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(tokens, (examples, length))
        shapes |= {"first_token": (examples,), "labels": (examples,)}
        masks = {"example_mask": (examples,), "class_mask": (settings.ways,)}
        return {key: jax.ShapeDtypeStruct(shape, jnp.int32) for key, shape in shapes.items()} | {
            key: jax.ShapeDtypeStruct(shape, jnp.float32) for key, shape in masks.items()
        }

    return Task(batch(settings.ways * settings.shots), batch(settings.ways * settings.queries))


def _stream(settings: PlanSettings, few_shot: FewShot) -> Task:
    """Return the shapes of a document that fills all its chunks."""
    spec = stream_spec(few_shot, settings.queries, settings.max_length)
    tokens = np.ones(spec.window, np.int32)
    chunks = data.cut_chunks(data.TokenizedDocument(tokens, tokens), spec.length)
    one = data.stream_tasks([chunks], spec)
    return shapes_of(jax.tree.map(lambda leaf: leaf[0], one))
