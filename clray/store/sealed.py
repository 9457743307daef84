"""JSON documents that carry the sha256 of themselves, so that a flipped bit in them is noticed as well."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

CHECKSUM = "checksum"


def checksum_of(document: Mapping[str, Any]) -> str:
    """sha256 (hex) of a document as JSON with sorted keys and no spaces."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with its checksum as the last key."""
    return {**document, CHECKSUM: checksum_of(document)}
