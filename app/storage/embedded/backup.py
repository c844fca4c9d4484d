"""A backup of a data folder that is in use: a physical copy of its Postgres, and its releases; and the way back.

    <backup>/backup.json     written last; a folder without it is no backup
             postgres/       as pg_basebackup makes it, with the checksums of every file (backup_manifest)
             releases/       the release folders and the pointer to the current one

A backup is built aside and renamed, so that what was interrupted never looks like one. Redis is left out: all that it
holds can be rebuilt, and a restored database must not meet it again (docs/decisions/0014).
"""

import hashlib
import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from app.storage.embedded.errors import EmbeddedServersError
from app.storage.embedded.folders import embedded_folder, known_postgres_home, postgres_account, postgres_home
from app.storage.embedded.holder import EmbeddedServers, running_pids
from app.storage.embedded.locks import EXCLUSIVE, open_lock, try_lock
from app.storage.embedded.postgres import installed_package

FORMAT = 1
MANIFEST = "backup.json"
_UNFINISHED = ".restoring-"
_PARTS = ("releases", "embedded")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup says of itself.

    made_at:  RFC 3339; everything acknowledged before is in it
    postgres: major version, which restoring needs
    releases: SHA-256 of each file below releases/, by its path there
    """

    format: int
    made_at: str
    database_id: str
    postgres: str
    releases: Mapping[str, str]


def make(servers: EmbeddedServers, releases_dir: Path, database_id: str, target: Path) -> Manifest:
    """Writes the backup of running servers; others may go on writing.

    Raises EmbeddedServersError where the target exists, or Postgres can't be copied.
    """
    if target.exists():
        raise EmbeddedServersError(f"{target} exists: a backup is a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    with _aside(target.with_name(f".{target.name}.{secrets.token_hex(4)}.unfinished")) as unfinished:
        _copy_postgres(servers, unfinished / "postgres")
        # After the database, so that every release that it names is here.
        _copy_releases(releases_dir, unfinished / "releases")
        version = (unfinished / "postgres" / "PG_VERSION").read_text("utf-8").strip()
        manifest = Manifest(FORMAT, made_at, database_id, version, _sums(unfinished / "releases"))
        _verify_postgres(unfinished / "postgres")
        _write_durably(unfinished / MANIFEST, json.dumps(asdict(manifest), indent=1))
        unfinished.rename(target)
        _sync_folder(target.parent)
    return manifest


def read(backup: Path) -> Manifest:
    """Raises EmbeddedServersError for a folder that is no finished backup, or is of another format."""
    try:
        found = json.loads((backup / MANIFEST).read_text("utf-8"))
        manifest = Manifest(**found)
    except (OSError, ValueError, TypeError) as error:
        raise EmbeddedServersError(f"{backup} is not a finished backup: {MANIFEST} can't be read ({error})") from error
    if manifest.format != FORMAT:
        raise EmbeddedServersError(f"{backup} has the format {manifest.format}; this version reads {FORMAT}")
    return manifest


def verify(backup: Path) -> Manifest:
    """Reads all of it and compares the checksums. Raises EmbeddedServersError, naming the first file that differs."""
    manifest = read(backup)
    _verify_postgres(backup / "postgres")
    found = _sums(backup / "releases")
    for name in sorted(found.keys() | manifest.releases.keys()):
        if found.get(name) != manifest.releases.get(name):
            raise EmbeddedServersError(f"{backup / 'releases' / name} is not the file that was backed up")
    return manifest


def refuse_in_use(data_dir: Path, *, replace: bool) -> None:
    """Raises EmbeddedServersError where the data folder is served, or holds something that may not be replaced."""
    if running_pids(data_dir):
        raise EmbeddedServersError(f"{data_dir} is in use: stop what serves it first")
    releases = data_dir / "releases"
    has_releases = releases.is_dir() and any(releases.iterdir())
    kept = [part for part, held in (("releases", has_releases), ("embedded", holds_database(data_dir))) if held]
    if kept and not replace:
        raise EmbeddedServersError(
            f"{data_dir} is not empty ({', '.join(kept)}): restore to another folder, or say --replace, which puts "
            "what is there aside"
        )


def holds_database(data_dir: Path) -> bool:
    """Whether there is an embedded Postgres with data."""
    return (known_postgres_home(data_dir / "embedded") / "postgres").exists()


@contextmanager
def unpacked(backup: Path, data_dir: Path) -> Iterator[Path]:
    """The backup as a data folder of its own, for `embedded_servers`, until it is put in place or the block ends."""
    data_dir.mkdir(parents=True, exist_ok=True)
    for abandoned in data_dir.glob(f"{_UNFINISHED}*"):
        _remove(abandoned)
    aside = data_dir / f"{_UNFINISHED}{secrets.token_hex(4)}"
    try:
        folder = embedded_folder(aside)
        home = postgres_home(folder)
        account = postgres_account(home)
        shutil.copytree(backup / "postgres", home / "postgres", symlinks=True)
        for path in (home / "postgres", *(home / "postgres").rglob("*")):
            path.chmod(0o700 if path.is_dir() else 0o600)
            if account is not None:
                os.chown(path, account.uid, account.gid)
        shutil.copytree(backup / "releases", aside / "releases")
        yield aside
    finally:
        _remove(aside)


def put_in_place(aside: Path, data_dir: Path) -> Path | None:
    """Makes `unpacked` what the data folder holds; where to that went which it held before."""
    shutil.rmtree(aside / "embedded" / "valkey", ignore_errors=True)
    replaced = data_dir / f"replaced-{datetime.now(UTC):%Y-%m-%dT%H-%M-%SZ}-{secrets.token_hex(2)}"
    with _alone(data_dir / "embedded"):
        before = [part for part in _PARTS if (data_dir / part).exists()]
        for part in before:
            replaced.mkdir(exist_ok=True)
            (data_dir / part).rename(replaced / part)
            _claim(replaced / part)
        # The database last: without it nobody takes the folder for a restored one.
        for part in _PARTS:
            (aside / part).rename(data_dir / part)
        _claim(data_dir / "embedded")
        _sync_folder(data_dir)
    return replaced if before else None


def _copy_postgres(servers: EmbeddedServers, target: Path) -> None:
    address = parse_qs(urlsplit(servers.database_url).query)
    _run(
        "pg_basebackup", "--pgdata", target, "--host", address["host"][0], "--port", address["port"][0],
        "--username", "segue", "--no-password", "--checkpoint=fast", "--wal-method=stream",
        "--manifest-checksums=SHA256",
    )  # fmt: skip


def _verify_postgres(folder: Path) -> None:
    _run("pg_verifybackup", "--quiet", "--exit-on-error", folder)


def _run(program: str, *arguments: str | Path) -> None:
    path = installed_package() / "pginstall" / "bin" / program
    done = subprocess.run([path, *arguments], check=False, capture_output=True, text=True, cwd="/")
    if done.returncode != 0:
        raise EmbeddedServersError(f"{program} failed: {done.stderr.strip() or done.stdout.strip()}")


def _copy_releases(releases_dir: Path, target: Path) -> None:
    """The pointer first, for the folder that it names is there by then; not what is just being written."""
    target.mkdir()
    pointer = releases_dir / "current"
    if pointer.exists():
        _write_durably(target / "current", pointer.read_text("utf-8"))
    for release in sorted(releases_dir.glob("[!.]*/")):
        shutil.copytree(release, target / release.name, copy_function=_copy_durably)


def _copy_durably(source: str, target: str) -> None:
    shutil.copyfile(source, target)
    _sync_folder(Path(target))


def _sums(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): _sum(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_durably(path: Path, text: str) -> None:
    path.write_text(text, "utf-8")
    _sync_folder(path)


def _sync_folder(path: Path) -> None:
    """Or a file: either is on the disk once this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody begins to use the servers' folder within the block."""
    if not folder.exists():
        yield
        return
    lock = open_lock(folder / "holders.lock")
    try:
        if not try_lock(lock, EXCLUSIVE):
            raise EmbeddedServersError(f"{folder} is in use: stop what serves it first")
        yield
    finally:
        os.close(lock)


def _claim(folder: Path) -> None:
    """Data that lies elsewhere says whose it is: the folder has another name now."""
    home = known_postgres_home(folder)
    if folder.name == "embedded" and home != folder and home.is_dir():
        (home / "belongs-to").write_text(f"{folder.resolve()}\n", "utf-8")


def _remove(aside: Path) -> None:
    home = known_postgres_home(aside / "embedded")
    for folder in (home if home != aside / "embedded" else aside, aside):
        shutil.rmtree(folder, ignore_errors=True)
