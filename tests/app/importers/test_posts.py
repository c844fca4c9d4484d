"""Posts in: small files with what real ones have in store, and the real Deskdrop where it is at hand."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine

from app.errors import Invalid
from app.importers import posts
from app.importers.files import LONGEST_LINE
from app.importers.posts import ARTICLES_PER_CHUNK, LONGEST_TEXT, import_posts
from app.settings import FEEDBACK_KINDS
from tests.app.importers.datasets import rows_of, value_of, write_folder, write_zip

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "posts" / "deskdrop"

LOG = (
    b"timestamp,eventType,contentId,personId,sessionId,userRegion,userCountry,client_os\n"
    b"1465413032,VIEW,-34,-88,1264,,,\n"
    b"1465412560,LIKE,-34,-88,1264,NY,US,macOS\n"
    b"1465416190,BOOKMARK,31,-88,1264,,,\n"
    b"1465413895,FOLLOW,31,34,-316,,,\n"
    b"1465413896,COMMENT CREATED,31,34,,,,\n"
)
HEADER = b"timestamp,eventType,contentId,authorPersonId,contentType,url,title,text,lang,total_events\n"
SHARED = HEADER + (
    b'1465400000,CONTENT SHARED,-34,60,,http://a.example/x,"How to, ""really""","One.\r\n\r\nTwo, ""three"".\n",en,2\n'
    b"1465400001,CONTENT SHARED,77,,HTML,,Nobody read this,,pt,0\n"
)
DESKDROP = {"users_interactions.csv": LOG, "shared_articles.csv": SHARED}

EVENTS = """
    select event_id, user_id, item_id, i.kind, value, extract(epoch from timestamp)::float8, session_id
    from interactions i join users on users.row = user_row join items on items.row = item_row order by seq
"""


def write_log(folder: Path, *lines: bytes, header: bytes = LOG.splitlines(keepends=True)[0]) -> Path:
    return write_folder(folder, {"users_interactions.csv": header + b"".join(line + b"\n" for line in lines)})


def write_articles(folder: Path, articles: bytes) -> Path:
    return write_folder(folder, DESKDROP | {"shared_articles.csv": articles})


def test_lines_become_events_of_our_kinds_with_their_sessions(engine: Engine, tmp_path: Path) -> None:
    report = import_posts(engine, write_folder(tmp_path, DESKDROP))

    assert report.rows_bad == 0
    assert report.of("users_interactions.csv").counts == {"stored": 5}
    assert rows_of(engine, EVENTS) == [
        ("post:-88:-34:view:1465413032:1264", "-88", "-34", "view", None, 1465413032.0, "1264"),
        ("post:-88:-34:like:1465412560:1264", "-88", "-34", "like", None, 1465412560.0, "1264"),
        ("post:-88:31:bookmark:1465416190:1264", "-88", "31", "bookmark", None, 1465416190.0, "1264"),
        ("post:34:31:follow:1465413895:-316", "34", "31", "bookmark", None, 1465413895.0, "-316"),
        ("post:34:31:comment created:1465413896:", "34", "31", "click", None, 1465413896.0, None),
    ]
    assert set(posts.KINDS.values()) <= set(FEEDBACK_KINDS)


def test_a_like_is_among_the_users_likes(engine: Engine, tmp_path: Path) -> None:
    import_posts(engine, write_folder(tmp_path, DESKDROP))

    likes = """
        select user_id, item_id, extract(epoch from liked_at)::int
        from likes join users on users.row = user_row join items on items.row = item_row
    """
    assert rows_of(engine, likes) == [("-88", "-34", 1465412560)]


def test_articles_become_posts_and_what_no_article_tells_of_is_bare(engine: Engine, tmp_path: Path) -> None:
    report = import_posts(engine, write_folder(tmp_path, DESKDROP))

    assert report.of("shared_articles.csv").counts == {"stored": 2}
    columns = "item_id, kind, title, text, categories, tags, creator, published_at, attributes"
    assert rows_of(engine, f"select {columns} from items order by item_id") == [
        (
            "-34", "post", 'How to, "really"', 'One.\r\n\r\nTwo, "three".', ["en"], [], "60",
            datetime.fromtimestamp(1465400000, UTC), {"url": "http://a.example/x"},
        ),
        ("31", None, None, None, [], [], None, None, {}),
        ("77", "post", "Nobody read this", None, ["pt"], [], None, datetime.fromtimestamp(1465400001, UTC), {}),
    ]  # fmt: skip


def test_columns_are_found_by_name_and_most_may_be_lacking(engine: Engine, tmp_path: Path) -> None:
    files = {
        "users_interactions.csv": b"personid,x,CONTENTID,eventType,timestamp\n-88,,-34,VIEW,1465413032\n",
        "shared_articles_top.csv": b"title,contentId,eventType,timestamp\nHello,-34,CONTENT SHARED,1465400000\n",
    }

    report = import_posts(engine, write_zip(tmp_path / "log.zip", files))

    assert report.rows_bad == 0
    assert rows_of(engine, "select user_id, session_id, title from interactions, users, items") == [
        ("-88", None, "Hello")
    ]


def test_a_log_without_articles_or_with_an_empty_file_of_them_comes_in(engine: Engine, tmp_path: Path) -> None:
    alone = import_posts(engine, write_folder(tmp_path / "a", {"users_interactions.csv.gz": LOG}))
    empty = import_posts(engine, write_articles(tmp_path / "b", b""))

    assert alone.of("users_interactions.csv").counts == {"stored": 5}
    assert empty.nothing_to_do
    assert [file.file for file in empty.files] == ["users_interactions.csv"]


def test_the_same_lines_in_another_file_are_duplicates(engine: Engine, tmp_path: Path) -> None:
    import_posts(engine, write_folder(tmp_path / "a", DESKDROP))
    first = LOG.splitlines(keepends=True)[1]
    other_session = first.replace(b"1264", b"1265")

    longer = write_folder(tmp_path / "b", {"users_interactions.csv": LOG + first + other_session})
    report = import_posts(engine, longer)

    assert report.of("users_interactions.csv").counts == {"stored": 1, "duplicates": 6}
    assert value_of(engine, "select count(*) from interactions") == 6


def test_ids_that_are_too_long_together_make_ids_that_fit(engine: Engine, tmp_path: Path) -> None:
    person = "p" * 120
    folder = write_log(
        tmp_path, *(f"{1465413032 + n},VIEW,-34,{person},s,,,".encode() for n in (0, 1, 1)), b"1,VIEW,1,1,1,,,"
    )

    import_posts(engine, folder)

    ids = [str(event_id) for (event_id,) in rows_of(engine, "select event_id from interactions order by seq")]
    assert len(set(ids)) == 3
    assert max(map(len, ids)) <= 128
    assert [event.event_id for event in posts.read_events(folder)] == [ids[0], ids[1], ids[1], ids[2]]


BAD_EVENTS = [
    (b"1465413032,VIEW,-34,-88,1264,,", "not 8 fields"),
    (b"1465413032,READ,-34,-88,1264,,,", "eventType is none of VIEW, LIKE, BOOKMARK, FOLLOW, COMMENT CREATED"),
    (b"soon,VIEW,-34,-88,1264,,,", "timestamp is not a number"),
    (b"%d,VIEW,-34,-88,1264,,," % (time.time() + 86_400), "timestamp in the future"),
    (b"1465413032,VIEW,,-88,1264,,,", "no content id"),
    (b"1465413032,VIEW,-34,,1264,,,", "no person id"),
    (b"1465413032,VIEW,-34,a/b,1264,,,", "'/' in the person id"),
    (b"1465413032,VIEW,-34,-88,a\x01b,,,", "control character in the session id"),
    (b'1465413032,VIEW,-34,-88,"1264,,,', "quotes that do not close"),
    (b"1465413032,VIEW,-34,-88,\xe9,,,", "bytes that are not UTF-8"),
]


def test_every_bad_event_is_reported_and_the_good_ones_come_in(engine: Engine, tmp_path: Path) -> None:
    good = b"1465413032,VIEW,-34,-88,1264,,,"
    folder = write_log(tmp_path, *(line for line, _ in BAD_EVENTS), b"", good)

    report = import_posts(engine, folder).of("users_interactions.csv")

    assert [(row.line, row.reason) for row in report.bad] == [
        (number, reason) for number, (_, reason) in enumerate(BAD_EVENTS, 2)
    ]
    assert report.counts == {"stored": 1}
    assert len(posts.read_events(folder)) == 1


def test_bad_articles_are_reported_by_the_line_where_they_begin(engine: Engine, tmp_path: Path) -> None:
    articles = SHARED + (
        b'1465400002,CONTENT SHARED,1,,HTML,,A,"two\nlines",en,0,one too many\n'
        b'1465400003,CONTENT SHARED,2,,HTML,,B,"never closed,en,0\n'
        b'1465400004,CONTENT SHARED,3,,HTML,,C,"three\n\nlines",en,0\n'
        b"1465400005,CONTENT LOST,4,,HTML,,D,,en,0\n"
        b"never,CONTENT SHARED,5,,HTML,,E,,en,0\n"
        b"1465400007,CONTENT SHARED,6,,HTML,,F,,a/b,0\n"
    )

    report = import_posts(engine, write_articles(tmp_path, articles)).of("shared_articles.csv")

    # The header is line 1, the first article has 2 to 5.
    assert [(row.line, row.reason) for row in report.bad] == [
        (7, "not 10 fields"),
        (9, "quotes that do not close"),
        (13, "eventType is neither CONTENT SHARED nor CONTENT REMOVED"),
        (14, "timestamp is not a number"),
        (15, "'/' in the language id"),
    ]
    assert report.counts == {"stored": 3}
    assert report.lines == 15
    assert value_of(engine, "select text from items where item_id = '3'") == "three\n\nlines"


def test_a_long_article_comes_in_and_one_too_long_is_cut(engine: Engine, tmp_path: Path) -> None:
    long, too_long = b"x " * LONGEST_LINE, b"y" * (LONGEST_TEXT + 1)
    articles = HEADER + (
        b"1465400002,CONTENT SHARED,1,,HTML,,%s,%s,en,0\n" % (b"t" * 1_001, long[: LONGEST_TEXT - 1])
        + b'1465400003,CONTENT SHARED,2,,HTML,,B,"%s\n",en,0' % (too_long * 3)
    )

    report = import_posts(engine, write_articles(tmp_path, articles)).of("shared_articles.csv")

    assert report.counts == {"stored": 2}
    lengths = "select item_id, length(title), length(text) from items where kind = 'post' order by item_id"
    assert rows_of(engine, lengths) == [("1", 1_000, LONGEST_TEXT - 1), ("2", 1, LONGEST_TEXT)]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("lines_per_chunk", [1, 100])
def test_an_article_that_was_removed_is_deleted_and_nothing_brings_it_back(
    engine: Engine, tmp_path: Path, order: int, lines_per_chunk: int
) -> None:
    lines = [
        b"1465400000,CONTENT SHARED,-34,60,HTML,,Gone,Gone,en,2\n",
        b"1465400001,CONTENT REMOVED,-34,60,HTML,,Gone,Gone,en,2\n",
        b"1465400002,CONTENT REMOVED,99,60,HTML,,Never seen,,en,0\n",
    ]
    folder = write_articles(tmp_path / "a", HEADER + b"".join(lines[::order]))

    report = import_posts(engine, folder, lines_per_chunk=lines_per_chunk).of("shared_articles.csv")
    again = import_posts(engine, write_articles(tmp_path / "b", HEADER + lines[0]))
    import_posts(engine, write_log(tmp_path / "c", b"1465413032,VIEW,99,-88,1264,,,"))

    assert report.counts["removed"] == 2
    assert again.of("shared_articles.csv").counts == {"deleted_items": 1}
    deleted = "select item_id, title, text from items where deleted_at is not null order by item_id"
    assert rows_of(engine, deleted) == [("-34", None, None), ("99", None, None)]
    kept = "select count(*) from interactions join items on items.row = item_row where item_id in ('-34', '99')"
    assert value_of(engine, kept) == 3


def test_a_removal_is_noticed_by_who_holds_the_catalogue(engine: Engine, tmp_path: Path) -> None:
    version = "select seq from versions where name = 'deletions'"
    import_posts(engine, write_folder(tmp_path / "a", DESKDROP))
    before = value_of(engine, version)

    import_posts(engine, write_articles(tmp_path / "b", HEADER + b"1465400001,CONTENT REMOVED,-34,,,,,,,\n"))

    assert value_of(engine, version) != before


def test_shifted_events_and_articles_are_moved_by_the_same(engine: Engine, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, DESKDROP)

    first = import_posts(engine, folder, shift_to_now=True, until=1465413890)
    whole = import_posts(engine, folder)

    shift = first.of("users_interactions.csv").shift_seconds
    assert first.of("users_interactions.csv").counts == {"stored": 2, "later": 3}
    assert whole.of("users_interactions.csv").counts == {"stored": 3, "duplicates": 2}
    times = "select distinct extract(epoch from timestamp)::float8 - split_part(event_id, ':', 5)::float8"
    assert rows_of(engine, f"{times} from interactions") == [(shift,)]
    newest = value_of(engine, "select extract(epoch from now() - max(timestamp))::float8 from interactions")
    assert isinstance(newest, float)
    assert 0 <= newest < 600
    published = "select extract(epoch from published_at)::float8 from items where item_id = '-34'"
    assert value_of(engine, published) == 1465400000 + shift


class _Stopped(Exception):
    """An import that ends early, as its progress decides."""


def test_an_import_goes_on_behind_the_record_where_it_stopped(engine: Engine, tmp_path: Path) -> None:
    articles = HEADER + b"".join(
        b'%d,CONTENT SHARED,%d,,HTML,,Title,"%s",en,0\n' % (1465400000 + n, n, b"line\n" * n) for n in range(8)
    )
    folder = write_articles(tmp_path, articles)
    ends = [1 + (n + 1) + n * (n + 1) // 2 for n in range(8)]
    told: list[int] = []

    def stop(what: str, done: int, total: int) -> None:
        if what == "shared_articles.csv":
            told.append(done)
            if len(told) == 2:
                raise _Stopped

    with pytest.raises(_Stopped):
        import_posts(engine, folder, lines_per_chunk=2, progress=stop)
    report = import_posts(engine, folder, lines_per_chunk=3, progress=lambda *call: told.append(call[1]))

    # Two and two records, and from there three and the last one.
    assert told == [ends[1], ends[3], ends[6], ends[7]]
    assert report.of("shared_articles.csv").lines_before == ends[3]
    assert report.of("shared_articles.csv").counts == {"stored": 8}
    assert report.of("shared_articles.csv").lines == ends[7]
    texts = "select length(text) from items where kind = 'post' order by item_id"
    assert rows_of(engine, texts) == [(None,), *((5 * n - 1,) for n in range(1, 8))]


def test_articles_are_stored_fewer_at_a_time(engine: Engine, tmp_path: Path) -> None:
    lines = b"".join(b"1465400000,CONTENT SHARED,%d,,,,,,,\n" % n for n in range(ARTICLES_PER_CHUNK + 1))
    told: list[int] = []

    import_posts(
        engine,
        write_articles(tmp_path, HEADER + lines),
        progress=lambda what, done, _: told.append(done) if what == "shared_articles.csv" else None,
    )

    assert told == [ARTICLES_PER_CHUNK + 1, ARTICLES_PER_CHUNK + 2]


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"shared_articles.csv": SHARED}, r"lacks users_interactions\.csv .*, a part of posts"),
        ({"users_interactions.csv": b""}, r"users_interactions\.csv is empty"),
        ({"users_interactions.csv": b"a,b\n"}, "should be timestamp,eventType,contentId,personId, and is 'a,b'"),
        (DESKDROP | {"shared_articles.csv": b"a\n"}, "should be timestamp,eventType,contentId, and is 'a'"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_stored(
    engine: Engine, tmp_path: Path, files: dict[str, bytes], complaint: str
) -> None:
    with pytest.raises(Invalid, match=complaint):
        import_posts(engine, write_folder(tmp_path, files))
    assert value_of(engine, "select (select count(*) from interactions) + (select count(*) from items)") == 0


def test_what_is_read_is_what_an_import_stores(engine: Engine, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, DESKDROP)

    events = posts.read_events(folder)
    import_posts(engine, folder)

    assert [tuple(event) for event in events] == rows_of(engine, EVENTS)


@pytest.mark.skipif(not REAL.is_dir(), reason="Deskdrop's articles may not be redistributed and are not at hand")
def test_the_real_deskdrop_comes_in_whole(engine: Engine) -> None:
    """Counts as published with the data set; 2,284 lines of its log repeat another one."""
    report = import_posts(engine, REAL)
    events = posts.read_events(REAL)

    assert report.rows_bad == 0
    assert report.of("users_interactions.csv").counts == {"stored": 70_028, "duplicates": 2_284}
    assert report.of("shared_articles_top.csv").counts == {"stored": 213}
    assert Counter(event.kind for event in events) == {
        "view": 61_086, "like": 5_745, "bookmark": 2_463 + 1_407, "click": 1_611,
    }  # fmt: skip
    counts = "select (select count(*) from users), count(*), count(text) from items"
    assert rows_of(engine, counts) == [(1_895, 2_987, 213)]
    assert value_of(engine, "select count(distinct session_id) from interactions") == 28_740
    languages = "select categories[1], count(*) from items where kind = 'post' group by 1 order by 1"
    assert rows_of(engine, languages) == [("en", 122), ("pt", 91)]
    liked = len({(event.user_id, event.item_id) for event in events if event.kind == "like"})
    assert value_of(engine, "select count(*) from likes") == liked
