"""The devices that training uses.

A CPU device of JAX does not keep to one CPU: all devices of a backend share one pool of threads, and each splits its operations
over the whole pool, so that the weights of a chunk of lanes move from core to core. A backend of its own for every CPU, with a pool
of one thread, keeps them where they are (benchmarks/NOTES.md). A GPU, and a single CPU, are used as JAX found them.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax

_one_at_a_time = threading.Lock()


def training_devices() -> list[jax.Device]:
    """The accelerators of this process, or as many CPU devices as JAX was configured with."""
    found = jax.local_devices()
    if len(found) == 1 or found[0].platform != "cpu" or jax.process_count() > 1:
        return found
    with _one_at_a_time:
        return list(_single_threaded(len(found))) or found


def described(devices: Sequence[jax.Device]) -> str:
    """For people: ``2 x cpu``, ``1 x NVIDIA H100 80GB HBM3``."""
    return ", ".join(f"{n} x {kind}" for kind, n in Counter(device.device_kind for device in devices).items())


@functools.cache
def _single_threaded(n_devices: int) -> tuple[jax.Device, ...]:
    """A device each of as many CPU backends; empty where this version of jaxlib cannot make them."""
    before = os.environ.get("PJRT_NPROC")
    os.environ["PJRT_NPROC"] = "1"  # read when a backend starts
    try:
        from jaxlib import xla_client

        clients: list[Any] = [xla_client.make_cpu_client(asynchronous=True, num_devices=1) for _ in range(n_devices)]
        return tuple(client.local_devices()[0] for client in clients)
    except (ImportError, AttributeError, TypeError):
        return ()
    finally:
        if before is None:
            del os.environ["PJRT_NPROC"]
        else:
            os.environ["PJRT_NPROC"] = before
