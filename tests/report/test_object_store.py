"""Reports of results in an object store: read and written through the same storage, as on a disk."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pandas as pd
import pytest

from clray.report.build import build_report
from clray.report.measure_store import MeasureStore
from clray.report.sweep_files import open_sweep, with_metrics
from clray.store.filesystem import Storage
from tests.report.fake_sweep import DOCUMENT, write_sweep

SMALL = {**DOCUMENT, "grid": {"optimizer.learning_rate": [0.01, 0.1]}}


@pytest.fixture
def bucket() -> Iterator[str]:
    yield "memory://report-tests/results/fake"
    fsspec.filesystem("memory").rm("/report-tests", recursive=True)


def test_report_of_a_bucket_is_that_of_a_disk(bucket: str, tmp_path: Path) -> None:
    states = ("running", "failed")
    write_sweep(bucket, SMALL, states)
    write_sweep(str(tmp_path / "fake"), SMALL, states)
    assert build_report(bucket, show=1, quiet=True) == f"{bucket}/report/index.html"
    build_report(str(tmp_path / "fake"), show=1, quiet=True)
    there, here = Storage.of(bucket), Storage.of(str(tmp_path / "fake"))
    files = [set(storage.list_files("report")) for storage in (there, here)]
    assert files[0] == files[1]
    assert sum(name.endswith(".svg") for name in files[0]) == 11
    pages = [re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d[^<]*", "", s.read_bytes("report/index.html").decode()) for s in (there, here)]
    assert pages[0].replace(bucket.removesuffix("/fake"), "OUTPUT") == pages[1].replace(str(tmp_path), "OUTPUT")


def test_metrics_are_kept_in_the_bucket(bucket: str) -> None:
    write_sweep(bucket, SMALL, ("done", "done"))
    sweep = open_sweep(bucket)
    first = with_metrics(sweep, MeasureStore(sweep.storage)).trials
    assert sweep.storage.exists("report/metrics/accuracy.parquet")
    pd.testing.assert_frame_equal(with_metrics(sweep, MeasureStore(sweep.storage)).trials, first)
