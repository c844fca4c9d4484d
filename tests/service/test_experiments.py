"""API.md, Experiments: defined, validated, in force on the next request of every worker, kept through restarts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from app import cli
from app.errors import Conflict
from tests.service.conftest import Service, Stores
from tests.service.test_recommend import recommend, someone

Define = Callable[..., dict[str, Any]]


@pytest.fixture
def define(a: Service) -> Iterator[Define]:
    """Posts a definition through process A, on a surface of its own unless told; what runs is stopped at the end."""
    keys = []

    def post(**fields: Any) -> dict[str, Any]:
        body = an_experiment(**fields)
        answer = a.client.post("/admin/experiments", json=body)
        assert answer.status_code == 201, answer.text
        keys.append(body["key"])
        return answer.json()

    yield post
    for key in keys:
        a.client.post(f"/admin/experiments/{key}/stop")


def an_experiment(**fields: Any) -> dict[str, Any]:
    """Half of the users get the most popular items, on a surface that no other test asks for."""
    unique = f"x{uuid4().hex[:12]}"
    variants = [{"name": "control", "weight": 0.5}, {"name": "popular", "weight": 0.5, "recommender": "popularity"}]
    return {"key": unique, "surface": unique, "variants": variants} | fields


def act(service: Service, key: str, what: str, status: int = 200, **body: Any) -> dict[str, Any]:
    answer = service.client.post(f"/admin/experiments/{key}/{what}", json=body or None)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_a_start_and_a_stop_hold_in_the_next_answer_of_the_other_process(
    a: Service, b: Service, define: Define
) -> None:
    user = someone()
    defined = define(forced={user: "popular"})
    key, surface = defined["key"], defined["surface"]
    for here, there in ((a, b), (b, a)):
        assert recommend(there, user, surface=surface)["experiments"] == []
        act(here, key, "start")
        page = recommend(there, user, surface=surface)
        assert page["experiments"] == [{"key": key, "variant": "popular"}]
        assert page["recommender"] == "popularity"
        act(there, key, "stop")
        assert recommend(here, user, surface=surface)["experiments"] == []


def test_its_life(a: Service, b: Service, define: Define) -> None:
    defined = define()
    key = defined["key"]
    assert (defined["run"], defined["status"], defined["seed"], defined["warnings"]) == (1, "draft", key, [])
    assert define(key=key, coverage=0.25)["run"] == 1, "a draft is replaced"
    assert act(b, key, "start")["status"] == "running"
    assert act(b, key, "coverage", coverage=0.5)["coverage"] == 0.5
    act(b, key, "start", status=409)
    assert act(a, key, "stop")["stopped_at"] is not None
    act(a, key, "stop", status=409)
    again = act(a, key, "start")
    assert (again["run"], again["status"], again["coverage"]) == (2, "running", 0.25)
    assert again["seed"] not in (key, None)
    first = b.client.get(f"/admin/experiments/{key}", params={"run": 1}).json()
    assert (first["status"], first["coverage"], first["seed"]) == ("stopped", 0.5, key)
    assert b.client.get(f"/admin/experiments/{key}").json() == again
    log = [entry for entry in audited(b) if entry["subject"] == f"experiment:{key}"]
    assert [entry["action"].removeprefix("experiment.") for entry in log] == [
        "start", "stop", "coverage", "start", "put", "put",
    ]  # fmt: skip
    assert (log[2]["before"]["coverage"], log[2]["after"]["coverage"]) == (0.25, 0.5)
    assert log[0]["actor"] == "SEGUE_ADMIN_KEY"


def audited(service: Service) -> list[dict[str, Any]]:
    return service.client.get("/admin/audit", params={"limit": 100}).json()["items"]


def test_every_experiment_is_listed_by_its_latest_run(b: Service, define: Define) -> None:
    keys = sorted(define()["key"] for _ in range(3))
    act(b, keys[0], "start")
    found, cursor = [], None
    while True:
        page = b.client.get("/admin/experiments", params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        found += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    status = {each["key"]: each["status"] for each in found}
    assert len(status) == len(found)
    assert list(status) == sorted(status)
    assert [status[key] for key in keys] == ["running", "draft", "draft"]


HALVES = [{"name": "control", "weight": 0.5}, {"name": "other", "weight": 0.5}]


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"variants": [{"name": "a", "weight": 0.5}, {"name": "b", "weight": 0.4}]}, ["variants"]),
        ({"variants": HALVES[:1]}, ["variants"]),
        ({"variants": [HALVES[0], HALVES[0]]}, ["variants", 1, "name"]),
        ({"variants": [HALVES[0], HALVES[1] | {"weight": 0}]}, ["variants", 1, "weight"]),
        ({"variants": [HALVES[0], HALVES[1] | {"recommender": "oracle"}]}, ["variants", 1, "recommender"]),
        ({"variants": [HALVES[0], HALVES[1] | {"parameters": {"x": 1}}]}, ["variants", 1, "parameters", "x"]),
        (
            {"variants": [HALVES[0], HALVES[1] | {"parameters": {"diversity": 1.5}}]},
            ["variants", 1, "parameters", "diversity"],
        ),
        ({"variants": HALVES, "forced": {"ann": "nobody"}}, ["forced", "ann"]),
        ({"coverage": 1.5}, ["coverage"]),
        ({"namespace": {"name": "feed", "range": [0.5, 0.5]}}, ["namespace", "range"]),
        ({"namespace": {"name": "feed", "range": [0.5, 1.5]}}, ["namespace", "range", 1]),
        ({"route": "degraded"}, ["route"]),
        ({"route": "listening"}, ["route"]),
        ({"surface": "player"}, ["surface"]),
        ({"data": "mixed"}, ["data"]),
        ({"key": "a b"}, ["key"]),
        ({"hypothesis": "more likes"}, ["hypothesis"]),
        ({"holdout": True}, ["variants", 1]),
        ({"holdout": True, "variants": HALVES, "route": "new"}, ["route"]),
        ({"holdout": True, "variants": HALVES, "namespace": {"name": "n", "range": [0, 1]}}, ["namespace"]),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, list) else "",
)
def test_a_definition_that_contradicts_itself_is_refused_by_field(
    a: Service, fields: dict[str, Any], place: list[Any]
) -> None:
    body = an_experiment(**fields)
    answer = a.client.post("/admin/experiments", json=body)
    assert answer.status_code == 422, answer.text
    assert ["body", *place] in [error["loc"] for error in answer.json()["errors"]]
    assert a.client.get(f"/admin/experiments/{body['key']}").status_code == (404 if body["key"] != "a b" else 422)


def refused(service: Service, key: str, what: str = "start", **body: Any) -> list[list[Any]]:
    return [error["loc"][1:] for error in act(service, key, what, status=409, **body)["errors"]]


def test_two_on_one_surface_may_not_set_the_same_thing(a: Service, define: Define) -> None:
    surface = f"s{uuid4().hex}"
    first = define(surface=surface)
    act(a, first["key"], "start")
    second = define(surface=surface, route="new")
    assert refused(a, second["key"]) == [["variants", 1, "recommender"]]
    varied = [HALVES[0], HALVES[1] | {"parameters": {"diversity": 0.5}}]
    third = define(surface=surface, variants=varied)
    act(a, third["key"], "start")
    plain = [HALVES[0] | {"parameters": {"diversity": 0.0}}, HALVES[1] | {"promotions": False}]
    fourth = define(surface=surface, variants=plain)
    assert refused(a, fourth["key"]) == [["variants", 0, "parameters", "diversity"]]
    act(a, third["key"], "stop")
    act(a, fourth["key"], "start")
    act(a, define()["key"], "start")


def test_ranges_of_one_namespace_may_not_overlap_and_keep_apart_what_sets_the_same_thing(
    a: Service, define: Define
) -> None:
    surface, name = f"s{uuid4().hex}", f"n{uuid4().hex}"

    def in_range(start: float, end: float, of: str = name) -> dict[str, Any]:
        return define(surface=surface, namespace={"name": of, "range": [start, end]})

    act(a, in_range(0.0, 0.5)["key"], "start")
    assert refused(a, in_range(0.4, 0.6)["key"]) == [["namespace", "range"]]
    act(a, in_range(0.5, 0.75)["key"], "start")
    elsewhere = define(namespace={"name": name, "range": [0.7, 0.8]})
    assert refused(a, elsewhere["key"]) == [["namespace", "range"]]
    other = in_range(0.75, 1.0, of=f"{name}2")
    assert "not independent" in other["warnings"][0]
    assert refused(a, other["key"]) == 2 * [["variants", 1, "recommender"]]


def test_the_same_seed_is_warned_of(a: Service, define: Define) -> None:
    first = define()
    act(a, first["key"], "start")
    assert first["key"] in define(seed=first["key"])["warnings"][0]


def test_what_may_not_change_while_it_runs(a: Service, define: Define) -> None:
    defined = define(coverage=0.5)
    key = defined["key"]
    act(a, key, "start")
    heavier = [HALVES[0] | {"weight": 0.75}, HALVES[1] | {"weight": 0.25}]
    answer = a.client.post("/admin/experiments", json=an_experiment(key=key, variants=heavier))
    assert answer.status_code == 409
    assert "stop it" in answer.json()["detail"]
    assert refused(a, key, "coverage", coverage=0.4) == [["coverage"]]
    assert act(a, key, "coverage", coverage=0.5)["coverage"] == 0.5
    assert a.client.get(f"/admin/experiments/{key}").json()["variants"] == defined["variants"]


def test_a_holdout_keeps_what_was_served_when_it_began_and_does_not_grow(a: Service, define: Define) -> None:
    defined = define(holdout=True, variants=HALVES, coverage=0.0)
    assert defined["defaults"] is None
    started = act(a, defined["key"], "start")
    assert started["defaults"]["parameters"] == {"diversity": 0.0}
    assert started["defaults"]["chains"]["new"][0] == "live_counts"
    assert refused(a, defined["key"], "coverage", coverage=0.1) == [["coverage"]]


def test_a_second_holdout_is_refused_while_one_runs(a: Service, define: Define) -> None:
    first, second = (define(holdout=True, variants=HALVES, coverage=0.0) for _ in range(2))
    act(a, first["key"], "start")
    assert refused(a, second["key"]) == [["holdout"]]
    act(a, first["key"], "stop")
    act(a, second["key"], "start")


def test_an_experiment_that_does_not_exist_is_404_and_others_may_not_ask(a: Service) -> None:
    for what in ("start", "stop", "coverage"):
        answer = a.client.post(f"/admin/experiments/none/{what}", json={"coverage": 1.0})
        assert answer.status_code == 404
    assert a.client.get("/admin/experiments/none").status_code == 404
    with a.as_("write") as writer:
        assert writer.get("/admin/experiments").status_code == 403
        assert writer.post("/admin/experiments", json=an_experiment()).status_code == 403


def assignments(service: Service, user: str) -> dict[str, dict[str, Any]]:
    items = service.client.get("/experiments/assignment", params={"user_id": user}).json()["items"]
    return {each["key"]: each for each in items}


def test_an_assignment_is_what_the_next_answer_says(a: Service, b: Service, define: Define) -> None:
    # Who is in which variant follows from the seed and the names, so it is the same in every run.
    half = define(coverage=0.5, seed="an-assignment")
    key, users = half["key"], [f"assigned-{number}" for number in range(30)]
    assert key not in assignments(b, users[0])
    act(a, key, "start")
    told = {user: assignments(b, user)[key] for user in users}
    for user in users:
        served = {each["key"]: each["variant"] for each in recommend(b, user, surface=half["surface"])["experiments"]}
        assert told[user]["variant"] == served.get(key)
        assert told[user]["in_experiment"] == (key in served)
    assert {each["variant"] for each in told.values()} == {None, "control", "popular"}


def test_who_is_held_out_is_in_nothing_else(a: Service, b: Service, define: Define) -> None:
    out, compared, other = someone(), someone(), define()
    names = {out: "control", compared: "other"}
    holdout = define(holdout=True, variants=HALVES, coverage=0.0, forced=names)
    for each in (other, holdout):
        act(a, each["key"], "start")
    assert assignments(b, out)[holdout["key"]]["variant"] == "control"
    assert not assignments(b, out)[other["key"]]["in_experiment"]
    assert assignments(b, compared)[other["key"]]["in_experiment"]
    page = recommend(b, out, surface=other["surface"])
    assert page["experiments"] == [{"key": holdout["key"], "variant": "control"}]
    assert len(recommend(b, compared, surface=other["surface"])["experiments"]) == 2


def segue(stores: Stores, *arguments: str) -> tuple[int, list[str]]:
    """The exit code of `segue experiments …`, and the lines that it prints."""
    environment = stores.environment | {"COLUMNS": "200"}
    done = CliRunner(env=environment).invoke(cli.app, ["experiments", *arguments], catch_exceptions=False)
    return done.exit_code, done.output.splitlines()


def test_from_a_terminal_a_change_holds_in_the_next_answer_too(stores: Stores, b: Service, define: Define) -> None:
    user = someone()
    defined = define(forced={user: "popular"})
    key, surface = defined["key"], defined["surface"]
    ramp = ("ramp", key, "--guardrail", "likes_per_user", "--guardrail", "skip:count:worse=higher", "--once")
    code, said = segue(stores, *ramp, "--steps", "0.1,1")
    assert (code, said[-1]) == (0, "start at 10%: the first step")
    assert b.client.get(f"/admin/experiments/{key}").json()["coverage"] == 0.1
    assert recommend(b, user, surface=surface)["experiments"] == [{"key": key, "variant": "popular"}]
    code, said = segue(stores, *ramp, "--steps", "0.1,1")
    assert (code, said[-1].partition(":")[0]) == (0, "wait at 10%")
    assert segue(stores, "stop", key)[0] == 0
    assert recommend(b, user, surface=surface)["experiments"] == []
    code, said = segue(stores, *ramp)
    assert (code, said[-1]) == (0, "ended at 10%: it was stopped by hand")
    listed = next(line for line in segue(stores, "list")[1] if key in line)
    assert listed.split("│")[3].strip() == "stopped"
    code, said = segue(stores, "start", key)
    assert (code, said[-1]) == (0, f"run 2 of {key} covers 100% of its users")
    with pytest.raises(Conflict, match="runs already"):
        segue(stores, "start", key)
