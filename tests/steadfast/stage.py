"""A data folder for a run: its own Postgres and Valkey, a small catalogue, a release, a past that it was fitted on."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import text

from app.catalog import items
from app.feedback.event_log import store
from app.feedback.events import Event
from app.settings import Settings
from app.storage.database import migrate, open_engine
from app.storage.embedded import embedded_servers
from tests.service.conftest import train_release
from tests.steadfast.history import StoredEvent

ITEMS = tuple(f"i{n}" for n in range(90))
"""What users do something with. Few, so that an answer can name all of them."""
BLOCKABLE = tuple(f"b{n}" for n in range(10))
"""What editors block; no user touches it, so only a block can hide it."""
CATEGORIES = 5
PAST_USERS, PAST_ITEMS = 60, 12

STORED = """
    SELECT event_id, users.user_id, items.item_id, done.kind, done.value
    FROM (SELECT event_id, user_row, item_row, kind, value FROM interactions
          UNION ALL SELECT event_id, user_row, item_row, 'impression', NULL FROM on_screen) AS done
    JOIN users ON users.row = user_row JOIN items ON items.row = item_row
"""


@contextmanager
def data_folder(kept: Path | None = None) -> Iterator[Path]:
    """One that the unprivileged user which Postgres runs as can enter; a temporary one, unless it is to be kept."""
    if kept is not None:
        kept.mkdir(mode=0o755)
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="segue-steadfast-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


def prepare(data_dir: Path) -> None:
    """The servers are stopped again afterwards: whoever serves starts them."""
    with embedded_servers(data_dir) as servers:
        migrate(servers.database_url)
        engine = open_engine(servers.database_url)
        with engine.begin() as db:
            items.put(db, [_item(n, item_id) for n, item_id in enumerate((*ITEMS, *BLOCKABLE))])
            store(db, [_past()], auto_create=True)
        engine.dispose()
        settings = {
            "DATABASE_URL": servers.database_url, "REDIS_URL": servers.redis_url, "data_dir": data_dir,
        }  # fmt: skip
        train_release(Settings.model_validate(settings))


def stored_events(data_dir: Path) -> Mapping[str, Sequence[StoredEvent]]:
    """Every row of each event id, after starting the servers on what was left on the disk."""
    found: dict[str, list[StoredEvent]] = {}
    with embedded_servers(data_dir) as servers:
        engine = open_engine(servers.database_url)
        with engine.connect() as db:
            for event_id, *rest in db.execute(text(STORED)):
                found.setdefault(event_id, []).append(StoredEvent(*rest))
        engine.dispose()
    return found


def _item(n: int, item_id: str) -> items.Item:
    return items.Item(item_id, title=f"Item {item_id}", categories=[f"category {n % CATEGORIES}"])


def _past() -> list[Event]:
    chance = random.Random(0)
    return [
        Event(f"past-{user}-{item_id}", f"past{user}", item_id, "like", None, None, None, None)
        for user in range(PAST_USERS)
        for item_id in chance.sample(ITEMS, PAST_ITEMS)
    ]
