"""/users, likes, interactions and erasure over HTTP, as API.md promises them."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

ANN = {"attributes": {"country": "NO", "age": 31}, "preferred_categories": ["Drama"]}


def liked(client: TestClient, user_id: str = "ann") -> list[str]:
    return [like["item_id"] for like in client.get(f"/users/{user_id}/export").json()["likes"]]


def kinds(client: TestClient) -> list[str]:
    return [each["kind"] for each in client.get("/users/ann/interactions").json()["items"]]


class TestOneUser:
    def test_put_creates_then_replaces(self, client: TestClient) -> None:
        created = client.put("/users/ann", json=ANN)
        replaced = client.put("/users/ann", json={"attributes": {"age": 32}})
        assert (created.status_code, replaced.status_code) == (201, 200)
        assert created.json()["attributes"] == ANN["attributes"]
        stored = client.get("/users/ann").json()
        assert (stored["attributes"], stored["preferred_categories"]) == ({"age": 32}, [])
        assert stored["created_at"].endswith("Z")

    def test_patch_leaves_the_rest(self, client: TestClient) -> None:
        client.put("/users/ann", json=ANN)
        assert client.patch("/users/ann", json={"preferred_categories": ["Noir", "Noir"]}).status_code == 200
        stored = client.get("/users/ann").json()
        assert (stored["attributes"], stored["preferred_categories"]) == (ANN["attributes"], ["Noir"])
        assert client.patch("/users/ann", json={"attributes": None}).json()["attributes"] == {}

    @pytest.mark.parametrize("method", ["get", "patch"])
    def test_unknown_is_404(self, lasting_client: TestClient, method: str) -> None:
        body = {"json": {}} if method == "patch" else {}
        assert getattr(lasting_client, method)("/users/nobody", **body).status_code == 404

    @pytest.mark.parametrize(
        "body",
        [
            {"colour": 1},
            {"attributes": [1]},
            {"attributes": {"a\0": 1}},
            {"attributes": {"a": {"b": "\0"}}},
            {"attributes": {"a": 2**63}},
            {"attributes": {"a": [-1e200]}},
            {"attributes": {"a": "x" * 17_000}},
            {"preferred_categories": "Drama"},
            {"preferred_categories": [""]},
            {"preferred_categories": [None]},
            {"preferred_categories": [f"c{n}" for n in range(101)]},
        ],
    )
    def test_what_cannot_be_stored_is_refused(self, lasting_client: TestClient, body: dict[str, Any]) -> None:
        answer = lasting_client.put("/users/ann", json=body)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["loc"][1] == next(iter(body))

    @pytest.mark.parametrize(
        "raw", [b'{"attributes": {"a": NaN}}', b'{"attributes": ' + b'{"a":' * 17 + b"1" + b"}" * 18]
    )
    def test_nor_what_json_cannot_say(self, lasting_client: TestClient, raw: bytes) -> None:
        answer = lasting_client.put("/users/ann", content=raw, headers={"content-type": "application/json"})
        assert answer.status_code == 422

    def test_sixteen_levels_and_large_integers_are_kept(self, client: TestClient) -> None:
        deep: Any = 2**63 - 1
        for _ in range(15):
            deep = {"a": deep}
        assert client.put("/users/ann", json={"attributes": deep}).json()["attributes"] == deep

    @pytest.mark.parametrize("number", [-(2**63), 9.2e18, -9.2e18, 1e-300, 0.1, -0.0, 5e-324])
    def test_numbers_come_back_as_they_were(self, client: TestClient, number: float) -> None:
        assert client.put("/users/ann", json={"attributes": {"n": number}}).json()["attributes"] == {"n": number}

    @pytest.mark.parametrize("user_id", ["a%00b", "a" * 129, "a%0Ab", "a%C2%85b"])
    def test_ids_in_paths_are_checked_too(self, lasting_client: TestClient, user_id: str) -> None:
        assert lasting_client.get(f"/users/{user_id}").status_code == 422
        assert lasting_client.put(f"/users/{user_id}", json={}).status_code == 422
        assert lasting_client.delete(f"/users/{user_id}").status_code == 422


class TestManyUsers:
    def test_an_array_upserts(self, client: TestClient) -> None:
        client.put("/users/ann", json=ANN)
        answer = client.post("/users", json=[{"user_id": "ann"}, {"user_id": "bob", "attributes": {"a": 1}}])
        assert answer.json() == {"created": 1, "updated": 1}
        assert client.get("/users/ann").json()["attributes"] == {}
        assert client.get("/users/bob").json()["attributes"] == {"a": 1}

    def test_a_repeated_id_is_refused_with_its_index(self, client: TestClient) -> None:
        answer = client.post("/users", json=[{"user_id": "ann"}, {"user_id": "bob"}, {"user_id": "ann"}])
        assert [error["loc"] for error in answer.json()["errors"]] == [["body", 2, "user_id"]]
        assert client.get("/users/bob").status_code == 404

    def test_pages_cover_all_without_overlap(self, client: TestClient) -> None:
        client.post("/users", json=[{"user_id": f"u{n}"} for n in range(7)])
        found, cursor = [], ""
        for _ in range(3):
            page = client.get("/users", params={"limit": 3} | ({"cursor": cursor} if cursor else {})).json()
            found += [user["user_id"] for user in page["items"]]
            cursor = page["next_cursor"]
        assert found == [f"u{n}" for n in range(7)]
        assert cursor is None

    def test_a_page_that_ends_the_list_has_no_cursor(self, client: TestClient) -> None:
        client.post("/users", json=[{"user_id": f"u{n}"} for n in range(3)])
        assert client.get("/users", params={"limit": 3}).json()["next_cursor"] is None

    @pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 1001}, {"limit": "x"}, {"cursor": "x"}, {"cursor": "é"}])
    def test_bad_paging_is_422(self, lasting_client: TestClient, query: dict[str, Any]) -> None:
        answer = lasting_client.get("/users", params=query)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["loc"] == ["query", next(iter(query))]


class TestLikes:
    def test_liking_twice_stores_one(self, client: TestClient) -> None:
        first, second = client.put("/users/ann/likes/dune").json(), client.put("/users/ann/likes/dune").json()
        assert (first["liked"], first["changed"], second["liked"], second["changed"]) == (True, True, True, False)
        assert first["watermark"].isdigit()
        assert kinds(client) == ["like"]
        assert liked(client) == ["dune"]

    def test_a_like_can_be_taken_back_and_given_again(self, client: TestClient) -> None:
        client.put("/users/ann/likes/dune")
        taken = client.delete("/users/ann/likes/dune").json()
        assert (taken["liked"], taken["changed"]) == (False, True)
        assert client.delete("/users/ann/likes/dune").json()["changed"] is False
        assert liked(client) == []
        client.put("/users/ann/likes/dune")
        assert kinds(client) == ["like", "unlike", "like"]
        assert liked(client) == ["dune"]

    def test_taking_back_what_was_never_liked_creates_nothing(self, client: TestClient) -> None:
        assert client.delete("/users/ann/likes/dune").status_code == 200
        assert client.get("/users/ann").status_code == 404


class TestInteractions:
    def test_pages_newest_first(self, client: TestClient) -> None:
        client.post(
            "/events",
            json=[
                {
                    "event_id": f"e{n}",
                    "user_id": "ann",
                    "item_id": "dune",
                    "kind": "click" if n % 2 else "view",
                    "timestamp": f"2024-01-01T00:00:0{n // 2}Z",
                }
                for n in range(8)
            ],
        )
        first = client.get("/users/ann/interactions", params={"limit": 5}).json()
        rest = client.get("/users/ann/interactions", params={"limit": 5, "cursor": first["next_cursor"]}).json()
        assert [each["event_id"] for each in first["items"] + rest["items"]] == [f"e{n}" for n in range(7, -1, -1)]
        assert rest["next_cursor"] is None
        clicks = client.get("/users/ann/interactions", params={"kind": "click"}).json()["items"]
        assert [each["event_id"] for each in clicks] == ["e7", "e5", "e3", "e1"]
        wrong = client.get("/users/ann/interactions", params={"kind": "click", "cursor": first["next_cursor"]})
        assert wrong.status_code == 422

    def test_of_an_unknown_user_are_404(self, client: TestClient) -> None:
        assert client.get("/users/nobody/interactions").status_code == 404


class TestErasure:
    def test_answers_with_what_was_erased_and_what_comes_later_is_dropped(self, client: TestClient) -> None:
        client.put("/users/ann", json=ANN)
        client.put("/users/ann/likes/dune")
        assert client.get("/users/ann/export").json()["user"]["user_id"] == "ann"
        erased = client.delete("/users/ann").json()["erased"]
        assert (erased["users"], erased["likes"], erased["interactions"]) == (1, 1, 1)
        assert client.get("/users/ann").status_code == 404
        assert client.get("/users/ann/export").status_code == 404
        late = client.post("/events", json={"user_id": "ann", "item_id": "dune", "kind": "like"})
        assert (late.status_code, late.json()["accepted"]) == (202, 1)
        assert client.get("/users/ann").status_code == 404

    def test_twice_is_no_error(self, client: TestClient) -> None:
        assert set(client.delete("/users/ann").json()["erased"].values()) == {0}
        assert client.delete("/users/ann").status_code == 200
