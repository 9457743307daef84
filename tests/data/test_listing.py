from __future__ import annotations

import hashlib

import numpy as np
import pytest

from clray.data.listing import content_hash, listing_hash, walk_files


@pytest.mark.parametrize("position", [0, 200_000, -1])
def test_a_file_is_known_by_all_of_its_content(tmp_path, position):
    path = tmp_path / "X_train.npy"
    content = np.zeros(400_000, np.uint8)
    path.write_bytes(content.tobytes())
    before = content_hash([path], tmp_path / "memory")
    content[position] = 1
    path.write_bytes(content.tobytes())
    assert content_hash([path], tmp_path / "memory") != before


def test_an_unchanged_file_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "y.npy"
    path.write_bytes(b"labels")
    memory = tmp_path / "memory"
    first = content_hash([path], memory)
    reads = []
    monkeypatch.setattr("clray.data.listing.hashlib.file_digest", lambda file, kind: reads.append(file.name) or hashlib.sha256(file.read()))
    assert content_hash([path], memory) == first
    assert not reads
    (note,) = memory.glob("*.json")
    for damage in ("", "[]", '{"file": []}', note.read_text().replace("sha256", "sha255")):
        note.write_text(damage)
        assert content_hash([path], memory) == first
    assert len(reads) == 4
    (tmp_path / "taken").touch()
    assert content_hash([path], tmp_path / "taken" / "memory") == first  # nowhere to remember it


def test_names_and_sizes_enter_and_order_does_not():
    files = [("b/1.png", 12), ("a/1.png", 11)]
    assert listing_hash(files) == listing_hash(files[::-1])
    assert len({listing_hash(files), listing_hash([("b/1.png", 12)]), listing_hash([("b/1.png", 11), ("a/1.png", 12)])}) == 3


def test_hidden_files_are_left_out_and_links_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "one").write_text("1")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    (tmp_path / ".hidden").write_text("x")
    assert sorted(walk_files(tmp_path)) == [("linked/one", 1), ("real/one", 1)]
