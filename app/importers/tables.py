"""One table in a file of its own: CSV, plain or gzipped, or Parquet, which is read as the CSV that it stands for."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from app.errors import Invalid
from app.importers.files import DataFile

PARQUET = (".parquet", ".pq")
CSV = (".csv", ".csv.gz")
_ROWS_AT_ONCE = 65_536


def table(path: Path) -> DataFile:
    """The table at `path`, or the only one in that folder. Raises Invalid where there is none, or are several."""
    if path.is_dir():
        found = [
            file for file in sorted(path.iterdir()) if file.is_file() and file.name.lower().endswith(PARQUET + CSV)
        ]
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise Invalid(f"{path} holds {len(found)} tables ({names}): name one, as .csv, .csv.gz or .parquet")
        path = found[0]
    if not path.is_file():
        raise Invalid(f"{path} does not exist: give a table as .csv, .csv.gz or .parquet")
    name = path.name.lower()
    if name.endswith(PARQUET):
        # Its lines are those of the CSV: the header is the first.
        return DataFile(path.name, str(path), lambda: cast(IO[bytes], io.BufferedReader(_Joined(_as_csv(path)))))
    if not name.endswith(CSV):
        raise Invalid(f"{path} is neither .csv, .csv.gz nor .parquet")
    return DataFile(path.name.removesuffix(".gz"), str(path), lambda: path.open("rb"))


class _Joined(io.RawIOBase):
    """A stream of the pieces that an iterator makes one after the other."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer))
        while not self._left:
            try:
                self._left = next(self._pieces)
            except StopIteration:
                return 0
        taken, self._left = self._left[: len(view)], self._left[len(view) :]
        view[: len(taken)] = taken
        return len(taken)


def _as_csv(path: Path) -> Iterator[bytes]:
    # Costs 0.2 s and 50 MB: only who imports Parquet pays for it.
    import pyarrow  # noqa: PLC0415
    from pyarrow import csv, parquet  # noqa: PLC0415

    try:
        with parquet.ParquetFile(path) as file:
            options = csv.WriteOptions(include_header=False)
            yield (",".join(f'"{name}"' for name in file.schema_arrow.names) + "\n").encode()
            for batch in file.iter_batches(_ROWS_AT_ONCE):
                text = io.BytesIO()
                csv.write_csv(batch, text, options)
                yield text.getvalue()
    except pyarrow.ArrowException as broken:
        raise Invalid(f"{path} can't be read: {broken}") from broken
