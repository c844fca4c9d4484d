"""One answer of POST /recommend/next, step by step: session → record → candidates → claim → answer → impression."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from redis.exceptions import RedisError
from sqlalchemy import Connection, Engine

from app import telemetry
from app.errors import Invalid, NotFound, SegueError, Unavailable
from app.feedback.events import Event, Receipt
from app.feedback.ingest import Ingest
from app.feedback.session_memory import (
    NOTHING_MISSING,
    Missing,
    Remembered,
    SessionMemory,
    claimed_here,
    listens_of,
    missing_in,
    remember_answer,
    was_erased,
)
from app.feedback.sessions import LISTEN, Claim, Found, Given, Session, SessionStore, digest_of, new_life
from app.serving.breaker import Breaker
from app.serving.context import POSTGRES_SECONDS, ContextReader
from app.serving.impressions import ImpressionWriter
from app.serving.inventory import Inventory, InventoryHost
from app.serving.next_candidates import SLACK, Proposal, Situation, propose
from app.serving.next_page import NextAsk, NextPage, about, impression_of, page_of
from app.serving.popular_fills import PopularFills
from app.serving.request_ids import new_request_id
from app.serving.session_rules import SessionRules
from app.storage.database import POSTGRES_ERRORS

_answers = telemetry.labelled(telemetry.RECOMMENDATIONS)
_events = telemetry.labelled(telemetry.EVENTS)

T = TypeVar("T")

ATTEMPTS = 8
"""So often other calls of the session may be quicker, each time by SLACK tracks, before a call takes what there is."""


@dataclass(slots=True)
class _Turn:
    """The session as this call finds it.

    missing:     what Redis does not know of it yet
    may_be_told: whether Redis may be told: nobody knows of an erasure of the user since this worker heard of it
    is_away:     Redis could not be asked
    """

    remembered: Remembered
    missing: Missing
    is_new: bool
    is_away: bool
    may_be_told: bool = True
    _heard: tuple[Session, Session] | None = None

    @property
    def session(self) -> Session:
        return self.remembered.session

    def heard(self, listen: NDArray[np.void]) -> Session:
        """The session with the listen of this call; put together again only where another call has changed it."""
        if self._heard is None or self._heard[0] is not self.session:
            self._heard = self.session, self.session.with_listen(listen)
        return self._heard[1]


class NextTracks:
    """Conducts a player's call through its steps, and remembers the sessions of this worker."""

    def __init__(
        self,
        *,
        engine: Engine,
        store: SessionStore,
        contexts: ContextReader,
        inventories: InventoryHost,
        ingest: Ingest,
        impressions: ImpressionWriter,
        rules: SessionRules,
        redis_breaker: Breaker,
        postgres_breaker: Breaker,
        timeout_seconds: int,
        length: int,
    ) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._store = store
        self._contexts = contexts
        self._inventories = inventories
        self._ingest = ingest
        self._impressions = impressions
        self._rules = rules
        self._redis = redis_breaker
        self._postgres = postgres_breaker
        self._timeout = timeout_seconds
        self._length = length
        self._popular = PopularFills()
        self._memory = SessionMemory(timeout_seconds=timeout_seconds)

    async def next(self, ask: NextAsk) -> NextPage:
        """Raises NotFound for another user's session, Invalid for a track that must not be created."""
        found = await self._asked_redis(ask)
        if found is not None and found.session is None:
            raise NotFound(f"body.session_id: {ask.session_id!r} is not a session of user {ask.user_id!r}")
        turn = await self._turn(ask, found)
        inventory = await self._inventories.caught_up(None if found is None else found.versions)
        recording = self._recording(ask)
        row, inventory = await self._row_of(ask, recording, inventory)
        given, inventory, request_id, proposal = await self._given(ask, turn, row, inventory)
        recorded = await self._recorded(recording)
        if given.is_repeated and given.tracks["row"].max(initial=-1) >= len(inventory.catalog):
            # Another worker gave it, and knew of newer items.
            await asyncio.to_thread(self._inventories.refresh)
            inventory = self._inventories.current
        page = page_of(given, inventory, recorded=recorded, is_new=turn.is_new, is_away=turn.is_away)
        _answers(page.route, page.recommender).inc()
        if not given.is_repeated:
            self._impressions.record(impression_of(page, ask, request_id, proposal))
        return page

    async def end(self, session_id: str) -> None:
        """Raises NotFound where there is no such session, Unavailable where Redis, which would know, is away."""
        was_known = self._memory.forget_all_of(session_id)
        if self._redis.lets_through():
            since = time.monotonic()
            try:
                was_there = await self._store.end(session_id)
            except (RedisError, OSError) as error:
                self._redis.failed(error, since=since)
            else:
                self._redis.answered()
                if not was_there:
                    raise NotFound(f"path.session_id: there is no session {session_id!r}; it may have expired")
                return
        told = "is ended here, but Redis does not answer" if was_known else "can't be found: Redis does not answer"
        raise Unavailable(f"path.session_id: {session_id!r} {told}; retry")

    async def _asked_redis(self, ask: NextAsk) -> Found | None:
        if not self._redis.lets_through():
            return None
        since = time.monotonic()
        try:
            found = await self._store.find(ask.user_id, ask.session_id)
        except (RedisError, OSError) as error:
            self._redis.failed(error, since=since)
            return None
        self._redis.answered()
        return found

    async def _turn(self, ask: NextAsk, found: Found | None) -> _Turn:
        """What Redis, this worker and, where one of them has lost it, Postgres know of the session."""
        now = time.time()
        known = self._memory.get(ask.user_id, ask.session_id, at=now)
        if found is None:
            return await self._turn_without_redis(ask, known, now)
        session = found.session
        assert session is not None  # noqa: S101 - another user's was refused
        # Redis came back, with nothing or with what its disk had; or this worker was called while it was away.
        is_behind = known is not None and (known.is_ahead or known.server != found.server)
        if not found.is_known and (not is_behind or found.ended_at):
            known = None
        is_erased: bool | None = False
        if known is not None and is_behind:
            is_erased = await self._is_erased_since(ask.user_id, known.heard_of_at)
            known = None if is_erased else known
        lost = [known.session] if known is not None and is_behind else []
        if not found.is_known and not found.ended_at and ask.item_id is not None:
            lost.append(await self._listens(ask, now))
        missing = missing_in(session, *lost)
        if known is None:
            known = Remembered(session, found.server, now, past=(await self._contexts.read(ask.user_id)).view)
        may_be_told = is_erased is not None
        known.session, known.seen_at = missing.added_to(session), now
        known.server, known.is_ahead = found.server, known.is_ahead or not may_be_told
        self._memory.put(ask.user_id, ask.session_id, known)
        is_new = not found.is_known and known.session.is_empty
        return _Turn(known, missing, is_new=is_new, is_away=False, may_be_told=may_be_told)

    async def _turn_without_redis(self, ask: NextAsk, known: Remembered | None, now: float) -> _Turn:
        if known is None:
            heard = replace(await self._listens(ask, now), life=new_life())
            past = (await self._contexts.read(ask.user_id)).view
            # Another call may have been quicker.
            known = self._memory.get(ask.user_id, ask.session_id, at=now)
            known = known or Remembered(heard, "", now, is_ahead=True, past=past)
        known.seen_at = now
        self._memory.put(ask.user_id, ask.session_id, known)
        return _Turn(known, NOTHING_MISSING, is_new=known.session.is_empty, is_away=True)

    async def _listens(self, ask: NextAsk, now: float) -> Session:
        """What Postgres has of the session; an empty one where it can't tell in time."""

        def read(db: Connection) -> Session:
            return listens_of(db, ask.user_id, ask.session_id, now=now, timeout_seconds=self._timeout)

        return await self._asked_postgres(read) or Session("")

    async def _is_erased_since(self, user_id: str, heard_of_at: float) -> bool | None:
        """Whether the user was erased after this monotonic second; None where Postgres can't tell in time."""
        return await self._asked_postgres(lambda db: was_erased(db, user_id, within=time.monotonic() - heard_of_at))

    async def _asked_postgres(self, read: Callable[[Connection], T]) -> T | None:
        if not self._postgres.lets_through():
            return None

        def connected() -> T:
            with self._engine.connect() as db:
                return read(db)

        since = time.monotonic()
        reading = asyncio.create_task(asyncio.to_thread(connected))
        reading.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            async with asyncio.timeout(POSTGRES_SECONDS):
                told = await asyncio.shield(reading)
        except (*POSTGRES_ERRORS, TimeoutError) as error:
            self._postgres.failed(error, since=since, overdue=reading)
            return None
        self._postgres.answered()
        return told

    def _recording(self, ask: NextAsk) -> asyncio.Task[Receipt] | None:
        """The listen on its way to Postgres, while the next track is looked for."""
        if ask.item_id is None:
            return None
        event = Event(ask.event_id, ask.user_id, ask.item_id, "listen", ask.listened, ask.at, ask.session_id)
        # Nobody's past is answered from here: that every worker's next one has it need not be waited for.
        task = asyncio.create_task(self._ingest.submit([event], settled=False))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _recorded(self, recording: asyncio.Task[Receipt] | None) -> bool | None:
        """Whether it is durable. A Postgres that hangs is not waited for; the event may still be stored then."""
        if recording is None:
            return None
        since = time.monotonic()
        if not recording.done() and not self._postgres.lets_through():
            telemetry.LISTENS_UNRECORDED.inc()
            return False
        try:
            async with asyncio.timeout(POSTGRES_SECONDS):
                receipt = await asyncio.shield(recording)
        except (Unavailable, TimeoutError) as error:
            self._postgres.failed(error, since=since, overdue=recording)
            telemetry.LISTENS_UNRECORDED.inc()
            return False
        self._postgres.answered()
        _events("accepted").inc(receipt.accepted)
        _events("duplicate").inc(receipt.duplicates)
        return True

    async def _row_of(
        self, ask: NextAsk, recording: asyncio.Task[Receipt] | None, inventory: Inventory
    ) -> tuple[int | None, Inventory]:
        """The row of the track that was listened to; of one that nobody knew, once the event has created it."""
        if ask.item_id is None or recording is None:
            return None, inventory
        if (row := inventory.catalog.row_of.get(ask.item_id)) is not None:
            return row, inventory
        try:
            async with asyncio.timeout(POSTGRES_SECONDS):
                await asyncio.shield(recording)
                await asyncio.to_thread(self._inventories.refresh)
        except Invalid as error:
            raise Invalid.field(("body", "item_id"), error.errors[0].msg if error.errors else error.detail) from None
        except (SegueError, *POSTGRES_ERRORS, TimeoutError):
            return None, inventory
        inventory = self._inventories.current
        return inventory.catalog.row_of.get(ask.item_id), inventory

    async def _given(
        self, ask: NextAsk, turn: _Turn, row: int | None, inventory: Inventory
    ) -> tuple[Given, Inventory, str, Proposal]:
        """Tracks that no other call of this session was given."""
        now = time.time()
        at = now if ask.at is None else min(ask.at.timestamp(), now)
        listen = np.array([(row, ask.listened, at)] if row is not None else [], LISTEN)
        for attempt in range(1, ATTEMPTS + 1):
            request_id = new_request_id()
            situation = Situation(
                user_id=ask.user_id,
                session=turn.heard(listen),
                past=turn.remembered.past,
                inventory=inventory,
                at=now,
                may_repeat=ask.may_repeat,
                limit=ask.limit,
                seed=request_id,
                popular=self._popular,
            )
            proposal = propose(situation, self._rules, lookahead=ask.limit + SLACK)
            claim = Claim(
                candidates=proposal.tracks,
                wanted=ask.limit,
                again_from=proposal.again_from,
                is_final=proposal.is_complete or attempt == ATTEMPTS,
                about=about(request_id, proposal, turn.session, row, inventory.release.release_id),
                answer_id=digest_of(ask.event_id) if ask.is_retriable else "",
                listens=listen,
            )
            given = await self._claimed(ask, turn, claim)
            if given is not None:
                return given, inventory, request_id, proposal
            if (found := await self._asked_redis(ask)) is not None and found.session is not None:
                turn.remembered.session = turn.missing.added_to(found.session)
        raise Unavailable(f"body.session_id: too many calls of {ask.session_id!r} at the same time; retry")

    async def _claimed(self, ask: NextAsk, turn: _Turn, claim: Claim) -> Given | None:
        remembered = turn.remembered
        if not turn.is_away:
            since = time.monotonic()
            try:
                wanted = turn.missing.before(claim) if turn.may_be_told else claim
                given = await self._store.claim(ask.user_id, ask.session_id, remembered.session.life, wanted)
            except (RedisError, OSError) as error:
                self._redis.failed(error, since=since)
                turn.is_away = True
            else:
                self._redis.answered()
                if given is not None and not given.is_repeated:
                    remembered.session = turn.heard(claim.listens).with_given(given.tracks, length=self._length)
                    remembered.is_ahead = not turn.may_be_told
                    remember_answer(remembered, claim.answer_id, given)
                return given
        return claimed_here(remembered, claim, length=self._length)
