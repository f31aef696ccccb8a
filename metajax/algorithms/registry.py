"""The registry of algorithms: the values of `--algorithm`, and the settings of each algorithm."""

from typing import NamedTuple

_HEADS = ("prototypes", "zero", "checkpoint")
_OPTIMIZER = ("inner_optimizer", "inner_clip_norm")
_ADAPTERS = ("lora", "lora_kernels", "prefix", "trainable", "freeze")


class Entry(NamedTuple):
    """An algorithm, for the command line, the documentation and the contract tests.

    Attributes:
        constructor: name of its constructor in `metajax`.
        use: when to use it, in one line.
        settings: settings of the inner loop that it accepts on the command line.
        heads: allowed starts of the classification head, the default first. It is empty if the
            algorithm makes the head itself.
        least_steps: minimum of the inner steps, if it accepts inner steps.
        initialization: key of the network's parameters in the meta-parameters. None if the
            meta-parameters are the network's parameters.
        learned_rates: whether the outer loop trains the rates of the inner steps.
        rates_per_step: whether each inner step has its own learned rates.
        plain_steps: whether its inner steps minimize the loss of the network by a given optimizer.
        documents: whether it takes documents: a stream of text, one chunk per inner step.
        tests_on_stream: whether it tests on the stream that it adapts to, so that it does not take
            labelled tasks.
    """

    constructor: str
    use: str
    settings: tuple[str, ...] = ("inner_steps", "inner_lr", "head", *_OPTIMIZER)
    heads: tuple[str, ...] = _HEADS
    least_steps: int = 0
    initialization: str | None = None
    learned_rates: bool = False
    rates_per_step: bool = False
    plain_steps: bool = True
    documents: bool = False
    tests_on_stream: bool = False


_WHAT = ("layers", *_ADAPTERS)  # What adapts.
_GRADIENT = ("inner_steps", "inner_lr", "head", *_WHAT, *_OPTIMIZER)

# Keys are names on the command line. To add an algorithm, add one file and one row.
ALGORITHMS = {
    "maml": Entry("maml", "exact second order", (*_GRADIENT, "low_memory"), documents=True),
    "fomaml": Entry(
        "maml",
        "first order, in a third of the time and about as good on few-shot classification",
        _GRADIENT,
        documents=True,
    ),
    "proto-maml": Entry(
        "proto_maml",
        "maml from a head of class prototypes",
        ("inner_steps", "inner_lr", *_WHAT, *_OPTIMIZER, "low_memory"),
        ("prototypes",),
    ),
    "protonet": Entry(
        "protonet",
        "takes no inner steps and predicts the class of the nearest prototype",
        (),
        ("prototypes",),
    ),
    "anil": Entry("anil", "inner steps on the head only"),
    "reptile": Entry(
        "reptile", "takes several inner steps and does not differentiate them", documents=True
    ),
    "meta-sgd": Entry(
        "meta_sgd",
        "learns one inner rate per parameter",
        (*_GRADIENT, "low_memory", "rates_learning_rate"),
        heads=("prototypes", "zero"),
        initialization="params",
        learned_rates=True,
        plain_steps=False,
        documents=True,
    ),
    "maml++": Entry(
        "maml_plus_plus",
        "learns one inner rate per layer and step",
        (
            *("inner_steps", "inner_lr", "head", *_ADAPTERS, *_OPTIMIZER),
            *("low_memory", "rates_learning_rate"),
        ),
        least_steps=1,
        rates_per_step=True,
        heads=("prototypes", "zero"),
        initialization="params",
        learned_rates=True,
        plain_steps=False,
        documents=True,
    ),
    "imaml": Entry(
        "imaml",
        "implicit gradient, for many inner steps",
        _GRADIENT,
        least_steps=1,
        plain_steps=False,
    ),
    "leopard": Entry(
        "leopard",
        "generates the head from the support set",
        ("inner_steps", "inner_lr", "layers", *_OPTIMIZER, "low_memory"),
        (),
        initialization="encoder",
        plain_steps=False,
    ),
    "test-time-training": Entry(
        "test_time_training",
        "adapts to a document while it is tested on it",
        ("inner_steps", "inner_lr", *_ADAPTERS, *_OPTIMIZER, "low_memory"),
        (),
        least_steps=1,
        documents=True,
        tests_on_stream=True,
    ),
    "first-order-test-time-training": Entry(
        "test_time_training",
        "the same without second derivatives",
        ("inner_steps", "inner_lr", *_ADAPTERS, *_OPTIMIZER),
        (),
        least_steps=1,
        documents=True,
        tests_on_stream=True,
    ),
}
