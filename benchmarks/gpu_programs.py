"""What XLA makes of training programs for a GPU, on a machine without one: nothing here ran on a GPU, and no time is measured.

    python -m benchmarks.gpu_programs [NAME ...]

Needs the ``cuda`` extra, no driver and no GPU: programs are compiled for an H100 that is only described. XLA cannot try out its libraries
then, so that products are kernels of its own where it would take cuBLAS on the device. For each program

* memory as ``memory_analysis`` counts it, against ``clray.memory.estimate``,
* kernels in one step of all lanes, and loops in it whose end only the device knows: the host waits in each of their rounds,
* what these kernels read and write in device memory, against the bytes that ``benchmarks.gpu`` counts by hand, and how long that takes
  with the bandwidth of the H100's data sheet: no step can be faster.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import re
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from benchmarks.gpu import COUNTS
from benchmarks.timing import Row, report
from clray.assembly import evaluation_pool, make_lanes, make_spec
from clray.config import Experiment
from clray.core import task
from clray.core.program import Pools, TaskArrays
from clray.data.source import DatasetInfo
from clray.documents import parse_experiment, parse_yaml
from clray.memory import estimate
from clray.sizes import Sizes, sizes_of

BANDWIDTH = 3.35e12
"""Bytes a second of an H100 SXM by its data sheet."""
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
LOG = 23
"""Batches between logs: a number of rounds that no other loop has, which tells the loop over steps apart."""
MNIST = DatasetInfo(10, (6000,) * 10, (1000,) * 10, (28, 28, 1), "uint8")
CIFAR = DatasetInfo(10, (5000,) * 10, (1000,) * 10, (32, 32, 3), "uint8")
STRATEGIES = ["l2", "ewc", "si", "mas", "lwf", "er", "der", "der++", "agem", "gem", "shrink_perturb", "cumulative"]
MLP: dict[str, Any] = {"model": {"name": "mlp", "hidden": [400, 400]}, "dataset": {"name": "mnist"}, "n_repeats": 64}
CNN: dict[str, Any] = {"model": {"name": "cnn"}, "dataset": {"name": "cifar10"}, "n_repeats": 16}
PROGRAMS: dict[str, dict[str, Any]] = {
    "mlp": MLP,
    "mlp, tf32": {**MLP, "precision": "tf32"},
    "mlp, R=256": {**MLP, "n_repeats": 256},
    **{f"mlp, {name}": {**MLP, "strategy": {"name": name}} for name in STRATEGIES},
    "mlp, boundaries detected": {**MLP, "boundaries": {"name": "detected"}},
    "cnn": CNN,
    **{f"cnn, {name}": {**CNN, "strategy": {"name": name}} for name in ("ewc", "lwf", "er", "der++", "agem", "gem")},
}


def experiment_of(options: dict[str, Any]) -> Experiment:
    """Two classes a task, five tasks, B = 128, one epoch with a log every 23 batches."""
    options = dict(options)
    training = {"epochs": 1, "batch_size": 128, **{key: options.pop(key) for key in ("precision", "boundaries") if key in options}}
    file = {
        "name": "program",
        "sequence": {"n_tasks": 5},
        "optimizer": {"name": "sgd", "learning_rate": 0.01},
        "training": training,
        "logging": {"log_frequency": LOG, "n_subsamples": 20},
        **options,
    }
    return parse_experiment(parse_yaml(json.dumps(file), "program"))


def compiled(experiment: Experiment, sizes: Sizes, device: Any) -> Any:
    """The training program of all lanes as one chunk, compiled for ``device`` from shapes alone."""
    spec, lanes = make_spec(experiment, sizes), sizes.n_repeats
    classes = np.stack([np.roll(np.arange(sizes.n_classes), r)[: 2 * sizes.n_tasks].reshape(-1, 2) for r in range(lanes)], axis=1)
    table = make_lanes(experiment, *evaluation_pool(classes, sizes.n_classes, sizes.n_pool_classes))

    def array(shape: tuple[int, ...], dtype: Any = np.int32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    images = array(
        (sizes.n_train, lanes) if spec.cumulative else (sizes.n_train, lanes, *sizes.input_shape), np.int32 if spec.cumulative else np.uint8
    )
    order = array((sizes.total_batches, lanes, sizes.batch_size))
    data = TaskArrays(images, array((sizes.n_train, lanes)), order, order if spec.cumulative else None)
    source = array((sizes.n_source, *sizes.input_shape), np.uint8) if spec.cumulative else None
    pools = Pools(array((sizes.n_classes, sizes.n_pool, *sizes.input_shape), np.uint8), None, None, source)
    state = jax.eval_shape(lambda lanes: task.fresh_lanes(spec, lanes, np.int32(0)), table)
    logged = jax.eval_shape(functools.partial(task.evaluate_lanes, spec), state, table, pools, np.int32(0))
    room = jax.tree.map(lambda leaf: array((sizes.n_logs, *leaf.shape), leaf.dtype), task._large(spec, state, logged))
    number = array(())
    arguments = (state, table, pools, data, number, number, number, room)
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=SingleDeviceSharding(device)), arguments)
    with mock.patch("jax.default_backend", return_value="gpu"):
        return task.train_task.lower(spec, *placed).compile()


NO_KERNEL = re.compile(r" (parameter|get-tuple-element|constant|bitcast|tuple|while|conditional)\(")
SHAPE = re.compile(r"\b(pred|[sufb]+\d+)\[([\d,]*)\]")


def shape_bytes(text: str) -> int:
    """Bytes of all arrays whose shapes stand in a text; the number in a type's name is its bits, and ``pred`` takes a byte."""
    found = SHAPE.findall(text)
    return sum(int(re.sub(r"\D", "", kind) or 8) // 8 * math.prod(int(n) for n in dims.split(",") if n) for kind, dims in found)


class Program:
    """The text of a compiled program, by computation."""

    def __init__(self, text: str):
        self.computations: dict[str, list[str]] = {}
        for line in text.splitlines():
            if begin := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$", line):
                lines = self.computations.setdefault(begin[1], [])
            elif line.startswith("  "):
                lines.append(line.strip().removeprefix("ROOT "))
        steps = [line for lines in self.computations.values() for line in lines if " while(" in line and f'"n":"{LOG}"' in line]
        self.step = max((self.called(line, "body") for line in steps), key=lambda name: len(self.computations[name]))

    @staticmethod
    def called(line: str, what: str) -> str:
        """The computation that an instruction calls; empty where it calls none."""
        found = re.search(rf"\b{what}=%?([\w.\-]+)", line)
        return found[1] if found else ""

    def kernels(self, name: str) -> tuple[int, int, int]:
        """Kernels of a computation, loops in it that end when the device says so, and bytes moved; one round of each inner loop."""
        lines = self.computations[name]
        size = {line.split(" = ")[0]: shape_bytes(line.split(" = ")[1].split("(%")[0]) for line in lines if " = " in line}
        count = waits = moved = 0
        for line in lines:
            if " while(" in line:
                inner = self.kernels(self.called(line, "body"))
                waits += "known_trip_count" not in line
                count, waits, moved = count + inner[0], waits + inner[1], moved + inner[2]
            elif not NO_KERNEL.search(line) and " = " in line:
                count += 1
                moved += self._moved(line, size)
        return count, waits, moved

    def _moved(self, line: str, size: dict[str, int]) -> int:
        own, _, rest = line.partition(" = ")
        operands = re.findall(r"%[\w.\-]+", "%" + rest.partition("(%")[2].partition(")")[0])
        inside = " ".join(self.computations.get(self.called(line, "calls"), [])) + line
        read = [size.get(name, 0) for name in operands]
        if "dynamic-update-slice(" in inside:  # in place: what is updated lies there already
            return sum(2 * part for part in read if part < size[own])
        if "gather(" in inside or "dynamic-slice(" in inside:  # only the rows that are taken
            read = [min(part, size[own]) for part in read]
        return size[own] + sum(read)


def measured(names: list[str]) -> Iterator[Row]:
    """Rows of the report."""
    device = topologies.get_topology_desc(platform="cuda", topology_name="h100", target_config=H100, topology="1x1x1").devices[0]
    for name in names:
        experiment = experiment_of(PROGRAMS[name])
        sizes = sizes_of(experiment, MNIST if name.startswith("mlp") else CIFAR)
        program = compiled(experiment, sizes, device)
        memory, need = program.memory_analysis(), estimate(experiment, sizes, on_gpu=True)
        total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes - memory.alias_size_in_bytes
        text = Program(program.as_text())
        kernels, waits, moved = text.kernels(text.step)
        each, by_hand = moved / sizes.n_repeats, COUNTS[name[:3]]()[1]
        yield (
            name if "R=" in name else f"{name}, R={sizes.n_repeats}",
            f"{total / 2**20:.0f} MiB, estimate {need.program / total:.2f} x; a step: {kernels} kernels, {waits} waits, "
            f"{each / 2**20:.1f} MiB a lane ({each / by_hand:.2f} x by hand), >= {each / BANDWIDTH * 1e6:.2f} us",
            "0.7 to 1.3 x",
        )


def main() -> None:
    """Compiles and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("programs", nargs="*", metavar="NAME", help=f"default: all of {', '.join(PROGRAMS)}")
    names = parser.parse_args().programs or list(PROGRAMS)
    report("benchmarks.gpu_programs", measured(names))


if __name__ == "__main__":
    main()
