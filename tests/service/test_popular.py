"""GET /recommend/popular, from the live signals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from tests.patience import until
from tests.service.conftest import Service
from tests.service.test_recommend import ids, recommend, send, settle, someone

Make = Callable[[str], str]


def popular(service: Service, **asked: Any) -> dict[str, Any]:
    answer = service.client.get("/recommend/popular", params=asked)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.fixture
def an_item(a: Service, b: Service) -> Iterator[Callable[[str], str]]:
    """Makes items that both processes know.

    They are gone afterwards, for all of a sudden they would be on top of every newcomer's list.
    """
    items: list[str] = []

    def make(category: str) -> str:
        items.append(f"item-{uuid4().hex}")
        a.client.put(f"/items/{items[-1]}", json={"kind": "movie", "categories": [category]})
        for service in (a, b):
            until(lambda service=service: items[-1] in ids(recommend(service, someone(), category=category)))
        return items[-1]

    yield make
    for item in items:
        a.client.delete(f"/items/{item}")


def viewed(item: str, days_ago: float) -> dict[str, Any]:
    at = datetime.now(UTC) - timedelta(days=days_ago)
    return {"user_id": someone(), "item_id": item, "kind": "view", "timestamp": at.isoformat()}


def counted(service: Service, *events: dict[str, Any]) -> None:
    """Sends the events and waits until this process counts them."""
    watermark = send(service, *events)
    recommend(service, someone(), min_watermark=watermark)


def test_only_what_was_chosen_in_the_window_is_in_the_answer(a: Service, an_item: Make) -> None:
    category = f"c-{uuid4().hex}"
    now, yesterday, once = (an_item(category) for _ in range(3))
    counted(a, viewed(now, 0.01), *(viewed(yesterday, 0.8) for _ in range(9)), *(viewed(once, 300) for _ in range(3)))
    assert ids(popular(a, window="1h", category=category)) == [now]
    assert ids(popular(a, window="7d", category=category)) == [yesterday, now]
    everything = popular(a, window="all", category=category)
    assert ids(everything) == [yesterday, once, now]
    assert [shown["score"] for shown in everything["items"]] == pytest.approx([9 * 1.3, 3 * 1.3, 1.3], rel=1e-5)


def test_newer_choices_weigh_more_in_a_window(a: Service, an_item: Make) -> None:
    category = f"c-{uuid4().hex}"
    old, new = an_item(category), an_item(category)
    counted(a, *(viewed(old, 6.5) for _ in range(4)), *(viewed(new, 0.1) for _ in range(3)))
    assert ids(popular(a, window="7d", category=category)) == [new, old]
    assert ids(popular(a, window="365d", category=category)) == [old, new]


def test_an_empty_window_widens_and_says_so(a: Service, an_item: Make) -> None:
    category = f"c-{uuid4().hex}"
    item = an_item(category)
    assert popular(a, window="1h", category=category) == {"items": [], "next_cursor": None, "window": "all"}
    counted(a, viewed(item, 20))
    for asked, answered in (("1h", "30d"), ("8d", "30d"), ("30d", "30d"), ("40d", "40d"), ("all", "all")):
        page = popular(a, window=asked, category=category)
        assert (page["window"], ids(page)) == (answered, [item])


def test_later_pages_go_on_in_the_window_that_answered(a: Service, b: Service, an_item: Make) -> None:
    category = f"c-{uuid4().hex}"
    items = [an_item(category) for _ in range(3)]
    counted(a, *(viewed(item, 3) for item in items))
    first = popular(a, window="1h", category=category, limit=1)
    following = popular(b, window="1h", category=category, limit=5, cursor=first["next_cursor"])
    assert {first["window"], following["window"]} == {"7d"}
    assert sorted(ids(first) + ids(following)) == sorted(items)


def test_popular_pages(a: Service) -> None:
    settle(a)
    first = popular(a, window="all", limit=5)
    second = popular(a, window="all", limit=5, cursor=first["next_cursor"])
    assert ids(first) + ids(second) == ids(popular(a, window="all", limit=10))


def test_each_process_counts_what_the_other_stored(a: Service, b: Service, an_item: Make) -> None:
    category = f"c-{uuid4().hex}"
    item = an_item(category)
    watermark = send(a, viewed(item, 0.01))
    recommend(b, someone(), min_watermark=watermark)
    assert ids(popular(b, window="1h", category=category)) == [item]


@pytest.mark.parametrize("window", ["0h", "366d", "7", "d", "-1d", "7w", ""])
def test_a_window_that_is_none_is_refused(a: Service, window: str) -> None:
    answer = a.client.get("/recommend/popular", params={"window": window})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"] == ["query", "window"]
