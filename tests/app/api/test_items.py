"""/items over HTTP, as API.md promises it."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

POST = {
    "kind": "post", "title": "The long way home", "text": "On walking.", "categories": ["Essay", "City/Life"],
    "tags": ["walking"], "creator": "mira", "published_at": "2021-11-22T09:30:00+02:00", "features": [0.5, -0.25],
    "attributes": {"minutes": 7},
}  # fmt: skip


class TestOneItem:
    def test_put_creates_then_replaces(self, client: TestClient) -> None:
        created = client.put("/items/p1", json=POST)
        assert created.status_code == 201
        stored = client.get("/items/p1").json()
        assert {name: stored[name] for name in POST} == POST | {"published_at": "2021-11-22T07:30:00Z"}
        replaced = client.put("/items/p1", json={"title": "Home"})
        assert replaced.status_code == 200
        assert client.get("/items/p1").json()["categories"] == []

    def test_patch_leaves_the_rest(self, client: TestClient) -> None:
        client.put("/items/p1", json=POST)
        patched = client.patch("/items/p1", json={"tags": None, "features": [1], "title": None})
        assert patched.status_code == 200
        stored = client.get("/items/p1").json()
        assert (stored["tags"], stored["features"], stored["title"]) == ([], [1.0], None)
        assert stored["attributes"] == POST["attributes"]

    def test_deleted_it_is_gone_until_it_is_put_again(self, client: TestClient) -> None:
        client.put("/items/p1", json=POST)
        assert client.delete("/items/p1").status_code == 204
        assert client.get("/items/p1").status_code == 404
        assert client.patch("/items/p1", json={}).status_code == 404
        assert client.delete("/items/p1").status_code == 404
        assert client.get("/items").json()["items"] == []
        assert client.put("/items/p1", json={}).status_code == 201
        assert client.get("/items/p1").json()["title"] is None

    @pytest.mark.parametrize(
        "body",
        [
            {"kind": 5},
            {"title": "x" * 1001},
            {"text": "a\0b"},
            {"categories": ["a\nb"]},
            {"tags": [f"t{n}" for n in range(101)]},
            {"creator": ""},
            {"published_at": "2021-11-22T09:30:00"},
            {"published_at": "0000-01-01T00:00:00Z"},
            {"features": ["0.1"]},
            {"features": [1e39]},
            {"features": [0.0] * 4097},
            {"attributes": None},
            {"item_id": "p2"},
        ],
        ids=lambda body: next(iter(body)),
    )
    def test_what_cannot_be_stored_is_refused(self, lasting_client: TestClient, body: dict[str, Any]) -> None:
        answer = lasting_client.put("/items/p1", json=body)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["loc"][:2] == ["body", next(iter(body))]

    @pytest.mark.parametrize("number", [1e-300, -1e-46, 3.4028e38, 0, -0.0, 7])
    def test_every_finite_feature_in_range_is_kept_as_float32(self, client: TestClient, number: float) -> None:
        assert client.put("/items/p1", json={"features": [number]}).status_code == 201
        assert client.get("/items/p1").json()["features"][0] == pytest.approx(number, rel=1e-6, abs=1e-45)

    @pytest.mark.parametrize("when", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "1851-10-18T00:00:00Z"])
    def test_old_works_keep_their_date(self, client: TestClient, when: str) -> None:
        assert client.put("/items/moby-dick", json={"published_at": when}).json()["published_at"] == when


class TestManyItems:
    def test_an_array_upserts(self, client: TestClient) -> None:
        client.put("/items/p1", json=POST)
        answer = client.post("/items", json=[{"item_id": "p1"}, {"item_id": "p2", "kind": "post"}])
        assert answer.json() == {"created": 1, "updated": 1}

    def test_an_invalid_entry_refuses_the_array(self, client: TestClient) -> None:
        answer = client.post("/items", json=[{"item_id": "p1"}, {"item_id": 2}, {"kind": "x"}])
        assert [error["loc"] for error in answer.json()["errors"]] == [["body", 1, "item_id"], ["body", 2, "item_id"]]
        assert client.get("/items/p1").status_code == 404

    def test_filters_and_pages(self, client: TestClient) -> None:
        entries = [
            {"item_id": f"i{n}", "categories": ["Even" if n % 2 == 0 else "Odd"], "kind": "film" if n < 6 else "post"}
            for n in range(9)
        ]
        client.post("/items", json=entries)
        asked = {"category": "Even", "limit": 2}
        first = client.get("/items", params=asked).json()
        second = client.get("/items", params=asked | {"cursor": first["next_cursor"]}).json()
        third = client.get("/items", params=asked | {"cursor": second["next_cursor"]}).json()
        found = [item["item_id"] for page in (first, second, third) for item in page["items"]]
        assert found == ["i0", "i2", "i4", "i6", "i8"]
        assert third["next_cursor"] is None
        both = client.get("/items", params={"category": "Even", "kind": "film"}).json()["items"]
        assert [item["item_id"] for item in both] == ["i0", "i2", "i4"]
        elsewhere = client.get("/items", params={"category": "Odd", "cursor": first["next_cursor"]})
        assert elsewhere.status_code == 422

    def test_an_item_deleted_between_pages_moves_nothing(self, client: TestClient) -> None:
        client.post("/items", json=[{"item_id": f"i{n}"} for n in range(6)])
        first = client.get("/items", params={"limit": 3}).json()
        client.delete("/items/i2")
        rest = client.get("/items", params={"limit": 3, "cursor": first["next_cursor"]}).json()
        assert [item["item_id"] for item in rest["items"]] == ["i3", "i4", "i5"]
