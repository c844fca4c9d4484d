"""API.md, Users and items: one test per promise, over HTTP, against two processes."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
import redis

from tests.patience import until
from tests.service.conftest import Service, Stores
from tests.service.test_recommend import ids, like, recommend, send, someone

USER = {"attributes": {"country": "NO"}, "preferred_categories": ["Drama", "Film-Noir"]}
ITEM = {
    "kind": "post", "title": "The long way home", "text": "On walking.", "categories": ["Essay"], "tags": ["walking"],
    "creator": "mira", "published_at": "2026-03-14T10:30:00+01:00", "features": [0.5, -0.25],
    "attributes": {"minutes": 7},
}  # fmt: skip
BODIES = {"users": USER, "items": ITEM}
KEYS = {"users": "user_id", "items": "item_id"}
RESOURCES = pytest.mark.parametrize("resource", ["users", "items"])


def somewhere(resource: str) -> str:
    return f"/{resource}/{uuid4().hex}"


@RESOURCES
def test_what_one_process_puts_the_other_reads(a: Service, b: Service, resource: str) -> None:
    path = somewhere(resource)
    assert a.client.put(path, json=BODIES[resource]).status_code == 201
    stored = b.client.get(path).json()
    same = BODIES[resource] | ({"published_at": "2026-03-14T09:30:00Z"} if resource == "items" else {})
    assert {name: stored[name] for name in same} == same
    assert stored[KEYS[resource]] == path.rpartition("/")[2]


@RESOURCES
def test_a_put_replaces_all_and_a_patch_only_what_it_names(a: Service, b: Service, resource: str) -> None:
    path = somewhere(resource)
    a.client.put(path, json=BODIES[resource])
    assert b.client.patch(path, json={"attributes": {"new": True}}).status_code == 200
    patched = a.client.get(path).json()
    untouched = "preferred_categories" if resource == "users" else "categories"
    assert (patched["attributes"], patched[untouched]) == ({"new": True}, BODIES[resource][untouched])
    assert b.client.put(path, json={}).status_code == 200
    replaced = a.client.get(path).json()
    assert (replaced["attributes"], replaced[untouched]) == ({}, [])


@RESOURCES
def test_what_does_not_exist_is_404_and_named(a: Service, resource: str) -> None:
    for method, body in (("GET", None), ("PATCH", {})):
        answer = a.client.request(method, f"/{resource}/nobody-and-nothing", json=body)
        assert answer.status_code == 404
        assert "nobody-and-nothing" in answer.json()["detail"]


@RESOURCES
def test_an_array_upserts_a_thousand_and_no_more(a: Service, b: Service, resource: str) -> None:
    mark = uuid4().hex
    batch = [{KEYS[resource]: f"{mark}-{n}"} for n in range(1001)]
    assert a.client.post(f"/{resource}", json=batch).status_code == 422
    assert b.client.get(f"/{resource}/{mark}-0").status_code == 404
    assert a.client.post(f"/{resource}", json=batch[:2]).json() == {"created": 2, "updated": 0}
    # No thousand new items: they would be in the answers that other tests look at.
    more = batch[: 1000 if resource == "users" else 5]
    assert b.client.post(f"/{resource}", json=more).json() == {"created": len(more) - 2, "updated": 2}


@RESOURCES
def test_an_array_with_invalid_entries_is_refused_whole_with_each_index(a: Service, resource: str) -> None:
    key, good = KEYS[resource], uuid4().hex
    batch = [{key: good}, {key: 7}, {key: "x"}, {"attributes": {}}, {key: "y", "mood": "sunny"}]
    answer = a.client.post(f"/{resource}", json=batch)
    assert answer.status_code == 422
    assert [error["loc"] for error in answer.json()["errors"]] == [
        ["body", 1, key], ["body", 3, key], ["body", 4, "mood"],
    ]  # fmt: skip
    assert a.client.get(f"/{resource}/{good}").status_code == 404


@RESOURCES
@pytest.mark.parametrize(
    "attributes",
    [7, None, {"a": "\0"}, {"\0": 1}, {"a": 2**64}, {"a": 4e212}, {"a": "x" * 17_000}],
    ids=lambda value: repr(value)[:20],
)
def test_attributes_that_cannot_be_stored_are_refused(a: Service, resource: str, attributes: Any) -> None:
    path = somewhere(resource)
    answer = a.client.put(path, json={"attributes": attributes})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"][:2] == ["body", "attributes"]
    assert a.client.get(path).status_code == 404


@RESOURCES
@pytest.mark.parametrize("given", ["a%00b", "a%0Ab", "%7F", "x" * 129, "%C2%85"])
def test_an_id_in_a_path_is_checked_like_one_in_a_body(a: Service, resource: str, given: str) -> None:
    for method in ("GET", "PUT", "PATCH", "DELETE"):
        answer = a.client.request(method, f"/{resource}/{given}", json={} if method in ("PUT", "PATCH") else None)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["loc"] == ["path", KEYS[resource]]


@pytest.mark.parametrize("given", ["ü ñ", "日本", "a.b", "..", "50% off", "a?b#c", "'; drop table users"])
def test_any_other_text_is_an_id(a: Service, b: Service, given: str) -> None:
    user = f"{someone()} {given}"
    send(a, like(user, "an-item-of-the-tests"))
    found = b.client.get("/recommend", params={"user_id": user}).json()
    assert (found["user_id"], found["route"]) == (user, "few")


def test_items_can_be_listed_by_category_and_kind(a: Service, b: Service) -> None:
    mark = uuid4().hex
    for n, kind in enumerate(("post", "film", "post")):
        a.client.put(f"/items/{mark}-{n}", json={"kind": kind, "categories": [mark]})
    found = b.client.get("/items", params={"category": mark}).json()["items"]
    posts = b.client.get("/items", params={"category": mark, "kind": "post"}).json()["items"]
    assert [item["item_id"] for item in found] == [f"{mark}-{n}" for n in range(3)]
    assert [item["item_id"] for item in posts] == [f"{mark}-0", f"{mark}-2"]


def test_a_deleted_item_is_404_until_it_is_put_again(a: Service, b: Service) -> None:
    path = somewhere("items")
    a.client.put(path, json=ITEM)
    assert a.client.delete(path).status_code == 204
    assert b.client.get(path).status_code == 404
    assert b.client.delete(path).status_code == 404
    assert b.client.put(path, json={}).status_code == 201


def test_a_like_is_put_once_and_taken_back(a: Service, b: Service) -> None:
    user, item = someone(), "an-item-of-the-tests"
    path = f"/users/{user}/likes/{item}"
    first, second = a.client.put(path).json(), b.client.put(path).json()
    assert (first["liked"], first["changed"], second["liked"], second["changed"]) == (True, True, True, False)
    taken, again = b.client.delete(path).json(), a.client.delete(path).json()
    assert (taken["liked"], taken["changed"], again["changed"]) == (False, True, False)
    kinds = [done["kind"] for done in a.client.get(f"/users/{user}/interactions").json()["items"]]
    assert kinds == ["unlike", "like"]


def test_interactions_are_listed_newest_first_and_by_kind(a: Service, b: Service) -> None:
    user, item = someone(), "an-item-of-the-tests"
    send(a, *({"user_id": user, "item_id": item, "kind": kind} for kind in ("view", "like", "share")))
    path = f"/users/{user}/interactions"
    assert [done["kind"] for done in b.client.get(path).json()["items"]] == ["share", "like", "view"]
    assert [done["kind"] for done in b.client.get(path, params={"kind": "like"}).json()["items"]] == ["like"]
    assert b.client.get(path, params={"kind": "adore"}).json()["errors"][0]["loc"] == ["query", "kind"]


def known(service: Service, user: str) -> dict[str, Any]:
    answer = service.client.get(f"/users/{user}/export")
    found: dict[str, Any] = answer.json() if answer.status_code == 200 else {}
    return found


def test_an_export_has_everything_and_an_erasure_says_what_it_took(a: Service, b: Service) -> None:
    user = someone()
    a.client.put(f"/users/{user}", json=USER)
    items = ids(recommend(a, user))
    send(a, like(user, items[0]), {"user_id": user, "item_id": items[1], "kind": "view"})
    b.client.put(f"/admin/blocks/{items[2]}", json={"scope": {"user_id": user}})
    until(lambda: known(b, user)["impressions"])
    exported = known(b, user)
    assert exported["user"]["attributes"] == USER["attributes"]
    assert [each["item_id"] for each in exported["likes"]] == [items[0]]
    assert [each["kind"] for each in exported["interactions"]] == ["like", "view"]
    assert exported["impressions"][0]["item_ids"] == items
    assert [each["item_id"] for each in exported["blocks"]] == [items[2]]

    erased = b.client.delete(f"/users/{user}").json()["erased"]
    counts = {"users": 1, "likes": 1, "interactions": 2, "event_ids": 2, "impressions": 1, "blocks": 1}
    assert {name: erased[name] for name in counts} == counts
    assert known(a, user) == {}
    assert recommend(a, user)["route"] == "new"
    assert user not in a.client.get("/admin/audit", params={"limit": 1000}).text


def test_pages_that_were_pinned_for_an_erased_user_are_gone_in_every_process(
    a: Service, b: Service, stores: Stores
) -> None:
    user = someone()
    send(a, *(like(user, item) for item in ids(recommend(a, someone(), limit=5))))
    first = recommend(a, user, limit=5)
    assert len(recommend(b, user, limit=5, cursor=first["next_cursor"])["items"]) == 5
    with redis.Redis.from_url(stores.environment["REDIS_URL"]) as cache:
        theirs = f"segue:page:{{{user}}}:*"
        until(lambda: len(cache.keys(theirs)) == 2)  # what is pinned after an erasure goes with the next round
        assert b.client.delete(f"/users/{user}").status_code == 200
        for service in (a, b):
            query = {"user_id": user, "limit": 5, "cursor": first["next_cursor"]}
            answer = service.client.get("/recommend", params=query)
            assert answer.status_code == 410
            assert answer.headers["content-type"] == "application/problem+json"
        assert cache.keys(theirs) == [], "a refused page is not pinned anew"


def test_what_an_erased_user_did_stays_forgotten_when_it_is_sent_again(a: Service, b: Service) -> None:
    user, item = someone(), ids(recommend(a, someone()))[0]
    done = {"event_id": uuid4().hex, "timestamp": "2026-03-14T09:30:00Z", **like(user, item)}
    send(a, done)
    assert recommend(b, user)["route"] == "few"
    assert a.client.delete(f"/users/{user}").status_code == 200
    send(b, done)
    assert recommend(a, user)["route"] == recommend(b, user)["route"] == "new"
    assert b.client.get(f"/users/{user}/interactions").status_code == 404
    a.client.put(f"/users/{user}", json={})
    send(b, done)
    assert b.client.get(f"/users/{user}/interactions").json()["items"] == []
    send(b, like(user, item))
    assert recommend(a, user)["route"] == "few"


def test_erasing_nobody_is_no_error(a: Service) -> None:
    answer = a.client.delete(f"/users/{someone()}")
    assert answer.status_code == 200
    assert set(answer.json()["erased"].values()) == {0}


def test_a_form_is_not_json(a: Service) -> None:
    answer = a.client.put(somewhere("users"), data={"attributes": "{}"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"] == ["header", "content-type"]
