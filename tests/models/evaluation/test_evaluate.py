"""The evaluation: who is judged, on what, and the leaderboard on real data."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.contracts import Candidates, Query
from models.data.dataset import Dataset, Interactions, ItemTable
from models.data.splits import Split, split_by_time
from models.evaluation.evaluate import Judge, _filled, _personal, evaluate, judge_release
from models.evaluation.leaderboard import COLUMNS, Leaderboard
from models.training import fit_recipes
from tests.recommender_contract import DAY, NOW, toy_dataset, toy_items

DEMO = Path(__file__).parents[3] / "demo" / "movietweetings-100k"


def interactions(*users_items: tuple[int, int], start: float) -> Interactions:
    n = len(users_items)
    return Interactions(
        np.array([user for user, _ in users_items], np.int32), np.array([item for _, item in users_items], np.int32),
        np.ones(n, np.float32), np.ones(n, np.int8), np.full(n, np.nan, np.float32),
        start + np.arange(n, dtype=np.float64),
    )  # fmt: skip


@pytest.fixture
def split() -> Split:
    """User 0 is warm and meets items 2 and, again, 0; user 1 never comes back; user 2 is cold."""
    earlier = Dataset(interactions((0, 0), (1, 1), (0, 1), start=NOW), toy_items(), n_users=3)
    return Split(earlier, interactions((0, 2), (0, 0), (2, 0), (2, 0), start=NOW + DAY))


def test_only_what_is_new_to_the_user_is_relevant(split: Split) -> None:
    judge = Judge.of(split)
    assert [case.relevant.tolist() for case in judge.cases] == [[2], [0]]
    assert judge.warm.tolist() == [True, False]
    assert judge.at == NOW + 2


def test_histories_hold_nothing_from_after_the_moment(split: Split) -> None:
    warm = Judge.of(split).cases[0]
    assert warm.history.positions.tolist() == [0, 1]
    assert warm.history.timestamps.max() <= NOW + 2


def test_questions_exclude_what_was_seen(split: Split) -> None:
    judge = Judge.of(split)
    query = judge.query(judge.cases[0])
    assert query.excluded.tolist() == [0, 1]
    assert query.at == judge.at


def test_nobody_asks_a_recommender_about_cold_users(split: Split) -> None:
    class Spy:
        asked: list[Query] = []  # noqa: RUF012 - one test, one spy

        def recommend(self, query: Query) -> Candidates:
            self.asked.append(query)
            return Candidates(np.array([2], np.int32), np.ones(1, np.float32))

    spy = Spy()
    lists = _personal(Judge.of(split), spy)  # type: ignore[arg-type]
    assert lists[:, 0].tolist() == [2, -1]
    assert len(spy.asked) == 1


def test_the_fallback_fills_without_repeating() -> None:
    lists = np.full((2, 20), -1, np.int32)
    lists[0, :2] = [7, 3]
    fallback = np.tile(np.array([3, 5, *[-1] * 18], np.int32), (2, 1))
    filled = _filled(lists, fallback)
    assert filled[:, :4].tolist() == [[7, 3, 5, -1], [3, 5, -1, -1]]


def test_groups_are_judged_apart(split: Split) -> None:
    judge = Judge.of(split)
    lists = np.full((2, 20), -1, np.int32)
    lists[0, 0] = 2
    rows = {row.users: row for row in judge.rows("perfect for warm", lists)}
    assert {users: row.ndcg.mean for users, row in rows.items()} == {"all": 0.5, "warm": 1.0, "cold": 0.0}
    assert {users: row.n_users for users, row in rows.items()} == {"all": 2, "warm": 1, "cold": 1}


@pytest.fixture(scope="module")
def board() -> Leaderboard:
    return evaluate(toy_dataset(), names=["popularity", "item_similarity"])


def test_taste_beats_popularity_where_there_is_taste(board: Leaderboard) -> None:
    assert board.row("item_similarity", "warm").ndcg.mean > board.row("popularity", "warm").ndcg.mean + 0.1


def test_popularity_kinds_stand_beside(board: Leaderboard) -> None:
    names = {row.recommender for row in board.rows}
    assert {"popularity all", "popularity window:3d", "popularity decay:1d"} <= names


def test_the_leaderboard_reads_as_markdown_and_json(board: Leaderboard) -> None:
    lines = board.as_markdown().splitlines()
    assert lines[0].startswith("448 interactions up to 2023-11-")
    assert lines[2] == f"| {' | '.join(COLUMNS)} |"
    assert len(json.loads(json.dumps(board.as_json(), allow_nan=False))["rows"]) == len(board.rows)
    assert len(board.ranked("all")[0].cells()) == len(COLUMNS)
    scores = [row.ndcg.mean for row in board.ranked("all")]
    assert scores == sorted(scores, reverse=True)


def test_an_unknown_row_is_named(board: Leaderboard) -> None:
    with pytest.raises(KeyError, match="'nobody'"):
        board.row("nobody")


def test_what_users_do_later_changes_no_list() -> None:
    """The fits see the earlier part alone: other test interactions leave the lists as they were."""
    split = split_by_time(toy_dataset())
    fitted = fit_recipes(split.earlier, names=["item_similarity"])
    swapped = split._replace(later=replace(split.later, items=split.later.items[::-1].copy()))
    for part in (split, swapped):
        judge = Judge.of(part)
        known = {tuple(case.history.positions.tolist()): row for row, case in enumerate(judge.cases)}
        lists = _personal(judge, fitted.recommenders["item_similarity"])
        if part is split:
            before = {key: lists[row].tolist() for key, row in known.items()}
        else:
            assert {key: lists[row].tolist() for key, row in known.items() if key in before}.items() <= before.items()


@pytest.fixture(scope="module")
def films() -> Dataset:
    """The bundled MovieTweetings, as the importer would hand it over."""
    with gzip.open(DEMO / "movies.dat.gz", "rt", encoding="utf-8") as file:
        films = [line.rstrip("\n").split("::") for line in file]
    with gzip.open(DEMO / "ratings.dat.gz", "rt", encoding="utf-8") as file:
        ratings = [line.split("::") for line in file]
    ratings.sort(key=lambda rating: int(rating[3]))
    position = {film[0]: index for index, film in enumerate(films)}
    users: dict[str, int] = {}
    values = np.array([float(rating[2]) / 2 for rating in ratings], np.float32)
    n = len(films)
    return Dataset(
        Interactions(
            np.array([users.setdefault(rating[0], len(users)) for rating in ratings], np.int32),
            np.array([position[rating[1]] for rating in ratings], np.int32),
            (values - 2.5) / 2.5,
            np.where(values > 3.5, 1, np.where(values <= 2, -1, 0)).astype(np.int8),
            values,
            np.array([float(rating[3]) for rating in ratings]),
        ),
        ItemTable(
            [tuple(film[2].split("|")) for film in films], [()] * n, [film[1] for film in films],
            [None] * n, ["film"] * n, np.full(n, np.nan), np.empty((n, 0), np.float32),
        ),
        len(users),
    )  # fmt: skip


def test_the_static_split_of_movietweetings(films: Dataset) -> None:
    """The figures measured elsewhere on this split, and popularity's choice not below the 3-day window."""
    split = split_by_time(films)
    board = judge_release(fit_recipes(split.earlier, names=["popularity"]), split)
    for kind, expected in {"window:3d": (0.108, 0.121, 0.086), "all": (0.048, 0.054, 0.039)}.items():
        found = [board.row(f"popularity {kind}", users).ndcg.mean for users in ("all", "warm", "cold")]
        assert found == pytest.approx(expected, abs=0.0006)
    assert board.row("popularity", "cold").ndcg.mean >= board.row("popularity window:3d", "cold").ndcg.mean
