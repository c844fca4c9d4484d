"""`segue what-if` after a service explored: pages asked for and clicks sent over HTTP, the answer on a terminal."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from tests.service.conftest import Service, Stores, running
from tests.service.test_recommend import ids, recommend, send

PAGES, USERS, PLACES = 240, 60, 2


def what_if(
    environment: dict[str, str], written: Path, *arguments: str
) -> tuple[subprocess.CompletedProcess[str], dict]:
    ran = subprocess.run(
        [
            sys.executable, "-m", "app.cli", "what-if", "--surface", "what-if", "--places", str(PLACES),
            "--settle-minutes", "0", "--json", str(written), *arguments,
        ],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    return ran, json.loads(written.read_text()) if written.exists() else {}


@pytest.fixture(scope="module")
def served(stores: Stores) -> tuple[dict[str, str], int, int]:
    """The environment of a service that drew every page, and how many pages and clicks on their first places it had."""
    chance = random.Random(3)
    pages, clicked = 0, 0
    with running(stores.environment, SEGUE_EXPLORE_SHARE="1") as service:
        users = [f"what-if-{uuid4().hex}" for _ in range(USERS)]
        for number in range(PAGES):
            clicked += visit(service, users[number % USERS], chance)
            pages += 1
        environment = service.environment
    # The service wrote what it had shown before it ended.
    return environment, pages, clicked


def visit(service: Service, user: str, chance: random.Random) -> int:
    """One page and what its user clicked of the first places. Clicked items are seen, and won't be shown again."""
    page = recommend(service, user, limit=5, surface="what-if")
    clicks = [item for place, item in enumerate(ids(page)[:PLACES], 1) if chance.random() < 0.3 / place]
    tie = {"user_id": user, "kind": "click", "request_id": page["request_id"]}
    if clicks:
        send(service, *({**tie, "item_id": item} for item in clicks))
    return len(clicks)


def is_unlucky(answer: dict) -> bool:
    """Draws are new in every run, and one right log in a thousand is called wrong: then figures are withheld."""
    return answer["wrong_log"] is not None


def test_the_log_of_a_service_says_what_it_earned(served: tuple[dict[str, str], int, int], tmp_path: Path) -> None:
    environment, pages, clicked = served
    ran, answer = what_if(environment, tmp_path / "answer.json")
    assert (answer["pages"], answer["users"]) == (pages, USERS), ran.stderr
    assert answer["earned"]["mean"] == pytest.approx(clicked / pages)
    estimates = {each["name"]: each for each in answer["pages_earn"]}
    for name in ("SIPS", "IIPS", "RIPS"):
        assert estimates[name]["effective_pages"] == pages
        if not is_unlucky(answer):
            assert estimates[name]["estimate"]["mean"] == answer["earned"]["mean"], name
    assert ran.returncode == is_unlucky(answer), ran.stderr


def test_it_answers_for_a_bolder_draw_and_refuses_one_that_is_none(
    served: tuple[dict[str, str], int, int], tmp_path: Path
) -> None:
    environment, pages, _ = served
    ran, answer = what_if(environment, tmp_path / "bolder.json", "--temperature", "0.6")
    assert ran.returncode == is_unlucky(answer), ran.stderr
    [iips] = [each for each in answer["pages_earn"] if each["name"] == "IIPS"]
    assert 100 < iips["effective_pages"] < pages
    assert is_unlucky(answer) or iips["estimate"]["low"] < iips["estimate"]["mean"] < iips["estimate"]["high"]

    ran, answer = what_if(environment, tmp_path / "turned.json", "--order", "newest", "--temperature", "0")
    assert ran.returncode == 1
    assert ("the log is wrong" if is_unlucky(answer) else "can't answer this") in " ".join(ran.stderr.split())
