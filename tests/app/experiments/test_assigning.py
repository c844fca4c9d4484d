"""Who is in which experiment: by surface and route before exposure, and never beside a holdout's control group."""

from dataclasses import replace

from app.experiments.assigning import assigned
from app.experiments.definitions import Experiment, Variant

HALVES = (Variant("control", 0.5), Variant("treatment", 0.5))
USERS = [f"user-{number}" for number in range(2_000)]


def experiment(key: str, **more: object) -> Experiment:
    fields = {"run": 1, "seed": key, "namespace": None, "coverage": 1.0, "variants": HALVES} | more
    return Experiment(key, **fields)  # type: ignore[arg-type]


def keys(running: tuple[Experiment, ...], user: str = "u", **more: object) -> dict[str, str]:
    asked = {"surface": "feed", "route": "few"} | more
    found = assigned(running, user, **asked)  # type: ignore[arg-type]
    return {each.experiment.key: each.variant.name for each in found}


def test_only_experiments_of_the_surface_and_the_route_count() -> None:
    running = (experiment("all"), experiment("few", route="few"), experiment("side", surface="side"))
    assert set(keys(running)) == {"all", "few"}
    assert set(keys(running, route="established")) == {"all"}
    assert set(keys(running, surface="side")) == {"side"}


def test_who_was_exposed_stays_in_whatever_the_route_is_now() -> None:
    running = (experiment("few", route="few"),)
    before = keys(running)
    assert keys(running, route="established", exposed={("few", 1)}) == before
    assert keys(running, route="established", exposed={("few", 2), ("other", 1)}) == {}
    assert keys(running, route="established", exposed={("few", 1)}, surface="side") == {}


def test_held_out_users_are_in_nothing_else_and_the_others_in_both() -> None:
    holdout = experiment("quarter", holdout=True, surface="elsewhere", coverage=0.5)
    running = (holdout, experiment("ranker"))
    found = [keys(running, user) for user in USERS]
    held_out = [each for each in found if each.get("quarter") == "control"]
    assert all(each == {"quarter": "control"} for each in held_out)
    assert 400 < len(held_out) < 600
    assert all("ranker" in each for each in found if each not in held_out)
    assert {each["ranker"] for each in found if each.get("quarter") == "treatment"} == {"control", "treatment"}


def test_a_forced_variant_is_marked_and_beats_the_hash() -> None:
    forced = {user: "treatment" for user in USERS[:20]}
    ranker = experiment("ranker", forced=forced, coverage=0.0)
    found = [assigned((ranker,), user, surface="feed", route="few") for user in USERS[:20]]
    assert all(each.variant.name == "treatment" and each.is_forced for (each,) in found)
    assert assigned((ranker,), USERS[30], surface="feed", route="few") == ()
    whole = replace(ranker, coverage=1.0)
    assert [each.is_forced for each in assigned((whole,), USERS[30], surface="feed", route="few")] == [False]
