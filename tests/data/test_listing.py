from __future__ import annotations

import numpy as np
import pytest

from clray.data.listing import EDGE, edges_hash, listing_hash, walk_files


@pytest.mark.parametrize(("position", "noticed"), [(0, True), (EDGE - 1, True), (2 * EDGE, False), (-EDGE, True), (-1, True)])
def test_a_large_file_is_known_by_its_edges(tmp_path, position, noticed):
    path = tmp_path / "X_train.npy"
    content = np.zeros(5 * EDGE, np.uint8)
    path.write_bytes(content.tobytes())
    before = edges_hash([path])
    content[position] = 1
    path.write_bytes(content.tobytes())
    assert (edges_hash([path]) != before) is noticed


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
