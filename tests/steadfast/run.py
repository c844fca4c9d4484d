"""A run: services under load, one fault after another, and after each the question whether everything serves again."""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from app.storage.embedded import running_pids
from tests.processes import is_living
from tests.steadfast import stage
from tests.steadfast.checker import (
    LONGEST_ANSWER_S,
    Silence,
    Violation,
    batch_violations,
    storage_violations,
    user_violations,
)
from tests.steadfast.faults import Faults, NobodyThere
from tests.steadfast.history import Fault, told
from tests.steadfast.load import Load, Pace
from tests.steadfast.services import Services, seconds_until_gone

WORKERS = (2, 1)
"""Of the services: the first runs uvicorn's parent and two workers, the second is its own worker."""
START_S = 120.0
BEFORE_FAULTS_S = 20.0
"""A violation is told with the faults since so long before it."""
_POLL_S = 0.1

Plan = Iterator[list[str]]
"""Faults by kind; those of one list in short succession."""


@dataclass(frozen=True)
class Bounds:
    """How soon everything serves again, how soon nothing is left of a killed service, or of one that
    may drain, how long anything is stopped, and how soon there is an answer."""

    healed_s: float = 30.0
    gone_s: float = 5.0
    drained_s: float = 20.0
    longest_stop_s: float = 5.0
    answered_s: float = LONGEST_ANSWER_S


@dataclass
class Report:
    """What was done, what was answered, and what should not have been."""

    seed: int
    faults: list[Fault] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    gone_s: list[float] = field(default_factory=list)
    answers: int = 0
    degraded: int = 0
    batches: int = 0
    given_up: int = 0
    changes: int = 0
    stored: int = 0

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {len(self.faults)} faults", *self._by_kind()]
        lines.append(
            f"{self.batches} batches ({self.given_up} given up), {self.stored} events stored; {self.answers} answers "
            f"({self.degraded} degraded); {self.changes} blocks put or lifted"
        )
        if self.gone_s:
            lines.append(f"nothing left of a killed service after {max(self.gone_s):.1f} s at most")
        found = Counter(violation.kind for violation in self.violations)
        lines.append(f"{len(self.violations)} violations" + "".join(f"\n  {n} × {kind}" for kind, n in found.items()))
        return "\n".join(lines)

    def _by_kind(self) -> Iterator[str]:
        took: dict[str, list[float]] = defaultdict(list)
        for fault in self.faults:
            took[fault.kind].append((fault.healed_at or float("inf")) - fault.over)
        for kind, seconds in sorted(took.items()):
            middle = sorted(seconds)[len(seconds) // 2]
            yield f"  {len(seconds):4} × {kind:18} healed after {middle:5.1f} s, {max(seconds):5.1f} s at most"

    def explained(self, violation: Violation) -> str:
        """The violation with the faults before it."""
        since = violation.at - BEFORE_FAULTS_S
        near = [(fault.began, f"{fault.kind}: {fault.what}") for fault in self.faults if since < fault.began]
        return f"{violation}\n  faults:\n{told(moment for moment in near if moment[0] < violation.at + 1)}"


def at_random(chance: random.Random, kinds: list[str], seconds: float) -> Plan:
    """Each kind as often as the others, three in ten together with others; for so long from the first on."""
    deadline = time.monotonic() + seconds
    while True:
        for kind in chance.sample(kinds, len(kinds)):
            if time.monotonic() > deadline:
                return
            more = chance.randint(1, 2) if chance.random() < 0.3 else 0
            yield [kind, *chance.choices(kinds, k=more)]


class Run:
    """One run on a prepared data folder."""

    def __init__(self, data_dir: Path, *, seed: int, bounds: Bounds, say: Callable[[str], None], pace: Pace) -> None:
        self.report = Report(seed)
        self._data_dir, self._bounds, self._say = data_dir, bounds, say
        self._chance = random.Random(seed)
        self._services = Services(data_dir, WORKERS)
        self._faults = Faults(self._services, longest_stop_s=bounds.longest_stop_s)
        self._load = Load(self._services.targets, stage.ITEMS, stage.BLOCKABLE, seed=seed, pace=pace)

    @property
    def kinds(self) -> list[str]:
        return list(self._faults.kinds)

    def conduct(self, plan: Plan, *, longest_pause_s: float) -> Report:
        """Does what the plan says, checks everything, and leaves nothing running."""
        with ExitStack() as stack:
            stack.callback(self._services.end)
            stack.callback(self._faults.undo)
            if ailment := self._ailment_after(START_S):
                raise RuntimeError(f"the services do not start: {ailment}\n{self._logs()}")
            self._load.start()
            stack.callback(self._load.end)
            for kinds in plan:
                time.sleep(self._chance.uniform(0, longest_pause_s))
                self._strike(kinds)
                self._check_users()
        self._check_users(all_of_them=True)
        self._check_storage()
        return self.report

    def _strike(self, kinds: list[str]) -> None:
        faults = []
        for kind in kinds:
            family = {service.target.name: service.family() for service in self._services.each}
            try:
                faults.append(self._faults.inflict(kind, self._chance))
            except NobodyThere:
                continue
            self._say(f"{kind}: {faults[-1].what}")
            self._await_end_of_killed(faults, family)
            time.sleep(self._chance.uniform(0, 0.7) if kind is not kinds[-1] else 0)
        self.report.faults += faults
        if faults:
            self._await_health(faults)

    def _await_end_of_killed(self, faults: list[Fault], families: dict[str, list[psutil.Process]]) -> None:
        """A killed service takes with it what it started, and the last one the embedded servers. What is stopped can't
        end before it goes on."""
        killed = [service for service in self._services.each if service.is_killed]
        if not killed:
            return
        processes = [process for service in killed for process in families[service.target.name]]
        alone = len(killed) == len(self._services.each)

        def is_gone() -> bool:
            return not any(map(is_living, processes)) and not (alone and running_pids(self._data_dir))

        fault = faults[-1]
        seconds = seconds_until_gone(is_gone) - max(0, max(each.over for each in faults) - fault.over)
        if fault.kind != "end parent":
            self.report.gone_s.append(seconds)
        if seconds > (self._bounds.drained_s if fault.kind == "end parent" else self._bounds.gone_s):
            left = [f"{process.pid}" for process in processes if is_living(process)]
            servers = sorted(running_pids(self._data_dir)) if alone else []
            self._found(Violation("outlived its service", f"{seconds:.1f} s, {left} {servers}", fault.began))
        for service in killed:
            service.process.wait()
            service.start()

    def _await_health(self, faults: list[Fault]) -> None:
        over = max(fault.over for fault in faults)
        deadline = over - time.monotonic() + self._bounds.healed_s
        if ailment := self._ailment_after(deadline):
            what = f"not after {self._bounds.healed_s:.0f} s: {ailment}"
            self._found(Violation("not healed", what, faults[-1].began))
            if ailment := self._ailment_after(4 * self._bounds.healed_s):
                raise RuntimeError(f"nothing heals any more: {ailment}; seed {self.report.seed}\n{self._logs()}")
        for fault in faults:
            fault.healed_at = time.monotonic()

    def _ailment_after(self, seconds: float) -> str | None:
        """What is still wrong after so long; None, and at once, when nothing is any more."""
        deadline = time.monotonic() + seconds
        while ailment := self._ailment():
            if time.monotonic() > deadline:
                return ailment
            self._start_again_what_ended_by_itself()
            time.sleep(_POLL_S)
        return None

    def _ailment(self) -> str | None:
        """Whether everything runs, and every worker behind every service answers and takes events."""
        if missing := self._services.missing():
            return f"{', '.join(missing)} not complete"
        asked = (service.target for service in self._services.each for _ in range(service.n_workers))
        return next((ailment for target in asked if (ailment := self._load.ailment(target))), None)

    def _start_again_what_ended_by_itself(self) -> None:
        for service in self._services.each:
            if not service.is_alive:
                what = f"{service.target.name} with {service.process.returncode}\n{service.log_tail()}"
                self._found(Violation("service ended by itself", what, time.monotonic()))
                service.start()

    def _check_users(self, *, all_of_them: bool = False) -> None:
        for user in self._load.finished_users(all_of_them=all_of_them):
            for violation in user_violations(
                user,
                (*stage.ITEMS, *stage.BLOCKABLE),
                stage.BLOCKABLE,
                self._load.changes,
                self._silences(),
                longest_answer_s=self._bounds.answered_s,
            ):
                self._found(violation)

    def _silences(self) -> list[Silence]:
        """From a fault on what answers until everything was found to serve again."""
        return [
            (fault.began, fault.healed_at or float("inf"))
            for fault in self.report.faults
            if fault.kind.endswith(("worker", "parent", "parents"))
        ]

    def _check_storage(self) -> None:
        stored = stage.stored_events(self._data_dir)
        batches = self._load.batches
        for batch in batches:
            for violation in batch_violations(batch):
                self._found(violation)
        for violation in storage_violations(batches, stored):
            self._found(violation)
        report = self.report
        report.batches, report.stored = len(batches), len(stored)
        report.given_up = sum(batch.acknowledged_at is None for batch in batches)
        report.answers, report.degraded = self._load.answers, self._load.degraded
        report.changes = sum(map(len, self._load.changes.values()))

    def _found(self, violation: Violation) -> None:
        self.report.violations.append(violation)
        self._say(self.report.explained(violation))

    def _logs(self) -> str:
        return "\n".join(f"{service.target.name}:\n{service.log_tail(30)}" for service in self._services.each)
