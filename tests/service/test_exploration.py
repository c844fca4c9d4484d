"""Exploration over HTTP: what is drawn, for whom, and what is written down of it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from sqlalchemy import Engine, select

from app.serving.exploration import generator_of, plackett_luce, propensities_of
from app.storage.database import open_engine
from app.storage.tables import impressions, items, on_screen
from tests.service.conftest import Service, Stores, running
from tests.service.test_recommend import ids, like, recommend, send, settle, someone, written
from tests.service.test_rules import Put, put

__all__ = ["put"]


@pytest.fixture(scope="module")
def drawing(stores: Stores) -> Iterator[Service]:
    """A process that explores everybody, over the same stores as `a`."""
    with running(stores.environment, SEGUE_EXPLORE_SHARE="1") as service:
        yield service


@pytest.fixture(scope="module")
def database(stores: Stores) -> Iterator[Engine]:
    engine = open_engine(stores.environment["DATABASE_URL"])
    yield engine
    engine.dispose()


def row_of(database: Engine, item_id: str) -> int:
    with database.connect() as db:
        row: int = db.execute(select(items.c.row).where(items.c.item_id == item_id)).scalar_one()
        return row


def test_two_answers_differ_and_without_exploration_they_do_not(drawing: Service, a: Service) -> None:
    user = someone()
    settle(a)
    drawn = [tuple(ids(recommend(drawing, user))) for _ in range(5)]
    assert len(set(drawn)) > 1
    assert ids(recommend(a, user)) == ids(recommend(a, user))


def test_scores_order_a_drawn_answer_too(drawing: Service) -> None:
    scores = [item["score"] for item in recommend(drawing, someone(), limit=100)["items"]]
    assert all(above >= under for above, under in pairwise(scores))


def test_the_impression_says_how_the_page_was_drawn(drawing: Service, a: Service, database: Engine, put: Put) -> None:
    user = someone()
    settle(a, drawing)
    undrawn = ids(recommend(a, user, limit=50))
    put("promotions", undrawn[7], {"position": 2})
    put("promotions", undrawn[30], {"boost": 1.01})
    page = recommend(drawing, user, limit=6)
    row = written(database, page)
    draw = row.exploration["draw"]
    order, _, propensities = plackett_luce(np.array(draw["logits"]), generator_of(page["request_id"]))
    organic = [draw["candidates"][i] for i in order]
    pinned = row_of(database, undrawn[7])

    assert ids(page)[1] == undrawn[7]
    assert row.item_rows == [organic[0], pinned, *organic[1:5]]
    assert row.propensities == [
        pytest.approx(propensities[0]), None, *(pytest.approx(each) for each in propensities[1:5]),
    ]  # fmt: skip
    assert pinned not in draw["candidates"]
    assert row_of(database, undrawn[30]) in draw["candidates"]
    assert sorted(draw["scores"], reverse=True) == draw["scores"]
    assert (draw["policy"], draw["temperature"]) == ("plackett_luce", 0.5)
    assert row.exploration["slate_id"] == page["request_id"]


def test_the_candidates_are_the_slate_that_is_shown_without_exploration(
    drawing: Service, a: Service, database: Engine
) -> None:
    user = someone()
    settle(a, drawing)
    for diversity in (0, 0.7):
        undrawn = recommend(a, user, limit=10, diversity=diversity)
        draw = written(database, recommend(drawing, user, limit=10, diversity=diversity)).exploration["draw"]
        assert draw["candidates"][:10] == written(database, undrawn).item_rows
        assert len(draw["candidates"]) == 50


def test_without_exploration_nothing_is_written_of_it(a: Service, database: Engine) -> None:
    row = written(database, recommend(a, someone()))
    assert (row.propensities, row.exploration) == (None, None)


def test_pages_go_on_in_the_ranking_that_was_drawn(drawing: Service, a: Service, database: Engine) -> None:
    """`a` answers the later pages, and explores nobody: a slate is drawn or not on its first page."""
    user = someone()
    first = recommend(drawing, user, limit=20)
    second = recommend(a, user, limit=20, cursor=first["next_cursor"])
    rows = [written(database, page) for page in (first, second)]
    draw = rows[0].exploration["draw"]
    shown = [draw["candidates"].index(item) for row in rows for item in row.item_rows]
    logged = [propensity for row in rows for propensity in row.propensities]

    assert len(set(shown)) == 40
    rest = [i for i in range(60) if i not in shown]
    exact = propensities_of(np.array(draw["logits"])[shown + rest])[:40]
    assert logged == [pytest.approx(each, rel=1e-5) for each in exact]
    assert rows[1].exploration == {"slate_id": first["request_id"]}


def test_pages_beyond_the_pinned_ones_are_drawn_too(drawing: Service, database: Engine) -> None:
    user, seen = someone(), set()
    first = page = recommend(drawing, user, limit=30)
    rows = [written(database, page)]
    while page["next_cursor"]:
        page = recommend(drawing, user, limit=30, cursor=page["next_cursor"])
        rows.append(written(database, page))
    for row in rows:
        assert not seen & set(row.item_rows)
        seen |= set(row.item_rows)
        assert None not in row.propensities
        assert row.exploration["slate_id"] == first["request_id"]
    assert len(seen) == len(ids(recommend(drawing, user, limit=1000)))
    assert sum("draw" in row.exploration for row in rows) > 2
    drawn: set[int] = set()
    for row in rows:
        candidates = row.exploration.get("draw", {"candidates": []})["candidates"]
        assert not drawn & set(candidates)
        drawn |= set(candidates)
        assert set(row.item_rows) <= drawn


def test_blocked_excluded_and_seen_items_are_never_drawn(drawing: Service, a: Service, put: Put) -> None:
    user = someone()
    seen, blocked, excluded = ids(recommend(a, user))[:3]
    send(a, like(user, seen))
    put("blocks", blocked, {})
    first = recommend(drawing, user, limit=20, exclude=excluded)
    for _ in range(20):
        assert not {seen, blocked, excluded} & set(ids(recommend(drawing, user, limit=20, exclude=excluded)))
    left = ids(recommend(drawing, user, limit=1000, exclude=excluded))
    put("blocks", next(item for item in left if item not in ids(first)), {})
    second = recommend(drawing, user, limit=1000, exclude=excluded, cursor=first["next_cursor"])
    assert not {seen, blocked, excluded} & set(ids(second))


def test_what_is_blocked_between_two_pages_leaves_the_propensities_of_the_rest(
    drawing: Service, a: Service, database: Engine, put: Put
) -> None:
    user = someone()
    first = recommend(drawing, user, limit=5)
    unblocked = recommend(a, user, limit=5, cursor=first["next_cursor"])
    put("blocks", ids(unblocked)[0], {})
    blocked = recommend(a, user, limit=5, cursor=first["next_cursor"])
    assert ids(blocked)[:4] == ids(unblocked)[1:]
    assert written(database, blocked).propensities[:4] == written(database, unblocked).propensities[1:]


def test_forced_recommenders_and_replays_are_not_drawn(drawing: Service, a: Service, database: Engine) -> None:
    user = someone()
    settle(a, drawing)
    for parameters in ({"recommender": "popularity"}, {"at": "2030-01-01T00:00:00Z"}):
        assert ids(recommend(drawing, user, **parameters)) == ids(recommend(a, user, **parameters))
    forced = written(database, recommend(drawing, user, recommender="popularity"))
    assert (forced.propensities, forced.exploration) == (None, None)


def test_explain_speaks_of_the_order_without_exploration(drawing: Service, a: Service) -> None:
    user = someone()
    settle(a, drawing)
    for position, item in enumerate(ids(recommend(a, user, limit=3)), 1):
        why = drawing.client.get("/recommend/explain", params={"user_id": user, "item_id": item}).json()
        assert why["position"] == position


def test_drawn_answers_are_counted_by_route(drawing: Service, a: Service) -> None:
    def counted(service: Service) -> float:
        lines = service.client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith('segue_explored_total{route="new"}'))

    before = counted(drawing), counted(a)
    recommend(drawing, someone())
    recommend(a, someone())
    assert (counted(drawing), counted(a)) == (before[0] + 1, before[1])


def test_an_export_names_what_was_drawn_from(drawing: Service, database: Engine) -> None:
    user = someone()
    page = recommend(drawing, user, limit=5)
    row = written(database, page)
    [exported] = drawing.client.get(f"/users/{user}/export").json()["impressions"]
    assert exported["propensities"] == row.propensities
    names = exported["exploration"]["draw"]["candidates"]
    assert [row_of(database, name) for name in names] == row.exploration["draw"]["candidates"]
    assert set(ids(page)) <= set(names)


def test_what_was_on_screen_is_tied_to_the_page_that_was_served(drawing: Service, database: Engine) -> None:
    user = someone()
    page = recommend(drawing, user, limit=5)
    looked_at = ids(page)[:2]
    tie = {"user_id": user, "kind": "impression", "request_id": page["request_id"]}
    send(drawing, *({**tie, "item_id": item} for item in looked_at))
    served = written(database, page)
    statement = select(on_screen.c.item_row).join(impressions, impressions.c.request_id == on_screen.c.request_id)
    with database.connect() as db:
        rows = db.execute(statement.where(impressions.c.request_id == page["request_id"])).scalars().all()
    assert sorted(rows) == sorted(served.item_rows[:2])

    listed = drawing.client.get(f"/users/{user}/interactions", params={"kind": "impression"}).json()["items"]
    assert sorted(each["item_id"] for each in listed) == sorted(looked_at)
    assert {(each["kind"], each["value"], each["request_id"]) for each in listed} == {
        ("impression", None, page["request_id"])
    }
    exported = drawing.client.get(f"/users/{user}/export").json()
    assert sorted(each["item_id"] for each in exported["on_screen"]) == sorted(looked_at)
    assert drawing.client.delete(f"/users/{user}").json()["erased"]["on_screen"] == 2
