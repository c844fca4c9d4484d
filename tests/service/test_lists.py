"""API.md, Conventions: every list answers `items` and `next_cursor`, and pages with `limit` and `cursor`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.storage.database import open_engine
from app.training import releases
from tests.service.conftest import Service, Stores
from tests.service.test_recommend import ids, like, recommend, send, settle, someone

ENTRIES = {
    "/recommend": 10,
    "/recommend/popular": 10,
    "/recommend/similar/{item_id}": 10,
    "/users": 100,
    "/users/{user_id}/interactions": 100,
    "/items": 100,
    "/admin/rules": 100,
    "/admin/releases": 100,
    "/admin/audit": 100,
    "/admin/experiments": 100,
}
"""Every list, with the number of its entries on a page where no `limit` is given."""
LISTS = pytest.mark.parametrize("path", ENTRIES)


@pytest.fixture(scope="module")
def there(both: tuple[Service, Service], stores: Stores) -> Iterator[dict[str, Any]]:
    """Several entries in every list, and what its path and query have to name for them."""
    service, user = both[0], someone()
    items = ids(recommend(service, someone(), recommender="popularity", limit=8))
    send(service, *(like(user, item) for item in items))
    settle(*both)
    for item in items[:2]:
        service.client.put(f"/admin/blocks/{item}", json={})
    for item in items[2:5]:
        service.client.put(f"/admin/promotions/{item}", json={"boost": 1.1})
    engine = open_engine(stores.environment["DATABASE_URL"])
    for day in range(1, 4):
        releases.register(engine, f"2020-01-0{day}T00-00-00Z-0000", {})
    engine.dispose()
    variants = [{"name": "control", "weight": 0.5}, {"name": "varied", "weight": 0.5, "parameters": {"diversity": 0.5}}]
    for number in range(5):
        draft = {"key": f"listed-{number}", "variants": variants}
        service.client.post("/admin/experiments", json=draft).raise_for_status()
    yield {"user_id": user, "item_id": items[0], "window": "all"}
    for item in items[:5]:
        service.client.delete(f"/admin/blocks/{item}")
        service.client.delete(f"/admin/promotions/{item}")


def ask(service: Service, path: str, there: dict[str, Any], **query: Any) -> httpx.Response:
    needed = {"/recommend": ("user_id",), "/recommend/popular": ("window",)}.get(path, ())
    return service.client.get(path.format_map(there), params={name: there[name] for name in needed} | query)


def page(service: Service, path: str, there: dict[str, Any], **query: Any) -> dict[str, Any]:
    answer = ask(service, path, there, **query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def without_scores(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in entry.items() if name != "score"} for entry in entries]


def test_these_are_all_lists_that_there_are(a: Service) -> None:
    document = a.client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    found = set()
    for path, methods in document["paths"].items():
        content = methods.get("get", {}).get("responses", {}).get("200", {}).get("content", {})
        name = content.get("application/json", {}).get("schema", {}).get("$ref", "").rpartition("/")[2]
        if "next_cursor" in schemas.get(name, {}).get("properties", ()):
            assert {"limit", "cursor"} <= {parameter["name"] for parameter in methods["get"]["parameters"]}, path
            found.add(path)
    assert found == set(ENTRIES)


@LISTS
def test_two_pages_from_two_processes_are_one_page_of_twice_the_size(
    a: Service, b: Service, there: dict[str, Any], path: str
) -> None:
    whole = page(a, path, there, limit=4)
    first = page(a, path, there, limit=2)
    second = page(b, path, there, limit=2, cursor=first["next_cursor"])
    assert len(first["items"]) == len(second["items"]) == 2
    assert without_scores(first["items"] + second["items"]) == without_scores(whole["items"])


@LISTS
def test_without_a_limit_a_page_has_its_usual_size(a: Service, there: dict[str, Any], path: str) -> None:
    whole = page(a, path, there, limit=1000)
    usual = page(a, path, there)
    assert len(usual["items"]) == min(ENTRIES[path], len(whole["items"]))
    assert (usual["next_cursor"] is None) == (len(whole["items"]) <= ENTRIES[path])


@LISTS
@pytest.mark.parametrize("limit", [0, 1001, -1, "many", 10**30])
def test_a_limit_out_of_bounds_is_refused(a: Service, there: dict[str, Any], path: str, limit: object) -> None:
    answer = ask(a, path, there, limit=limit)
    assert answer.status_code == 422
    assert [error["loc"] for error in answer.json()["errors"]] == [["query", "limit"]]


@LISTS
def test_a_cursor_that_was_changed_or_made_up_is_refused(a: Service, there: dict[str, Any], path: str) -> None:
    cursor = page(a, path, there, limit=2)["next_cursor"]
    changed = cursor[:-1] + ("A" if cursor[-1] != "A" else "B")
    # A slate is stored under a random key: one that is not there any more looks like one that never was.
    assert ask(a, path, there, limit=2, cursor=changed).status_code == (410 if path.startswith("/recommend") else 422)
    for wrong in (cursor + "A", cursor[:-2], "made-up", "", "é", "\0", "x" * 2000):
        answer = ask(a, path, there, limit=2, cursor=wrong)
        assert answer.status_code == 422, wrong
        assert answer.json()["errors"][0]["loc"] == ["query", "cursor"]


@LISTS
def test_a_cursor_of_another_list_is_refused(a: Service, there: dict[str, Any], path: str) -> None:
    for other in ENTRIES.keys() - {path}:
        cursor = page(a, other, there, limit=2)["next_cursor"]
        assert ask(a, path, there, limit=2, cursor=cursor).status_code == 422, other
