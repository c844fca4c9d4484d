"""The likes that stand follow from the latest decision, in whatever order decisions arrive."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from app.catalog.rows import allocate_users
from app.feedback.event_log import store
from app.feedback.ingest import Ingest
from app.feedback.likes import deciding_event
from tests.app.feedback.examples import NOON, an_event


def likes(engine: Engine, user_id: str = "ann") -> set[str]:
    statement = text(
        "SELECT item_id FROM likes JOIN items ON items.row = item_row JOIN users ON users.row = user_row"
        " WHERE user_id = :user_id"
    )
    with engine.connect() as db:
        return set(db.execute(statement, {"user_id": user_id}).scalars())


DECISIONS = st.lists(
    st.tuples(st.sampled_from(["like", "unlike", "dislike", "hide", "view"]), st.integers(0, 5)), max_size=6
)


@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=DECISIONS, second=DECISIONS)
def test_the_latest_decision_stands(
    ingest: Ingest, engine: Engine, first: list[tuple[str, int]], second: list[tuple[str, int]]
) -> None:
    """Two requests, out of order; of decisions at one time the one stored later."""
    user_id = an_event().event_id
    for decisions in (first, second):
        ingest.submit_blocking([an_event(user_id, "dune", kind, minute=at) for kind, at in decisions])
    decided = [(at, n, kind) for n, (kind, at) in enumerate(first + second) if kind != "view"]
    expected = {"dune"} if decided and max(decided)[2] == "like" else set()
    assert likes(engine, user_id) == expected


def test_a_like_says_since_when(ingest: Ingest, engine: Engine) -> None:
    ingest.submit_blocking([an_event("ann", "dune", "like", minute=0)])
    with engine.connect() as db:
        assert db.execute(text("SELECT liked_at FROM likes")).scalar_one() == NOON


def test_two_writers_on_one_user_take_turns(engine: Engine, ingest: Ingest) -> None:
    """Else each would decide without the other's event, and what the later one took back would stay liked."""
    ingest.submit_blocking([an_event("ann", "dune", "view")])
    with ThreadPoolExecutor() as pool:
        with engine.begin() as db:
            store(db, [[an_event("ann", "dune", "unlike", minute=2)]], auto_create=True)
            earlier = pool.submit(ingest.submit_blocking, [an_event("ann", "dune", "like", minute=1)])
            time.sleep(0.3)
        earlier.result()
    assert likes(engine) == set()


@pytest.mark.parametrize("wanted", [True, False])
def test_nothing_is_to_be_done_where_it_is_so_already(ingest: Ingest, engine: Engine, wanted: bool) -> None:
    if wanted:
        ingest.submit_blocking([an_event("ann", "dune", "like")])
    with engine.connect() as db:
        assert deciding_event(db, "ann", "dune", liked=wanted) is None
        assert deciding_event(db, "bob", "dune", liked=False) is None


def test_wanting_the_same_at_once_stores_one(ingest: Ingest, engine: Engine) -> None:
    def decide() -> tuple[int, int]:
        with engine.connect() as db:
            event = deciding_event(db, "ann", "dune", liked=True)
        assert event is not None
        receipt = ingest.submit_blocking([event])
        return receipt.accepted, receipt.duplicates

    with engine.connect() as db:
        early = deciding_event(db, "ann", "dune", liked=True)
    assert early is not None
    assert decide() == (1, 0)
    assert ingest.submit_blocking([early]).duplicates == 1


def test_a_like_after_an_unlike_is_another_event(ingest: Ingest, engine: Engine) -> None:
    ids = set()
    for wanted in (True, False, True, False):
        with engine.connect() as db:
            event = deciding_event(db, "ann", "dune", liked=wanted)
        assert event is not None
        assert ingest.submit_blocking([event]).accepted == 1
        assert likes(engine) == ({"dune"} if wanted else set())
        ids.add(event.event_id)
    assert len(ids) == 4


def test_a_plan_that_was_made_when_nothing_was_stored_looks_up_pairs_all_the_same(engine: Engine) -> None:
    """A connection keeps its plan; going through every like there is, each group would take longer than the last."""
    with engine.begin() as db:
        store(db, [[an_event("ann", "dune", "like")]], auto_create=True)
        db.execute(
            text(
                "INSERT INTO interactions (event_id, user_row, item_row, kind, timestamp)"
                " SELECT 'old' || n, n, n % 7, 'like', now() FROM generate_series(100, 2099) AS n"
            )
        )
        event = orjson.dumps([{"event_id": "e1", "user_id": "ann", "item_id": "dune", "kind": "like"}]).decode()
        explain = "EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE segue_store (%(event)s, false, '')"
        plan = db.exec_driver_sql(explain, {"event": event}).scalar_one()
    reads = [each for each in nodes(plan[0]["Plan"]) if each["Node Type"].endswith("Scan")]
    pasts = [each for each in reads if each.get("Index Name") == "ix_interactions_past"]
    assert [each["Actual Rows"] * each["Actual Loops"] for each in pasts] == [1]


def test_a_like_that_ends_is_found_without_reading_those_of_others(engine: Engine) -> None:
    """Also by a plan from when there were users and no likes yet."""
    others = [an_event(f"u{n}", "dune", "like") for n in range(500)]
    with engine.begin() as db:
        allocate_users(db, [event.user_id for event in others])
        db.exec_driver_sql("ANALYZE")
        store(db, [[an_event("ann", "dune", "like")]], auto_create=True)
        store(db, [[*others, an_event("ann", "emma", "like")]], auto_create=True)
        event = orjson.dumps([{"event_id": "e1", "user_id": "ann", "item_id": "emma", "kind": "hide"}]).decode()
        explain = "EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE segue_store (%(event)s, false, '')"
        plan = db.exec_driver_sql(explain, {"event": event}).scalar_one()
    read = [each["Actual Rows"] * each["Actual Loops"] for each in nodes(plan[0]["Plan"]) if is_on_likes(each)]
    assert sum(read) <= 2
    assert likes(engine) == {"dune"}


def is_on_likes(node: dict[str, Any]) -> bool:
    return node.get("Relation Name") == "likes" and node["Node Type"].endswith("Scan")


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)
