"""What a session may be given next, best first: which recommender is asked, and the recipe applied to its answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app import telemetry
from app.catalog.snapshot import UNKNOWN
from app.feedback.sessions import CANDIDATE, Session
from app.feedback.user_view import UserView
from app.feedback.weights import sign_of, weight_of
from app.serving.exploration import Draw, generator_of
from app.serving.inventory import Inventory
from app.serving.popular_fills import PopularFills
from app.serving.retrieve import history_of, retrieve
from app.serving.routing import CHAINS
from app.serving.session_rules import Ordered, Role, SessionRules, discounts, is_personal, ordered, split
from app.serving.slate import Shown, pins_of
from models.contracts import History, NextTrackRecommender, Positions, Query, Reason, SessionQuery
from models.membership import is_among
from models.next_recipes import SERVED
from models.retrieval.live_covisits import LiveCovisits

log = logging.getLogger(__name__)

Rows = NDArray[np.int32]

SLACK = 40
"""Tracks beyond those asked for: as many calls of one session at the same time find something of their own."""
SKIPS = 10
"""The latest skipped tracks, whose neighbours are held back."""
POLICY = "expected_listening"
"""Of a session's draw: the softmax of how long each candidate will probably be listened to."""
AGAIN = "repeat"
"""The source of a track that is given again, for nothing else is left."""
ARTIST = "artist_popularity"


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known when the next track is chosen.

    session: with the listen that the call reports
    past:    the user's, from before the session; None where it could not be read
    at:      unix seconds
    seed:    of the draw
    """

    user_id: str
    session: Session
    past: UserView | None
    inventory: Inventory
    at: float
    may_repeat: bool
    limit: int
    seed: str
    popular: PopularFills


@dataclass(frozen=True, slots=True)
class Proposal:
    """Tracks in the order in which they are to be given.

    tracks:      CANDIDATE[n]
    again_from:  from this place on, tracks may have been met in this session
    is_complete: there is nothing else to give
    names:       sources, by the number that a track has of them
    leader:      the recommender that was asked first and had an answer
    draw:        where the order was drawn
    """

    tracks: NDArray[np.void]
    again_from: int
    is_complete: bool
    names: tuple[str, ...]
    leader: str
    draw: Draw | None


@dataclass(frozen=True, slots=True)
class _Listed:
    """Tracks with who gave them. listening: expected fractions; 1 where nobody was asked for one."""

    rows: Rows
    listening: NDArray[np.float64]
    roles: NDArray[np.uint8]
    names: list[str]
    is_complete: bool = False

    def and_then(self, other: _Listed) -> _Listed:
        """With those of the other that are not there yet behind it."""
        fresh = ~is_among(other.rows, self.rows)
        return _Listed(
            np.concatenate([self.rows, other.rows[fresh]]),
            np.concatenate([self.listening, other.listening[fresh]]),
            np.concatenate([self.roles, other.roles[fresh]]),
            [*self.names, *(name for name, is_fresh in zip(other.names, fresh.tolist(), strict=True) if is_fresh)],
            other.is_complete,
        )


def next_recommender(inventory: Inventory) -> NextTrackRecommender:
    """The one that the release serves; where it learned none, the co-visits of the moment."""
    loaded = inventory.release.loaded
    learned = loaded.next_tracks.get(SERVED) if loaded is not None else None
    return LiveCovisits(inventory.live, len(inventory.release.row_of_position)) if learned is None else learned


def propose(situation: Situation, rules: SessionRules, *, lookahead: int) -> Proposal:
    """At least `lookahead` tracks that were not met in this session, where there are so many."""
    session = situation.session
    if not len(session.listens):
        listed = _personal(situation, Role.OPENING, lookahead)
    elif is_personal(session.role_of_last(), float(session.listens["fraction"][-1]), rules):
        listed = _personal(situation, Role.PERSONAL, lookahead)
    else:
        listed = _next(situation, rules, lookahead)
    return _arranged(listed, situation, rules)


def _next(situation: Situation, rules: SessionRules, lookahead: int) -> _Listed:
    """The next-track recommender's, less what is not expected to be listened to, filled up with what is popular."""
    inventory = situation.inventory
    recommender = next_recommender(inventory)
    query = session_query(situation, lookahead)
    try:
        found = recommender.next(query)
    except Exception:
        telemetry.RECOMMENDER_FAILURES.labels(recommender.name).inc()
        log.exception("recommender %s failed; what is popular is given", recommender.name)
        return _popular(situation, query.excluded, lookahead)
    rows = inventory.release.row_of_position[found.positions].astype(np.int32)
    kept, listening, dropped = split(rows, found.listening.astype(np.float64), rules)
    listed = _of(kept, listening, Role.NEXT, recommender.name)
    if len(dropped) and len(kept) < rules.candidates:
        missing = rules.candidates - len(kept)
        listed = listed.and_then(_of_artists(situation, dropped, query.excluded, rules, missing))
    if len(listed.rows) < max(rules.candidates, situation.limit + SLACK):
        listed = listed.and_then(_popular(situation, query.excluded, lookahead))
    return listed


def session_query(situation: Situation, limit: int) -> SessionQuery:
    """The whole session as the question to a next-track recommender."""
    session, release = situation.session, situation.inventory.release
    positions = release.positions(session.listens["row"])
    known = positions >= 0
    return SessionQuery(
        positions=positions[known],
        fractions=session.listens["fraction"][known],
        at=situation.at,
        limit=limit,
        history=None if situation.past is None else _before(history_of(situation.past, release), session, positions),
        excluded=_excluded(situation),
        eligible=situation.inventory.eligible(),
    )


def _before(past: History, session: Session, positions: Positions) -> History:
    """Without this session: which worker read the past, and when, must not matter. positions: of the session's."""
    if not len(session.listens) or not len(past):
        return past
    is_own = is_among(past.positions, positions)
    is_own |= past.timestamps >= session.listens["at"][0]
    return past.take(~is_own) if is_own.any() else past


def _excluded(situation: Situation) -> Positions:
    inventory, session = situation.inventory, situation.session
    hidden = inventory.rules.blocked(user_id=situation.user_id, categories=(), at=situation.at)
    if not situation.may_repeat:
        hidden = np.concatenate([hidden, session.met])
    positions = inventory.release.positions(hidden)
    return positions[positions >= 0]


def _personal(situation: Situation, role: Role, lookahead: int) -> _Listed:
    """What the user's whole past, with this session at its end, leads to; what is popular for who has none, and where
    nothing was learned that a past could be shown to."""
    inventory = situation.inventory
    history = _whole_history(situation) if inventory.release.loaded is not None else History.empty()
    if not len(history):
        return _popular(situation, _excluded(situation), lookahead, role if role == Role.OPENING else Role.POPULAR)
    query = Query(
        limit=lookahead,
        at=situation.at,
        history=history,
        eligible=inventory.eligible(),
        excluded=_excluded(situation),
        live=inventory.live,
    )
    found = retrieve(inventory.release, CHAINS["established"], query)
    own = [role if shown.source == found.leader or role == Role.OPENING else Role.POPULAR for shown in found.candidates]
    return _Listed(
        np.array([shown.row for shown in found.candidates], np.int32),
        np.ones(len(found.candidates)),
        np.array(own, np.uint8),
        [shown.source for shown in found.candidates],
        len(found.candidates) < lookahead,
    )


def _whole_history(situation: Situation) -> History:
    release, listens = situation.inventory.release, situation.session.listens
    past = History.empty() if situation.past is None else history_of(situation.past, release)
    # Of a track that was heard twice, the last time counts.
    _, last = np.unique(listens["row"][::-1], return_index=True)
    heard = listens[::-1][np.sort(last)][::-1]
    positions = release.positions(heard["row"])
    heard, positions = heard[positions >= 0], positions[positions >= 0]
    fractions = heard["fraction"].tolist()
    before = past.take(~is_among(past.positions, positions))
    return History(
        np.concatenate([before.positions, positions]).astype(np.int32),
        np.concatenate([before.weights, [weight_of("listen", each, {"listen": 1.0}) for each in fractions]]).astype(
            np.float32
        ),
        np.concatenate([before.signs, [sign_of("listen", each) for each in fractions]]).astype(np.int8),
        np.concatenate([before.timestamps, heard["at"]]),
    )


def _popular(situation: Situation, excluded: Positions, lookahead: int, role: Role = Role.POPULAR) -> _Listed:
    rows, sources = situation.popular.best(situation.inventory, excluded, situation.at, lookahead)
    return _Listed(rows, np.ones(len(rows)), np.full(len(rows), role, np.uint8), sources, len(rows) < lookahead)


def _of_artists(situation: Situation, dropped: Rows, excluded: Positions, rules: SessionRules, most: int) -> _Listed:
    """The most chosen tracks of the artists of those that were dropped, the best candidate's artist first."""
    inventory = situation.inventory
    allowed = inventory.eligible().copy()
    allowed[excluded] = False
    allowed[inventory.release.positions(dropped)] = False
    by_position = inventory.catalog.creators[inventory.release.row_of_position]
    totals = inventory.live.totals()
    artists = list(dict.fromkeys(code for code in inventory.catalog.creators[dropped].tolist() if code >= 0))
    chosen: list[int] = []
    for artist in artists:
        if len(chosen) >= most:
            break
        theirs = np.flatnonzero((by_position == artist) & allowed)
        best = theirs[np.argsort(-totals[theirs], kind="stable")][: rules.artist_tracks]
        chosen += inventory.release.row_of_position[best].tolist()
    rows = np.array(chosen[:most], np.int32)
    return _of(rows, np.ones(len(rows)), Role.ARTIST, ARTIST)


def _of(rows: Rows, listening: NDArray[np.float64], role: Role, name: str) -> _Listed:
    return _Listed(rows, listening, np.full(len(rows), role, np.uint8), [name] * len(rows))


def _arranged(listed: _Listed, situation: Situation, rules: SessionRules) -> Proposal:
    promotions = situation.inventory.rules.promoted(categories=(), at=situation.at)
    first = situation.session.given + 1
    pinned = [each for each in promotions if each.position is not None and each.position >= first]
    pins = pins_of(pinned, _allowed([each.item_row for each in pinned], situation)) if pinned else {}
    boosts = {each.item_row: each.boost for each in promotions if each.boost is not None}
    free = ~np.isin(listed.rows, list(pins.values())) if pins else slice(None)
    rows, roles = listed.rows[free], listed.roles[free]
    names = tuple(dict.fromkeys([*listed.names, "promotion", AGAIN]))
    code_of = {name: code for code, name in enumerate(names)}
    codes = np.array([code_of[name] for name in listed.names], np.uint8)[free]
    factors = _factors(rows, situation, rules)
    if boosts:
        factors *= np.array([boosts.get(row, 1.0) for row in rows.tolist()])
    # Where the personal recommender leads there is no expected listening: its order stands.
    is_drawn = rules.sampling == "softmax" and bool((roles == int(Role.NEXT)).any())
    generator = generator_of(situation.seed) if is_drawn else None
    placed = ordered(listed.listening[free], roles, factors, rules, generator)
    tracks = np.zeros(len(rows), CANDIDATE)
    tracks["row"], tracks["score"] = rows[placed.order], placed.scores
    tracks["role"], tracks["name"] = roles[placed.order], codes[placed.order]
    tracks["promoted"] = np.isin(tracks["row"], list(boosts)) if boosts else False
    tracks["propensity"] = placed.propensities
    draw = _draw(rows, codes, placed, names, rules) if is_drawn else None
    tracks = _with_pins(tracks, pins, first, code_of["promotion"])
    leader = listed.names[0] if listed.names else AGAIN
    again_from = 0 if situation.may_repeat else len(tracks)
    if listed.is_complete and not situation.may_repeat:
        tracks = np.concatenate([tracks, _again(situation, code_of[AGAIN])])
    return Proposal(tracks, again_from, listed.is_complete, names, leader, draw)


def _factors(rows: Rows, situation: Situation, rules: SessionRules) -> NDArray[np.float64]:
    listens, catalog = situation.session.listens, situation.inventory.catalog
    near = _nearness(rows, listens["row"][listens["fraction"] < rules.skip_below][-SKIPS:], situation)
    heard = listens["row"][::-1][:SKIPS].tolist()
    # Another worker may know a newer catalogue.
    artists = (int(catalog.creators[row]) if row < len(catalog) else UNKNOWN for row in heard)
    return discounts(catalog.creators[rows], near=near, heard=artists, rules=rules)


def _nearness(rows: Rows, skipped: Rows, situation: Situation) -> NDArray[np.float64]:
    """float64[n], 0–1: the largest share of a skipped track's latest listeners that met each of these too."""
    if not len(skipped):
        return np.zeros(len(rows))
    inventory = situation.inventory
    theirs = inventory.release.positions(skipped)
    near = inventory.live.nearness(theirs[theirs >= 0], inventory.release.positions(rows))
    return near.astype(np.float64)


def _allowed(rows: Sequence[int], situation: Situation) -> set[int]:
    inventory = situation.inventory
    allowed = inventory.eligible().copy()
    allowed[_excluded(situation)] = False
    positions = inventory.release.positions(np.array(rows, np.int32)).tolist()
    return {row for row, position in zip(rows, positions, strict=True) if position >= 0 and allowed[position]}


def _draw(rows: Rows, codes: NDArray[np.uint8], placed: Ordered, names: Sequence[str], rules: SessionRules) -> Draw:
    """What was drawn, for the impression; the candidates in the order that they had before."""
    k = len(placed.logits)
    shown = tuple(
        Shown(row, logit, names[code], False, Reason("fallback"))
        for row, logit, code in zip(rows[:k].tolist(), placed.logits.tolist(), codes[:k].tolist(), strict=True)
    )
    ranking = tuple(shown[place] for place in placed.order[:k].tolist())
    return Draw(rules.temperature, shown, tuple(placed.logits.tolist()), ranking, POLICY)


def _with_pins(tracks: NDArray[np.void], pins: dict[int, int], first: int, name: int) -> NDArray[np.void]:
    """A pin has its place among all that the session is given."""
    for position in sorted(pins):
        pin = np.zeros(1, CANDIDATE)
        pin["row"], pin["propensity"], pin["role"], pin["name"] = pins[position], np.nan, Role.PROMOTION, name
        pin["promoted"] = True
        place = min(position - first, len(tracks))
        tracks = np.concatenate([tracks[:place], pin, tracks[place:]])
    return tracks


def _again(situation: Situation, name: int) -> NDArray[np.void]:
    """What the session met, the longest ago first, as far as it may still be shown."""
    inventory, met = situation.inventory, situation.session.met
    _, last = np.unique(met[::-1], return_index=True)
    rows = met[::-1][np.sort(last)][::-1]
    blocked = inventory.rules.blocked(user_id=situation.user_id, categories=(), at=situation.at)
    positions = inventory.release.positions(rows)
    may = (positions >= 0) & ~is_among(rows, blocked)
    may[may] = inventory.eligible()[positions[may]]
    again = np.zeros(int(may.sum()), CANDIDATE)
    again["row"], again["propensity"], again["role"], again["name"] = rows[may], np.nan, Role.POPULAR, name
    again["score"] = -np.arange(len(again))
    return again
