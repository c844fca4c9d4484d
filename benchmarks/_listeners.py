"""Made-up listeners: moods that lead to one another, tastes as sets of tags, and the patience of people who are bored.

Nothing here has coordinates. What a listener thinks of a track is read off a short table by how many of its tags the
mood of the moment wants and the listener loves; a second tag adds less than the first, a third nothing. What was
heard lately tires. All chance of a listener comes from the seed, the listener, the session and the step alone, so
whoever is played to by two players meets both with the same luck.

What a listener looks for is the best of twenty tracks that come to mind: half of them are by the ten artists that
this one follows, the others come by fame. Plays of music
follow a power law, so fame does, with an exponent a little below 1; it is tied to craft, but loosely: what is well made
seldom fares badly and what is badly made seldom well, and between them luck decides (Salganik, Dodds and Watts,
"Experimental study of inequality and unpredictability in an artificial cultural market", 2006).

How much of what was heard before is a listener's own choice was set by real data, before any policy was played. Of next
items co-listens find 1.4 times as many in MovieTweetings as popularity does, and 12 times as many in nowplaying
(docs/next-track.md); with six tracks in mind, all by fame, and half of the past by choice, they found 0.7 times as many
here, so the past said less of anybody's taste than any real one.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

MOODS, TAGS, ARTISTS, TRACKS_EACH = 12, 36, 240, (2, 9)
LONGEST = 60
COME_TO_MIND, FOLLOWED, MET = 20, 10, 60
"""Tracks that one chooses from; artists that one follows, those that suit best of as many tracks met by fame."""
FAME_EXPONENT, FAME_BY_LUCK = 0.8, 0.15
"""Fame is 1 / place ** exponent, the places by craft (0.7–1) and as much luck (its deviation)."""
BY_MOOD = (0.05, 0.50, 0.70)
"""Chance that a track is heard out, by how many of its tags the mood wants; beyond the last it stays."""
BY_LOVE = (0.0, 0.20, 0.25)
SPOILS, HATES = 0.6, 0.35
HEARD_TODAY, TAG_WORN_OUT = 0.3, 0.75
ARTIST_AGAIN = (1.0, 0.85, 0.6, 0.35)
"""By how many of the last eight tracks were the artist's."""
DRIFT, CALLED_AWAY = 0.1, 0.03
"""Per track: the mood moves on; the listener has to go, however good the music."""


@dataclass(frozen=True, slots=True)
class Track:
    """craft: how well it is made, 0.7–1; it multiplies everybody's pleasure."""

    track_id: str
    artist: str
    tags: frozenset[int]
    seconds: int
    craft: float


@dataclass(frozen=True, slots=True)
class Mood:
    """leads_to: the moods that may follow it."""

    wants: frozenset[int]
    spoilt_by: frozenset[int]
    leads_to: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Listener:
    """starts_in: the moods in which this one begins to listen."""

    user_id: str
    loves: frozenset[int]
    hates: frozenset[int]
    starts_in: tuple[int, ...]
    patience: float


@dataclass(frozen=True)
class World:
    """Everything there is to hear, and who hears it."""

    seed: int
    tracks: tuple[Track, ...]
    moods: tuple[Mood, ...]
    listeners: tuple[Listener, ...]

    @classmethod
    def made(cls, listeners: int, *, seed: int) -> World:
        rng = random.Random(f"world {seed}")
        return cls(
            seed,
            tuple(track for nth in range(ARTISTS) for track in _tracks_of(nth, rng)),
            tuple(_mood(nth, rng) for nth in range(MOODS)),
            tuple(_listener(nth, rng) for nth in range(listeners)),
        )

    @cached_property
    def fame(self) -> list[float]:
        """By track, added up, as `random.choices` takes it."""
        rng = random.Random(f"fame {self.seed}")
        known_for = [track.craft + rng.gauss(0, FAME_BY_LUCK) for track in self.tracks]
        places = sorted(range(len(self.tracks)), key=lambda nth: -known_for[nth])
        fame = dict(zip(places, (1 / place**FAME_EXPONENT for place in range(1, len(places) + 1)), strict=True))
        return list(accumulate(fame[nth] for nth in range(len(self.tracks))))

    @cached_property
    def follows(self) -> dict[str, list[Track]]:
        """The tracks of the artists that each listener follows."""
        by_artist: dict[str, list[Track]] = {}
        for track in self.tracks:
            by_artist.setdefault(track.artist, []).append(track)
        return {
            listener.user_id: [track for artist in self._followed_by(listener) for track in by_artist[artist]]
            for listener in self.listeners
        }

    def _followed_by(self, listener: Listener) -> list[str]:
        rng = random.Random(f"follows {self.seed} {listener.user_id}")
        met = rng.choices(self.tracks, cum_weights=self.fame, k=MET)
        met.sort(key=lambda track: len(track.tags & listener.hates) - len(track.tags & listener.loves))
        return list(dict.fromkeys(track.artist for track in met))[:FOLLOWED]


def _tracks_of(artist: int, rng: random.Random) -> list[Track]:
    """An artist has a few tags, and most of what a track has is among them."""
    own, skill = rng.sample(range(TAGS), 5), rng.uniform(0.7, 1.0)
    tracks = []
    for nth in range(rng.randint(*TRACKS_EACH)):
        tags = frozenset(rng.choice(own) if rng.random() < 0.8 else rng.randrange(TAGS) for _ in range(3))
        craft = (skill + rng.uniform(0.7, 1.0)) / 2
        tracks.append(Track(f"t{artist}-{nth}", f"a{artist}", tags, rng.randint(150, 300), craft))
    return tracks


def _mood(nth: int, rng: random.Random) -> Mood:
    wants = frozenset(rng.sample(range(TAGS), 6))
    spoilt_by = frozenset(rng.sample(sorted(set(range(TAGS)) - wants), 5))
    return Mood(wants, spoilt_by, tuple(rng.sample([each for each in range(MOODS) if each != nth], 2)))


def _listener(nth: int, rng: random.Random) -> Listener:
    loves = frozenset(rng.sample(range(TAGS), 5))
    hates = frozenset(rng.sample(sorted(set(range(TAGS)) - loves), 3))
    return Listener(f"u{nth}", loves, hates, tuple(rng.sample(range(MOODS), 2)), rng.uniform(3, 6))


@dataclass(slots=True)
class Sitting:
    """One session of a listener, from the first track until it ends."""

    world: World
    listener: Listener
    name: str
    heard: list[Track] = field(default_factory=list)
    fractions: list[float] = field(default_factory=list)
    has_left: bool = False
    _mood: int = 0
    _patience: float = 0.0
    _latest: deque[Track] = field(default_factory=lambda: deque(maxlen=8))

    def __post_init__(self) -> None:
        self._mood = self._luck("start").choice(self.listener.starts_in)
        self._patience = self.listener.patience

    def own_choice(self) -> Track:
        """What the listener would look for: the best of a few that come to mind."""
        luck = self._luck("search")
        famous = luck.choices(self.world.tracks, cum_weights=self.world.fame, k=COME_TO_MIND // 2)
        own = luck.choices(self.world.follows[self.listener.user_id], k=COME_TO_MIND // 2)
        return max(famous + own, key=self.pleasure)

    def pleasure(self, track: Track) -> float:
        """The chance that it is heard out now, 0–1."""
        mood = self.world.moods[self._mood]
        found = _of(BY_MOOD, len(track.tags & mood.wants)) + _of(BY_LOVE, len(track.tags & self.listener.loves))
        found *= SPOILS if track.tags & mood.spoilt_by else 1.0
        found *= HATES if track.tags & self.listener.hates else 1.0
        lately = Counter(tag for each in list(self._latest)[-6:] for tag in each.tags)
        found *= TAG_WORN_OUT if any(lately[tag] >= 4 for tag in track.tags) else 1.0
        found *= _of(ARTIST_AGAIN, sum(each.artist == track.artist for each in self._latest))
        found *= HEARD_TODAY if track in self.heard else 1.0
        return found * track.craft

    def hear(self, track: Track) -> float:
        """The fraction that is played, 0–1; afterwards the listener may have left."""
        luck = self._luck("hear")
        fraction = _fraction(luck, self.pleasure(track))
        self._grow_bored(track, fraction)
        self.heard.append(track)
        self.fractions.append(fraction)
        self._latest.append(track)
        if luck.random() < DRIFT:
            self._mood = luck.choice(self.world.moods[self._mood].leads_to)
        self.has_left = self._patience <= 0 or luck.random() < CALLED_AWAY or len(self.heard) >= LONGEST
        return fraction

    def _grow_bored(self, track: Track, fraction: float) -> None:
        if fraction < 0.3:
            self._patience -= 1.5 if self.fractions and self.fractions[-1] < 0.3 else 1.0
        elif fraction < 0.8:
            self._patience -= 0.4
        else:
            self._patience = min(self.listener.patience, self._patience + 0.5)
        if len(self._latest) >= 2 and all(each.artist == track.artist for each in list(self._latest)[-2:]):
            self._patience -= 0.5

    def _luck(self, of_what: str) -> random.Random:
        return random.Random(f"{self.world.seed} {self.listener.user_id} {self.name} {len(self.heard)} {of_what}")


def _of(table: tuple[float, ...], count: int) -> float:
    return table[min(count, len(table) - 1)]


def _fraction(luck: random.Random, pleasure: float) -> float:
    """Always three draws, so that the same luck is left for what comes after."""
    heard_out, early, where = luck.random() < pleasure, luck.random() < 0.6, luck.random()
    if heard_out:
        return 0.9 + 0.1 * where
    return 0.02 + 0.23 * where if early else 0.25 + 0.5 * where
