"""Where the embedded servers keep their data and their sockets.

Folders that are not ours are never given other permissions. So as root, when Postgres runs as an unprivileged user
that can't enter the data folder, its data goes to a folder of its own (under /var/lib), whose path is recorded. A data
folder in the temp dir, a test's say, keeps it there, and what such ones left behind is removed.
"""

import hashlib
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from app.storage.embedded.errors import EmbeddedServersError
from app.storage.embedded.processes import Account, allowed

_UNPRIVILEGED_USER = "nobody"
_HOME_PREFIX = "segue-data-"
_CAN_ENTER = 'cd "$1"'

# Not the temp dirs first: systems empty those by age. /var/db is macOS' /var/lib.
_DATA_BASES = (Path("/var/lib"), Path("/var/db"), Path("/var/tmp"))  # noqa: S108 - mkdtemp makes a private folder in it

# The shortest first, and before $TMPDIR: every supervisor of a data folder must find the same place.
_SOCKET_BASES = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - the folder's owner is checked

# 104 bytes with the closing zero on macOS, 108 on Linux.
_LONGEST_SOCKET_PATH = 103
_LONGEST_SOCKET_NAME = "postgres/.s.PGSQL.5432"


def embedded_folder(data_dir: Path) -> Path:
    """`<data_dir>/embedded`, created when missing: private, but for root, whose Postgres user must pass through it."""
    folder = data_dir.resolve() / "embedded"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _make_folder(folder, mode=0o711 if os.geteuid() == 0 else 0o700)
    except OSError as error:
        raise EmbeddedServersError(f"The data folder {data_dir} can't be used: {error}") from error
    return folder


def postgres_account(home: Path) -> Account | None:
    """The user to run Postgres as: as root the owner of the data, else the unprivileged user; otherwise ourselves."""
    data = home / "postgres"
    if os.geteuid() != 0:
        return None
    if data.exists() and data.stat().st_uid != 0:
        return _account(data)
    try:
        entry = pwd.getpwnam(_UNPRIVILEGED_USER)
    except KeyError as error:
        raise EmbeddedServersError(
            f"Postgres refuses to run as root, and there is no user {_UNPRIVILEGED_USER!r} to run it as: "
            "start Segue as another user, or set DATABASE_URL and REDIS_URL"
        ) from error
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def owner_account(folder: Path) -> Account | None:
    """The folder's owner, for a server that root runs on a folder which a normal user began; None for ourselves."""
    return _account(folder) if os.geteuid() == 0 and folder.stat().st_uid != 0 else None


def _account(path: Path) -> Account:
    status = path.stat()
    return Account(f"uid {status.st_uid}", status.st_uid, status.st_gid)


def make_private_folder(folder: Path, account: Account | None) -> None:
    """Creates a folder that only the account, or ourselves for None, may enter; another's is left as it is."""
    _make_folder(folder, mode=0o700)
    if account is not None and folder.stat().st_uid == os.geteuid():
        os.chown(folder, account.uid, account.gid)


def _make_folder(folder: Path, mode: int) -> None:
    with suppress(FileExistsError):
        folder.mkdir()
        folder.chmod(mode)  # whatever the umask


def postgres_home(folder: Path) -> Path:
    """The folder for Postgres' data: the embedded folder, or one elsewhere where its user can't enter that.

    Raises:
        EmbeddedServersError: data is there, but out of its user's reach or gone.
    """
    record = _home_record(folder)
    if record.exists():
        return _recorded_home(record, folder)
    account = postgres_account(folder)
    if account is None or allowed(account, _CAN_ENTER, folder):
        return folder
    if (folder / "postgres").exists():
        raise EmbeddedServersError(
            f"Postgres' data is in {folder}, which the user {account.name} may no longer enter: "
            "let it pass through the folders above (chmod o+x)"
        )
    return _home_elsewhere(record, folder, account)


def known_postgres_home(folder: Path) -> Path:
    """Where Postgres' data is, if there is any; decides and checks nothing."""
    record = _home_record(folder)
    return Path(record.read_text().strip()) if record.exists() else folder


def _home_record(folder: Path) -> Path:
    return folder / "postgres.home"


def _recorded_home(record: Path, folder: Path) -> Path:
    home = known_postgres_home(folder)
    if not home.is_dir():
        raise EmbeddedServersError(
            f"{record} says that Postgres' data is in {home}, which is gone: "
            f"bring it back, or remove {record} to start empty"
        )
    _claim(home, folder)
    return home


def _claim(home: Path, folder: Path) -> None:
    """Refuses a home that belongs to another data folder, which the one at hand is a copy of, unless that has moved."""
    claim = home / "belongs-to"
    owner = Path(claim.read_text().strip()) if claim.exists() else folder
    if owner != folder and owner.exists():
        raise EmbeddedServersError(
            f"{folder} is a copy of {owner}, whose Postgres data is in {home}: "
            f"remove {_home_record(folder)} to start empty"
        )
    claim.write_text(f"{folder}\n")


def _home_elsewhere(record: Path, folder: Path, account: Account) -> Path:
    temporary = Path(tempfile.gettempdir()).resolve()
    bases = [temporary, *_DATA_BASES] if folder.is_relative_to(temporary) else _DATA_BASES
    base = next((base for base in bases if _usable(base, account)), None)
    if base is None:
        raise EmbeddedServersError(
            f"The user {account.name}, who runs Postgres, can't enter {folder}, "
            f"and none of {_listed(bases)} is writable: "
            "use a data folder elsewhere, or set DATABASE_URL and REDIS_URL"
        )
    if base == temporary:
        _remove_abandoned_homes(base)
    home = Path(tempfile.mkdtemp(prefix=_HOME_PREFIX, dir=base))
    home.chmod(0o711)
    _claim(home, folder)
    record.write_text(f"{home}\n")
    return home


def _remove_abandoned_homes(temporary: Path) -> None:
    for home in temporary.glob(f"{_HOME_PREFIX}*"):
        claim = home / "belongs-to"
        if home.lstat().st_uid == os.geteuid() and claim.is_file() and not Path(claim.read_text().strip()).exists():
            shutil.rmtree(home, ignore_errors=True)


def socket_folder(folder: Path) -> Path:
    """A short private folder for the sockets, the same one for every supervisor of this data folder.

    Raises:
        EmbeddedServersError: no temp dir can be used, or another user has taken the name.
    """
    # Only the folders in it are entered: Postgres' belongs to its user, Valkey's to ours.
    name = f"segue-{os.geteuid()}-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    for base in (*_SOCKET_BASES, Path(tempfile.gettempdir())):
        sockets = base / name
        if len(os.fsencode(sockets / _LONGEST_SOCKET_NAME)) <= _LONGEST_SOCKET_PATH and _usable(base, None):
            _make_folder(sockets, mode=0o711)
            _refuse_foreign(sockets)
            return sockets
    raise EmbeddedServersError(f"No folder for sockets: none of {_listed(_SOCKET_BASES)} and $TMPDIR is writable")


def remove_socket_folder(sockets: Path) -> None:
    """Removes the folder that `socket_folder` made."""
    shutil.rmtree(sockets, ignore_errors=True)


def _refuse_foreign(folder: Path) -> None:
    """Anyone may create a folder, or a link, of this name in a temp dir before us."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise EmbeddedServersError(f"{folder} is not a private folder of the current user: remove it")


def _usable(base: Path, account: Account | None) -> bool:
    return base.is_dir() and os.access(base, os.W_OK | os.X_OK) and allowed(account, _CAN_ENTER, base)


def _listed(folders: Iterable[Path]) -> str:
    return ", ".join(map(str, folders))
