"""What of a log is imported and trained on, and what is replayed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, text

from app.errors import Invalid, SegueError
from app.importers.report import ImportReport, Progress
from app.importers.staging import Event, store_events
from app.replay import ReplayedEvent
from models.evaluation.replay import Feed, Log, Ranks, baseline_ranks
from models.evaluation.replay_report import Cases


class Importer(NamedTuple):
    """A data set's module.

    read_events: its events in the order of the file, as an import stores them, without a database
    import_it:   all items, and the events before `until`
    """

    read_events: Callable[[Path], list[Event]]
    import_it: Callable[..., ImportReport]


@dataclass(frozen=True)
class Plan:
    """A log in time order and where it is cut.

    events:   the log up to the end of the replay, those of one moment in the order of the file
    log:      the same as positions of users and of `item_ids`
    item_ids: sorted
    cut:      how many events come before the replay
    """

    events: Sequence[Event]
    log: Log
    item_ids: Sequence[str]
    cut: int
    feed: Feed

    @classmethod
    def of(cls, events: Sequence[Event], *, share: float, most: int | None, lag: int) -> Plan:
        """Cuts where `share` of all first meetings is behind, and ends `most` events later.

        Raises Invalid where the log is too short for that.
        """
        # An importer stores an id once, the first time that the file has it.
        unique = {event.event_id: event for event in reversed(events)}
        ordered = sorted(reversed(unique.values()), key=lambda event: event.timestamp)
        log, item_ids = _log_of(ordered)
        try:
            cut = log.cut(share)
        except ValueError as error:
            raise Invalid(f"--share {share}: {error}") from error
        end = len(ordered) if most is None else min(len(ordered), cut + most)
        kept = Log(log.users[:end], log.items[:end], log.timestamps[:end])
        return cls(ordered[:end], kept, item_ids, cut, Feed.behind(lag))

    @property
    def counts(self) -> dict[str, int]:
        """Of events and cases, for a report."""
        return {
            "events imported and trained on": self.cut,
            "events replayed": len(self.events) - self.cut,
            "first meetings among them": len(self.cases.users),
        }

    @property
    def replayed(self) -> list[ReplayedEvent]:
        first = self.log.first_meetings[self.cut :].tolist()
        return [
            ReplayedEvent(*event, is_case)  # the fields of an Event, in their order
            for event, is_case in zip(self.events[self.cut :], first, strict=True)
        ]

    @property
    def cases(self) -> Cases:
        users = self.log.users[self.cut :][self.log.first_meetings[self.cut :]]
        return Cases(users, np.isin(users, self.log.users[: self.cut]))

    def import_earlier(self, engine: Engine, importer: Importer, path: Path, progress: Progress) -> ImportReport:
        """Stores all items and exactly the events before the cut. Raises SegueError where others are stored then."""
        until = self.events[self.cut].timestamp
        report = importer.import_it(engine, path, until=until, progress=progress)
        # Those of the very moment of the cut that come before it in the file.
        if left := [event for event in self.events[: self.cut] if event.timestamp >= until]:
            with engine.begin() as db:
                store_events(db, left)
        with engine.connect() as db:
            stored = db.execute(text("select count(*) from interactions")).scalar_one()
        if stored != self.cut:
            raise SegueError(f"{stored:,} events are stored before the cut, not {self.cut:,}: this replay would lie")
        return report

    def baselines(self, published: Mapping[str, float], watch: Callable[[int, int], None]) -> dict[str, Ranks]:
        """Ranks of each case by baseline, among the items of the log and those of the catalogue.

        published: of every item of the catalogue, in unix seconds; NaN where unknown
        """
        everything = sorted({*self.item_ids, *published})
        positions = np.searchsorted(np.array(everything), np.array(self.item_ids)).astype(np.int32)
        times: NDArray[np.float64] = np.array([published.get(item_id, np.nan) for item_id in everything])
        log = Log(self.log.users, positions[self.log.items], self.log.timestamps)
        return baseline_ranks(log, self.cut, feed=self.feed, published=times, watch=watch)


def catalogue(engine: Engine) -> dict[str, float]:
    """When each stored item was published, in unix seconds; NaN where unknown."""
    query = "select item_id, coalesce(extract(epoch from published_at), 'NaN')::float8 from items"
    with engine.connect() as db:
        return {item_id: published for item_id, published in db.execute(text(query))}


def _log_of(events: Sequence[Event]) -> tuple[Log, list[str]]:
    _, users = np.unique([event.user_id for event in events], return_inverse=True)
    item_ids, items = np.unique([event.item_id for event in events], return_inverse=True)
    timestamps = np.array([event.timestamp for event in events], np.float64)
    return Log(users.astype(np.int32), items.astype(np.int32), timestamps), item_ids.tolist()
