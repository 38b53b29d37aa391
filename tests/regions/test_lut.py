"""Look-up tables of labels, of every kind."""

import numpy as np
import pytest
from oblique import OBLIQUE, SHAPE

from sharedmask import errors
from sharedmask.regions.regions import RegionRow, Regions
from sharedmask.sources.grid import Grid


@pytest.fixture
def grid():
    return Grid(SHAPE, OBLIQUE)


class Frame:
    """What of a DataFrame is used."""

    def __init__(self, **columns):
        self.columns = list(columns)
        self._columns = columns

    def __getitem__(self, name):
        return np.asarray(self._columns[name])


def test_look_up_tables(tmp_path, grid):
    data = np.arange(60).reshape(SHAPE) % 4
    tsv = "index\tname\tcolor\n0\tbackground\t#000\n1\tInsula, left\t#111\n3\tPutamen\t#222\n7\tLost\t#333\n"
    (tmp_path / "dseg.tsv").write_text(tsv)
    (tmp_path / "bom.csv").write_text(
        'name,index\nbackground,0\n"Insula, left",1.0\nPutamen,3\nLost,7\n\n', encoding="utf-8-sig"
    )
    import pandas as pd

    tables = [
        tmp_path / "dseg.tsv",
        str(tmp_path / "bom.csv"),
        pd.DataFrame({"index": [0, 1, 3, 7], "name": ["background", "Insula, left", "Putamen", "Lost"]}),
        Frame(index=[0.0, 1.0, 3.0, 7.0], name=["background", "Insula, left", "Putamen", "Lost"]),
        {np.int16(0): "background", 1: "Insula, left", 3: "Putamen", "7": "Lost"},
    ]
    for lut in tables:
        made = Regions.from_labels(data, grid, lut=lut)
        assert made.names == ("Insula, left", "2", "Putamen")
        assert made.keys == made.names
        assert made.missing == ((7, "Lost"),)
        assert made.table()[-1] == RegionRow(7, "Lost", 0, 0, 0.0, None)
        assert all(type(label) is int for label in made.labels)


def test_equal_names_in_a_table_lose_no_region(grid):
    data = np.arange(60).reshape(SHAPE) % 4
    made = Regions.from_labels(data, grid, lut={1: "unknown", 2: "unknown", 3: "x"})
    assert made.pack([1, 2, 3]) == {"unknown": 1, "unknown_2": 2, "x": 3}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("index\tlabel\n1\ta\n", r"no column name, only \['index', 'label'\]"),
        ("value\tlabel\n1\ta\n", "no column index nor name"),
        ("", "no column index nor name"),
        ("index\tname\n1\ta\n1\tb\n", "has the index 1 twice: 'a' and 'b'"),
        ("index\tname\n1.5\ta\n", "index '1.5' is not an integer"),
        ("index\tname\nn/a\ta\n", "index 'n/a' is not an integer"),
        ("index\tname\ninf\ta\n", "index 'inf' is not an integer"),
        ("name\tindex\nalone\n", "index None is not an integer"),
        ('index\tname\n1\t"a"b\n', "cannot be read"),
    ],
)
def test_look_up_tables_refused(tmp_path, grid, text, problem):
    lut = tmp_path / "lut.tsv"
    lut.write_text(text)
    with pytest.raises(errors.MaskError, match=problem) as caught:
        Regions.from_labels(np.ones(SHAPE), grid, lut=lut)
    assert str(lut) in str(caught.value)


def test_look_up_tables_missing_or_of_another_kind(tmp_path, grid):
    with pytest.raises(errors.MissingFileError, match=r"gone\.tsv does not exist"):
        Regions.from_labels(np.ones(SHAPE), grid, lut=tmp_path / "gone.tsv")
    (tmp_path / "binary.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(errors.MaskError, match=r"binary\.tsv cannot be read"):
        Regions.from_labels(np.ones(SHAPE), grid, lut=tmp_path / "binary.tsv")
    with pytest.raises(errors.MaskError, match="not a path, a DataFrame or a mapping but a list"):
        Regions.from_labels(np.ones(SHAPE), grid, lut=["a"])
