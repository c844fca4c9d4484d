"""A running service prunes by itself, and its metrics say so."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from sqlalchemy import text

from app.storage.database import open_engine
from tests.service.conftest import Stores, running

OLD_PAGE = """
    insert into impressions (request_id, shown_at, user_id, surface, route, recommender, first_position, item_rows,
        sources, scores, promoted)
    values (:id, now() - interval '100 days', 'somebody', 'feed', 'few', 'blend', 1, '{}', '{}', '{}', '{}')
"""


def test_what_is_older_than_kept_goes_and_what_comes_so_late_is_not_taken_in(stores: Stores) -> None:
    engine = open_engine(stores.environment["DATABASE_URL"])
    with running(stores.environment, SEGUE_PRUNE_SECONDS="0.3") as service:
        deadline = time.monotonic() + 60
        # Another process of the tests may be the one that prunes it, so one page more each time.
        while not _pruned(service.client.get("/metrics").text):
            assert time.monotonic() < deadline, "it prunes nothing"
            with engine.begin() as db:
                db.execute(text(OLD_PAGE), {"id": uuid4().hex})
            time.sleep(0.2)
        late = {
            "event_id": uuid4().hex, "user_id": uuid4().hex, "item_id": "an-item-of-the-tests", "kind": "impression",
            "timestamp": (datetime.now(UTC) - timedelta(days=100)).isoformat(),
        }  # fmt: skip
        for _ in range(2):
            answer = service.client.post("/events", json=late)
            assert answer.status_code == 202
            assert (answer.json()["accepted"], answer.json()["duplicates"]) == (0, 1)
        assert service.client.get(f"/users/{late['user_id']}").status_code == 404
    engine.dispose()


def _pruned(metrics: str) -> float:
    found = re.search(r'^segue_pruned_rows_total\{table="impressions"\} (\S+)$', metrics, re.MULTILINE)
    return float(found[1]) if found else 0.0
