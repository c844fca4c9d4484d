"""A user is forgotten everywhere, and nothing that is under way brings the user back."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from sqlalchemy import Engine, text

from app.catalog import users, versions
from app.catalog.users import User
from app.erasure import erase_user, export_user
from app.errors import NotFound
from app.feedback import event_log, user_state
from app.feedback.ingest import Ingest
from app.settings import Settings
from tests.app.feedback.examples import an_event, planted

Erase = Callable[[str], dict[str, int]]


@pytest.fixture
def erase(engine: Engine, ingest: Ingest) -> Erase:
    return lambda user_id: erase_user(engine, ingest.views, user_id)


@pytest.fixture
def ann(engine: Engine, ingest: Ingest) -> None:
    """Traces of `ann` and of `ann2` everywhere."""
    with engine.begin() as db:
        users.put(db, [User("ann", {"country": "NO"}, ["Drama"]), User("ann2", {}, [])])
    for user_id in ("ann", "ann2"):
        ingest.submit_blocking([an_event(user_id, f"i{n}", "like", minute=n) for n in range(3)])
        ingest.submit_blocking([an_event(user_id, f"i{n}", "impression", minute=n) for n in range(2)])
        with engine.begin() as db:
            db.execute(
                text(
                    "INSERT INTO impressions (request_id, shown_at, user_id, surface, route, recommender,"
                    " first_position, item_rows, sources, scores, promoted)"
                    " VALUES (:user, now(), :user, 'feed', 'new', 'popularity', 1, '{1,0}', '{a,b}', '{1,0}', '{f,f}')"
                ),
                {"user": user_id},
            )
            db.execute(text("INSERT INTO blocks (item_row, user_id) VALUES (0, :user)"), {"user": user_id})
            state = json.dumps({"reason": "ann", "user_id": user_id})
            db.execute(
                text(
                    "INSERT INTO audit_log (actor, action, subject, after)"
                    " VALUES ('root', 'block.put', 'item:ann', :state), ('root', 'x', 'user:' || :user, NULL)"
                ),
                {"user": user_id, "state": state},
            )


def everything(engine: Engine) -> str:
    """All rows of all tables, as text."""
    with engine.connect() as db:
        tables = db.execute(
            text("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
        ).scalars()
        return "\n".join(
            str(row) for table in tables for row in db.execute(text(f'SELECT "{table}"::text FROM "{table}"')).scalars()
        )


@pytest.mark.usefixtures("ann")
def test_all_traces_go_and_are_counted_and_others_stay(engine: Engine, erase: Erase) -> None:
    assert erase("ann") == {
        "likes": 3, "event_ids": 5, "interactions": 3, "on_screen": 2, "impressions": 1, "exposures": 0,
        "blocks": 1, "experiments": 0, "audit_entries": 2, "users": 1,
    }  # fmt: skip
    with engine.connect() as db:
        left = db.execute(text("SELECT user_id FROM users")).scalars().all()
        assert left == ["ann2"]
        exported = export_user(db, "ann2")
        kept = ("likes", "interactions", "on_screen", "impressions", "blocks", "audit_entries")
        assert [len(exported[what]) for what in kept] == [3, 3, 2, 1, 1, 2]
        with pytest.raises(NotFound):
            export_user(db, "ann")
        audit = db.execute(text("SELECT subject, after FROM audit_log ORDER BY id")).all()
    assert [row.subject for row in audit] == ["item:ann", "user:(erased)", "item:ann", "user:ann2"]
    assert audit[0].after == {"reason": "(erased)", "user_id": "(erased)"}
    assert audit[2].after == {"reason": "ann", "user_id": "ann2"}


def test_an_export_of_nobody_does_not_look_through_redis(engine: Engine) -> None:
    asked: list[str] = []
    with engine.connect() as db, pytest.raises(NotFound):
        export_user(db, "nobody", lambda: asked.append("redis"))
    assert not asked


def test_an_odd_id_is_erased_too(engine: Engine, ingest: Ingest, erase: Erase) -> None:
    odd = '100%_"quoted"\\\'🎬'
    ingest.submit_blocking([an_event(odd)])
    with engine.begin() as db:
        db.execute(
            text("INSERT INTO audit_log (actor, action, subject, before) VALUES ('root', 'x', 'item:i', :state)"),
            {"state": json.dumps({"user_id": odd})},
        )
    assert erase(odd)["audit_entries"] == 1
    assert "quoted" not in everything(engine)


@pytest.mark.usefixtures("ann")
def test_the_cache_forgets(engine: Engine, cache: redis.Redis, erase: Erase) -> None:
    with engine.connect() as db:
        version = versions.read(db)["cache"]
    found = planted(cache, version, "ann", user_state.View(None, "server", None, True))
    user_state.rebuild(engine, cache, version, "ann", found, Settings())
    assert cache.keys("*{ann}*")
    erase("ann")
    assert not cache.keys("*{ann}*")


@pytest.mark.usefixtures("ann")
def test_workers_hear_of_it(engine: Engine, erase: Erase) -> None:
    with engine.connect() as db:
        before = versions.read(db)
    erase("ann")
    with engine.connect() as db:
        after = versions.read(db)
    assert before["deletions"] != after["deletions"]
    assert before["rules"] != after["rules"]


def test_who_was_only_shown_things_is_erased_too(engine: Engine, erase: Erase) -> None:
    with engine.begin() as db:
        db.execute(
            text(
                "INSERT INTO impressions (request_id, shown_at, user_id, surface, route, recommender,"
                " first_position, item_rows, sources, scores, promoted)"
                " VALUES ('r', now(), 'bob', 'feed', 'new', 'popularity', 1, '{}', '{}', '{}', '{}')"
            )
        )
        assert export_user(db, "bob")["user"] is None
    assert erase("bob")["impressions"] == 1


class TestEventsAfterwards:
    def test_are_acknowledged_and_dropped(self, engine: Engine, ingest: Ingest, erase: Erase) -> None:
        sent = [an_event("ann", event_id="e1")]
        ingest.submit_blocking(sent)
        erase("ann")
        receipt = ingest.submit_blocking([*sent, an_event("ann", minute=None), an_event("bob")])
        assert (receipt.accepted, receipt.duplicates) == (3, 0)
        assert "'ann'" not in everything(engine)
        with engine.connect() as db:
            assert db.execute(text("SELECT user_id FROM users")).scalars().all() == ["bob"]

    def test_are_no_unknown_users_where_nothing_is_created(
        self, engine: Engine, cache: redis.Redis, erase: Erase
    ) -> None:
        erase("ann")
        strict = Ingest(engine, cache, Settings(auto_create=False), settle_seconds=0)
        assert strict.submit_blocking([an_event("ann")]).accepted == 1
        strict.close()

    def test_a_user_put_on_purpose_starts_anew_and_the_old_life_stays_forgotten(
        self, engine: Engine, ingest: Ingest, erase: Erase
    ) -> None:
        old = an_event("ann", "i1", "like", event_id="old")
        ingest.submit_blocking([old])
        erase("ann")
        with engine.begin() as db:
            assert users.put(db, [User("ann", {}, [])]) == 1
        ingest.submit_blocking([old])
        ingest.submit_blocking([an_event("ann", "i2", "like", minute=None)])
        with engine.connect() as db:
            view = user_state.load(db, "ann", Settings())
            ids = db.execute(text("SELECT item_id FROM items ORDER BY row")).scalars().all()
        assert [ids[row] for row in view.seen] == ["i2"]

    def test_in_flight_do_not_bring_the_user_back(
        self, engine: Engine, ingest: Ingest, erase: Erase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ingest has looked for a tombstone, found none, and is about to create the user."""
        looked, has_looked = event_log._look_up, threading.Event()

        def look_up_slowly(*arguments: object) -> object:
            known = looked(*arguments)  # type: ignore[arg-type]
            has_looked.set()
            time.sleep(0.5)
            return known

        monkeypatch.setattr(event_log, "_look_up", look_up_slowly)
        with ThreadPoolExecutor() as pool:
            in_flight = pool.submit(ingest.submit_blocking, [an_event("ann", event_id="e1")])
            assert has_looked.wait(60)
            erased = pool.submit(erase, "ann").result()
            in_flight.result()
        assert erased["users"] == erased["interactions"] == 1
        with engine.connect() as db:
            assert db.execute(text("SELECT count(*) FROM users")).scalar_one() == 0

    def test_erasure_and_events_in_a_race_leave_nothing(self, engine: Engine, ingest: Ingest, erase: Erase) -> None:
        with ThreadPoolExecutor(8) as pool:
            sent = [pool.submit(ingest.submit_blocking, [an_event("ann", f"i{n}", "like")]) for n in range(60)]
            erasures = [pool.submit(erase, "ann") for _ in range(3)]
            for each in [*sent, *erasures]:
                each.result()
        with engine.connect() as db:
            for table in ("users", "interactions", "likes", "event_ids"):
                assert db.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() == 0, table
