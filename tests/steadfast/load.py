"""The clients: threads that write events, read recommendations and change blocks, and note everything."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from urllib.parse import urlencode

from tests.steadfast.calls import Target, call
from tests.steadfast.checker import POSITIVE
from tests.steadfast.history import Answer, Batch, Call, Change, Event, User

WRITERS, READERS = 2, 2
USERS_PER_WRITER = 2
MOST_EVENTS_IN_BATCH = 6
MOST_ITEMS_OF_USER = 25
KINDS = (*sorted(POSITIVE), "view", "click", "impression")
GIVE_UP_SHARE = 0.05
"""Of the batches that were not acknowledged at once: their events may be stored or not, but whole."""
PAGE = 25
READABLE_USERS = 8
"""So many of those who were last written are asked for."""
EVENTS_TIMEOUT_S, ANSWER_TIMEOUT_S, CHANGE_TIMEOUT_S = 8.0, 20.0, 10.0
LATE_S = 60.0
"""An attempt that nobody waits for any more is over by then: stops and timeouts of Postgres are shorter."""


@dataclass(frozen=True)
class Pace:
    """How a client behaves: its longest pause between two calls, and how many of a reader's questions ask for pages."""

    longest_pause_s: float = 0.1
    pages_share: float = 0.2


class Load:
    """Runs until `end`. The same seed makes the same users, items and kinds; what meets what is up to the threads."""

    def __init__(
        self, targets: Sequence[Target], items: Sequence[str], blockable: Sequence[str], *, seed: int, pace: Pace
    ) -> None:
        self._targets, self._items, self._blockable = targets, items, blockable
        self._seed, self._pace = seed, pace
        self._numbers = count()
        self._n_items = len(items) + len(blockable)
        self._readable: deque[User] = deque()
        self._retired: deque[tuple[float, User]] = deque()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self.batches: list[Batch] = []
        self.changes: dict[str, list[Change]] = {item: [] for item in blockable}
        self.answers = self.degraded = 0

    def start(self) -> None:
        clients: list[tuple[str, Callable[[random.Random], None]]] = [
            *((f"writer {n}", self._write) for n in range(WRITERS)),
            *((f"reader {n}", self._read) for n in range(READERS)),
            ("editor", self._edit),
        ]
        for name, client in clients:
            chance = random.Random(f"{self._seed} {name}")
            self._threads.append(threading.Thread(target=client, args=(chance,), name=name, daemon=True))
            self._threads[-1].start()

    def end(self) -> None:
        """Returns when no call is under way any more."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def finished_users(self, *, all_of_them: bool = False) -> list[User]:
        """Those of whom nothing more will be heard; each is given out once."""
        with self._lock:
            if all_of_them:
                self._retired.extend((0.0, user) for user in self._readable)
                self._readable.clear()
            latest = time.monotonic() - LATE_S
            finished = []
            while self._retired and (all_of_them or self._retired[0][0] < latest):
                finished.append(self._retired.popleft()[1])
            return finished

    def ailment(self, target: Target) -> str | None:
        """What keeps it from answering a stranger, or from taking an event, as promised; None: nothing."""
        number = next(self._numbers)
        answer = self._ask(User(f"stranger{number}"), target)
        if not answer.is_promised:
            return f"GET /recommend → {answer.call} {answer.route}"
        batch = Batch((Event(f"probe-{number}", "prober", self._items[0], "view"),), time.monotonic())
        self.batches.append(batch)
        return None if self._post(batch, target).status == 202 else str(batch)

    def _write(self, chance: random.Random) -> None:
        users: list[User] = []
        untouched: dict[str, list[str]] = {}
        while not self._over.is_set():
            users = [user for user in users if untouched[user.user_id]]
            while len(users) < USERS_PER_WRITER:
                users.append(self._newcomer())
                untouched[users[-1].user_id] = chance.sample(self._items, MOST_ITEMS_OF_USER)
            writing = chance.sample(users, chance.randint(1, len(users)))
            batch = Batch(self._events(chance, writing, untouched), time.monotonic())
            for user in writing:
                user.batches.append(batch)
            if self._delivered(chance, batch):
                for user in writing:
                    self._ask(user, chance.choice(self._targets))
            else:
                users = [user for user in users if user not in writing]
            self._pause(chance)

    def _events(
        self, chance: random.Random, users: Sequence[User], untouched: dict[str, list[str]]
    ) -> tuple[Event, ...]:
        events = []
        for user in users:
            left = untouched[user.user_id]
            for _ in range(min(chance.randint(1, MOST_EVENTS_IN_BATCH), len(left))):
                events.append(self._event(user, left.pop(), chance.choice(KINDS)))
            touched = [
                event.item_id for batch in user.batches for event in batch.events if event.user_id == user.user_id
            ]
            if touched and chance.random() < 0.2:
                events.append(self._event(user, chance.choice(touched), "view"))
        chance.shuffle(events)
        return tuple(events)

    def _event(self, user: User, item_id: str, kind: str) -> Event:
        return Event(f"e{next(self._numbers)}", user.user_id, item_id, kind)

    def _delivered(self, chance: random.Random, batch: Batch) -> bool:
        """Sends the batch until it is acknowledged, to whoever may take it; or gives it up, and answers False."""
        self.batches.append(batch)
        while self._post(batch, chance.choice(self._targets)).status != 202:
            if chance.random() < GIVE_UP_SHARE or self._over.is_set():
                return False
            self._over.wait(chance.uniform(0.02, 0.5))
        return True

    def _post(self, batch: Batch, target: Target) -> Call:
        events = [
            {"event_id": event.event_id, "user_id": event.user_id, "item_id": event.item_id, "kind": event.kind}
            | ({} if event.value is None else {"value": event.value})
            for event in batch.events
        ]
        batch.calls.append(call(target, "POST", "/events", json.dumps(events), timeout_s=EVENTS_TIMEOUT_S))
        return batch.calls[-1]

    def _newcomer(self) -> User:
        user = User(f"u{next(self._numbers)}")
        with self._lock:
            self._readable.append(user)
            while len(self._readable) > READABLE_USERS:
                self._retired.append((time.monotonic(), self._readable.popleft()))
        return user

    def _read(self, chance: random.Random) -> None:
        while not self._over.is_set():
            if user := self._anyone(chance):
                if chance.random() < self._pace.pages_share:
                    self._ask_for_pages(user, chance)
                else:
                    self._ask(user, chance.choice(self._targets))
            self._pause(chance)

    def _anyone(self, chance: random.Random) -> User | None:
        with self._lock:
            return chance.choice(self._readable) if self._readable else None

    def _ask(self, user: User, target: Target) -> Answer:
        return self._noted(user, self._recommend(user, target, limit=self._n_items + 1), is_page=False)

    def _ask_for_pages(self, user: User, chance: random.Random) -> None:
        """Each page of whoever may give it."""
        page = self._recommend(user, chance.choice(self._targets), limit=PAGE)
        self._noted(user, page, is_page=True)
        while page.body.get("next_cursor") and not self._over.is_set():
            self._pause(chance)
            cursor = page.body["next_cursor"]
            page = self._recommend(user, chance.choice(self._targets), limit=PAGE, cursor=cursor)
            self._noted(user, page, is_page=True)

    def _recommend(self, user: User, target: Target, **asked: object) -> Call:
        query = urlencode({"user_id": user.user_id, **asked})
        return call(target, "GET", f"/recommend?{query}", timeout_s=ANSWER_TIMEOUT_S)

    def _noted(self, user: User, made: Call, *, is_page: bool) -> Answer:
        shown = tuple(item["item_id"] for item in made.body.get("items", ()))
        answer = Answer(_without_items(made), made.body.get("route", ""), shown, is_page)
        user.answers.append(answer)
        self.answers += answer.call.status is not None
        self.degraded += answer.route == "degraded"
        return answer

    def _edit(self, chance: random.Random) -> None:
        resting = dict.fromkeys(self._blockable, 0.0)
        while not self._over.is_set():
            rested = [item for item, until in resting.items() if until < time.monotonic()]
            if rested:
                item = chance.choice(rested)
                resting[item] = self._toggled(chance, item)
                for _ in range(2):
                    if user := self._anyone(chance):
                        self._ask(user, chance.choice(self._targets))
            self._pause(chance)

    def _toggled(self, chance: random.Random, item: str) -> float:
        """Until when the item must be left alone."""
        changes = self.changes[item]
        change = Change(item, not changes[-1].blocks if changes else True, time.monotonic())
        changes.append(change)
        path, last_doubt = f"/admin/blocks/{item}", 0.0
        while not self._over.is_set():
            target = chance.choice(self._targets)
            verb, body = ("PUT", "{}") if change.blocks else ("DELETE", "")
            change.calls.append(call(target, verb, path, body, timeout_s=CHANGE_TIMEOUT_S))
            if change.calls[-1].status == 200:
                break
            if "refused" not in change.calls[-1].failure:
                last_doubt = time.monotonic() + LATE_S
            self._over.wait(chance.uniform(0.05, 0.3))
        return last_doubt

    def _pause(self, chance: random.Random) -> None:
        self._over.wait(chance.uniform(0, self._pace.longest_pause_s))


def _without_items(made: Call) -> Call:
    """What is kept of an answer beside its items: a run of an hour has hundreds of thousands."""
    body = {name: made.body[name] for name in ("detail", "recommender") if name in made.body}
    return Call(made.service, made.began, made.ended, made.status, body, made.retry_after, made.failure)
