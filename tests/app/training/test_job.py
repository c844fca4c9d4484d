"""The gate before a release is served, and what a training refuses."""

import json
from pathlib import Path

import pytest
from sqlalchemy import Engine

from app.errors import Invalid
from app.settings import Settings
from app.storage.release_files import point_to
from app.training import job
from app.training.job import GATE_METRIC, PASSED, train
from models import artifacts


@pytest.fixture
def live(tmp_path: Path) -> Path:
    """A releases folder whose current release was measured at 0.1."""
    manifest = artifacts._sealed(
        {"format_version": artifacts.FORMAT_VERSION, "metrics": {GATE_METRIC: 0.1}, "files": {}}
    )
    (tmp_path / "live").mkdir()
    (tmp_path / "live" / artifacts.MANIFEST).write_text(json.dumps(manifest))
    point_to(tmp_path, "live")
    return tmp_path


@pytest.mark.parametrize("measured", [0.1, 0.2, 0.0901])
def test_a_release_about_as_good_passes(live: Path, measured: float) -> None:
    assert job._gate(live, {GATE_METRIC: measured}) == PASSED


def test_a_release_that_is_plainly_worse_is_held_back_and_told_why(live: Path) -> None:
    said = job._gate(live, {GATE_METRIC: 0.089})
    assert "0.0890" in said
    assert "0.1000" in said


def test_without_a_measure_or_a_live_release_there_is_nothing_to_compare(live: Path, tmp_path: Path) -> None:
    assert job._gate(live, {}) == PASSED
    assert job._gate(tmp_path / "empty", {GATE_METRIC: 0.0}) == PASSED


def test_a_damaged_live_release_does_not_stand_in_the_way(live: Path) -> None:
    (live / "live" / artifacts.MANIFEST).write_text("{")
    assert job._gate(live, {GATE_METRIC: 0.01}) == PASSED


def test_too_little_to_learn_from_is_said(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="0 interactions are too few"):
        train(engine, Settings(data_dir=tmp_path), progress=lambda *_: None)
    assert not list(tmp_path.rglob("manifest.json"))
