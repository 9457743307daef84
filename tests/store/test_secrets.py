"""No secret of the storage is in any file or on the terminal, also when requests fail."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.in_process import printed
from tests.trials.sweeps import sweep, write

SECRET = "FAKE5ECRETwJalrXUtnFEMI"


@pytest.fixture(autouse=True)
def own_clients() -> Iterator[None]:
    """fsspec keeps clients, and these tests need some that know the secret."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


def test_no_secret_is_written_or_printed_when_an_object_store_fails(
    tmp_path: Path,
    s3_server: Any,
    faults: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A put fails in the middle of a trial."""
    import boto3

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", SECRET + "token")
    monkeypatch.setattr("clray.store.patience.PATIENCE_SECONDS", 0.1)
    faults.refused.append("task_001/COMMIT.json")
    file = write(tmp_path / "small.yaml", sweep(name="secret", grid={"seed": [1]}))
    with caplog.at_level(logging.DEBUG, "clray"):
        code, out, err = printed("sweep", str(file), "--local", "--output", "s3://results/secrets")
        shown = printed("status", "s3://results/secrets/secret", "--json")
    assert code == 1, err
    assert "task_001/COMMIT.json" in err
    captured = capfd.readouterr()
    client = boto3.client("s3", endpoint_url=s3_server.url)
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket="results", Prefix="secrets/")["Contents"]]
    assert any(key.endswith("traceback.txt") for key in keys)
    for key in keys:
        assert SECRET.encode() not in client.get_object(Bucket="results", Key=key)["Body"].read(), key
    assert SECRET not in "".join((out, err, str(shown), captured.out, captured.err, caplog.text))
    assert SECRET.encode() not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_password_in_the_endpoint_is_not_shown(
    tmp_path: Path, s3_server: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://me:{SECRET}@127.0.0.1:9")  # nothing listens there
    file = write(tmp_path / "small.yaml", sweep(name="secret", grid={"seed": [1]}))
    code, out, err = printed("sweep", str(file), "--local", "--output", "s3://results/secrets")
    assert code == 2
    assert "s3://results/secrets" in err
    assert SECRET not in out + err + caplog.text
