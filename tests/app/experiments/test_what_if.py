"""`segue what-if` on a real Postgres: pages drawn and written as serving does it, clicks stored as events are."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Connection, Engine, text
from typer.testing import CliRunner

from app.cli import app
from app.cli.what_if import read_scores
from app.errors import Invalid
from app.experiments.explored import Selection
from app.experiments.what_if import Target, log_of, newness, popularity_before, rows_of
from app.feedback.event_log import store
from app.feedback.events import Event
from app.serving.exploration import Sampler, logits_of, propensities_of
from app.serving.impressions import Impression, ImpressionWriter
from app.serving.slate import Shown, with_pins
from models.contracts import Reason
from models.evaluation.off_policy import slates
from models.evaluation.off_policy.log import MissingSupport, SlateLog, WrongLog
from models.evaluation.off_policy.report import report_on

ITEMS, PIN, USERS, PAGES = 8, 8, 150, 600
APPEAL = np.array([0.2, 0.5, 0.1, 0.4, 0.1, 0.3, 0.05, 0.2])
"""The chance of a click on each item at the first place; at the second, half of it. The best is not served first."""
SHOWN_AT = datetime.now(UTC) - timedelta(hours=3)
SELECTION = Selection(SHOWN_AT - timedelta(days=1), datetime.now(UTC), "click", 2)
PLACES = 2


@dataclass(frozen=True)
class Page:
    """One page as it was served, and what was clicked."""

    impression: Impression
    clicked: tuple[int, ...]


def drawn(number: int, *, temperature: float = 0.5, pinned: bool = False) -> Impression:
    """A page of four, of a pinned item at the top or not, drawn as serving does it."""
    request_id = f"page-{number:05d}"
    slate = [Shown(row, float(ITEMS - row), "blend", False, Reason("taste")) for row in range(ITEMS)]
    draw = Sampler(temperature, request_id).draw(slate)
    shown = with_pins(draw.ranking, {1: PIN} if pinned else {})[:4]
    return Impression(
        request_id, SHOWN_AT + timedelta(seconds=number), f"user-{number % USERS}", "feed", "new", "blend", None, {}, 1,
        tuple(shown), slate_id=request_id, draw=draw,
    )  # fmt: skip


def clicks(impression: Impression, generator: np.random.Generator) -> tuple[int, ...]:
    chances = [
        (APPEAL[item.row] if item.row != PIN else 0.6) / (1 + place) for place, item in enumerate(impression.items)
    ]
    return tuple(
        item.row for item, chance in zip(impression.items, chances, strict=True) if generator.random() < chance
    )


def click(user_id: str, item: int, request_id: str | None, *, kind: str = "click") -> Event:
    return Event(f"{request_id}-{user_id}-{item}-{kind}", user_id, f"item-{item}", kind, None, None, None, request_id)


def write(engine: Engine, impressions: list[Impression], events: list[Event]) -> None:
    writer = ImpressionWriter(engine, capacity=10_000)
    for impression in impressions:
        writer.record(impression)
    writer.close(120)
    with engine.begin() as db:
        store(db, [events], auto_create=True)


@pytest.fixture
def catalogue(engine: Engine) -> Engine:
    """Items whose rows are their numbers."""
    with engine.begin() as db:
        for item in range(ITEMS + 1):
            published = datetime(2020, 1, 1 + item, tzinfo=UTC) if item < ITEMS else None
            db.execute(
                text("INSERT INTO items (item_id, published_at) VALUES (:id, :at)"),
                {"id": f"item-{item}", "at": published},
            )
        rows = db.execute(text("SELECT item_id, row FROM items ORDER BY row")).all()
        assert rows == [(f"item-{item}", item) for item in range(ITEMS + 1)]
    return engine


Serve = Callable[..., list[Page]]


@pytest.fixture
def serve(catalogue: Engine) -> Serve:
    def served(pages: int = PAGES, *, pins: bool = True, temperature: float = 0.5) -> list[Page]:
        generator = np.random.default_rng(5)
        shown = [drawn(number, temperature=temperature, pinned=pins and number % 3 == 0) for number in range(pages)]
        told = [Page(impression, clicks(impression, generator)) for impression in shown]
        events = [
            click(page.impression.user_id, item, page.impression.request_id) for page in told for item in page.clicked
        ]
        write(catalogue, shown, events)
        return told

    return served


def judged(db: Connection, target: Target, selection: Selection = SELECTION) -> SlateLog:
    return log_of(db, selection, target)


def truth(logits: np.ndarray, pinned: bool) -> float:
    """What the first two places earn on average, by enumeration."""
    total = 0.0
    for order in permutations(range(ITEMS), PLACES - pinned):
        rest = [item for item in range(ITEMS) if item not in order]
        probability = float(np.prod(propensities_of(logits[[*order, *rest]])[: len(order)]))
        chances = [0.6, *APPEAL[list(order)]] if pinned else APPEAL[list(order)]
        total += probability * (chances[0] + chances[1] / 2)
    return total


class TestTheLog:
    def test_it_holds_what_was_shown_and_what_it_earned(self, serve: Serve, catalogue: Engine) -> None:
        pages = serve()
        with catalogue.connect() as db:
            log = judged(db, Target())
        assert log.rewards.tolist() == [
            [float(item.row in page.clicked) for item in page.impression.items[:PLACES]] for page in pages
        ]
        assert log.logged == pytest.approx(
            np.array([[item.propensity or 1.0 for item in page.impression.items[:PLACES]] for page in pages]), rel=1e-12
        )
        assert len(np.unique(log.users)) == USERS

    def test_the_policy_that_served_earns_what_was_earned_exactly(self, serve: Serve, catalogue: Engine) -> None:
        serve()
        with catalogue.connect() as db:
            log = judged(db, Target())
        assert (log.weights == 1).all()
        assert (log.marginal_weights == 1).all()
        for make in (slates.sips, slates.iips, slates.rips):
            assert make(log).values.mean() == log.rewards.sum(axis=1).mean()

    def test_weights_are_what_another_temperature_makes_of_each_page(self, serve: Serve, catalogue: Engine) -> None:
        pages = serve(60)
        with catalogue.connect() as db:
            log = judged(db, Target(temperature=0.3))
        colder, served = logits_of(ITEMS, 0.3), logits_of(ITEMS, 0.5)
        for page, weights in zip(pages, log.weights, strict=True):
            order = [item.row for item in page.impression.draw.ranking]  # type: ignore[union-attr]
            ratios = propensities_of(colder[order]) / propensities_of(served[order])
            is_pinned = page.impression.items[0].row == PIN
            expected = [1.0, ratios[0]] if is_pinned else [ratios[0], ratios[0] * ratios[1]]
            assert weights == pytest.approx(expected, rel=1e-9)

    def test_marginals_are_those_of_the_organic_places(self, serve: Serve, catalogue: Engine) -> None:
        """Below a pin, the second place of the page is the first that was drawn."""
        pages = serve(30)
        with catalogue.connect() as db:
            log = judged(db, Target(temperature=0.3))
        first = np.exp(logits_of(ITEMS, 0.3)) / np.exp(logits_of(ITEMS, 0.3)).sum()
        for page, found in zip(pages, log.target_marginals, strict=True):
            rows = [item.row for item in page.impression.items]
            if rows[0] == PIN:
                assert found == pytest.approx([1.0, first[rows[1]]])
            else:
                assert found[0] == pytest.approx(first[rows[0]])

    def test_an_order_without_a_draw_counts_the_pages_that_happen_to_have_it(
        self, serve: Serve, catalogue: Engine
    ) -> None:
        pages = serve(200, pins=False)
        scores = {f"item-{item}": float(score) for item, score in enumerate(APPEAL)}
        with catalogue.connect() as db:
            log = judged(db, Target(rows_of(db, scores), 0.0))
        best = np.argsort(-APPEAL, kind="stable")[:PLACES].tolist()
        total = 0.0
        for page in pages:
            items = page.impression.items[:PLACES]
            if [item.row for item in items] == best:
                weight = 1 / (items[0].propensity * items[1].propensity)  # type: ignore[operator]
                total += weight * sum(item.row in page.clicked for item in items)
        assert total > 0
        assert slates.sips(log).values.mean() == pytest.approx(total / len(pages), rel=1e-9)

    def test_only_the_users_own_events_of_that_page_count(self, catalogue: Engine) -> None:
        pages = [drawn(0), drawn(1)]
        first, second = (page.items[0].row for page in pages)
        write(catalogue, pages, [
            click("user-1", first, "page-00000"), click("user-0", first, None),
            click("user-0", first, "page-00000", kind="like"), click("user-1", second, "page-00001"),
        ])  # fmt: skip
        with catalogue.connect() as db:
            assert judged(db, Target()).rewards.sum(axis=1).tolist() == [0, 1]

    def test_later_pages_and_undrawn_ones_are_left_out(self, catalogue: Engine) -> None:
        first = drawn(0)
        later = Impression(
            "later", SHOWN_AT, "user-0", "feed", "new", "blend", None, {}, 5, first.draw.ranking[4:6],  # type: ignore[union-attr]
            slate_id=first.request_id,
        )  # fmt: skip
        undrawn = Impression("u", SHOWN_AT, "user-0", "feed", "new", "blend", None, {}, 1, first.items)
        write(catalogue, [first, later, undrawn], [])
        with catalogue.connect() as db:
            assert len(judged(db, Target()).rewards) == 1

    def test_a_selection_keeps_to_its_time_surface_and_route(self, serve: Serve, catalogue: Engine) -> None:
        serve(10)
        until = SHOWN_AT + timedelta(seconds=4)
        with catalogue.connect() as db:
            half = Selection(SELECTION.since, until, "click", PLACES, "feed", "new")
            assert len(judged(db, Target(), half).rewards) == 4
            with pytest.raises(MissingSupport, match="SEGUE_EXPLORE_SHARE"):
                judged(db, Target(), Selection(SELECTION.since, until, "click", PLACES, "elsewhere"))

    def test_a_shorter_page_earns_nothing_where_it_ends(self, serve: Serve, catalogue: Engine) -> None:
        serve(40)
        with catalogue.connect() as db:
            log = judged(db, Target(temperature=0.3), Selection(SELECTION.since, SELECTION.until, "click", 6))
        assert (log.rewards[:, 4:] == 0).all()
        assert (log.weights[:, 5] == log.weights[:, 3]).all()

    def test_propensities_that_are_not_those_of_the_draw_are_refused(self, serve: Serve, catalogue: Engine) -> None:
        serve(40)
        with catalogue.begin() as db:
            db.execute(text("UPDATE impressions SET propensities[2] = 0.5 WHERE request_id = 'page-00007'"))
        with catalogue.connect() as db, pytest.raises(WrongLog, match=r"page-00007 has the propensity 0\.5 at place 2"):
            judged(db, Target())


class TestOrders:
    def test_popularity_is_counted_before_the_first_page(self, serve: Serve, catalogue: Engine) -> None:
        before = [Event(f"b{n}", f"early-{n}", "item-5", "view", None, SHOWN_AT - timedelta(hours=1)) for n in range(3)]
        before.append(Event("b3", "early-0", "item-5", "like", None, SHOWN_AT - timedelta(minutes=50)))
        before.append(Event("b4", "early-0", "item-2", "view", None, SHOWN_AT - timedelta(hours=1)))
        write(catalogue, [], before)
        serve(50)
        with catalogue.connect() as db:
            assert popularity_before(db, SELECTION) == {5: 3.0, 2: 1.0}

    def test_popularity_without_a_past_is_refused(self, serve: Serve, catalogue: Engine) -> None:
        serve(10)
        with catalogue.connect() as db, pytest.raises(Invalid, match="no events before"):
            popularity_before(db, SELECTION)

    def test_the_newest_come_first_and_those_without_a_date_last(self, catalogue: Engine) -> None:
        with catalogue.connect() as db:
            target = Target(newness(db))
        assert target.ranks(np.array([[PIN, 0, 3, 7, -1]])).tolist() == [[4, 3, 2, 1, np.inf]]

    def test_items_without_a_score_stay_in_the_order_served_behind_the_rest(self) -> None:
        assert Target({4: 1.0}).ranks(np.array([[6, 5, 4, -1]])).tolist() == [[2, 3, 1, np.inf]]

    def test_a_score_for_an_item_that_is_not_there_is_refused(self, catalogue: Engine) -> None:
        with catalogue.connect() as db, pytest.raises(Invalid, match="'nobody' \\(1 of 2"):
            rows_of(db, {"nobody": 1.0, "item-1": 2.0})


@pytest.fixture
def environment(postgres_url: str, redis_url: str, tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "DATABASE_URL": postgres_url, "REDIS_URL": redis_url, "SEGUE_DATA_DIR": str(tmp_path)}


def what_if(environment: dict[str, str], *arguments: str) -> tuple[subprocess.CompletedProcess[str], dict]:
    """Runs the command; also what it wrote to its JSON file."""
    written = Path(environment["SEGUE_DATA_DIR"]) / "answer.json"
    command = [sys.executable, "-m", "app.cli", "what-if", "--places", "2", "--json", str(written), *arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    return ran, json.loads(written.read_text()) if written.exists() else {}


class TestCommand:
    def test_it_finds_what_a_better_order_would_earn(
        self, serve: Serve, environment: dict[str, str], tmp_path: Path
    ) -> None:
        """The truth, by enumeration, is in every interval, and that of a better order is found to be higher."""
        pages = serve(2_500)
        scores = "item_id,score\n" + "".join(f"item-{item},{score}\n" for item, score in enumerate(APPEAL))
        (tmp_path / "scores.csv").write_text(scores)
        ran, answer = what_if(environment, "--scores", str(tmp_path / "scores.csv"), "--temperature", "0.7")
        assert ran.returncode == 0, ran.stderr
        logits = np.empty(ITEMS)
        logits[np.argsort(-APPEAL, kind="stable")] = logits_of(ITEMS, 0.7)
        pinned = np.mean([page.impression.items[0].row == PIN for page in pages])
        expected = pinned * truth(logits, True) + (1 - pinned) * truth(logits, False)

        assert (answer["pages"], answer["users"]) == (2_500, USERS)
        for estimate in answer["pages_earn"]:
            assert estimate["refusal"] is None
            assert estimate["estimate"]["low"] < expected < estimate["estimate"]["high"], estimate["name"]
            assert estimate["difference"]["low"] > 0
        for name in ("SIPS", "IIPS", "RIPS", "cascade-DR", "IPS", "SNIPS", "DM", "DR"):
            assert f"{name}: assumes" in ran.stdout
        earned = np.mean([sum(item.row in page.clicked for item in page.impression.items[:2]) for page in pages])
        assert f"Earned as shown: {earned:.4f} [" in ran.stdout

    def test_it_refuses_a_log_that_was_drawn_otherwise_than_it_says(
        self, serve: Serve, catalogue: Engine, environment: dict[str, str]
    ) -> None:
        """Drawn at temperature 1, written down as if at 0.5: each page agrees with itself, all together do not."""
        serve(800, temperature=1.0, pins=False)
        with catalogue.begin() as db:
            for number in range(800):
                order = [item.row for item in drawn(number, temperature=1.0).items]
                rest = [item for item in range(ITEMS) if item not in order]
                db.execute(
                    text(
                        "UPDATE impressions SET propensities = CAST(:p AS real[]), exploration = exploration || "
                        "jsonb_build_object('draw', exploration->'draw' || CAST(:d AS jsonb)) WHERE request_id = :id"
                    ),
                    {
                        "p": propensities_of(logits_of(ITEMS, 0.5)[[*order, *rest]])[:4].tolist(),
                        "d": json.dumps({"temperature": 0.5, "logits": logits_of(ITEMS, 0.5).tolist()}),
                        "id": f"page-{number:05d}",
                    },
                )
        ran, answer = what_if(environment, "--temperature", "0.4")
        assert ran.returncode == 1
        assert "the log is wrong: what was shown does not come as often" in " ".join(ran.stderr.split())
        assert all("estimate" not in each for each in answer["pages_earn"])

    def test_it_refuses_what_the_log_holds_too_little_of(self, serve: Serve, environment: dict[str, str]) -> None:
        serve(100)
        ran, _ = what_if(environment, "--order", "newest", "--temperature", "0.1")
        assert ran.returncode == 1
        assert "can't answer this" in ran.stderr

    def test_without_drawn_pages_it_says_how_to_get_some(self, environment: dict[str, str]) -> None:
        ran, _ = what_if(environment)
        assert ran.returncode == 1
        assert "SEGUE_EXPLORE_SHARE" in ran.stderr
        assert "Traceback" not in ran.stderr

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--metric", "stare"), "--metric 'stare'"),
            (("--metric", "impression"), "--metric 'impression'"),
            (("--scores", "nowhere.csv"), "nowhere.csv: No such file"),
        ],
    )
    def test_what_cannot_be_asked_is_refused_before_anything_is_opened(
        self, arguments: tuple[str, ...], said: str
    ) -> None:
        with pytest.raises(Invalid, match=re.escape(said)):
            CliRunner().invoke(app, ["what-if", *arguments], catch_exceptions=False)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("id,score\na,1\n", "must name the columns item_id and score"),
            ("item_id,score\na,1\nb,much\n", "line 3: score 'much'"),
            ("item_id,score\na\n", "line 2: score None"),
            ("item_id,score\na,inf\n", "line 2: score 'inf'"),
        ],
    )
    def test_a_wrong_file_of_scores_is_refused_by_line(self, tmp_path: Path, content: str, said: str) -> None:
        (tmp_path / "scores.csv").write_text(content)
        with pytest.raises(Invalid, match=re.escape(said)):
            read_scores(tmp_path / "scores.csv")


def test_every_estimate_of_a_real_log_has_its_checks(serve: Serve, catalogue: Engine) -> None:
    serve()
    with catalogue.connect() as db:
        report = report_on(judged(db, Target(temperature=0.4)))
    report.require()
    assert report.shown_as_logged.p_value > 0.001
    for estimate in (*report.of_first, *report.of_lists):
        assert estimate.refusal is None
        assert estimate.mean_weight is None or estimate.mean_weight.p_value > 0.001
