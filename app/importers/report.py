"""What an import did: row for row accounted for, the bad ones with file, line and reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[str, int, int], None]
"""Called with the file's name, its lines that are behind, and all its lines."""

BAD_ROWS_KEPT = 100
"""How many bad rows a report holds per file; all of them are counted."""
BAD_ROWS_SHOWN = 10


def unwatched(what: str, done: int, total: int) -> None:
    """The Progress of an import that nobody watches."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A line that was not imported, and why; lines count from 1, a CSV's header included."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass(frozen=True, slots=True)
class FileReport:
    """What became of one file, over every run that it took.

    lines:         of the file, blank ones and a header included
    lines_before:  of these, done by an earlier run or by another import running beside this one
    nothing_to_do: an earlier run had finished the file
    counts:        rows by what became of them: `stored`, `duplicates`, `erased_users`, `deleted_items`,
                   `later` (events that the import was to leave out)
    bad_by_reason: rows refused, by reason; `bad` holds the first of those that this run met
    shift_seconds: what was added to every time
    """

    file: str
    lines: int
    lines_before: int
    nothing_to_do: bool
    counts: Counter[str]
    bad_by_reason: Counter[str]
    bad: tuple[BadRow, ...]
    shift_seconds: float

    def summary(self) -> str:
        """What became of its rows, each reason for refusal, and the first rows refused."""
        became = [f"{count:,} {what.replace('_', ' ')}" for what, count in sorted(self.counts.items())]
        if self.shift_seconds:
            became.append(f"times moved by {self.shift_seconds:+,.0f} s")
        if self.nothing_to_do:
            became.append("all of it by an earlier run")
        refused = [f"    refused {count:,}: {reason}" for reason, count in self.bad_by_reason.most_common()]
        first = [f"      {row}" for row in self.bad[:BAD_ROWS_SHOWN]]
        return "\n".join([f"  {self.file}: {', '.join(became) or 'no rows'}", *refused, *first])


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What became of a data set; `seconds` is the time that this run took."""

    format: str
    files: tuple[FileReport, ...]
    seconds: float

    @property
    def nothing_to_do(self) -> bool:
        return all(file.nothing_to_do for file in self.files)

    @property
    def bad(self) -> tuple[BadRow, ...]:
        return tuple(row for file in self.files for row in file.bad)

    @property
    def rows_bad(self) -> int:
        return sum(file.bad_by_reason.total() for file in self.files)

    @property
    def rows_per_second(self) -> float:
        """Lines that this run went through per second."""
        done = sum(file.lines - file.lines_before for file in self.files)
        return done / self.seconds if self.seconds > 0 else 0.0

    def summary(self) -> str:
        """All of it for a reader: a line for the whole, some for each file."""
        done = sum(file.lines - file.lines_before for file in self.files)
        head = "nothing to do" if self.nothing_to_do else f"{done:,} lines, {self.rows_per_second:,.0f} a second"
        return "\n".join([f"{self.format}: {head} ({self.seconds:.1f} s)", *(file.summary() for file in self.files)])

    def of(self, file: str) -> FileReport:
        """The report on the file of this name. Raises KeyError where there was none."""
        for report in self.files:
            if report.file == file:
                return report
        raise KeyError(file)
