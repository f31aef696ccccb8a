"""Which checkpoints of a run are kept."""

from collections.abc import Collection, Sequence
from typing import Any

import orbax.checkpoint.experimental.v1 as ocp


class Chosen:
    """A preservation policy of Orbax: keep the checkpoints of some steps.

    Orbax asks for it during the call of a save, not later in its thread.

    Attributes:
        steps: which steps; they change during a run.
    """

    def __init__(self) -> None:
        self.steps: Collection[int] = ()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Return whether to keep each checkpoint."""
        return [known.step in self.steps for known in checkpoints]


def preservation_policy(keep: int, keep_every: int | None, chosen: Chosen) -> Any:
    """Keep the newest checkpoints, those of every N-th step, and the chosen ones."""
    policies = ocp.training.preservation_policies
    kept: list[Any] = [policies.LatestN(keep), chosen]
    if keep_every is not None:
        kept.append(policies.EveryNSteps(keep_every))
    return policies.AnyPreservationPolicy(kept)
