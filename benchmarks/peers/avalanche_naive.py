"""The same in Avalanche: the Naive strategy, one repeat after the other.

    python -m benchmarks.peers.avalanche_naive --tasks 5 --repeats 2

Prints JSON: microseconds per step and repeat of training (evaluation at task ends counted with ``--evaluate``).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from torch.utils.data import TensorDataset

from benchmarks.data import digits_tasks
from benchmarks.peers.pytorch_loop import mlp


class _WithTargets(TensorDataset):
    @property
    def targets(self) -> list[int]:
        return self.tensors[1].tolist()


def run_repeat(n_tasks: int, repeat: int, epochs: int, results: Path | None) -> tuple[float, int, float]:
    """(seconds, steps, final mean accuracy) of one repeat, evaluated on all tasks after every task."""
    tasks = [tuple(map(torch.from_numpy, arrays)) for arrays in digits_tasks(n_tasks, repeat)]
    train = [as_classification_dataset(_WithTargets(x, y)) for x, y, _, _ in tasks]
    test = [as_classification_dataset(_WithTargets(x, y)) for _, _, x, y in tasks]
    benchmark = benchmark_from_datasets(train=train, test=test)
    net = mlp([64, 256, 256, 2])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    evaluator = EvaluationPlugin(accuracy_metrics(experience=True), loggers=[])
    strategy = Naive(
        model=net, optimizer=optimizer, criterion=torch.nn.CrossEntropyLoss(), train_mb_size=32, train_epochs=epochs,
        eval_mb_size=256, evaluator=evaluator,
    )  # fmt: skip
    start = time.perf_counter()
    rows = []
    for experience in benchmark.train_stream:
        strategy.train(experience, drop_last=True)
        rows.append(strategy.eval(benchmark.test_stream))
    seconds = time.perf_counter() - start
    if results is not None:
        (results / f"repeat_{repeat}.json").write_text(json.dumps([{k: float(v) for k, v in row.items()} for row in rows]))
        torch.save(net.state_dict(), results / f"repeat_{repeat}.pt")
    steps = sum(epochs * (len(x) // 32) for x, _, _, _ in tasks)
    return seconds, steps, float(np.mean([v for k, v in rows[-1].items() if "Top1_Acc_Exp" in k]))


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--results", type=Path, default=None, help="also write files there; all repeats count, nothing warms up")
    args = parser.parse_args()
    first = 0 if args.results else 1
    if args.results:
        args.results.mkdir(parents=True, exist_ok=True)
    measured = [run_repeat(args.tasks, repeat, args.epochs, args.results) for repeat in range(args.repeats + first)][first:]
    us = [seconds / steps * 1e6 for seconds, steps, _ in measured]
    print(json.dumps({"us_per_step": float(np.median(us)), "accuracy": float(np.mean([a for _, _, a in measured]))}))


if __name__ == "__main__":
    main()
