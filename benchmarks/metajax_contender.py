"""One step of MAML on BERT with metajax, for `benchmarks.peers`, which defines the protocol.

`python -m benchmarks.metajax_contender {metajax,default,low-memory} FOLDER` reads the number of a
batch per line and answers with a step.
"""

import functools
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import metajax
from metajax.config.groups import ModelSettings
from metajax.models import (
    Transformer,
    TransformerConfig,
    classification_loss,
    compose,
    mentioned_rows,
    separate_layers,
    upper_layers,
)
from metajax.models.convert import from_hugging_face, to_hugging_face
from metajax.runs.loop import compiler_options
from metajax.training.outer import map_tasks, task_keys


def load_params(folder: Path, model: Transformer) -> Any:
    """Read the weights that all contenders start from, onto the device."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    with np.load(folder / "weights.npz") as weights:
        return jax.device_put(from_hugging_face(dict(weights), shapes, str(folder)))


def load_batches(folder: Path) -> list[metajax.Task]:
    """Read the batches of tasks. Real texts are packed."""
    batches = []
    for file in sorted(folder.glob("packed_*.npz")) or sorted(folder.glob("tasks_*.npz")):
        parts: dict[str, dict[str, Any]] = {"support": {}, "query": {}}
        with np.load(file) as arrays:
            for key in arrays.files:
                part, name = key.split("/")
                parts[part][name] = arrays[key]
        batches.append(jax.device_put(metajax.Task(**parts)))
    return batches


def mean_meta_grad(model: Transformer, case: dict[str, Any], engine: str) -> Callable[..., Any]:
    """Return `(params, tasks) -> grads`, compiled as in metatrain or, by default, as in `maml`."""
    layers, low_memory = case["layers"], engine == "low-memory"
    reduce = mentioned_rows(model) if layers is None else upper_layers(model, layers)
    chosen: dict[str, Any] = {
        "low_memory": low_memory,
        "reparametrize": reduce if low_memory else compose(separate_layers(), reduce),
        "unroll": not low_memory,
    }
    algorithm = metajax.maml(
        classification_loss(model),
        optax.sgd(case["rate"]),
        case["steps"],
        first_order=case["first_order"],
        **({} if engine == "default" else chosen),
    )
    options = compiler_options(ModelSettings(model="", remat=low_memory))

    @functools.partial(jax.jit, compiler_options=options)
    def meta_grad(params: Any, tasks: metajax.Task) -> Any:
        keys = task_keys(jax.random.key(0), 0, case["tasks"])
        one = lambda task, key: algorithm.meta_grad(params, task, None)  # noqa: E731
        total, _ = map_tasks(one, tasks, keys, None)
        return jax.tree.map(lambda leaf: leaf / case["tasks"], total)

    return meta_grad


def main() -> None:
    engine, folder = sys.argv[1], Path(sys.argv[2])
    case = json.loads((folder / "case.json").read_text())
    model = Transformer(
        TransformerConfig(**case["config"]),
        head="classification",
        pooling="mean",
        num_labels=(case["classes"],),
        remat=engine == "low-memory",
    )
    meta_grad = mean_meta_grad(model, case, engine)
    params, batches = load_params(folder, model), load_batches(folder)
    for batch in batches:  # Compile each shape.
        jax.block_until_ready(meta_grad(params, batch))
    print(json.dumps({"jax": jax.__version__}), flush=True)
    for line in sys.stdin:
        begun = time.perf_counter()
        grads = jax.block_until_ready(meta_grad(params, batches[int(line)]))
        seconds = time.perf_counter() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        np.savez(folder / f"{engine}.npz", **to_hugging_face(jax.device_get(grads)))
        del grads  # In a run they have been used when the next step starts.
        print(json.dumps({"seconds": seconds, "peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
