"""The files of a data set, in a folder or a .zip, each plain or gzipped: found by name, read line by line."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from app.errors import Invalid

LONGEST_LINE = 65_536
"""In bytes, unless a format allows more; a longer line is refused, so that a file without line ends can't fill
the memory."""

_READ = 1 << 20


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file that was found; `name` is what it would be called unzipped and in its folder."""

    name: str
    place: str
    open_raw: Callable[[], IO[bytes]]

    def blocks(self) -> Iterator[bytes]:
        """The unpacked bytes. Raises Invalid where the packing is broken."""
        with self._unpacked() as stream:
            while block := stream.read(_READ):
                yield block

    def lines(self, longest: int = LONGEST_LINE) -> Iterator[bytes]:
        """Each line with its end, cut at `longest` bytes so that line numbers stay those of the file."""
        with self._unpacked() as stream:
            while line := stream.readline(longest):
                rest = line
                while len(rest) == longest and not rest.endswith(b"\n"):
                    rest = stream.readline(longest)
                yield line

    def has_lines(self) -> bool:
        return next(self.lines(), None) is not None

    @contextmanager
    def _unpacked(self) -> Iterator[io.BufferedReader]:
        # Only for the generators above: an error of whoever consumes them doesn't pass through here.
        try:
            with self.open_raw() as raw:
                unpacked = gzip.GzipFile(fileobj=raw) if self.place.endswith(".gz") else raw
                yield io.BufferedReader(cast(io.RawIOBase, unpacked), _READ)
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as broken:
            raise Invalid(f"{self.place} can't be read: {broken}") from broken


@dataclass(frozen=True, slots=True)
class Scan:
    """What one pass over a file tells: sha256 of its bytes, its lines, and whether all of it is UTF-8."""

    fingerprint: str
    lines: int
    is_utf8: bool


def scan(file: DataFile) -> Scan:
    """Reads the whole file once."""
    digest, newlines, is_utf8, last = hashlib.sha256(), 0, True, b"\n"
    decoder = codecs.getincrementaldecoder("utf-8")()
    for block in file.blocks():
        digest.update(block)
        newlines += block.count(b"\n")
        is_utf8 = is_utf8 and _decodes(decoder, block)
        last = block[-1:]
    is_utf8 = is_utf8 and _decodes(decoder, b"", final=True)
    return Scan(digest.hexdigest(), newlines + (last != b"\n"), is_utf8)


class DataFolder:
    """A folder or a .zip in which files are looked up by name, in itself or one folder below."""

    def __init__(self, path: Path) -> None:
        """Raises Invalid where `path` is neither."""
        self.path = path
        if path.is_dir():
            self._found = _in_folder(path)
        elif path.is_file() and zipfile.is_zipfile(path):
            self._found = _in_zip(path)
        else:
            wrong = "is neither a folder nor a .zip" if path.exists() else "does not exist"
            raise Invalid(f"{path} {wrong}: give the folder or .zip that holds the data set")

    def get(self, name: str) -> DataFile | None:
        """The file called `name` or `name`.gz. Raises Invalid where it could be either of two."""
        found = [file for file in self._found if file.name == name]
        if len(found) > 1:
            places = ", ".join(file.place for file in found)
            raise Invalid(f"{self.path} holds {name} more than once ({places}): name the folder of one data set")
        return found[0] if found else None

    def require(self, name: str, format_name: str) -> DataFile:
        """The file called `name` or `name`.gz. Raises Invalid where it is missing or empty."""
        file = self.get(name)
        if file is None:
            raise Invalid(f"{self.path} lacks {name} (or {name}.gz), a part of {format_name}; {self.contents}")
        if not file.has_lines():
            raise Invalid(f"{file.place} is empty")
        return file

    @property
    def contents(self) -> str:
        """What is there instead, for an error's end."""
        names = sorted({file.name for file in self._found})
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        return f"it holds {', '.join(names[:10])}{more}" if names else "it holds no files"


def _in_folder(path: Path) -> list[DataFile]:
    here = [file for file in sorted(path.iterdir()) if file.is_file()]
    below = [file for file in sorted(path.glob("*/*")) if file.is_file()]
    names = {_plain(file.name) for file in here}
    chosen = here + [file for file in below if _plain(file.name) not in names]
    return [DataFile(_plain(file.name), str(file), _opener(file)) for file in chosen]


def _opener(file: Path) -> Callable[[], IO[bytes]]:
    return lambda: file.open("rb")


def _in_zip(path: Path) -> list[DataFile]:
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.namelist() if _is_data(member)]
    depth = min((member.count("/") for member in members), default=0)
    return [
        DataFile(_plain(PurePosixPath(member).name), f"{path}/{member}", _member_opener(path, member))
        for member in members
        if member.count("/") <= depth + 1
    ]


def _is_data(member: str) -> bool:
    return not member.endswith("/") and not member.startswith("__MACOSX/")


def _member_opener(path: Path, member: str) -> Callable[[], IO[bytes]]:
    def opened() -> IO[bytes]:
        with zipfile.ZipFile(path) as archive:
            return archive.open(member)  # the member keeps the archive's file open for itself

    return opened


def _plain(name: str) -> str:
    return name.removesuffix(".gz")


def _decodes(decoder: codecs.IncrementalDecoder, block: bytes, *, final: bool = False) -> bool:
    try:
        decoder.decode(block, final)
    except UnicodeDecodeError:
        return False
    return True
