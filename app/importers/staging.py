"""The writes of an import: a batch of rows by COPY into a table of its own, and from there where it belongs.

Every function here may run twice on the same batch and leaves what running once leaves. Ids are inserted in
sorted order, users before items before events, as every writer of these tables does, so that two of them
wait for each other instead of deadlocking.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Connection, text

from app.catalog import versions
from app.feedback.event_log import LIKE_KINDS, follow_likes, lock_users


class Event(NamedTuple):
    """An event to store once per event_id; timestamp in unix seconds, value as the kind has one (API.md)."""

    event_id: str
    user_id: str
    item_id: str
    kind: str
    value: float | None
    timestamp: float
    session_id: str | None = None


class Item(NamedTuple):
    """What a file says of an item: any of the fields of API.md; what it doesn't say stays as it is."""

    item_id: str
    fields: dict[str, Any]


class ItemTag(NamedTuple):
    """One tag that joins those an item has."""

    item_id: str
    tag: str


class User(NamedTuple):
    """What a file says of a user: attributes that join those the user has."""

    user_id: str
    attributes: dict[str, Any]


def store_events(db: Connection, events: Sequence[Event]) -> Counter[str]:
    """Counts `stored`, `duplicates`, and what is not stored: `erased_users`, and what is `too_old` to be kept."""
    _stage(
        db,
        "event_id text, user_id text, item_id text, kind text, value float8, at float8, session_id text",
        (
            (
                *event[:4],
                "" if event.value is None else repr(event.value),
                repr(event.timestamp),
                event.session_id or "",
            )
            for event in events
        ),
    )
    too_old = _rows(db, _DROP_OLD_EVENTS)
    erased = _rows(db, _DROP_ERASED_EVENTS)
    _rows(db, _ADD_USERS)
    new_items = _rows(db, _ADD_ITEMS)
    liking = _liking(db) if any(event.kind in LIKE_KINDS for event in events) else set()
    lock_users(db, {user for user, _ in liking})
    stored = _rows(db, _STORE_EVENTS)
    follow_likes(db, liking)
    if new_items:
        versions.bump(db, "items")
    if stored:
        # Views of users' pasts in Redis are older than these rows.
        versions.bump(db, "cache")
    duplicates = len(events) - too_old - erased - stored
    counts = Counter(stored=stored, duplicates=duplicates, erased_users=erased)
    if too_old:
        counts["too_old"] = too_old
    return counts


def _liking(db: Connection) -> set[tuple[int, int]]:
    """Rows of the users and items whose likes the staged events may change."""
    return {(user, item) for user, item in db.execute(text(_LIKING), {"kinds": sorted(LIKE_KINDS)})}


def store_items(db: Connection, items: Sequence[Item]) -> Counter[str]:
    """Counts `stored` and `deleted_items`: what was deleted here isn't brought back by a file."""
    rows = ((item.item_id, _json(item.fields)) for item in items)
    _stage(db, "item_id text, fields jsonb", rows)
    return _update_items(db, _FILL_ITEMS, len(items))


def store_tags(db: Connection, tags: Sequence[ItemTag]) -> Counter[str]:
    """Counts `stored` (each tag once per item and batch) and `deleted_items`, in rows."""
    _stage(db, "item_id text, tag text", tags)
    return _update_items(db, _ADD_TAGS, len(tags))


def store_users(db: Connection, users: Sequence[User]) -> Counter[str]:
    """Counts `stored` and `erased_users`."""
    _stage(db, "user_id text, attributes jsonb", ((user.user_id, _json(user.attributes)) for user in users))
    erased = _rows(db, _DROP_ERASED_USERS)
    _rows(db, _ADD_USERS)
    _rows(db, _FILL_USERS)
    return Counter(stored=len(users) - erased, erased_users=erased)


def _update_items(db: Connection, update: str, rows: int) -> Counter[str]:
    deleted = _rows(db, _DROP_DELETED_ITEMS)
    changed = _rows(db, _ADD_ITEMS)
    # In one order for all writers: an update by itself locks in whatever order the plan has.
    _rows(db, _LOCK_ITEMS)
    changed += _rows(db, update)
    if changed:
        versions.bump(db, "items")
    return Counter(stored=rows - deleted, deleted_items=deleted)


def _stage(db: Connection, columns: str, rows: Iterable[Sequence[str]]) -> None:
    """COPY into the temporary table `staged`, whose `line` tells later rows from earlier ones."""
    db.execute(text(f"create temp table staged (line int generated always as identity, {columns}) on commit drop"))
    names = ", ".join(column.split()[0] for column in columns.split(", "))
    # No field holds a tab or a line end: ids can't, and JSON writes them as escapes. An empty one is null.
    body = "\n".join(map("\t".join, rows)).replace("\\", "\\\\")
    cursor: Any = db.connection.cursor()
    cursor.copy_expert(f"copy staged ({names}) from stdin with (null '')", io.StringIO(body))
    cursor.close()
    db.execute(text("analyze staged"))


def _json(fields: dict[str, Any]) -> str:
    return orjson.dumps(fields).decode()


def _rows(db: Connection, statement: str) -> int:
    """Runs the statement; how many rows it was about."""
    return db.execute(text(statement)).rowcount


# What is older than what is kept may have been stored and pruned before.
_DROP_OLD_EVENTS = """
    delete from staged using retention_floors
    where what = case staged.kind when 'impression' then 'on_screen' else 'events' end
        and to_timestamp(staged.at) < kept_from
"""

# Of users who were erased and came back, only what they did since counts (catalog.users.erased_at).
_DROP_ERASED_EVENTS = """
    delete from staged using (
        select known.user_id, erased_at, users.row
        from (select distinct user_id from staged) known
        join tombstones on user_hash = sha256(convert_to(known.user_id, 'UTF8'))
        left join users on users.user_id = known.user_id
    ) erased
    where staged.user_id = erased.user_id and (erased.row is null or to_timestamp(staged.at) <= erased.erased_at)
"""

_DROP_ERASED_USERS = """
    delete from staged using tombstones where user_hash = sha256(convert_to(staged.user_id, 'UTF8'))
"""

# An upsert would burn a row number per conflict; this burns one only where two writers meet on a new id.
_ADD_USERS = """
    insert into users (user_id)
    select user_id from staged
    where not exists (select from users where users.user_id = staged.user_id)
    group by user_id order by user_id collate "C"
    on conflict (user_id) do nothing
"""

_ADD_ITEMS = """
    insert into items (item_id)
    select item_id from staged
    where not exists (select from items where items.item_id = staged.item_id)
    group by item_id order by item_id collate "C"
    on conflict (item_id) do nothing
"""

_LIKING = """
    select distinct users.row, items.row
    from staged join users using (user_id) join items using (item_id)
    where staged.kind = any(:kinds)
"""

_STORE_EVENTS = """
    with fresh as (
        insert into event_ids (event_id)
        select event_id from staged
        where not exists (select from event_ids where event_ids.event_id = staged.event_id)
        group by event_id order by event_id collate "C"
        on conflict (event_id) do nothing
        returning event_id
    ), first as (
        select distinct on (event_id) staged.* from staged join fresh using (event_id) order by event_id, line
    )
    insert into interactions (event_id, user_row, item_row, kind, value, timestamp, session_id)
    select event_id, users.row, items.row, first.kind, value, to_timestamp(at), session_id
    from first join users using (user_id) join items using (item_id)
    order by line
"""

_DROP_DELETED_ITEMS = """
    delete from staged using items where items.item_id = staged.item_id and items.deleted_at is not null
"""

_LOCK_ITEMS = """
    select from items where item_id in (select item_id from staged) order by item_id for update
"""

# The last line on an item wins; a field that the file leaves empty keeps what is there.
_FILL_ITEMS = """
    with told as (
        select distinct on (s.item_id) i.row,
            coalesce(f.kind, i.kind) as kind,
            coalesce(f.title, i.title) as title,
            coalesce(f.text, i.text) as text,
            coalesce(nullif(f.categories, '{}'), i.categories) as categories,
            coalesce(nullif(f.tags, '{}'), i.tags) as tags,
            coalesce(f.creator, i.creator) as creator,
            coalesce(f.published_at, i.published_at) as published_at,
            coalesce(f.features, i.features) as features,
            i.attributes || coalesce(f.attributes, '{}') as attributes
        from staged s
        join items i using (item_id)
        cross join jsonb_to_record(s.fields) as f (
            kind text, title text, text text, categories text[], tags text[], creator text,
            published_at timestamptz, features real[], attributes jsonb
        )
        where i.deleted_at is null
        order by s.item_id, s.line desc
    )
    update items set
        kind = told.kind, title = told.title, text = told.text, categories = told.categories,
        tags = told.tags, creator = told.creator, published_at = told.published_at,
        features = told.features, attributes = told.attributes,
        updated_at = now(), changed_xid = pg_current_xact_id()
    from told
    where items.row = told.row and
        (items.kind, items.title, items.text, items.categories, items.tags, items.creator,
         items.published_at, items.features, items.attributes)
        is distinct from
        (told.kind, told.title, told.text, told.categories, told.tags, told.creator,
         told.published_at, told.features, told.attributes)
"""

_ADD_TAGS = """
    with told as (
        select items.row, items.tags || array_agg(distinct staged.tag order by staged.tag) as tags
        from staged join items using (item_id)
        where items.deleted_at is null and staged.tag <> all (items.tags)
        group by items.row
    )
    update items set tags = told.tags, updated_at = now(), changed_xid = pg_current_xact_id()
    from told where items.row = told.row
"""

_FILL_USERS = """
    with told as (
        select distinct on (user_id) user_id, attributes from staged order by user_id, line desc
    )
    update users set attributes = users.attributes || told.attributes, updated_at = now()
    from told
    where users.user_id = told.user_id and not users.attributes @> told.attributes
"""
