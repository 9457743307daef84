"""Reports of results in an object store: read and written through the same storage, as on a disk."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
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


IN_BUCKET = """
import sys
from clray.cli import main
from tests.report.fake_sweep import write_sweep
from tests.report.test_object_store import SMALL
write_sweep("s3://report-tests/results/fake", SMALL, ("running", "failed"))
sys.argv = ["clray", "report", "s3://report-tests/results/fake", "--show", "1"]
main()
"""


def test_the_command_writes_the_report_of_an_s3_bucket_into_it(tmp_path: Path) -> None:
    boto3, server_of = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        client = boto3.client("s3", endpoint_url=url, **keys)
        client.create_bucket(Bucket="report-tests")
        # In a process of its own, as a user would: the endpoint of a client is fixed when it is made.
        environment = {
            "AWS_ENDPOINT_URL_S3": url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        path = {"PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run([sys.executable, "-c", IN_BUCKET], env={**os.environ, **environment, **path}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "report: s3://report-tests/results/fake/report/index.html"
        prefix = "results/fake/report/"
        listed = client.list_objects_v2(Bucket="report-tests", Prefix=prefix)["Contents"]
        page = client.get_object(Bucket="report-tests", Key=f"{prefix}index.html")["Body"].read().decode()
    finally:
        server.stop()
    write_sweep(str(tmp_path / "fake"), SMALL, ("running", "failed"))
    build_report(str(tmp_path / "fake"), show=1, quiet=True)
    here = Storage.of(str(tmp_path / "fake"))
    assert {item["Key"].removeprefix(prefix) for item in listed} == set(here.list_files("report"))
    assert page.count("<svg") == here.read_bytes("report/index.html").decode().count("<svg")
