"""What each rule of a listening session is worth: made-up listeners are played to over HTTP, policy by policy.

    python -m benchmarks.player_simulator [--quick] [--listeners 300] [--sessions 2] [--others 1300] [--history 9]
                                          [--seed 0] [--policies NAME …] [--markdown FILE]

The listeners (`_listeners`) have moods, loved and hated tags, and leave when they are bored; they share nothing with
the models. They and `--others` have a past: sessions in which eight tracks of ten are what the listener looked for, for
most of what is streamed is chosen by hand, one is from the chart of what has been heard most, and one is drawn from the
whole catalogue; one listener in five is new and has none. With the usual numbers these are some 230,000 listens, 180 to
a track, for with fewer it would be the data that is measured and not who learns from them. That past is imported with
`segue import listens`, and `segue train` learns from it. Then each policy gets a copy of the same database, an empty
cache and a `segue serve` with its settings, and plays the same sessions of all listeners; half of the sessions begin
with a track of the listener's own. Every listen is posted to `POST /recommend/next`, and the answer is what is played
next.

The listeners have the same luck whoever plays, so policies are compared listener by listener. Intervals are 95 %, by
drawing whole listeners anew. A draw by softmax takes its luck from the request, and differs from run to run.

Without torch (the extra `train`) there is no self-attention; how long a track is heard is foretold all the same.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import uuid4

import orjson
import redis
import uvloop
from sqlalchemy import create_engine, make_url, text

from app.settings import Settings
from app.storage.database import database_id, open_engine
from app.storage.embedded import embedded_servers
from app.storage.release_files import current_id
from app.training import releases
from app.training.extract import extract
from app.training.extract_sessions import extract_sessions
from benchmarks import serving
from benchmarks._http_load import Connection, ask, connected, get, post
from benchmarks._listeners import Listener, Sitting, Track, World
from benchmarks._listening_report import Played, report
from models import artifacts
from models.next_blend import NextBlend
from models.next_recipes import SERVED, fit_next_recipes
from models.training import FittedRelease

NEWCOMERS = 0.2
LOOKED_FOR, FROM_CHART, CHART_EVERY = 0.8, 0.1, 500
"""Shares of what was heard before; listens after which the chart is made anew."""
DAYS = 30
AT_ONCE = 16
LEFT, SKIPPED = 0.8, 0.3
GREEDY, SOFTMAX = "greedy", "softmax"


@dataclass(frozen=True, slots=True)
class Policy:
    """settings: of the service, by variable; release: what it has learned; against: whom it is compared with."""

    name: str
    settings: Mapping[str, str] = field(default_factory=dict)
    release: str = "everything"
    against: str = GREEDY


def _drawn(name: str, **settings: str) -> Policy:
    return Policy(f"softmax, {name}", {"SEGUE_NEXT_SAMPLING": "softmax"} | settings, against=SOFTMAX)


OFF = {
    "no threshold": {"SEGUE_NEXT_LEAST_LISTENING": "0"},
    "no artist fill": {"SEGUE_NEXT_ARTIST_TRACKS": "0"},
    "no switch": {"SEGUE_NEXT_SWITCH_BELOW": "0"},
    "no skip push": {"SEGUE_NEXT_SKIP_PUSH": "0"},
    "no artist fatigue": {"SEGUE_NEXT_ARTIST_FATIGUE": "1"},
}
NO_RULES = {key: value for rule in OFF.values() for key, value in rule.items()}
POLICIES = (
    Policy(GREEDY),
    Policy(SOFTMAX, {"SEGUE_NEXT_SAMPLING": "softmax"}),
    *(Policy(name, settings) for name, settings in OFF.items()),
    Policy("no rules at all", NO_RULES),
    _drawn("no threshold", **OFF["no threshold"]),
    _drawn("no artist fill", **OFF["no artist fill"]),
    Policy("without self-attention", release="no attention"),
    Policy("co-visits, nothing learned", release="nothing"),
)
POPULAR, RANDOM = "most popular (floor)", "random (floor)"
MIND_READER = "mind-reader over 100 drawn"
"""Plays what pleases most of a hundred tracks drawn at random, one at a time. No bound: among all tracks, or by looking
ahead, more could be gained."""
QUICK = (GREEDY, SOFTMAX, "no switch", "no rules at all", "co-visits, nothing learned")


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--quick", action="store_true", help="five policies, fewer listeners: two minutes")
    options.add_argument("--listeners", type=int)
    options.add_argument("--sessions", type=int, default=2, help="of each listener under each policy")
    options.add_argument("--others", type=int, help="listeners who only have a past")
    options.add_argument("--history", type=int, default=9, help="sessions that each has had before")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--policies", nargs="*", help="only these")
    options.add_argument("--markdown", type=Path, help="also write the table here, after each policy")
    asked = options.parse_args()
    wanted = asked.policies or (QUICK if asked.quick else [policy.name for policy in POLICIES])
    if unknown := set(wanted) - {policy.name for policy in POLICIES}:
        options.error(f"no such policy: {', '.join(sorted(unknown))}")
    listeners = asked.listeners or (40 if asked.quick else 300)
    others = asked.others if asked.others is not None else (200 if asked.quick else 1_300)
    past, world = pasts(World.made(listeners + others, seed=asked.seed), listeners)
    began = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="segue-benchmark-")))
        folder.chmod(0o755)
        servers = stack.enter_context(embedded_servers(folder))
        base = {
            **os.environ, "DATABASE_URL": servers.database_url, "REDIS_URL": servers.redis_url,
            "SEGUE_DATA_DIR": str(folder), "SEGUE_ADMIN_KEY": serving.KEY, "SEGUE_LOG_LEVEL": "warning",
            "SEGUE_EXPLORE_SHARE": "0", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        listens = write_history(past, folder / "listens.csv", asked.history)
        known = prepare(base, folder / "listens.csv")
        print(f"{len(world.listeners)} listeners, {len(world.tracks):,} tracks, {listens:,} listens before; {known}")
        print(f"{time.monotonic() - began:4.0f} s  prepared", flush=True)
        results: dict[str, list[Played]] = {}
        with copied(base) as environment:
            results |= floors(environment, world, asked.sessions)
        for policy in [each for each in POLICIES if each.name in wanted]:
            with copied(base) as environment:
                results[policy.name] = played_by(environment, policy, world, asked.sessions)
            print(f"{time.monotonic() - began:4.0f} s  {policy.name}", flush=True)
            table = "\n".join(report(results, {each.name: each.against for each in POLICIES}, seed=asked.seed))
            if asked.markdown:
                asked.markdown.write_text(table + "\n", "utf-8")
    print(table)


def pasts(everybody: World, played: int) -> tuple[World, World]:
    """Those who have a past, and those who are played to, of whom a fifth are not among the former."""
    listeners = everybody.listeners
    return replace(everybody, listeners=listeners[round(NEWCOMERS * played) :]), replace(
        everybody, listeners=listeners[:played]
    )


def write_history(world: World, path: Path, sessions: int) -> int:
    """Session after session of everybody; how many listens that is."""
    heard: Counter[str] = Counter()
    chart: list[str] = []
    of_id = {track.track_id: track for track in world.tracks}
    rows: list[tuple[str, ...]] = []
    rng = random.Random(f"history {world.seed}")
    times = sorted(
        (rng.uniform(-DAYS * 86_400, -3_600), nth, listener.user_id)
        for listener in world.listeners
        for nth in range(sessions)
    )
    listeners, now = {listener.user_id: listener for listener in world.listeners}, time.time()
    for since, nth, user in times:
        sitting, at = Sitting(world, listeners[user], f"past {nth}"), now + since
        while not sitting.has_left:
            if len(rows) % CHART_EVERY == 0:
                chart = [track_id for track_id, _ in heard.most_common(100)]
            track = _of_old_player(sitting, chart, of_id, rng)
            fraction = sitting.hear(track)
            at += fraction * track.seconds + 1
            heard[track.track_id] += fraction >= LEFT
            rows.append((user, f"{user}-past-{nth}", track.track_id, track.artist, f"{at:.3f}", f"{fraction:.4f}"))
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("user", "session", "track", "artist", "time", "fraction"))
        table.writerows(rows)
    return len(rows)


def _of_old_player(sitting: Sitting, chart: Sequence[str], of_id: Mapping[str, Track], rng: random.Random) -> Track:
    """Looked for, popular or random."""
    way = rng.random()
    if way < LOOKED_FOR:
        return sitting.own_choice()
    if way < LOOKED_FOR + FROM_CHART and chart:
        return of_id[rng.choice(chart)]
    return rng.choice(sitting.world.tracks)


def prepare(environment: dict[str, str], listens: Path) -> str:
    """Imports, trains, and makes the releases that lack something; says what was learned."""
    for command in (["migrate"], ["import", "listens", str(listens)], ["train", "--no-evaluate"]):
        subprocess.run([sys.executable, "-m", "app.cli", *command], env=environment, check=True, capture_output=True)
    settings = settings_of(environment)
    loaded = artifacts.load(settings.releases_dir / str(current_id(settings.releases_dir)))
    save_lesser_releases(settings, loaded)
    blend = loaded.next_tracks[SERVED]
    if not isinstance(blend, NextBlend):
        raise TypeError(f"{SERVED} is a {type(blend).__name__}")
    if blend.listening is None:
        return "NOTHING FORETELLS LISTENING: the rules on it do nothing"
    return f"fitted: {json.dumps(dict(blend.chosen))}"


def settings_of(environment: Mapping[str, str]) -> Settings:
    return Settings.model_validate(
        {"DATABASE_URL": environment["DATABASE_URL"], "REDIS_URL": environment["REDIS_URL"],
         "data_dir": Path(environment["SEGUE_DATA_DIR"]), "log_level": "warning"}
    )  # fmt: skip


def save_lesser_releases(settings: Settings, loaded: artifacts.LoadedRelease) -> None:
    """The same release without self-attention, and without all that learned from sessions."""
    engine = open_engine(str(settings.database_url), statement_timeout_seconds=600)
    extracted = extract(engine, settings.feedback_weights)
    sessions = extract_sessions(engine, extracted)
    if sessions is None:
        raise RuntimeError("too few sessions to learn from; ask for more listeners or a longer history")
    whole = FittedRelease(loaded.encoder, loaded.content, loaded.recommenders, loaded.manifest["seed"])
    lesser = {"no attention": replace(whole, next_tracks=fit_next_recipes(sessions)), "nothing": whole}
    with engine.connect() as db:
        owner = str(database_id(db))
    for name, fitted in lesser.items():
        artifacts.save(
            settings.releases_dir / release_name(name), fitted, database_id=owner, data_window=(0.0, time.time()),
            row_of_position=extracted.row_of_position,
        )  # fmt: skip
        releases.register(engine, release_name(name), {"metrics": {}})
    trained = current_id(settings.releases_dir)
    (settings.releases_dir / release_name("everything")).symlink_to(str(trained))
    releases.register(engine, release_name("everything"), {"metrics": {}})
    engine.dispose()


def release_name(learned: str) -> str:
    return learned.replace(" ", "-")


@contextmanager
def copied(base: dict[str, str]) -> Iterator[dict[str, str]]:
    """The environment of a service over a copy of the prepared database and an empty cache."""
    name, origin = f"copy_{uuid4().hex[:12]}", make_url(base["DATABASE_URL"])
    admin = create_engine(
        origin.set(drivername="postgresql+psycopg2", database="template1"), isolation_level="AUTOCOMMIT"
    )
    with redis.Redis.from_url(base["REDIS_URL"]) as cache:
        cache.flushdb()
    with admin.connect() as db:
        db.execute(text(f'CREATE DATABASE "{name}" TEMPLATE "{origin.database}"'))
    try:
        yield base | {"DATABASE_URL": origin.set(database=name).render_as_string(hide_password=False)}
    finally:
        with admin.connect() as db:
            db.execute(text(f'DROP DATABASE "{name}" WITH (FORCE)'))
        admin.dispose()


def played_by(environment: dict[str, str], policy: Policy, world: World, sessions: int) -> list[Played]:
    settings = settings_of(environment)
    engine = open_engine(environment["DATABASE_URL"])
    releases.activate(engine, settings, release_name(policy.release), actor="simulator")
    engine.dispose()
    with serving.serving(environment | dict(policy.settings)) as (url, _):
        return uvloop.run(everybody(url, world, sessions, by_service))


Player = Callable[[Connection, Sitting, Mapping[str, Track]], Awaitable[Played]]


async def everybody(url: str, world: World, sessions: int, player: Player) -> list[Played]:
    """Sixteen listeners at a time, each with all sessions in turn."""
    tracks = {track.track_id: track for track in world.tracks}
    found: dict[str, Played] = {}
    waiting = iter(world.listeners)

    async def one_at_a_time() -> None:
        connection = await connected(url)
        for listener in waiting:
            found[listener.user_id] = await of_listener(connection, listener)
        connection.close()

    async def of_listener(connection: Connection, listener: Listener) -> Played:
        each = [await player(connection, Sitting(world, listener, f"now {nth}"), tracks) for nth in range(sessions)]
        return Played(
            sessions,
            sum(one.seconds for one in each),
            sum(one.tracks for one in each),
            sum(one.skipped for one in each),
        )

    await asyncio.gather(*(one_at_a_time() for _ in range(AT_ONCE)))
    return [found[listener.user_id] for listener in world.listeners]


async def by_service(connection: Connection, sitting: Sitting, tracks: Mapping[str, Track]) -> Played:
    """Every answer is played, and every listen reported."""
    own = begin(sitting)
    session = {"user_id": sitting.listener.user_id, "session_id": f"{sitting.listener.user_id}-{sitting.name}"}
    while not sitting.has_left:
        said = {"item_id": sitting.heard[-1].track_id, "listened": sitting.fractions[-1]} if sitting.heard else {}
        body = orjson.loads(
            await connection.answer(post("/recommend/next", orjson.dumps(session | said), key=serving.KEY))
        )
        if body["route"] != "listening" or body["recorded"] is False:
            raise RuntimeError(f"not what is to be measured: {body}")
        sitting.hear(tracks[body["items"][0]["item_id"]])
    return counted(sitting, own)


def begin(sitting: Sitting) -> int:
    """Half of the sessions start with a track that the listener looked for; how many those are."""
    chance = random.Random(f"{sitting.world.seed} {sitting.listener.user_id} {sitting.name} begin")
    if chance.random() < 0.5:
        sitting.hear(sitting.own_choice())
    return len(sitting.heard)


def counted(sitting: Sitting, own: int) -> Played:
    given = list(zip(sitting.heard[own:], sitting.fractions[own:], strict=True))
    return Played(
        1,
        sum(track.seconds * fraction for track, fraction in given),
        len(given),
        sum(fraction < SKIPPED for _, fraction in given),
    )


def floors(environment: dict[str, str], world: World, sessions: int) -> dict[str, list[Played]]:
    """What a player without any model comes to: the service's most popular tracks from the top, random ones, and the
    best of a hundred random ones, by somebody who knows all minds."""
    with serving.serving(environment) as (url, _):
        page = orjson.loads(ask(url, [get("/recommend/popular", key=serving.KEY, window="all", limit="100")])[0])
        popular = [item["item_id"] for item in page["items"]]

        async def by_popularity(_: Connection, sitting: Sitting, tracks: Mapping[str, Track]) -> Played:
            return until_left(sitting, [tracks[track_id] for track_id in popular])

        async def by_chance(_: Connection, sitting: Sitting, __: Mapping[str, Track]) -> Played:
            drawn = random.Random(f"{world.seed} {sitting.listener.user_id} {sitting.name} floor")
            return until_left(sitting, drawn.sample(world.tracks, 100))

        async def by_mind_reading(_: Connection, sitting: Sitting, __: Mapping[str, Track]) -> Played:
            own, luck = begin(sitting), random.Random(f"{world.seed} {sitting.listener.user_id} {sitting.name} best")
            while not sitting.has_left:
                sitting.hear(max(luck.sample(world.tracks, 100), key=sitting.pleasure))
            return counted(sitting, own)

        return {
            MIND_READER: uvloop.run(everybody(url, world, sessions, by_mind_reading)),
            POPULAR: uvloop.run(everybody(url, world, sessions, by_popularity)),
            RANDOM: uvloop.run(everybody(url, world, sessions, by_chance)),
        }


def until_left(sitting: Sitting, tracks: Sequence[Track]) -> Played:
    own = begin(sitting)
    for track in tracks:
        if sitting.has_left:
            break
        if track not in sitting.heard:
            sitting.hear(track)
    return counted(sitting, own)


if __name__ == "__main__":
    main()
