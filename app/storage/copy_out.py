"""COPY … TO STDOUT in Postgres' binary format, straight into numpy: millions of rows without a Python object each.

https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC).timestamp()
"""Unix seconds of where Postgres' binary times count from."""

_HEADER_BYTES = 19
_TRAILER = b"\xff\xff"
_BLOCK_BYTES = 1 << 22


def copy_out(
    db: Connection,
    query: str,
    parameters: Mapping[str, object],
    dtype: np.dtype[np.void],
    *,
    on_rows: Callable[[int], None] | None = None,
) -> NDArray[np.void]:
    """The rows of `query` as a structured array of `dtype`; parameters are written %(name)s.

    The query's columns are those of the dtype, of the same width, and never null: int2, int4, int8, float4,
    float8, and timestamptz as int64 microseconds since 2000. on_rows is told how many rows have come.
    Raises ValueError where widths differ or a null turns up.
    """
    blocks: list[NDArray[np.void]] = []
    heard = on_rows or _unheard
    rows = 0

    def keep(block: NDArray[np.void]) -> None:
        nonlocal rows
        rows += len(block)
        blocks.append(block)
        heard(rows)

    copy_blocks(db, query, parameters, dtype, keep)
    return np.concatenate(blocks)


def copy_blocks(
    db: Connection,
    query: str,
    parameters: Mapping[str, object],
    dtype: np.dtype[np.void],
    on_block: Callable[[NDArray[np.void]], None],
) -> None:
    """`copy_out` for more rows than fit into memory: on_block gets some megabytes of them at a time."""
    cursor: Any = db.connection.cursor()
    sink = _Sink(dtype, on_block)
    bound = cursor.mogrify(query, parameters).decode()
    cursor.copy_expert(f"copy ({bound}) to stdout (format binary)", sink)
    cursor.close()
    sink.finish()


def _unheard(rows: int) -> None:
    """Where nobody asked how many rows have come."""


class _Sink:
    """What psycopg2 writes to; it turns into arrays what has gathered, some megabytes at a time."""

    def __init__(self, dtype: np.dtype[np.void], on_block: Callable[[NDArray[np.void]], None]) -> None:
        self._dtype, self._wire, self._on_block = dtype, _wire(dtype), on_block
        self._gathered: list[bytes] = []
        self._size = 0
        self._skip = _HEADER_BYTES

    def write(self, data: bytes) -> None:
        self._gathered.append(data)
        self._size += len(data)
        if self._size >= _BLOCK_BYTES:
            self._digest()

    def finish(self) -> None:
        rest = self._digest()
        if rest != _TRAILER:
            raise ValueError(f"COPY ended with {len(rest)} bytes too many: a null, or a column of another width")

    def _digest(self) -> bytes:
        data = b"".join(self._gathered)[self._skip :]
        self._skip = 0
        count = len(data) // self._wire.itemsize
        raw = np.frombuffer(data, self._wire, count)
        rest = data[count * self._wire.itemsize :]
        self._gathered, self._size = [rest], len(rest)
        self._on_block(self._checked(raw))
        return rest

    def _checked(self, raw: NDArray[np.void]) -> NDArray[np.void]:
        names = self._dtype.names or ()
        block = np.empty(len(raw), self._dtype)
        right = raw["fields"] == len(names)
        for name in names:
            right &= raw[f"{name} bytes"] == self._dtype[name].itemsize
            block[name] = raw[name]
        if not right.all():
            raise ValueError(f"COPY gave a row that is not {self._dtype}: a null, or a column of another width")
        return block


def _wire(dtype: np.dtype[np.void]) -> np.dtype[np.void]:
    """A row as it is sent: the number of fields, then each one's length and value, all big-endian."""
    fields: list[tuple[str, Any]] = [("fields", ">i2")]
    for name in dtype.names or ():
        fields += [(f"{name} bytes", ">i4"), (name, dtype[name].newbyteorder(">"))]
    return np.dtype(fields)
