"""The width of chunks: measured once, kept, and only where it pays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from clray.assembly import make_spec
from clray.calibration import lane_width, remembered, seconds_per_lane
from clray.core.program import Spec
from clray.data.digits import Digits
from clray.documents import Document, parse_experiment
from clray.errors import ResourceError
from clray.sizes import sizes_of
from tests.core.tiny import tiny


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLRAY_COMPILED_DIR", str(tmp_path))
    monkeypatch.delenv("CLRAY_LANE_WIDTH", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def spec() -> Spec:
    experiment = parse_experiment(Document("tiny", tiny()))
    return make_spec(experiment, sizes_of(experiment, Digits(name="digits").describe()))


def test_a_width_is_measured_once_and_kept(folder: Path) -> None:
    asked: list[int] = []

    def measure(width: int) -> float:
        asked.append(width)
        return {2: 3.0, 4: 1.0, 8: 2.0}[width]

    assert [remembered("here", (2, 4, 8), measure) for _ in range(3)] == [4, 4, 4]
    assert asked == [2, 4, 8]
    assert remembered("elsewhere", (2, 4), measure) == 4
    assert set(json.loads((folder / "lane-widths.json").read_text())) == {"here", "elsewhere"}


def test_a_narrower_chunk_wins_a_tie(folder: Path) -> None:
    assert remembered("a", (2, 4, 8), lambda width: {2: 1.02, 4: 1.0, 8: 0.995}[width]) == 2
    assert remembered("b", (2, 4, 8), lambda width: {2: 1.05, 4: 1.01, 8: 1.0}[width]) == 4


@pytest.mark.parametrize("content", ["", "[]", "{", '{"here": 3}', '{"here": {"2": "fast"}}', '{"here": {"2": 1.0}}'])
def test_a_damaged_file_is_measured_again(folder: Path, content: str) -> None:
    (folder / "lane-widths.json").write_text(content)
    assert remembered("here", (2, 4), lambda width: 1.0 / width) == 4
    assert remembered("here", (2, 4), lambda width: 1.0 * width) == 4


def test_a_short_run_is_not_worth_a_measurement(folder: Path, spec: Spec) -> None:
    assert lane_width(spec, 64, jax.local_devices(), 3) is None
    assert not (folder / "lane-widths.json").exists()


def test_a_long_run_measures(folder: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clray.calibration.seconds_per_lane", lambda spec, width, devices: 1.0 / width)
    assert lane_width(spec, 64, jax.local_devices()[:1], 10**9) == 8


class GPU:
    """What ``lane_width`` asks a device for."""

    platform = device_kind = "gpu"
    client = None


def test_a_gpu_gets_chunks_of_one_size_from_the_width_that_was_measured(folder: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clray.calibration.seconds_per_lane", lambda spec, width, devices: abs(width - 256) + 1.0)
    gpus: list[Any] = [GPU()]
    assert lane_width(spec, 300, gpus, 10**9) == 150, "two chunks of 150, not one of 256 and another of 44 with 212 that pad it"
    assert lane_width(spec, 300, [*gpus, GPU()], 10**9) is not None
    assert lane_width(spec, 300, gpus, 10**3) is None, "worth a measurement on a CPU, not on a GPU"


@pytest.mark.parametrize("n_lanes", [64, 17, 33])
def test_the_width_on_cpus_does_not_depend_on_the_lanes(folder: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch, n_lanes: int) -> None:
    """XLA may round otherwise in a program of another width, and a trial must not depend on how many are in its pack."""
    monkeypatch.setattr("clray.calibration.seconds_per_lane", lambda spec, width, devices: 1.0 / width)

    class CPU(GPU):
        platform = "cpu"

    devices: Any = [CPU(), CPU()]
    assert lane_width(spec, n_lanes, devices, 10**9) == 8


def test_a_width_that_does_not_fit_is_never_chosen(folder: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(spec: Spec, width: int, devices: Any) -> float:
        if width > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12 bytes.")
        return 1.0

    monkeypatch.setattr("clray.calibration._seconds_per_lane", measure)
    for _ in range(2):
        assert lane_width(spec, 64, jax.local_devices()[:1], 10**9) == 2
        monkeypatch.setattr("clray.calibration._seconds_per_lane", None)  # it is kept


def test_the_width_can_be_set_by_hand(folder: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLRAY_LANE_WIDTH", "3")
    assert lane_width(spec, 64, jax.local_devices(), 3) == 3
    assert lane_width(spec, 2, jax.local_devices()[:1], 3) == 2, "the third would be trained for nothing"
    monkeypatch.setenv("CLRAY_LANE_WIDTH", "wide")
    with pytest.raises(ResourceError, match="CLRAY_LANE_WIDTH=wide"):
        lane_width(spec, 64, jax.local_devices(), 3)


def test_the_measurement_runs_and_is_a_time(spec: Spec) -> None:
    seconds = seconds_per_lane(spec, 2, jax.local_devices()[:1])
    assert np.isfinite(seconds)
    assert 0.0 < seconds < 5.0
