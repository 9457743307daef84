"""Steps on a GPU: an MLP on MNIST and a CNN on CIFAR-10 over many lanes, against the machine's ceilings and a PyTorch loop.

    python -m benchmarks.gpu [--quick] [--models mlp cnn] [--precision float32 tf32 bfloat16]

Needs no Ray. Random images of the same shapes stand in for the data sets: the arithmetic does not depend on the pixels.
Bytes and floating-point operations are counted by hand (below), ceilings are measured in the same call. The PyTorch loop is what
a researcher would write: products in float32, convolutions as cuDNN does them by default, in TF32.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import Row, interleave, report
from clray.core.lanes import ChunkedLanes, plan_chunks
from clray.core.program import PRECISIONS, Lane, Pools, Spec, TaskArrays, products_in
from clray.models.cnn import CNN
from clray.models.mlp import MLP
from clray.optimizers.sgd import SGD
from clray.process import available_cpus, configure_jax
from clray.strategies.finetune import Finetune

BATCH = 128
LANES = {"mlp": [1, 8, 64, 256, 1024], "cnn": [1, 16, 128]}
QUICK_LANES = {"mlp": [1, 4], "cnn": [1]}


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

    def run() -> None:
        trained, logs = chunked.train(states, data, 0, batches)
        jax.block_until_ready(trained)
        chunked.fetch_logs(logs).close()  # as in a run: their memory serves the next task

    return run


def mlp_counts() -> tuple[float, float]:
    """(floating-point operations, bytes) of one step of one lane of 784-400-400-2 at B = 128 with SGD.

    Operations: 2 B per weight forward, 2 B for the weight gradient, 2 B for the input gradient except in the first layer.
    Bytes: weights read forward, backward (but for the first layer) and at the update, gradient written and read, weights written:
    6 passes of 4 bytes, as where the update is no part of a product; uint8 images once; activations of the two hidden layers written
    and read three times.
    """
    layers = [784 * 400, 400 * 400, 400 * 2]
    operations = 2 * BATCH * (3 * sum(layers) - layers[0])
    return operations, 4 * (6 * sum(layers) - layers[0]) + BATCH * 784 + 6 * 4 * BATCH * 800


def cnn_counts() -> tuple[float, float]:
    """The same for the CNN (32-64-64 channels, 3 x 3, 128 hidden units) on 32 x 32 x 3. The copies that clray's convolutions make
    of their inputs are not among the bytes: they are no part of the work."""
    maps = [(32, 3, 32), (16, 32, 64), (8, 64, 64)]
    weights = [9 * a * b for _, a, b in maps] + [4 * 4 * 64 * 128, 128 * 2]
    products = [n * n * 9 * a * b for n, a, b in maps] + [4 * 4 * 64 * 128, 128 * 2]
    operations = 2 * BATCH * (3 * sum(products) - products[0])
    outputs = sum(n * n * b for n, _, b in maps)
    return operations, 4 * (6 * sum(weights) - weights[0]) + BATCH * 3072 + 4 * BATCH * 6 * outputs


COUNTS = {"mlp": mlp_counts, "cnn": cnn_counts}


def ceilings(precisions: Sequence[str]) -> tuple[float, dict[str, float]]:
    """(bytes a second of a large copy, operations a second of a large matrix product by precision)."""
    on_cpu = jax.devices()[0].platform == "cpu"
    n, size, times = (2**24, 1024, 1) if on_cpu else (2**29, 8192, 8)
    x = jnp.ones(n, jnp.float32)
    copy = jax.jit(lambda x: x + 1.0)
    a = jax.random.normal(jax.random.key(0), (size, size))  # a GPU multiplies ones faster than numbers
    cases: dict[str, Callable[[], Any]] = {"copy": lambda: jax.block_until_ready([copy(x) for _ in range(times)][-1])}
    for name in precisions:
        with products_in(name):
            product = jax.jit(jnp.matmul).lower(a, a).compile()
        cases[name] = lambda product=product: jax.block_until_ready([product(a, a) for _ in range(times)][-1])
    seconds = interleave(cases, 7)
    return times * 8 * n / seconds["copy"], {name: times * 2 * size**3 / seconds[name] for name in precisions}


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
        for step in range(batches):
            if step % 4 == 0:  # an epoch
                order = torch.randperm(len(x), device=device).view(4, BATCH)
            rows = order[step % 4]
            optimizer.zero_grad()
            loss(net(x[rows].float() / 255), y[rows]).backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    run()
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) / batches


def measured(models: Sequence[str], precisions: Sequence[str], quick: bool) -> Iterator[Row]:
    """Rows of the report, as they are measured."""
    bandwidth, matrix = ceilings(precisions)
    products = ", ".join(f"{name} {rate / 1e12:.1f}" for name, rate in matrix.items())
    yield f"{jax.devices()[0].device_kind}: copy / matrix products", f"{bandwidth / 1e9:.0f} GB/s / {products} TFLOP/s", ""
    for model in models:
        operations, moved = COUNTS[model]()
        loop = pytorch_step(model, 20 if quick else 300)
        yield f"{model}: PyTorch loop, one network", f"{loop * 1e6:.0f} us a step", ""
        for precision in precisions:
            for n_lanes in (QUICK_LANES if quick else LANES)[model]:
                batches = 10 if quick else max(20, min(200, 25_600 // n_lanes))  # enough for a wait and a transfer to be small
                step = interleave({"": train_task(model, n_lanes, batches, precision)}, 3)[""] / batches
                each = step / n_lanes
                limit = max(n_lanes * operations / matrix[precision], n_lanes * moved / bandwidth)
                goal = ">= 200 x, >= 50 %" if n_lanes == 256 and model == "mlp" else ""
                result = f"{each * 1e6:.2f} us per step and repeat, {loop / each:.0f} x the loop, {limit / step:.0%} of the ceiling"
                yield f"{model} {precision}, R={n_lanes}", result, goal


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="few lanes and batches, on a CPU as well: shows that it runs")
    parser.add_argument("--models", nargs="+", default=list(COUNTS), choices=list(COUNTS))
    parser.add_argument("--precision", nargs="+", default=list(PRECISIONS), choices=list(PRECISIONS))
    args = parser.parse_args()
    configure_jax(available_cpus())
    if jax.devices()[0].platform == "cpu" and not args.quick:
        raise SystemExit("JAX sees no GPU here; --quick runs a little of it on a CPU")
    report("benchmarks.gpu", measured(args.models, args.precision, args.quick))


if __name__ == "__main__":
    main()
