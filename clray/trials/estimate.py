"""What a trial will need, by arithmetic on its sizes: bytes on disk, on the host and on the device.

Shapes of parameters and optimizer state come from ``jax.eval_shape``: no backend is started, nothing is allocated.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import numpy as np

from clray.config import Experiment
from clray.core.program import Spec
from clray.core.task import init_lanes
from clray.experiment import evaluation_pool, make_lanes, make_spec
from clray.sizes import Sizes

METRICS_ROW_BYTES = 18  # step 4, repeat 2, eval_task 4, accuracy 4, loss 4, before compression
FLOAT = 4


@dataclass(frozen=True)
class Estimate:
    """Bytes of one trial, all repeats.

    Attributes:
        parameters: number of trainable parameters of one network.
        disk: everything written, before the compression of tables.
        device: the most that is on the devices at once: parameters and optimizer, two tasks' data and logs, pools, activations.
        host: the most that is in the memory of the process beside JAX itself.
    """

    parameters: int
    disk: int
    device: int
    host: int


def estimate(experiment: Experiment, sizes: Sizes) -> Estimate:
    """Estimates one trial."""
    n_params, state, hidden = _shapes(make_spec(experiment, sizes), len(experiment.strategy))
    repeats, tasks, logs, evaluated = sizes.n_repeats, sizes.n_tasks, sizes.n_logs, sizes.n_eval_tasks
    state_bytes = state * repeats
    weights = n_params * FLOAT * repeats if experiment.logging.weights else 0
    rows = repeats * evaluated * METRICS_ROW_BYTES
    dense = repeats * evaluated * sizes.n_subsamples * hidden * FLOAT
    per_task = logs * (rows + weights + dense + repeats * 14) + rows
    disk = tasks * per_task + (1 + ("joint" in experiment.baselines)) * (rows * 2 + weights + dense) + 2 * state_bytes
    sample = int(np.prod(sizes.input_shape)) * np.dtype(sizes.dtype).itemsize
    data = sizes.n_train * repeats * (sample + 4)
    pools = sizes.n_classes * sizes.n_pool * sample
    kept = repeats * sizes.n_pool_classes * sizes.n_kept * hidden * FLOAT
    log_bytes = logs * (kept + weights + repeats * evaluated * 2 * FLOAT)
    activations = 3 * repeats * max(sizes.batch_size, min(sizes.n_pool * sizes.n_pool_classes, 2048)) * (hidden + sample) * FLOAT
    order = repeats * sizes.total_batches * sizes.batch_size * 4
    device = 3 * state_bytes + 2 * data + 2 * log_bytes + pools + activations + order
    return Estimate(n_params, disk, device, 2 * data + 2 * log_bytes + dense + pools)


@functools.lru_cache(maxsize=256)
def _shapes(spec: Spec, n_strategies: int) -> tuple[int, int, int]:
    """Parameters of one network, bytes of one lane's state, H."""
    from clray.config import traced_fields

    del n_strategies
    names = {f"{i}.{key}" for i, options in enumerate(spec.strategy) for key in traced_fields(type(options))}
    one = np.zeros(1, np.float32)
    pool, labels = evaluation_pool(np.arange(spec.n_outputs, dtype=np.int32)[None, None], spec.n_outputs, spec.n_outputs)
    lane = _lane(spec, names, one, pool, labels)
    state = jax.eval_shape(lambda lanes: init_lanes(spec, lanes, np.int32(0)), lane)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    return sum(leaf.size for leaf in state.params.values()), size, spec.pure_model.hidden_size


def _lane(spec: Spec, strategy: set[str], one: np.ndarray, pool: np.ndarray, labels: np.ndarray):  # type: ignore[no-untyped-def]
    from clray.config import traced_fields
    from clray.core.program import Lane

    optimizer = dict.fromkeys(traced_fields(type(spec.optimizer)), one)
    return Lane(np.zeros(1, np.uint32), np.zeros(1, np.int32), optimizer, dict.fromkeys(strategy, one), pool, labels)


__all__ = ["Estimate", "estimate", "make_lanes"]
