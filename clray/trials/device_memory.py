"""A device that ran out of memory: what the trials need by estimate, what the device has, and what to lower."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from clray.display import count, show_bytes
from clray.errors import ResourceError
from clray.trials.attempt import JobTrial


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is XLA's for memory that is not there."""
    import jax

    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def explain(error: Exception, trials: Sequence[JobTrial]) -> Exception:
    """The error for people, with XLA's own as its cause.

    Args:
        trials: of the pack that ran.
    """
    import jax

    device = jax.local_devices()[0]
    wanted = str(error).strip().splitlines()[0].partition("RESOURCE_EXHAUSTED:")[2].strip()
    text = (
        f"out of memory on the device ({device.device_kind}{_capacity(device)}): {count(len(trials), 'trial')} in one program need about "
        f"{_need(trials)} by estimate{_share()}. Lower resources.max_lanes, n_repeats, training.batch_size, logging.n_subsamples or the "
        f"model's width, or set logging.weights: false. XLA: {wanted}"
    )
    explained = ResourceError(text)
    explained.__cause__ = error
    return explained


def _capacity(device: object) -> str:
    with contextlib.suppress(Exception):
        stats = device.memory_stats()  # type: ignore[attr-defined]
        return f", {show_bytes(stats['bytes_limit'])} for this task" if stats else ""
    return ""


def _share() -> str:
    """How many devices share that need."""
    import jax

    devices = len(jax.local_devices())
    return f", over {devices} devices" if devices > 1 else ""


def _need(trials: Sequence[JobTrial]) -> str:
    import jax

    with contextlib.suppress(Exception):
        from clray.data.cache import open_dataset
        from clray.documents import Document, parse_experiment
        from clray.memory import estimate
        from clray.sizes import sizes_of

        experiments = [parse_experiment(Document(trial.trial_id, dict(trial.experiment))) for trial in trials]
        on_gpu = jax.local_devices()[0].platform != "cpu"
        return show_bytes(sum(estimate(e, sizes_of(e, open_dataset(e.dataset).info), on_gpu).device for e in experiments))
    return "an unknown amount"
