"""Choose the inner steps of `adapt`: the rate, or no steps if the prototypes are as good."""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from metajax.errors import InputError
from metajax.runs.descent import Descent
from metajax.runs.few_shot import FewShot
from metajax.types import Params

_log = logging.getLogger("metajax")
# Rates to try if the settings have none. With one example per class, sentence encoders work with
# 0.3. A plain pretrained BERT hardly tolerates 0.01.
_RATES = (0.3, 0.1, 0.03, 0.01, 0.003)
_LORA_RATES = (3.0, 1.0)  # Tried first for adapters, because they start at zero and change slowly.
_ADAM_RATES = (0.03, 0.01, 0.003, 0.001, 0.0003)  # A step changes each parameter by the rate.


class Calibration(NamedTuple):
    """What is known about a method's probabilities.

    Attributes:
        temperature: divides the logits. None if nothing could be held out; they stay as they are.
        threshold: 95% of held-out examples have a largest probability of at least this. None
            likewise.
    """

    temperature: float | None
    threshold: float | None


class Adapted(NamedTuple):
    """The adapted parameters, and the steps that led to them.

    Attributes:
        params: all parameters. The functions of this module return them reparametrized by
            `Descent`.
        losses: loss on the examples before each step and after the last step.
        rate: rate of the steps. None if there is none: the prototypes were kept, the rates are
            learned, or the algorithm takes no steps.
        left_out: result of the cross-validation of the steps, if there was one.
        choice: how the method was chosen, if it was.
        calibration: of the probabilities, if it was asked for.
    """

    params: Params
    losses: list[float]
    rate: float | None
    left_out: dict[str, Any] | None = None
    choice: dict[str, Any] | None = None
    calibration: Calibration | None = None


def choose(few_shot: FewShot, descent: Descent) -> Adapted:
    """Take steps at the rate that `_search` finds, or keep the prototypes without steps.

    The steps are used if they label more held-out examples correctly in cross-validation. They are
    also used if there is no cross-validation, because no class has a second example or the head
    does not start from prototypes.
    """
    adapted = _search(descent, _rates(few_shot))
    if few_shot.inner["head"] != "prototypes":
        return adapted
    right, judged = descent.left_out(None)
    if not judged:
        return adapted
    _log.info("rate %g: cross-validating the steps", adapted.rate)
    right_after, _ = descent.left_out(adapted.rate)
    summary = (
        f"of {judged} held-out examples, the steps label {right_after} correctly and the "
        f"prototypes without steps {right}; "
        f"the {'steps' if right_after > right else 'prototypes'} are used"
    )
    left_out: dict[str, Any] = {
        "examples": judged,
        "prototypes": right / judged,
        "steps": right_after / judged,
    }
    left_out |= {"inner_lr": adapted.rate}
    if right_after > right:
        _log.info("%s", summary)
        return adapted._replace(left_out=left_out)
    _log.info("%s (to use steps, give --inner-lr %g and a new --workdir)", summary, adapted.rate)
    return _stay(descent, None, left_out)


def repeat(descent: Descent, known: dict[str, Any]) -> Adapted:
    """Repeat the choice of an earlier run."""
    rate, left_out = known["inner_lr"], known.get("left_out")
    if rate is None:
        return _stay(descent, None, left_out)
    return _search(descent, (float(rate),))._replace(left_out=left_out)


def take_steps(few_shot: FewShot, descent: Descent) -> Adapted:
    """Take the steps at the rate of the settings."""
    rate = few_shot.inner["inner_lr"]
    if not few_shot.inner["inner_steps"]:
        takes_rate = "inner_lr" in few_shot.entry.settings
        return _stay(descent, rate if takes_rate else None, None)
    return _search(descent, (rate,))


def _stay(descent: Descent, rate: float | None, left_out: dict[str, Any] | None) -> Adapted:
    """Take no steps."""
    params = descent.start(descent.parts)
    loss = descent.loss(params, descent.parts)
    _check_start(loss)
    return Adapted(params, [loss], rate, left_out)


def _rates(few_shot: FewShot) -> tuple[float, ...]:
    """Return the rates to try, in decreasing order, from the rate of meta-training if any."""
    rates = (*_LORA_RATES, *_RATES) if few_shot.inner["lora"] else _RATES
    rates = _ADAM_RATES if few_shot.inner["inner_optimizer"] == "adam" else rates
    if not few_shot.is_meta_trained:
        return rates
    trained_rate = few_shot.inner["inner_lr"]
    return (trained_rate, *(rate for rate in rates if rate < trained_rate))


def _search(descent: Descent, rates: Sequence[float]) -> Adapted:
    """Take the steps at the first rate that never increases the loss, or else at the last rate."""
    begin = descent.begin(descent.parts)
    _check_start(begin.loss)
    for rate in rates:
        params, losses = descent.descend(begin, rate, stop=rate != rates[-1])
        if np.all(np.diff(losses) <= 0):
            break
        if rate != rates[-1]:
            _log.info(
                "rate %g: step %d increases the loss; trying a smaller rate", rate, len(losses) - 1
            )
    return Adapted(params, losses, rate)


def _check_start(loss: float) -> None:
    if not np.isfinite(loss):
        raise InputError(f"--model: the loss on the examples is {loss}; give other weights")
