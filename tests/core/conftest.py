"""Two CPU devices, and the tiny experiment, finished."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import pytest

from tests.core.tiny import OneTrial, prepare, tiny

with contextlib.suppress(RuntimeError):  # where another test started JAX, its devices are used as they are
    jax.config.update("jax_num_cpu_devices", 2)


@pytest.fixture(scope="session")
def base_trial(tmp_path_factory: pytest.TempPathFactory) -> OneTrial:
    """The tiny experiment as it stands, finished, all lanes on one device. Do not write into its folder."""
    (trial,) = prepare(tiny(), folder=tmp_path_factory.mktemp("base"))
    trial.run()
    return trial


@pytest.fixture
def finished(tmp_path: Path) -> Callable[..., OneTrial]:
    """Runs an experiment into a folder of the test's own, with the options of ``prepare``."""

    def run(experiment: Mapping[str, Any], **options: Any) -> OneTrial:
        (trial,) = prepare(experiment, folder=tmp_path / "sweep", **options)
        trial.run()
        return trial

    return run


@pytest.fixture
def two_devices() -> list[jax.Device]:
    """Two devices of this process."""
    devices = jax.local_devices()
    if len(devices) < 2:
        pytest.skip("needs two JAX devices, and JAX was started with one before this folder's conftest could ask for two")
    return devices[:2]
