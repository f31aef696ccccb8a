"""AdamW as used to train BERT."""

import jax
import optax

from metajax.algorithms.clipping import clip_by_global_norm
from metajax.tree import is_norm_or_bias, mask
from metajax.types import Params


def learning_rate(peak: float, num_steps: int, warmup_steps: int) -> optax.Schedule:
    """A linear warm-up, then a linear decay to zero at num_steps."""
    return optax.schedules.join_schedules(
        [
            optax.schedules.linear_schedule(0.0, peak, warmup_steps),
            optax.schedules.linear_schedule(peak, 0.0, num_steps - warmup_steps),
        ],
        [warmup_steps],
    )


def adamw(
    schedule: optax.ScalarOrSchedule,
    *,
    weight_decay: float,
    clip_norm: float,
    fixed: tuple[str, ...] = (),
    rates_factor: float | None = None,
) -> optax.GradientTransformation:
    """Clips the gradient's global norm, then AdamW (Loshchilov & Hutter, arXiv:1711.05101).

    Weight decay does not apply to LayerNorms and biases (Devlin et al. 2019, appendix A.2), nor to
    parameters whose path begins with one of `fixed`, which the loss does not depend on.

    Learned inner rates (`rates/`; see `metajax.meta_sgd`) do not decay, and their outer learning
    rate is `rates_factor` times the schedule. None: there are no learned rates.
    """

    def decay_mask(params: Params) -> Params:
        kept = ("rates/", *fixed)
        return mask(params, lambda path: not is_norm_or_bias(path) and not path.startswith(kept))

    def scale_rates(updates: Params, params: Params | None = None) -> Params:
        is_rate = mask(updates, lambda path: path.startswith("rates/"))
        scaled = lambda update, rate: rates_factor * update if rate else update  # noqa: E731
        return jax.tree.map(scaled, updates, is_rate)

    parts = [
        clip_by_global_norm(clip_norm),
        optax.adamw(schedule, weight_decay=weight_decay, mask=decay_mask),
    ]
    # The state of runs without learned rates is as in their older checkpoints.
    return optax.chain(*parts, *([] if rates_factor is None else [optax.stateless(scale_rates)]))
