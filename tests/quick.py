"""Programs that are compiled in half the time, for tests that do not depend on how well XLA optimises."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def compiled_quickly() -> Iterator[None]:
    """Within it XLA leaves most optimisations out. Results differ in their last bits from those of programs compiled in full, and
    JAX keeps programs in memory without a note of how they were compiled: so none stays behind for a later test."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
        jax.clear_caches()
