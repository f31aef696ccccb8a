"""Meta-learning for language models in JAX.

The names below are loaded when first used, so that `metajax --help` need not wait for JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metajax.algorithms.imaml import imaml
    from metajax.algorithms.maml import anil, maml
    from metajax.algorithms.meta_sgd import maml_plus_plus, meta_sgd
    from metajax.algorithms.prototypes import leopard, proto_maml, protonet
    from metajax.algorithms.reptile import reptile
    from metajax.algorithms.supervised import supervised
    from metajax.algorithms.test_time import test_time_training
    from metajax.errors import InputError
    from metajax.estimator import FewShotClassifier
    from metajax.models import Bert, Transformer, from_pretrained, save_pretrained
    from metajax.regressor import FewShotRegressor
    from metajax.runs.planning import plan
    from metajax.training.evaluation import Estimate, evaluate
    from metajax.training.outer import Metrics, OuterState
    from metajax.training.parallel import OuterLoop, outer_loop, task_mesh
    from metajax.types import AdaptInfo, LossFn, MetaAlgorithm, MetaInfo, Task

__version__ = "0.1.0"

__all__ = [
    "AdaptInfo",
    "Bert",
    "Estimate",
    "FewShotClassifier",
    "FewShotRegressor",
    "InputError",
    "LossFn",
    "MetaAlgorithm",
    "MetaInfo",
    "Metrics",
    "OuterLoop",
    "OuterState",
    "Task",
    "Transformer",
    "anil",
    "evaluate",
    "from_pretrained",
    "imaml",
    "leopard",
    "maml",
    "maml_plus_plus",
    "meta_sgd",
    "outer_loop",
    "plan",
    "proto_maml",
    "protonet",
    "reptile",
    "save_pretrained",
    "supervised",
    "task_mesh",
    "test_time_training",
]

_MODULES = {
    "algorithms.imaml": ("imaml",),
    "algorithms.maml": ("anil", "maml"),
    "algorithms.meta_sgd": ("maml_plus_plus", "meta_sgd"),
    "algorithms.prototypes": ("leopard", "proto_maml", "protonet"),
    "algorithms.reptile": ("reptile",),
    "algorithms.supervised": ("supervised",),
    "algorithms.test_time": ("test_time_training",),
    "errors": ("InputError",),
    "models": ("Bert", "Transformer", "from_pretrained", "save_pretrained"),
    "estimator": ("FewShotClassifier",),
    "runs.planning": ("plan",),
    "regressor": ("FewShotRegressor",),
    "training.evaluation": ("Estimate", "evaluate"),
    "training.outer": ("Metrics", "OuterState"),
    "training.parallel": ("OuterLoop", "outer_loop", "task_mesh"),
    "types": ("AdaptInfo", "LossFn", "MetaAlgorithm", "MetaInfo", "Task"),
}
_WHOLE = {name: f"metajax.{name}" for name in ("algorithms", "data", "models", "training", "tree")}
_WHOLE["lora"] = "metajax.algorithms.lora"
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _WHOLE:
        return importlib.import_module(_WHOLE[name])
    if name not in _HOME:
        raise AttributeError(f"module 'metajax' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"metajax.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
