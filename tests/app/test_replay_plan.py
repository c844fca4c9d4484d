"""What of a log is imported and what is replayed, to the event."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine

from app.cli.replay_plan import Importer, Plan, catalogue
from app.errors import Invalid, SegueError
from app.importers.movietweetings import import_movietweetings, read_events
from app.importers.report import ImportReport, unwatched
from app.importers.staging import Event
from models.evaluation.replay import ALL_TIME, hits_at, ndcg_at
from models.evaluation.replay import unwatched as nobody
from tests.app.importers.datasets import rows_of, write_folder

DEMO = Path(__file__).resolve().parents[2] / "demo" / "movietweetings-100k"
IMPORTER = Importer(read_events, import_movietweetings)


def plan_of(*events: Event, share: float = 0.8, most: int | None = None, lag: int = 0) -> Plan:
    return Plan.of(events, share=share, most=most, lag=lag)


def event(number: int, user: int, item: int, time: float) -> Event:
    return Event(f"e{number}", f"u{user}", f"i{item}", "view", None, time)


def test_events_are_ordered_by_time_then_by_the_file() -> None:
    plan = plan_of(event(0, 1, 1, 9), event(1, 1, 2, 5), event(2, 2, 1, 9), event(3, 2, 2, 1), share=0.5)

    assert [each.event_id for each in plan.events] == ["e3", "e1", "e0", "e2"]
    assert [each.event_id for each in plan.replayed] == ["e0", "e2"]


def test_an_event_that_the_file_has_twice_is_one() -> None:
    twice = event(0, 1, 1, 1)
    plan = plan_of(twice, event(1, 2, 1, 2), twice, event(2, 2, 2, 3), share=0.7)

    assert [each.event_id for each in plan.events] == ["e0", "e1", "e2"]
    assert plan.cut == 2


def test_what_is_no_first_meeting_is_replayed_without_being_a_case() -> None:
    plan = plan_of(event(0, 1, 1, 1), event(1, 1, 2, 2), event(2, 1, 1, 3), event(3, 9, 1, 4), share=0.7)

    assert [each.is_case for each in plan.replayed] == [False, True]
    assert len(plan.cases.users) == 1
    assert plan.cases.warm.tolist() == [False]


def test_a_replay_may_end_early() -> None:
    events = [event(number, number, 0, number) for number in range(10)]

    assert len(plan_of(*events, most=1).replayed) == 1
    assert len(plan_of(*events, most=99).replayed) == 2


def test_a_share_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(Invalid, match="--share"):
        plan_of(event(0, 1, 1, 1), event(1, 1, 2, 2))


@cache
def movietweetings() -> Plan:
    return Plan.of(read_events(DEMO), share=0.8, most=None, lag=0)


def test_movietweetings_is_cut_into_80_000_and_20_000() -> None:
    assert list(movietweetings().counts.values()) == [80_000, 20_000, 20_000]


def test_the_baselines_on_movietweetings_have_the_figures_that_other_programs_found() -> None:
    ranks = movietweetings().baselines({}, nobody)

    assert float(ndcg_at(10, ranks["decayed popularity, 1 d"]).mean()) == pytest.approx(0.1064, abs=5e-5)
    assert float(ndcg_at(10, ranks[ALL_TIME]).mean()) == pytest.approx(0.0403, abs=5e-5)
    assert float(hits_at(10, ranks["decayed popularity, 1 d"]).mean()) == pytest.approx(0.1925, abs=5e-5)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Ten ratings; the four from the seventh on share a moment, the cut being after the eighth."""
    times = [*range(100, 106), 200, 200, 200, 200]
    ratings = b"".join(b"%d::%07d::7::%d\n" % (n, n % 3, time) for n, time in enumerate(times))
    movies = b"".join(b"%07d::Film (201%d)::Drama\n" % (n, n) for n in range(4))
    return write_folder(tmp_path / "log", {"ratings.dat": ratings, "movies.dat": movies})


def test_exactly_the_events_before_the_cut_are_stored_and_every_item(engine: Engine, log: Path) -> None:
    plan = Plan.of(read_events(log), share=0.8, most=None, lag=0)
    plan.import_earlier(engine, IMPORTER, log, unwatched)

    stored = {row[0] for row in rows_of(engine, "select event_id from interactions")}
    assert stored == {each.event_id for each in plan.events[:8]}
    published = catalogue(engine)
    assert sorted(published) == [f"{n:07}" for n in range(4)]
    assert published["0000003"] == np.datetime64("2013-01-01", "s").astype(float)


def test_a_database_that_then_holds_other_events_is_no_place_for_a_replay(engine: Engine, log: Path) -> None:
    def import_all(engine: Engine, path: Path, *, until: float, progress: object) -> ImportReport:
        return import_movietweetings(engine, path)

    plan = Plan.of(read_events(log), share=0.8, most=None, lag=0)
    with pytest.raises(SegueError, match="10 events are stored before the cut, not 8"):
        plan.import_earlier(engine, Importer(read_events, import_all), log, unwatched)


def test_baselines_rank_among_the_whole_catalogue() -> None:
    plan = plan_of(event(0, 1, 2, 1), event(1, 2, 2, 2), event(2, 3, 1, 3), share=0.7)

    # Item i1 was never met: behind i2, and behind what stands before it in the catalogue.
    assert plan.baselines({}, nobody)[ALL_TIME].tolist() == [2]
    assert plan.baselines({"i0": float("nan"), "i00": 5.0, "z": 1.0}, nobody)[ALL_TIME].tolist() == [4]
