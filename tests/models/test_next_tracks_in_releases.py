"""What foretells the next track travels in a release like everything else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.artifacts import ArtifactError, load, save
from models.fit_next_blend import unlearned
from models.next_blend import NextBlend
from models.next_recipes import COUNTED, SERVED
from models.training import FittedRelease, fit_recipes
from tests.models.retrieval.next_track.test_attention import drawn
from tests.next_track_toys import N_TRACKS, after, ring_sessions
from tests.recommender_contract import toy_dataset


@pytest.fixture(scope="module")
def fitted() -> FittedRelease:
    attention = drawn()
    parts: dict[str, Any] = {name: fit(ring_sessions()) for name, fit in COUNTED.items()} | {attention.name: attention}
    blend = NextBlend.of(parts, unlearned(parts), {"choices": 0})
    return replace(fit_recipes(toy_dataset(), names=["popularity"]), next_tracks=parts | {SERVED: blend})


@pytest.fixture
def folder(fitted: FittedRelease, tmp_path: Path) -> Path:
    written = tmp_path / "release"
    save(written, fitted, database_id="d", row_of_position=np.arange(len(fitted.content)), data_window=(0.0, 1.0))
    return written


def test_all_of_them_answer_as_before(fitted: FittedRelease, folder: Path) -> None:
    loaded = load(folder).next_tracks
    assert list(loaded) == list(fitted.next_tracks)
    for name, recommender in fitted.next_tracks.items():
        assert loaded[name].n_items == N_TRACKS
        for query in (after(3, 4, 5), after(23, fractions=[0.9]), after()):
            for left, right in zip(loaded[name].next(query), recommender.next(query), strict=True):
                np.testing.assert_array_equal(left, right)


def test_a_release_without_sessions_has_none(fitted: FittedRelease, tmp_path: Path) -> None:
    written = tmp_path / "plain"
    plain = replace(fitted, next_tracks={})
    save(written, plain, database_id="d", row_of_position=np.arange(len(fitted.content)), data_window=(0.0, 1.0))
    assert load(written).next_tracks == {}


def test_a_missing_part_is_named(folder: Path) -> None:
    (folder / "session_knn" / "listens.npy").unlink()
    with pytest.raises(ArtifactError, match=r"listens\.npy"):
        load(folder)


def test_nothing_of_it_is_pickled(folder: Path) -> None:
    names = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert names == {".json", ".npy"}
    assert json.loads((folder / SERVED / "parameters.json").read_text())["speakers"][0] == "transition_counter"
