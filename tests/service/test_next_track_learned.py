"""The next track by what was learned: import a log of listens, train, serve, and each rule of a session can be seen."""

from __future__ import annotations

import csv
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.service.conftest import KEYS, Service, running
from tests.service.test_next_track import page, session
from tests.service.test_recommend import ids

RING = 60
"""Tracks of each of two rings; whoever listens goes around one of them, and never hears the other."""
BY_ARTIST = 4
SERVED = "next_blend"


def track(ring: str, place: int) -> str:
    return f"{ring}{place % RING}"


def artist_of(track_id: str) -> str:
    return f"artist-{track_id[0]}{int(track_id[1:]) // BY_ARTIST}"


def write_listens(path: Path) -> None:
    """Sixty listeners with six sessions each."""
    rng, at = random.Random(6), 0
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("user", "session", "track", "artist", "time", "fraction"))
        for nth in range(360):
            ring, place = "ab"[nth % 2], rng.randrange(RING)
            for step in range(rng.randint(6, 9)):
                heard, at = track(ring, place + step), at + 180
                fraction = rng.uniform(0.8, 1.0)
                table.writerow((f"u{nth % 60}", f"s{nth}", heard, artist_of(heard), at, f"{fraction:.3f}"))


@pytest.fixture(scope="module")
def trained(
    new_database: Callable[[], str], lasting_redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The environment of a service with a release that learned from sessions, all made with the `segue` commands."""
    folder = tmp_path_factory.mktemp("listens")
    environment = {
        "DATABASE_URL": new_database(),
        "REDIS_URL": lasting_redis_url,
        "SEGUE_DATA_DIR": str(folder / "var"),
        "SEGUE_EXPLORE_SHARE": "0",
        **{f"SEGUE_{scope.upper()}_KEY": key for scope, key in KEYS.items()},
    }
    write_listens(folder / "listens.csv")
    for command in (["import", "listens", str(folder / "listens.csv"), "--shift-to-now"], ["train", "--no-evaluate"]):
        done = subprocess.run(
            [sys.executable, "-m", "app.cli", *command],
            env={**os.environ, **environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    return environment


@pytest.fixture(scope="module")
def player(trained: dict[str, str]) -> Iterator[Service]:
    with running(trained) as service:
        yield service


def sources(answer: dict) -> list[str]:
    return [item["source"] for item in answer["items"]]


def test_what_comes_next_is_answered_by_what_was_learned(player: Service) -> None:
    answer = page(player, "u2", session(), item_id="a10", listened=0.95, limit=5)
    assert (answer["route"], answer["recommender"], sources(answer)) == ("listening", SERVED, [SERVED] * 5)
    assert answer["release"]
    assert {item["reason"]["code"] for item in answer["items"]} == {"next_in_session"}
    assert {item["reason"]["item_id"] for item in answer["items"]} == {"a10"}
    near = {track("a", 10 + steps) for steps in range(-8, 9)}
    assert set(ids(answer)) <= near, "a session goes around its ring, a step at a time"


def test_a_track_that_was_broken_off_hands_over_to_the_personal_recommender(player: Service) -> None:
    user, one = "u4", session()
    asked = page(player, user, one, item_id="a20", listened=0.9)
    leaders = [asked["recommender"]]
    for listened in (0.9, 0.5, 0.9, 0.7, 0.69, 0.9):
        asked = page(player, user, one, item_id=ids(asked)[0], listened=listened)
        leaders.append(asked["recommender"])
    is_learned = [leader == SERVED for leader in leaders]
    assert is_learned == [True, True, False, False, False, True, True], leaders
    assert len(set(leaders)) == 2


def test_an_artist_heard_three_times_in_a_row_falls_back(player: Service) -> None:
    same = [track("a", 40), track("a", 41), track("a", 42)]
    following = track("a", 43)
    assert {artist_of(each) for each in same} == {artist_of(following)}
    rested, tired = session(), session()
    once = page(player, "u6", rested, item_id=same[-1], listened=0.9, limit=20)
    for each in same[:-1]:
        page(player, "u6", tired, item_id=each, listened=0.9)
    often = page(player, "u6", tired, item_id=same[-1], listened=0.9, limit=20)
    assert following in ids(once)
    assert artist_of(ids(often)[0]) != artist_of(following)
    # It is behind all others that were foretold, or was given before.
    assert not {artist_of(each) for each in ids(often)[:5]} & {artist_of(following)}


def test_what_was_skipped_pushes_its_neighbours_down(player: Service) -> None:
    def first_rings(listened: float) -> Counter[str]:
        one = session()
        page(player, "u8", one, item_id=track("a", 30), listened=0.9)
        answer = page(player, "u8", one, item_id=track("b", 30), listened=listened, limit=10)
        return Counter(track_id[0] for track_id in ids(answer)[:5])

    assert first_rings(0.95)["b"] > first_rings(0.05)["b"]


def test_what_nobody_is_expected_to_hear_is_replaced_by_its_artists_most_popular(trained: dict[str, str]) -> None:
    """No track is expected to be heard out to its last second, so with 1 all are dropped."""
    with running(trained, SEGUE_NEXT_LEAST_LISTENING="1") as service:
        answer = page(service, "u10", session(), item_id="a10", listened=0.95, limit=12)
    assert sources(answer) == ["artist_popularity"] * 12
    assert {item["reason"]["code"] for item in answer["items"]} == {"popular"}
    assert ids(answer)[0].startswith("a"), "by an artist of the ring, whose tracks were foretold first"
    assert max(Counter(map(artist_of, ids(answer))).values()) <= 3
