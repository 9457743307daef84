"""The one place where data crosses between host and device, so that crossings can be counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax

crossings: Counter[str] = Counter()
"""``to_device`` and ``to_host``: calls so far in this process; ``*_bytes``: bytes moved."""


def to_device(tree: Any, device: jax.Device) -> Any:
    """Places a pytree of host arrays on one device, committed there. Does not wait.

    On a CPU device the arrays may be aliased: do not change them afterwards.
    """
    _count("to_device", tree)
    return jax.device_put(tree, device)


def to_host(tree: Any) -> Any:
    """Fetches a pytree of device arrays as NumPy arrays; waits until they are computed."""
    _count("to_host", tree)
    return jax.device_get(tree)


def _count(direction: str, tree: Any) -> None:
    crossings[direction] += 1
    crossings[direction + "_bytes"] += sum(leaf.nbytes for leaf in jax.tree.leaves(tree) if hasattr(leaf, "nbytes"))
