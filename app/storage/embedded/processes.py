"""Starting, recognising and stopping server processes, on Linux and macOS, without psutil."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_POLL_S = 0.02
_LOG_TAIL_LINES = 15
_LOG_TAIL_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Account:
    """The user that a server runs as where it is not the current one."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class StopStep:
    """A signal, and how many seconds to wait for its effect before the next, harsher one."""

    signal: signal.Signals
    wait_s: float


def as_account(account: Account | None) -> dict[str, Any]:
    """The arguments of `subprocess.Popen` that run a program as this account, the current user for None."""
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def allowed(account: Account | None, shell_test: str, *arguments: Path) -> bool:
    """Whether a shell test on `$1`, `$2`… succeeds as the account: asks the kernel, so that ACLs count too."""
    command = ["/bin/sh", "-c", shell_test, "sh", *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, cwd="/", **as_account(account))
    return done.returncode == 0


def spawn(
    command: Sequence[str | Path],
    *,
    account: Account | None,
    log: Path,
    lock: int,
    signal_on_orphaning: signal.Signals,
) -> subprocess.Popen[bytes]:
    """Starts a program as a child that appends to `log` and inherits `lock`: the lock is free only once it is gone,
    with all the children that it forked. On Linux it gets `signal_on_orphaning` when this process dies.

    Elsewhere, a server that outlived its supervisor is stopped by the next one.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=_server_environment(),
            pass_fds=(lock,),
            preexec_fn=_orphan_signal(signal_on_orphaning),  # noqa: PLW1509 - the supervisor has one thread
            **as_account(account),
        )


def _server_environment() -> dict[str, str]:
    """Ours, without what would redirect Postgres, and with the one locale that every system has."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "LC_"))}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}


def _orphan_signal(number: signal.Signals) -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up here: after the fork as little as possible should run
    parent = os.getpid()

    def ask_for_the_signal() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # the parent died before the request

    return ask_for_the_signal


def has_arguments(pid: int, *arguments: str | Path) -> bool:
    """Whether the process lives and was started with these arguments, one after the other.

    A process id alone proves nothing: it may be reused, or belong to a zombie, whose arguments are gone.
    """
    return f" {' '.join(map(str, arguments))} " in f" {_command_line(pid)} "


def _command_line(pid: int) -> str:
    if Path("/proc/self/cmdline").exists():  # slim containers have no `ps`, and macOS has no /proc
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return ""
    shown = subprocess.run(
        ["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)], check=False, capture_output=True, text=True
    )
    return shown.stdout.strip()


def stop(find_pid: Callable[[], int | None], is_gone: Callable[[], bool], steps: Sequence[StopStep]) -> bool:
    """Signals a process, ever more harshly, until it is gone. Returns whether it went.

    The process is looked up before each signal, so that none is sent to a stranger.
    """
    if is_gone():
        return True
    for step in steps:
        pid = find_pid()
        if pid is not None:
            _signal(pid, step.signal)
        if _becomes_true(is_gone, step.wait_s):
            return True
    return is_gone()


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it went by itself
        os.kill(pid, number)


def _becomes_true(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def log_tail(log: Path) -> str:
    """The log's name and last lines, to end an error message with."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
    except FileNotFoundError:
        lines = []
    return "\n".join([f"The last lines of {log}:", *lines])
