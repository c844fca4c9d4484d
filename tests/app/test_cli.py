"""`segue` as it is typed: what it refuses, and what it leaves behind."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from app.live.follower import LiveFollower
from app.settings import Settings
from tests.transactions import await_all_before


@pytest.fixture
def environment(postgres_url: str, redis_url: str, tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "DATABASE_URL": postgres_url, "REDIS_URL": redis_url, "SEGUE_DATA_DIR": str(tmp_path)}


def segue(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


def test_without_a_key_it_serves_on_loopback_only(environment: dict[str, str]) -> None:
    refused = segue(environment, "serve", "--host", "0.0.0.0")  # noqa: S104 - it must be refused
    assert refused.returncode == 1
    assert "SEGUE_ADMIN_KEY" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_taken_port_is_said_before_anything_is_done(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for command in ("demo", "serve"):
            refused = segue(environment, command, "--port", port)
            assert refused.returncode == 1
            assert port in refused.stderr
            assert "Traceback" not in refused.stderr
            assert "movietweetings" not in refused.stderr


def test_a_key_is_made_listed_and_revoked(environment: dict[str, str]) -> None:
    key = segue(environment, "keys", "create", "front-end", "--scope", "read").stdout.strip()
    assert key.startswith("segue_")
    listed = segue(environment, "keys", "list").stdout
    assert "front-end" in listed
    assert key not in listed
    rotated = segue(environment, "keys", "rotate", "front-end", "--grace-hours", "2")
    assert rotated.stdout.strip() not in ("", key)
    assert "1 replaced" in rotated.stderr
    listed = segue(environment, "keys", "list").stdout
    assert (listed.count("front-end"), "2.0 h" in listed, "always" in listed) == (2, True, True)
    assert segue(environment, "keys", "revoke", "front-end").returncode == 0
    assert "front-end" not in segue(environment, "keys", "list").stdout
    assert segue(environment, "keys", "revoke", "front-end").returncode == 1


def test_an_unknown_scope_is_named(environment: dict[str, str]) -> None:
    refused = segue(environment, "keys", "create", "x", "--scope", "root")
    assert refused.returncode == 1
    assert "root" in refused.stderr


def test_a_wrong_setting_is_named_before_anything_is_done(environment: dict[str, str]) -> None:
    refused = segue({**environment, "SEGUE_FEEDBACK_WEIGHTS": json.dumps({"stare": 1})}, "migrate")
    assert refused.returncode == 1
    assert "stare" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_folder_that_is_no_data_set_is_refused(environment: dict[str, str], tmp_path: Path) -> None:
    refused = segue(environment, "import", "movielens", str(tmp_path))
    assert refused.returncode == 1
    assert str(tmp_path) in refused.stderr.replace("\n", "")


def test_a_log_of_posts_is_imported_and_shifted_once(
    environment: dict[str, str], engine: Engine, tmp_path: Path
) -> None:
    log = "timestamp,eventType,contentId,personId\n1465413032,VIEW,-34,-88\n1465413033,READ,-34,-88\n"
    (tmp_path / "users_interactions.csv").write_text(log)

    first = segue(environment, "import", "posts", str(tmp_path), "--shift-to-now")
    again = segue(environment, "import", "posts", str(tmp_path))

    # On a terminal that is narrow, lines are broken anywhere.
    said = " ".join(f"{first.stdout} {first.stderr}".split())
    assert "users_interactions.csv:3: eventType is none of" in said
    assert "1 stored, 1 bad" in said
    assert "nothing to do" in f"{again.stdout} {again.stderr}"
    with engine.connect() as db:
        assert db.execute(text("select now() - max(timestamp) < interval '5 min' from interactions")).scalar_one()


def test_what_is_old_is_pruned_and_a_restored_database_has_new_epochs(
    environment: dict[str, str], engine: Engine
) -> None:
    page = """
        insert into impressions (request_id, shown_at, user_id, surface, route, recommender, first_position, item_rows,
            sources, scores, promoted)
        values (:id, now() - make_interval(days => :days), 'ann', 'feed', 'few', 'blend', 1, '{}', '{}', '{}', '{}')
    """
    with engine.begin() as db:
        for days in (20, 40, 60):
            db.execute(text(page), {"id": f"r{days}", "days": days})
        epochs = set(db.execute(text("select epoch from versions")).scalars())
    said = segue({**environment, "SEGUE_IMPRESSIONS_DAYS": "30"}, "prune").stderr
    assert "impressions: 2 rows" in said
    assert "on_screen: 0 rows" in said
    assert segue(environment, "restored").returncode == 0
    with engine.connect() as db:
        assert db.execute(text("select request_id from impressions")).scalars().all() == ["r20"]
        assert not epochs & set(db.execute(text("select epoch from versions")).scalars())


def test_a_release_that_is_not_there_is_refused(environment: dict[str, str]) -> None:
    refused = segue(environment, "releases", "activate", "2020-01-01T00-00-00Z-0000")
    assert refused.returncode == 1
    assert "does not exist" in refused.stderr


def test_training_on_nothing_says_what_to_do(environment: dict[str, str]) -> None:
    refused = segue(environment, "train")
    assert refused.returncode == 1
    assert "segue import" in refused.stderr.replace("\n", " ")


def test_help_comes_without_loading_what_commands_need() -> None:
    program = (
        "import sys, app.cli; print(sorted({'sqlalchemy', 'numpy', 'uvicorn', 'redis', 'fastapi'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


A_CLICK = """
    insert into interactions (event_id, user_row, item_row, kind, timestamp) values (:id, 0, 0, 'click', now())
"""


def test_live_signals_are_checked_against_the_events(environment: dict[str, str], engine: Engine) -> None:
    with engine.begin() as db:
        db.execute(text("insert into users (user_id) values ('ann')"))
        db.execute(text("insert into items (item_id) values ('a')"))
        db.execute(text(A_CLICK), {"id": "e1"})
    await_all_before(engine)
    assert "nothing is stored yet" in segue(environment, "live", "check").stderr
    follower = LiveFollower(engine, Settings())
    assert follower.caught_up(60)
    follower.close()
    with engine.begin() as db:
        db.execute(text(A_CLICK), {"id": "e2"})
    await_all_before(engine)
    assert "equal to a recount: 1 items, 1 users" in segue(environment, "live", "check").stderr
    with engine.begin() as db:
        db.execute(text("delete from interactions where event_id = 'e1'"))
        db.execute(text("update interactions set timestamp = timestamp - interval '2 days', xid = '3'"))
    checked = segue(environment, "live", "check")
    assert checked.returncode == 1
    assert "item row 0: last event" in checked.stderr
