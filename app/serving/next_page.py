"""What a player asks with, what it is answered, and what is kept of the answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson

from app.feedback.sessions import Given, Session
from app.serving.impressions import Impression
from app.serving.inventory import Inventory
from app.serving.next_candidates import Proposal
from app.serving.session_rules import Role
from app.serving.slate import Shown
from app.storage.kept_json import kept_json
from models.contracts import Reason, ReasonCode

SURFACE = "player"
REASONS: dict[int, ReasonCode] = {
    Role.NEXT: "next_in_session",
    Role.PERSONAL: "taste",
    Role.ARTIST: "popular",
    Role.POPULAR: "popular",
    Role.PROMOTION: "promoted",
    Role.OPENING: "taste",
}


@dataclass(frozen=True, slots=True)
class NextAsk:
    """What a player says and wants; API.md gives the meaning of each field.

    listened:     0–1, with item_id
    event_id:     of the listen
    is_retriable: whether the caller knows the event's id, so that the call may come again
    """

    user_id: str
    session_id: str
    item_id: str | None
    listened: float
    event_id: str
    is_retriable: bool
    at: datetime | None = None
    limit: int = 1
    may_repeat: bool = False


@dataclass(frozen=True, slots=True)
class NextPage:
    """recorded: whether the listen is durable, None where there was none; is_new: the session began with this call."""

    request_id: str
    route: str
    recommender: str
    release: str | None
    first_position: int
    items: tuple[Shown, ...]
    inventory: Inventory
    recorded: bool | None
    is_new: bool


def about(request_id: str, proposal: Proposal, session: Session, row: int | None, release: str | None) -> bytes:
    """What an answer needs beyond its tracks; kept with them, for a call that comes again."""
    listens = session.listens
    seed = row if row is not None else (int(listens["row"][-1]) if len(listens) else None)
    return kept_json([request_id, proposal.leader, proposal.names, release, seed])


def page_of(given: Given, inventory: Inventory, *, recorded: bool | None, is_new: bool, is_away: bool) -> NextPage:
    """What the session gave, as an answer. is_away: Redis could not be asked"""
    request_id, leader, names, release, seed = orjson.loads(given.about)
    is_blind = is_away or inventory.is_stale or inventory.release.release_id is None
    return NextPage(
        request_id=request_id,
        route="degraded" if is_blind else "listening",
        recommender=leader,
        release=release,
        first_position=given.first_position,
        items=tuple(_shown(track, names, seed) for track in given.tracks.tolist()),
        inventory=inventory,
        recorded=recorded,
        is_new=is_new,
    )


def _shown(track: tuple[int, float, float, int, int, bool, int], names: list[str], seed: int | None) -> Shown:
    row, score, propensity, role, name, promoted, _ = track
    reason = Reason(REASONS.get(role, "fallback"), seed if role == Role.NEXT else None)
    drawn = None if math.isnan(propensity) else propensity
    return Shown(row, score, names[name], promoted, reason, drawn)


def impression_of(page: NextPage, ask: NextAsk, request_id: str, proposal: Proposal) -> Impression:
    """What is written down of the answer."""
    return Impression(
        request_id=request_id,
        shown_at=datetime.now(UTC),
        user_id=ask.user_id,
        surface=SURFACE,
        route=page.route,
        recommender=page.recommender,
        release=page.release,
        variants={},
        first_position=page.first_position,
        items=page.items,
        slate_id=None if proposal.draw is None else request_id,
        draw=proposal.draw,
    )
