"""A scene whose results lie in a bucket, and what readers make of the objects there, without clray's own readers."""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import Any

from tests.faults.scene import Scene

BUCKET = "results"


def objects_below(client: Any, prefix: str) -> dict[str, bytes]:
    """All objects below ``prefix``, by their keys relative to it."""
    listed = client.list_objects_v2(Bucket=BUCKET, Prefix=prefix + "/")
    assert not listed["IsTruncated"]
    keys = [entry["Key"] for entry in listed.get("Contents", [])]
    return {key[len(prefix) + 1 :]: client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}


def accepted(found: dict[str, bytes]) -> dict[str, bytes]:
    """The files of committed folders under the names that they have on a disk; all are there and have the checksum of their marker."""
    files = {}
    for key, data in found.items():
        if key.endswith("/COMMIT.json"):
            folder = key.removesuffix("COMMIT.json")
            files[key] = data
            for name, entry in json.loads(data)["files"].items():
                content = found.get(folder + entry.get("key", name))
                if content is None:
                    assert entry.get("transient"), folder + name  # a state that is not needed any more
                    continue
                assert len(content) == entry["bytes"], name
                assert hashlib.sha256(content).hexdigest() == entry["sha256"], name
                files[folder + name] = content
    return files


class BucketScene(Scene):
    """A scene with output in a bucket; ``fetch`` makes ``root`` a copy of what is there.

    Args:
        client: of boto3.
        name: of the output in the bucket.
    """

    def __init__(self, *args: Any, client: Any, name: str):
        super().__init__(*args)
        self.client = client
        self.name = name
        self.output = f"s3://{BUCKET}/{name}"

    def objects(self) -> dict[str, bytes]:
        """Everything below the sweep's folder but leases, which are renewed by the clock."""
        found = objects_below(self.client, f"{self.name}/s")
        return {key: data for key, data in found.items() if not key.startswith(".lease/")}

    def fetch(self) -> None:
        """Copies files of trials as readers see them. What no marker names must be gone."""
        found = self.objects()
        files = accepted(found)
        # trials/<trial>/<file>, trials/<trial>/attempts/<file>, trials/<trial>/<folder>/<attempt>/<file>
        in_folders = [key for key in found if key.count("/") == 4]
        assert len(in_folders) == len(files) - sum(name.endswith("/COMMIT.json") for name in files)
        shutil.rmtree(self.root, ignore_errors=True)
        for name, data in {**{key: found[key] for key in found if key not in in_folders}, **files}.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
