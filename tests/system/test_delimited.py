"""Text as cells."""

import pytest

from sharedmask.system.delimited import number, read_cells


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("", []),
        ("\n \n\t\t\n", []),
        ("# only\n#comments", []),
        ("a\tb\n1\t\n\t2", [["a", "b"], ["1", ""], ["", "2"]]),
        ("a, b ,c\n1\n", [["a", "b", "c"], ["1", "", ""]]),
        ("a\n1\t2\n", [["a", ""], ["1", "2"]]),
        ('n;t\n1;"a;\nb"\n', [["n", "t"], ["1", "a;\nb"]]),
        (" 1  2 3 \n 4 5 6", [["1", "2", "3"], ["4", "5", "6"]]),
        ("#fff\t1\n#No\t2\n#000000\t3\n", [["#fff", "1"], ["#000000", "3"]]),
        ("1\r2\r\n3\n", [["1"], ["2"], ["3"]]),
        ("a\x0bb\u2028c\n", [["a", "b", "c"]]),
    ],
)
def test_cells(tmp_path, text, rows):
    (tmp_path / "t.txt").write_bytes(text.encode())
    assert read_cells(tmp_path / "t.txt") == rows


@pytest.mark.parametrize(
    ("cell", "value"), [("1e-3", 1e-3), ("-5", -5), ("1_0", None), ("1,5", None), ("", None)]
)
def test_numbers(cell, value):
    assert number(cell) == value


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a\xe9", "byte 1 is not UTF-8"),
        (b"a\0", "zero bytes"),
        (b'a,b\n"a,b\n', "quotation mark opens"),
        (b"\xff\xfea", "UTF-16"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, content, problem):
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(ValueError, match=problem):
        read_cells(tmp_path / "t.txt")
