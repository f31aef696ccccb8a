"""Which inner steps `adapt` takes: at which rate, or none where the prototypes are as good."""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from metajax.errors import InputError
from metajax.runs.descent import Descent
from metajax.runs.few_shot import FewShot
from metajax.types import Params

_log = logging.getLogger("metajax")
# Tried if the settings name no rate. A sentence encoder tolerates the first from one example per
# class; a plain pretrained BERT hardly tolerates the last but one.
_RATES = (0.3, 0.1, 0.03, 0.01, 0.003)
_LORA_RATES = (3.0, 1.0)  # Before these: adapters begin at zero and move little.


class Adapted(NamedTuple):
    """The adapted parameters and how they came about.

    Attributes:
        params: all of them; until `_descend` ends, as `Descent` has them.
        losses: on the examples before each step and after the last.
        rate: of the steps; None where none were kept, or where the rates are learned.
        left_out: the cross-validation that decided, if there was one.
    """

    params: Params
    losses: list[float]
    rate: float | None
    left_out: dict[str, Any] | None = None


def choose(few_shot: FewShot, descent: Descent) -> Adapted:
    """The steps at the rate that `_search` finds, or the prototypes that they start from.

    The steps are kept where they label more of the examples right that are left out, and where
    none can be left out: no class has a second example, or the start is another.
    """
    adapted = _search(descent, _rates(few_shot))
    if few_shot.inner["head"] != "prototypes":
        return adapted
    right, judged = descent.left_out(None)
    if not judged:
        return adapted
    _log.info("rate %g: checking the steps on examples left out", adapted.rate)
    more, _ = descent.left_out(adapted.rate)
    said = f"of {judged} examples left out, {more} are labelled right by the steps, {right} by the "
    said += (
        f"prototypes that they start from: the {'steps' if more > right else 'prototypes'} are kept"
    )
    left_out: dict[str, Any] = {
        "examples": judged,
        "prototypes": right / judged,
        "steps": more / judged,
    }
    left_out |= {"inner_lr": adapted.rate}
    if more > right:
        _log.info("%s", said)
        return adapted._replace(left_out=left_out)
    _log.info("%s (--inner-lr %g and a new --workdir take the steps)", said, adapted.rate)
    return _stay(descent, None, left_out)


def repeat(descent: Descent, known: dict[str, Any]) -> Adapted:
    """What an earlier run has chosen."""
    rate, left_out = known["inner_lr"], known.get("left_out")
    if rate is None:
        return _stay(descent, None, left_out)
    return _search(descent, (float(rate),))._replace(left_out=left_out)


def take_steps(few_shot: FewShot, descent: Descent) -> Adapted:
    """The steps at the rate that is set."""
    rate = few_shot.inner["inner_lr"]
    if not few_shot.inner["inner_steps"]:
        return _stay(descent, rate, None)
    return _search(descent, (rate,))


def _stay(descent: Descent, rate: float | None, left_out: dict[str, Any] | None) -> Adapted:
    """No steps."""
    params = descent.start(descent.parts)
    loss = descent.loss(params, descent.parts)
    _check_start(loss)
    return Adapted(params, [loss], rate, left_out)


def _rates(few_shot: FewShot) -> tuple[float, ...]:
    """Those to try, the largest first; of weights that were meta-trained, their own first."""
    rates = (*_LORA_RATES, *_RATES) if few_shot.inner["lora"] else _RATES
    if not few_shot.is_meta_trained:
        return rates
    own = few_shot.inner["inner_lr"]
    return (own, *(rate for rate in rates if rate < own))


def _search(descent: Descent, rates: Sequence[float]) -> Adapted:
    """The steps at the first rate at which none raises the loss, or else at the last."""
    begin = descent.begin(descent.parts)
    _check_start(begin.loss)
    for rate in rates:
        params, losses = descent.descend(begin, rate, stop=rate != rates[-1])
        if np.all(np.diff(losses) <= 0):
            break
        if rate != rates[-1]:
            _log.info(
                "rate %g: step %d raises the loss, trying a smaller rate", rate, len(losses) - 1
            )
    return Adapted(params, losses, rate)


def _check_start(loss: float) -> None:
    if not np.isfinite(loss):
        raise InputError(f"--model: the loss on the examples is {loss}; give other weights")
