"""CPU time of the Postgres and the Redis that a benchmark runs on: this process is but a part of it."""

from __future__ import annotations

import time

import psutil  # type: ignore[import-untyped]
import psycopg2
import redis


class ServersCpu:
    """Of all processes of both servers, and of this process; the servers run on this machine."""

    def __init__(self, database_url: str, redis_url: str) -> None:
        self._postgres = _postmaster(database_url)
        self._redis = redis.Redis.from_url(redis_url)

    def seconds(self) -> dict[str, float]:
        """Since each began: `client` is this process."""
        return {"client": time.process_time(), "Postgres": self._of_postgres(), "Redis": self._of_redis()}

    def _of_postgres(self) -> float:
        # The postmaster knows of the backends that ended: what they took is counted among its children's.
        ended = sum(self._postgres.cpu_times()[:4])
        living = [sum(each.cpu_times()[:2]) for each in self._postgres.children()]
        return float(ended + sum(living))

    def _of_redis(self) -> float:
        taken = self._redis.info("cpu")
        return float(taken["used_cpu_user"] + taken["used_cpu_sys"])


def shares(before: dict[str, float], after: dict[str, float], events: int) -> str:
    """What each took of an event, in microseconds."""
    return "  ".join(f"{name} {1e6 * (after[name] - before[name]) / events:.0f} us" for name in before)


def _postmaster(url: str) -> psutil.Process:
    db = psycopg2.connect(url)
    cursor = db.cursor()
    cursor.execute("SELECT pg_backend_pid()")
    [pid] = cursor.fetchone()
    postmaster = psutil.Process(pid).parent()
    db.close()
    return postmaster
