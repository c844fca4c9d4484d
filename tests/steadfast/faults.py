"""What is done to a running service: kill -9, SIGSTOP and SIGCONT, an emptied Redis, at the moment it is asked for."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeVar

import psutil
import redis

from app.storage.embedded import running_pids
from app.storage.embedded.folders import embedded_folder
from app.storage.embedded.state import read_live_state
from tests.processes import command_line
from tests.steadfast.history import Fault
from tests.steadfast.services import Service, Services

T = TypeVar("T")

SHORTEST_STOP_S = 0.2


class NobodyThere(Exception):
    """The victim does not run at the moment."""


class Faults:
    """Each kind is a method that does it and says to whom, and until when it lasts."""

    def __init__(self, services: Services, *, longest_stop_s: float) -> None:
        self._services, self._longest_stop_s = services, longest_stop_s
        self._timers: list[threading.Timer] = []
        self.kinds: dict[str, Callable[[random.Random], tuple[str, float]]] = {
            "kill worker": self._kill_worker,
            "kill parent": self._kill_parent,
            "kill all parents": self._kill_all_parents,
            "end parent": self._end_parent,
            "kill postgres": lambda _: self._kill_server("postgres"),
            "kill backend": self._kill_backend,
            "kill valkey": lambda _: self._kill_server("valkey"),
            "kill supervisor": lambda _: self._kill_server("supervisor"),
            "flush valkey": self._flush_valkey,
            "stop worker": self._stop_worker,
            "stop parent": self._stop_parent,
            "stop postgres": self._stop_postgres,
            "stop backends": self._stop_backends,
            "stop valkey": lambda chance: self._stop(chance, "valkey", [self._server("valkey")]),
        }

    def inflict(self, kind: str, chance: random.Random) -> Fault:
        """Raises NobodyThere."""
        began = time.monotonic()
        try:
            what, lasts_s = self.kinds[kind](chance)
        except (psutil.NoSuchProcess, redis.RedisError) as error:
            raise NobodyThere(str(error)) from error
        return Fault(kind, what, began, time.monotonic() + lasts_s)

    def undo(self) -> None:
        """Nothing stays stopped."""
        for timer in self._timers:
            timer.join()

    def _kill_worker(self, chance: random.Random) -> tuple[str, float]:
        worker = chance.choice(self._workers([service for service in self._services.each if service.n_workers > 1]))
        worker.kill()
        return f"worker {worker.pid}", 0.0

    def _kill_parent(self, chance: random.Random) -> tuple[str, float]:
        service = chance.choice(self._living())
        _kill(service)
        return f"service {service.target.name}", 0.0

    def _kill_all_parents(self, _: random.Random) -> tuple[str, float]:
        for service in self._living():
            _kill(service)
        return "every service", 0.0

    def _end_parent(self, chance: random.Random) -> tuple[str, float]:
        """Politely: as a deployment does."""
        service = chance.choice(self._living())
        service.is_killed = True
        service.process.terminate()
        return f"service {service.target.name}", 0.0

    def _kill_server(self, name: str) -> tuple[str, float]:
        process = self._server(name)
        process.kill()
        return f"{name} {process.pid}", 0.0

    def _kill_backend(self, chance: random.Random) -> tuple[str, float]:
        backend = chance.choice(self._backends())
        backend.kill()
        return f"backend {backend.pid}, so that Postgres recovers", 0.0

    def _flush_valkey(self, _: random.Random) -> tuple[str, float]:
        state = read_live_state(embedded_folder(self._services.data_dir))
        if state is None or not state.redis_url:
            raise NobodyThere("no supervisor")
        with redis.Redis.from_url(state.redis_url, socket_timeout=1) as client:
            client.flushall()
        return "valkey", 0.0

    def _stop_worker(self, chance: random.Random) -> tuple[str, float]:
        worker = chance.choice(self._workers(self._services.each))
        return self._stop(chance, f"worker {worker.pid}", [worker])

    def _stop_parent(self, chance: random.Random) -> tuple[str, float]:
        service = chance.choice(self._living())
        return self._stop(chance, f"parent of {service.target.name}", [service.process])

    def _stop_postgres(self, chance: random.Random) -> tuple[str, float]:
        postmaster = self._server("postgres")
        return self._stop(chance, "postgres, all of it", [postmaster, *postmaster.children()])

    def _stop_backends(self, chance: random.Random) -> tuple[str, float]:
        backends = self._backends()
        some = chance.sample(backends, chance.randint(1, len(backends)))
        return self._stop(chance, f"{len(some)} of {len(backends)} backends", some)

    def _stop(self, chance: random.Random, what: str, processes: Iterable[psutil.Process]) -> tuple[str, float]:
        lasts_s = chance.uniform(SHORTEST_STOP_S, self._longest_stop_s)
        stopped = []
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
                stopped.append(process)
        self._timers = [timer for timer in self._timers if timer.is_alive()]
        self._timers.append(threading.Timer(lasts_s, _resume, [stopped]))
        self._timers[-1].start()
        return f"{what} for {lasts_s:.1f} s", lasts_s

    def _living(self) -> list[Service]:
        return _some([service for service in self._services.each if service.is_alive], "service")

    def _workers(self, services: Iterable[Service]) -> list[psutil.Process]:
        return _some([worker for service in services for worker in service.workers()], "worker")

    def _server(self, name: str) -> psutil.Process:
        pid = running_pids(self._services.data_dir).get(name)
        if pid is None:
            raise NobodyThere(name)
        return psutil.Process(pid)

    def _backends(self) -> list[psutil.Process]:
        """Those that serve a connection: their titles name the database."""
        children = self._server("postgres").children()
        return _some([child for child in children if "segue segue" in " ".join(command_line(child))], "backend")


def _kill(service: Service) -> None:
    service.is_killed = True
    service.process.kill()


def _resume(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.resume()


def _some(found: list[T], what: str) -> list[T]:
    if not found:
        raise NobodyThere(what)
    return found
