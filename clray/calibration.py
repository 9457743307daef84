"""How many lanes a chunk holds: measured once for each kind of device and size of network, and kept on this machine.

The width changes how fast a chunk runs, and how XLA rounds: on CPU, lanes of chunks of 2, 4 and 8 agree bit for bit for some
networks and differ in their last bits for others, so that there a trial goes on with the width that it began with. Narrow chunks
keep weights and gradients in a core's cache, wide ones share the cost of starting an operation, and which of the two wins depends
on the machine. A GPU takes as many lanes as fill it. ``CLRAY_LANE_WIDTH`` sets the width by hand.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from clray.core.lanes import CPU_WIDTH, even_width
from clray.core.program import Spec
from clray.process import compiled_folder, width_by_hand

CPU_WIDTHS = (CPU_WIDTH, 4, 8)
OTHER_WIDTHS = (16, 64, 256, 1024)
STEPS = 8
WORTH_FLOPS, OTHER_WORTH_FLOPS = 5e12, 1e15
"""A run with less arithmetic than this takes about a minute on two CPU cores, or on a GPU; trying widths would not pay."""

TIE = 0.03
"""A narrower chunk wins unless a wider one is faster by more than this."""


def lane_width(spec: Spec, n_lanes: int, devices: Sequence[jax.Device], n_tasks: int) -> int | None:
    """The width of the chunks of a run; None leaves it to ``plan_chunks``.

    Args:
        n_lanes: A.
        devices: that share the lanes.
        n_tasks: T.

    Raises:
        ResourceError: ``CLRAY_LANE_WIDTH`` is not a width.
    """
    share = math.ceil(n_lanes / len(devices))
    given = width_by_hand()
    if given is not None:
        return min(given, share)  # more would be padding
    on_cpu = devices[0].platform == "cpu"
    candidates = tuple(width for width in (CPU_WIDTHS if on_cpu else OTHER_WIDTHS) if width <= share)
    flops = 6.0 * parameters(spec) * spec.batch_size * spec.total_batches * n_tasks * n_lanes
    if len(candidates) < 2 or flops < (WORTH_FLOPS if on_cpu else OTHER_WORTH_FLOPS):
        return None
    width = remembered(key_of(spec, devices), candidates, lambda width: seconds_per_lane(spec, width, devices))
    # On a CPU one width for all packs: it rounds in one way, however many lanes there are. On a GPU what pads the last chunk is a lot.
    return width if on_cpu else even_width(n_lanes, len(devices), width)


def remembered(key: str, candidates: Sequence[int], measure: Callable[[int], float]) -> int:
    """The best of ``candidates``, from the file of this machine or measured now.

    Args:
        measure: width to seconds a lane.
    """
    folder = compiled_folder()
    path = None if folder is None else Path(folder, "lane-widths.json")
    known: dict[str, dict[str, float]] = {}
    if path is not None:
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(path.read_text())
            known = found if isinstance(found, dict) else {}
    seconds = known.get(key)
    if not isinstance(seconds, dict) or not all(isinstance(seconds.get(str(width)), float) for width in candidates):
        seconds = {str(width): measure(width) for width in candidates}
        if path is not None:
            with contextlib.suppress(OSError):
                part = path.with_name(f".lane-widths-{os.getpid()}.json")
                part.write_text(json.dumps({**known, key: seconds}, indent=1))
                part.replace(path)
    best = min(seconds[str(width)] for width in candidates)
    return min(width for width in candidates if seconds[str(width)] <= best * (1.0 + TIE))


def key_of(spec: Spec, devices: Sequence[jax.Device]) -> str:
    """What a measurement is good for: the devices, JAX, and networks and batches of about this size."""
    size = round(math.log2(parameters(spec)))
    backends = len({id(device.client) for device in devices})
    machine = f"{devices[0].device_kind} x {len(devices)} in {backends} backends, {os.cpu_count()} cpus, jax {jax.__version__}"
    return f"{machine}, {type(spec.model).__name__}, 2^{size} parameters, batch {spec.batch_size}"


def parameters(spec: Spec) -> int:
    """Trainable parameters of one network."""
    shapes = jax.eval_shape(lambda: spec.pure_model.init(jax.random.key(0))[0])
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def seconds_per_lane(spec: Spec, width: int, devices: Sequence[jax.Device]) -> float:
    """Seconds of some plain training steps of one lane, all devices at work with chunks of ``width``; infinite where they do not fit."""
    try:
        with spec.products():
            return _seconds_per_lane(spec, width, devices)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return math.inf


def _seconds_per_lane(spec: Spec, width: int, devices: Sequence[jax.Device]) -> float:
    model = replace(spec, n_segments=1).pure_model

    def lane(params: dict[str, jax.Array], images: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        def loss(params: dict[str, jax.Array]) -> jax.Array:
            logits = model.apply(params, state, images, train=False, key=None)[0]
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()

        return jax.tree.map(lambda value, slope: value - 1e-3 * slope, params, jax.grad(loss)(params))

    @jax.jit
    def steps(params: dict[str, jax.Array], images: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        return jax.lax.scan(lambda held, _: (jax.vmap(lane)(held, images, labels), None), params, None, length=STEPS)[0]

    first, state = jax.jit(model.init)(jax.random.key(0))
    images = np.random.default_rng(0).random((width, spec.batch_size, *spec.input_shape), np.float32)
    labels = np.zeros((width, spec.batch_size), np.int32)
    wide = {name: np.repeat(np.asarray(leaf)[None], width, 0) for name, leaf in first.items()}
    given = [jax.device_put((wide, images, labels), device) for device in devices]
    jax.block_until_ready([steps(*each) for each in given])
    n_rounds = max(1, 32 // width)
    taken = []
    for _ in range(5):
        since = time.perf_counter()
        for _ in range(n_rounds):
            running = [steps(*each) for each in given]
        jax.block_until_ready(running)
        taken.append((time.perf_counter() - since) / (n_rounds * width))
    return float(np.median(taken))
