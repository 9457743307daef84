"""One finished study for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from clray.study.run import StudyPack
from tests.study.tiny import prepared, run


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyPack, Path]:
    """The pack and the trial's folder."""
    pack = prepared(tmp_path_factory.mktemp("study"))
    return pack, run(pack)
