"""How far the import of each file has come: the `imports` table, moved on in the transaction of the rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, Row, Select, Update, func, select, update
from sqlalchemy.dialects.postgresql import insert

from app.storage.tables import imports


@dataclass(frozen=True, slots=True)
class Source:
    """A file by its format and name, and by its content."""

    name: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a file is imported.

    lines_done:    lines behind, counted from the file's start, blank ones and a header included
    counts:        rows by what became of them
    bad_by_reason: rows refused
    shift_seconds: added to every time of the file; None where that was not decided yet
    """

    lines_done: int
    counts: Counter[str]
    bad_by_reason: Counter[str]
    shift_seconds: float | None
    finished: bool


def open_entry(engine: Engine, source: Source) -> Standing:
    """Where the file stands, with an entry made for one that is new."""
    with engine.begin() as db:
        entry = insert(imports).values(source=source.name, fingerprint=source.fingerprint)
        db.execute(entry.on_conflict_do_nothing())
        return _standing(db.execute(_entry(source)).one())


def lock_entry(db: Connection, source: Source) -> Standing:
    """Where the file stands; two imports of one file take turns from here to their commit."""
    return _standing(db.execute(_entry(source).with_for_update()).one())


def advance(
    db: Connection,
    source: Source,
    before: Standing,
    *,
    lines_done: int,
    counts: Counter[str],
    bad_by_reason: Counter[str],
) -> Standing:
    """Moves the locked entry on; it takes effect with the rows of the caller's transaction."""
    after = Standing(
        lines_done,
        before.counts + counts,
        before.bad_by_reason + bad_by_reason,
        before.shift_seconds,
        before.finished,
    )
    db.execute(
        _change(source).values(
            rows_done=after.lines_done,
            rows_bad=after.bad_by_reason.total(),
            counts=dict(after.counts),
            bad_by_reason=dict(after.bad_by_reason),
            updated_at=func.now(),
        )
    )
    return after


def decide_shift(engine: Engine, source: Source, seconds: float) -> Standing:
    """Fixes what is added to the file's times, unless that was decided or rows came in before."""
    undecided = imports.c.shift_seconds.is_(None) & (imports.c.rows_done == 0)
    with engine.begin() as db:
        db.execute(_change(source).where(undecided).values(shift_seconds=seconds))
        return _standing(db.execute(_entry(source)).one())


def finish(engine: Engine, source: Source) -> None:
    with engine.begin() as db:
        unfinished = imports.c.finished_at.is_(None)
        db.execute(_change(source).where(unfinished).values(finished_at=func.now(), updated_at=func.now()))


def _entry(source: Source) -> Select[tuple[object, ...]]:
    return select(imports).where(imports.c.source == source.name, imports.c.fingerprint == source.fingerprint)


def _change(source: Source) -> Update:
    return update(imports).where(imports.c.source == source.name, imports.c.fingerprint == source.fingerprint)


def _standing(row: Row[tuple[object, ...]]) -> Standing:
    return Standing(
        row.rows_done,
        Counter(row.counts),
        Counter(row.bad_by_reason),
        row.shift_seconds,
        row.finished_at is not None,
    )
