"""API.md, Administration: blocks and promotions, in force on the next request of every worker."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from tests.patience import until
from tests.service.conftest import Service
from tests.service.test_recommend import ids, like, recommend, send, settle, someone

Put = Callable[[str, str, dict], None]


@pytest.fixture
def put(a: Service) -> Iterator[Put]:
    """Sets a rule through process A; every rule is lifted again at the end of the test."""
    set_here: set[tuple[str, str]] = set()

    def put_rule(kind: str, item_id: str, body: dict) -> None:
        answer = a.client.put(f"/admin/{kind}/{item_id}", json=body)
        assert answer.status_code == 200, answer.text
        set_here.add((kind, item_id))

    yield put_rule
    for kind, item_id in set_here:
        a.client.delete(f"/admin/{kind}/{item_id}")


def in_(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def test_a_block_set_through_one_process_holds_in_the_next_answer_of_the_other(
    a: Service, b: Service, put: Put
) -> None:
    for _ in range(10):
        item = ids(recommend(b, someone()))[0]
        put("blocks", item, {"reason": "withdrawn"})
        assert item not in ids(recommend(b, someone(), limit=1000))
        assert item not in ids(recommend(a, someone(), limit=1000))


def test_a_block_lifted_through_one_process_is_lifted_in_the_other(a: Service, b: Service, put: Put) -> None:
    item = ids(recommend(b, someone()))[0]
    put("blocks", item, {})
    assert item not in ids(recommend(b, someone()))
    assert a.client.delete(f"/admin/blocks/{item}").json()["removed"] == 1
    assert item in ids(recommend(b, someone()))


def test_a_block_for_one_user_leaves_the_others_alone(b: Service, put: Put) -> None:
    user, item = someone(), ids(recommend(b, someone()))[0]
    put("blocks", item, {"scope": {"user_id": user}})
    assert item not in ids(recommend(b, user))
    assert item in ids(recommend(b, someone()))


def test_a_block_for_a_category_holds_where_that_category_is_asked(b: Service, put: Put) -> None:
    item = ids(recommend(b, someone(), category="Drama"))[0]
    put("blocks", item, {"scope": {"category": "Drama"}})
    assert item not in ids(recommend(b, someone(), category="Drama", limit=1000))
    assert item in ids(recommend(b, someone(), limit=1000))


def test_a_block_holds_in_its_time_only(b: Service, put: Put) -> None:
    item = ids(recommend(b, someone()))[0]
    put("blocks", item, {"starts_at": in_(-60), "ends_at": in_(3600)})
    assert item not in ids(recommend(b, someone()))
    put("blocks", item, {"starts_at": in_(-60), "ends_at": in_(1)})
    until(lambda: item in ids(recommend(b, someone())))
    put("blocks", item, {"starts_at": in_(3600)})
    assert item in ids(recommend(b, someone()))


def test_a_blocked_item_is_neither_similar_nor_popular(a: Service, b: Service, put: Put) -> None:
    seed, item = ids(recommend(b, someone()))[:2]
    put("blocks", item, {})
    recommend(b, someone())
    assert item not in ids(b.client.get(f"/recommend/similar/{seed}", params={"limit": 1000}).json())
    assert item not in ids(b.client.get("/recommend/popular", params={"window": "all", "limit": 1000}).json())


def test_a_block_applies_to_pages_of_a_slate_that_was_pinned_before(a: Service, b: Service, put: Put) -> None:
    user = someone()
    first = recommend(b, user, limit=5)
    doomed = ids(recommend(b, user, limit=8))[6]
    put("blocks", doomed, {})
    assert doomed not in ids(recommend(b, user, limit=5, cursor=first["next_cursor"]))


def test_a_pin_takes_its_position_and_says_that_it_is_promoted(b: Service, put: Put) -> None:
    item = ids(recommend(b, someone(), limit=100))[80]
    put("promotions", item, {"position": 2})
    second = recommend(b, someone())["items"][1]
    assert second["item_id"] == item
    assert second["promoted"]
    assert second["reason"]["code"] == "promoted"


def test_a_boost_moves_an_item_up(b: Service, put: Put) -> None:
    before = ids(recommend(b, someone(), limit=40))
    item = before[20]
    put("promotions", item, {"boost": 3.0})
    page = recommend(b, someone(), limit=40)
    assert ids(page).index(item) < 20
    assert next(shown for shown in page["items"] if shown["item_id"] == item)["promoted"]


def test_a_block_beats_a_promotion(b: Service, put: Put) -> None:
    item = ids(recommend(b, someone()))[5]
    put("promotions", item, {"position": 1})
    assert ids(recommend(b, someone()))[0] == item
    put("blocks", item, {})
    assert item not in ids(recommend(b, someone(), limit=1000))


def test_a_promotion_for_categories_holds_only_where_they_are_asked(b: Service, put: Put) -> None:
    item = ids(recommend(b, someone(), category="Comedy", limit=50))[30]
    put("promotions", item, {"position": 1, "categories": ["Comedy"]})
    assert ids(recommend(b, someone(), category="Comedy"))[0] == item
    assert ids(recommend(b, someone()))[0] != item


def test_a_promotion_does_not_show_what_the_user_has_seen_or_excluded(b: Service, put: Put) -> None:
    user, item = someone(), ids(recommend(b, someone()))[0]
    put("promotions", item, {"position": 1})
    assert ids(recommend(b, user, exclude=item))[0] != item
    send(b, like(user, item))
    assert item not in ids(recommend(b, user, limit=1000))


def test_a_promotion_ends_after_its_impressions(b: Service, put: Put) -> None:
    item = ids(recommend(b, someone(), limit=100))[90]
    put("promotions", item, {"position": 1, "max_impressions": 3})
    until(lambda: ids(recommend(b, someone()))[0] != item)
    why = b.client.get("/recommend/explain", params={"user_id": someone(), "item_id": item}).json()
    assert why["removed_by"] == "capped"


@pytest.mark.parametrize(
    ("kind", "body", "field"),
    [
        ("blocks", {"because": "typo"}, "because"),
        ("blocks", {"scope": {"user_id": "u", "category": "c"}}, "scope"),
        ("blocks", {"scope": {}}, "scope"),
        ("blocks", {"starts_at": "2026-01-02T00:00:00Z", "ends_at": "2026-01-01T00:00:00Z"}, "ends_at"),
        ("blocks", {"starts_at": "2026-01-02T00:00:00"}, "starts_at"),
        ("blocks", {"reason": "a\x00b"}, "reason"),
        ("promotions", {}, "body"),
        ("promotions", {"position": 1, "boost": 2}, "body"),
        ("promotions", {"position": 0}, "position"),
        ("promotions", {"boost": -1}, "boost"),
        ("promotions", {"position": 1, "max_impressions": 10**30}, "max_impressions"),
    ],
)
def test_bad_rules_are_refused_by_field(a: Service, kind: str, body: dict, field: str) -> None:
    item = ids(recommend(a, someone()))[0]
    answer = a.client.put(f"/admin/{kind}/{item}", json=body)
    assert answer.status_code == 422, answer.text
    assert field in answer.json()["errors"][0]["loc"]


@pytest.mark.parametrize("kind", ["blocks", "promotions"])
def test_rules_on_items_that_do_not_exist_are_404(a: Service, kind: str) -> None:
    assert (
        a.client.put(f"/admin/{kind}/no-such-item", json={"position": 1} if kind == "promotions" else {}).status_code
        == 404
    )
    assert a.client.delete(f"/admin/{kind}/no-such-item").status_code == 404


def test_rules_and_their_history_can_be_read(a: Service, put: Put) -> None:
    item = ids(recommend(a, someone()))[7]
    put("blocks", item, {"reason": "for the audit"})
    rules = a.client.get("/admin/rules").json()["items"]
    assert any(rule["rule"] == "block" and rule["item_id"] == item for rule in rules)
    newest = a.client.get("/admin/audit", params={"limit": 1}).json()
    entry = newest["items"][0]
    assert (entry["actor"], entry["action"], entry["subject"]) == ("SEGUE_ADMIN_KEY", "block.put", f"item:{item}")
    assert entry["after"]["reason"] == "for the audit"
    older = a.client.get("/admin/audit", params={"limit": 1, "cursor": newest["next_cursor"]}).json()
    assert older["items"][0]["at"] <= entry["at"]


def test_a_block_holds_in_the_next_lists_without_a_user_of_the_other_process(a: Service, b: Service, put: Put) -> None:
    def listed(path: str, **parameters: object) -> dict:
        return b.client.get(f"/recommend/{path}", params=parameters).json()

    seed = ids(recommend(b, someone(), recommender="popularity"))[0]
    for _ in range(5):
        for path in ("popular", f"similar/{seed}"):
            item = ids(listed(path))[0]
            put("blocks", item, {})
            assert item not in ids(listed(path))


def test_a_block_for_a_category_holds_on_the_pages_that_follow(a: Service, b: Service, put: Put) -> None:
    asked = {"category": "Drama", "window": "all"}
    settle(b)
    whole = ids(b.client.get("/recommend/popular", params=asked | {"limit": 20}).json())
    first = b.client.get("/recommend/popular", params=asked | {"limit": 5}).json()
    put("blocks", whole[5], {"scope": {"category": "Drama"}})
    second = b.client.get("/recommend/popular", params=asked | {"limit": 5, "cursor": first["next_cursor"]}).json()
    assert ids(second) == whole[6:11]
