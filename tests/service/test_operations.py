"""Keys, errors, limits, metrics, releases and stopping: what an operator relies on."""

import signal
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.patience import until
from tests.service.conftest import ANSWER_SECONDS, KEYS, Service, Stores, activate, copy_release, running
from tests.service.test_recommend import ids, like, recommend, send, someone


def test_healthz_readyz_and_metrics_need_no_key(a: Service) -> None:
    with httpx.Client(base_url=a.url, timeout=ANSWER_SECONDS) as anonymous:
        assert anonymous.get("/healthz").json() == {"status": "ok"}
        ready = anonymous.get("/readyz").json()
        metrics = anonymous.get("/metrics")
    assert ready["status"] == "ok"
    assert ready["degraded"] == {}
    assert ready["items"] >= 400
    assert "segue_http_requests_total" in metrics.text


def test_metrics_count_by_route_template_and_never_by_id(a: Service) -> None:
    a.client.get("/items/an-id-of-this-test")
    metrics = a.client.get("/metrics").text
    assert 'path="/items/{item_id}"' in metrics
    assert "an-id-of-this-test" not in metrics


@pytest.mark.parametrize(
    ("scope", "method", "path", "status"),
    [
        ("read", "GET", "/recommend?user_id=u", 200),
        ("write", "GET", "/recommend?user_id=u", 403),
        ("read", "POST", "/events", 403),
        ("read", "GET", "/admin/rules", 403),
        ("write", "GET", "/admin/rules", 403),
        ("admin", "GET", "/admin/rules", 200),
        ("admin", "GET", "/recommend?user_id=u", 200),
        ("read", "GET", "/admin/audit", 403),
        ("read", "POST", "/admin/train", 403),
        ("read", "GET", "/admin/releases", 403),
        ("write", "PUT", "/admin/blocks/x", 403),
    ],
)
def test_each_scope_opens_its_own_doors(a: Service, scope: str, method: str, path: str, status: int) -> None:
    answer = a.as_(scope).request(method, path)
    assert answer.status_code == status
    if status == 403:
        assert "scope" in answer.json()["detail"]


@pytest.mark.parametrize("headers", [{}, {"X-API-Key": ""}, {"X-API-Key": "wrong"}, {"X-API-Key": KEYS["read"] + "x"}])
def test_without_a_known_key_there_is_no_answer(a: Service, headers: dict[str, str]) -> None:
    answer = httpx.get(f"{a.url}/recommend", params={"user_id": "u"}, headers=headers, timeout=ANSWER_SECONDS)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert "X-API-Key" in answer.json()["detail"]


def test_a_key_of_odd_bytes_is_a_wrong_key(a: Service) -> None:
    odd = [(b"X-API-Key", b"\xff\xfe\x80")]
    answer = httpx.get(f"{a.url}/recommend", params={"user_id": "u"}, headers=odd, timeout=ANSWER_SECONDS)
    assert answer.status_code == 401


def test_the_callers_request_id_comes_back_and_a_bad_one_does_not(a: Service) -> None:
    assert a.client.get("/healthz", headers={"X-Request-ID": "my-id.1"}).headers["x-request-id"] == "my-id.1"
    replaced = a.client.get("/healthz", headers={"X-Request-ID": "two words"}).headers["x-request-id"]
    assert replaced != "two words"
    assert len(replaced) == 26


def test_the_bodys_request_id_is_always_ours(a: Service) -> None:
    parameters = {"user_id": "u"}
    page = a.client.get("/recommend", params=parameters, headers={"X-Request-ID": "mine"}).json()
    other = a.client.get("/recommend", params=parameters, headers={"X-Request-ID": "mine"}).json()
    assert page["request_id"] != "mine"
    assert page["request_id"] != other["request_id"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("DELETE", "/recommend", 405)])
def test_every_error_is_a_problem(a: Service, method: str, path: str, status: int) -> None:
    answer = a.client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "status", "detail"} <= set(answer.json())


def test_a_body_that_is_too_large_is_refused_declared_or_not(a: Service) -> None:
    body = b"[" + b" " * (9 * 1024 * 1024) + b"]"
    headers = {"Content-Type": "application/json"}
    declared = a.client.post("/events", content=body, headers=headers)
    streamed = a.client.post(
        "/events", content=(body[i : i + 65536] for i in range(0, len(body), 65536)), headers=headers
    )
    assert (declared.status_code, streamed.status_code) == (413, 413)
    assert "SEGUE_MAX_BODY_BYTES" in declared.json()["detail"]


def test_browsers_may_call_from_configured_origins_only(stores: Stores) -> None:
    with running(stores.environment, SEGUE_CORS_ORIGINS="https://app.example") as service:
        allowed = service.client.get("/healthz", headers={"Origin": "https://app.example"})
        other = service.client.get("/healthz", headers={"Origin": "https://other.example"})
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    assert "access-control-allow-origin" not in other.headers


def test_a_release_is_swapped_in_every_process_and_back_while_requests_go_on(
    a: Service, b: Service, stores: Stores
) -> None:
    first = recommend(b, someone(), limit=5)
    second_id = copy_release(stores.settings, stores.settings.releases_dir / stores.release_id)
    activate(stores.settings, second_id)
    until(lambda: recommend(b, someone())["release"] == second_id)
    listed = a.client.get("/admin/releases").json()["items"]
    assert [release["release_id"] for release in listed if release["current"]] == [second_id]

    pinned = recommend(b, first["user_id"], limit=5, cursor=first["next_cursor"])
    assert pinned["release"] == first["release"], "a page belongs to the release of its slate"

    back = a.client.post(f"/admin/releases/{stores.release_id}/activate")
    assert back.json() == {"release_id": stores.release_id, "replaced": second_id}
    until(lambda: recommend(b, someone())["release"] == stores.release_id)


def test_a_damaged_release_is_refused_and_the_last_good_one_serves(a: Service, stores: Stores) -> None:
    folder = stores.settings.releases_dir
    broken = folder / "2020-01-01T00-00-00Z-dead"
    broken.mkdir()
    answer = a.client.post(f"/admin/releases/{broken.name}/activate")
    assert answer.status_code == 409
    assert "manifest" in answer.json()["detail"]

    good = (folder / "current").read_text()
    (folder / "current").write_text(broken.name)
    until(lambda: "release" in a.client.get("/readyz").json()["degraded"])
    assert recommend(a, someone())["release"] == good
    (folder / "current").write_text(good)
    until(lambda: a.client.get("/readyz").json()["degraded"] == {})


def test_a_release_that_does_not_exist_is_404(a: Service) -> None:
    assert a.client.post("/admin/releases/2020-01-01T00-00-00Z-0000/activate").status_code == 404
    assert a.client.post("/admin/releases/..%2f..%2fetc/activate").status_code in (404, 422)


def test_without_a_release_the_answer_is_degraded_but_popular(stores: Stores, tmp_path: Path) -> None:
    with running(stores.environment, SEGUE_DATA_DIR=str(tmp_path)) as service:
        page = recommend(service, someone())
        ready = service.client.get("/readyz").json()
    assert (page["route"], page["release"]) == ("degraded", None)
    assert len(page["items"]) == 10
    assert "release" in ready["degraded"]


def test_an_unknown_job_is_404(a: Service) -> None:
    assert a.client.get("/admin/jobs/train-0123456789abcdef").status_code == 404


def test_sigterm_finishes_what_was_begun_and_writes_what_was_shown(stores: Stores) -> None:
    with running(stores.environment) as service:
        user = someone()
        item = ids(recommend(service, user))[0]
        send(service, like(user, item))
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(60) in (0, -signal.SIGTERM)
    with running(stores.environment) as service:
        assert recommend(service, user)["route"] == "few"


def test_a_killed_parent_takes_its_workers_along(stores: Stores) -> None:
    with running(stores.environment, "--workers", "2") as service:
        service.process.kill()
        service.process.wait(60)
        until(lambda: not _answers(service.url))


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def test_metrics_are_those_of_all_workers(stores: Stores) -> None:
    with running(stores.environment, "--workers", "2") as service:
        for _ in range(30):
            # Over a connection of its own, so that either worker may take it.
            with service.as_("read") as client:
                assert recommend(replace(service, client=client), someone())["recommender"] == "live_counts"
        counted = [
            float(line.rpartition(" ")[2])
            for line in service.client.get("/metrics").text.splitlines()
            if line.startswith('segue_recommendations_total{recommender="live_counts"')
        ]
    assert sum(counted) == 30
