"""What a worker remembers of listening sessions itself: for when Redis is away, and for when it comes back empty."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from app.catalog.users import hash_of
from app.feedback.sessions import ANSWERS_KEPT, LISTEN, LISTENS_KEPT, Claim, Given, Session
from app.feedback.user_view import UserView
from models.membership import is_among

SESSIONS_KEPT = 1_000
"""By each worker: the latest that it was called for; some 30 KB each at the most."""
UNDER_WAY_SECONDS = 30
"""So long before it is over an erasure may have begun, and a call that read the user before it may go on after it."""


@dataclass(slots=True)
class Remembered:
    """One session as this worker last saw it.

    server:   run id of the Redis that it was read from, "" where Redis was away
    is_ahead: it was called for while Redis was away, so Redis does not know all of it
    past:     what the user did before, read when this worker was first called for the session
    seen_at:  unix seconds
    heard_of_at: monotonic seconds, when this worker first was called for it
    """

    session: Session
    server: str
    seen_at: float
    is_ahead: bool = False
    past: UserView | None = None
    answers: OrderedDict[str, Given] = field(default_factory=OrderedDict)
    heard_of_at: float = field(default_factory=time.monotonic)


class SessionMemory:
    """The latest sessions of this worker, by user and session id. For one event loop."""

    def __init__(self, *, timeout_seconds: int) -> None:
        self._timeout = timeout_seconds
        self._sessions: OrderedDict[tuple[str, str], Remembered] = OrderedDict()

    def get(self, user_id: str, session_id: str, *, at: float) -> Remembered | None:
        """at: unix seconds; a session that nobody called for within its time-out is over."""
        found = self._sessions.get((user_id, session_id))
        if found is None or at - found.seen_at > self._timeout:
            return None
        return found

    def put(self, user_id: str, session_id: str, remembered: Remembered) -> None:
        self._sessions[user_id, session_id] = remembered
        self._sessions.move_to_end((user_id, session_id))
        if len(self._sessions) > SESSIONS_KEPT:
            self._sessions.popitem(last=False)

    def forget(self, user_id: str, session_id: str) -> None:
        self._sessions.pop((user_id, session_id), None)

    def forget_all_of(self, session_id: str) -> bool:
        """Whoever the session belongs to; whether there was one."""
        theirs = [key for key in self._sessions if key[1] == session_id]
        for key in theirs:
            del self._sessions[key]
        return bool(theirs)


class Missing(NamedTuple):
    """What Redis does not know of a session.

    listens: LISTEN[k], met: int32[j], roles: uint8[j]
    """

    listens: NDArray[np.void]
    met: NDArray[np.int32]
    roles: NDArray[np.uint8]

    def added_to(self, session: Session) -> Session:
        if not len(self.listens) and not len(self.met):
            return session
        fresh = ~is_among(self.met, session.met)
        whole = replace(
            session,
            met=np.concatenate([session.met, self.met[fresh]]),
            roles=np.concatenate([session.roles, self.roles[fresh]]),
            given=session.given + int(np.count_nonzero(self.roles[fresh])),
        )
        return whole.with_listen(self.listens)

    def before(self, claim: Claim) -> Claim:
        """The claim, which brings Redis what it does not know."""
        if not len(self.listens) and not len(self.met):
            return claim
        return replace(claim, listens=np.concatenate([self.listens, claim.listens]), met=self.met, roles=self.roles)


NOTHING_MISSING = Missing(np.empty(0, LISTEN), np.empty(0, np.int32), np.empty(0, np.uint8))


def missing_in(known: Session, *others: Session) -> Missing:
    """What the others have and `known` has not; a listen is told by its track and time."""
    if not others:
        return NOTHING_MISSING
    listens, met, roles = known.listens, known.met, known.roles
    for other in others:
        listens = np.concatenate([listens, _unheard(other.listens, listens)])
        unmet = ~is_among(other.met, met)
        met, roles = np.concatenate([met, other.met[unmet]]), np.concatenate([roles, other.roles[unmet]])
    more = listens[len(known.listens) :]
    return Missing(more[np.argsort(more["at"], kind="stable")], met[len(known.met) :], roles[len(known.roles) :])


def _unheard(listens: NDArray[np.void], known: NDArray[np.void]) -> NDArray[np.void]:
    # To the millisecond: Postgres keeps microseconds, a float of this century's seconds a little less.
    heard = set(_told(known))
    return listens[np.array([each not in heard for each in _told(listens)], np.bool_)]


def _told(listens: NDArray[np.void]) -> list[tuple[int, float]]:
    return [(row, round(at, 3)) for row, _, at in listens.tolist()]


def claimed_here(remembered: Remembered, claim: Claim, *, length: int) -> Given:
    """What the script on the server does, on what this worker remembers; it takes what there is."""
    if claim.answer_id and (known := remembered.answers.get(claim.answer_id)) is not None:
        return known._replace(is_repeated=True)
    session = remembered.session.with_listen(claim.listens)
    met = set(session.met.tolist())
    rows = claim.candidates["row"].tolist()
    places = [place for place, row in enumerate(rows) if place >= claim.again_from or row not in met]
    given = Given(session.given + 1, claim.about, claim.candidates[places[: claim.wanted]], is_repeated=False)
    remembered.session = session.with_given(given.tracks, length=length)
    remembered.is_ahead = True
    remember_answer(remembered, claim.answer_id, given)
    return given


def remember_answer(remembered: Remembered, answer_id: str, given: Given) -> None:
    if not answer_id:
        return
    remembered.answers[answer_id] = given
    if len(remembered.answers) > ANSWERS_KEPT:
        remembered.answers.popitem(last=False)


_LISTENS = """
SELECT item_row, coalesce(value, 1) AS fraction, extract(epoch FROM "timestamp")::float8 AS at,
    extract(epoch FROM received_at)::float8 AS received_at
FROM interactions JOIN users ON users.row = user_row
WHERE users.user_id = %(user_id)s AND session_id = %(session_id)s AND interactions.kind = 'listen'
ORDER BY received_at DESC, seq DESC LIMIT %(most)s
"""


def listens_of(db: Connection, user_id: str, session_id: str, *, now: float, timeout_seconds: int) -> Session:
    """The session as its listens in Postgres tell it: back from `now` (unix seconds) to the first silence beyond the
    time-out."""
    found = db.exec_driver_sql(_LISTENS, {"user_id": user_id, "session_id": session_id, "most": LISTENS_KEPT}).all()
    kept, until = [], now
    for row in found:
        if until - row.received_at > timeout_seconds:
            break
        kept.append((row.item_row, row.fraction, row.at))
        until = row.received_at
    return Session("").with_listen(np.array(kept[::-1], LISTEN))


# By the server's clock alone: this machine's may be minutes off.
_WAS_ERASED = """
SELECT EXISTS (
    SELECT FROM tombstones
    WHERE user_hash = %(hash)s AND erased_at > clock_timestamp() - make_interval(secs => %(within)s)
)
"""


def was_erased(db: Connection, user_id: str, *, within: float) -> bool:
    """Whether the user was erased in the last so many seconds, or little before."""
    parameters = {"hash": hash_of(user_id), "within": within + UNDER_WAY_SECONDS}
    erased: bool = db.exec_driver_sql(_WAS_ERASED, parameters).scalar_one()
    return erased
