"""The registry of algorithms: what `--algorithm` accepts, and what each takes."""

from typing import NamedTuple

_HEADS = ("prototypes", "zero", "checkpoint")


class Entry(NamedTuple):
    """An algorithm, as the command line, the documentation and the contract tests know it.

    Attributes:
        constructor: its name in `metajax`.
        use: when to use it, in one line.
        settings: which settings of the inner loop it takes on the command line.
        heads: where its classification head may start; the first one is the default. Empty:
            the algorithm makes the head itself.
        least_steps: the fewest inner steps, where it takes any.
        initialisation: the key of the network's parameters in the meta-parameters; None if they are
            the same.
        learned_rates: whether the outer loop trains the rates of the inner steps.
    """

    constructor: str
    use: str
    settings: tuple[str, ...] = ("inner_steps", "inner_lr", "head")
    heads: tuple[str, ...] = _HEADS
    least_steps: int = 0
    initialisation: str | None = None
    learned_rates: bool = False

    @property
    def own_steps(self) -> bool:
        """Whether only its own `adapt` takes its steps: they are not plain SGD on the loss."""
        return self.initialisation is not None or self.constructor == "imaml"


_GRADIENT = ("inner_steps", "inner_lr", "head", "layers", "lora")

# By name on the command line. An algorithm of the library is one file and one row.
ALGORITHMS = {
    "maml": Entry("maml", "exact second order", (*_GRADIENT, "low_memory")),
    "fomaml": Entry("maml", "first order, about as good in a third of the time", _GRADIENT),
    "proto-maml": Entry(
        "proto_maml",
        "maml from a head of class prototypes",
        ("inner_steps", "inner_lr", "layers", "lora", "low_memory"),
        ("prototypes",),
    ),
    "protonet": Entry(
        "protonet", "no inner steps, labels by the nearest class prototype", (), ("prototypes",)
    ),
    "anil": Entry("anil", "inner steps on the head only"),
    "reptile": Entry("reptile", "no gradient through the inner steps, needs several"),
    "meta-sgd": Entry(
        "meta_sgd",
        "learns one inner rate per parameter",
        ("inner_steps", "inner_lr", "head", "layers", "low_memory", "rates_learning_rate"),
        heads=("prototypes", "zero"),
        initialisation="params",
        learned_rates=True,
    ),
    "maml++": Entry(
        "maml_plus_plus",
        "learns one inner rate per layer and step",
        ("inner_steps", "inner_lr", "head", "low_memory", "rates_learning_rate"),
        least_steps=1,
        heads=("prototypes", "zero"),
        initialisation="params",
        learned_rates=True,
    ),
    "imaml": Entry(
        "imaml",
        "implicit gradient, for many inner steps",
        _GRADIENT,
        least_steps=1,
    ),
    "leopard": Entry(
        "leopard",
        "generates the head from the support set",
        ("inner_steps", "inner_lr", "layers", "low_memory"),
        (),
        initialisation="encoder",
    ),
}
