"""Steps on a GPU: an MLP on MNIST and a CNN on CIFAR-10 over many lanes, against the machine's ceilings and a PyTorch loop.

    python -m benchmarks.gpu [--quick]

Needs no Ray. Random images of the same shapes stand in for the data sets: the arithmetic does not depend on the pixels.
Bytes and floating-point operations are counted by hand (below), ceilings are measured in the same call.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import interleave, report
from clray.core.lanes import ChunkedLanes, plan_chunks
from clray.core.program import Lane, Pools, Spec, TaskArrays
from clray.models.cnn import CNN
from clray.models.mlp import MLP
from clray.optimizers.sgd import SGD
from clray.strategies.finetune import Finetune

BATCH = 128


def spec_of(model: str, n_train: int, batches: int, precision: str) -> Spec:
    """Training without logs but for one evaluation at the end."""
    options: Any = MLP(name="mlp", hidden=(400, 400)) if model == "mlp" else CNN(name="cnn")
    return Spec(
        model=options.structure(),
        optimizer=SGD(name="sgd", learning_rate=0.1).structure(),
        strategy=(Finetune(name="finetune"),),
        input_shape=(784,) if model == "mlp" else (32, 32, 3),
        dtype="uint8",
        scale=1 / 255,
        n_tasks=1,
        classes_per_task=2,
        n_outputs=2,
        n_train=n_train,
        batch_size=BATCH,
        total_batches=batches,
        log_frequency=batches,
        n_kept=0,
        log_weights=False,
        precision=precision,
    )


def train_task(model: str, lanes: int, batches: int, precision: str) -> Any:
    """A function that trains so many lanes for so many batches and waits."""
    n_train = 4 * BATCH
    spec = spec_of(model, n_train, batches, precision)
    rng = np.random.default_rng(0)
    column = np.zeros(lanes, np.float32)
    optimizer = {"learning_rate": column + 0.01, "momentum": column, "weight_decay": column}
    pool, labels_of_tasks = np.tile(np.arange(2, dtype=np.int32), (lanes, 1)), np.tile(np.arange(2, dtype=np.int32), (lanes, 1, 1))
    table = Lane(np.zeros(lanes, np.uint32), np.arange(lanes, dtype=np.int32), optimizer, {}, pool, labels_of_tasks)
    pools = Pools(rng.integers(0, 255, (2, 64, *spec.input_shape), np.uint8), None, None)
    chunked = ChunkedLanes(spec, table, pools, plan_chunks(lanes, jax.devices()[:1], width=lanes))
    images = np.broadcast_to(rng.integers(0, 255, (n_train, 1, *spec.input_shape), np.uint8), (n_train, lanes, *spec.input_shape))
    labels = np.broadcast_to(rng.integers(0, 2, (n_train, 1)).astype(np.int32), (n_train, lanes))
    order = rng.integers(0, n_train, (batches, 1, BATCH)).astype(np.int32)
    data = chunked.place(TaskArrays(images, labels, np.broadcast_to(order, (batches, lanes, BATCH))), range(lanes))
    states = chunked.init()
    return lambda: jax.block_until_ready(chunked.train(states, data, 0, batches))


def mlp_counts() -> tuple[float, float]:
    """(floating-point operations, bytes) of one step of one lane of 784-400-400-2 at B = 128 with SGD.

    Operations: 2 B per weight forward, 2 B for the weight gradient, 2 B for the input gradient except in the first layer.
    Bytes: weights read forward, backward and at the update, gradient written and read, weights written: 6 passes of 4 bytes;
    uint8 images once; activations of the two hidden layers written and read three times.
    """
    layers = [784 * 400, 400 * 400, 400 * 2]
    operations = 2 * BATCH * (3 * sum(layers) - layers[0])
    return operations, 6 * 4 * sum(layers) + BATCH * 784 + 6 * 4 * BATCH * 800


def cnn_counts() -> tuple[float, float]:
    """The same for the CNN (32-64-64 channels, 3 x 3, 128 hidden units) on 32 x 32 x 3, with the copies its convolutions make."""
    maps = [(32, 3, 32), (16, 32, 64), (8, 64, 64)]
    weights = [9 * a * b for _, a, b in maps] + [4 * 4 * 64 * 128, 128 * 2]
    products = [n * n * 9 * a * b for n, a, b in maps] + [4 * 4 * 64 * 128, 128 * 2]
    operations = 2 * BATCH * (3 * sum(products) - products[0])
    columns = sum(n * n * 9 * a for n, a, _ in maps)
    outputs = sum(n * n * b for n, _, b in maps)
    return operations, 6 * 4 * sum(weights) + BATCH * 3072 + 4 * BATCH * (4 * columns + 6 * outputs)


def ceilings() -> tuple[float, dict[str, float]]:
    """(bytes a second of a large copy, operations a second of a large matrix product by precision)."""
    n = 2**28 if jax.devices()[0].platform != "cpu" else 2**24
    x = jnp.ones(n, jnp.float32)
    copy = jax.jit(lambda x: x + 1.0)
    size = 8192 if jax.devices()[0].platform != "cpu" else 1024
    a = jnp.ones((size, size), jnp.float32)
    cases: dict[str, Any] = {"copy": lambda: copy(x).block_until_ready()}
    names = {"float32": "float32", "tf32": "tensorfloat32", "bfloat16": "bfloat16"}
    for name, precision in names.items():
        product = jax.jit(lambda a, precision=precision: jnp.matmul(a, a, precision=precision))
        cases[name] = lambda product=product: product(a).block_until_ready()
    seconds = interleave(cases, 7)
    return 8 * n / seconds["copy"], {name: 2 * size**3 / seconds[name] for name in names}


def pytorch_step(model: str, batches: int) -> float:
    """Seconds of one step of the loop a researcher would write, one network on the same device."""
    import torch
    from torch import nn

    from benchmarks.peers.pytorch_loop import mlp

    device = "cuda" if torch.cuda.is_available() and jax.devices()[0].platform != "cpu" else "cpu"
    if model == "mlp":
        net: nn.Module = nn.Sequential(nn.Flatten(), *mlp([784, 400, 400, 2]))
        x = torch.randint(0, 255, (4 * BATCH, 784), dtype=torch.uint8, device=device)
    else:
        convolutions = [m for a, b in ((3, 32), (32, 64), (64, 64)) for m in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))]
        net = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 2))
        x = torch.randint(0, 255, (4 * BATCH, 3, 32, 32), dtype=torch.uint8, device=device)
    net.to(device)
    y = torch.randint(0, 2, (4 * BATCH,), device=device)
    optimizer, loss = torch.optim.SGD(net.parameters(), lr=0.01), nn.CrossEntropyLoss()

    def run() -> None:
        for _ in range(batches):
            rows = torch.randint(0, len(x), (BATCH,), device=device)
            optimizer.zero_grad()
            loss(net(x[rows].float() / 255), y[rows]).backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    run()
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) / batches


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="few lanes and batches: shows that it runs")
    parser.add_argument("--precision", nargs="+", default=["float32", "tf32", "bfloat16"])
    args = parser.parse_args()
    batches = 10 if args.quick else 200
    lanes = {"mlp": [1, 4], "cnn": [1]} if args.quick else {"mlp": [1, 8, 64, 256, 1024], "cnn": [1, 16, 128]}
    bandwidth, matrix = ceilings()
    rows = [
        (
            "copy bandwidth / matrix product " + ", ".join(matrix),
            f"{bandwidth / 1e9:.0f} GB/s / " + ", ".join(f"{v / 1e12:.1f}" for v in matrix.values()) + " TFLOP/s",
            "",
        )
    ]
    for model, counts in (("mlp", mlp_counts()), ("cnn", cnn_counts())):
        loop = pytorch_step(model, 20 if args.quick else 300)
        rows.append((f"{model}: PyTorch loop, one network", f"{loop * 1e6:.0f} us a step", ""))
        for precision in args.precision:
            for n_lanes in lanes[model]:
                step = interleave({"": train_task(model, n_lanes, batches, precision)}, 3)[""] / batches
                limit = max(n_lanes * counts[0] / matrix[precision], n_lanes * counts[1] / bandwidth)
                each = step / n_lanes
                goal = ">= 200 x, >= 50 %" if n_lanes == 256 and model == "mlp" else ""
                rows.append(
                    (
                        f"{model} {precision}, R={n_lanes}",
                        f"{each * 1e6:.2f} us per step and repeat, {loop / each:.0f} x the loop, {limit / step:.0%} of the ceiling",
                        goal,
                    )
                )
    print(jax.devices()[0].device_kind)
    report("benchmarks.gpu", rows)


if __name__ == "__main__":
    main()
