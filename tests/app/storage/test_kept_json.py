"""JSON that is kept: the same as orjson writes, and no more room than that."""

import orjson

from app.storage.kept_json import kept_json
from tests.room import room

CONTENT = {"rows": list(range(500)), "scores": [row / 7 for row in range(500)]}


def test_it_is_what_orjson_writes() -> None:
    assert kept_json(CONTENT) == orjson.dumps(CONTENT)


def test_nothing_is_held_behind_it() -> None:
    with room() as held:
        kept = [kept_json(CONTENT) for _ in range(20)]
        assert held() < 2 * sum(map(len, kept))
