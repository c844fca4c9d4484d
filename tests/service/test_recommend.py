"""API.md, Recommendations: one test per promise, over HTTP, against two processes."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import Engine, Row, select

from app.storage.database import open_engine
from app.storage.tables import impressions, items
from tests.patience import PATIENCE_SECONDS, until
from tests.service.conftest import Service, Stores


def written(database: Engine, page: dict) -> Row:
    """The impression of the page; they are written a moment after the answer."""
    statement = select(impressions).where(impressions.c.request_id == page["request_id"])

    def row() -> Row | None:
        with database.connect() as db:
            return db.execute(statement).one_or_none()

    return until(row)


def recommend(service: Service, user_id: str, **parameters: object) -> dict:
    """Waits for a `min_watermark` for as long as it takes, and not for an answer's two seconds: what other tests write
    to the same Postgres may keep a process from counting until they have done so."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        answer = service.client.get("/recommend", params={"user_id": user_id, **parameters})
        if answer.status_code != 503 or "min_watermark" not in parameters or time.monotonic() > deadline:
            break
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids(page: dict) -> list[str]:
    return [item["item_id"] for item in page["items"]]


def send(service: Service, *events: dict) -> str:
    """The watermark of the events."""
    answer = service.client.post("/events", json=list(events))
    assert answer.status_code == 202, answer.text
    return answer.json()["watermark"]


def like(user_id: str, item_id: str) -> dict:
    return {"user_id": user_id, "item_id": item_id, "kind": "like"}


def settle(*services: Service) -> None:
    """Waits until each has counted all that was done so far, so that two answers differ by what is asked alone."""
    watermark = send(services[0], like(someone(), "an-item-of-the-tests"))
    for service in services:
        recommend(service, someone(), min_watermark=watermark)


def someone() -> str:
    return f"user-{uuid4().hex}"


@pytest.fixture(scope="module")
def established(both: tuple[Service, Service]) -> str:
    """A user who liked six popular films."""
    user = someone()
    popular = ids(recommend(both[0], someone(), limit=6))
    watermark = send(both[0], *(like(user, item) for item in popular))
    for service in both:
        recommend(service, user, min_watermark=watermark)
    return user


def test_a_page_has_the_shape_of_the_contract(a: Service, stores: Stores) -> None:
    user = someone()
    page = recommend(a, user, limit=3)
    assert set(page) == {
        "request_id", "user_id", "route", "recommender", "release", "experiments", "items", "next_cursor",
    }  # fmt: skip
    assert page["user_id"] == user
    assert page["release"] is not None
    assert page["experiments"] == []
    assert [item["position"] for item in page["items"]] == [1, 2, 3]
    assert set(page["items"][0]) == {"item_id", "position", "score", "source", "promoted", "reason"}


def test_an_unknown_user_is_new_and_gets_popular_items(a: Service) -> None:
    page = recommend(a, someone())
    assert (page["route"], page["recommender"]) == ("new", "live_counts")
    assert len(page["items"]) == 10
    assert {item["reason"]["code"] for item in page["items"]} == {"live"}


def test_an_unknown_user_gets_popular_items_of_the_asked_category(a: Service) -> None:
    page = recommend(a, someone(), category="Horror", limit=5)
    for item in ids(page):
        assert "Horror" in a.client.get(f"/items/{item}").json()["categories"]


def test_several_categories_mean_any_of_them(a: Service) -> None:
    page = recommend(a, someone(), category=["Horror", "Western"], limit=50)
    found = [set(a.client.get(f"/items/{item}").json()["categories"]) for item in ids(page)]
    assert all(categories & {"Horror", "Western"} for categories in found)
    assert any("Western" in categories for categories in found)


def test_routes_follow_what_is_known(a: Service) -> None:
    user = someone()
    items = ids(recommend(a, user, limit=6))
    send(a, like(user, items[0]))
    assert recommend(a, user)["route"] == "few"
    send(a, *({"user_id": user, "item_id": item, "kind": "view"} for item in items[1:5]))
    assert recommend(a, user)["route"] == "few", "five interactions, but only one positive"
    send(a, like(user, items[1]), like(user, items[2]))
    assert recommend(a, user)["route"] == "established"


def test_five_times_one_item_is_one_interaction(a: Service) -> None:
    user = someone()
    item = ids(recommend(a, user))[0]
    for kind in ("view", "click", "like", "share", "bookmark"):
        send(a, {"user_id": user, "item_id": item, "kind": kind})
    assert recommend(a, user)["route"] == "few"


def test_what_a_user_touched_is_never_shown_again_by_either_process(a: Service, b: Service) -> None:
    user = someone()
    for kind in ("view", "like", "dislike", "click", "hide"):
        item = ids(recommend(a, user))[0]
        send(a, {"user_id": user, "item_id": item, "kind": kind})
        assert item not in ids(recommend(b, user, limit=100))
        assert item not in ids(recommend(a, user, limit=100))


def counted(service: Service) -> dict[str, float]:
    popular = service.client.get("/recommend/popular", params={"window": "all", "limit": 1000}).json()
    return {shown["item_id"]: shown["score"] for shown in popular["items"]}


def test_being_on_screen_is_no_interaction(a: Service) -> None:
    user = someone()
    item = ids(recommend(a, user))[0]
    watermark = send(a, like(someone(), item))
    recommend(a, user, min_watermark=watermark)
    before = counted(a)
    watermark = send(a, *({"user_id": user, "item_id": item, "kind": "impression"} for _ in range(100)))
    page = recommend(a, user, min_watermark=watermark)
    assert page["route"] == "new"
    assert item in ids(page)
    assert counted(a) == before


def test_a_like_taken_back_leaves_the_item_seen(a: Service, b: Service) -> None:
    user = someone()
    item = ids(recommend(a, user))[0]
    assert a.client.put(f"/users/{user}/likes/{item}").status_code < 300
    assert a.client.delete(f"/users/{user}/likes/{item}").status_code < 300
    page = recommend(b, user, limit=100)
    assert page["route"] == "few"
    assert item not in ids(page)


def test_include_seen_brings_seen_items_back(a: Service, established: str) -> None:
    liked = a.client.get(f"/users/{established}/interactions").json()["items"][0]["item_id"]
    assert liked not in ids(recommend(a, established, limit=1000))
    assert liked in ids(recommend(a, established, limit=1000, include_seen=True))


def test_a_like_counts_on_the_next_request_of_the_other_process(a: Service, b: Service) -> None:
    user = someone()
    before = recommend(b, user)
    send(a, like(user, ids(before)[3]))
    after = recommend(b, user)
    assert after["route"] == "few"
    assert ids(before)[3] not in ids(after)


def test_excluded_items_are_left_out(a: Service, established: str) -> None:
    first = ids(recommend(a, established))
    assert not set(first[:4]) & set(ids(recommend(a, established, exclude=first[:4], limit=100)))


def test_limit_is_met_while_the_catalogue_has_more(a: Service, established: str) -> None:
    everything = recommend(a, established, limit=1000)
    assert len(ids(everything)) == len(set(ids(everything)))
    assert len(ids(everything)) > 350
    assert everything["next_cursor"] is None


def test_scores_order_the_items(a: Service, established: str) -> None:
    for diversity in (0, 0.7):
        page = recommend(a, established, limit=100, diversity=diversity)
        scores = [item["score"] for item in page["items"] if not item["promoted"]]
        assert scores == sorted(scores, reverse=True)


def test_diversity_widens_the_categories(a: Service, established: str) -> None:
    def variety(diversity: float) -> int:
        page = recommend(a, established, limit=10, diversity=diversity)
        return len({c for item in ids(page) for c in a.client.get(f"/items/{item}").json()["categories"]})

    assert variety(1.0) > variety(0.0)


def test_a_reason_names_the_liked_item_it_follows_from(a: Service, established: str) -> None:
    liked = {event["item_id"] for event in a.client.get(f"/users/{established}/interactions").json()["items"]}
    page = recommend(a, established, recommender="item_similarity")
    seeds = {item["reason"]["item_id"] for item in page["items"] if item["reason"]["code"] == "similar_to_liked"}
    assert seeds
    assert seeds <= liked


def test_what_fills_up_the_page_says_fallback(a: Service, established: str) -> None:
    page = recommend(a, established, recommender="item_similarity", limit=1000)
    filled = [item for item in page["items"] if item["source"] != "item_similarity"]
    assert filled
    assert {item["reason"]["code"] for item in filled} == {"fallback"}


@pytest.mark.parametrize("name", ["popularity", "item_similarity", "als_hybrid", "content_clusters", "blend"])
def test_a_recommender_can_be_forced_and_says_so(a: Service, established: str, name: str) -> None:
    page = recommend(a, established, recommender=name)
    assert (page["route"], page["recommender"]) == ("forced", name)
    assert len(page["items"]) == 10


def test_an_unknown_recommender_is_refused_by_name(a: Service) -> None:
    answer = a.client.get("/recommend", params={"user_id": "u", "recommender": "oracle"})
    assert answer.status_code == 422
    assert "oracle" in answer.json()["detail"]
    assert "popularity" in answer.json()["detail"]


def test_answers_are_not_to_be_stored(a: Service) -> None:
    assert a.client.get("/recommend", params={"user_id": "u"}).headers["cache-control"] == "no-store"


def test_pages_neither_repeat_nor_skip_and_may_come_from_either_process(
    a: Service, b: Service, established: str
) -> None:
    # Of one moment: from one to the next, counts decay, and close scores change places.
    settle(a, b)
    asked = {"limit": 30, "at": (datetime.now(UTC) + timedelta(minutes=1)).isoformat()}
    whole = ids(recommend(a, established, **asked | {"limit": 120}))
    page = recommend(a, established, **asked)
    paged = ids(page)
    for service in (b, a, b):
        page = recommend(service, established, **asked, cursor=page["next_cursor"])
        paged += ids(page)
    assert paged == whole


def test_paging_reaches_the_end_of_the_catalogue(a: Service, established: str) -> None:
    page = recommend(a, established, limit=70)
    paged, positions = ids(page), [item["position"] for item in page["items"]]
    while page["next_cursor"]:
        page = recommend(a, established, limit=70, cursor=page["next_cursor"])
        paged += ids(page)
        positions += [item["position"] for item in page["items"]]
    assert positions == list(range(1, len(paged) + 1))
    assert len(paged) == len(set(paged))
    assert set(paged) == set(ids(recommend(a, established, limit=1000)))


def test_a_cursor_is_for_the_same_question_only(a: Service, established: str) -> None:
    cursor = recommend(a, established)["next_cursor"]
    for other in ({"user_id": "somebody-else"}, {"user_id": established, "category": "Drama"}):
        answer = a.client.get("/recommend", params={**other, "cursor": cursor})
        assert answer.status_code == 422
        assert "cursor" in answer.json()["detail"]


def test_an_expired_cursor_is_gone_and_a_made_up_one_is_refused(a: Service) -> None:
    long_ago = f"{int(time.time()) - 3600:08x}AAAAAAAAAAAAAAAA"
    assert a.client.get("/recommend", params={"user_id": "u", "cursor": long_ago}).status_code == 410
    assert a.client.get("/recommend", params={"user_id": "u", "cursor": "made-up"}).status_code == 422


def test_a_new_item_is_soon_recommended_without_training(a: Service, b: Service) -> None:
    user, item = someone(), f"item-{uuid4().hex}"
    westerns = ids(recommend(a, user, category="Western", limit=6))
    send(a, *(like(user, western) for western in westerns))
    a.client.put(f"/items/{item}", json={"kind": "movie", "title": "High Noon Again", "categories": ["Western"]})
    for service in (a, b):
        until(lambda service=service: item in ids(recommend(service, user, category="Western", limit=1000)))
        page = recommend(service, user, recommender="content_clusters", category="Western", limit=1000)
        assert item in [shown["item_id"] for shown in page["items"] if shown["source"] == "content_clusters"]


def test_a_deleted_item_is_gone_from_the_next_answer(a: Service, b: Service) -> None:
    item = f"item-{uuid4().hex}"
    a.client.put(f"/items/{item}", json={"kind": "movie", "title": "Short Lived", "categories": ["Rarity"]})
    until(lambda: ids(recommend(b, someone(), category="Rarity")) == [item])
    assert a.client.delete(f"/items/{item}").status_code < 300
    assert ids(recommend(b, someone(), category="Rarity")) == []


def test_similar_items_are_not_the_item_itself(a: Service) -> None:
    item = ids(recommend(a, someone(), recommender="popularity"))[0]
    found = a.client.get(f"/recommend/similar/{item}", params={"limit": 20}).json()
    assert len(found["items"]) == 20
    assert item not in ids(found)
    assert {shown["reason"]["item_id"] for shown in found["items"]} == {item}


def test_similar_is_404_only_for_an_item_that_does_not_exist(a: Service) -> None:
    answer = a.client.get("/recommend/similar/no-such-item")
    assert answer.status_code == 404
    assert "no-such-item" in answer.json()["detail"]


def test_explain_says_why_an_item_is_shown(a: Service, established: str) -> None:
    settle(a)
    top = ids(recommend(a, established))[0]
    why = a.client.get("/recommend/explain", params={"user_id": established, "item_id": top}).json()
    assert why["shown"]
    assert why["position"] == 1
    assert why["removed_by"] is None
    assert {source["source"] for source in why["sources"]} >= {"popularity", "als_hybrid", "content_clusters"}
    assert why["weights"]


def test_explain_says_what_removed_an_item(a: Service, established: str) -> None:
    def removed_by(item: str) -> str:
        return a.client.get("/recommend/explain", params={"user_id": established, "item_id": item}).json()["removed_by"]

    settle(a)
    ranked = ids(recommend(a, established, limit=1000))
    liked = a.client.get(f"/users/{established}/interactions").json()["items"][0]["item_id"]
    assert removed_by(liked) == "seen"
    assert removed_by(ranked[20]) == "below_cut"
    assert removed_by(ranked[-1]) == "not_retrieved"
    a.client.put(f"/admin/blocks/{ranked[30]}", json={})
    assert removed_by(ranked[30]) == "blocked"
    a.client.delete(f"/admin/blocks/{ranked[30]}")


def test_what_was_shown_is_written_down(a: Service, stores: Stores) -> None:
    page = recommend(a, someone(), surface="sidebar", limit=4)
    engine = open_engine(stores.environment["DATABASE_URL"])
    row = written(engine, page)
    with engine.connect() as db:
        names = {r.row: r.item_id for r in db.execute(select(items.c.row, items.c.item_id))}
    engine.dispose()
    assert [names[item_row] for item_row in row.item_rows] == ids(page)
    assert (row.surface, row.route, row.release) == ("sidebar", "new", page["release"])
    assert row.propensities is None


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({}, "user_id"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": "a/b"}, "user_id"),
        ({"user_id": "a\x00b"}, "user_id"),
        ({"user_id": "x" * 129}, "user_id"),
        ({"user_id": "u", "limit": "0"}, "limit"),
        ({"user_id": "u", "limit": "1001"}, "limit"),
        ({"user_id": "u", "limit": "ten"}, "limit"),
        ({"user_id": "u", "diversity": "1.5"}, "diversity"),
        ({"user_id": "u", "diversity": "nan"}, "diversity"),
        ({"user_id": "u", "at": "2026-01-01T00:00:00"}, "at"),
        ({"user_id": "u", "at": "yesterday"}, "at"),
        ({"user_id": "u", "exclude": "a/b"}, "exclude"),
    ],
)
def test_bad_parameters_are_refused_by_name(a: Service, parameters: dict[str, str], field: str) -> None:
    answer = a.client.get("/recommend", params=parameters)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert field in answer.json()["errors"][0]["loc"]


def test_many_requests_at_once_are_all_answered(a: Service, established: str) -> None:
    with ThreadPoolExecutor(8) as pool, httpx.Client(base_url=a.url, headers=a.client.headers) as c:
        answers = list(
            pool.map(lambda i: c.get("/recommend", params={"user_id": established if i % 2 else f"x{i}"}), range(80))
        )
    assert {answer.status_code for answer in answers} == {200}
