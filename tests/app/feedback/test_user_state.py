"""What a user's past comes to, as Postgres tells it: latest states, counts, order."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import pytest
from sqlalchemy import Engine, text

from app.feedback import user_state
from app.feedback.ingest import Event, Ingest
from app.feedback.user_state import UserView, interpret
from app.feedback.user_view import encode
from app.feedback.weights import sign_of, weight_of
from app.settings import FEEDBACK_KINDS, Settings
from tests.app.feedback.examples import an_event

VALUES = {"rating": [0, 1, 2, 2.5, 3, 3.5, 3.6, 5], "listen": [0, 0.29, 0.3, 0.5, 0.69, 0.7, 1]}
ReadView = Callable[[str], UserView]


@pytest.fixture
def past_of(engine: Engine, ingest: Ingest) -> Callable[..., UserView]:
    """The view of ann after these events; item `i<n>` has row n."""
    with engine.begin() as db:
        db.execute(text("INSERT INTO items (item_id) SELECT 'i' || n FROM generate_series(0, 99) AS n"))

    def past(*events: Event, settings: Settings | None = None) -> UserView:
        ingest.submit_blocking(events)
        with engine.connect() as db:
            return user_state.load(db, "ann", settings or Settings())

    return past


def states(view: UserView) -> list[tuple[int, int]]:
    return list(zip(view.rows.tolist(), view.signs.tolist(), strict=True))


def on(item: int, kind: str, minute: float, value: float | None = None) -> Event:
    return an_event("ann", f"i{item}", kind, minute=minute, value=value)


PastOf = Callable[..., UserView]


class TestLatestState:
    def test_one_entry_per_item_oldest_first(self, past_of: PastOf) -> None:
        view = past_of(on(1, "view", 5), on(2, "like", 1), on(1, "click", 9), on(3, "dislike", 7))
        assert states(view) == [(2, 1), (3, -1), (1, 0)]
        assert view.timestamps.tolist() == sorted(view.timestamps.tolist())
        assert view.weights.tolist() == pytest.approx([1.0, -1.0, 0.5])

    def test_the_latest_opinion_counts_in_whatever_order_it_arrives(self, past_of: PastOf) -> None:
        assert states(past_of(on(1, "dislike", 5), on(1, "like", 1))) == [(1, -1)]

    def test_of_two_at_the_same_time_the_one_stored_later(self, past_of: PastOf) -> None:
        assert states(past_of(on(1, "like", 1), on(1, "dislike", 1))) == [(1, -1)]

    @pytest.mark.parametrize(("kind", "value"), [("view", None), ("click", None), ("listen", 0.5)])
    def test_looking_again_takes_no_opinion_back(self, past_of: PastOf, kind: str, value: float | None) -> None:
        assert states(past_of(on(1, "like", 1), on(1, kind, 2, value))) == [(1, 1)]

    def test_a_middling_rating_does(self, past_of: PastOf) -> None:
        assert states(past_of(on(1, "rating", 1, 5), on(1, "rating", 2, 3))) == [(1, 0)]

    def test_a_like_taken_back_is_neutral_and_still_seen(self, past_of: PastOf) -> None:
        view = past_of(on(1, "like", 1), on(1, "unlike", 2), on(1, "view", 3))
        assert states(view) == [(1, 0)]
        assert view.weights.tolist() == [0.0]
        assert view.seen.tolist() == [1]
        assert (view.interactions, view.positives) == (1, 0)

    def test_being_shown_an_item_is_no_interaction(self, past_of: PastOf) -> None:
        view = past_of(on(1, "impression", 1))
        assert (len(view.rows), len(view.seen), view.interactions) == (0, 0, 0)
        assert view.user_row == 0

    def test_a_time_ahead_of_the_server_counts_as_now(self, past_of: PastOf, engine: Engine) -> None:
        with engine.connect() as db:
            minutes_since_noon = db.execute(
                text("SELECT extract(epoch FROM now() - timestamptz '2024-05-01 12:00Z') / 60")
            ).scalar_one()
        ahead = float(minutes_since_noon) + 4
        past_of(on(1, "like", ahead))
        view = past_of(an_event("ann", "i1", "dislike", minute=None))
        assert states(view) == [(1, -1)]

    @pytest.mark.parametrize("kind", [*FEEDBACK_KINDS, "unlike"])
    def test_agrees_with_the_weights_of_every_kind(self, past_of: PastOf, kind: str) -> None:
        for n, value in enumerate(VALUES.get(kind, [None])):
            view = past_of(on(n, kind, n, value))
            if kind == "impression":
                continue
            assert view.signs[-1] == sign_of(kind, value)
            assert view.weights[-1] == np.float32(weight_of(kind, value, Settings().feedback_weights))
        signs = [sign_of(kind, value) for value in VALUES.get(kind, [None])]
        assert view.positives == sum(sign > 0 for sign in signs)


class TestBounds:
    def test_lists_are_cut_to_the_newest_and_counts_are_not(self, past_of: PastOf) -> None:
        events = [on(n, "like", n) for n in range(10)]
        view = past_of(*events, settings=Settings(history_length=3, seen_limit=5))
        assert view.rows.tolist() == [7, 8, 9]
        assert view.seen.tolist() == [5, 6, 7, 8, 9]
        assert (view.interactions, view.positives) == (10, 10)

    def test_seen_keeps_what_was_touched_last(self, past_of: PastOf) -> None:
        """Item 0 was liked first of all and looked at again just now."""
        view = past_of(*[on(n, "like", n) for n in range(5)], on(0, "view", 9), settings=Settings(seen_limit=2))
        assert view.seen.tolist() == [4, 0]

    def test_an_unknown_user_has_an_empty_past(self, read_view: ReadView) -> None:
        view = read_view("nobody")
        assert (view.user_row, len(view.rows), len(view.seen), view.interactions) == (None, 0, 0, 0)

    def test_preferred_categories_are_part_of_it(self, engine: Engine, read_view: ReadView) -> None:
        with engine.begin() as db:
            db.execute(text("INSERT INTO users (user_id, preferred_categories) VALUES ('ann', '{noir,drama}')"))
        assert read_view("ann").preferred_categories == ("noir", "drama")


class TestInterpret:
    HASH: ClassVar = {b"view": encode(UserView.empty()), b"server": b"s", b"gen": b"g"}

    def test_a_view_without_marks_is_used(self) -> None:
        assert interpret(self.HASH, "s", 100.0).view is not None

    def test_a_live_mark_forbids_reading_and_installing(self) -> None:
        assert interpret({**self.HASH, b"d:x": b"41.0"}, "s", 100.0) == (None, "s", b"g", False)

    def test_a_mark_past_its_lease_is_ignored(self) -> None:
        assert interpret({**self.HASH, b"d:x": b"40.0"}, "s", 100.0).view is not None

    def test_what_a_restart_brought_back_is_to_be_rebuilt(self) -> None:
        assert interpret(self.HASH, "another", 100.0) == (None, "another", b"g", True)

    @pytest.mark.parametrize("raw", [{}, {b"gen": b"g"}, {b"view": b""}, {b"view": b"\x63junk"}])
    def test_a_missing_or_foreign_view_is_to_be_rebuilt(self, raw: dict[bytes, bytes]) -> None:
        assert interpret({b"server": b"s", **raw}, "s", 100.0) == (None, "s", raw.get(b"gen"), True)
