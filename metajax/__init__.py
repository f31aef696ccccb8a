"""Meta-learning for language models in JAX.

The names below are loaded when first used, so that `metajax --help` need not wait for JAX.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metajax.errors import InputError
    from metajax.evaluate import Estimate, evaluate
    from metajax.implicit import imaml
    from metajax.maml import anil, maml
    from metajax.meta_sgd import maml_plus_plus, meta_sgd
    from metajax.metric import leopard, proto_maml, protonet
    from metajax.models import Bert, from_pretrained, save_pretrained
    from metajax.outer import Metrics, OuterState
    from metajax.parallel import OuterLoop, outer_loop, task_mesh
    from metajax.reptile import reptile
    from metajax.supervised import supervised
    from metajax.types import AdaptInfo, LossFn, MetaAlgorithm, MetaInfo, Task

__version__ = "0.1.0"

__all__ = [
    "AdaptInfo",
    "Bert",
    "Estimate",
    "InputError",
    "LossFn",
    "MetaAlgorithm",
    "MetaInfo",
    "Metrics",
    "OuterLoop",
    "OuterState",
    "Task",
    "anil",
    "evaluate",
    "from_pretrained",
    "imaml",
    "leopard",
    "maml",
    "maml_plus_plus",
    "meta_sgd",
    "outer_loop",
    "proto_maml",
    "protonet",
    "reptile",
    "save_pretrained",
    "supervised",
    "task_mesh",
]

_MODULES = {
    "errors": ("InputError",),
    "evaluate": ("Estimate", "evaluate"),
    "implicit": ("imaml",),
    "maml": ("anil", "maml"),
    "meta_sgd": ("maml_plus_plus", "meta_sgd"),
    "metric": ("leopard", "proto_maml", "protonet"),
    "models": ("Bert", "from_pretrained", "save_pretrained"),
    "outer": ("Metrics", "OuterState"),
    "parallel": ("OuterLoop", "outer_loop", "task_mesh"),
    "reptile": ("reptile",),
    "supervised": ("supervised",),
    "types": ("AdaptInfo", "LossFn", "MetaAlgorithm", "MetaInfo", "Task"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in ("data", "lora", "models", "tree"):  # Those that the reference names whole.
        return importlib.import_module(f"metajax.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'metajax' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"metajax.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """Keeps `metajax.maml` the function when the module of that name is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
