"""Fixtures for all tests."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def private_data_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared data goes to one temporary folder a session, and data sets of the user's are out of sight."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLRAY_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("CLRAY_COMPILED_DIR", str(tmp_path_factory.mktemp("compiled")))
        patch.setenv("CLRAY_DATA_DIR", str(tmp_path_factory.mktemp("no-data")))
        yield


MOST_MAPS = 25_000
"""Mapped regions of memory. A process may have 65,530 on Linux; where XLA is refused one more for a program, it crashes."""


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_do_not_pile_up() -> Iterator[None]:
    """Lets go of the programs that a module compiled, where those of all modules so far come to many: each has regions of its own."""
    yield
    maps = Path("/proc/self/maps")
    if "jax" in sys.modules and maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        sys.modules["jax"].clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def real_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with MNIST/raw/*-ubyte and cifar10/{train,test}/CLASS/*; skips where the files are not kept beside the repository."""
    script = REPOSITORY.parent / "shared" / "data" / "prepare.sh"
    if not script.is_file():
        pytest.skip(f"needs real data: {script} is not there")
    folder = tmp_path_factory.mktemp("real-data")
    subprocess.run([str(script), str(folder)], check=True)
    return folder


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """``host:port`` of a cluster of one node with two CPUs, which this process is connected to."""
    import ray

    started = not ray.is_initialized()
    if started:
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray.get_runtime_context().gcs_address
    if started:
        ray.shutdown()
