"""After an erasure the user's id is in no column of any table and in no key of Redis, whoever goes on sending."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import Engine, insert, text
from sqlalchemy.exc import OperationalError

from app.catalog import rules, users, versions
from app.catalog.rules import Window
from app.catalog.users import User, hash_of
from app.erasure import ERASE, EXPORT, erase_user, export_user, forget_late
from app.experiments import lifecycle
from app.feedback import user_state
from app.feedback.events import Event
from app.feedback.ingest import Ingest
from app.live.check import differences
from app.live.follower import LiveFollower
from app.live.log import recount
from app.serving.impressions import Impression, ImpressionWriter
from app.serving.pages import PageStore, Pinned
from app.serving.slate import Shown
from app.settings import Settings
from app.storage import tables
from app.storage.database import open_engine
from models.contracts import Reason
from tests.app.feedback.examples import planted
from tests.patience import until

SHOWN = Shown(0, 0.5, "blend", False, Reason("taste"))
NOW = datetime.now(UTC)


@pytest.fixture
def user() -> str:
    """Found wherever it stands: a name of which no other is a part. With what a pattern would take for its own."""
    return f"u*[{secrets.token_hex(8)}]?{{}}"


@pytest.fixture
def known(engine: Engine, ingest: Ingest, cache: redis.Redis, redis_url: str, user: str) -> list[Event]:
    """The user is in every table and every sort of key that names users; answers the events."""
    with engine.begin() as db:
        users.put(db, [User(user, {"nick": user}, ["Drama"])])
    events = [
        Event(f"{user} {n}", user, f"i{n % 3}", kind, None, NOW - timedelta(minutes=n), f"s {user}", f"r {user}")
        for n, kind in enumerate(("like", "view", "impression", "dislike"))
    ]
    ingest.submit_blocking(events)
    with engine.begin() as db:
        window = Window(None, None)
        rules.put_block(db, actor="editor", item_id="i0", reason=f"asked by {user}", window=window, user_id=user)
        rules.put_block(db, actor="editor", item_id="i0", reason="again", window=window, user_id=user)
        rules.put_block(db, actor="editor", item_id="i1", reason="for all", window=window)
    force_into_a_variant(engine, user)
    writer = ImpressionWriter(engine, capacity=10)
    writer.record(Impression("r1", NOW, user, "feed", "few", "blend", None, {}, 1, (SHOWN,)))
    writer.close()
    with engine.connect() as db:
        version = versions.read(db)["cache"]
    # What was written under an earlier version is never read again; but it is there.
    for each in (version, f"{version.rpartition(':')[0]}:999"):
        view = planted(cache, each, user, user_state.View(None, "server", None, True))
        user_state.rebuild(engine, cache, each, user, view, Settings())
    asyncio.run(_pin(redis_url, user))
    return events


def force_into_a_variant(engine: Engine, user: str) -> None:
    """By the definition of an experiment that ran, and runs again; and the user was exposed, to the other one."""
    variants = [
        {"name": name, "weight": 0.5, "recommender": None, "parameters": {}, "promotions": True} for name in "ab"
    ]
    definition = {
        "seed": None, "namespace": None, "coverage": 1.0, "variants": variants, "holdout": False, "data": "shared",
        "forced": {user: "a", "other": "b"}, "route": None, "surface": "feed",
    }  # fmt: skip
    with engine.begin() as db:
        lifecycle.put(db, "x", definition, recommenders=(), actor="editor")
        for _ in range(2):
            lifecycle.start(db, "x", recommenders=(), defaults={}, actor="editor")
            lifecycle.stop(db, "x", actor="editor")
        exposed = {"experiment": "x", "run": 1, "variant": "b", "route": "new", "surface": "feed", "worker": "w"}
        db.execute(insert(tables.exposures).values(**exposed, user_id=user, exposed_at=NOW, request_id="r1"))


async def _pin(redis_url: str, user: str) -> None:
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        pages = PageStore(client, ttl_seconds=60)
        pages.put(Pinned("recommend", {"user_id": user}, "few", "blend", None, {}, (1,), (SHOWN,), user_row=0))
        await pages.close()


def columns_with(engine: Engine, word: str) -> set[str]:
    """Every column of every table in which the word stands, in whatever type."""
    listed = "select table_name, column_name from information_schema.columns where table_schema = 'public'"
    with engine.connect() as db:
        return {
            f"{table}.{column}"
            for table, column in db.execute(text(listed)).all()
            if db.execute(
                text(f'select exists (select from "{table}" where strpos("{column}"::text, :word) > 0)'), {"word": word}
            ).scalar_one()
        }


def keys_with(cache: redis.Redis, word: str) -> list[bytes]:
    """Every key in whose name or value the word stands."""
    return [key for key in cache.scan_iter() if word.encode() in key + (cache.dump(key) or b"")]


@pytest.mark.usefixtures("known")
def test_it_is_everywhere_before_and_nowhere_after(
    engine: Engine, ingest: Ingest, cache: redis.Redis, user: str
) -> None:
    assert columns_with(engine, user) == {
        "users.user_id", "users.attributes", "event_ids.event_id", "interactions.event_id", "interactions.session_id",
        "interactions.request_id", "on_screen.event_id", "on_screen.session_id", "on_screen.request_id",
        "impressions.user_id", "exposures.user_id", "blocks.user_id", "experiments.definition", "audit_log.before",
        "audit_log.after",
    }  # fmt: skip
    assert len(keys_with(cache, user)) == 3
    erase_user(engine, ingest.views, user)
    assert columns_with(engine, user) == set()
    assert keys_with(cache, user) == []
    with engine.connect() as db:
        both = (
            "select reason from blocks union all select after ->> 'reason' from audit_log where subject like 'item:%'"
        )
        words = db.execute(text(both))
        named = (
            "select definition as said from experiments union all select after from audit_log where after ? 'forced'"
        )
        assert [said["forced"] for said in db.execute(text(named)).scalars()] == 7 * [{"other": "b"}]
        assert set(words.scalars()) == {"for all", "(erased)"}, "of others something went, or of this user it stayed"


@contextmanager
def sending(ingest: Ingest, events: list[Event]) -> Iterator[Callable[[], int]]:
    """Somebody sends the same events and late ones of the same user, again and again; how often so far."""
    over, sent = threading.Event(), [0]

    def send() -> None:
        while not over.is_set():
            fresh = Event(secrets.token_hex(8), events[0].user_id, "i1", "click", None, None)
            ingest.submit_blocking([*events, fresh])
            sent[0] += 1

    threads = [threading.Thread(target=send) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield lambda: sent[0]
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_whoever_goes_on_sending_brings_nothing_back(
    engine: Engine, ingest: Ingest, cache: redis.Redis, known: list[Event], user: str
) -> None:
    with sending(ingest, known) as sent:
        until(lambda: sent() > 10)
        erase_user(engine, ingest.views, user)
        before = sent()
        until(lambda: sent() > before + 20)
        assert columns_with(engine, user) == set()
    assert columns_with(engine, user) == set()
    assert keys_with(cache, user) == []


def test_live_signals_forget_and_a_recount_does_not_remember(
    engine: Engine, ingest: Ingest, known: list[Event], user: str
) -> None:
    with engine.connect() as db:
        row = db.execute(text("select row from users where user_id = :user"), {"user": user}).scalar_one()
    follower = LiveFollower(engine, Settings(live_checkpoint_seconds=0.2))
    try:
        assert follower.caught_up(60)
        until(lambda: len(follower.state.trail(row)) > 0)
        erase_user(engine, ingest.views, user)
        until(lambda: not len(follower.state.trail(row)))
        assert not follower.state.totals().any()
        ingest.submit_blocking(known)
    finally:
        follower.close()
    recounted, _ = recount(engine, Settings().feedback_weights)
    assert differences(follower.state, recounted) == []
    again = LiveFollower(engine, Settings())
    assert again.caught_up(60)
    again.close()
    assert np.concatenate((again.state.totals(), again.state.trail(row))).sum() == 0


@pytest.mark.usefixtures("known")
def test_what_redis_could_not_be_told_it_is_told_later(
    engine: Engine, ingest: Ingest, cache: redis.Redis, user: str
) -> None:
    ingest.submit_blocking([Event("e", f"{user}2", "i1", "like", None, None)])
    with redis.Redis(port=1, retry=Retry(NoBackoff(), 0), socket_timeout=0.2) as dead:
        away = Ingest(engine, dead, Settings(), settle_seconds=0)
        erase_user(engine, away.views, user)
        away.close()
        with pytest.raises(redis.ConnectionError):
            forget_late(engine, dead)
    assert keys_with(cache, user)
    others = len(keys_with(cache, f"{user}2"))
    assert forget_late(engine, cache) == 1
    assert [key for key in keys_with(cache, user) if f"{user}2".encode() not in key] == []
    assert len(keys_with(cache, f"{user}2")) == others
    assert forget_late(engine, cache) == 0


def age_tombstones(engine: Engine, **by: float) -> None:
    """Moves every erasure, and what was done since, so far into the past."""
    with engine.begin() as db:
        moved = "update tombstones set erased_at = erased_at - :by, forgotten_at = forgotten_at - :by"
        db.execute(text(moved), {"by": timedelta(**by)})


def write_late(engine: Engine, cache: redis.Redis, *user_ids: str) -> None:
    """What answers that were under way write right after these users were erased."""
    statement = text("select erased_at + interval '1 second' from tombstones where user_hash = :hash")
    writer = ImpressionWriter(engine, capacity=10)
    for each in user_ids:
        with engine.begin() as db:
            at = db.execute(statement, {"hash": hash_of(each)}).scalar_one()
            exposed = {"experiment": "x", "run": 1, "variant": "b", "route": "new", "surface": "feed", "worker": "w"}
            db.execute(insert(tables.exposures).values(**exposed, user_id=each, exposed_at=at, request_id=each))
        writer.record(Impression(each, at, each, "feed", "few", "blend", None, {}, 1, (SHOWN,)))
        cache.set(f"segue:page:{{{each}}}:late", b"pinned")
    writer.close()


def shown_and_exposed(engine: Engine) -> list[list[str]]:
    with engine.connect() as db:
        named = (text(f"select user_id from {table} order by 1") for table in ("impressions", "exposures"))
        return [list(db.execute(statement).scalars()) for statement in named]


@pytest.fixture
def gone(engine: Engine, ingest: Ingest, user: str) -> str:
    """The user was erased an hour ago."""
    force_into_a_variant(engine, "another")
    with engine.begin() as db:
        db.execute(text("truncate exposures"))
    erase_user(engine, ingest.views, user)
    age_tombstones(engine, hours=1)
    return user


def test_what_an_answer_under_way_wrote_after_the_erasure_goes_with_the_next_round(
    engine: Engine, ingest: Ingest, cache: redis.Redis, gone: str
) -> None:
    back = f"{gone}2"
    erase_user(engine, ingest.views, back)
    with engine.begin() as db:
        # Further ahead than any machine sleeps.
        db.execute(text("update tombstones set erased_at = now() + interval '1 day', forgotten_at = now()"))
        users.put(db, [User(back, {}, [])])
    assert forget_late(engine, cache) == 0, "more may come"
    age_tombstones(engine, days=1, hours=1)
    write_late(engine, cache, gone, back)
    session = f"segue:session:{{{back}}}:s"
    cache.set(session, b"of this life")
    assert forget_late(engine, cache) == 2
    assert keys_with(cache, f"{{{gone}}}") == []
    assert cache.exists(session), "who came back on purpose is given tracks again"
    assert shown_and_exposed(engine) == [[back], [back]], "who came back on purpose is seen again"
    assert forget_late(engine, cache) == 0


def test_a_slate_that_waited_for_redis_goes_after_the_sweep_that_came_late(
    engine: Engine, cache: redis.Redis, gone: str
) -> None:
    with engine.begin() as db:
        db.execute(text("update tombstones set forgotten_at = null"))
    assert forget_late(engine, cache) == 1
    cache.set(f"segue:page:{{{gone}}}:late", b"waited")
    age_tombstones(engine, hours=1)
    assert forget_late(engine, cache) == 1
    assert keys_with(cache, gone) == []
    assert forget_late(engine, cache) == 0


def test_old_erasures_are_not_looked_at_again(engine: Engine, cache: redis.Redis, gone: str) -> None:
    """As an upgrade finds thousands of them."""
    age_tombstones(engine, days=8)
    cache.set(f"segue:page:{{{gone}}}:x", b"")
    assert forget_late(engine, cache) == 0
    cache.delete(f"segue:page:{{{gone}}}:x")


def test_a_postgres_that_takes_too_long_does_not_keep_redis_from_forgetting(
    engine: Engine, cache: redis.Redis, gone: str
) -> None:
    with engine.begin() as db:
        db.execute(text("update tombstones set forgotten_at = null"))
    write_late(engine, cache, gone)
    hurried = open_engine(engine.url.render_as_string(hide_password=False), statement_timeout_seconds=2)
    with engine.begin() as held:
        held.execute(text("lock table impressions"))
        with pytest.raises(OperationalError):
            forget_late(hurried, cache)
    hurried.dispose()
    assert keys_with(cache, gone) == []
    age_tombstones(engine, seconds=60)
    with engine.begin() as db:
        moved = "interval '60 seconds'"
        db.execute(text(f"update impressions set shown_at = shown_at - {moved}"))
        db.execute(text(f"update exposures set exposed_at = exposed_at - {moved}"))
    assert forget_late(engine, cache) == 1
    assert shown_and_exposed(engine) == [[], []]


def test_a_redis_that_is_away_does_not_keep_postgres_from_forgetting(
    engine: Engine, cache: redis.Redis, gone: str
) -> None:
    write_late(engine, cache, gone)
    dead = redis.Redis(port=1, retry=Retry(NoBackoff(), 0), socket_timeout=0.2)
    with dead, pytest.raises(redis.ConnectionError):
        forget_late(engine, dead)
    assert shown_and_exposed(engine) == [[], []]
    assert forget_late(engine, cache) == 1
    assert keys_with(cache, gone) == []


def test_every_table_that_names_users_is_erased_and_exported(engine: Engine) -> None:
    """A new one (sessions, exposures) fails here until `app.erasure` knows it."""
    with engine.connect() as db:
        named = db.execute(
            text(
                "select distinct table_name from information_schema.columns where table_schema = 'public'"
                " and column_name in ('user_id', 'user_row', 'user_ids', 'user_rows')"
            )
        ).scalars()
        tables = set(named)
    assert tables >= {"users", "interactions", "impressions"}
    kept_for_nobody = {"retractions"}
    for table in tables - kept_for_nobody:
        assert any(f"FROM {table}" in statement for statement in ERASE.values()), f"{table} is not erased"
        assert table == "users" or any(table in statement for statement in EXPORT.values()), f"{table} is not exported"


@pytest.mark.usefixtures("known")
def test_an_export_gives_back_every_column_that_an_erasure_takes(engine: Engine, ingest: Ingest, user: str) -> None:
    with engine.connect() as db:
        exported = export_user(db, user)
    assert exported["user"]["attributes"] == {"nick": user}
    assert {what: len(rows) for what, rows in exported.items() if isinstance(rows, list)} == {
        "likes": 1, "interactions": 3, "on_screen": 1, "impressions": 1, "exposures": 1, "blocks": 1,
        "experiments": 2, "audit_entries": 7,
    }  # fmt: skip
    assert {each["event_id"] for what in ("interactions", "on_screen") for each in exported[what]} == {
        f"{user} {n}" for n in range(4)
    }
    assert exported["blocks"][0]["reason"] == "again"
    assert [(each["run"], each["forced"]) for each in exported["experiments"]] == [(1, "a"), (2, "a")]
    assert "other" not in str(exported), "somebody else was named"
    assert exported["erased_at"] is None
    erase_user(engine, ingest.views, user)
    with engine.begin() as db:
        users.put(db, [User(user, {}, [])])
        assert export_user(db, user)["erased_at"] is not None
        assert bytes(db.execute(text("select user_hash from tombstones")).scalar_one()) == hash_of(user)
