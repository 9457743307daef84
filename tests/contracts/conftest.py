"""Contracts do not depend on how well XLA optimises: without that, compiling takes half as long."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.quick import compiled_quickly


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """All tests of a module."""
    with compiled_quickly():
        yield
