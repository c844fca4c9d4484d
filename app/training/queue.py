"""Jobs: a row in Postgres is the record, RQ on Redis hands them to the worker process."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import redis
from redis.exceptions import RedisError
from rq import Queue, SpawnWorker
from rq.job import Job
from rq.serializers import JSONSerializer
from sqlalchemy import Engine, RowMapping, delete, func, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from app.errors import Conflict, NotFound
from app.orphans import ending_with, serving_parent
from app.settings import Settings
from app.storage.database import open_engine
from app.storage.tables import NOW, jobs

log = logging.getLogger(__name__)

QUEUE = "segue-jobs"
MOST_QUEUED = 10
"""Jobs of one kind that may wait."""
LONGEST_JOB_SECONDS = 6 * 3600
FORCE_SECONDS = 2.0
"""RQ takes a second signal for a slip of the finger within 1 s of the first."""
Progress = Callable[[str, str, float], None]


def enqueue_training(engine: Engine, redis_url: str, *, parameters: dict[str, Any]) -> str:
    """Queues a training and returns the id to poll.

    The row is committed first, so that the worker finds it. Raises RedisError where Redis is away, and then
    leaves no row; and Conflict where MOST_QUEUED wait already.
    """
    job_id = f"train-{secrets.token_hex(8)}"
    with engine.begin() as db:
        queued = select(func.count()).where(jobs.c.kind == "train", jobs.c.status == "queued")
        if db.execute(queued).scalar_one() >= MOST_QUEUED:
            raise Conflict(
                f"{MOST_QUEUED} trainings are queued already; each trains on all that is there when it begins"
            )
        db.execute(insert(jobs).values(job_id=job_id, kind="train", parameters=parameters))
    try:
        _queue(redis_url).enqueue_call(
            "app.training.queue.run_training", (job_id,), job_id=job_id, timeout=LONGEST_JOB_SECONDS
        )
    except RedisError:
        with engine.begin() as db:
            db.execute(delete(jobs).where(jobs.c.job_id == job_id))
        raise
    return job_id


def find_job(engine: Engine, job_id: str) -> RowMapping:
    """The job's row. Raises NotFound."""
    with engine.connect() as db:
        row = db.execute(select(jobs).where(jobs.c.job_id == job_id)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"job {job_id!r} does not exist")
    return row


def run_worker(settings: Settings, *, burst: bool = False) -> None:
    """Works off jobs until it is told to stop (SIGTERM finishes the running one, a second one ends it).

    burst: stop when the queue is empty
    """
    url = _required(settings.redis_url)
    _fail_abandoned(settings, url)
    worker = SpawnWorker(
        [_queue(url)], connection=redis.Redis.from_url(url), serializer=JSONSerializer, log_job_description=False
    )
    try:
        with ending_with(serving_parent(), _stop_now):
            worker.work(burst=burst, with_scheduler=False, logging_level="WARNING")
    finally:
        with suppress(RedisError, SQLAlchemyError):
            _fail_abandoned(settings, url)


def _stop_now() -> None:
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(FORCE_SECONDS)
    os._exit(1)


def run_training(job_id: str) -> None:
    """What the worker calls, in a process of its own: trains as the job's row says, and writes there how it goes."""
    with ending_with(os.getppid(), lambda: os._exit(1)):
        _train(job_id)


def _train(job_id: str) -> None:
    from app.training.job import train  # noqa: PLC0415 - only the process that trains pays for the libraries

    settings = Settings()
    engine = open_engine(_required(settings.database_url), statement_timeout_seconds=600)
    try:
        parameters = dict(find_job(engine, job_id)["parameters"])
        _update(engine, job_id, status="running", started_at=NOW)
        report = train(engine, settings, progress=_reporter(engine, job_id), **parameters)
        _update(engine, job_id, status="succeeded", progress=1.0, result=report.as_json(), finished_at=NOW)
    except Exception as error:
        _update(engine, job_id, status="failed", error=f"{type(error).__name__}: {error}", finished_at=NOW)
        raise
    finally:
        engine.dispose()


def _reporter(engine: Engine, job_id: str) -> Progress:
    said: tuple[str, int] = ("", -1)

    def report(phase: str, what: str, fraction: float) -> None:
        nonlocal said
        now = (f"{phase}: {what}", int(fraction * 20))
        if now != said:
            said = now
            _update(engine, job_id, step=now[0], progress=min(fraction, 1.0))

    return report


def _fail_abandoned(settings: Settings, redis_url: str) -> None:
    """Jobs that say `running` but that no worker has any more ended with the machine or the process."""
    engine = open_engine(_required(settings.database_url))
    connection = redis.Redis.from_url(redis_url)
    try:
        with engine.connect() as db:
            running = db.execute(select(jobs.c.job_id).where(jobs.c.status == "running")).scalars().all()
        for job_id in running:
            if not Job.exists(job_id, connection=connection) or _is_orphan(job_id, connection):
                _update(engine, job_id, status="failed", error="the worker died", finished_at=NOW)
    finally:
        engine.dispose()


def _is_orphan(job_id: str, connection: redis.Redis) -> bool:
    """Whether its worker said good-bye, stopped its heartbeat, or is no longer a process of this machine.

    The heartbeat of a killed worker is over only after minutes, and a service that crashed is started at once.
    """
    job = Job.fetch(job_id, connection=connection, serializer=JSONSerializer)
    worker = connection.hgetall(f"rq:worker:{job.worker_name}")
    if not worker or b"death" in worker:
        return True
    is_here = worker.get(b"hostname") == socket.gethostname().encode()
    return is_here and not _is_alive(int(worker.get(b"pid", 0)))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _update(engine: Engine, job_id: str, **values: Any) -> None:
    with engine.begin() as db:
        db.execute(update(jobs).where(jobs.c.job_id == job_id).values(**values))


def _queue(redis_url: str) -> Queue:
    # JSON, not pickle: whoever can write to Redis must not be able to run code here.
    return Queue(QUEUE, connection=redis.Redis.from_url(redis_url, socket_timeout=5), serializer=JSONSerializer)


def _required(url: str | None) -> str:
    if url is None:
        raise RuntimeError("DATABASE_URL and REDIS_URL must be set for a worker; `segue worker` sets them")
    return url
