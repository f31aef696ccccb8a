"""Adapt by the method and weights of the settings, or by those that cross-validation chooses."""

import logging
import math
import time
from typing import Any, NamedTuple

import numpy as np

from metajax import data
from metajax.config.inner import DEFAULT_METHOD, MethodSettings
from metajax.runs.choice import Adapted, Calibration
from metajax.runs.classifier import is_multi_label
from metajax.runs.cross_validation import HeldOut, deal, hold_out
from metajax.runs.features import features_of
from metajax.runs.few_shot import FewShot
from metajax.runs.methods import HEADS, Method, adapt_to, method_of
from metajax.runs.recipes import RECIPES

_log = logging.getLogger("metajax")
_CONTRASTIVE = RECIPES["contrastive"]
# What `--method choose` compares. Those before the default only train a head on features that are
# computed once. Other rates and numbers of steps share the compiled steps.
CANDIDATES = {
    "prototypes": Method("prototypes"),
    "linear C=0.1": Method("linear", inverse_strength=0.1),
    "linear": Method("linear"),
    "linear C=10": Method("linear", inverse_strength=10.0),
    "contrastive": method_of("contrastive"),
    "finetune": method_of("finetune"),
    "contrastive 3e-5": Method("contrastive", _CONTRASTIVE.at_rate(3e-5)),
    "finetune 1e-4": Method("finetune", RECIPES["finetune"].at_rate(1e-4)),
    "contrastive twice as long": Method("contrastive", _CONTRASTIVE.longer(2)),
}
_ORIGINAL = "original "  # Begins the name of a candidate with the original weights.


def adapt_by(
    few_shot: FewShot,
    examples: data.TokenizedTask,
    settings: MethodSettings,
    *,
    original: FewShot | None = None,
    chooses: bool = False,
    known: dict[str, Any] | None = None,
    donate: bool = False,
) -> Adapted:
    """Adapt to one task's examples, as `adapt` does.

    Args:
        few_shot: the network, and the settings of its inner loop, from `prepare`.
        examples: as for `adapt_to`. For `choose` and `calibrate`, with one label each.
        settings: the method and its settings.
        original: the same with the original weights, to choose between them; see `with_weights`.
        chooses: as for `adapt_to`.
        known: results of an earlier run. If given, its choices are repeated.
        donate: whether to free the weights that are trained, as in `adapt_to`. The caller must not
            use `few_shot.params` or `original.params` afterwards.
    """
    search = _Search(few_shot, original, examples, settings, chooses)
    method, choice, calibration = _settled(search, known)
    if calibration is not None and calibration.temperature is not None:
        method = method._replace(temperature=calibration.temperature)
    few_shot = search.weights(choice)
    adapted = adapt_to(few_shot, examples, method, chooses=chooses, known=known, donate=donate)
    return adapted._replace(choice=choice, calibration=calibration)


class _Search(NamedTuple):
    """What is compared; see `adapt_by`."""

    few_shot: FewShot
    original: FewShot | None
    examples: data.TokenizedTask
    settings: MethodSettings
    chooses: bool

    @property
    def methods(self) -> dict[str, Method]:
        """The methods to compare, by name."""
        name, weight = self.settings.method, self.settings.class_weight
        several_labels = is_multi_label(self.few_shot.model)
        own = {name: method_of(name, several_labels=several_labels)}
        methods = CANDIDATES if name == "choose" else own
        return {each: method._replace(class_weight=weight) for each, method in methods.items()}

    @property
    def default(self) -> str:
        """The method that is used unless another one is better."""
        return DEFAULT_METHOD if self.settings.method == "choose" else self.settings.method

    @property
    def starts(self) -> dict[str, FewShot]:
        """The weights to compare, by the beginning of their candidates' names."""
        if self.original is None or self.original is self.few_shot:
            return {"": self.few_shot}
        return {"": self.few_shot, _ORIGINAL: self.original}

    @property
    def names(self) -> list[str]:
        """The names of all candidates, in the order of `CANDIDATES`."""
        return [start + method for method in self.methods for start in self.starts]

    def weights(self, choice: dict[str, Any] | None) -> FewShot:
        """Return the weights that were chosen; those of `--model` if there was no choice."""
        is_original = choice is not None and choice.get("weights") == "original"
        return self.starts[_ORIGINAL if is_original else ""]


def _settled(
    search: _Search, known: dict[str, Any] | None
) -> tuple[Method, dict[str, Any] | None, Calibration | None]:
    """Return the method, what is reported about a choice if there was one, and calibration."""
    choice, held, settings = None, None, search.settings
    if settings.method == "choose" or search.original is not None:
        choice, held = _choose(search, known)
    method = search.methods[search.default if choice is None else choice["chosen"]]
    if not settings.calibrate:
        return method, choice, None
    if known is not None:
        return method, choice, Calibration(known["temperature"], known["threshold"])
    if held is None:
        held = _hold_out(search.weights(choice), search.examples, method)
    return method, choice, Calibration(None, None) if held is None else held.calibration()


def _choose(search: _Search, known: dict[str, Any] | None) -> tuple[dict[str, Any], HeldOut | None]:
    """Return what is reported about the choice, and the held-out examples of the chosen method."""
    if known is not None:
        return known["choice"], None
    tried, folds = _try(search, time.monotonic() + search.settings.time_limit)
    choice = _described(search, tried, folds)
    if "verdict" in choice:
        _log.info("choose: %s", choice["verdict"])
    if search.settings.method == "choose":
        _log.info("choose: %s is used", choice["chosen"])
    start = _ORIGINAL if choice.get("weights") == "original" else ""
    return choice, _finite(tried).get(start + choice["chosen"])


def _try(search: _Search, until: float) -> tuple[dict[str, HeldOut], int]:
    """Cross-validate the candidates until the time is over, and all that only train a head.

    Returns:
        Results of the candidates that were tried, and the number of folds; none if there is only
        one, or no class has a second example.
    """
    examples, tried = search.examples, dict[str, HeldOut]()
    folds = deal(examples.labels, search.few_shot.seed)
    if len(search.names) == 1:
        return tried, 0
    if folds.max() < 1:
        if search.original is None:  # Otherwise the verdict says it.
            _log.warning(
                "choose: no class has a second example, so nothing can be held out; %s is used",
                search.default,
            )
        return tried, 0
    methods = search.methods.values()
    features = {
        start: _features(few_shot, examples, *methods) for start, few_shot in search.starts.items()
    }
    for method_name, method in search.methods.items():
        limit = math.inf if method.name in HEADS else until  # A head takes little time.
        for start, few_shot in search.starts.items():
            held = hold_out(
                *(few_shot, examples, method, folds, features[start]),
                chooses=search.chooses,
                until=limit,
            )
            if held is not None:
                tried[start + method_name] = held
                _log.info("choose: %s: %s", start + method_name, _shown(held))
    if cut := _cut(search, tried):
        _log.warning("choose: the time limit left out %s", ", ".join(cut))
    return tried, int(folds.max()) + 1


def _features(
    few_shot: FewShot, examples: data.TokenizedTask, *methods: Method
) -> np.ndarray | None:
    """Return the features that methods train only a head on; None if none of them does."""
    if not any(method.name in HEADS for method in methods):
        return None
    return features_of(few_shot.model, few_shot.params, examples)


def _cut(search: _Search, tried: dict[str, HeldOut]) -> list[str]:
    """Return the candidates that were not tried."""
    return [name for name in search.names if name not in tried]


def pick(tried: dict[str, HeldOut], default: str = DEFAULT_METHOD) -> str:
    """Return the candidate with the largest calibrated log-likelihood.

    The default is preferred unless another is ahead of it by more than the standard error of the
    difference, example by example. Candidates whose training diverged are never chosen.
    """
    tried = _finite(tried)
    if not tried:
        return default
    losses = {name: _losses(held) for name, held in tried.items()}
    best = min(losses, key=lambda name: losses[name].mean())  # The first of equal ones.
    if default not in losses:
        return best
    ahead, error = _lead(tried[best], tried[default])
    return best if ahead > error else default


def _losses(held: HeldOut) -> np.ndarray:
    return held.weights * held.losses(held.temperature())


def _lead(held: HeldOut, other: HeldOut) -> tuple[float, float]:
    """Return by how much the log-likelihood is larger than another, and its standard error."""
    ahead = _losses(other) - _losses(held)
    return float(ahead.mean()), float(ahead.std(ddof=1) / np.sqrt(len(ahead)))


def pick_weights(tried: dict[str, HeldOut], default: str) -> tuple[str, str, str]:
    """Choose between the checkpoint and the original weights, each with its own method.

    The original weights are used only if they are ahead by more than the standard error.

    Returns:
        `checkpoint` or `original`, the method, and why.
    """
    finite = _finite(tried)
    own = {name: held for name, held in finite.items() if not name.startswith(_ORIGINAL)}
    others = {name: held for name, held in finite.items() if name not in own}
    method, other = pick(own, default), pick(others, _ORIGINAL + default)
    if other not in others:
        why = "has no finite result" if other in tried else "was left out by the time limit"
        return "checkpoint", method, f"{other} {why}; the checkpoint is used"
    chosen = other.removeprefix(_ORIGINAL)
    if method not in own:
        return "original", chosen, f"{method} has no finite result; the original weights are used"
    ahead, error = _lead(others[other], own[method])
    lead = f"the log-likelihood of {other} minus that of {method} is {ahead:.4f} ± {error:.4f}"
    if ahead > error:
        return "original", chosen, f"{lead}; the original weights are used"
    return "checkpoint", method, f"{lead}; the checkpoint is used"


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
    features = _features(few_shot, examples, method)
    held = hold_out(few_shot, examples, method, folds, features)
    if held is None or not np.isfinite(held.logits).all():
        _log.warning(
            "calibrate: the logits of held-out examples are not finite; the probabilities are not "
            "calibrated"
        )
        return None
    _log.info("calibrate: %s", _shown(held))
    return held


def _described(search: _Search, tried: dict[str, HeldOut], folds: int) -> dict[str, Any]:
    """Describe the choice among the candidates that were tried, as JSON."""
    weights: dict[str, str] = {}
    if search.original is None:
        chosen = pick(tried, search.default)
    else:
        name, chosen, why = pick_weights(tried, search.default)
        weights = {"weights": name, "verdict": _nothing_to_compare(search, folds) or why}
    return {
        "chosen": chosen,
        **weights,
        "folds": folds,
        "examples": max((len(held.labels) for held in tried.values()), default=0),
        "candidates": {name: _measured(held) for name, held in _finite(tried).items()},
        "cut": _cut(search, tried) if folds else [],
    }


def _nothing_to_compare(search: _Search, folds: int) -> str | None:
    """Return why the original weights could not be compared; None if they were."""
    if search.original is search.few_shot:
        return "the checkpoint has its original weights, so there is nothing to compare"
    if not folds:
        return "no class has a second example, so nothing can be compared; the checkpoint is used"
    return None


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
