"""`--weights`: the weights that a run trained, or those that it started from."""

from metajax.config.fields import flag
from metajax.config.groups import ModelSettings
from metajax.config.inner import MethodSettings
from metajax.data import TaskData
from metajax.errors import InputError
from metajax.models import Transformer
from metajax.runs.few_shot import FewShot, open_as_trained
from metajax.runs.methods import prepare, reads_apart
from metajax.runs.record import identity


def open_original(few_shot: FewShot, settings: ModelSettings, classes: int | None) -> FewShot:
    """Open the weights that a run started from, with the inner loop of its own weights.

    Args:
        few_shot: the weights of the run.
        settings: `--model`, seed, dtype and remat.
        classes: as for `open_few_shot`.

    Raises:
        InputError: they cannot be read, or are other weights now.
    """
    parent = few_shot.source.record["record"]["parent"]
    try:
        original = open_as_trained(parent["path"], settings, few_shot, classes)
    except InputError as error:
        raise InputError(
            f"{settings.model}: the original weights, which it was trained from, cannot be read "
            f"({error}); restore them"
        ) from None
    if identity(original.source.record) != identity(parent):
        raise InputError(
            f"{parent['path']}: has changed since {settings.model} was trained from it; restore "
            "the original weights"
        )
    return original


def with_weights(
    few_shot: FewShot, settings: ModelSettings, weights: str
) -> tuple[FewShot, FewShot | None]:
    """Return the weights to adapt, and the original ones if both are to be compared.

    They differ in nothing else. If meta-training kept its start, there is nothing to compare, and
    both are `few_shot`.

    Args:
        few_shot: the weights of `--model`, without an inner loop if the method has none.
        settings: see `open_original`.
        weights: `--weights`.

    Raises:
        InputError: the original weights are not known, or cannot be used.
    """
    if weights == "checkpoint":
        return few_shot, None
    given, source = f"{flag('weights')} {weights}", few_shot.source
    if "record" not in source.record:
        raise InputError(
            f"{given}: {settings.model} is not the workdir of a run, so its original weights are "
            f"not known; give one, or remove {flag('weights')}"
        )
    stage, step = source.record["record"]["stage"], source.record["step"]
    if weights == "choose" and stage == "metatrain" and not step:  # It kept its start.
        return few_shot, few_shot
    was_frozen = source.continues(few_shot.inner) and source.adapter_settings.get("freeze")
    if weights == "choose" and few_shot.frozen is not None and not was_frozen:
        raise InputError(
            f"{given}: {settings.model} trained the weights that --freeze does not save; remove "
            "--freeze"
        )
    (classes,) = few_shot.model.num_labels
    original = open_original(few_shot, settings, classes)
    original = few_shot._replace(params=original.params, source=original.source, learned=None)
    return (original, None) if weights == "original" else (few_shot, original)


def prepare_weights(
    few_shot: FewShot, settings: ModelSettings, how: MethodSettings, task: TaskData
) -> tuple[FewShot, Transformer, FewShot | None]:
    """Return what `prepare` does, for the weights to adapt, and what to compare them with.

    Args:
        few_shot: the weights of `--model`.
        settings: see `open_original`.
        how: the method and `--weights`.
        task: the examples.

    Returns:
        The weights to adapt, the network of the result, and the original weights if both are to be
        compared; see `with_weights`.

    Raises:
        InputError: as in `with_weights`, or the two read pairs of texts in different ways.
    """
    if how.method != "steps":
        few_shot = few_shot.without_inner_loop()
    few_shot, original = with_weights(few_shot, settings, how.weights)
    prepared, model = prepare(few_shot, how.method, task)
    if original is None or original is few_shot:
        return prepared, model, original and prepared
    if reads_apart(original, how.method, task) != prepared.model.siamese:
        raise InputError(
            f"{flag('weights')} {how.weights}: {settings.model} reads the two texts of a pair "
            "together, and its original weights read them apart, so they cannot be compared; give "
            f"{flag('weights')} original or checkpoint"
        )
    return prepared, model, original._replace(model=prepared.model)
