"""The CPU devices of training: one backend with one thread each."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import pytest

import clray.devices
from clray.devices import training_devices
from tests.core.tiny import arrays_of, assert_same_bits, prepare, tiny


@pytest.fixture
def apart(two_devices: list[jax.Device]) -> list[jax.Device]:
    if two_devices[0].platform != "cpu":
        pytest.skip("a GPU is used as JAX found it")
    return training_devices()


def test_every_cpu_device_has_a_backend_of_its_own(apart: list[jax.Device]) -> None:
    assert len(apart) == jax.local_device_count()
    assert len({id(device.client) for device in apart}) == len(apart)
    assert {device.platform for device in apart} == {"cpu"}
    assert training_devices() == apart, "made once"


def test_making_them_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch, apart: list[jax.Device]) -> None:
    for before in ("7", None):
        if before is None:
            monkeypatch.delenv("PJRT_NPROC", raising=False)
        else:
            monkeypatch.setenv("PJRT_NPROC", before)
        assert len(clray.devices._single_threaded.__wrapped__(1)) == 1
        assert os.environ.get("PJRT_NPROC") == before


def test_a_trial_is_the_same_bit_for_bit_on_devices_of_one_backend(
    tmp_path: Path, apart: list[jax.Device], two_devices: list[jax.Device]
) -> None:
    found = []
    for name, devices in (("apart", apart[:2]), ("shared", two_devices)):
        (trial,) = prepare(tiny(), folder=tmp_path / name, devices=devices)
        trial.run()
        found.append(arrays_of(trial.folder))
    assert found[0]
    assert_same_bits(*found)


def test_without_that_function_of_jaxlib_the_devices_are_those_of_jax(monkeypatch: pytest.MonkeyPatch, apart: list[jax.Device]) -> None:
    monkeypatch.delattr("jaxlib.xla_client.make_cpu_client")
    monkeypatch.setattr(clray.devices, "_single_threaded", clray.devices._single_threaded.__wrapped__)
    assert training_devices() == jax.local_devices()
