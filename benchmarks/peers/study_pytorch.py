"""The plain way to the gradients of a study: a forward and a backward pass for every memory set, in PyTorch.

python -m benchmarks.peers.study_pytorch FILE.npz RESULT.npz

Prints seconds by method, fraction and task, in all and for the gradients of everything.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch
from torch import nn

ROWS = 4096
"""Rows of one pass: all of a set at once takes more memory and is no faster."""


def network(weights: dict[str, np.ndarray]) -> tuple[nn.Sequential, list[str]]:
    """The network with given weights, and the names of its parameters in its own order."""
    layers: list[nn.Module] = []
    names = []
    hidden = sorted({name.rsplit(".", 1)[0] for name in weights} - {"head"}, key=lambda name: int(name.split(".")[1]))
    for layer in [*hidden, "head"]:
        kernel = weights[f"{layer}.kernel"]
        linear = nn.Linear(*kernel.shape)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(kernel.T))
            linear.bias.copy_(torch.from_numpy(weights[f"{layer}.bias"]))
        layers += [linear, nn.ReLU()]
        names += [f"{layer}.kernel", f"{layer}.bias"]
    return nn.Sequential(*layers[:-1]), names


def gradient(model: nn.Sequential, images: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor) -> list[torch.Tensor]:
    """Gradient of the mean loss over some rows."""
    model.zero_grad(set_to_none=True)
    for part in rows.split(ROWS):
        nn.functional.cross_entropy(model(images[part]), labels[part], reduction="sum").backward()  # type: ignore[no-untyped-call]
    return [parameter.grad / len(rows) for parameter in model.parameters() if parameter.grad is not None]


def compare(own: list[torch.Tensor], everything: list[torch.Tensor]) -> list[list[float]]:
    """Cosine, mean squared difference and ratio of norms of each parameter array."""
    return [
        [float((a * b).sum() / (a.norm() * b.norm())), float(((a - b) ** 2).mean()), float(a.norm() / b.norm())]
        for a, b in zip(own, everything, strict=True)
    ]


def main() -> None:
    """Reads what to do, does it, and says how long it took."""
    torch.set_num_threads(2)
    given = np.load(sys.argv[1], allow_pickle=False)
    meta = json.loads(str(given["meta"]))
    n, n_tasks = meta["n_train"], meta["n_tasks"]
    images = torch.from_numpy(given["images"].astype(np.float32) * np.float32(meta["scale"]))  # (T-1, N, D)
    labels = torch.from_numpy(given["labels"].astype(np.int64))
    seconds: dict[str, float] = {}
    found = {}
    network({name: given[f"weights.1.{name}"] for name in meta["names"]})
    for task in range(1, n_tasks):
        model, names = network({name: given[f"weights.{task}.{name}"] for name in meta["names"]})
        rows_of_all, labels_of_all = images[:task].reshape(task * n, -1), labels[:task].reshape(-1)
        start = time.perf_counter()
        everything = gradient(model, rows_of_all, labels_of_all, torch.arange(task * n))
        seconds[f"everything {task}"] = time.perf_counter() - start
        for method in meta["methods"]:
            for fraction in meta["fractions"]:
                rows = [past * n + given[f"rows.{method}.{fraction}.{past}"] for past in range(task)]
                start = time.perf_counter()
                own = gradient(model, rows_of_all, labels_of_all, torch.from_numpy(np.concatenate(rows).astype(np.int64)))
                values = compare(own, everything)
                seconds[f"{method} {fraction} {task}"] = time.perf_counter() - start
                order = [names.index(name) for name in meta["names"]]
                found[f"{method} {fraction} {task}"] = np.asarray(values)[order]
    np.savez(sys.argv[2], **found)  # type: ignore[arg-type]
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
