"""Adapt by the method of the settings, or by one that cross-validation chooses."""

import logging
import math
import time
from typing import Any

import numpy as np

from metajax import data
from metajax.config.inner import DEFAULT_METHOD, MethodSettings
from metajax.runs.choice import Adapted, Calibration
from metajax.runs.classifier import is_multi_label
from metajax.runs.cross_validation import HeldOut, deal, hold_out
from metajax.runs.features import features_of
from metajax.runs.few_shot import FewShot
from metajax.runs.methods import RECIPES, Method, adapt_to, method_of

_log = logging.getLogger("metajax")
# What `--method choose` compares, the cheapest first. Those before the default only train a head on
# features that are computed once. Other rates and numbers of steps share the compiled steps.
CANDIDATES = {
    "prototypes": Method("prototypes"),
    "linear C=0.1": Method("linear", inverse_strength=0.1),
    "linear": Method("linear"),
    "linear C=10": Method("linear", inverse_strength=10.0),
    "contrastive": method_of("contrastive"),
    "finetune": method_of("finetune"),
    "contrastive 1e-4": Method("contrastive", RECIPES["contrastive"]._replace(learning_rate=1e-4)),
    "finetune 1e-4": Method("finetune", RECIPES["finetune"]._replace(learning_rate=1e-4)),
    "contrastive 40 steps": Method("contrastive", RECIPES["contrastive"]._replace(steps=40)),
}


def adapt_by(
    few_shot: FewShot,
    examples: data.TokenizedTask,
    settings: MethodSettings,
    *,
    chooses: bool = False,
    known: dict[str, Any] | None = None,
) -> Adapted:
    """Adapt to one task's examples, as `adapt` does.

    Args:
        few_shot: the network, and the settings of its inner loop, from `prepare`.
        examples: as for `adapt_to`. For `choose` and `calibrate`, with one label each.
        settings: the method and its settings.
        chooses: as for `adapt_to`.
        known: results of an earlier run. If given, its choices are repeated.
    """
    method, choice, calibration = _settled(few_shot, examples, settings, known)
    if calibration is not None and calibration.temperature is not None:
        method = method._replace(temperature=calibration.temperature)
    adapted = adapt_to(few_shot, examples, method, chooses=chooses, known=known)
    return adapted._replace(choice=choice, calibration=calibration)


def _settled(
    few_shot: FewShot,
    examples: data.TokenizedTask,
    settings: MethodSettings,
    known: dict[str, Any] | None,
) -> tuple[Method, dict[str, Any] | None, Calibration | None]:
    """Return the method, what is reported about its choice if there was one, and calibration."""
    choice, held, several_labels = None, None, is_multi_label(few_shot.model)
    method = method_of(settings.method, settings.class_weight, several_labels=several_labels)
    if settings.method == "choose":
        choice, held = _choose(few_shot, examples, settings, known)
        method = CANDIDATES[choice["chosen"]]._replace(class_weight=settings.class_weight)
    if not settings.calibrate:
        return method, choice, None
    if known is not None:
        return method, choice, Calibration(known["temperature"], known["threshold"])
    if choice is None:
        held = _hold_out(few_shot, examples, method)
    return method, choice, Calibration(None, None) if held is None else held.calibration()


def _choose(
    few_shot: FewShot,
    examples: data.TokenizedTask,
    settings: MethodSettings,
    known: dict[str, Any] | None,
) -> tuple[dict[str, Any], HeldOut | None]:
    """Return what is reported about the choice, and the held-out examples of the chosen method."""
    if known is not None:
        return known["choice"], None
    until = time.monotonic() + settings.time_limit
    tried, folds = _try(few_shot, examples, settings.class_weight, until)
    choice = _described(tried, folds)
    _log.info("choose: %s is used", choice["chosen"])
    return choice, _finite(tried).get(choice["chosen"])


def _try(
    few_shot: FewShot, examples: data.TokenizedTask, class_weight: str | None, until: float
) -> tuple[dict[str, HeldOut], int]:
    """Cross-validate the candidates until the time is over, and all that only train a head.

    Returns:
        Results of the candidates that were tried, and the number of folds; none if no class has a
        second example.
    """
    folds = deal(examples.labels, few_shot.seed)
    tried: dict[str, HeldOut] = {}
    if folds.max() < 1:
        _log.warning(
            "choose: no class has a second example, so nothing can be held out; %s is used",
            DEFAULT_METHOD,
        )
        return tried, 0
    features = features_of(few_shot.model, few_shot.params, examples)
    for name, method in CANDIDATES.items():
        method = method._replace(class_weight=class_weight)
        limit = math.inf if method.recipe is None else until  # A head takes little time.
        held = hold_out(few_shot, examples, method, folds, features, until=limit)
        if held is None:
            break
        tried[name] = held
        _log.info("choose: %s: %s", name, _shown(held))
    if cut := _cut(tried):
        _log.warning("choose: the time limit left out %s", ", ".join(cut))
    return tried, int(folds.max()) + 1


def _cut(tried: dict[str, HeldOut]) -> list[str]:
    """Return the candidates that were not tried."""
    return [name for name in CANDIDATES if name not in tried]


def pick(tried: dict[str, HeldOut]) -> str:
    """Return the candidate with the largest calibrated log-likelihood.

    The default method is preferred unless another is ahead of it by more than the standard error of
    the difference, example by example. Candidates whose training diverged are never chosen.
    """
    tried = _finite(tried)
    if not tried:
        return DEFAULT_METHOD
    losses = {name: held.weights * held.losses(held.temperature()) for name, held in tried.items()}
    best = min(losses, key=lambda name: losses[name].mean())  # The first of equal ones.
    if DEFAULT_METHOD not in losses:
        return best
    ahead = losses[DEFAULT_METHOD] - losses[best]
    clear = ahead.mean() > ahead.std(ddof=1) / np.sqrt(len(ahead))
    return best if clear else DEFAULT_METHOD


def _finite(tried: dict[str, HeldOut]) -> dict[str, HeldOut]:
    """Return the candidates whose losses are all finite."""
    return {name: held for name, held in tried.items() if np.isfinite(held.logits).all()}


def _hold_out(few_shot: FewShot, examples: data.TokenizedTask, method: Method) -> HeldOut | None:
    """Cross-validate one method. Return None if no example can be held out."""
    folds = deal(examples.labels, few_shot.seed)
    if folds.max() < 1:
        _log.warning(
            "calibrate: no class has a second example, so nothing can be held out; the "
            "probabilities are not calibrated"
        )
        return None
    features = features_of(few_shot.model, few_shot.params, examples)
    held = hold_out(few_shot, examples, method, folds, features)
    if held is None or not np.isfinite(held.logits).all():
        _log.warning(
            "calibrate: the logits of held-out examples are not finite; the probabilities are not "
            "calibrated"
        )
        return None
    _log.info("calibrate: %s", _shown(held))
    return held


def _described(tried: dict[str, HeldOut], folds: int) -> dict[str, Any]:
    """Describe the choice among the candidates that were tried, as JSON."""
    return {
        "chosen": pick(tried),
        "folds": folds,
        "examples": max((len(held.labels) for held in tried.values()), default=0),
        "candidates": {name: _measured(held) for name, held in _finite(tried).items()},
        "cut": _cut(tried) if tried else [],
    }


def _measured(held: HeldOut) -> dict[str, float]:
    temperature = held.temperature()
    return {
        "log_likelihood": -float((held.weights * held.losses(temperature)).mean()),
        "accuracy": held.accuracy(),
        "temperature": temperature,
    }


def _shown(held: HeldOut) -> str:
    measured = _measured(held)
    return (
        f"log-likelihood {measured['log_likelihood']:.4f} at temperature "
        f"{measured['temperature']:.3g}, accuracy {measured['accuracy']:.4f} of "
        f"{len(held.labels)} held-out examples"
    )
