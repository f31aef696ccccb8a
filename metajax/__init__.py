"""Meta-learning for language models in JAX."""

from metajax.errors import InputError
from metajax.evaluate import Estimate, evaluate
from metajax.maml import maml
from metajax.outer import Metrics, OuterState
from metajax.parallel import OuterLoop, outer_loop
from metajax.supervised import supervised
from metajax.types import AdaptInfo, LossFn, MetaAlgorithm, MetaInfo, Task

__all__ = [
    "AdaptInfo",
    "Estimate",
    "InputError",
    "LossFn",
    "MetaAlgorithm",
    "MetaInfo",
    "Metrics",
    "OuterLoop",
    "OuterState",
    "Task",
    "evaluate",
    "maml",
    "outer_loop",
    "supervised",
]
