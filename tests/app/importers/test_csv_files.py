"""Records of CSV files that span lines, and columns found by their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import Invalid
from app.importers.csv_files import LONGEST_RECORD, by_header, spanning_lines
from app.importers.files import DataFile, DataFolder
from app.importers.rows import Refused, comma_separated
from tests.app.importers.datasets import write_folder


def csv_file(folder: Path, content: bytes) -> DataFile:
    return DataFolder(write_folder(folder, {"a.csv": content})).require("a.csv", "test")


@pytest.mark.parametrize(
    ("lines", "records"),
    [
        ([b"a,b\n", b"c,d"], [(1, 1, b"a,b\n"), (2, 2, b"c,d")]),
        ([b'1,"a\n', b"\n", b'b"\n', b"2,c\n"], [(1, 3, b'1,"a\n\nb"\n'), (4, 4, b"2,c\n")]),
        # Doubled quotes say nothing of where a field ends.
        ([b'1,"a ""b""\r\n', b'""c"""\r\n', b"2\r\n"], [(1, 2, b'1,"a ""b""\r\n""c"""\r\n'), (3, 3, b"2\r\n")]),
        # Never closed: the lines behind stand for themselves.
        ([b'1,"a\n', b"2,b\n", b"3,c\n"], [(1, 1, b'1,"a\n'), (2, 2, b"2,b\n"), (3, 3, b"3,c\n")]),
        # Closed by the opening of a later record, which makes no record together.
        (
            [b'1,"a\n', b"2,b\n", b'3,"c\n', b'd"\n', b"4\n"],
            [(1, 1, b'1,"a\n'), (2, 2, b"2,b\n"), (3, 4, b'3,"c\nd"\n'), (5, 5, b"4\n")],
        ),
        # A quote inside of a field without quotes is a letter.
        ([b'1,12" vinyl\n', b'2,7" vinyl\n'], [(1, 1, b'1,12" vinyl\n'), (2, 2, b'2,7" vinyl\n')]),
        ([], []),
    ],
)
def test_records_end_where_their_quotes_are_closed(lines: list[bytes], records: list[tuple[int, int, bytes]]) -> None:
    assert list(spanning_lines(lines)) == records


def test_the_search_for_a_closing_quote_ends(tmp_path: Path) -> None:
    filler = [b"x" * 1023 + b"\n"] * (2 * LONGEST_RECORD // 1024)
    lines = [b'1,"never closed\n', *filler, b'2,"\n', b'fine"\n']

    found = list(spanning_lines(lines))

    assert found[0] == (1, 1, b'1,"never closed\n')
    assert found[-1] == (len(lines) - 1, len(lines), b'2,"\nfine"\n')
    assert len(found) == len(lines) - 1


def test_many_quotes_that_stay_open_are_as_many_records() -> None:
    lines = [b'"a" b,"\n'] * 20_000
    assert [record for _, _, record in spanning_lines(lines)] == lines


def test_a_field_may_be_longer_than_python_allows_at_first() -> None:
    assert comma_separated('1,"' + "é" * 200_000 + '\n"')[1] == "é" * 200_000 + "\n"


def test_columns_come_in_the_wanted_order_and_lacking_ones_are_empty(tmp_path: Path) -> None:
    split = by_header(csv_file(tmp_path, b'\xef\xbb\xbfC,other,"a"\n'), ("a", "c"), optional=("C2", "Other"))

    assert split('3,x,"1,\n1"') == ["1,\n1", "3", "", "x"]
    with pytest.raises(Refused, match="not 3 fields"):
        split("3,x")


@pytest.mark.parametrize("header", [b"a\n", b'"a,c\n', b"\xff,a,c\n"])
def test_a_header_that_lacks_a_column_or_is_none_is_refused(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(Invalid, match=r"a\.csv: its first line should"):
        by_header(csv_file(tmp_path, header), ("a", "c"))
