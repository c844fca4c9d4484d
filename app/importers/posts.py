"""What people did with posts, in the layout of CI&T Deskdrop: users_interactions.csv and shared_articles.csv.

https://www.kaggle.com/datasets/gspmoreira/articles-sharing-reading-from-cit-deskdrop

VIEW, LIKE and BOOKMARK are the kinds of the same name. FOLLOW asks to be told of what comes to an article, so it is
kept for later: `bookmark`. COMMENT CREATED is `click`, more than a view and yet no praise: who comments may object,
and every stronger kind (like, bookmark, share) would count as praise.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from sqlalchemy import Connection, Engine

from app.catalog import items, rows
from app.errors import NotFound
from app.importers.bulk_load import LINES_PER_CHUNK, Load, load, loading, parsed
from app.importers.csv_files import LONGEST_RECORD, by_header, spanning_lines
from app.importers.event_files import event_load, latest_allowed, latest_readable, shift_decided
from app.importers.files import DataFile, DataFolder
from app.importers.report import ImportReport, Progress, unwatched
from app.importers.rows import LONGEST_ID, Refused, external_id, unix_time
from app.importers.staging import Event, Item, store_events, store_items

FORMAT = "posts"

EVENTS = "users_interactions.csv"
EVENT_COLUMNS = ("timestamp", "eventType", "contentId", "personId")
ARTICLES = ("shared_articles.csv", "shared_articles_top.csv")
"""The first of these that is there is read; the other is the name of an excerpt."""
ARTICLE_COLUMNS = ("timestamp", "eventType", "contentId")
DESCRIPTION = ("authorPersonId", "url", "title", "text", "lang")
ARTICLES_PER_CHUNK = 1_000
"""At the most: they are long and share the memory."""

LONGEST_TITLE, LONGEST_TEXT = 1_000, 100_000
"""In characters, as `PUT /items` has them; what is beyond is cut off."""

KINDS = {
    "VIEW": "view", "LIKE": "like", "BOOKMARK": "bookmark", "FOLLOW": "bookmark", "COMMENT CREATED": "click",
}  # fmt: skip
SHARED, REMOVED = "CONTENT SHARED", "CONTENT REMOVED"


class Article(NamedTuple):
    """What one line says of an article; of a removed one, only that."""

    item: Item
    removed: bool


def import_posts(
    engine: Engine,
    path: Path,
    *,
    shift_to_now: bool = False,
    until: float | None = None,
    lines_per_chunk: int = LINES_PER_CHUNK,
    progress: Progress = unwatched,
) -> ImportReport:
    """Imports users_interactions.csv and, where it is there, shared_articles.csv, from a folder or .zip.

    Ids stay as they are; items that no article tells of are bare. An article that any line calls removed is
    deleted and stays so; its events are kept.
    shift_to_now: move all times, those of publishing too, so that the newest event is of this moment; decided when
    the first event is imported, and kept by later runs.
    until: unix seconds as the file has them; events from then on stay out (counted as `later`), articles don't.
    Raises Invalid where the events are missing or empty, a column is, or something can't be unpacked.
    """
    started = monotonic()
    folder, latest = DataFolder(path), latest_allowed(engine)
    events = event_load(engine, _events(folder, latest, lines_per_chunk), to_now=shift_to_now, until=until)
    articles = _articles(folder, latest, lines_per_chunk, shift_decided(engine, events))
    # Events first: with them the times by which all is moved are settled, and can't be others for the articles.
    reports = [load(engine, events, progress)]
    if articles:
        reports.append(load(engine, articles, progress))
    return ImportReport(FORMAT, tuple(reports), monotonic() - started)


def read_events(path: Path) -> list[Event]:
    """Every good event of the log, in the order of its file, with the ids that an import gives them.

    A line that is there twice is there twice, under one id. Raises Invalid as the import does.
    """
    return list(parsed(_events(DataFolder(path), latest_readable(), LINES_PER_CHUNK)))


def _events(folder: DataFolder, latest: float, lines_per_chunk: int) -> Load[Event]:
    file = folder.require(EVENTS, FORMAT)
    split = by_header(file, EVENT_COLUMNS, optional=("sessionId",))
    return loading(
        FORMAT,
        file,
        lambda record: _event(split(record), latest),
        store_events,
        lines_per_chunk=lines_per_chunk,
        header_lines=1,
    )


def _event(fields: Sequence[str], latest: float) -> Event:
    time_field, type_field, item_field, user_field, session_field = fields
    timestamp = unix_time(time_field, latest)
    kind = KINDS.get(type_field)
    if kind is None:
        raise Refused(f"eventType is none of {', '.join(KINDS)}")
    user_id, item_id = external_id(user_field, "person"), external_id(item_field, "content")
    session_id = _optional_id(session_field, "session")
    said = f"{user_id}:{item_id}:{type_field.lower()}:{timestamp:.0f}:{session_id or ''}"
    return Event(_event_id(said), user_id, item_id, kind, None, timestamp, session_id)


def _event_id(said: str) -> str:
    """Made of what the line says, so that the same line is the same event in every run."""
    event_id = f"post:{said}"
    return event_id if len(event_id) <= LONGEST_ID else f"post:{hashlib.sha256(said.encode()).hexdigest()}"


def _articles(folder: DataFolder, latest: float, lines_per_chunk: int, shift_seconds: float) -> Load[Article] | None:
    found = (folder.get(name) for name in ARTICLES)
    file = next((file for file in found if file and file.has_lines()), None)
    if file is None:
        return None
    line_by_line = loading(
        FORMAT,
        file,
        _article_reader(file, latest, shift_seconds),
        _store_articles,
        lines_per_chunk=min(lines_per_chunk, ARTICLES_PER_CHUNK),
        header_lines=1,
    )
    return replace(line_by_line, records=spanning_lines, longest_line=LONGEST_RECORD)


def _article_reader(file: DataFile, latest: float, shift_seconds: float) -> Callable[[str], Article]:
    split = by_header(file, ARTICLE_COLUMNS, optional=DESCRIPTION)

    def read(record: str) -> Article:
        time_field, type_field, item_field, *description = split(record)
        published_at = unix_time(time_field, latest) + shift_seconds
        item_id = external_id(item_field, "content")
        if type_field not in (SHARED, REMOVED):
            raise Refused(f"eventType is neither {SHARED} nor {REMOVED}")
        removed = type_field == REMOVED
        return Article(Item(item_id, {} if removed else _post(published_at, description)), removed)

    return read


def _post(published_at: float, description: Sequence[str]) -> dict[str, object]:
    """The fields of an item of kind post, whose category is its language."""
    author, url, title, body, language = description
    category = _optional_id(language, "language")
    return {
        "kind": "post",
        "title": " ".join(title.split())[:LONGEST_TITLE] or None,
        "text": body.strip()[:LONGEST_TEXT] or None,
        "categories": [category] if category else [],
        "creator": _optional_id(author, "author"),
        "published_at": datetime.fromtimestamp(published_at, UTC).isoformat(),
        "attributes": {"url": url.strip()} if url.strip() else {},
    }


def _store_articles(db: Connection, articles: Sequence[Article]) -> Counter[str]:
    """store_items, and `removed` for the lines by which an item is deleted."""
    removed = sorted({article.item.item_id for article in articles if article.removed})
    # Also where nothing is known of it yet: so its events, or a line further on, can't bring it back.
    rows.allocate_items(db, removed)
    for item_id in removed:
        with suppress(NotFound):
            items.delete(db, item_id)
    shared = [article.item for article in articles if not article.removed]
    return store_items(db, shared) + Counter(removed=len(articles) - len(shared))


def _optional_id(field: str, what: str) -> str | None:
    return external_id(field, what) if field.strip() else None
