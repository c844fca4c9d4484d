"""A data folder with a release, made once: whoever serves from it leaves nothing running."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.steadfast import stage


@pytest.fixture(scope="session")
def data_dir() -> Iterator[Path]:
    with stage.data_folder() as folder:
        stage.prepare(folder)
        yield folder
