"""MovieTweetings in: the bundled 100k whole, and small files with what real ones have in store."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine, text

from app.importers.movietweetings import import_movietweetings

DEMO = Path(__file__).resolve().parents[3] / "demo" / "movietweetings-100k"


def test_the_bundled_data_set_comes_in_whole_and_ends_now(engine: Engine) -> None:
    report = import_movietweetings(engine, DEMO, shift_to_now=True)

    assert report.of("ratings.dat").counts == {"stored": 100_000}
    assert report.rows_bad == 0
    with engine.connect() as db:
        counts = db.execute(text("select (select count(*) from users), (select count(*) from items)")).one()
        age = db.execute(text("select extract(epoch from now() - max(timestamp)) from interactions")).scalar_one()
    assert counts == (16_554, 10_506)
    assert 0 <= age < 120
