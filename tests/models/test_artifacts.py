"""Release folders: whole or refused, with the file and the cause named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.artifacts import ArtifactError, LoadedRelease, RowMap, load, read_manifest, save
from models.training import FittedRelease, fit_recipes
from tests.recommender_contract import N_ITEMS, NEW_ITEMS, QUERIES, assert_same_answers, toy_dataset

ROWS = np.arange(N_ITEMS)[::-1] * 3 + 5


@pytest.fixture(scope="module")
def fitted() -> FittedRelease:
    return fit_recipes(toy_dataset(), seed=1)


@pytest.fixture
def folder(fitted: FittedRelease, tmp_path: Path) -> Path:
    write(tmp_path / "release", fitted)
    return tmp_path / "release"


def write(folder: Path, fitted: FittedRelease) -> None:
    save(folder, fitted, database_id="d1", row_of_position=ROWS, data_window=(1.0, 2.0),
         metrics={"ndcg": 0.1}, versions={"segue": "0"})  # fmt: skip


def test_every_recommender_answers_as_before(fitted: FittedRelease, folder: Path) -> None:
    loaded = load(folder)
    assert list(loaded.recommenders) == list(fitted.recommenders)
    for name, recommender in fitted.recommenders.items():
        for query in QUERIES.values():
            assert_same_answers(recommender, loaded.recommenders[name], query)
            assert_same_answers(
                recommender.with_new_items(np.zeros((2, fitted.content.shape[1]), np.float32)),
                loaded.recommenders[name].with_new_items(np.zeros((2, fitted.content.shape[1]), np.float32)),
                query,
            )


def test_the_encoder_and_its_vectors_come_back(fitted: FittedRelease, folder: Path) -> None:
    loaded = load(folder)
    np.testing.assert_array_equal(loaded.content, fitted.content)
    np.testing.assert_array_equal(loaded.encoder.transform(toy_dataset().items), fitted.content)
    assert NEW_ITEMS.dtype == loaded.content.dtype


def test_the_manifest_remembers_what_it_was_told(folder: Path) -> None:
    manifest = load(folder).manifest
    assert manifest["database_id"] == "d1"
    assert manifest["data_window"] == [1.0, 2.0]
    assert manifest["metrics"] == {"ndcg": 0.1}
    assert {"numpy", "segue"} <= set(manifest["versions"])


def test_nothing_is_pickled_and_arrays_are_shared(folder: Path) -> None:
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".json", ".npy"}
    loaded = load(folder)
    assert not loaded.content.flags.writeable
    assert isinstance(loaded.content.base, np.memmap)


def test_nothing_unfinished_is_left_beside(folder: Path) -> None:
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_write_that_fails_leaves_nothing(
    fitted: FittedRelease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("models.artifacts._sync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "release", fitted)
    assert list(tmp_path.iterdir()) == []


def test_a_release_is_never_overwritten(fitted: FittedRelease, folder: Path) -> None:
    with pytest.raises(ArtifactError, match="never overwritten"):
        write(folder, fitted)


def test_numbers_that_order_nothing_are_not_written(fitted: FittedRelease, tmp_path: Path) -> None:
    broken = FittedRelease(fitted.encoder, np.full_like(fitted.content, np.nan), {}, 0)
    with pytest.raises(ArtifactError, match=r"content\.npy: holds NaN"):
        write(tmp_path / "release", broken)


def _remove(path: Path) -> None:
    path.unlink()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [_remove, _truncate, _flip])
@pytest.mark.parametrize(
    "name",
    ["manifest.json", "content.npy", "popularity/by_kind.npy", "popularity/parameters.json",
     "encoder/parameters.json", "row_of_position.npy"],
)  # fmt: skip
def test_any_damage_is_refused_by_file(folder: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(folder / name)
    with pytest.raises(ArtifactError) as caught:
        load(folder)
    assert caught.value.path == folder / name
    assert caught.value.cause


def test_without_verification_what_can_not_be_read_is_refused(folder: Path) -> None:
    (folder / "popularity/by_kind.npy").write_bytes(b"not an array")
    with pytest.raises(ArtifactError, match=r"by_kind\.npy: not a readable array"):
        load(folder, verify=False)


def test_a_pickled_array_is_refused(folder: Path) -> None:
    np.save(folder / "content.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(ArtifactError, match=r"content\.npy: not a readable array"):
        load(folder, verify=False)


def test_another_format_version_says_to_train_again(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(ArtifactError, match=r"format version 99.*train again"):
        load(folder)


def test_an_edited_manifest_is_refused(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"database_id": "d2"}))
    with pytest.raises(ArtifactError, match="its own checksum"):
        read_manifest(folder)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such release"):
        load(tmp_path / "nowhere")


def test_rows_and_positions(folder: Path) -> None:
    loaded: LoadedRelease = load(folder)
    rows = np.array([5, 8, 6, -1, 10_000, int(ROWS[0])])
    assert loaded.rows.positions_of(rows).tolist() == [N_ITEMS - 1, N_ITEMS - 2, -1, -1, -1, 0]
    assert loaded.rows.row_of_position.tolist() == ROWS.tolist()


def test_a_row_map_of_nothing() -> None:
    assert RowMap.of(np.empty(0, np.int64)).positions_of(np.array([0, 3])).tolist() == [-1, -1]
