"""One step of MAML on BERT in PyTorch, for `benchmarks.peers`.

It runs in another environment (torch, transformers, higher, torchopt) without metajax: `python
benchmarks/torch_peers.py {higher,torch.func,torchopt} FOLDER`. `benchmarks.peers` defines the
protocol.
"""

import gc
import importlib.metadata
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn.functional import cross_entropy

Batch = dict[str, torch.Tensor]


class Net(torch.nn.Module):
    """transformers' BertModel, mean pooling and a linear layer."""

    def __init__(self, config: dict[str, Any], classes: int):
        super().__init__()
        # Eager attention, because fused kernels have no second derivative.
        settings = transformers.BertConfig(**config, attn_implementation="eager")
        self.bert = transformers.BertModel(settings, add_pooling_layer=False)
        self.classifier = torch.nn.ModuleList([torch.nn.Linear(settings.hidden_size, classes)])

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return logits [B, C]."""
        tokens = ("input_ids", "attention_mask", "token_type_ids")
        hidden = self.bert(**{name: batch[name] for name in tokens}).last_hidden_state
        mask = batch["attention_mask"][:, :, None].to(hidden.dtype)
        features = (hidden * mask).sum(1) / mask.sum(1)
        return self.classifier[0](features)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the mean cross-entropy."""
        return cross_entropy(self(batch), batch["labels"])


class Case:
    """Read the files of `benchmarks.peers`."""

    def __init__(self, folder: Path):
        self.settings = json.loads((folder / "case.json").read_text())
        self.net = Net(self.settings["config"], self.settings["classes"])
        with np.load(folder / "weights.npz") as weights:
            state = {_name(key): torch.tensor(weights[key]) for key in weights.files}
        self.net.load_state_dict({k: v for k, v in state.items() if ".pooler." not in k})
        # Use a GPU if PyTorch has one.
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.net.to(self.device, getattr(torch, self.settings["dtype"]))
        layers = self.settings["layers"]
        below = self.settings["config"]["num_hidden_layers"] - (layers or 0)
        self.adapted = [
            name
            for name, _ in self.net.named_parameters()
            if layers is None or _is_above(name, below)
        ]
        self.batches = [self._tasks(path) for path in sorted(folder.glob("tasks_*.npz"))]

    def _tasks(self, path: Path) -> list[tuple[Batch, Batch]]:
        """Return (support, query) of each task, each padded to its longest text."""
        with np.load(path) as arrays:
            tasks = []
            for t in range(self.settings["tasks"]):
                pair = []
                for part in ("support", "query"):
                    batch = {
                        key.split("/")[1]: torch.tensor(arrays[key][t]).to(self.device, torch.long)
                        for key in arrays.files
                        if key.startswith(part)
                    }
                    longest = int(batch["attention_mask"].sum(1).max())
                    pair.append(
                        {k: v if k == "labels" else v[:, :longest] for k, v in batch.items()}
                    )
                tasks.append((pair[0], pair[1]))
            return tasks


def _name(name: str) -> str:
    return name if name.startswith("classifier") else f"bert.{name}"


def _is_above(name: str, layer: int) -> bool:
    parts = name.split(".")
    return parts[0] == "classifier" or (parts[1] == "encoder" and int(parts[3]) >= layer)


def with_higher(case: Case, support: Batch, query: Batch) -> dict[str, torch.Tensor]:
    """Return the meta-gradient of one task, with higher."""
    import higher

    net, settings = case.net, case.settings
    parameters = dict(net.named_parameters())
    optimizer = torch.optim.SGD([parameters[name] for name in case.adapted], lr=settings["rate"])
    first_order = settings["first_order"]
    with higher.innerloop_ctx(
        net, optimizer, copy_initial_weights=False, track_higher_grads=not first_order
    ) as (fast, inner):
        for _ in range(settings["steps"]):
            inner.step(cross_entropy(fast(support), support["labels"]))
        loss = cross_entropy(fast(query), query["labels"])
        # In first order, use the gradient at the end of the inner loop.
        grads = torch.autograd.grad(loss, fast.parameters(time=-1 if first_order else 0))
    return dict(zip(parameters, grads))


def with_torch_func(case: Case, support: Batch, query: Batch) -> dict[str, torch.Tensor]:
    """Return the meta-gradient of one task, with torch.func."""
    net, settings = case.net, case.settings
    params = {name: value.detach() for name, value in net.named_parameters()}

    def loss(params: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        return cross_entropy(torch.func.functional_call(net, params, (batch,)), batch["labels"])

    def query_loss(params: dict[str, torch.Tensor]) -> torch.Tensor:
        fixed = {name: value for name, value in params.items() if name not in case.adapted}
        read = fixed
        if settings["first_order"]:
            read = {name: value.detach() for name, value in fixed.items()}
        fast = {name: params[name] for name in case.adapted}
        for _ in range(settings["steps"]):
            point = fast
            if settings["first_order"]:
                point = {name: value.detach() for name, value in fast.items()}
            grads = torch.func.grad(lambda p: loss({**read, **p}, support))(point)
            fast = {name: fast[name] - settings["rate"] * grads[name] for name in fast}
        return loss({**fixed, **fast}, query)

    return torch.func.grad(query_loss)(params)


def with_torchopt(case: Case, support: Batch, query: Batch) -> dict[str, torch.Tensor]:
    """Return the meta-gradient of one task, with TorchOpt: second order, all parameters."""
    import torchopt

    net, settings = case.net, case.settings
    parameters = dict(net.named_parameters())
    inner = torchopt.MetaSGD(net, lr=settings["rate"])
    begin = torchopt.extract_state_dict(net, by="reference")
    for _ in range(settings["steps"]):
        inner.step(net.loss(support))
    grads = torch.autograd.grad(net.loss(query), list(parameters.values()))
    torchopt.recover_state_dict(net, begin)
    return dict(zip(parameters, grads))


PEERS = {"higher": with_higher, "torch.func": with_torch_func, "torchopt": with_torchopt}


def step(peer: str, case: Case, number: int) -> dict[str, torch.Tensor]:
    """Return the mean meta-gradient of a batch, one task at a time."""
    total: dict[str, torch.Tensor] = {}
    for support, query in case.batches[number]:
        grads = PEERS[peer](case, support, query)
        for name, grad in grads.items():
            if name in total:
                total[name] += grad
            else:
                total[name] = grad.detach().clone()
    return {name: grad.div_(len(case.batches[number])) for name, grad in total.items()}


def main() -> None:
    peer, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_float32_matmul_precision("high")  # On a GPU, use TF32, as JAX does.
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    case = Case(folder)
    packages = ("torch", "transformers", {"torch.func": "torch"}.get(peer, peer))
    print(json.dumps({name: importlib.metadata.version(name) for name in packages}), flush=True)
    for line in sys.stdin:
        number = int(line)
        gc.collect()  # Not timed. Otherwise the last step's graph, a cycle, would count twice.
        begun = time.perf_counter()
        grads = step(peer, case, number)
        if case.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        arrays = {
            name.removeprefix("bert."): grad.float().cpu().numpy() for name, grad in grads.items()
        }
        np.savez(folder / f"{peer}.npz", **arrays)
        del grads, arrays  # In a run they have been used when the next step starts.
        if case.device == "cuda":
            peak = torch.cuda.max_memory_allocated()
        print(json.dumps({"seconds": seconds, "peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
