"""What a trial will need, by arithmetic on its sizes: bytes on disk, on the host and on the device.

Shapes come from abstract evaluation: no backend is started, nothing is allocated.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clray.assembly import evaluation_pool, make_lanes, make_spec
from clray.config import Experiment
from clray.core.evaluate import rows_at_once
from clray.core.lanes import CPU_WIDTH
from clray.core.program import Spec
from clray.core.task import fresh_lanes
from clray.errors import ResourceError
from clray.options import HookMemory
from clray.sizes import Sizes
from clray.study.config import Study
from clray.study.estimate import StudyNeeds, study_needs
from clray.study.sizes import most_rows

FLOAT = 4
ROW_BYTES = 4
"""Of a row of metrics.parquet or end.parquet, compressed: a loss and one of few accuracies; the other columns repeat themselves. Measured
on digits: 2 to 7, fewer where tasks are the same in many rows."""
TRAIN_ROW_BYTES = 6
TABLE_BYTES = 1500
"""Of a Parquet file without its rows."""
COMMIT_BYTES = 1500
UNSURE = 1.3
"""By how much an estimate of temporaries may be too large."""


@dataclass(frozen=True)
class Estimate:
    """Bytes of one trial, all R repeats.

    Attributes:
        parameters: number of trainable parameters of one network.
        disk: everything written.
        representations: those of all tasks on the disk.
        state: parameters, optimizer and strategy.
        data: training data of one task with its order; numbers of images, where a task trains on all tasks so far.
        pools: evaluation images, and the training split in the latter case, once a device whatever R is; and what is done to
            evaluation images in each task and repeat.
        logs: what one task leaves on the device before it is fetched.
        temporary: activations and gradients while a step or an evaluation runs, of the lanes that run at once.
        source: the training split on a GPU, from which tasks are gathered there; once a device.
        built: data of one task as the host builds it: numbers of images, where they are gathered on the device.
        host_block: the largest block that is put together on the host to write a tensor.
    """

    parameters: int
    disk: int
    representations: int
    state: int
    data: int
    pools: int
    logs: int
    temporary: int
    source: int
    built: int
    host_block: int

    @property
    def program(self) -> int:
        """Arguments, outputs and temporaries of the compiled training program: what XLA counts for it, with logs, whose memory is
        argument and output in one, counted once."""
        return 2 * self.state + self.data + self.pools + self.logs + self.temporary

    @property
    def device(self) -> int:
        """The most that is on the devices at once: while a task trains, the next one's data is there, and the last one's logs."""
        return self.program + self.data + self.logs + self.state + self.source

    @property
    def host(self) -> int:
        """The most in the memory of the process beside JAX itself and a device that is the host."""
        return 2 * self.built + self.logs + self.host_block + self.pools


def estimate_if_built(experiment: Experiment, sizes: Sizes | None, on_gpu: bool = False, n_devices: int | None = None) -> Estimate | None:
    """``estimate``; None where sizes are not known, or where a user's own strategy fails while it is built.

    A bug there is told, with a traceback, by the trial that meets it, and stops no other.
    """
    try:
        return estimate(experiment, sizes, on_gpu, n_devices) if sizes else None
    except Exception:
        return None


def estimate(experiment: Experiment, sizes: Sizes, on_gpu: bool = False, n_devices: int | None = None) -> Estimate:
    """Estimates one trial from its sizes.

    Args:
        on_gpu: whether the program is for a GPU, where XLA mostly holds less.
        n_devices: CPU devices, each of which runs one chunk of lanes at a time; None: as many as there are chunks.
    """
    spec = make_spec(experiment, sizes)
    n_params, state, hidden = _shapes(spec, experiment)
    repeats, logs, evaluated = sizes.n_repeats, sizes.n_logs, sizes.n_eval_tasks
    weights = n_params * FLOAT * repeats if experiment.logging.weights else 0
    # Tasks of the same classes have the same numbers wherever outputs are shared, which compresses.
    different = evaluated if sizes.scenario != "domain" else min(evaluated, math.perm(sizes.n_classes, sizes.classes_per_task))
    rows = repeats * different * ROW_BYTES
    dense = repeats * evaluated * sizes.n_kept * sizes.classes_per_task * hidden * FLOAT
    snapshot = 2 * (TABLE_BYTES + rows) + weights + dense + COMMIT_BYTES
    tables = 3 * TABLE_BYTES + logs * (rows + repeats * TRAIN_ROW_BYTES) + rows
    per_task = logs * (weights + dense) + tables + COMMIT_BYTES
    kept = repeats * sizes.n_pool_classes * sizes.n_kept * hidden * FLOAT
    sample = math.prod(sizes.input_shape) * np.dtype(sizes.dtype).itemsize
    taps = {"permuted": 1, "rotated": 4}.get(experiment.sequence.policy, 0)
    is_study = isinstance(experiment, Study)
    in_pool = spec.cumulative and not taps and not is_study
    per_image, per_visit = (4, 8) if in_pool else (sample, 4 + (sample + 4) * (spec.cumulative and not is_study))
    n_rows = most_rows(sizes) if is_study else sizes.n_train
    eval_rows = rows_at_once(spec, sizes.classes_per_task if taps else sizes.n_pool_classes, sizes.n_pool)
    held = [options.hook_memory(sizes, on_gpu) for options in experiment.strategy]
    copies = max((each.data for each in held), default=0)  # one hook after the other
    working = FLOAT * _step_numbers(spec, sizes, n_params, held, on_gpu) + copies * sizes.n_train * sample
    evaluating = FLOAT * eval_rows * _evaluation_numbers(spec, sizes, on_gpu, shared=not taps)
    at_once = repeats if on_gpu or n_devices is None else min(repeats, CPU_WIDTH * n_devices)
    temporary = at_once * max(working, evaluating)
    transforms = repeats * evaluated * taps * (2 if taps > 1 else 1) * math.prod(sizes.input_shape) * FLOAT
    # A study measures one network at a time, after training.
    study = study_needs(experiment, sizes, spec, n_params) if isinstance(experiment, Study) else StudyNeeds(0, 0)
    temporary = max(temporary, study.device)
    gathered = on_gpu and not taps and not spec.cumulative and not is_study
    order = repeats * sizes.total_batches * sizes.batch_size * per_visit
    return Estimate(
        parameters=n_params,
        representations=sizes.n_tasks * logs * dense,
        disk=sizes.n_tasks * per_task + (1 + ("joint" in experiment.baselines)) * snapshot + 2 * state * repeats + study.disk,
        state=state * repeats,
        data=n_rows * repeats * (per_image + 4) + order,
        pools=(sizes.n_classes * sizes.n_pool + sizes.n_source * in_pool) * sample + transforms,
        logs=logs * (kept + weights + repeats * (2 * evaluated + 2) * FLOAT),
        temporary=temporary,
        source=sizes.n_source * sample * gathered,
        built=n_rows * repeats * ((4 if gathered else per_image) + 4) + order,
        host_block=max(dense, weights),
    )


def lanes_that_fit(need: Estimate, n_repeats: int, available: int, on_gpu: bool) -> int:
    """Lanes of trials like one of R repeats whose memory is within ``available`` bytes.

    Args:
        need: of the trial.
        on_gpu: where all lanes run at once; on a CPU chunk after chunk.
    """
    fixed = need.source + (0 if on_gpu else need.temporary)
    return max(0, available - fixed) * n_repeats // max(need.device - fixed, need.host, 1)


def check_fits(need: Estimate, sizes: Sizes, name: str, available: int, n_trials: int = 1, n_seeds: int = 1, on_gpu: bool = False) -> None:
    """Refuses what takes more memory at its least than there is.

    Args:
        need: of one trial.
        name: of it, for the message.
        available: bytes of the machine, where it computes on CPUs; of all devices of the task on GPUs.
        n_trials: trials like it in the same pack.
        n_seeds: different seeds among them: trials of one seed share their data.

    Raises:
        ResourceError: with the arithmetic.
    """
    logs = 2 * need.logs // sizes.n_logs if on_gpu else need.logs  # in segments, which leave the device; the host keeps them
    parts = {
        "state": 2 * need.state * n_trials,  # a step reads one state and writes another
        "data": need.data * n_seeds + need.pools,
        "logs": logs * n_trials,
        "work": int(need.temporary * (n_trials if on_gpu else 1) / UNSURE),
    }
    least = sum(parts.values())
    if least <= available:
        return
    from clray.display import show_bytes

    networks = f"all repeats{f' of {n_trials} trials' if n_trials > 1 else ''}"
    advice = {
        "state": "Take a smaller model, or lower n_repeats",
        "data": "Lower n_repeats, dataset.train_per_class or training.epochs",
        "logs": "Log less (logging: a higher log_frequency, weights: false, representations: none), or lower n_repeats",
        "work": "Take a smaller model, training.batch_size or memory of the strategy, or lower n_repeats",
    }[max(parts, key=lambda part: parts[part])]
    state = f"{show_bytes(need.state * n_trials)} for parameters ({need.parameters:,} a network), optimizer and strategy of {networks}"
    logs_of = "two log points" if on_gpu else "the logs of a task"
    raise ResourceError(
        f"{name} needs at least {show_bytes(least)} of memory, and {'its devices have' if on_gpu else 'this machine has'} "
        f"{show_bytes(available)}: twice {state}, {show_bytes(parts['data'])} for the data of a task and evaluation images, "
        f"{show_bytes(parts['logs'])} for {logs_of}, and {show_bytes(parts['work'])} for gradients and activations. {advice}"
        f"{'; or lower resources.max_lanes' if n_trials > 1 else ''}"
    )


def segments_that_fit(experiment: Experiment, sizes: Sizes, n_trials: int, available: int) -> int:
    """In how many equal segments a task's logs must be taken so that those of two tasks fit.

    Args:
        n_trials: trials of the pack.
        available: bytes for the logs on all devices.

    Raises:
        ResourceError: a single log point does not fit; with the arithmetic.
    """
    need = 2 * n_trials * estimate(experiment, sizes).logs
    for segments in (d for d in range(1, sizes.n_logs + 1) if sizes.n_logs % d == 0):
        if need <= available * segments:
            return segments
    one = need // (2 * sizes.n_logs)
    raise ResourceError(
        f"one log point of {n_trials * sizes.n_repeats} lanes takes {one / 2**20:.0f} MiB on the device (hidden states and weights), twice "
        f"that is needed and {available / 2**20:.0f} MiB are there. Lower resources.max_lanes, n_repeats, logging.n_subsamples or the "
        "model's width, or set logging.weights: false"
    )


@functools.lru_cache(maxsize=256)
def _shapes(spec: Spec, experiment: Experiment) -> tuple[int, int, int]:
    """Parameters of one network, bytes of one lane's state, H."""
    one = experiment.model_copy(update={"n_repeats": 1, "repeats": None})
    n_labels = spec.classes_per_task
    pool, labels = evaluation_pool(np.arange(n_labels)[None, None], n_labels, n_labels)
    lane = make_lanes(one, pool, labels)
    state = jax.eval_shape(lambda lanes: fresh_lanes(spec, lanes, np.int32(0)), lane)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    return sum(leaf.size for leaf in state.params.values()), size, spec.pure_model.hidden_size


def _step_numbers(spec: Spec, sizes: Sizes, n_params: int, held: Sequence[HookMemory], on_gpu: bool) -> int:
    """Numbers that one lane holds in a training step: the gradient, what strategies add to it, and all activations of the rows that
    it is taken on. A CPU works on half as many again."""
    rows = sizes.batch_size + sum(each.rows for each in held)
    activations = rows * sum(size for size, _ in _activations(spec))
    return n_params * (1 + sum(each.gradients for each in held)) + (activations if on_gpu else activations * 3 // 2)


def _evaluation_numbers(spec: Spec, sizes: Sizes, on_gpu: bool, shared: bool) -> int:
    """Numbers that one lane holds for a sample that is evaluated: the two largest layers in a row.

    Args:
        shared: whether lanes that evaluate all K classes do so on the same images, which a GPU then holds once.
    """
    made = [size if on_gpu else size * copies for size, copies in _activations(spec)]
    together = on_gpu and shared and sizes.n_pool_classes == sizes.n_classes
    in_turn = made if together else [math.prod(spec.input_shape), *made]
    return max(map(sum, itertools.pairwise(in_turn)), default=sum(in_turn))


@functools.lru_cache(maxsize=256)
def _activations(spec: Spec) -> tuple[tuple[int, int], ...]:
    """What a forward pass holds for one sample, in turn: numbers, and in how many copies on a CPU."""
    rows = 8  # tells activations, which grow with the batch, from parameters
    model = spec.pure_model
    params, state = jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)))
    images = jax.ShapeDtypeStruct((rows, *spec.input_shape), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda p, s, x: model.apply(p, s, x, train=False, key=None)[:2])(params, state, images)
    return tuple((size // rows, copies) for size, copies in _sizes(jaxpr.jaxpr) if size % rows == 0)


def _sizes(jaxpr: Any) -> list[tuple[int, int]]:
    """(size, copies) of what each matrix product and each concatenation of a program makes: what is not fused away."""
    found: list[tuple[int, int]] = []
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            if hasattr(value, "jaxpr") or hasattr(value, "eqns"):
                found += _sizes(getattr(value, "jaxpr", value))
        if equation.primitive.name in ("dot_general", "concatenate", "conv_general_dilated", "pad"):
            # What is put together from parts is laid out anew for the product that follows.
            copies = 2 if equation.primitive.name == "concatenate" else 1
            found += [(var.aval.size, copies) for var in equation.outvars]
    return found
