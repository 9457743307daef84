"""Fixtures of the fault tests: the undisturbed run, scenes, and a cluster that notices a dead node within two seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import clray
from tests.core.tiny import Arrays, arrays_of
from tests.faults.scene import SEEDS, Scene, sweep_of
from tests.store.conftest import boto3_client, s3_server, value_of, write

__all__ = ["boto3_client", "s3_server", "value_of", "write"]

QUICK_HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("faults")


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Arrays]:
    """The arrays of every trial, from one run in this process that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    results = clray.sweep(sweep_of(SEEDS), output=folder, local=True)
    assert set(results.trials.status) == {"done"}
    return {trial_id: arrays_of(folder / "s" / "trials" / trial_id) for trial_id in results.trial_ids}


@pytest.fixture
def scene(tmp_path: Path, expected: dict[str, Arrays]) -> Iterator[Callable[..., Scene]]:
    """Makes the scene for some seeds."""
    made: list[Scene] = []

    def make(*seeds: int) -> Scene:
        made.append(Scene(tmp_path, expected, seeds))
        return made[-1]

    yield make
    for each in made:
        each.close()


def start_cluster(**head: Any) -> Any:
    """A cluster of real nodes on this machine; this process does not connect to it."""
    from ray.cluster_utils import Cluster

    return Cluster(initialize_head=True, head_node_args={"include_dashboard": False, "_system_config": QUICK_HEALTH_CHECKS, **head})


@pytest.fixture(scope="session")
def cluster(expected: object) -> Iterator[Any]:
    """A cluster for tests that take no node away: two CPUs."""
    made = start_cluster(num_cpus=2)
    yield made
    made.shutdown()
