"""The one place where data crosses between host and device, so that crossings can be counted."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

crossings: Counter[str] = Counter()
"""``to_device`` and ``to_host``: calls so far in this process; ``*_bytes``: bytes moved."""


def to_device(tree: Any, device: jax.Device) -> Any:
    """Places a pytree of host arrays on one device, committed there. Does not wait.

    On a CPU device the arrays may be aliased: do not change them afterwards.
    """
    _count("to_device", tree)
    return jax.device_put(tree, device)


def to_host(tree: Any) -> Any:
    """Fetches a pytree of device arrays as NumPy arrays; waits until they are computed.

    From a CPU device they are views, whose memory can be donated once they are gone. (With ``jax.device_get`` it could not, from
    JAX 0.11 on: the device array keeps what that returns.)
    """
    _count("to_host", tree)
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and all(device.platform != "cpu" for device in leaf.devices()):
            leaf.copy_to_host_async()
    return jax.tree.map(np.asarray, tree)


def zeros(shapes: Any, device: jax.Device) -> Any:
    """Arrays of zeros on one device, committed there. Nothing crosses that would be counted.

    On a CPU device they may be memory of the host's, which a program they are donated to copies instead of writing to it. That takes
    milliseconds, while a program that makes them would take a tenth of a second to compile.

    Args:
        shapes: a pytree of ``jax.ShapeDtypeStruct``.
    """
    if device.platform == "cpu" or not any(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)):
        return jax.device_put(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes), device)
    return compiled_zeros(shapes, device)


def compiled_zeros(shapes: Any, device: jax.Device) -> Any:
    """``zeros`` by a program of the device."""
    leaves, structure = jax.tree.flatten(shapes)
    return jax.tree.unflatten(structure, _zeros_on(device)(tuple(leaves)))


@functools.cache
def _zeros_on(device: jax.Device) -> Callable[[tuple[jax.ShapeDtypeStruct, ...]], list[Any]]:
    def make(shapes: tuple[jax.ShapeDtypeStruct, ...]) -> list[Any]:
        return [jnp.zeros(shape.shape, shape.dtype) for shape in shapes]

    return jax.jit(make, static_argnums=0, out_shardings=jax.sharding.SingleDeviceSharding(device))


def _count(direction: str, tree: Any) -> None:
    crossings[direction] += 1
    crossings[direction + "_bytes"] += sum(leaf.nbytes for leaf in jax.tree.leaves(tree) if hasattr(leaf, "nbytes"))
