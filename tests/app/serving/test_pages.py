"""Cursors: what is pinned comes back, and what was never given out answers at once."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import pytest
import redis
import redis.asyncio

from app.errors import Gone, Invalid
from app.serving import pages
from app.serving.arms import Arm
from app.serving.exploration import Sampler
from app.serving.pages import PageStore, Pinned
from app.serving.slate import Shown
from models.contracts import Reason
from tests.room import room

PINNED = Pinned(
    "recommend", {"user_id": "u"}, "new", "blend", "r", {}, (1, 2), (Shown(3, 0.5, "blend", False, Reason("taste", 7)),)
)


@asynccontextmanager
async def store(url: str) -> AsyncIterator[PageStore]:
    async with redis.asyncio.Redis.from_url(url) as cache:
        opened = PageStore(cache, ttl_seconds=1800)
        yield opened
        await opened.close()


def test_another_process_finds_the_slate_under_its_cursor(redis_url: str) -> None:
    async def scenario() -> Pinned:
        async with store(redis_url) as first, store(redis_url) as second:
            return await second.get(first.put(PINNED), "recommend", "u")

    assert asyncio.run(scenario()) == PINNED


def test_a_drawn_slate_keeps_its_propensities_and_leaves_its_candidates_behind(redis_url: str) -> None:
    draw = Sampler(0.5, "01A").draw([*PINNED.remaining, Shown(4, 0.4, "blend", False, Reason("taste"))])
    drawn = PINNED._replace(remaining=draw.ranking, slate_id="01A")

    async def scenario() -> Pinned:
        async with store(redis_url) as first, store(redis_url) as second:
            return await second.get(first.put(drawn._replace(draw=draw)), "recommend", "u")

    assert asyncio.run(scenario()) == drawn


def test_a_slate_stays_in_its_variants(redis_url: str) -> None:
    arm = Arm({"ranker": "treatment"}, "als_hybrid", {"diversity": 0.2}, promotions=False, chains={"new": ["blend"]})
    pinned = PINNED._replace(variants=dict(arm.variants), arm=arm)

    async def scenario() -> Pinned:
        async with store(redis_url) as first, store(redis_url) as second:
            return await second.get(first.put(pinned), "recommend", "u")

    assert asyncio.run(scenario()) == pinned


def test_a_slate_pinned_before_there_were_propensities_is_still_good() -> None:
    old = orjson.loads(pages._encode(PINNED))
    del old["slate_id"]
    old["remaining"] = [shown[:6] for shown in old["remaining"]]
    assert pages._decode(orjson.dumps(old)) == PINNED


def test_a_cursor_from_the_future_does_not_keep_its_reader_waiting(redis_url: str) -> None:
    async def scenario() -> None:
        async with store(redis_url) as opened, asyncio.timeout(60):
            with pytest.raises(Gone):
                await opened.get("ffffffff" + pages._text(pages._seal("u")) + "A" * 12, "recommend", "u")

    asyncio.run(scenario())


def test_an_old_cursor_is_gone_and_a_strangers_is_invalid(redis_url: str) -> None:
    async def scenario() -> None:
        async with store(redis_url) as opened:
            with pytest.raises(Gone):
                await opened.get(f"{int(time.time()) - 1801:08x}" + "A" * 16, "recommend")
            with pytest.raises(Invalid):
                await opened.get("not a cursor", "recommend")
            with pytest.raises(Invalid):
                await opened.get(opened.put(PINNED), "popular", "u")
            for stranger in ("", "somebody"):
                with pytest.raises(Invalid):
                    await opened.get(opened.put(PINNED), "recommend", stranger)

    asyncio.run(scenario())


def test_a_users_slates_lie_under_the_users_tag(redis_url: str) -> None:
    """An erasure finds them by it."""

    async def scenario() -> None:
        async with store(redis_url) as opened:
            opened.put(PINNED)
            opened.put(PINNED._replace(asked={}))

    asyncio.run(scenario())
    with redis.Redis.from_url(redis_url) as cache:
        assert len(cache.keys("segue:page:{u}:*")) == len(cache.keys("segue:page:{}:*")) == 1


def test_what_a_process_keeps_itself_is_bounded_by_items(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "RECENT_BYTES", int(2.5 * len(pages._encode(PINNED))))

    async def scenario() -> int:
        async with store(redis_url) as opened:
            for _ in range(10):
                opened.put(PINNED)
            return len(opened._recent)

    assert asyncio.run(scenario()) == 2


def test_what_a_process_keeps_itself_takes_the_room_that_is_counted(redis_url: str) -> None:
    slate = PINNED._replace(remaining=tuple(PINNED.remaining[0]._replace(row=row, score=row / 7) for row in range(300)))

    async def scenario() -> tuple[int, int]:
        async with store(redis_url) as opened:
            with room() as held:
                for _ in range(50):
                    opened.put(slate)
                return held(), opened._recent_bytes

    taken, counted = asyncio.run(scenario())
    assert taken < 2 * counted
