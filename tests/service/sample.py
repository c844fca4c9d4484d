"""A tenth of the demo's data set: the most watched films and who watched several of them."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

DEMO = Path(__file__).resolve().parents[2] / "demo" / "movietweetings-100k"
FILMS = 400
USERS = 250


def write_sample(folder: Path, *, n_users: int = USERS) -> Path:
    """Writes ratings.dat and movies.dat in MovieTweetings' layout; returns the folder."""
    ratings = [line.split("::") for line in _lines("ratings.dat.gz")]
    films = {film for film, _ in Counter(rating[1] for rating in ratings).most_common(FILMS)}
    watched = [rating for rating in ratings if rating[1] in films]
    users = {user for user, _ in Counter(rating[0] for rating in watched).most_common(n_users)}
    folder.mkdir(parents=True)
    kept = ("::".join(rating) for rating in watched if rating[0] in users)
    (folder / "ratings.dat").write_text("\n".join(kept) + "\n", "utf-8")
    movies = (line for line in _lines("movies.dat.gz") if line.split("::")[0] in films)
    (folder / "movies.dat").write_text("\n".join(movies) + "\n", "utf-8")
    return folder


def _lines(name: str) -> list[str]:
    with gzip.open(DEMO / name, "rt", encoding="utf-8") as file:
        return file.read().splitlines()
