"""Who was served by which variant, from when on: as data, as a line of a file, and as rows of Postgres."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime
from typing import Literal, NamedTuple

import orjson
from sqlalchemy import Connection

from app.catalog.users import erased_at

log = logging.getLogger(__name__)

Mark = Literal["forced", "bot", "explored", "fallback"]
"""forced: the definition names the user; bot: a crawler asked; explored: the order of the user's slates is drawn;
fallback: the variant's recommender could not lead."""

# What came first counts, whichever worker writes first; marks add up.
_INSERT = """
INSERT INTO exposures AS known (experiment, run, user_id, variant, exposed_at, route, surface, release, request_id,
                                worker, marks)
SELECT experiment, run, user_id, variant, exposed_at, route, surface, release, request_id, worker, marks
FROM json_populate_recordset(NULL::exposures, %(exposures)s)
ON CONFLICT (experiment, run, user_id, variant) DO UPDATE SET
    (exposed_at, route, surface, release, request_id, worker) = (
        SELECT first.exposed_at, first.route, first.surface, first.release, first.request_id, first.worker
        FROM (VALUES
            (known.exposed_at, known.route, known.surface, known.release, known.request_id, known.worker),
            (excluded.exposed_at, excluded.route, excluded.surface, excluded.release, excluded.request_id,
             excluded.worker)) AS first (exposed_at, route, surface, release, request_id, worker)
        ORDER BY exposed_at LIMIT 1),
    marks = ARRAY(SELECT DISTINCT unnest(known.marks || excluded.marks) ORDER BY 1)
WHERE excluded.exposed_at < known.exposed_at OR NOT excluded.marks <@ known.marks
"""
_LOST = """
INSERT INTO exposure_losses AS known (experiment, run, variant, day, lost)
SELECT experiment, run, variant, day, lost FROM json_populate_recordset(NULL::exposure_losses, %(losses)s)
ON CONFLICT (experiment, run, variant, day) DO UPDATE SET lost = known.lost + excluded.lost
"""


@dataclass(frozen=True, slots=True)
class Exposure:
    """One user's first answer by one variant.

    route, surface, release: of that answer; the route as it was before it
    worker:    host and process that answered
    is_fixing: every worker must know of it before the answer goes out, for the route may be another one by the next
    """

    experiment: str
    run: int
    user_id: str
    variant: str
    exposed_at: datetime
    route: str
    surface: str
    release: str | None
    request_id: str
    worker: str
    marks: tuple[Mark, ...] = ()
    is_fixing: bool = False

    @property
    def identity(self) -> tuple[str, int, str, str]:
        return self.experiment, self.run, self.user_id, self.variant


class Lost(NamedTuple):
    """Of what a number of exposures is lost. day: of UTC."""

    experiment: str
    run: int
    variant: str
    day: date


class Spooled(NamedTuple):
    """What lines of a file hold."""

    exposures: list[Exposure]
    losses: Counter[Lost]


def line_of(exposure: Exposure) -> bytes:
    return orjson.dumps(exposure)


def line_of_losses(losses: Counter[Lost]) -> bytes:
    return orjson.dumps({"losses": _loss_rows(losses)})


def read_lines(lines: Iterable[bytes]) -> Spooled:
    """What the lines say; one that this version can't read is passed over, and told of."""
    found = Spooled([], Counter())
    for line in lines:
        try:
            fields = orjson.loads(line)
            if "losses" in fields:
                found.losses.update({_lost(each): int(each["lost"]) for each in fields["losses"]})
            else:
                found.exposures.append(_exposure(fields))
        except (ValueError, TypeError, KeyError) as error:
            log.warning("a line of a spool file is no exposure: %s", error)
    return found


def store(db: Connection, exposures: Sequence[Exposure], losses: Counter[Lost]) -> list[Exposure]:
    """Writes what is not of users who were erased since, and answers with it.

    db: in a transaction that holds the erasures' lock, shared. What is stored already is harmless.
    """
    erased = erased_at(db, list({each.user_id for each in exposures})) if exposures else {}
    kept = [each for each in exposures if each.user_id not in erased or erased[each.user_id] < each.exposed_at]
    if kept:
        # Sorted, so that workers don't wait for each other's rows in a circle.
        rows = [asdict(each) for each in sorted(merged(kept), key=lambda each: each.identity)]
        db.exec_driver_sql(_INSERT, {"exposures": orjson.dumps(rows).decode()})
    if losses:
        rows = sorted(_loss_rows(losses), key=lambda row: str(row.values()))
        db.exec_driver_sql(_LOST, {"losses": orjson.dumps(rows).decode()})
    return kept


def merged(exposures: Iterable[Exposure]) -> list[Exposure]:
    """One for each user and variant: the first, with all marks. A statement may touch a row but once."""
    found: dict[tuple[str, int, str, str], Exposure] = {}
    for each in sorted(exposures, key=lambda each: each.exposed_at):
        first = found.setdefault(each.identity, each)
        if first is not each:
            found[each.identity] = replace(first, marks=tuple(sorted({*first.marks, *each.marks})))
    return list(found.values())


def _exposure(fields: dict[str, object]) -> Exposure:
    stamped = datetime.fromisoformat(str(fields["exposed_at"]))
    return Exposure(**{**fields, "exposed_at": stamped, "marks": tuple(fields["marks"])})  # type: ignore[arg-type]


def _lost(fields: dict[str, object]) -> Lost:
    run, day = int(str(fields["run"])), date.fromisoformat(str(fields["day"]))
    return Lost(str(fields["experiment"]), run, str(fields["variant"]), day)


def _loss_rows(losses: Counter[Lost]) -> list[dict[str, object]]:
    return [each._asdict() | {"lost": number} for each, number in losses.items()]
