"""The embedded servers, with the real programs: they live exactly as long as someone holds their data folder.

Every test has a folder of its own, which it leaves without processes and files.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from app.storage.embedded import embedded_servers, running_pids
from app.storage.embedded.folders import socket_folder
from app.storage.embedded.locks import EXCLUSIVE, open_lock, try_lock, wait_for_lock
from app.storage.embedded.processes import has_arguments, spawn
from tests.app.storage.holders import (
    PATIENCE_S,
    SERVERS,
    another_holder,
    both_answer,
    cache,
    is_gone,
    nothing_runs,
    query,
    remember,
    remembers,
)
from tests.patience import until


def test_both_serve_the_way_production_does(data_dir: Path) -> None:
    with embedded_servers(data_dir) as servers, cache(servers) as client:
        assert query(servers, "SELECT current_database(), current_setting('server_encoding')") == ("segue", "UTF8")
        assert query(servers, "SELECT current_setting('TimeZone'), current_setting('fsync')") == ("UTC", "on")
        assert query(servers, "SELECT lower('ÀÉ')") == ("àé",)
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_no_tcp_port_is_opened_and_the_sockets_are_private(data_dir: Path) -> None:
    with embedded_servers(data_dir):
        pids = running_pids(data_dir)
        assert set(pids) == SERVERS
        assert all(not psutil.Process(pid).net_connections(kind="inet") for pid in pids.values())
        folders = list(socket_folder(data_dir / "embedded").iterdir())
        assert {folder.name: folder.stat().st_mode & 0o777 for folder in folders} == {
            "postgres": 0o700,
            "valkey": 0o700,
        }


def test_leaving_stops_both_and_keeps_the_data(data_dir: Path) -> None:
    with embedded_servers(data_dir) as servers:
        remember(servers)
        pids = running_pids(data_dir)
        sockets = Path(servers.redis_url.removeprefix("unix://").split("?")[0]).parents[1]
    assert running_pids(data_dir) == {}
    until(lambda: nothing_runs(data_dir, pids))
    assert not sockets.exists()
    with embedded_servers(data_dir) as servers:
        assert remembers(servers)


def test_the_last_one_out_stops_them(data_dir: Path) -> None:
    with another_holder(data_dir) as first:
        servers = first.servers()
        remember(servers)
        with embedded_servers(data_dir) as same:
            assert same == servers
            pids = running_pids(data_dir)
            first.leave()
            first.process.wait(PATIENCE_S)
            assert remembers(servers)
            assert running_pids(data_dir) == pids
        until(lambda: nothing_runs(data_dir, pids))


def test_many_first_ones_share_one_pair_of_servers(data_dir: Path) -> None:
    with ExitStack() as stack:
        holders = [stack.enter_context(another_holder(data_dir)) for _ in range(4)]
        assert len({holder.servers() for holder in holders}) == 1
        log = (data_dir / "embedded" / "supervisor.log").read_text()
        assert log.count("Postgres started") == log.count("Valkey started") == 1


def test_who_comes_while_the_last_one_leaves_is_served(data_dir: Path) -> None:
    with embedded_servers(data_dir) as servers:
        remember(servers)
    with ExitStack() as stack:
        leaving = stack.enter_context(another_holder(data_dir))
        leaving.servers()
        for delay_s in (0.0, 0.2, 0.4):
            coming = stack.enter_context(another_holder(data_dir))
            time.sleep(delay_s)
            leaving.leave()
            assert remembers(coming.servers())
            leaving = coming


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_death_of_the_only_holder_stops_them(data_dir: Path, number: signal.Signals) -> None:
    with another_holder(data_dir) as holder:
        holder.servers()
        pids = running_pids(data_dir)
        assert set(pids) == SERVERS
        holder.kill(number)
        until(lambda: nothing_runs(data_dir, pids))


@pytest.mark.parametrize("name", ["postgres", "valkey"])
def test_a_killed_server_is_restarted_at_the_same_address(data_dir: Path, name: str) -> None:
    with embedded_servers(data_dir) as servers:
        remember(servers)
        before = running_pids(data_dir)
        os.kill(before[name], signal.SIGKILL)
        until(lambda: running_pids(data_dir).get(name, before[name]) != before[name])
        until(lambda: both_answer(servers))
        after = running_pids(data_dir)
        assert {each for each in SERVERS if after[each] != before[each]} == {name}


def test_a_socket_that_a_cleaner_took_is_restored(data_dir: Path) -> None:
    with embedded_servers(data_dir) as servers:
        remember(servers)
        shutil.rmtree(socket_folder(data_dir / "embedded"))
        until(lambda: both_answer(servers))


def test_a_killed_supervisor_is_replaced_by_its_holder(data_dir: Path) -> None:
    with another_holder(data_dir) as holder:
        servers = holder.servers()
        remember(servers)
        before = running_pids(data_dir)
        os.kill(before["supervisor"], signal.SIGKILL)
        until(lambda: running_pids(data_dir).get("supervisor", before["supervisor"]) != before["supervisor"])
        until(lambda: both_answer(servers))
    until(lambda: nothing_runs(data_dir, before))


def test_the_servers_of_a_killed_supervisor_and_holder_dont_remain(data_dir: Path) -> None:
    with another_holder(data_dir) as holder:
        remember(holder.servers())
        pids = running_pids(data_dir)
        os.kill(pids["supervisor"], signal.SIGSTOP)  # so that it doesn't react to the holder's end
        holder.kill()
        os.kill(pids["supervisor"], signal.SIGKILL)
        if sys.platform == "linux":
            until(lambda: nothing_runs(data_dir, pids))
    with embedded_servers(data_dir) as servers:
        assert remembers(servers)
        assert not {pid for pid in pids.values() if not is_gone(pid)}


def test_data_survives_the_kill_of_everything(data_dir: Path) -> None:
    with another_holder(data_dir) as holder:
        remember(holder.servers())
        pids = running_pids(data_dir)
        for pid in pids.values():
            os.kill(pid, signal.SIGSTOP)  # so that none can react to the end of another
        holder.kill()
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
        until(lambda: nothing_runs(data_dir, pids))
    with embedded_servers(data_dir) as servers:
        assert remembers(servers)


def test_leftovers_of_a_killed_supervisor_are_stopped_by_the_next(data_dir: Path) -> None:
    with another_holder(data_dir) as holder:
        remember(holder.servers())
        pids = running_pids(data_dir)
        # Stopped processes don't react to their supervisor's death: as on a system that sends them no signal.
        for pid in pids.values():
            os.kill(pid, signal.SIGSTOP)
        holder.kill()
        os.kill(pids["supervisor"], signal.SIGKILL)
    until(lambda: set(running_pids(data_dir)) == {"postgres", "valkey"})
    with another_holder(data_dir) as next_holder:
        until(lambda: "supervisor" in running_pids(data_dir))
        for name in ("postgres", "valkey"):
            with suppress(ProcessLookupError):  # the supervisor that is new waits for no end that doesn't come
                os.kill(pids[name], signal.SIGCONT)
        assert remembers(next_holder.servers())
        assert is_gone(pids["postgres"])
        assert is_gone(pids["valkey"])


def test_deleting_the_data_folder_stops_them(data_dir: Path) -> None:
    with another_holder(data_dir) as holder:
        holder.servers()
        pids = running_pids(data_dir)
        until(lambda: is_deleted(data_dir))
        until(lambda: all(map(is_gone, pids.values())))


def is_deleted(folder: Path) -> bool:
    """Tries to. Servers that run in it make files and delete some, so that one round may not be enough."""
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def test_a_stranger_named_by_an_old_pid_file_is_neither_stopped_nor_in_the_way(data_dir: Path) -> None:
    with embedded_servers(data_dir) as servers:
        remember(servers)
        lines = (data_dir / "embedded" / "postgres" / "postmaster.pid").read_text().splitlines()
    user = "nobody" if os.geteuid() == 0 else None
    with subprocess.Popen(["sleep", "300"], user=user, cwd="/") as stranger:
        try:
            postgres_pid_file = data_dir / "embedded" / "postgres" / "postmaster.pid"
            postgres_pid_file.write_text("\n".join([str(stranger.pid), *lines[1:], ""]))
            postgres_pid_file.chmod(0o644)
            (data_dir / "embedded" / "valkey" / "valkey.pid").write_text(f"{stranger.pid}\n")
            assert running_pids(data_dir) == {}
            with embedded_servers(data_dir) as servers:
                assert remembers(servers)
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_a_zombie_is_not_taken_for_a_server() -> None:
    folder = Path("/nowhere/postgres")
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)", "-D", str(folder)])
    try:
        until(lambda: has_arguments(process.pid, "-D", folder))
        assert not has_arguments(process.pid, "-D", folder.with_name("postgres2"))
        process.kill()
        until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
        assert not has_arguments(process.pid, "-D", folder)
    finally:
        process.kill()
        process.wait()


def test_a_data_lock_is_free_only_once_the_server_and_its_children_are_gone(tmp_path: Path) -> None:
    ours = open_lock(tmp_path / "lock")
    assert try_lock(ours, EXCLUSIVE)
    orphaning: list[str | Path] = ["/bin/sh", "-c", 'sleep 300 & echo $! > "$1"', "sh", tmp_path / "child"]
    server = spawn(orphaning, account=None, log=tmp_path / "log", lock=ours, signal_on_orphaning=signal.SIGTERM)
    os.close(ours)
    server.wait(PATIENCE_S)
    next_one = open_lock(tmp_path / "lock")
    assert not try_lock(next_one, EXCLUSIVE)
    os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)
    assert wait_for_lock(next_one, EXCLUSIVE, PATIENCE_S)
    os.close(next_one)
