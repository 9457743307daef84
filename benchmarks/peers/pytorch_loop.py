"""The loop a researcher would write in PyTorch: one network after the other, one batch after the other.

    python -m benchmarks.peers.pytorch_loop --tasks 5 --repeats 2 --log-every 8

Prints JSON: microseconds per step and repeat, logging included where it is asked for.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.data import digits_tasks


def mlp(sizes: list[int]) -> nn.Sequential:
    """Linear and ReLU layers; the last layer is the head."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


def batches(x: torch.Tensor, y: torch.Tensor, size: int, loader: bool) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One shuffled epoch: from a DataLoader, or by indexing tensors that are in memory already, which is faster."""
    if loader:
        yield from DataLoader(TensorDataset(x, y), batch_size=size, shuffle=True, drop_last=True)
        return
    order = torch.randperm(len(x), device=x.device)
    for start in range(0, len(x) - size + 1, size):
        rows = order[start : start + size]
        yield x[rows], y[rows]


def train_repeat(
    tasks: list[Any],
    hidden: list[int],
    epochs: int,
    batch: int,
    log_every: int,
    rate: float,
    loader: bool = True,
    device: str = "cpu",
    results: Path | None = None,
) -> dict[str, Any]:
    """One network over all tasks; with ``log_every``, every so many batches all tasks are evaluated and states are kept.

    With ``results``, the logs of a task are written there when it is done: a table, hidden states, and an array a parameter.
    """
    net = mlp([tasks[0][0].shape[1], *hidden, 2]).to(device)
    body = net[:-1]
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    loss_fn = nn.CrossEntropyLoss()
    steps = 0
    for number, (x, y, _, _) in enumerate(tasks):
        n_batches = 0
        rows: list[tuple[int, int, float, float]] = []
        states: list[np.ndarray] = []
        weights: list[dict[str, torch.Tensor]] = []
        for _ in range(epochs):
            for batch_x, batch_y in batches(x, y, batch, loader):
                optimizer.zero_grad()
                loss_fn(net(batch_x), batch_y).backward()
                optimizer.step()
                steps += 1
                n_batches += 1
                if log_every and n_batches % log_every == 0:
                    with torch.no_grad():
                        for task, (_, _, test_x, test_y) in enumerate(tasks):
                            hidden_state = body(test_x)
                            logits = net[-1](hidden_state)
                            accuracy = (logits.argmax(1) == test_y).float().mean().item()
                            rows.append((n_batches, task, accuracy, loss_fn(logits, test_y).item()))
                            states.append(hidden_state[:20].cpu().numpy())
                        weights.append({k: v.clone() for k, v in net.state_dict().items()})
        with torch.no_grad():
            accuracies = [(net(test_x).argmax(1) == test_y).float().mean().item() for _, _, test_x, test_y in tasks]
        if results is not None:
            save(results / f"task_{number:03d}", rows or [(n_batches, i, a, 0.0) for i, a in enumerate(accuracies)], states, weights)
            torch.save((net.state_dict(), optimizer.state_dict()), results / f"task_{number:03d}" / "state.pt")
    return {"steps": steps, "accuracy": float(np.mean(accuracies))}


def save(folder: Path, rows: list[Any], states: list[np.ndarray], weights: list[dict[str, torch.Tensor]]) -> None:
    """The files of one task, as plainly as they can be written."""
    folder.mkdir(parents=True)
    pd.DataFrame(rows, columns=["step", "eval_task", "accuracy", "loss"]).to_parquet(folder / "metrics.parquet")
    if states:
        np.save(folder / "representations.npy", np.stack(states))
    for name in weights[0] if weights else ():
        np.save(folder / f"weights.{name}.npy", np.stack([each[name].cpu().numpy() for each in weights]))


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--log-every", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--loader", action=argparse.BooleanOptionalAction, default=True, help="a DataLoader, or tensors indexed by hand")
    parser.add_argument("--files", action="store_true", help="write what is logged, and the state after every task")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    per_repeat = []
    for repeat in range(args.repeats + 1):
        tasks = [tuple(map(torch.from_numpy, arrays)) for arrays in digits_tasks(args.tasks, repeat)]
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            results = Path(folder) if args.files else None
            result = train_repeat(tasks, [256, 256], args.epochs, 32, args.log_every, 0.1, args.loader, results=results)
            if repeat:  # the first one warms up
                per_repeat.append((time.perf_counter() - start) / result["steps"])
    print(json.dumps({"us_per_step": float(np.median(per_repeat)) * 1e6, "accuracy": result["accuracy"], "threads": args.threads}))


if __name__ == "__main__":
    main()
